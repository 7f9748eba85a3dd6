"""Moving average of the generators' weights; averaged generators give translations that vary less between steps."""

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError


class Average(Protocol):
    """Average of the weights of a module over the steps of training."""

    module: nn.Module  # copy of the averaged module, with the averages as weights

    def update(self, step: int) -> None:
        """Include the module's current weights in the average; call this after each training step `step` (0-based)."""


class GeneratorAverage:
    """Exponential moving average (EMA) of a module's parameters.

    After step t (0-based), the new average is w * old average + (1 - w) * parameters, where
    w = min(decay, (1 + t) / (10 + t)). The weight w is small at first, so that the random initial parameters soon lose
    their influence. Buffers are not averaged.

    Args:
        module: module whose parameters are averaged; `self.module`, a copy of the module, holds the average.
        decay: largest value of w, in (0, 1).
        start: number of initial steps during which the average is a copy of the current parameters.
        warm_up: False replaces the formula for w by w = `decay`.
    """

    def __init__(self, module: nn.Module, decay: float, *, start: int = 0, warm_up: bool = True) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay, self.start, self.warm_up = decay, start, warm_up
        self._averages: list[Tensor] = list(self.module.parameters())
        self._sources: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the current parameters of the module, after training step `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warm_up else self.decay
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay if step >= self.start else 1.0)


def make_ema(
    generators: nn.Module, decay: float = 0.0, *, start: int = 0, warm_up: bool = True
) -> GeneratorAverage | None:
    """Create the moving average of the generators, see `GeneratorAverage`; return None if `decay` is 0.

    Raises:
        CommandError: `decay` is outside [0, 1), or `start` is negative.
    """
    if not 0 <= decay < 1:
        raise CommandError(f"ema.decay={decay}: give 0 (off) or a share below 1 such as 0.999")
    if start < 0:
        raise CommandError(f"ema.start={start}: give a number of steps, 0 or more")
    return GeneratorAverage(generators, decay, start=start, warm_up=warm_up) if decay else None
