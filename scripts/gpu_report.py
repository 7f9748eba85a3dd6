"""Findings of the parts of the check on a GPU: written down after every finding, as JSON and as Markdown."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cyclestyle.filesystem.atomic import write_text

PASSED, FAILED, NOT_RUN, UNFINISHED = "passed", "failed", "not run", "unfinished"


class Check(NamedTuple):
    """A figure and its bound."""

    name: str
    found: str
    bound: str
    passed: bool


class Record(NamedTuple):
    """All that is known of a part; `key` has what it depends on, by which an earlier result is known to hold still."""

    part: str
    key: dict[str, str]
    outcome: str = UNFINISHED
    reason: str = ""
    seconds: float = 0.0
    checks: tuple[Check, ...] = ()
    texts: tuple[str, ...] = ()  # Markdown: tables, and what has no bound
    pictures: tuple[str, ...] = ()  # names of files beside the record

    @property
    def is_finished(self) -> bool:
        """Whether the part reached its end and had something to look at, so that a second run would find the same."""
        return self.outcome in (PASSED, FAILED) and not self.reason

    def write(self, folder: Path) -> None:
        """Write `folder/PART.json`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {**self._asdict(), "checks": [check._asdict() for check in self.checks]}
        write_text(folder / f"{self.part}.json", json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path, part: str) -> "Record | None":
        """The record of a part in a folder; None where there is nothing, or nothing that can be read."""
        try:
            content = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
            content["checks"] = tuple(Check(**check) for check in content["checks"])
            for name in ("texts", "pictures"):
                content[name] = tuple(content[name])
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError):
            return None


class Report:
    """Takes the findings of a part; each of them is on the disk at once.

    Args:
        folder: for the record and for whatever else the part writes.
        part: its name.
        key: what its result depends on.
        seconds: that the part may take.
    """

    def __init__(self, folder: Path, part: str, *, key: dict[str, str] | None = None, seconds: float = math.inf):
        self.folder = folder
        self._since = time.monotonic()
        self._until = self._since + seconds
        self.record = Record(part, key or {})
        self._write()

    @property
    def left_s(self) -> float:
        """Seconds until the part is stopped."""
        return self._until - time.monotonic()

    def check(self, name: str, found: float, bound: float, *, at_least: bool = False) -> bool:
        """Note a figure that is to be at most (or at least) the bound; whether it is. What is no number is neither."""
        passed = found >= bound if at_least else found <= bound
        return self._note(Check(name, f"{found:.4g}", f"at {'least' if at_least else 'most'} {bound:.4g}", passed))

    def equal(self, name: str, found: int, wanted: int) -> bool:
        """Note a count that is to be this one; whether it is."""
        return self._note(Check(name, str(found), str(wanted), found == wanted))

    def text(self, markdown: str) -> None:
        """Note a table, or something that has no bound."""
        self._add(texts=(*self.record.texts, markdown))
        print(markdown, flush=True)

    def picture(self, name: str) -> None:
        """Note a picture that was written into the folder."""
        self._add(pictures=(*self.record.pictures, name))

    def not_run(self, reason: str) -> None:
        """Note that the part cannot be run here."""
        self._add(outcome=NOT_RUN, reason=reason)

    def end(self) -> None:
        """Note that the part has reached its end: it has passed if it looked at something and all was within bounds."""
        if self.record.outcome == UNFINISHED:
            passed = bool(self.record.checks) and all(check.passed for check in self.record.checks)
            self._add(outcome=PASSED if passed else FAILED)

    def _note(self, check: Check) -> bool:
        self._add(checks=(*self.record.checks, check))
        print(
            f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.found} ({check.bound})",
            flush=True,
        )
        return check.passed

    def _add(self, **more: Any) -> None:
        self.record = self.record._replace(seconds=time.monotonic() - self._since, **more)
        self._write()

    def _write(self) -> None:
        self.record.write(self.folder)


def markdown(records: Sequence[Record], claims: dict[str, str]) -> str:
    """A page of all parts: a table with a line for each, then what each of them found.

    Args:
        claims: what each part is to show.
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
