"""Logger that writes nothing; it checks whether the training threads wait for cores that other processes use."""

from collections.abc import Callable

from cyclestyle.monitor.logger import Samples


class Waiting:
    """Calls the function `watch` after each training step.

    Calls of `metrics` and `pictures` are too rare for this check: on a slow machine they may be an hour or more apart.

    Args:
        watch: function that checks at intervals whether other processes use the cores, and warns the user if they do.
    """

    def __init__(self, watch: Callable[[], object]) -> None:
        self._watch = watch

    def on_step(self, step: int) -> None:
        """Call `watch` after a finished step."""
        self._watch()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Do nothing: `on_step` calls `watch` often enough."""

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Do nothing: `on_step` calls `watch` often enough."""

    def close(self) -> None:
        """Do nothing: this logger has no file to close."""
