"""The best checkpoint of a run by one logged number: its pointer file, and the rule for a new best value."""

import contextlib
import json
import math
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from cyclestyle.checkpoints.model import GARBLED_JSON

Mode = Literal["min", "max"]
Interval = tuple[float, float]  # lower and upper bound
_MODES: dict[object, Mode] = {"min": "min", "max": "max"}


class Best(NamedTuple):
    """The best checkpoint so far, and the number by which it was chosen."""

    path: Path  # folder of the checkpoint
    step: int
    name: str  # name of the number, such as `kid`
    value: float
    mode: Mode  # `min`: lower values are better
    interval: Interval | None = None  # 95 % interval of the number; None if it was logged without one
    evaluations: int | None = None  # evaluations of the run up to and including this one; None if they are not counted


class Marker(Protocol):
    """Interface to read which checkpoint is marked as the best one, and to mark another.

    `Checkpoints` and `CheckpointWriter` implement it.
    """

    def best(self) -> Best | None: ...
    def mark_best(
        self,
        step: int,
        *,
        name: str,
        value: float,
        mode: Mode,
        interval: Interval | None = None,
        evaluations: int | None = None,
    ) -> None: ...


class BestCheckpoint:
    """Decides which checkpoint of a run is the best, by one logged number.

    The best value so far is read from the pointer file, so a resumed run compares new values with it.

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
        """True if this process or an earlier one has marked a checkpoint as the best by the logged number `name`."""
        best = self._checkpoints.best()
        return best is not None and best.name == self.name

    def record(
        self, step: int, value: float, *, interval: Interval | None = None, evaluations: int | None = None
    ) -> None:
        """Mark the checkpoint of `step` as the best one, chosen by `value`; call it after that checkpoint's save.

        Args:
            interval: 95 % interval of `value`; None if it is unknown.
            evaluations: number of evaluations of the run so far; None if they are not counted.
        """
        assert self.name is not None
        self._checkpoints.mark_best(
            step, name=self.name, value=value, mode=self.mode, interval=interval, evaluations=evaluations
        )


def pointer_text(best: Best) -> str:
    """Return the content of the pointer file: a line with the folder's name, then a line of JSON with the other fields.

    The first line has the format of the file `latest`, so that scripts can read both files in the same way. The JSON
    has no keys for an unknown interval or number of evaluations.
    """
    record: dict[str, object] = {"name": best.name, "mode": best.mode, "value": best.value, "step": best.step}
    if best.interval is not None:
        record["low"], record["high"] = best.interval
    if best.evaluations is not None:
        record["evaluations"] = best.evaluations
    return f"{best.path.name}\n{json.dumps(record)}\n"


def parse_pointer(text: str, path: Path) -> Best | None:
    """Parse the JSON in the second line of a pointer file; return None if the JSON is malformed.

    Files of earlier versions have neither interval nor number of evaluations.

    Args:
        text: content of the pointer file.
        path: checkpoint folder that the first line of `text` names; copied to the result and not checked.
    """
    with contextlib.suppress(*GARBLED_JSON):
        record = json.loads(text.partition("\n")[2])
        mode: Mode = _MODES[record["mode"]]
        interval = (float(record["low"]), float(record["high"])) if "low" in record else None
        evaluations = int(record["evaluations"]) if "evaluations" in record else None
        step, name, value = int(record["step"]), str(record["name"]), float(record["value"])
        return Best(path, step, name, value, mode, interval, evaluations)
    return None
