"""Numbers and probe pictures as plain files."""

import json
import math
from pathlib import Path

from cyclestyle.filesystem.atomic import write_text
from cyclestyle.images import decoding
from cyclestyle.monitor.logger import Samples
from cyclestyle.monitor.sample_grid import column_titles, grid


class MetricsFile:
    """One line of JSON a log in `metrics.jsonl`, one picture a direction and sampling in `samples/`.

    Args:
        folder: of the run.
        domains: names of a and b.
        start: steps done before; lines of this step and later ones are dropped, since they will be told again.
    """

    def __init__(self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0) -> None:
        self.domains, self.samples, path = domains, folder / "samples", folder / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(f"{line}\n" for line in _lines(path) if _step(line) < start))
        self.samples.mkdir(exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")

    def on_step(self, step: int) -> None:
        """Nothing: the file has a line at every log."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        first, second = self.domains
        for samples, here, there in ((a, first, second), (b, second, first)):
            path = self.samples / f"step_{step:08d}_{here}2{there}.png"
            decoding.save(grid(samples, column_titles(here, there)), path)

    def close(self) -> None:
        self._stream.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _step(line: str) -> float:
    """The step that a line tells of; infinity for the half line that a killed process or a full disk left."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
