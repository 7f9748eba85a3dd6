"""Logger that writes metrics to a JSON lines file and samples to PNG files."""

import json
import math
from pathlib import Path

from cyclestyle.filesystem.atomic import write_text
from cyclestyle.images import decoding
from cyclestyle.monitor.logger import Samples
from cyclestyle.monitor.sample_grid import column_titles, grid


class MetricsFile:
    """Writes metrics to `metrics.jsonl`, one line per `metrics` call, and samples as PNG files to `samples/`.

    Each `pictures` call writes two PNG files, one per translation direction.

    Args:
        folder: run folder.
        domains: names of domains a and b.
        start: number of steps done before this process started. Lines for step `start` and later
            steps are removed, since these steps are logged again.
        total: step at which training ends; unused.
    """

    def __init__(self, folder: Path, *, domains: tuple[str, str], start: int = 0, total: int = 0) -> None:
        self.domains, self.samples, path = domains, folder / "samples", folder / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(f"{line}\n" for line in _lines(path) if _step(line) < start))
        self.samples.mkdir(exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")

    def on_step(self, step: int) -> None:
        """Do nothing: `metrics` writes the lines."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, **values}) + "\n")
        self._stream.flush()

    def pictures(self, step: int, a: Samples, b: Samples) -> None:
        first, second = self.domains
        for samples, source, target in ((a, first, second), (b, second, first)):
            path = self.samples / f"step_{step:08d}_{source}2{target}.png"
            decoding.save(grid(samples, column_titles(source, target)), path)

    def close(self) -> None:
        self._stream.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _step(line: str) -> float:
    """Step number in a line of metrics.jsonl; infinity if the line is incomplete (killed process, full disk)."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
