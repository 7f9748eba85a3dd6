"""Logger that writes curves of all metrics, and samples, for TensorBoard."""

import threading
from pathlib import Path
from typing import Any

import numpy as np

from cyclestyle.monitor.logger import Samples
from cyclestyle.monitor.sample_grid import column_titles, grid


class TensorBoard:
    """Writes TensorBoard events into the run folder; curves continue after a resume.

    If the disk is full, `metrics` and `pictures` raise OSError, and the next call of either begins a new file.

    Args:
        folder: run folder.
        domains: names of domains a and b.
        start: number of steps done before this process started. TensorBoard hides the events that earlier processes
            wrote for step `start` and later steps.
        total: step at which training ends; unused.
    """

    def __init__(self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0) -> None:
        self.domains, self._folder = domains, folder
        self._writer: Any = None
        # The writer's thread passes its error to the next call; printing its traceback would only repeat the error.
        self._hook = threading.excepthook
        self._open(purge_step=start)
        threading.excepthook = self._mute_writer_thread

    def on_step(self, step: int) -> None:
        """Do nothing: `metrics` adds the points of the curves."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        try:
            writer = self._open()
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # a killed run loses no point, and a full disk is noticed here
        except OSError:
            self._writer = None
            raise

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        first, second = self.domains
        try:
            writer = self._open()
            for samples, source, target in ((a, first, second), (b, second, first)):
                sheet = grid(samples, column_titles(source, target))
                writer.add_image(f"{source}2{target}", np.asarray(sheet), step, dataformats="HWC")
            writer.flush()
        except OSError:
            self._writer = None
            raise

    def close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _open(self, *, purge_step: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a second

            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        return self._writer

    def _mute_writer_thread(self, args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith("tensorboard"):
            self._hook(args)
