"""Logger that writes nothing; it checks whether other processes keep the training threads waiting."""

from collections.abc import Callable

from cyclestyle.monitor.logger import Samples


class Waiting:
    """Calls the function `watch` after each training step.

    Args:
        watch: function that checks, at intervals, whether the processors are busy, and warns the user if they are.
    """

    def __init__(self, watch: Callable[[], object]) -> None:
        self._watch = watch

    def on_step(self, step: int) -> None:
        """Call `watch` after a finished step."""
        self._watch()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Do nothing: logs may be an hour apart on a slow machine, which is too rare for checks."""

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Do nothing: samples may be hours apart, which is too rare for checks."""

    def close(self) -> None:
        """Do nothing: no file is open."""
