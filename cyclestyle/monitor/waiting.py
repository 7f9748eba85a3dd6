"""Logger that writes nothing, but checks whether other processes keep the training threads waiting."""

from collections.abc import Callable

from cyclestyle.monitor.logger import Samples


class Waiting:
    """Calls `watch` after each step.

    Args:
        watch: function that checks for busy processors if a check is due, and warns the user.
    """

    def __init__(self, watch: Callable[[], object]) -> None:
        self._watch = watch

    def on_step(self, step: int) -> None:
        """Call `watch`."""
        self._watch()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Do nothing: logs may be an hour apart on a slow machine."""

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Do nothing: samples may be hours apart."""

    def close(self) -> None:
        """Do nothing: nothing is open."""
