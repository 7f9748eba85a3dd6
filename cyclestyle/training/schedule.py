"""Learning-rate schedules: factors for the base learning rates, which depend only on the number of epochs done."""

import math
from typing import Protocol

from cyclestyle.errors import CommandError


class Schedule(Protocol):
    """Learning-rate schedule of a run."""

    epochs: int  # length of the whole schedule; training ends there unless the config sets another length

    def factor(self, epoch: float, /) -> float:
        """Return the factor for the base learning rates after `epoch` epochs; `epoch` is 0 at the start of training."""


class LinearDecay:
    """Learning-rate factor: 1 for some epochs, then a linear decay towards zero; the factor changes once per epoch.

    In epoch e (0-based), the factor is 1 - max(0, e + 1 - constant_epochs) / (decay_epochs + 1). In the last epoch it
    is 1 / (decay_epochs + 1), and it keeps this value if training continues. This is the schedule of the original code
    (Zhu et al. 2017, section 5).

    Args:
        constant_epochs: number of epochs at the full learning rate.
        decay_epochs: number of epochs with a decaying learning rate.

    Raises:
        CommandError: a number of epochs is negative, or both are 0.
    """

    def __init__(self, constant_epochs: int = 100, decay_epochs: int = 100) -> None:
        _check_epochs(constant_epochs=constant_epochs, decay_epochs=decay_epochs)
        self.constant_epochs, self.decay_epochs = constant_epochs, decay_epochs
        self.epochs = constant_epochs + decay_epochs

    def factor(self, epoch: float) -> float:
        """Return the factor for the base learning rate after `epoch` epochs; only completed epochs count."""
        past = max(0, int(epoch) + 1 - self.constant_epochs)
        return max(1 - past / (self.decay_epochs + 1), 1 / (self.decay_epochs + 1))


class Cosine:
    """Learning-rate factor: 1 for some epochs, then half a cosine wave down to `final`; it changes with every step.

    Loshchilov, Hutter: SGDR: Stochastic Gradient Descent with Warm Restarts, 2017, eq. 5.

    Args:
        constant_epochs: number of epochs at the full learning rate.
        decay_epochs: number of epochs with a decaying learning rate.
        final: factor at the end of the decay and later, in [0, 1].

    Raises:
        CommandError: a number of epochs is negative, both are 0, or `final` is outside [0, 1].
    """

    def __init__(self, constant_epochs: int = 0, decay_epochs: int = 200, *, final: float = 0.0) -> None:
        _check_epochs(constant_epochs=constant_epochs, decay_epochs=decay_epochs)
        if not 0 <= final <= 1:
            raise CommandError(f"schedule.final={final:g}: give a factor from 0 to 1")
        self.constant_epochs, self.decay_epochs, self.final = constant_epochs, decay_epochs, final
        self.epochs = constant_epochs + decay_epochs

    def factor(self, epoch: float) -> float:
        """Return the factor for the base learning rate after `epoch` epochs."""
        past = min(max(epoch - self.constant_epochs, 0), self.decay_epochs)
        share = past / self.decay_epochs if self.decay_epochs else 0.0
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2


class Constant:
    """Learning-rate factor 1; training ends after `epochs` epochs unless the config sets another length.

    Raises:
        CommandError: `epochs` is below 1.
    """

    def __init__(self, epochs: int = 200) -> None:
        _check_epochs(epochs=epochs)
        self.epochs = epochs

    def factor(self, epoch: float) -> float:
        """Return 1."""
        return 1.0


class Step:
    """Learning-rate factor that starts at 1 and is multiplied by `gamma` after every `every_epochs` epochs.

    Args:
        epochs: length of the schedule; training ends there unless the config sets another length.
        every_epochs: number of epochs with the same factor.
        gamma: multiplier, in (0, 1].

    Raises:
        CommandError: a number of epochs is below 1, or `gamma` is outside (0, 1].
    """

    def __init__(self, epochs: int = 200, *, every_epochs: int = 50, gamma: float = 0.5) -> None:
        _check_epochs(epochs=epochs)
        if every_epochs < 1:
            raise CommandError(f"schedule.every_epochs={every_epochs}: give 1 or more")
        if not 0 < gamma <= 1:
            raise CommandError(f"schedule.gamma={gamma:g}: give a multiplier above 0, at most 1")
        self.epochs, self.every_epochs, self.gamma = epochs, every_epochs, gamma

    def factor(self, epoch: float) -> float:
        """Return the factor for the base learning rate after `epoch` epochs; only completed epochs count."""
        return self.gamma ** (int(epoch) // self.every_epochs)


def _check_epochs(**epochs: int) -> None:
    """Raise a CommandError if a number of epochs is negative, or if all are 0."""
    if min(epochs.values()) < 0 or sum(epochs.values()) < 1:
        numbers = ", ".join(f"schedule.{name}={number}" for name, number in epochs.items())
        rule = "neither may be negative, and they must not both be 0" if len(epochs) > 1 else "give 1 or more"
        raise CommandError(f"{numbers}: {rule}")
