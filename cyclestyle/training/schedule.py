"""The learning rate as a pure function of the step."""

from cyclestyle.errors import CommandError


class LinearDecay:
    """Constant for some epochs, then a straight line towards zero, changed once an epoch.

    In 0-based epoch e the factor is 1 - max(0, e + 1 - constant_epochs) / (decay_epochs + 1), so that the last epoch
    runs at 1 / (decay_epochs + 1), and so does everything after it (the reference's schedule; Zhu et al. 2017, 5).

    Args:
        constant_epochs: epochs at the full rate.
        decay_epochs: epochs of the descent.

    Raises:
        CommandError: a negative number, or no epochs at all.
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
        """Length of the whole schedule."""
        return self.constant_epochs + self.decay_epochs

    def factor(self, epoch: int) -> float:
        """What the base learning rate is multiplied by throughout a 0-based epoch."""
        past = max(0, epoch + 1 - self.constant_epochs)
        return max(1 - past / (self.decay_epochs + 1), 1 / (self.decay_epochs + 1))
