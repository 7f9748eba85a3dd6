"""Protocol that loggers implement, the sample images that they receive, and the phases of a training step."""

from enum import StrEnum
from typing import NamedTuple, Protocol

from torch import Tensor


class Samples(NamedTuple):
    """Probe images (fixed images that show progress) of one domain, and the generators' outputs for these images.

    Each field is uint8 (N, C, H, W), where C is 3 for colour and 1 for grey. `identity` may be None.
    """

    real: Tensor
    translated: Tensor
    reconstructed: Tensor
    identity: Tensor | None  # None if the two domains have different numbers of channels


class Logger(Protocol):
    """Receives the losses, speeds and sample images of a training run; only rank 0 has loggers.

    A `metrics` call passes either the losses and speeds of training, or the numbers of one periodic task of the user
    (an evaluation, for example). The names of these values are not fixed. The constructor may accept any of the keyword
    arguments `folder`, `domains`, `start`, `log_from`, `total`, `networks` and `config`; it receives only those that it
    accepts.
    """

    def on_step(self, step: int) -> None: ...
    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def pictures(self, step: int, a: Samples, b: Samples) -> None: ...
    def close(self) -> None: ...


class Phase(StrEnum):
    """Phase of a training step; phases do not overlap. Each member's value names the phase in a profile."""

    DATA = "data"  # waiting for images, and their transfer to the device
    FORWARD = "forward"  # networks and losses
    BACKWARD = "backward"  # includes communication between ranks
    OPTIMIZER = "optimizer"  # check of the gradients, update, moving average
    LOGGING = "logging"  # waiting for the device, metrics and samples
    SAVING = "saving"  # checkpoints
