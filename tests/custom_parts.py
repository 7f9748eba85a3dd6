"""Parts that a user might write."""

import math
from pathlib import Path

from torch import Tensor

from cyclestyle.networks import ResNetGenerator
from cyclestyle.objectives.adversarial import LeastSquares


class OwnGenerator(ResNetGenerator):
    """Trains like any other, and has no name in model files, being outside the table of networks."""


class NotANumber(LeastSquares):
    """Least squares, but for one step whose losses are no numbers.

    Args:
        step: of the process that computes it, counted from 1.
    """

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def generator(self, scores: Tensor) -> Tensor:
        self.calls += 1
        return super().generator(scores) * (math.nan if (self.calls + 1) // 2 == self.step else 1.0)


class Vandal:
    """A logger that damages a picture while training goes on."""

    def __init__(self, folder: Path, *, picture: str, step: int, **about: object) -> None:
        self.picture, self.step = Path(picture), step

    def on_step(self, step: int) -> None:
        if step == self.step:
            self.picture.write_bytes(self.picture.read_bytes()[:-20])

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: object, b: object) -> None: ...
    def close(self) -> None: ...
