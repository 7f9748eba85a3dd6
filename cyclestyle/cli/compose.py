"""Compose configs, check them, and build the objects that they describe.

Only `cyclestyle.cli` and the command modules (train, translate, evaluate, export, download) use Hydra. This module does
not import PyTorch, so that `--help` is quick.
"""

import csv
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cyclestyle.calls import accepted
from cyclestyle.cli import signatures
from cyclestyle.cli.arguments import (
    Argument,
    Removal,
    escape_interpolation,
    literal,
    split,
    split_removal,
    unknown_key_error,
)
from cyclestyle.cli.groups import (
    Chosen,
    choose,
    load,
    merge,
    replace_nodes,
    search_path,
    whole_config,
    written_nodes,
)
from cyclestyle.cli.help import yaml_entries
from cyclestyle.cli.keys import INTERPOLATED, NEEDED, PATHS, TAKEN_AS_TYPED
from cyclestyle.cli.nodes import PROGRAM_KEYS, VARIANTS, check_node
from cyclestyle.cli.nodes import split_program_keys as split_program_keys
from cyclestyle.cli.nodes import variant as variant
from cyclestyle.cli.spellings import understood, with_point
from cyclestyle.cli.targets import clear_component, components_to_clear, targets_of
from cyclestyle.cli.values import check_methods, check_numbers, rejection
from cyclestyle.errors import CommandError


@dataclass
class Train:
    """Top-level keys of configs/train.yaml; experiment files must not contain other top-level keys."""

    name: str = MISSING
    seed: int = MISSING
    run_dir: str = MISSING
    init: str | None = None
    plugins: list[str] = MISSING
    data: Any = None
    generator: Any = None
    discriminator: Any = None
    adversarial: Any = None
    optimizer: Any = None
    objective: Any = None
    pool: Any = None
    augment: Any = None
    ema: Any = None
    schedule: Any = None
    tasks: Any = None
    scores: Any = None
    trainer: Any = None
    checkpoint: Any = None
    resume: Any = None
    logger: Any = None


@dataclass
class Evaluate:
    """Top-level keys of configs/evaluate.yaml."""

    checkpoint: Any = MISSING
    input: str | None = None
    target: str | None = None
    truth: str | None = None
    direction: str | None = None
    data: Any = None
    images: int | None = None
    photo_size: int | None = None
    names: Any = MISSING
    rulers: Any = MISSING
    lpips: Any = MISSING
    features: Any = None
    missing: str = MISSING
    size: Any = MISSING
    strength: Any = MISSING
    robustness: bool = MISSING
    seed: int = MISSING
    output: str | None = None
    cache: bool = MISSING
    device: str = MISSING
    precision: str = MISSING
    batch_size: int = MISSING
    workers: int = MISSING
    backend: str = MISSING
    weights: str = MISSING
    plugins: list[str] = MISSING


@dataclass
class Translate:
    """Top-level keys of configs/translate.yaml."""

    checkpoint: str = MISSING
    input: str = MISSING
    output: str = MISSING
    direction: str | None = None
    strength: Any = MISSING
    keep: str = MISSING
    mask: str | None = None
    feather: int = MISSING
    format: str = MISSING
    quality: int = MISSING
    resize: int | None = None
    metadata: str = MISSING
    max_pixels: int = MISSING
    existing: str = MISSING
    sheet: bool = MISSING
    prune: Any = MISSING
    tile: Any = MISSING
    memory: str = MISSING
    batch_size: int = MISSING
    workers: Any = MISSING
    threads: Any = MISSING
    device: str = MISSING
    precision: str = MISSING
    compile: bool = MISSING
    backend: str = MISSING
    engine: str = MISSING
    weights: str = MISSING
    plugins: list[str] = MISSING


@dataclass
class Export:
    """Top-level keys of configs/export.yaml."""

    checkpoint: str = MISSING
    format: str = MISSING
    output: str | None = None
    direction: str | None = None
    weights: str = MISSING
    existing: str = MISSING
    plugins: list[str] = MISSING


@dataclass
class Download:
    """Top-level keys of configs/download.yaml."""

    features: Any = MISSING
    path: str | None = None


SCHEMAS: dict[str, type] = {
    "train": Train,
    "translate": Translate,
    "evaluate": Evaluate,
    "export": Export,
    "download": Download,
}
for _command, _schema in SCHEMAS.items():
    ConfigStore.instance().store(f"{_command}_schema", _schema)


def config_dir() -> Path:
    """Folder that contains the YAML files: in the package if it was installed from a wheel, else beside the package."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_folders(chosen: Sequence[str] = ()) -> list[Path]:
    """Return the folders in which options of config groups are searched; `chosen` are given by `--config-dir`."""
    return search_path(config_dir(), chosen)


def compose(
    command: str,
    overrides: Sequence[str],
    *,
    config_dirs: Sequence[str] = (),
    report: Callable[[str], object] = lambda line: None,
) -> DictConfig:
    """Compose a command's config from the command's YAML files and from `overrides`, arguments such as `seed=1`.

    Hydra merges the YAML files that the overrides choose. This function then sets and removes keys: it keeps paths
    as typed, and parses other values by Hydra's grammar.

    Args:
        config_dirs: folders with further options of config groups; an option replaces the option of the package that
            has the same name.
        report: function that receives a line for each component from which keys were removed. If an override replaces
            the `_target_` of a component, keys that only the replaced class accepts are removed.

    Raises:
        CommandError: an override has an unknown key or option, or a malformed value.
    """
    arguments = [split_removal(override) or split(override) for override in overrides]
    command_groups = groups(command)
    folders = config_folders(config_dirs)
    options = [a for a in arguments if isinstance(a, Argument) and a.key in command_groups]
    check_one_experiment(options)
    chosen = [choose(option, folders) for option in options]
    # A saved run folder belongs to the saved name.
    kept = ["run_dir"] if any(argument.key == "name" for argument in arguments) else []
    cfg = merge_files(command, chosen, folders, kept=kept)
    targets = {path: [target] for path, target in targets_of(cfg).items()}
    keep_chosen_targets(cfg, command, chosen, folders)

    for argument in arguments:
        if isinstance(argument, Removal):
            remove_key(cfg, argument, command)
        elif argument.key not in command_groups:
            set_key(cfg, argument, command)
    check_named_components(cfg, command)
    typed = {argument.key for argument in arguments}
    for path in components_to_clear(cfg, chosen, typed):
        written = [] if "." in path else list(written_nodes(path, folders, config_dir() / f"{command}.yaml"))
        clear_component(cfg, path, typed, written, former=targets.get(path, []), report=report)
    check_name(cfg)
    return cfg


def merge_files(command: str, chosen: Sequence[Chosen], folders: Sequence[Path], *, kept: Sequence[str]) -> DictConfig:
    """Merge the YAML files of the command and of the chosen options.

    If the chosen experiment is a whole config (see `whole_config`), its values replace those of all other files, with
    two exceptions: the root keys in `kept`, and each group for which the command line chooses an option, such as
    `generator=unet`.
    """
    ConfigStore.instance().store(f"{command}_root", load(config_dir() / f"{command}.yaml"))
    command_groups = groups(command)
    for experiment in chosen:
        content = whole_config(experiment.file, list(command_groups)[1:]) if experiment.group == "experiment" else None
        if content is not None:
            others = [option for option in chosen if option.group != "experiment"]
            cfg = merge(command, others, folders)
            replace_nodes(cfg, content, file=experiment.file, kept=[*kept, *(option.group for option in others)])
            return cfg
    return merge(command, chosen, folders)


def keep_chosen_targets(cfg: DictConfig, command: str, chosen: Sequence[Chosen], folders: Sequence[Path]) -> None:
    """Set the `_target_` of each option on the command line, such as `generator=unet`, in `cfg` again.

    The chosen experiment may have replaced it; the option on the command line takes precedence.
    """
    options = [option for option in chosen if option.group != "experiment"]
    if options and len(options) < len(chosen):
        targets = targets_of(merge(command, options, folders))
        for option in options:
            if option.group in targets:
                cfg[option.group]._target_ = targets[option.group]


def check_one_experiment(options: Sequence[Argument]) -> None:
    """Raise a CommandError if the command line names several experiments.

    Other groups may be named several times: the last option takes effect.
    """
    experiments = [f"experiment={option.text}" for option in options if option.key == "experiment"]
    if len(experiments) > 1:
        raise CommandError(
            f"{' '.join(experiments)}: choose one experiment; its keys can be changed one by one, as in seed=1"
        )


def check_name(cfg: DictConfig) -> None:
    """Raise a CommandError if `name` is no valid folder name, or if `name` or `run_dir` depends on `${now:...}`."""
    raw = dict(walk(OmegaConf.to_container(cfg, resolve=False)))
    for key in ("name", "run_dir"):
        if depends_on_time(raw, key):
            raise CommandError(
                f"{key}={raw[key]}: ${{now:...}} differs at each start, but the same command must find its run again"
            )
    name = to_plain(cfg).get("name", "own")
    if name in ("", ".", "..") or "/" in name:
        raise CommandError(f"name={name} is no name for a folder: leave out / and .. (run_dir= takes a path)")


def depends_on_time(raw: Mapping[str, Any], key: str, seen: Sequence[str] = ()) -> bool:
    """Return whether the value of `key` contains `${now:...}`, itself or through interpolations of other keys.

    Args:
        raw: dotted key -> value as written, for all keys of the config.
        seen: keys whose interpolations led to `key`; they are skipped, so that a cycle of interpolations ends.
    """
    text = raw.get(key)
    if not isinstance(text, str) or key in seen:
        return False
    if re.search(r"\$\{\s*now\s*:", text):
        return True
    return any(depends_on_time(raw, other, [*seen, key]) for other in re.findall(r"\$\{([\w.]+)\}", text))


def groups(command: str) -> dict[str, str | None]:
    """Map each config group to its default option, given by the command's YAML file; map `experiment` to None."""
    entries = [entry for entry in OmegaConf.load(config_dir() / f"{command}.yaml").defaults if OmegaConf.is_dict(entry)]
    defaults = {str(group): str(option) for entry in entries for group, option in entry.items()}
    return {"experiment": None, **defaults} if defaults else {}


def set_key(cfg: DictConfig, argument: Argument, command: str) -> None:
    """Set one key of `cfg` to the value in `argument`.

    `check` verifies later that the class or function that receives the key accepts it and its value.

    Raises:
        CommandError: the key is unknown, the key is a node with keys of its own, the value is malformed, or the value
            of a top-level key has the wrong type.
    """
    key, text = argument
    known = dict(walk(OmegaConf.to_container(cfg)))
    if key not in known and not may_be_added(argument, known):
        raise no_such_key(key, known, command)

    expected = get_type_hints(SCHEMAS[command]).get(key, Any)
    if key in TAKEN_AS_TYPED:
        value = typed_value(cfg, argument, command)
    else:
        value = understood(command, key, parsed(argument, command), annotation=expected)
    may_be_null = key.rpartition(".")[0] in PROGRAM_KEYS
    if isinstance(known.get(key), dict) and not (value is None and may_be_null):
        raise CommandError(f"{key}={text}: {key} holds keys, set one of them: {', '.join(known[key]) or f'{key}.NAME'}")

    if not signatures.matches(value, expected):
        raise signatures.type_error(key, value, [expected])
    if key in TAKEN_AS_TYPED and key not in INTERPOLATED:
        value = escaped(value)
    try:
        OmegaConf.update(cfg, key, value, force_add=True)
    except OmegaConfBaseException as error:
        raise CommandError(f"{key}={text} cannot be read: {one_line(error)}") from error


def typed_value(cfg: DictConfig, argument: Argument, command: str) -> Any:
    """Return the value of an argument whose key takes a path or text: the text as typed, or a list of paths.

    Text in brackets, such as `[a,b]`, becomes a list if the key accepts lists and no file is named `[a,b]`.
    """
    text = literal(argument)
    if argument.key not in PATHS or not text or text[0] + text[-1] != "[]" or os.path.lexists(text):
        return text
    path, _, name = argument.key.rpartition(".")
    target = OmegaConf.select(cfg, f"{path}._target_") if path else None
    targets = signatures.consumers(path or command)
    if target is not None:
        targets = [signatures.resolve_target(target, path), *signatures.consumers(target)]
    annotations = signatures.parameters(targets)[0].get(name, [])
    if not any(signatures.matches(["text"], annotation) for annotation in annotations):
        return text
    items = next(csv.reader([text[1:-1]], skipinitialspace=True), [])  # text in double quotes may contain commas
    return [literal(Argument(argument.key, item.strip())) for item in items]


def no_such_key(key: str, known: Mapping[str, Any], command: str) -> CommandError:
    """Create the error for a key that is neither in the config nor may be added to it."""
    named = [f"{path}.{name}" for path in PROGRAM_KEYS for name in known.get(path) or {}]
    names = [*named, *(name for name, value in known.items() if not isinstance(value, dict))]
    return unknown_key_error("key", key, [*groups(command), *names], otherwise="--help lists the keys")


def remove_key(cfg: DictConfig, removal: Removal, command: str) -> None:
    """Remove a key of a component (a node with `_target_`), or a named component such as `logger.tensorboard`.

    The key of a node that maps names to components, such as `logger`, removes all of them.

    Raises:
        CommandError: the key is unknown, has another value than the argument names, or cannot be removed.
    """
    key, text = removal
    known = dict(walk(to_plain(cfg)))
    if key not in known:
        raise no_such_key(key, known, command)
    if text is not None and (value := parsed(Argument(key, text), command)) != known[key]:
        raise CommandError(f"~{key}={text}: the value of {key} is {known[key]}, not {value}")
    if key in PROGRAM_KEYS:
        OmegaConf.update(cfg, key, {}, merge=False)
        return

    path, _, name = key.rpartition(".")
    node = known.get(path)
    in_component = isinstance(node, dict) and "_target_" in node and name != "_target_" and key not in NEEDED
    if not (in_component or path in PROGRAM_KEYS or path.rpartition(".")[0] in VARIANTS):
        raise CommandError(f"~{key}: {key} cannot be removed, only set to another value")
    parent = OmegaConf.select(cfg, path)
    with open_dict(parent):
        del parent[name]


def check_named_components(cfg: DictConfig, command: str) -> None:
    """Raise a CommandError if a node that maps names to components, such as `logger`, holds a node without `_target_`.

    The command line adds such a node if it mistypes the name of a component, as in `logger.consle.x=3`.
    """
    known = dict(walk(OmegaConf.to_container(cfg)))
    for path in PROGRAM_KEYS:
        for name, component in (known.get(path) or {}).items():
            if isinstance(component, dict) and "_target_" not in component:
                others = {key: value for key, value in known.items() if not f"{key}.".startswith(f"{path}.{name}.")}
                others[path] = {other: value for other, value in known[path].items() if other != name}
                raise no_such_key(f"{path}.{name}", others, command)


def may_be_added(argument: Argument, known: Mapping[str, Any]) -> bool:
    """Return whether the key of `argument`, which the config lacks, may be added to it.

    A component is a node with a `_target_`. A key may be added to:
    - a component;
    - a sub-node that overrides a component for one network or optimizer, such as `optimizer.discriminators`;
    - a node that maps names to components, such as `logger`, or a node below it. Here the new value must not be null.

    Args:
        known: dotted key -> value, for all keys of the config.
    """
    parts = argument.key.split(".")
    for length in range(1, len(parts)):
        path = ".".join(parts[:length])
        if path in PROGRAM_KEYS and path in known:
            return argument.text != "null"
        if path in VARIANTS and parts[length] in VARIANTS[path]:
            return True
    return "_target_" in (known.get(argument.key.rpartition(".")[0]) or {})


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every key below `node`; `prefix` is prepended to each key.

    A value that is a dict is yielded as a whole, before the keys in it.
    """
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from walk(value, f"{prefix}{key}.")


def parsed(argument: Argument, command: str = "train") -> Any:
    """Return the value of an argument, parsed by Hydra's grammar: a number, true, null, a list or plain words."""
    override = parse(argument)
    if override.is_sweep_override():
        key, text = argument
        several = "add --multirun to train once for each" if command == "train" else f"give a list: '{key}=[{text}]'"
        if (number := with_point(text)) is not None:
            raise CommandError(f"{key}={text}: a comma separates values: write {key}={number}; for several, {several}")
        raise CommandError(f"{key}={text} has several values: {several}")
    return override.value()


def parse(argument: Argument) -> Override:
    """Parse one argument by Hydra's grammar; the argument may have several values, as in `seed=1,2`."""
    try:
        return OverridesParser.create().parse_override(f"{argument.key}={argument.text}")
    except HydraException as error:
        raise CommandError(
            f"{argument.key}={argument.text} cannot be read: put text with special characters in quotes, "
            f"""as in '{argument.key}="..."'"""
        ) from error


def check(cfg: DictConfig) -> None:
    """Check every key of a composed config against the signature of the class or function that receives the key.

    Raises:
        CommandError: a key is missing or unknown, or a value has the wrong type.
    """
    command = next(name for name, schema in SCHEMAS.items() if schema is OmegaConf.get_type(cfg))
    if missing := OmegaConf.missing_keys(cfg):
        comments = {entry.key: entry.comment for entry in yaml_entries(config_dir() / f"{command}.yaml")}
        needs = [f"{key}=... ({comments.get(key, 'no default')})" for key in get_type_hints(SCHEMAS[command])]
        raise CommandError(f"{command} needs " + ", ".join(need for need in needs if need.partition("=")[0] in missing))

    node = to_plain(cfg)
    check_paths(node)
    if command in signatures.CONSUMERS:
        signatures.bind("", node, signatures.consumers(command))
    for key, value in node.items():
        if isinstance(value, dict):
            check_node(key, value)
    check_numbers(to_plain(cfg))  # after the types


def check_paths(node: Mapping[str, Any]) -> None:
    """Raise a CommandError for a path that does not exist and contains `${`, probably meant as an interpolation."""
    paths = [(key, item) for key, value in walk(node) for item in (value if isinstance(value, list) else [value])]
    for key, value in paths:
        if key in PATHS - INTERPOLATED and isinstance(value, str) and "${" in value and not os.path.exists(value):  # noqa: PTH110 - a path of any text
            raise CommandError(
                f"{key}={value} does not exist: paths on the command line are taken as typed; "
                f"use a variable of the shell, or an interpolation in a YAML file"
            )


def build(node: DictConfig, **kwargs: Any) -> Any:
    """Call the `_target_` of `node` with the node's other keys and `kwargs` as arguments; return the result.

    Hydra is used only to find the target. If Hydra also received the arguments, it would resolve ${...} in paths, and
    copy networks and parameters.

    Raises:
        CommandError: a key of the node is also in `kwargs`, the constructor rejects the arguments, or the result lacks
            a method that the program calls.
    """
    arguments = to_plain(node)
    target, path = arguments.pop("_target_"), node._get_full_key(None) or "config"
    if duplicates := arguments.keys() & kwargs.keys():
        raise CommandError(
            f"{', '.join(sorted(duplicates))} of {target} is the program's own: take it out of the config"
        )
    call = hydra.utils.instantiate({"_target_": target, "_partial_": True})
    try:
        component = call(**arguments, **kwargs)
    except (TypeError, ValueError, OverflowError) as error:
        if (rejected := rejection(path, target, arguments, error)) is None:
            raise
        raise rejected from error
    check_methods(path, target, component)
    return component


def build_with(node: DictConfig, offered: Mapping[str, Any]) -> Any:
    """Call `build` with `node` and those `offered` arguments that the signature of its `_target_` accepts."""
    return build(node, **accepted(signatures.resolve_target(node["_target_"], str(node._key())), offered))


def arguments_for(node: DictConfig, target: Callable[..., Any]) -> dict[str, Any]:
    """Return the keys of `node` that are also parameters of `target`, with their values."""
    return {key: value for key, value in to_plain(node).items() if key in inspect.signature(target).parameters}


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """Convert a config to plain dicts, lists and values; replace each ${key} by the value of that key."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise CommandError(one_line(error)) from error


def yaml(cfg: DictConfig, *, auto: Mapping[str, Any] | None = None) -> str:
    """Format a config as YAML, so that `experiment=FILE` reads it again; replace each ${key} by the value of that key.

    Args:
        auto: dotted key -> value to write in place of the key's value in `cfg`, such as the device chosen for `auto`.
    """
    values = to_plain(cfg)
    for key, value in (auto or {}).items():
        node, _, name = key.rpartition(".")
        dict(walk(values))[node][name] = value
    return OmegaConf.to_yaml(OmegaConf.create(escaped(values)))


def escaped(value: Any) -> Any:
    """Return a copy of nested dicts and lists, in which each text is escaped so that OmegaConf reads it as it is."""
    if isinstance(value, dict):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [escaped(item) for item in value]
    return escape_interpolation(value) if isinstance(value, str) else value


def one_line(error: Exception) -> str:
    """Message of an error raised by Hydra, OmegaConf or YAML, with its lines joined into one."""
    return " ".join(str(error).split())
