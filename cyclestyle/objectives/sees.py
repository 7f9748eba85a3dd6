"""Pretrained networks that a training run sees: those whose features one of its losses uses.

A run learns to satisfy the networks that it sees, also where people see no improvement. Such a network therefore rates
the run too well, and is not accepted for its scores.
"""

from collections.abc import Iterator

from torch import nn

from cyclestyle.objectives.step import Objective
from cyclestyle.objectives.terms import Weighted, declared


def networks_seen(objective: Objective) -> dict[str, str]:
    """Return the names of the pretrained networks that the losses of an objective see, sorted.

    A component sees the networks that its attribute `sees` names, and those that the modules in it name. The components
    are the objective, its adversarial loss, its terms and its discriminators.

    Returns:
        Name of each network -> config key of the first component that sees it, such as `objective.terms.content`.

    Raises:
        CommandError: an attribute `sees` is a text, not a tuple of names.
    """
    seen: dict[str, str] = {}
    for key, component in _components(objective):
        for part in _parts(component):
            for name in declared(part, "sees"):
                seen.setdefault(name, key)
    for name in declared(objective, "sees"):
        seen.setdefault(name, "objective")
    return dict(sorted(seen.items()))


def _components(objective: Objective) -> Iterator[tuple[str, object]]:
    """Yield the config key and the object of each component; an objective of the user's own may lack some."""
    for side in ("terms", "discriminator_terms"):
        for weighted in getattr(objective, side, ()):
            if isinstance(weighted, Weighted):
                yield f"objective.{side}.{weighted.name}", weighted.term
    yield "adversarial", getattr(objective, "adversarial", None)
    discriminators = objective.modules.get("discriminators")
    for side, discriminator in discriminators.named_children() if discriminators is not None else ():
        yield f"discriminator {side}", discriminator


def _parts(component: object) -> Iterator[object]:
    """Yield a component and the modules in it: submodules, or the modules among the attributes of a plain object."""
    if isinstance(component, nn.Module):
        yield from component.modules()
        return
    yield component
    for value in vars(component).values() if hasattr(component, "__dict__") else ():
        if isinstance(value, nn.Module):
            yield from value.modules()
