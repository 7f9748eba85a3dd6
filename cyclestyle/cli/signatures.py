"""Checking of config keys and values against the signatures of the classes and functions that receive them."""

import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from cyclestyle.cli import arguments
from cyclestyle.cli.keys import RENAMED_TARGETS
from cyclestyle.errors import CommandError

# Classes and functions that receive config keys. A name on the left is a config node without _target_, a _target_ that
# passes keys to other functions, or a command whose config has no nodes.
CONSUMERS: dict[str, tuple[str, ...]] = {
    "trainer": (
        "cyclestyle.training.trainer.Trainer",
        "cyclestyle.training.updater.Updater",
        "cyclestyle.training.periodic.usual_tasks",
        "cyclestyle.training.explosion.ExplosionWatch",
        "cyclestyle.objectives.cyclegan.CycleGAN",  # `backward`
        "cyclestyle.assembly.objective.enable_recompute",
        "cyclestyle.assembly.trainer.graphed",
        "cyclestyle.assembly.periodic.profilers",
        "cyclestyle.train.choose_threads",
        "cyclestyle.hardware.device.Hardware",
        "cyclestyle.hardware.device.process_count",
        "cyclestyle.distributed.world.session",
    ),
    "checkpoint": (
        "cyclestyle.checkpoints.directory.Checkpoints",
        "cyclestyle.checkpoints.writer.CheckpointWriter",
        "cyclestyle.checkpoints.best.BestCheckpoint",
    ),
    "scores": ("cyclestyle.assembly.scores.build_scores",),
    "resume": ("cyclestyle.run.folder.RunFolder",),
    "augment": ("cyclestyle.assembly.objective.build_degrade",),
    "cyclestyle.data.drawn_scenes": ("cyclestyle.data.UnpairedFolders",),
    "translate": ("cyclestyle.translate.translate",),
    "evaluate": ("cyclestyle.evaluate.evaluate",),
    "data": ("cyclestyle.evaluate.DataSet",),  # for evaluate; in train, the node has a _target_
    "features": ("cyclestyle.evaluate.Features",),
    "export": ("cyclestyle.export.export",),
    "download": ("cyclestyle.download.download",),
}


def bind(path: str, values: Mapping[str, Any], targets: Sequence[Callable[..., Any]]) -> None:
    """Check that each key in `values` is a parameter of one of the `targets`, and its value matches the annotation.

    A parameter whose key is missing is not an error: it has a default, or the program passes it. If the last target
    has a parameter `**rest`, any key is accepted. In other targets `**rest` is ignored: they pass unknown keys to the
    later targets.

    Args:
        path: dotted key of the node that contains `values`, for error messages; empty for a whole config.
        values: key -> value, without `_target_`.
        targets: classes and functions that receive the keys.

    Raises:
        CommandError: no target has a parameter for a key (the message suggests the closest parameter), or a value has
            the wrong type.
    """
    expected, takes_rest = parameters(targets)
    prefix = f"{path}." if path else ""
    for key, value in values.items():
        if key in expected:
            if not any(matches(value, annotation) for annotation in expected[key]):
                raise type_error(prefix + key, value, expected[key])
        elif not takes_rest:
            raise arguments.unknown_key_error("key", prefix + key, [prefix + name for name in expected])


def parameters(targets: Sequence[Callable[..., Any]]) -> tuple[dict[str, list[Any]], bool]:
    """Return the annotations of the targets' parameters by name, and whether the last target has `**rest`."""
    annotations: dict[str, list[Any]] = {}
    takes_rest = False
    for target in targets:
        kinds = signature(target).parameters.values()
        takes_rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in kinds)
        for parameter in kinds:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                annotations.setdefault(parameter.name, []).append(parameter.annotation)
    return annotations, takes_rest


def accepts(targets: Sequence[Callable[..., Any]], key: str) -> bool:
    """Return whether one of the targets has a parameter `key`, or the last one accepts any keyword."""
    annotations, takes_rest = parameters(targets)
    return key in annotations or takes_rest


def resolve_target(name: object, path: str) -> Callable[..., Any]:
    """Find the class or function that `_target_: name` in the node `path` refers to.

    Raises:
        CommandError: no class or function has this name, or its signature cannot be read.
    """
    if not isinstance(name, str):
        raise CommandError(f"{path}._target_={name} does not name a class or function")
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        if name in RENAMED_TARGETS:
            raise CommandError(f"{path}._target_={name} was renamed to {RENAMED_TARGETS[name]}") from None
        raise CommandError(f"{path}._target_={name} cannot be found: {error}") from error
    except Exception as error:  # a module of the user's may raise anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CommandError(f"{path}._target_={name}: its module cannot be imported: {reason}") from error
    if not callable(target):
        raise CommandError(f"{path}._target_={name} is neither a class nor a function")
    try:
        signature(target)
    except ValueError:
        raise CommandError(f"{path}._target_={name} has no readable signature: wrap it in a function") from None
    return cast(Callable[..., Any], target)


def consumers(name: object) -> list[Callable[..., Any]]:
    """Return the classes and functions that receive the keys of `name`, as listed in `CONSUMERS`.

    The result is empty if `name` is not listed. `name` is a config node without `_target_`, a `_target_` that passes
    keys to other functions, or a command.
    """
    return [pkgutil.resolve_name(consumer) for consumer in CONSUMERS.get(str(name), ())]


def signature(target: Callable[..., Any]) -> inspect.Signature:
    """Signature of a callable; annotations given as strings are converted to types if all of them can be evaluated."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:  # an annotation may be imported for type checkers only
        return inspect.signature(target)


def matches(value: Any, annotation: Any) -> bool:
    """Return whether a parameter with this annotation accepts a value from YAML; True for unsupported annotations."""
    kind, args = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(matches(value, arg) for arg in args)
    if kind is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if kind in (Any, inspect.Parameter.empty, object) or not isinstance(kind, type | None):
        return True
    if kind in (None, NoneType):
        return value is None

    if isinstance(value, bool):  # checked before numbers: bool is a subclass of int
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    if issubclass(kind, PurePath):
        return isinstance(value, str)
    if isinstance(value, str):
        return kind is str  # text is a sequence of letters, and never a list
    if isinstance(value, list) and issubclass(kind, Iterable) and not issubclass(kind, str | Mapping):
        if kind is tuple and args and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(matches, value, args))
        return all(matches(item, arg) for item in value for arg in args[:1])
    return isinstance(value, kind)


def type_error(key: str, value: Any, annotations: Iterable[Any]) -> CommandError:
    """Create the error for a value of `key` that has the wrong type or is not a permitted choice."""
    kinds = dict.fromkeys(kind for annotation in annotations for kind in describe_type(annotation))
    *others, last = sorted(kinds, key=lambda kind: kind == "null")
    expected = f"{', '.join(others)} or {last}" if others else last
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+", value):
        return CommandError(f'{key}="{value}" is text, because of the quotes: expected {expected}')
    return CommandError(f"{key}={value if isinstance(value, str) else json.dumps(value)}: expected {expected}")


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null", None: "null"}


def describe_type(annotation: Any) -> list[str]:
    """Describe each type or choice that an annotation accepts, in plain words for users: `a number`, `null`."""
    kind, args = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return [word for arg in args for word in describe_type(arg)]
    if kind is Literal:
        return [str(arg) for arg in args]
    if kind in WORDS:
        return [WORDS[kind]]
    if kind is tuple and args and args[-1] is not Ellipsis:
        return [f"a list of {len(args)}"]
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return ["a path"]
    if isinstance(kind, type) and issubclass(kind, Iterable):
        return ["a list"]
    return [getattr(kind, "__name__", str(kind))]
