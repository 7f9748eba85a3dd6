"""Progress for whoever sits in front of it, plain lines for a log file."""

import time
from datetime import timedelta
from pathlib import Path

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cyclestyle.monitor.logger import Samples


class Console:
    """Losses, speed and time left: a live bar on a terminal, one line a log elsewhere.

    Args:
        start: steps done before.
        total: steps when training ends.
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
        pace = (time.perf_counter() - self._since) / max(step - self.start, 1)
        left = timedelta(seconds=round(pace * (self.total - step)))
        print(f"step {step}/{self.total}  {losses}  {left} left", flush=True)

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        """Nothing: a terminal shows no pictures."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _summary(values: dict[str, float]) -> str:
    """Sums of like terms, in the order that people look at them."""
    parts = [
        f"{word} {sum(value for name, value in values.items() if name.startswith(f'loss/{kind}')):.3f}"
        for word, kind in (("gan", "gan_"), ("cycle", "cycle_"), ("identity", "identity_"), ("disc", "discriminator_"))
        if any(name.startswith(f"loss/{kind}") for name in values)
    ]
    waiting = values["speed/waiting_for_data"]
    speed = f"{values['speed/images_per_s']:.1f} images/s"
    return "  ".join([*parts, speed, *([f"{waiting:.0%} waiting for data"] if waiting > 0.05 else [])])
