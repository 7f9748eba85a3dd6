"""Stopping a run politely: the step is finished and saved, then the program leaves."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STOPPED = 75  # exit code of a run that was asked to stop and can go on
INTERRUPTED = 130  # exit code after a second Ctrl-C

# Ctrl-C, schedulers and `kill`, SLURM's --signal=USR1. Windows has no SIGUSR1.
STOP_SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def terminate_with_parent() -> None:
    """Have the system ask this process to stop when the one that started it is killed: nobody would watch over it."""
    if sys.platform != "linux":
        return
    import ctypes

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))


class StopRequest:
    """Remembers that somebody asked the program to stop; use it as a context, in the main thread.

    The handler only sets a flag, which the trainer asks for before every step. A second Ctrl-C leaves at once; under
    torchrun one Ctrl-C arrives twice, from the terminal and from torchrun, so that there the echo is not counted.
    """

    def __init__(self, *, echo_s: float = 0.0) -> None:
        self.reason: str | None = None
        self._echo_s = echo_s
        self._interrupted: float | None = None  # when the first Ctrl-C came
        self._file: Path | None = None
        self._last_word: Callable[[], object] | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __call__(self) -> bool:
        """Whether to stop."""
        if self.reason is None and self._file is not None and self._file.exists():
            self.reason = f"the file {self._file}"
        return self.reason is not None

    def watch(self, file: Path) -> None:
        """From now on the appearance of this file asks for a stop too."""
        self._file = file

    def on_second_interrupt(self, last_word: Callable[[], object]) -> None:
        """What to do, quickly, when a second Ctrl-C ends the program."""
        self._last_word = last_word

    def clear(self) -> None:
        """The program leaves as it was asked to: the next start is not to find the file."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def _remember(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted is None:
            self._interrupted = time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - (self._interrupted or 0.0) > self._echo_s:
            try:
                if self._last_word is not None:
                    self._last_word()
            finally:
                os._exit(INTERRUPTED)
        if self.reason is None:
            self.reason = signal.Signals(number).name
