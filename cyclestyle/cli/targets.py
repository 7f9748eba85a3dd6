"""Removal of leftover config keys, which remain in a component after its `_target_` was replaced.

A component is a config node with a `_target_`, the class or function that receives the other keys of the node. A key is
left over if the former `_target_` accepts it, but the present one does not.
"""

import contextlib
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from cyclestyle.cli.groups import Chosen
from cyclestyle.cli.nodes import PROGRAM_KEYS, VARIANTS, foreign_keys, merge_variant
from cyclestyle.errors import CommandError


def targets_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the `_target_` of each component and logger, by dotted keys such as `optimizer` or `logger.console`."""
    nodes = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))
    loggers = {f"logger.{name}": node for name, node in (nodes.get("logger") or {}).items()}
    components = {**nodes, **loggers}
    return {
        path: node["_target_"] for path, node in components.items() if isinstance(node, dict) and "_target_" in node
    }


def components_to_clear(cfg: DictConfig, chosen: Sequence[Chosen], typed: AbstractSet[str]) -> list[str]:
    """Return the dotted keys of the components and loggers whose `_target_` this command may have replaced.

    These are nodes with a `_target_` typed on the command line, as in `optimizer._target_`,
    `optimizer.discriminators._target_` or `logger.console._target_`. If an experiment is chosen, they also include all
    components except loggers, as an experiment may replace any `_target_`.

    Args:
        chosen: options chosen from the config groups; an option of the group `experiment` is an experiment.
        typed: dotted keys typed on the command line.
    """
    has_experiment = any(option.group == "experiment" for option in chosen)

    def may_be_replaced(path: str) -> bool:
        if has_experiment and "." not in path:  # an experiment that replaces a logger writes all of its keys
            return True
        return any(key.startswith(f"{path}.") and key.endswith("._target_") for key in typed)

    return [path for path in targets_of(cfg) if may_be_replaced(path)]


def clear_component(
    cfg: DictConfig,
    path: str,
    typed: AbstractSet[str],
    written: Sequence[tuple[str, AbstractSet[str]]],
    *,
    former: Sequence[Any],
    report: Callable[[str], object],
) -> None:
    """Remove leftover keys of the component at `path`: keys that only another `_target_` of this component accepts.

    A key is removed if the present `_target_` does not accept it, but one of the targets in `former` or `written` does.
    It is kept without this check if a YAML file sets it together with the present `_target_`. If no key needs the
    check, the present `_target_` is not imported: the import may load PyTorch, which takes seconds.

    Args:
        typed: dotted keys typed on the command line. They are always kept; the later check of the config reports those
            that are not accepted.
        written: one pair for each YAML file that sets a `_target_` of this component: the target, and all keys of the
            component that the file sets.
        former: targets that the component had before its `_target_` was replaced.
        report: function that receives a line about the removed keys.
    """
    node = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.select(cfg, path), resolve=False))
    target, names = node["_target_"], VARIANTS.get(path, ())
    known = {key for name, keys in written if name == target for key in keys} | set(names)
    known |= {key for key in node if f"{path}.{key}" in PROGRAM_KEYS}  # nodes that the program itself reads
    doubtful = {key: value for key, value in node.items() if key not in known and f"{path}.{key}" not in typed}
    others = [name for name in (*former, *(name for name, _ in written)) if name != target]
    with contextlib.suppress(CommandError):  # a target that cannot be imported is reported by `check`
        left_out = foreign_keys({**doubtful, "_target_": target}, path=path, former=others)
        for key in left_out:
            component = OmegaConf.select(cfg, path)
            with open_dict(component):
                del component[key]
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
