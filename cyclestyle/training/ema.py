"""Moving average of the generators' weights; averaged generators give translations that vary less between steps."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.objectives.cyclegan import Generators

Averaged = TypeVar("Averaged", bound=nn.Module)


class GeneratorAverage(Generic[Averaged]):
    """Exponential moving average (EMA) of a module's parameters.

    Step t (0-based) gives the old average the weight min(decay, (1 + t) / (10 + t)). This weight is small at first, so
    that the random initial parameters soon lose their influence.

    Args:
        module: module whose parameters are averaged; `self.module`, a copy of the module, holds the average.
        decay: largest weight of the old average, in (0, 1).
    """

    def __init__(self, module: Averaged, decay: float) -> None:
        self.module: Averaged = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self._averages: list[Tensor] = list(self.module.parameters())
        self._sources: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the current parameters of the module, after training step `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)


def make_ema(generators: Generators, decay: float) -> GeneratorAverage[Generators] | None:
    """Create the moving average of the generators; return None if `decay` is 0.

    Raises:
        CommandError: `decay` is outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise CommandError(f"ema.decay={decay}: give 0 (off) or a share below 1 such as 0.999")
    return GeneratorAverage(generators, decay) if decay else None
