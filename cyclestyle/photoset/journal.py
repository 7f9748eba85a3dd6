"""What has been done in an output folder, so that the same command does only what is missing.

```
output/.cyclestyle/
  journal.jsonl    a line when a picture's translation is about to be written, and one when it is there or has failed
  report.jsonl     how each picture of the last command fared, in order
  thumbnails/      of the contact sheet
  lock             held by the command that is at work
```

A line is added in one piece and never changed, so that several processes may share the journal and `kill -9` costs at
most the last line. Names are relative to the output folder, with slashes.
"""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cyclestyle.errors import CommandError, DiskError
from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.filesystem.listing import printable
from cyclestyle.filesystem.lock import Lock
from cyclestyle.photoset.inputs import InputFile

FOLDER = ".cyclestyle"
NAME = "journal.jsonl"
VERSION = 1
MOST_LINES = 4  # for each picture, before the journal is written anew

Stamp = tuple[int, int]  # bytes, and when it was last changed in ns
Status = Literal["translated", "up to date", "kept", "failed"]


class JournalEntry(NamedTuple):
    """What is known of one picture."""

    source: str  # its absolute path
    stamp: Stamp  # of the picture when it was read
    settings: str  # fingerprint of all that decides what its translation looks like
    targets: dict[str, Stamp | None]  # its translations; None while they are being written
    size: tuple[int, int] = (0, 0)  # px, width and height
    notes: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    reason: str = ""  # why there is none; empty where all went well

    @property
    def is_done(self) -> bool:
        return not self.reason and None not in self.targets.values()


class ReportRow(NamedTuple):
    """How one picture of a command fared."""

    source: Path
    targets: tuple[str, ...]
    status: Status
    reason: str = ""
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    elapsed_s: float = 0.0


class Journal:
    """The journal of an output folder.

    Args:
        output: the folder; nothing is made in it before `take`.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output / FOLDER
        self.entries: dict[str, JournalEntry] = {}  # by `Job.key`
        self._file = self.folder / NAME
        self._lock = Lock(self.folder / "lock")
        self._is_untidy = False

    def acquire(self) -> None:
        """Make the folder, and keep other commands out of it until `release` or the end of the process.

        Raises:
            CommandError: another command is at work there.
            DiskError: it cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            taken = self._lock.acquire()
        if not taken:
            by = "" if (pid := self._lock.holder()) is None else f" by pid {pid}"
            raise CommandError(f"{printable(self.output)} is in use{by}: wait for it, or choose another output=")

    def translations(self) -> set[str]:
        """The names of all translations that it knows of."""
        return {target for entry in self.entries.values() for target in entry.targets}

    def release(self) -> None:
        self._lock.release()

    def read(self) -> None:
        """Take in what earlier commands, or the other processes of this one, have written."""
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            text = b""
        except OSError as error:
            raise DiskError(f"cannot read {printable(self._file)}: {(error.strerror or '').lower()}") from None
        lines = text.splitlines(keepends=True)
        self.entries = dict(known for line in lines if (known := _entry(line)) is not None)
        is_cut = bool(lines) and not lines[-1].endswith(b"\n")
        self._is_untidy = is_cut or len(lines) > MOST_LINES * max(1, len(self.entries))

    def tidy(self) -> None:
        """Write the journal anew where later lines have replaced most of it, or the last was cut short."""
        if self._is_untidy:
            with writing(self._file), atomic_write(self._file) as stream:
                stream.writelines(_line(name, entry) for name, entry in self.entries.items())

    def add(self, name: str, entry: JournalEntry) -> None:
        """Write down how things stand with a picture."""
        self.entries[name] = entry
        with writing(self._file):
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            line = _line(name, entry)
            try:
                _lock_for_a_moment(descriptor)
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)

    def report(self, lines: Iterable[ReportRow]) -> None:
        """Write down how each picture of this command fared."""
        path = self.folder / "report.jsonl"
        with writing(path), atomic_write(path) as stream:
            for line in lines:
                told = {"source": os.fspath(line.source), "targets": line.targets, "status": line.status}
                more = {"reason": line.reason, "notes": line.notes, "elapsed_s": round(line.elapsed_s, 3)}
                size = {"width": line.size[0], "height": line.size[1]} if any(line.size) else {}
                stream.write(json.dumps(told | {key: value for key, value in more.items() if value} | size).encode())
                stream.write(b"\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system refuses within is a DiskError about a path."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from None


def _lock_for_a_moment(descriptor: int) -> None:
    """Until the file is closed: what is added at the end is in one piece on a network's file system too."""
    if os.name == "posix":
        import fcntl

        with suppress(OSError):  # one without locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX)


def disk_error(path: Path, error: OSError) -> DiskError:
    """What it means that nothing can be written there."""
    remedy = "all pictures written so far are whole, and the same command does the rest"
    return DiskError(f"cannot write {printable(path.absolute())}: {(error.strerror or '').lower()}; {remedy}")


def stamp(path: Path) -> Stamp | None:
    """What tells whether a file has been changed; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def started_entry(source: InputFile, settings: str, targets: Iterable[str]) -> JournalEntry:
    """What is noted before a picture's translations are written."""
    there: dict[str, Stamp | None] = dict.fromkeys(targets)
    return JournalEntry(os.path.abspath(source.path), (source.size, source.modified_ns), settings, there)  # noqa: PTH100


def _line(name: str, entry: JournalEntry) -> bytes:
    told: dict[str, Any] = {"v": VERSION, "name": name} | entry._asdict()
    return json.dumps({key: value for key, value in told.items() if value}).encode() + b"\n"


def _entry(line: bytes) -> tuple[str, JournalEntry] | None:
    """What a line says; None for one that was cut short, or that this version cannot read."""
    try:
        told = json.loads(line)
        if told["v"] != VERSION:
            return None
        return str(told["name"]), JournalEntry(
            source=str(told["source"]),
            stamp=_pair(told.get("stamp", (0, 0))),
            settings=str(told.get("settings", "")),
            targets={str(name): _pair(is_) if is_ else None for name, is_ in told.get("targets", {}).items()},
            size=_pair(told.get("size", (0, 0))),
            notes=tuple(map(str, told.get("notes", ()))),
            elapsed_s=float(told.get("elapsed_s", 0.0)),
            reason=str(told.get("reason", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _pair(two: Any) -> tuple[int, int]:
    first, second = two
    return int(first), int(second)
