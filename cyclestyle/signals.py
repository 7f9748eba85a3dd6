"""Stopping a run politely: the step is finished and saved, then the program leaves."""

import os
import signal
import time
from types import FrameType

STOPPED = 75  # exit code of a run that was asked to stop and can go on
INTERRUPTED = 130  # exit code after a second Ctrl-C


class StopRequest:
    """Remembers that somebody asked the program to stop; use it as a context.

    The handler only sets a flag, which the trainer asks for before every step. A second Ctrl-C leaves at once; under
    torchrun one Ctrl-C arrives twice, from the terminal and from torchrun, so that there the echo is not counted.
    """

    def __init__(self, *, echo_s: float = 0.0) -> None:
        self.reason: str | None = None
        self._echo_s, self._since = echo_s, 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.reason is not None

    def _remember(self, number: int, _: FrameType | None) -> None:
        again = self.reason is not None and time.monotonic() - self._since > self._echo_s
        if again and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        if self.reason is None:
            self.reason, self._since = signal.Signals(number).name, time.monotonic()
