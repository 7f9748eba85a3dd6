"""Immediate stop of a translation by a signal; the journal lists all finished files, and no file is half-written."""

import os
import signal
import sys
import time
from types import FrameType, TracebackType

from cyclestyle.errors import CyclestyleError
from cyclestyle.signals import INTERRUPTED, STOP_SIGNALS, STOPPED

ECHO_S = 0.5  # signals within this time count as one: under torchrun, one Ctrl-C reaches a process twice


class InterruptedSetError(CyclestyleError):
    """A signal stopped the command; repeating the command translates the remaining photos."""

    code = STOPPED


class InterruptHandler:
    """Context manager for the main thread: the first stop signal ends the `with` block immediately.

    Stop signals are SIGINT (Ctrl-C), SIGTERM and SIGUSR1. The photos finished before the signal are in the journal of
    the output folder. A second signal ends the process without a message.

    Raises:
        InterruptedSetError: a stop signal has ended the `with` block on rank 0. Other ranks raise SystemExit instead,
            with the exit code of this error.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None  # monotonic time in s
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "InterruptHandler":
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if isinstance(error, _Interrupted):
            if os.environ.get("RANK", "0") != "0":
                sys.exit(STOPPED)
            raise InterruptedSetError(
                f"stopped by {error}: what is done is kept, and the same command does the rest"
            ) from None

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self._requested_at is None:
            self._requested_at = time.monotonic()
            raise _Interrupted(signal.Signals(number).name)
        if time.monotonic() - self._requested_at > ECHO_S:
            os._exit(INTERRUPTED if number == signal.SIGINT else STOPPED)


class _Interrupted(BaseException):
    """Exception that ends the `with` block of `InterruptHandler`; its message is the name of the stop signal.

    The class derives from BaseException, since libraries may catch every Exception.
    """
