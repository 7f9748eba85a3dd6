"""Journal of an output folder: a repeated command reads the journal and translates only the remaining photos.

```
output/.cyclestyle/
  journal.jsonl    a line before a photo's translations are written, and a line when they are written or have failed
  report.jsonl     outcome of each photo in the last run of a command, sorted by path; then counts of other files
  thumbnails/      images that the contact sheet shows
  lock             file that the running command has locked
```

Each line of the journal is appended in one write and never changed, so several processes may share the journal, and
`kill -9` costs at most the last line. The names of translations are relative to the output folder, with slashes.
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
from cyclestyle.filesystem.listing import PassedOver, printable
from cyclestyle.filesystem.lock import Lock
from cyclestyle.photoset import inputs
from cyclestyle.photoset.inputs import InputFile

FOLDER = inputs.FOLDER
NAME = "journal.jsonl"
VERSION = 1
MAX_LINES = 4  # maximum number of lines per photo; a longer journal is rewritten

Stamp = tuple[int, int]  # size in bytes, and modification time in ns
Status = Literal["translated", "up to date", "kept", "failed", "orphan", "removed"]  # the last two: see `orphans`


class JournalEntry(NamedTuple):
    """Record of one photo and its translations; it replaces all earlier entries with the same `Job.key`."""

    source: str  # absolute path of the photo
    stamp: Stamp  # stamp of the photo when it was read
    settings: str  # fingerprint of all settings that affect the translation's pixels
    targets: dict[str, Stamp | None]  # name of a translation -> stamp of its file; None while it is being written
    size: tuple[int, int] = (0, 0)  # px, width and height
    notes: tuple[str, ...] = ()
    elapsed_s: float = 0.0
    reason: str = ""  # why there is no translation; empty on success

    @property
    def is_done(self) -> bool:
        return not self.reason and None not in self.targets.values()


class ReportRow(NamedTuple):
    """Outcome of one photo in one run of a command."""

    source: Path
    targets: tuple[str, ...]
    status: Status
    reason: str = ""
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)
    elapsed_s: float = 0.0


class Journal:
    """The journal of an output folder; its files are described at the top of this module.

    Args:
        output: output folder; before `acquire`, nothing is created in this folder.
    """

    def __init__(self, output: Path) -> None:
        self.output, self.folder = output, output / FOLDER
        self.entries: dict[str, JournalEntry] = {}  # keys are `Job.key`
        self._file = self.folder / NAME
        self._lock = Lock(self.folder / "lock")
        self._needs_rewrite = False

    def acquire(self, *, is_needed: bool = True) -> bool:
        """Create the journal's folder and lock it for this command, until `release` or the end of the process.

        Args:
            is_needed: whether to raise an error if another command holds the lock.

        Returns:
            True if this command holds the lock; False if another command holds it and `is_needed` is false.

        Raises:
            CommandError: another command holds the lock, and `is_needed` is true.
            DiskError: the folder cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            is_acquired = self._lock.acquire()
        if not is_acquired and is_needed:
            by = "" if (pid := self._lock.holder()) is None else f" by pid {pid}"
            raise CommandError(f"{printable(self.output)} is in use{by}: wait for it, or choose another output=")
        return is_acquired

    def translations(self) -> set[str]:
        """Return the names of all translations in the journal, relative to the output folder."""
        return {target for entry in self.entries.values() for target in entry.targets}

    def release(self) -> None:
        self._lock.release()

    def read(self) -> None:
        """Load the entries that earlier commands and other ranks of this command have written to the journal's file.

        Raises:
            DiskError: the file exists but cannot be read.
        """
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            text = b""
        except OSError as error:
            raise DiskError(f"cannot read {printable(self._file)}: {(error.strerror or '').lower()}") from None
        lines = text.splitlines(keepends=True)
        self.entries = dict(parsed for line in lines if (parsed := _parse(line)) is not None)
        is_cut = bool(lines) and not lines[-1].endswith(b"\n")
        self._needs_rewrite = is_cut or len(lines) > MAX_LINES * max(1, len(self.entries))

    def tidy(self) -> None:
        """Rewrite the journal without outdated lines, if most lines are outdated or the last line is incomplete."""
        if self._needs_rewrite:
            self._rewrite()

    def _rewrite(self) -> None:
        with writing(self._file), atomic_write(self._file) as stream:
            stream.writelines(_line(key, entry) for key, entry in self.entries.items())

    def add(self, key: str, entry: JournalEntry) -> None:
        """Append the new state of a photo to the journal.

        Args:
            key: key of the photo's job, see `Job.key`.
            entry: new state of the photo.

        Raises:
            DiskError: the journal cannot be written.
        """
        self.entries[key] = entry
        with writing(self._file):
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            line = _line(key, entry)
            try:
                _lock_until_closed(descriptor)
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)

    def discard(self, keys: Iterable[str]) -> None:
        """Remove the entries with these keys, and rewrite the journal; call this only while no other process writes."""
        keys = set(keys)
        self.entries = {key: entry for key, entry in self.entries.items() if key not in keys}
        self._rewrite()

    def report(self, rows: Iterable[ReportRow], *, passed_over: PassedOver | None = None) -> None:
        """Write the outcome of each photo of this command to `report.jsonl`.

        Args:
            rows: outcomes of the photos.
            passed_over: counts of the files in the input that are no photos, and of skipped folders. They are written
                as the last line, unless there are none.
        """
        path = self.folder / "report.jsonl"
        with writing(path), atomic_write(path) as stream:
            for row in rows:
                fields = {"source": os.fspath(row.source), "targets": row.targets, "status": row.status}
                optional = {"reason": row.reason, "notes": row.notes, "elapsed_s": round(row.elapsed_s, 3)}
                size = {"width": row.size[0], "height": row.size[1]} if any(row.size) else {}
                optional = {key: value for key, value in optional.items() if value}
                stream.write(json.dumps(fields | optional | size).encode())
                stream.write(b"\n")
            if passed_over is not None and passed_over.summary():
                counts = {"files": passed_over.kinds(), "folders": passed_over.folders}
                stream.write(json.dumps({"status": "passed over"} | counts).encode() + b"\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager: re-raise an OSError from the `with` block as a DiskError about `path`."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from None


def _lock_until_closed(descriptor: int) -> None:
    """Lock an open file until it is closed, so lines from several processes do not mix on a network file system."""
    if os.name == "posix":
        import fcntl

        with suppress(OSError):  # a file system without locks
            fcntl.lockf(descriptor, fcntl.LOCK_EX)


def disk_error(path: Path, error: OSError) -> DiskError:
    """Return a DiskError for `path`, which cannot be written; its message states the cause and a remedy."""
    remedy = "all pictures written so far are whole, and the same command does the rest"
    return DiskError(f"cannot write {printable(path.absolute())}: {(error.strerror or '').lower()}; {remedy}")


def stamp(path: Path) -> Stamp | None:
    """Return the size and modification time of a file, used to detect changes; None if the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def started_entry(source: InputFile, settings: str, targets: Iterable[str]) -> JournalEntry:
    """Return the entry that is recorded before the translations of the photo `source` are written.

    Args:
        source: the photo.
        settings: fingerprint of all settings that affect a translation's pixels.
        targets: names of the translations, relative to the output folder.
    """
    pending: dict[str, Stamp | None] = dict.fromkeys(targets)
    return JournalEntry(os.path.abspath(source.path), (source.size, source.modified_ns), settings, pending)  # noqa: PTH100


def _line(key: str, entry: JournalEntry) -> bytes:
    """Encode an entry as a line of JSON; `key`, the `Job.key` of the photo, is stored in the field "name"."""
    fields: dict[str, Any] = {"v": VERSION, "name": key} | entry._asdict()
    return json.dumps({field: value for field, value in fields.items() if value}).encode() + b"\n"


def _parse(line: bytes) -> tuple[str, JournalEntry] | None:
    """Return the key and the entry that a line encodes; None if the line is damaged, or has another `VERSION`."""
    try:
        fields = json.loads(line)
        if fields["v"] != VERSION:
            return None
        return str(fields["name"]), JournalEntry(
            source=str(fields["source"]),
            stamp=_pair(fields.get("stamp", (0, 0))),
            settings=str(fields.get("settings", "")),
            targets={str(name): _pair(stamp) if stamp else None for name, stamp in fields.get("targets", {}).items()},
            size=_pair(fields.get("size", (0, 0))),
            notes=tuple(map(str, fields.get("notes", ()))),
            elapsed_s=float(fields.get("elapsed_s", 0.0)),
            reason=str(fields.get("reason", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)
