"""Progress display for work on many images: a bar on a terminal, otherwise one line printed at intervals."""

import time
from datetime import timedelta
from types import TracebackType
from typing import Protocol

from rich import progress
from rich.console import Console

LINE_EVERY_S = 5.0  # minimum seconds between two lines, see `Counter._line_is_due`


class Progress(Protocol):
    """Receiver of progress: `advance` adds one finished image, `partial` sets the finished part of the current one."""

    def advance(self) -> None: ...
    def partial(self, fraction: float) -> None: ...


class Counter:
    """Context manager: display the number of finished images, images per second and the time left.

    Args:
        total: number of images.
        what: name of the action in progress, shown as the label of the display.
    """

    def __init__(self, total: int, *, what: str = "translating") -> None:
        self.total, self.what, self.done = total, what, 0
        self._began = self._printed = time.perf_counter()
        self._tenths = 0
        self._fraction = 0.0  # finished fraction of the image in progress
        self._bar: progress.Progress | None = None
        console = Console()
        if console.is_terminal:
            self._bar = progress.Progress(
                progress.TextColumn(what),
                progress.BarColumn(bar_width=30),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[pace]}"),
                progress.TimeRemainingColumn(),
                console=console,
                transient=True,  # removed at the end: the command then prints a summary with these numbers
            )
            self._task = self._bar.add_task(what, total=total, pace="")

    def __enter__(self) -> "Counter":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._began

    @property
    def pace(self) -> str:
        """Average number of images per second since the start, as text with its unit."""
        return f"{self.done / max(self.elapsed_s, 1e-9):.1f} photos/s"

    def advance(self) -> None:
        """Count one more finished image."""
        self.set_done(self.done + 1)

    def set_done(self, done: int) -> None:
        """Set the number of images that all processes together have finished."""
        self.done, self._fraction = done, 0.0
        self._show()

    def partial(self, fraction: float) -> None:
        """Set the finished fraction, in [0, 1], of the image in progress; useful if one image takes long."""
        self._fraction = fraction
        self._show()

    def _show(self) -> None:
        position = self.done + self._fraction
        if self._bar is not None:
            self._bar.update(self._task, completed=position, pace=self.pace)
        elif self._line_is_due():
            remaining = "" if not position else f"  {self._time_left(position)} left"
            partial = f" and {self._fraction:.0%} of the next" if self._fraction else ""
            print(f"{self.what} {self.done}/{self.total}{partial}  {self.pace}{remaining}", flush=True)
            self._printed, self._tenths = time.perf_counter(), 10 * self.done // self.total

    def _time_left(self, position: float) -> timedelta:
        return timedelta(seconds=round(self.elapsed_s / position * (self.total - position)))

    def _line_is_due(self) -> bool:
        """Return whether to print a line now.

        A line is due in three cases: another tenth of the images is finished; 60 s have passed since the last line; or
        20 s have passed, and the current image is partly finished. There are two exceptions: no line is due less than
        `LINE_EVERY_S` seconds after another line, and none when all images are finished.
        """
        since = time.perf_counter() - self._printed
        if self.done == self.total or since < LINE_EVERY_S:
            return False
        return 10 * self.done // self.total > self._tenths or since >= (60 if not self._fraction else 20)
