"""The learning-rate schedule: a factor for the base learning rate that depends on the epoch alone."""

from cyclestyle.errors import CommandError


class LinearDecay:
    """Learning-rate factor: 1 for some epochs, then a linear decay towards zero; the factor changes once per epoch.

    In 0-based epoch e the factor is 1 - max(0, e + 1 - constant_epochs) / (decay_epochs + 1), so that the last epoch
    and all later ones have factor 1 / (decay_epochs + 1) (schedule of the original code; Zhu et al. 2017, section 5).

    Args:
        constant_epochs: number of epochs at the full learning rate.
        decay_epochs: number of epochs with a decaying learning rate.

    Raises:
        CommandError: a number of epochs is negative, or both are 0.
    """

    def __init__(self, constant_epochs: int = 100, decay_epochs: int = 100) -> None:
        if min(constant_epochs, decay_epochs) < 0 or constant_epochs + decay_epochs < 1:
            raise CommandError(
                f"schedule.constant_epochs={constant_epochs}, schedule.decay_epochs={decay_epochs}: "
                f"neither may be negative, and they must not both be 0"
            )
        self.constant_epochs, self.decay_epochs = constant_epochs, decay_epochs

    @property
    def epochs(self) -> int:
        """Length of the whole schedule in epochs."""
        return self.constant_epochs + self.decay_epochs

    def factor(self, epoch: int) -> float:
        """Return the factor for the base learning rate in epoch `epoch` (0-based)."""
        past = max(0, epoch + 1 - self.constant_epochs)
        return max(1 - past / (self.decay_epochs + 1), 1 / (self.decay_epochs + 1))
