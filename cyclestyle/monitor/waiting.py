"""A logger that writes nothing: it looks whether other processes keep the training's threads waiting."""

from collections.abc import Callable

from cyclestyle.monitor.logger import Samples


class Waiting:
    """Looks after each step, as far as that is due.

    Args:
        watch: looks, and tells the user.
    """

    def __init__(self, watch: Callable[[], object]) -> None:
        self._watch = watch

    def on_step(self, step: int) -> None:
        """One step more."""
        self._watch()

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Nothing: logs may be an hour apart where it matters."""

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Nothing, likewise."""

    def close(self) -> None:
        """Nothing is open."""
