"""Ending a translation that somebody asks to stop: at once, with what is written noted down, and nothing half-done."""

import os
import signal
import sys
import time
from types import FrameType, TracebackType

from cyclestyle.errors import CyclestyleError
from cyclestyle.signals import INTERRUPTED, STOP_SIGNALS, STOPPED

ECHO_S = 0.5  # a terminal's Ctrl-C reaches a process under torchrun twice


class InterruptedSetError(CyclestyleError):
    """The command was asked to stop; started again, it does the rest."""

    code = STOPPED


class InterruptHandler:
    """A context, in the main thread, that signals end: computing is broken off, for the journal knows what is done.

    A second signal ends the process without a word.

    Raises:
        StoppedError: at the end of the block, in the first process; in others only their exit code says it.
    """

    def __init__(self) -> None:
        self._asked: float | None = None  # when
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "InterruptHandler":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._break_off)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if isinstance(error, _Interrupted):
            if os.environ.get("RANK", "0") != "0":
                sys.exit(STOPPED)
            raise InterruptedSetError(
                f"stopped by {error}: what is done is kept, and the same command does the rest"
            ) from None

    def _break_off(self, number: int, _: FrameType | None) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
            raise _Interrupted(signal.Signals(number).name)
        if time.monotonic() - self._asked > ECHO_S:
            os._exit(INTERRUPTED if number == signal.SIGINT else STOPPED)


class _Interrupted(BaseException):
    """Not an Exception, which libraries catch."""
