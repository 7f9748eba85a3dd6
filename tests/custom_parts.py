"""Custom components, as a user might write them, for the configs of tests."""

import math
from pathlib import Path

from torch import Tensor

from cyclestyle.networks import ResNetGenerator
from cyclestyle.objectives.adversarial import LeastSquares


class OwnGenerator(ResNetGenerator):
    """A generator that is not in the registry of networks, so that model files have no name for it."""


class NotANumber(LeastSquares):
    """Least-squares loss that is NaN in one step.

    Args:
        step: number of the step with NaN losses, counted from 1 in each process.
    """

    def __init__(self, step: int) -> None:
        self.step, self.calls = step, 0

    def generator(self, scores: Tensor) -> Tensor:
        self.calls += 1
        return super().generator(scores) * (math.nan if (self.calls + 1) // 2 == self.step else 1.0)


class Vandal:
    """A logger that truncates an image file at a step of training."""

    def __init__(self, folder: Path, *, picture: str, step: int, **about: object) -> None:
        self.picture, self.step = Path(picture), step

    def on_step(self, step: int) -> None:
        if step == self.step:
            self.picture.write_bytes(self.picture.read_bytes()[:-20])

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: object, b: object) -> None: ...
    def close(self) -> None: ...


class StopAt:
    """Logger that requests a stop of its run after a step, by the file `stop` in the run folder."""

    def __init__(self, folder: Path, *, step: int) -> None:
        self._file, self._step = folder / "stop", step

    def on_step(self, step: int) -> None:
        if step == self._step:
            self._file.touch()

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: object, b: object) -> None: ...
    def close(self) -> None: ...
