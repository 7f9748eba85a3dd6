"""Logger that writes metrics to a JSON lines file and samples to JPEG files."""

import json
import math
import re
from pathlib import Path

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.atomic import atomic_write, write_text
from cyclestyle.monitor.disk import Plan, thinned
from cyclestyle.monitor.logger import Samples
from cyclestyle.monitor.sample_grid import column_titles, encoded_grid

# Bytes of one line in metrics.jsonl; measured: 569 to 588.
_LINE_BYTES = 590
_GRID = re.compile(r"step_(\d{8,})_.+\.jpg")


class MetricsFile:
    """Writes metrics to `metrics.jsonl`, one line per `metrics` call, and samples as JPEG files to `samples/`.

    Each `pictures` call writes two files, one per translation direction.

    Args:
        folder: run folder.
        domains: names of domains a and b.
        start: number of steps done before this process started.
        total: step at which training ends; unused.
        log_from: first step that this process may log: `start`, or `start` + 1 if an earlier process has logged
            `start` already; None for `start`. Lines of earlier processes from this step on are removed.
        keep_samples: number of newest steps whose samples are all kept; of older ones fewer and fewer are kept, see
            `thinned`. None keeps all. PNG files, which earlier versions wrote, are never removed.

    Raises:
        CommandError: `keep_samples` is below 2.
    """

    def __init__(
        self,
        folder: Path,
        *,
        domains: tuple[str, str],
        start: int = 0,
        total: int = 0,
        log_from: int | None = None,
        keep_samples: int | None = 50,
    ) -> None:
        if keep_samples is not None and keep_samples < 2:
            raise CommandError(
                f"logger.metrics.keep_samples={keep_samples}: give 2 or more, or null to keep the samples of all steps"
            )
        self.keep_samples = keep_samples
        log_from = start if log_from is None else log_from
        self.domains, self.samples, path = domains, folder / "samples", folder / "metrics.jsonl"
        if path.exists():
            write_text(path, "".join(f"{line}\n" for line in _lines(path) if _step(line) < log_from))
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
            with atomic_write(self.samples / f"step_{step:08d}_{source}2{target}.jpg") as stream:
                stream.write(encoded_grid(samples, column_titles(source, target)))
        self._remove_old_samples()

    def disk_use(self, plan: Plan) -> dict[str, int]:
        """Estimate the size of `samples/` and of metrics.jsonl at the end of the run, in bytes by kind of file."""
        kept = thinned(plan.sampled, self.keep_samples)
        return {"samples": len(kept) * plan.grid_bytes, "metrics": plan.logs * _LINE_BYTES}

    def close(self) -> None:
        self._stream.close()

    def _remove_old_samples(self) -> None:
        if self.keep_samples is None:
            return
        files = [(int(match[1]), path) for path in self.samples.iterdir() if (match := _GRID.fullmatch(path.name))]
        kept = thinned(sorted({step for step, _ in files}), self.keep_samples)
        for step, path in files:
            if step not in kept:
                path.unlink(missing_ok=True)


def logged_speeds(folder: Path, step: int) -> dict[str, float]:
    """Read the speeds that an earlier process logged at `step` in metrics.jsonl; empty if there are none."""
    try:
        entries = [json.loads(line) for line in _lines(folder / "metrics.jsonl") if _step(line) == step]
        return {name: float(entry[name]) for entry in entries for name in entry if name.startswith("speed/")}
    except (OSError, ValueError, TypeError):
        return {}


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _step(line: str) -> float:
    """Step number in a line of metrics.jsonl; infinity if the line is incomplete (killed process, full disk)."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
