"""The best checkpoint of a run by one logged number: its pointer file, and the rule for a new best value."""

import contextlib
import json
import math
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from cyclestyle.checkpoints.model import GARBLED_JSON

Mode = Literal["min", "max"]
_MODES: dict[object, Mode] = {"min": "min", "max": "max"}


class Best(NamedTuple):
    """The best checkpoint so far, and the number by which it was chosen."""

    path: Path  # folder of the checkpoint
    step: int
    name: str  # name of the number, such as `kid`
    value: float
    mode: Mode  # `min`: lower values are better


class Marker(Protocol):
    """Reads and moves the mark of the best checkpoint; `Checkpoints` and `CheckpointWriter` implement it."""

    def best(self) -> Best | None: ...
    def mark_best(self, step: int, *, name: str, value: float, mode: Mode) -> None: ...


class BestCheckpoint:
    """Decides which checkpoint of a run is the best, by one logged number.

    A resumed run compares with the value in the pointer file, so it continues to look for a better one.

    Args:
        checkpoints: the run's checkpoints; a `CheckpointWriter` if saves are asynchronous.
        best: name of the logged number; None marks no checkpoint.
        mode: `min` if lower values are better, `max` if higher values are.
    """

    def __init__(self, checkpoints: Marker, *, best: str | None = None, mode: Mode = "min") -> None:
        self._checkpoints, self.name, self.mode = checkpoints, best, mode

    def improves(self, value: float) -> bool:
        """Return whether `value` is better than that of the best checkpoint; NaN and an equal value are not.

        Without a best checkpoint by the same number and mode, any value except NaN is better.
        """
        if self.name is None or math.isnan(value):
            return False
        best = self._checkpoints.best()
        if best is None or (best.name, best.mode) != (self.name, self.mode):
            return True
        return value < best.value if self.mode == "min" else value > best.value

    @property
    def has_record(self) -> bool:
        """True if a checkpoint is marked by a number of this name, in this process or before it."""
        best = self._checkpoints.best()
        return best is not None and best.name == self.name

    def record(self, step: int, value: float) -> None:
        """Mark the checkpoint of `step`, which was saved before, as the best one; `value` is its number."""
        assert self.name is not None
        self._checkpoints.mark_best(step, name=self.name, value=value, mode=self.mode)


def pointer_text(best: Best) -> str:
    """Content of the pointer file: the folder's name, which scripts read as in `latest`, then a line of JSON."""
    record = {"name": best.name, "mode": best.mode, "value": best.value, "step": best.step}
    return f"{best.path.name}\n{json.dumps(record)}\n"


def parse_pointer(text: str, path: Path) -> Best | None:
    """Parse the content of a pointer file; return None if it is malformed.

    Args:
        path: folder that the first line names.
    """
    with contextlib.suppress(*GARBLED_JSON):
        record = json.loads(text.partition("\n")[2])
        mode: Mode = _MODES[record["mode"]]
        return Best(path, int(record["step"]), str(record["name"]), float(record["value"]), mode)
    return None
