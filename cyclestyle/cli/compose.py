"""Compose configs, check them, and build the objects that they describe.

Only `cyclestyle.cli` and the command modules (train, translate, evaluate, export) use Hydra. This module does not
import PyTorch, so that `--help` is quick.
"""

import copy
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.cli import signatures
from cyclestyle.cli.arguments import Argument, escape_interpolation, literal, split, unknown_key_error
from cyclestyle.cli.help import options, yaml_entries
from cyclestyle.cli.keys import TAKEN_AS_TYPED
from cyclestyle.errors import CommandError


@dataclass
class Train:
    """Top-level keys of configs/train.yaml; experiment files must not contain other top-level keys."""

    name: str = MISSING
    seed: int = MISSING
    run_dir: str = MISSING
    init: str | None = None
    data: Any = None
    generator: Any = None
    discriminator: Any = None
    adversarial: Any = None
    optimizer: Any = None
    objective: Any = None
    pool: Any = None
    ema: Any = None
    schedule: Any = None
    trainer: Any = None
    checkpoint: Any = None
    resume: Any = None
    logger: Any = None


@dataclass
class Evaluate:
    """Top-level keys of configs/evaluate.yaml."""

    checkpoint: str = MISSING
    input: str = MISSING
    truth: str | None = None
    target: str | None = None
    direction: str | None = None
    device: str = MISSING
    precision: str = MISSING
    batch_size: int = MISSING
    backend: str = MISSING
    weights: str = MISSING


@dataclass
class Translate:
    """Top-level keys of configs/translate.yaml."""

    checkpoint: str = MISSING
    input: str = MISSING
    output: str = MISSING
    direction: str | None = None
    strength: Any = MISSING
    keep: str = MISSING
    format: str = MISSING
    quality: int = MISSING
    resize: int | None = None
    metadata: str = MISSING
    max_pixels: int = MISSING
    existing: str = MISSING
    sheet: bool = MISSING
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


@dataclass
class Export:
    """Top-level keys of configs/export.yaml."""

    checkpoint: str = MISSING
    format: str = MISSING
    output: str | None = None
    direction: str | None = None
    weights: str = MISSING
    existing: str = MISSING


SCHEMAS: dict[str, type] = {"train": Train, "translate": Translate, "evaluate": Evaluate, "export": Export}
for _command, _schema in SCHEMAS.items():
    ConfigStore.instance().store(f"{_command}_schema", _schema)

# Classes and functions that receive config keys. A name on the left is a config node without _target_, a _target_ that
# passes keys to other functions, or a command whose config has no nodes.
CONSUMERS: dict[str, tuple[str, ...]] = {
    "objective": ("cyclestyle.objectives.cyclegan.CycleGAN",),
    "pool": ("cyclestyle.objectives.image_pool.ImagePool",),
    "ema": ("cyclestyle.training.ema.GeneratorAverage",),
    "schedule": ("cyclestyle.training.schedule.LinearDecay",),
    "trainer": (
        "cyclestyle.training.trainer.Trainer",
        "cyclestyle.train.enable_recompute",
        "cyclestyle.train.profilers",
        "cyclestyle.train.choose_threads",
        "cyclestyle.hardware.device.Hardware",
        "cyclestyle.hardware.device.process_count",
        "cyclestyle.distributed.world.session",
    ),
    "checkpoint": ("cyclestyle.run.folder.RunFolder", "cyclestyle.checkpoints.writer.CheckpointWriter"),
    "resume": ("cyclestyle.run.folder.RunFolder",),
    "cyclestyle.data.drawn_scenes": ("cyclestyle.data.UnpairedFolders",),
    "translate": ("cyclestyle.translate.translate",),
    "evaluate": ("cyclestyle.evaluate.evaluate",),
    "export": ("cyclestyle.export.export",),
}


def config_dir() -> Path:
    """Folder that contains the YAML files: in the package if it was installed from a wheel, else beside the package."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a command's config from the command's YAML files and from `overrides`, arguments such as `seed=1`.

    Hydra merges the YAML files that the overrides choose. This function then sets the values of keys: it keeps paths
    and names as typed, and parses other values by Hydra's grammar.

    Raises:
        CommandError: an override has an unknown key or option, or a malformed value.
    """
    arguments = [split(override) for override in overrides]
    command_groups = groups(command)
    chosen = [group_override(argument) for argument in arguments if argument.key in command_groups]
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = hydra.compose(command, overrides=chosen)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise CommandError(one_line(error)) from error

    for argument in arguments:
        if argument.key not in command_groups:
            set_key(cfg, argument, command)
    name = to_plain(cfg).get("name", "own")
    if name in ("", ".", "..") or "/" in name:
        raise CommandError(f"name={name} is no name for a folder: leave out / and .. (run_dir= takes a path)")
    return cfg


def groups(command: str) -> dict[str, str | None]:
    """Map each config group to its default option, given by the command's YAML file; map `experiment` to None."""
    entries = [entry for entry in OmegaConf.load(config_dir() / f"{command}.yaml").defaults if OmegaConf.is_dict(entry)]
    defaults = {str(group): str(option) for entry in entries for group, option in entry.items()}
    return {"experiment": None, **defaults} if defaults else {}


def group_override(argument: Argument) -> str:
    """Return `group=option` in Hydra's syntax; `experiment`, which is in no defaults list, needs a leading plus."""
    group, option = argument
    available = options(config_dir() / group)
    if option not in available:
        if "," in option:
            raise CommandError(f"{group}={option} has several values: add --multirun to train once for each")
        raise unknown_key_error(group, option, available)
    return f"+{group}={option}" if group == "experiment" else f"{group}={option}"


def set_key(cfg: DictConfig, argument: Argument, command: str) -> None:
    """Set one key of `cfg` to the value in `argument`.

    `check` verifies later that the class or function that receives the key accepts it and its value.

    Raises:
        CommandError: the key is unknown or holds other keys, or the value is malformed or, for a top-level key, of the
            wrong type.
    """
    key, text = argument
    known = dict(walk(OmegaConf.to_container(cfg)))
    parent = known.get(key.rpartition(".")[0])
    if key not in known and not (isinstance(parent, dict) and "_target_" in parent):
        names = [name for name, value in known.items() if not isinstance(value, dict)]
        raise unknown_key_error("key", key, [*groups(command), *names], otherwise="--help lists the keys")

    value = literal(argument) if key in TAKEN_AS_TYPED else parsed(argument)
    if isinstance(known.get(key), dict) and not (value is None and key.startswith("logger.")):
        raise CommandError(f"{key}={text}: {key} holds keys, set one of them: {', '.join(known[key])}")

    expected = get_type_hints(SCHEMAS[command]).get(key, Any)
    if not signatures.matches(value, expected):
        raise signatures.type_error(key, value, [expected])
    if isinstance(value, str) and key in TAKEN_AS_TYPED:
        value = escape_interpolation(value)
    OmegaConf.update(cfg, key, value, force_add=True)


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for every key below `node`; `prefix` is prepended to each key.

    A value may itself be a node (a dict); its keys follow.
    """
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from walk(value, f"{prefix}{key}.")


def parsed(argument: Argument) -> Any:
    """Return the value of an argument, parsed by Hydra's grammar: a number, true, null, a list or plain words."""
    override = parse(argument)
    if override.is_sweep_override():
        raise CommandError(f"{argument.key}={argument.text} has several values: add --multirun to train once for each")
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
    if command in CONSUMERS:
        signatures.bind("", node, consumers(command))
    for key, value in node.items():
        if isinstance(value, dict):
            check_node(key, value)


def check_node(path: str, node: object) -> None:
    """Check the node at the dotted key `path`.

    There are three kinds of node:
    * a component, whose `_target_` is the class or function that receives the other keys of the node;
    * a node without `_target_` that is listed in `CONSUMERS`, with the classes and functions that receive its keys;
    * a node that maps names to components, such as `logger`.
    """
    if not isinstance(node, dict):
        raise CommandError(f"{path}={node} is no component: a component is a node with a _target_")
    if "_target_" in node:
        target = node.pop("_target_")
        signatures.bind(path, node, [signatures.resolve_target(target, path), *consumers(target)])
    elif path in CONSUMERS:
        signatures.bind(path, node, consumers(path))
    else:
        for key, value in node.items():
            if value is not None:
                check_node(f"{path}.{key}", value)


def consumers(name: str) -> list[Callable[..., Any]]:
    """Return the classes and functions that `CONSUMERS` lists under `name`; empty if `name` is not in `CONSUMERS`."""
    return [pkgutil.resolve_name(consumer) for consumer in CONSUMERS.get(name, ())]


def build(node: DictConfig, **kwargs: Any) -> Any:
    """Call the `_target_` of `node` with the node's other keys and `kwargs` as arguments; return the result.

    Hydra is used only to find the target. If Hydra also received the arguments, it would resolve ${...} in paths, and
    copy networks and parameters.

    Raises:
        CommandError: a key of the node is also in `kwargs`.
    """
    arguments = to_plain(node)
    target = arguments.pop("_target_")
    if duplicates := arguments.keys() & kwargs.keys():
        raise CommandError(
            f"{', '.join(sorted(duplicates))} of {target} is the program's own: take it out of the config"
        )
    return hydra.utils.instantiate({"_target_": target, "_partial_": True})(**arguments, **kwargs)


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
    """Format a config as YAML; replace each ${key} by the value of that key.

    Args:
        auto: dotted key -> chosen value, for keys whose value in `cfg` is `auto`.
    """
    to_plain(cfg)
    resolved = copy.deepcopy(cfg)
    for key, value in (auto or {}).items():
        OmegaConf.update(resolved, key, value)
    return OmegaConf.to_yaml(resolved, resolve=True)


def one_line(error: Exception) -> str:
    """Message of an error raised by Hydra, OmegaConf or YAML, with its lines joined into one."""
    return " ".join(str(error).split())
