"""The moving average of the generators' weights, which gives calmer pictures than the weights of any one step."""

import copy

import torch
from torch import nn


class GeneratorAverage:
    """An exponential moving average (EMA) of a module's parameters.

    The decay of step t is min(decay, (1 + t) / (10 + t)), so that the average forgets the random start quickly.

    Args:
        module: what is averaged; `self.module` is a copy of it that holds the average.
        decay: share of the old average kept at each step, in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self._averages = list(self.module.parameters())
        self._sources = list(module.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights as they are after 0-based step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._sources, 1 - decay)
