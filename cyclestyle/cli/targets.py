"""Removal of config keys that a component's `_target_` does not accept, since only a former `_target_` does."""

import contextlib
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from cyclestyle.cli.groups import Chosen
from cyclestyle.cli.nodes import PROGRAM_KEYS, VARIANTS, foreign_keys, merge_variant
from cyclestyle.errors import CommandError


def targets_of(cfg: DictConfig) -> dict[str, Any]:
    """Map the root keys of components to their `_target_`."""
    nodes = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    return {path: node["_target_"] for path, node in nodes.items() if isinstance(node, dict) and "_target_" in node}


def components_to_clear(cfg: DictConfig, chosen: Sequence[Chosen], typed: AbstractSet[str]) -> list[str]:
    """Return the root keys of components that may hold keys of a former `_target_`: all if an experiment is chosen."""
    paths = list(targets_of(cfg))
    if any(option.group == "experiment" for option in chosen):
        return paths
    return [path for path in paths if any(key.startswith(f"{path}.") and key.endswith("._target_") for key in typed)]


def clear_component(
    cfg: DictConfig,
    path: str,
    typed: AbstractSet[str],
    written: Sequence[tuple[str, AbstractSet[str]]],
    *,
    former: Sequence[Any],
    report: Callable[[str], object],
) -> None:
    """Remove the keys of a component that its `_target_` does not accept, but another `_target_` of its node does.

    Keys typed on the command line stay, and are an error later. The targets are imported only if the component has keys
    that no YAML file gives its `_target_`, since an import of PyTorch takes seconds.

    Args:
        written: targets of the node in YAML files, each with the keys in the same file.
        former: further targets that the node had.
    """
    node = cast(dict[str, Any], OmegaConf.to_container(cfg[path], resolve=False))
    target, names = node["_target_"], VARIANTS.get(path, ())
    known = {key for name, keys in written if name == target for key in keys} | set(names)
    known |= {key for key in node if f"{path}.{key}" in PROGRAM_KEYS}  # nodes that the program itself reads
    doubtful = {key: value for key, value in node.items() if key not in known and f"{path}.{key}" not in typed}
    others = [name for name in (*former, *(name for name, _ in written)) if name != target]
    with contextlib.suppress(CommandError):  # a target that cannot be imported is reported by `check`
        left_out = foreign_keys({**doubtful, "_target_": target}, path=path, former=others)
        for key in left_out:
            with open_dict(cfg[path]):
                del cfg[path][key]
        report_left_out(path, target, left_out, report)
        for name in names:
            variant_node = node.get(name)
            if isinstance(variant_node, dict) and "_target_" in variant_node:
                lost = merge_variant(node, f"{path}.{name}")[1]
                report_left_out(f"{path}.{name}", variant_node["_target_"], lost, report)


def report_left_out(path: str, target: str, keys: Sequence[str], report: Callable[[str], object]) -> None:
    """Report keys that were left out of the component at `path`; do nothing if there are none."""
    if keys:
        noun = "is not a key" if len(keys) == 1 else "are not keys"
        report(f"{path}: {', '.join(keys)} {noun} of {target}, left out")
