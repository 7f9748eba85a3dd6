"""Stop signals (SIGINT, SIGTERM, SIGUSR1): a run that receives one finishes its step, saves a checkpoint and exits."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

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
    """Context manager: record a request to stop the run, made by a signal or by a file.

    The signal handler only sets a flag, which the trainer checks before each step. Only the main thread can handle
    signals: in another thread, the file is the only way to stop the run.

    Args:
        echo_s: time after the first Ctrl-C, in seconds, during which another Ctrl-C is ignored; under torchrun, each
            Ctrl-C arrives twice: from the terminal and from torchrun.
        ends_process: whether a second Ctrl-C ends the process immediately; if false, it raises a KeyboardInterrupt.

    Attributes:
        reason: name of the signal or file that requested the stop; None if there was no request.
        received: the first signal that requested a stop; None if there was none.
    """

    def __init__(self, *, echo_s: float = 0.0, ends_process: bool = True) -> None:
        self.reason: str | None = None
        self.received: signal.Signals | None = None
        self._echo_s, self._ends_process = echo_s, ends_process
        self._interrupted: float | None = None  # time of the first Ctrl-C
        self._file: Path | None = None
        self._abort_callback: Callable[[], object] | None = None
        self._exit_stack = contextlib.ExitStack()

    def __enter__(self) -> "StopRequest":
        self._exit_stack.enter_context(handled(self._on_signal))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit_stack.close()

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

    def record(self, number: int) -> None:
        """Record signal `number` as a request to stop."""
        if self.received is None:
            self.received = signal.Signals(number)
        if self.reason is None:
            self.reason = signal.Signals(number).name

    def abort(self) -> NoReturn:
        """End the process with exit code 130; if `ends_process` is false, raise a KeyboardInterrupt instead.

        Python's shutdown is skipped, since another Ctrl-C during the shutdown would print a traceback.
        """
        if self._ends_process:
            os._exit(INTERRUPTED)
        raise KeyboardInterrupt

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - (self._interrupted or 0.0) > self._echo_s:
            try:
                if self._abort_callback is not None:
                    self._abort_callback()
            finally:
                self.abort()
        self.record(number)


@contextlib.contextmanager
def handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Context manager: let `handler` handle the stop signals; in a thread other than the main thread, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, former in previous.items():
            if former is not None:  # None: a handler that was not installed from Python cannot be restored
                signal.signal(number, former)
