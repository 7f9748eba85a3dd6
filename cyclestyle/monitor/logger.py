"""Protocol of loggers, and the values that they receive."""

from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor


class Samples(NamedTuple):
    """Probe images of one domain and the generators' outputs for them; (N, 3, H, W) uint8 each."""

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
    """Parts of a training step; values are their names in a profile. Phases do not overlap."""

    DATA = "data"  # waiting for images, and their transfer to the device
    FORWARD = "forward"  # networks and losses
    BACKWARD = "backward"  # includes communication between ranks
    OPTIMIZER = "optimizer"  # check of the gradients, update, moving average
    LOGGING = "logging"  # waiting for the device, metrics and samples
    SAVING = "saving"  # checkpoints
