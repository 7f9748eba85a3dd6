"""A logger whose disk may fail: what it tells is worth less than the training that it tells of."""

from collections.abc import Callable

from cyclestyle.errors import warn
from cyclestyle.monitor.logger import Logger, Samples


class FaultTolerantLogger:
    """Hands everything on to a logger; where the disk fails it, training goes on, with one warning.

    Args:
        make: the logger; asked again as long as it cannot be made.
        name: of the logger, for the warning.
        tell: is warned.
    """

    def __init__(self, make: Callable[[], Logger], *, name: str, tell: Callable[[str], None] = warn) -> None:
        self._make, self._name, self._tell = make, name, tell
        self._logger: Logger | None = None
        self._warned = False
        self._try(lambda logger: None)

    def on_step(self, step: int) -> None:
        """One step more."""
        if self._logger is not None:
            self._logger.on_step(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Numbers to write down."""
        self._try(lambda logger: logger.metrics(step, values))

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Probe pictures to write down."""
        self._try(lambda logger: logger.pictures(step, a, b))

    def close(self) -> None:
        """The end."""
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
                self._tell(f"{self._name} cannot be written: {reason}; training goes on without it")
            self._warned = True
