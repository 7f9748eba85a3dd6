"""Checks of config values, and of the objects that components' constructors return."""

import inspect
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

from cyclestyle.cli.nodes import LARGEST, VARIANTS
from cyclestyle.errors import CommandError


class Range(NamedTuple):
    """Permitted numbers of a key: from `smallest` to `largest`."""

    smallest: float
    largest: float
    includes_largest: bool = True

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.smallest <= value <= self.largest and (
            self.includes_largest or value < self.largest
        )  # fmt: skip

    def __str__(self) -> str:
        if self == WEIGHT:
            return "a finite number, 0 or more"
        return f"a number from {self.smallest} {'to' if self.includes_largest else 'to less than'} {self.largest}"


WEIGHT = Range(0, LARGEST)
FINITE = Range(-LARGEST, LARGEST)

# Ranges of keys of the program's and PyTorch's components; components of the user's own check their values themselves.
RANGES = {
    "seed": Range(0, 2**63 - 1),
    "optimizer.lr": WEIGHT,
    "optimizer.betas": Range(0, 1, includes_largest=False),
    "objective.cycle_a": WEIGHT,
    "objective.cycle_b": WEIGHT,
    "objective.identity": WEIGHT,
}
OURS = ("cyclestyle.", "torch.")

# Methods that the program calls, for components that may be of the user's own.
METHODS = {
    "adversarial": ("real", "fake", "generator"),
    "optimizer": ("step", "zero_grad", "state_dict", "load_state_dict"),
    "schedule": ("factor",),
    "objective.terms": ("__call__",),
    "objective.discriminator_terms": ("__call__",),
    "tasks": ("__call__",),
    "logger": ("on_step", "metrics", "pictures", "close"),
    "data": ("inspect", "draws", "probes"),
    "generator": ("parameters", "state_dict"),
    "discriminator": ("parameters", "state_dict"),
}


def check_numbers(node: Mapping[str, Any], path: str = "") -> None:
    """Check that all numbers in a config are finite, and those in `RANGES` within their ranges.

    Nodes whose `_target_` belongs neither to this package nor to PyTorch are skipped.

    Args:
        node: the config as nested dicts, or a node in it.
        path: dotted key of the node; empty for the whole config.

    Raises:
        CommandError: a number is out of range.
    """
    if not str(node.get("_target_", OURS[0])).startswith(OURS):
        return
    for name, value in node.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, dict):
            check_numbers(value, key)
            continue
        permitted = RANGES.get(_without_variant(key), FINITE)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool) and number not in permitted:
                expected = permitted if permitted != FINITE else "a finite number"
                raise CommandError(f"{key}={_short(value)}: expected {expected}")


def _without_variant(key: str) -> str:
    parts = key.split(".")
    return ".".join([parts[0], *parts[2:]]) if len(parts) > 2 and parts[1] in VARIANTS.get(parts[0], ()) else key


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def rejection(path: str, target: str, arguments: Mapping[str, Any], error: Exception) -> CommandError | None:
    """Create the CommandError for a constructor that rejects its arguments; None if `error` has another cause.

    An exception counts as a rejection if its traceback contains only constructors and the target itself. Other
    exceptions are bugs, for which the caller shows a traceback.

    Args:
        path: dotted key of the component.
        target: name of the component's class or function.
        arguments: values of the component's keys.
        error: exception raised by the call of the target.
    """
    trace: TracebackType | None = error.__traceback__
    frames = []
    while trace is not None:
        if not str(trace.tb_frame.f_globals.get("__name__")).startswith("hydra."):
            frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    inner = frames[1:]  # after the caller of the target
    if any(
        code.co_name not in ("__init__", "__new__", "__post_init__", target.rpartition(".")[2]) for code, _ in inner
    ):
        return None
    message = " ".join(str(error).split())
    keys = [key for key, value in arguments.items() if _occurs(value, message)]
    given = ", ".join(f"{path}.{key}={_short(arguments[key])}" for key in keys) or path
    place = ""
    if inner and not target.startswith(OURS):
        place = f" ({os.path.basename(inner[-1][0].co_filename)}:{inner[-1][1]})"  # noqa: PTH119
    return CommandError(f"{given}: {target} rejects its arguments: {message}{place}")


def _occurs(value: object, message: str) -> bool:
    """Return whether `message` contains the number or text `value`; for a list, whether it contains any item."""
    if isinstance(value, list):
        return any(_occurs(item, message) for item in value)
    return value is not None and not isinstance(value, bool | dict) and str(value) in message


def check_methods(path: str, target: str, component: object) -> None:
    """Check that an object which was built for the node at `path` has the methods that the program calls.

    Raises:
        CommandError: a method is missing, or the method `step` of an optimizer has required arguments.
    """
    above = path.rpartition(".")[0]
    kind = above if above in METHODS else path.partition(".")[0]
    methods = METHODS.get(kind, ())
    if missing := [name for name in methods if not callable(getattr(component, name, None))]:
        noun = "method" if len(methods) == 1 else "methods"
        raise CommandError(
            f"{path}._target_={target}: {kind} needs the {noun} {', '.join(methods)}; missing: {', '.join(missing)}"
        )
    if kind == "optimizer":
        try:
            inspect.signature(component.step).bind()  # type: ignore[attr-defined]
        except TypeError as error:
            raise CommandError(
                f"{path}._target_={target} cannot be used: its method step needs arguments ({error})"
            ) from None
