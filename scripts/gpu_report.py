"""Results of the GPU check: a JSON record per part, rewritten after each finding, and one Markdown page."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cyclestyle.filesystem.atomic import write_text

PASSED, FAILED, NOT_RUN, UNFINISHED = "passed", "failed", "not run", "unfinished"


class Check(NamedTuple):
    """A measured figure and its bound, as text."""

    name: str
    found: str
    bound: str
    passed: bool


class Record(NamedTuple):
    """Findings of a part. `key` holds everything that they depend on: if it changes, the record is outdated."""

    part: str
    key: dict[str, str]
    outcome: str = UNFINISHED
    reason: str = ""
    seconds: float = 0.0
    checks: tuple[Check, ...] = ()
    texts: tuple[str, ...] = ()  # Markdown: tables, and findings without a bound
    pictures: tuple[str, ...] = ()  # names of image files beside the record

    @property
    def is_finished(self) -> bool:
        """True if the part ran to its end, so that repeating it would give the same result."""
        return self.outcome in (PASSED, FAILED) and not self.reason

    def write(self, folder: Path) -> None:
        """Write `folder/PART.json` atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {**self._asdict(), "checks": [check._asdict() for check in self.checks]}
        write_text(folder / f"{self.part}.json", json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path, part: str) -> "Record | None":
        """Read the record of a part in a folder; None if the record is missing, damaged or of another version."""
        try:
            content = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
            content["checks"] = tuple(Check(**check) for check in content["checks"])
            for name in ("texts", "pictures"):
                content[name] = tuple(content[name])
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Report:
    """Collects the findings of a part, and writes each finding to disk immediately.

    Args:
        folder: folder for the record and for other files of the part.
        part: name of the part.
        key: everything that the part's result depends on.
        seconds: time limit of the part.
    """

    def __init__(self, folder: Path, part: str, *, key: dict[str, str] | None = None, seconds: float = math.inf):
        self.folder = folder
        self._since = time.monotonic()
        self._until = self._since + seconds
        self.record = Record(part, key or {})
        self._write()

    @property
    def left_s(self) -> float:
        """Seconds until the part's time limit."""
        return self._until - time.monotonic()

    def check(self, name: str, found: float, bound: float, *, at_least: bool = False) -> bool:
        """Record `found`, which must be at most (or at least) `bound`; return whether it is; NaN always misses."""
        passed = found >= bound if at_least else found <= bound
        return self._record_check(
            Check(name, f"{found:.4g}", f"at {'least' if at_least else 'most'} {bound:.4g}", passed)
        )

    def equal(self, name: str, found: int, expected: int) -> bool:
        """Record the count `found`, which must equal `expected`; return whether it does."""
        return self._record_check(Check(name, str(found), str(expected), found == expected))

    def text(self, markdown: str) -> None:
        """Record Markdown text: a table, or a finding without a bound."""
        self._add(texts=(*self.record.texts, markdown))
        print(markdown, flush=True)

    def picture(self, name: str) -> None:
        """Record the name of an image file that was written into the report's folder."""
        self._add(pictures=(*self.record.pictures, name))

    def not_run(self, reason: str) -> None:
        """Record that the part cannot run on this machine, and why."""
        self._add(outcome=NOT_RUN, reason=reason)

    def end(self) -> None:
        """Record the end of the part, which has passed if at least one figure was checked and none missed its bound."""
        if self.record.outcome == UNFINISHED:
            passed = bool(self.record.checks) and all(check.passed for check in self.record.checks)
            self._add(outcome=PASSED if passed else FAILED)

    def _record_check(self, check: Check) -> bool:
        self._add(checks=(*self.record.checks, check))
        print(
            f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.found} ({check.bound})",
            flush=True,
        )
        return check.passed

    def _add(self, **changes: Any) -> None:
        self.record = self.record._replace(seconds=time.monotonic() - self._since, **changes)
        self._write()

    def _write(self) -> None:
        self.record.write(self.folder)


def markdown(records: Sequence[Record], claims: dict[str, str]) -> str:
    """Format a page with all parts: a table with a row for each part, then the findings of each part.

    Args:
        records: records of the parts, in order.
        claims: name of a part -> claim that it checks.
    """
    lines = ["# Check on a GPU", ""]
    keys = {f"{name} {value}" for record in records for name, value in record.key.items() if value}
    lines += [f"* {key}" for key in sorted(keys)] + ["", "| part | result | seconds | |", "|---|---|---|---|"]
    lines += [f"| {r.part} | {r.outcome} | {r.seconds:.0f} | {r.reason or claims[r.part]} |" for r in records]
    for record in records:
        lines += ["", f"## {record.part}", "", f"{claims[record.part]} **{record.outcome}**"]
        lines[-1] += f": {record.reason}" if record.reason else ""
        if record.checks:
            lines += ["", "| figure | found | bound | |", "|---|---|---|---|"]
            lines += [f"| {c.name} | {c.found} | {c.bound} | {'ok' if c.passed else 'FAILED'} |" for c in record.checks]
        lines += [line for text in record.texts for line in ("", text)]
        lines += [line for name in record.pictures for line in ("", f"![{name}]({name})")]
    return "\n".join(lines) + "\n"
