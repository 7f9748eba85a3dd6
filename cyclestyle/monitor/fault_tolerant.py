"""Wrapper that keeps disk errors of a logger from ending the training."""

from collections.abc import Callable

from cyclestyle.errors import warn
from cyclestyle.monitor.logger import Logger, Samples


class FaultTolerantLogger:
    """Passes all calls to a logger; on disk errors it warns once and training continues.

    Args:
        make: function that creates the logger; if it raises OSError, the next log tries again.
        name: name of the logger in the warning.
        warn: function that receives the warning.
    """

    def __init__(self, make: Callable[[], Logger], *, name: str, warn: Callable[[str], None] = warn) -> None:
        self._make, self._name, self._warn = make, name, warn
        self._logger: Logger | None = None
        self._warned = False
        self._try(lambda logger: None)

    def on_step(self, step: int) -> None:
        """Report a finished step."""
        if self._logger is not None:
            self._logger.on_step(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        self._try(lambda logger: logger.metrics(step, values))

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Log the samples of a step."""
        self._try(lambda logger: logger.pictures(step, a, b))

    def close(self) -> None:
        """Close the logger."""
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
