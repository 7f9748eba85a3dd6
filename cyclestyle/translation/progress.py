"""How far a job with many pictures is: a bar on a terminal, a line now and then in a log."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0  # at most; and only when another tenth is done, or a minute has passed


class Counter:
    """Counts pictures and shows it, with their pace and the time left.

    Args:
        total: pictures to count.
        what: what is being done to them.
    """

    def __init__(self, total: int, *, what: str = "translating") -> None:
        self.total, self.what, self.done = total, what, 0
        self._began = self._told = time.perf_counter()
        self._tenths = 0
        self._bar: Progress | None = None
        console = Console()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn(what),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[pace]}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,  # what comes after it says the same
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
        """Pictures a second since the start."""
        return f"{self.done / max(self.elapsed_s, 1e-9):.1f} photos/s"

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, pace=self.pace)
        elif self._line_is_due():
            left_s = self.elapsed_s / self.done * (self.total - self.done)
            print(
                f"{self.what} {self.done}/{self.total}  {self.pace}  {timedelta(seconds=round(left_s))} left",
                flush=True,
            )
            self._told, self._tenths = time.perf_counter(), 10 * self.done // self.total

    def _line_is_due(self) -> bool:
        since = time.perf_counter() - self._told
        if self.done == self.total or since < LINE_EVERY_S:
            return False
        return 10 * self.done // self.total > self._tenths or since >= 60
