"""Curves and probe pictures in TensorBoard."""

from pathlib import Path

import numpy as np

from cyclestyle.monitor.grid import Probed, grid, titles


class TensorBoard:
    """Writes TensorBoard events into the run's folder; after a resume the curves join.

    Args:
        folder: of the run.
        domains: names of a and b.
        start: steps done before; what the folder holds of later steps is not shown any more.
    """

    def __init__(self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.domains = domains
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else 0)

    def advance(self, step: int) -> None:
        """Nothing: curves have a point at every log."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, a: Probed, b: Probed) -> None:
        first, second = self.domains
        for probes, here, there in ((a, first, second), (b, second, first)):
            sheet = grid(probes, titles(here, there))
            self._writer.add_image(f"{here}2{there}", np.asarray(sheet), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
