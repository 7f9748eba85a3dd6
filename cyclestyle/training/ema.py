"""The moving average of the generators' weights, which gives calmer pictures than the weights of any one step."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.objectives.cyclegan import Generators

Averaged = TypeVar("Averaged", bound=nn.Module)


class GeneratorAverage(Generic[Averaged]):
    """An exponential moving average (EMA) of a module's parameters.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average forgets the random start quickly.

    Args:
        module: what is averaged; `self.module` is a copy of it that holds the average.
        decay: share of the old average kept at each step, in (0, 1).
    """

    def __init__(self, module: Averaged, decay: float) -> None:
        self.module: Averaged = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self._averages: list[Tensor] = list(self.module.parameters())
        self._sources: list[Tensor] = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after 0-based step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)


def make_ema(generators: Generators, decay: float) -> GeneratorAverage[Generators] | None:
    """The moving average that a decay asks for; 0 asks for none."""
    if not 0 <= decay < 1:
        raise CommandError(f"ema.decay={decay}: give 0 (off) or a share below 1 such as 0.999")
    return GeneratorAverage(generators, decay) if decay else None
