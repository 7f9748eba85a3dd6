"""Logger for the console: a progress bar on a terminal, plain lines in a log file or pipe."""

import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cyclestyle.monitor.logger import Samples


class Console:
    """Shows losses, speed and remaining time: as a live progress bar on a terminal, else as a line per `metrics` call.

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
        losses = _summary(values)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, losses=losses)
            return
        step_s = (time.perf_counter() - self._since) / max(step - self.start, 1)
        remaining = timedelta(seconds=round(step_s * (self.total - step)))
        print(f"step {step}/{self.total}  {losses}  {remaining} left", flush=True)

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Do nothing: the console shows no images."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _summary(values: dict[str, float]) -> str:
    """Format the sum of each kind of loss, the speed, and the share of time spent waiting for data if over 5 %."""
    losses = [
        f"{word} {sum(value for name, value in values.items() if name.startswith(f'loss/{kind}')):.3f}"
        for word, kind in (("gan", "gan_"), ("cycle", "cycle_"), ("identity", "identity_"), ("disc", "discriminator_"))
        if any(name.startswith(f"loss/{kind}") for name in values)
    ]
    waiting = values["speed/waiting_for_data"]
    speed = f"{values['speed/images_per_s']:.1f} images/s"
    return "  ".join([*losses, speed, *([f"{waiting:.0%} waiting for data"] if waiting > 0.05 else [])])
