"""Wrapper for a logger: training continues even if the logger raises a disk error."""

from collections.abc import Callable

from cyclestyle.errors import warn
from cyclestyle.monitor.disk import Plan
from cyclestyle.monitor.logger import Logger, Samples


class FaultTolerantLogger:
    """Passes all calls to a logger; catches the logger's disk errors (OSError) and warns about the first one only.

    Args:
        make: function that creates the logger. If it raises an OSError, the next call of `metrics` or `pictures` calls
            it again.
        name: name of the logger in the warning.
        warn: function that receives the text of the warning.
    """

    def __init__(self, make: Callable[[], Logger], *, name: str, warn: Callable[[str], None] = warn) -> None:
        self._make, self._name, self._warn = make, name, warn
        self._logger: Logger | None = None
        self._warned = False
        self._try(lambda logger: None)

    def on_step(self, step: int) -> None:
        """Pass the number of a finished step to the logger."""
        if self._logger is not None:
            self._logger.on_step(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log `values` (name -> loss, speed or another number) for a step."""
        self._try(lambda logger: logger.metrics(step, values))

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Log the samples of domain a and of domain b at a step."""
        self._try(lambda logger: logger.pictures(step, a, b))

    def disk_use(self, plan: Plan) -> dict[str, int]:
        """Return the logger's estimate of the size of its files, in bytes by kind of file; empty if it makes none."""
        forecast = getattr(self._logger, "disk_use", None)
        return forecast(plan) if forecast is not None else {}

    def close(self) -> None:
        """Close the logger, if it could be created."""
        if self._logger is not None:
            self._try(lambda logger: logger.close())

    def _try(self, use: Callable[[Logger], None]) -> None:
        try:
            if self._logger is None:
                self._logger = self._make()
            use(self._logger)
        except OSError as error:
            if not self._warned:
                reason = (error.strerror or str(error) or type(error).__name__).lower()
                self._warn(f"{self._name} cannot be written: {reason}; training continues without it")
            self._warned = True
