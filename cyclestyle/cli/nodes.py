"""Checking and merging of config nodes: components, variants of components, and nodes that map names to components.

A component is a node with a `_target_`. From a few of them, such as `optimizer`, the program builds two objects; a
variant, such as `optimizer.discriminators`, is a sub-node with the keys that differ for one of the two. `logger` is
an example of a node that maps names to components.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf

from cyclestyle.cli import signatures
from cyclestyle.errors import CommandError

# Sub-nodes that a component's node may contain, one for each of the two objects that are built from the node. A
# sub-node holds only the keys that differ from the node.
VARIANTS: dict[str, tuple[str, str]] = {
    "generator": ("ab", "ba"),
    "discriminator": ("a", "b"),
    "optimizer": ("generators", "discriminators"),
}


LARGEST = 3.4e38  # largest number in float32


class ProgramKey(NamedTuple):
    """Key of a component that the program uses itself and does not pass to the component, such as `tasks.kid.every`."""

    default: float | None  # None: the key must be given
    expected: str  # for error messages
    accepts: Callable[[object], bool]


def is_weight(value: object) -> bool:
    """Return whether `value` is a finite number, 0 or more."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= LARGEST


def is_interval(value: object) -> bool:
    """Return whether `value` is a whole number, 1 or more."""
    return type(value) is int and value >= 1


WEIGHT = {"weight": ProgramKey(1.0, "a finite number, 0 or more", is_weight)}
EVERY = {"every": ProgramKey(None, "a number of steps, 1 or more", is_interval)}

# Nodes that map names to components, with the keys of each component that the program uses itself.
PROGRAM_KEYS: dict[str, dict[str, ProgramKey]] = {
    "logger": {},
    "objective.terms": WEIGHT,
    "objective.discriminator_terms": WEIGHT,
    "tasks": EVERY,
}


def variant(node: DictConfig, name: str) -> DictConfig:
    """Return the node of one variant of a component: the component's keys, overridden by those in sub-node `name`.

    For example, `variant(cfg.optimizer, "discriminators")` has the keys of `cfg.optimizer`, overridden by those below
    `optimizer.discriminators`. If the sub-node has another `_target_`, the result lacks the keys that only the
    component's own `_target_` accepts.

    Args:
        node: node of the component.
        name: name of the variant. If `node` has no variant of this name, the result has the keys of `node`.
    """
    raw = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    path = f"{node._key()}.{name}"
    return _like(node, merge_variant(raw, path)[0], key=path if name in raw else node._key())


def merge_variant(values: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[str]]:
    """Return the keys and values of one network or optimizer, and the names of keys that are left out of them.

    Config node `generator`, for example, holds keys of both generators. Its sub-node `generator.ba`, called a variant,
    holds those that differ for generator ba, and replaces them. If the variant has a `_target_` of its own, keys of the
    node that this `_target_` does not accept are left out.

    Args:
        values: content of the component's node, with its sub-nodes.
        path: dotted key of the variant, such as `optimizer.discriminators`.
    """
    component, _, name = path.rpartition(".")
    names = VARIANTS[component]
    common = {key: value for key, value in values.items() if key not in names}
    differing = (values.get(name) if name in names else None) or {}
    merged = common | differing
    if common.get("_target_") == merged.get("_target_"):
        return merged, []
    left_out = [
        key
        for key in foreign_keys(merged, path=path, former=[common.get("_target_")])
        if key not in differing
    ]  # fmt: skip
    return {key: value for key, value in merged.items() if key not in left_out}, left_out


def foreign_keys(values: Mapping[str, Any], *, path: str, former: list[Any]) -> list[str]:
    """Return the keys in `values` that `values["_target_"]` does not accept, but one of the targets in `former` does.

    Args:
        values: content of a component's node, with `_target_`.
        path: dotted key of the component, for error messages.
        former: names of other classes or functions; those that cannot be imported are ignored.
    """
    unknown = [key for key in values if key != "_target_" and not accepts(values["_target_"], key, path)]
    return [key for key in unknown if any(_may_accept(name, key, path) for name in former)]


def accepts(target: object, key: str, path: str) -> bool:
    """Return whether the class or function named `target` has a parameter `key`, or accepts any keyword.

    `path` is the dotted key of the component, for error messages.
    """
    return signatures.accepts([signatures.resolve_target(target, path), *signatures.consumers(target)], key)


def _may_accept(target: object, key: str, path: str) -> bool:
    try:
        return accepts(target, key, path)
    except CommandError:
        return False


def split_program_keys(path: str, node: DictConfig) -> tuple[dict[str, Any], DictConfig]:
    """Split a component's node into the keys that the program uses itself and those that the component receives.

    Args:
        path: dotted key of the component, such as `tasks.kid`.

    Returns:
        Values of the program's keys, with defaults for absent keys; `node` without these keys.

    Raises:
        CommandError: a value is out of range, or a key without default is absent.
    """
    raw = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    own = program_values(path, cast(dict[str, Any], OmegaConf.to_container(node, resolve=True)))
    return own, _like(node, {key: value for key, value in raw.items() if key not in own}, key=node._key())


def program_values(path: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the keys that the program uses itself, with defaults for absent keys.

    Args:
        path: dotted key of the component, such as `tasks.kid`.
        values: content of the component's node.

    Raises:
        CommandError: a value is out of range, or a key without default is absent.
    """
    own: dict[str, Any] = {}
    for name, key in PROGRAM_KEYS[path.rpartition(".")[0]].items():
        own[name] = values.get(name, key.default)
        if name not in values and key.default is None:
            raise CommandError(f"{path} has no key {name}: set {path}.{name} to {key.expected}")
        if not key.accepts(own[name]):
            raise CommandError(f"{path}.{name}={own[name]}: expected {key.expected}")
    return own


def without(node: DictConfig, *names: str) -> DictConfig:
    """Copy a node without the keys in `names`."""
    raw = cast(dict[str, Any], OmegaConf.to_container(node, resolve=False))
    return _like(node, {key: value for key, value in raw.items() if key not in names}, key=node._key())


def _like(node: DictConfig, content: dict[str, Any], *, key: Any) -> DictConfig:
    """Create a node with `content` and the parent of `node`, so that interpolations find all keys of the config."""
    return DictConfig(content, key=key, parent=node._get_parent())


def check_node(path: str, node: object) -> None:
    """Check the keys and values in the node at the dotted key `path`; raise a CommandError for a mistake.

    There are three kinds of node:
    * a component, whose `_target_` is the class or function that receives the other keys of the node; it may contain
      variants, and nodes that map names to components;
    * a node without `_target_` that is listed in `CONSUMERS`, with the classes and functions that receive its keys;
    * a node that maps names to components, such as `logger`.
    """
    if not isinstance(node, dict):
        raise CommandError(f"{path}={node} is no component: a component is a node with a _target_")
    if path in PROGRAM_KEYS:
        check_named(path, node)
        return
    for name in [name for name in node if f"{path}.{name}" in PROGRAM_KEYS]:
        check_node(f"{path}.{name}", node.pop(name))

    if "_target_" in node:
        check_component(path, {key: value for key, value in node.items() if key not in VARIANTS.get(path, ())})
        for name in VARIANTS.get(path, ()):
            check_variant(path, node, name)
    elif path in signatures.CONSUMERS:
        signatures.bind(path, node, signatures.consumers(path))
    else:
        for key, value in node.items():
            check_node(f"{path}.{key}", value)


def check_named(path: str, node: Mapping[str, Any]) -> None:
    """Check the components in a node that maps names to components; a component that is null is skipped.

    Args:
        path: dotted key of the node, such as `logger`.
        node: name -> content of the component's node.

    Raises:
        CommandError: a name has a forbidden character, an entry is no component, or a key or value of it is invalid.
    """
    for name, component in node.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(name)):
            raise CommandError(f"{path}: the name {name!r} of a component must consist of letters, digits, _ and -")
        if component is None:
            continue
        if not isinstance(component, dict) or "_target_" not in component:
            check_node(f"{path}.{name}", component)
            raise CommandError(f"{path}.{name} is no component: set {path}.{name}._target_")
        own = program_values(f"{path}.{name}", component)
        check_component(f"{path}.{name}", {key: value for key, value in component.items() if key not in own})


def check_component(path: str, values: Mapping[str, Any]) -> None:
    """Check the keys and values of one component against the signature of its `_target_`.

    Args:
        path: dotted key of the component, for error messages.
        values: content of the component's node, with `_target_`.

    Raises:
        CommandError: the `_target_` cannot be found, or does not accept a key or value.
    """
    target = signatures.resolve_target(values["_target_"], path)
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    signatures.bind(path, arguments, [target, *signatures.consumers(values["_target_"])])


def check_variant(path: str, node: Mapping[str, Any], name: str) -> None:
    """Check a sub-node such as `generator.ba`, which holds the keys of one network that differ from node `generator`.

    Args:
        path: dotted key of the component's node, such as `generator`.
        node: content of this node.
        name: name of the sub-node, such as `ba`; it need not exist.

    Raises:
        CommandError: the sub-node is not a mapping, or a key or value does not fit the signature of the `_target_`
            after the sub-node's keys have overridden those of the component.
    """
    differing = node.get(name)
    if differing is not None and not isinstance(differing, dict):
        raise CommandError(f"{path}.{name}={differing}: {path}.{name} holds the keys that differ from {path}")
    if differing:
        check_component(f"{path}.{name}", merge_variant(node, f"{path}.{name}")[0])
