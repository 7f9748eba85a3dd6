"""The protocol of loggers, and the values that they receive."""

from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor


class Samples(NamedTuple):
    """The probe images of one domain and what the generators make of them, (N, 3, H, W) uint8 each."""

    real: Tensor
    translated: Tensor
    reconstructed: Tensor
    identity: Tensor


class Logger(Protocol):
    """Receives the numbers and sample images of a run; only rank 0 has loggers."""

    def on_step(self, step: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: Samples, b: Samples) -> None: ...
    def close(self) -> None: ...


class Phase(StrEnum):
    """What the time of a step goes into, under the names that it has in a profile; parts do not overlap."""

    DATA = "data"  # waiting for pictures, and sending them to the device
    FORWARD = "forward"  # networks and losses
    BACKWARD = "backward"  # with what processes exchange meanwhile
    OPTIMIZER = "optimizer"  # looking at gradients, the update, the moving average
    LOGGING = "logging"  # waiting for the device, numbers and probe pictures
    SAVING = "saving"  # checkpoints
