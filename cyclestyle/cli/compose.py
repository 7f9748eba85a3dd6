"""From the command line to checked parts: the root schemas, composing, checking and building.

Only this module and the entries know Hydra. It imports no torch, so that `--help` is quick.
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
    """The root of configs/train.yaml: no other keys than these, here or in an experiment."""

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
    """The root of configs/evaluate.yaml."""

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
    """The root of configs/translate.yaml."""

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
    """The root of configs/export.yaml."""

    checkpoint: str = MISSING
    format: str = MISSING
    output: str | None = None
    direction: str | None = None
    weights: str = MISSING
    existing: str = MISSING


SCHEMAS: dict[str, type] = {"train": Train, "translate": Translate, "evaluate": Evaluate, "export": Export}
for _command, _schema in SCHEMAS.items():
    ConfigStore.instance().store(f"{_command}_schema", _schema)

# Who takes the keys of a node that names no _target_, of a command that has no nodes, and of a target that hands on
# what it does not take itself.
CONSUMERS: dict[str, tuple[str, ...]] = {
    "objective": ("cyclestyle.objectives.cyclegan.CycleGAN",),
    "pool": ("cyclestyle.objectives.image_pool.ImagePool",),
    "ema": ("cyclestyle.training.ema.GeneratorAverage",),
    "schedule": ("cyclestyle.training.schedule.LinearDecay",),
    "trainer": (
        "cyclestyle.training.trainer.Trainer",
        "cyclestyle.train.save_memory",
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
    """The folder of YAML files: inside the package where it was installed from a wheel, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose(command: str, overrides: Sequence[str]) -> DictConfig:
    """The config that `overrides` make, typed as on a command line; CommandError names what is wrong with them.

    Hydra puts the chosen files together. Values are set here: paths and names as typed, the others by Hydra's grammar.
    """
    arguments = [split(override) for override in overrides]
    of_command = groups(command)
    chosen = [group_override(argument) for argument in arguments if argument.key in of_command]
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            cfg = hydra.compose(command, overrides=chosen)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise CommandError(one_line(error)) from error

    for argument in arguments:
        if argument.key not in of_command:
            set_key(cfg, argument, command)
    name = to_plain(cfg).get("name", "own")
    if name in ("", ".", "..") or "/" in name:
        raise CommandError(f"name={name} is no name for a folder: leave out / and .. (run_dir= takes a path)")
    return cfg


def groups(command: str) -> dict[str, str | None]:
    """The groups that a command chooses from, with their defaults, as its YAML's defaults list has them."""
    listed = OmegaConf.load(config_dir() / f"{command}.yaml").defaults
    found = {str(group): str(option) for entry in listed if OmegaConf.is_dict(entry) for group, option in entry.items()}
    return {"experiment": None, **found} if found else {}


def group_override(argument: Argument) -> str:
    """`group=option` as Hydra wants it: an experiment is not in the defaults list, and is added."""
    group, option = argument
    available = options(config_dir() / group)
    if option not in available:
        if "," in option:
            raise CommandError(f"{group}={option} has several values: add --multirun to train once for each")
        raise unknown_key_error(group, option, available)
    return f"+{group}={option}" if group == "experiment" else f"{group}={option}"


def set_key(cfg: DictConfig, argument: Argument, command: str) -> None:
    """Set one key. Whether an open node's part takes it, and whether the value fits, is for `check` to say."""
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
    """Every dotted key below `node` with its value, nodes included."""
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from walk(value, f"{prefix}{key}.")


def parsed(argument: Argument) -> Any:
    """A value by Hydra's grammar: numbers, true, null, lists, plain words."""
    override = parse(argument)
    if override.is_sweep_override():
        raise CommandError(f"{argument.key}={argument.text} has several values: add --multirun to train once for each")
    return override.value()


def parse(argument: Argument) -> Override:
    """One argument by Hydra's grammar."""
    try:
        return OverridesParser.create().parse_override(f"{argument.key}={argument.text}")
    except HydraException as error:
        raise CommandError(
            f"{argument.key}={argument.text} cannot be read: put text with special characters in quotes, "
            f"""as in '{argument.key}="..."'"""
        ) from error


def check(cfg: DictConfig) -> None:
    """Bind every key to the signature of whoever takes it, so that nothing is found out after the first step."""
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
    """Bind a part, a node that is somebody's arguments, or a node of named parts such as `logger`."""
    if not isinstance(node, dict):
        raise CommandError(f"{path}={node} is no part: a part is a node with a _target_")
    if "_target_" in node:
        target = node.pop("_target_")
        signatures.bind(path, node, [signatures.resolve_target(target, path), *consumers(target)])
    elif path in CONSUMERS:
        signatures.bind(path, node, consumers(path))
    else:
        for key, value in node.items():
            if value is not None:
                check_node(f"{path}.{key}", value)


def consumers(taker: str) -> list[Callable[..., Any]]:
    """The classes and functions that CONSUMERS names."""
    return [pkgutil.resolve_name(name) for name in CONSUMERS.get(taker, ())]


def build(node: DictConfig, **kwargs: Any) -> Any:
    """Make the part that `node` names, from its keys and what the program adds.

    The keys go by as plain values: Hydra would read ${...} in a path, and copy networks and parameters.
    """
    arguments = to_plain(node)
    target = arguments.pop("_target_")
    if both := arguments.keys() & kwargs.keys():
        raise CommandError(f"{', '.join(sorted(both))} of {target} is the program's own: take it out of the config")
    return hydra.utils.instantiate({"_target_": target, "_partial_": True})(**arguments, **kwargs)


def arguments_for(node: DictConfig, target: Callable[..., Any]) -> dict[str, Any]:
    """Those of the node's keys that `target` takes."""
    return {key: value for key, value in to_plain(node).items() if key in inspect.signature(target).parameters}


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and values, with every reference replaced by what it refers to."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise CommandError(one_line(error)) from error


def yaml(cfg: DictConfig, *, auto: Mapping[str, Any] | None = None) -> str:
    """The config as YAML without references; `auto` has what keys that said so turned out to be."""
    to_plain(cfg)
    settled = copy.deepcopy(cfg)
    for key, value in (auto or {}).items():
        OmegaConf.update(settled, key, value)
    return OmegaConf.to_yaml(settled, resolve=True)


def one_line(error: Exception) -> str:
    """An error of Hydra's, OmegaConf's or YAML's, which take several."""
    return " ".join(str(error).split())
