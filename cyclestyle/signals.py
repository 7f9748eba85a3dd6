"""Stop signals: on any of these signals, a run finishes its current step, saves a checkpoint and exits."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STOPPED = 75  # exit code of a stopped run that can be resumed
INTERRUPTED = 130  # exit code after a second Ctrl-C

# SIGINT: Ctrl-C. SIGTERM: schedulers and `kill`. SIGUSR1: SLURM's --signal=USR1, absent on Windows.
STOP_SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def terminate_with_parent() -> None:
    """Make Linux send SIGTERM to this process when the parent process ends; on other systems, do nothing."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


class StopRequest:
    """Context manager for the main thread: record a request to stop the run, made by a signal or by a file.

    The signal handler only sets a flag, which the trainer checks before each step. A second Ctrl-C ends the process
    immediately.

    Args:
        echo_s: time after the first Ctrl-C, in seconds, during which another Ctrl-C is ignored; under torchrun, each
            Ctrl-C arrives twice: from the terminal and from torchrun.

    Attributes:
        reason: name of the signal or file that requested the stop; None if there was no request.
    """

    def __init__(self, *, echo_s: float = 0.0) -> None:
        self.reason: str | None = None
        self._echo_s = echo_s
        self._interrupted: float | None = None  # time of the first Ctrl-C
        self._file: Path | None = None
        self._abort_callback: Callable[[], object] | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"the file {self._file}"
        return self.reason is not None

    def watch(self, file: Path) -> None:
        """Treat the existence of `file` as a request to stop, in addition to signals."""
        self._file = file

    def on_second_interrupt(self, callback: Callable[[], object]) -> None:
        """Set `callback` to be called on a second Ctrl-C, just before the process ends; `callback` must be quick."""
        self._abort_callback = callback

    def clear(self) -> None:
        """Delete the watched file; call this when the run has ended, so that the file does not stop the next start."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - (self._interrupted or 0.0) > self._echo_s:
            try:
                if self._abort_callback is not None:
                    self._abort_callback()
            finally:
                os._exit(INTERRUPTED)
        if self.reason is None:
            self.reason = signal.Signals(number).name
