"""Whether keys and values fit the signature of whoever takes them: found out before anything runs."""

import inspect
import json
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin

from cyclestyle.cli import arguments
from cyclestyle.cli.keys import RENAMED_TARGETS
from cyclestyle.errors import CommandError


def bind(path: str, values: Mapping[str, Any], takers: Sequence[Callable[..., Any]]) -> None:
    """Check that every key is a parameter of one of the takers, and that its value fits there.

    Parameters without a key do not matter: they have a default, or the program fills them in. A `**rest` of the last
    taker takes any key; that of an earlier one hands on to the later.

    Raises:
        CommandError: the key that nobody takes and the nearest one, or the value and what was expected.
    """
    expected: dict[str, list[Any]] = {}
    takes_rest = False
    for taker in takers:
        parameters = signature(taker).parameters.values()
        takes_rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        for parameter in parameters:
            if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                expected.setdefault(parameter.name, []).append(parameter.annotation)

    prefix = f"{path}." if path else ""
    for key, value in values.items():
        if key in expected:
            if not any(matches(value, annotation) for annotation in expected[key]):
                raise type_error(prefix + key, value, expected[key])
        elif not takes_rest:
            raise arguments.unknown_key_error("key", prefix + key, [prefix + name for name in expected])


def resolve_target(name: object, path: str) -> Callable[..., Any]:
    """The class or function that a `_target_` names; CommandError where there is none."""
    if not isinstance(name, str):
        raise CommandError(f"{path}._target_={name} is no name of a class or function")
    try:
        target = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        if name in RENAMED_TARGETS:
            raise CommandError(f"{path}._target_={name} was renamed to {RENAMED_TARGETS[name]}") from None
        raise CommandError(f"{path}._target_={name} cannot be found: {error}") from error
    if not callable(target):
        raise CommandError(f"{path}._target_={name} is neither a class nor a function")
    try:
        signature(target)
    except ValueError:
        raise CommandError(f"{path}._target_={name} does not tell what arguments it takes") from None
    return cast(Callable[..., Any], target)


def signature(target: Callable[..., Any]) -> inspect.Signature:
    """The signature, with annotations as types where they can be had."""
    try:
        return inspect.signature(target, eval_str=True)
    except NameError:  # a type that was imported for type checkers only
        return inspect.signature(target)


def matches(value: Any, annotation: Any) -> bool:
    """Whether a plain YAML value can be handed to a parameter with this annotation; what cannot be told, fits."""
    kind, args = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(matches(value, arg) for arg in args)
    if kind is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if kind in (Any, inspect.Parameter.empty, object) or not isinstance(kind, type | None):
        return True
    if kind in (None, NoneType):
        return value is None

    if isinstance(value, bool):  # which Python counts among the whole numbers
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    if issubclass(kind, PurePath):
        return isinstance(value, str)
    if isinstance(value, list) and issubclass(kind, Iterable) and not issubclass(kind, str | Mapping):
        if kind is tuple and args and args[-1] is not Ellipsis:
            return len(value) == len(args) and all(map(matches, value, args))
        return all(matches(item, arg) for item in value for arg in args[:1])
    return isinstance(value, kind)


def type_error(key: str, value: Any, annotations: Iterable[Any]) -> CommandError:
    """The error for a value of the wrong kind, or none of the choices."""
    kinds = dict.fromkeys(kind for annotation in annotations for kind in describe_type(annotation))
    *others, last = sorted(kinds, key=lambda kind: kind == "null")
    wanted = f"{', '.join(others)} or {last}" if others else last
    return CommandError(f"{key}={value if isinstance(value, str) else json.dumps(value)}: expected {wanted}")


WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null", None: "null"}


def describe_type(annotation: Any) -> list[str]:
    """The kinds of value that fit an annotation, in users' words."""
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
