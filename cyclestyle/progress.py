"""How far a job with many pictures is: a bar on a terminal, a line now and then in a log."""

import time
from datetime import timedelta
from types import TracebackType
from typing import Protocol

from rich import progress
from rich.console import Console

LINE_EVERY_S = 5.0  # at most; and only when another tenth is done, or a minute has passed


class Progress(Protocol):
    """Whoever wants to know how far a job is."""

    def advance(self) -> None: ...
    def partial(self, share: float) -> None: ...


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
        self._share = 0.0  # of the next one
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
        self.set_done(self.done + 1)

    def set_done(self, done: int) -> None:
        """So many are done, by whomever."""
        self.done, self._share = done, 0.0
        self._show()

    def partial(self, share: float) -> None:
        """This share of the next one is done, where one takes long."""
        self._share = share
        self._show()

    def _show(self) -> None:
        position = self.done + self._share
        if self._bar is not None:
            self._bar.update(self._task, completed=position, pace=self.pace)
        elif self._line_is_due():
            left = "" if not position else f"  {self._left(position)} left"
            of_one = f" and {self._share:.0%} of the next" if self._share else ""
            print(f"{self.what} {self.done}/{self.total}{of_one}  {self.pace}{left}", flush=True)
            self._told, self._tenths = time.perf_counter(), 10 * self.done // self.total

    def _left(self, position: float) -> timedelta:
        return timedelta(seconds=round(self.elapsed_s / position * (self.total - position)))

    def _line_is_due(self) -> bool:
        since = time.perf_counter() - self._told
        if self.done == self.total or since < LINE_EVERY_S:
            return False
        return 10 * self.done // self.total > self._tenths or since >= (60 if not self._share else 20)
