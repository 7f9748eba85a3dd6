"""Logger for the console: a progress bar on a terminal, plain lines in a log file or pipe."""

import math
import re
import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cyclestyle.monitor.logger import Samples

_LOSS = "loss/"  # prefix of losses in the names of values
_SIDE = re.compile(r"_(a|b|ab|ba)$")  # domain or direction of a loss


class Console:
    """Shows losses, speed and remaining time: as a live progress bar on a terminal, else as a line per `metrics` call.

    Calls of `metrics` with neither losses nor speeds hold the values of a periodic task of the user, such as an
    evaluation. They are printed as a separate line; on a terminal, this line is above the progress bar.

    Args:
        folder: run folder; unused, but every logger receives the same arguments.
        domains: names of domains a and b; unused.
        start: number of steps done before this process started.
        total: step at which training ends.
    """

    def __init__(self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0) -> None:
        self.start, self.total, self._since = start, total, time.perf_counter()
        self._terminal = Terminal()
        self._bar: Progress | None = None
        if self._terminal.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=30),
                TimeRemainingColumn(),
                TextColumn("{task.fields[losses]}"),
                console=self._terminal,
            )
            self._task = self._bar.add_task("training", total=total, completed=start, losses="")
            self._bar.start()

    def on_step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        line = training_line(values)
        if line is None:
            self._print(f"step {step}/{self.total}  {task_line(values)}")
        elif self._bar is not None:
            self._bar.update(self._task, completed=step, losses=line)
        else:
            print(f"step {step}/{self.total}  {line}{self._remaining(step)}", flush=True)

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Do nothing: the console shows no images."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _remaining(self, step: int) -> str:
        """Format the remaining time; return "" before this process has trained a step."""
        if step <= self.start:
            return ""
        step_s = (time.perf_counter() - self._since) / (step - self.start)
        return f"  {timedelta(seconds=round(step_s * (self.total - step)))} left"

    def _print(self, line: str) -> None:
        """Print a line; on a terminal, above the progress bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)


def training_line(values: dict[str, float]) -> str | None:
    """Format the values of a training step: sums of losses, and speed.

    Losses whose names differ only in the domain or direction at the end are added: `loss/gan_ab` and `loss/gan_ba` are
    shown as `gan`. The share of time spent waiting for data is added if it is over 5 %.

    Returns:
        The line; None if there are neither losses nor speeds, since the values are then those of a task of the user.
    """
    sums: dict[str, float] = {}
    for name, value in values.items():
        if name.startswith(_LOSS):
            kind = _SIDE.sub("", name.removeprefix(_LOSS))
            sums[kind] = sums.get(kind, 0.0) + value
    parts = [f"{kind} {value:.3f}" for kind, value in sums.items()]
    if (speed := values.get("speed/images_per_s")) is not None:
        parts.append(f"{speed:.1f} images/s")
    if (waiting := values.get("speed/waiting_for_data", 0.0)) > 0.05:
        parts.append(f"{waiting:.0%} waiting for data")
    return "  ".join(parts) or None


def task_line(values: dict[str, float]) -> str:
    """Format the values of a task with their names, such as `kid 0.041 [0.036, 0.047]  psnr 21.3`.

    `kid/low` and `kid/high` are the bounds of the interval of `kid`. Other values whose names begin with `kid/` are
    left out, since `kid` summarizes them.
    """
    parts = []
    for name, value in values.items():
        if name.partition("/")[0] not in values or "/" not in name:
            low, high = values.get(f"{name}/low"), values.get(f"{name}/high")
            parts.append(f"{name} {with_interval(value, None if low is None or high is None else (low, high))}")
    return "  ".join(parts)


def with_interval(value: float, interval: tuple[float, float] | None) -> str:
    """Format a number and its interval, such as `0.041 [0.036, 0.047]`.

    The number of decimal places follows from the width of the interval: half of the width, such as 0.006, has one
    significant digit. The number has four significant digits if there is no interval, or if its width is 0 or infinite.
    """
    if interval is None or not 0 < interval[1] - interval[0] < math.inf:
        return f"{value:.4g}"
    decimals = max(0, -math.floor(math.log10((interval[1] - interval[0]) / 2)))
    return f"{value:.{decimals}f} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"
