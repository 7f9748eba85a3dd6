"""The file `scores.jsonl` of a run folder: all scores of each evaluation during training."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cyclestyle.errors import warn
from cyclestyle.filesystem.atomic import write_text

NAME = "scores.jsonl"


class Evaluation(NamedTuple):
    """Scores of one evaluation of the networks."""

    step: int  # number of steps done
    values: dict[str, float]  # logged numbers by name, such as `kid`, `kid/low` and `kid/ab/vgg16_hed`


class ScoresFile:
    """Writes `scores.jsonl`: one line of JSON for each evaluation, in the order of the steps.

    Each new line replaces the whole file atomically. A process that is killed therefore leaves the former file or the
    new one, never an incomplete line. If the file cannot be written, the run continues after one warning, and the next
    evaluation writes all lines again.

    Args:
        folder: run folder.
        start: first step that this process may evaluate; lines of this and of later steps are removed. They come from
            an earlier process, and belong to steps that are trained again.
        warn: function that receives the text of the warning.
    """

    def __init__(self, folder: Path, *, start: int, warn: Callable[[str], None] = warn) -> None:
        self._path, self._warn, self._has_warned = folder / NAME, warn, False
        lines = _lines(self._path)
        self._lines = [line for line in lines if _step(line) < start]
        if len(self._lines) < len(lines):
            self._write()

    def __len__(self) -> int:
        """Return the number of evaluations of the run so far."""
        return len(self._lines)

    def append(self, step: int, record: Mapping[str, Any]) -> None:
        """Add the line of the evaluation at `step`; `record` holds its values and may hold further entries."""
        self._lines.append(json.dumps({"step": step, **record}))
        self._write()

    def _write(self) -> None:
        try:
            write_text(self._path, "".join(f"{line}\n" for line in self._lines))
        except OSError as error:
            if not self._has_warned:
                self._warn(f"cannot write {self._path}: {(error.strerror or '').lower()}; training continues")
            self._has_warned = True


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Read the evaluations in `scores.jsonl` of a run folder; empty if there are none. Malformed lines are left out."""
    evaluations = []
    for line in _lines(folder / NAME):
        if math.isfinite(step := _step(line)):
            values = json.loads(line).get("values")
            numbers = values.items() if isinstance(values, dict) else ()
            evaluations.append(
                Evaluation(int(step), {name: float(value) for name, value in numbers if _is_number(value)})
            )
    return evaluations


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _step(line: str) -> float:
    """Return the step of a line; infinity if the line is malformed, as in a file that another program has changed."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return math.inf
