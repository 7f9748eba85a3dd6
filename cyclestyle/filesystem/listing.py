"""What lies in folders, whatever names it has, and how to say it in one line."""

import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import DataError


class Candidate(NamedTuple):
    """A name that ends like a picture's."""

    name: Path  # relative to the folder that was listed
    size: int  # bytes
    modified_ns: int
    reason: str = ""  # why nothing can be read there: a pipe, a link to nothing; empty for files


class Listing(NamedTuple):
    """What there is below a folder, in an order that depends on names alone."""

    candidates: list[Candidate]  # each real file once, by the first of its names
    repeated: list[Path]  # the other names of those files
    named_like_pictures: list[Path]  # folders; they are entered as any other
    unlisted: dict[Path, str]  # folders below it that cannot be listed, and why
    folders: frozenset[tuple[int, int]]  # device and inode of all that were entered


def listing(root: Path, *, endings: Collection[str]) -> Listing:
    """What is below `root` under names that end like pictures; nothing is opened, so that nothing blocks.

    Files and folders come once each, by the first of their names, so that links cannot lead in circles; names that
    start with a dot are passed over.

    Args:
        endings: of names, in lower case.

    Raises:
        DataError: `root` itself cannot be listed.
    """
    found: list[tuple[Path, os.stat_result | str]] = []
    lookalikes: list[Path] = []
    unlisted: dict[Path, str] = {}
    entered: set[tuple[int, int]] = set()
    folders = [Path()]
    while folders:
        folder = folders.pop()
        try:
            identity = _identity((root / folder).stat())
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            if folder == Path():
                raise DataError(f"{printable(root.absolute())} cannot be listed: {error.strerror}") from None
            unlisted[folder] = error.strerror or str(error)
            continue
        if identity in entered:
            continue
        entered.add(identity)

        below: list[Path] = []
        for entry in entries:
            name = folder / entry.name
            ends_like_one = name.suffix.lower() in endings
            if entry.name.startswith(".") or not (ends_like_one or _may_be_folder(entry)):
                continue
            status = _status(entry)
            if not isinstance(status, str) and stat.S_ISDIR(status.st_mode):
                below.append(name)
                lookalikes += [name] if ends_like_one else []
            elif ends_like_one:
                found.append((name, status))
        folders += reversed(below)  # of two ways into a folder, the first by name is taken

    candidates, repeated = _once_each(sorted(found, key=lambda one: one[0].parts))
    return Listing(candidates, repeated, sorted(lookalikes), unlisted, frozenset(entered))


def special_file_reason(mode: int) -> str:
    """What is behind a name if not a file; empty for files."""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return f"not a regular file but {kinds.get(stat.S_IFMT(mode), 'a device')}"


def printable(path: Path) -> str:
    """A path that can be printed on one line, whatever bytes are in its name."""
    return _printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def one_line(text: str) -> str:
    """Text as it can be printed on one line: no control characters, not too long."""
    text = _printable(" ".join(text.split()))
    return text if len(text) <= 200 else f"{text[:197]}..."


def list_contents(folder: Path) -> str:
    """A few of the names in a folder, for errors about what is not there."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"what cannot be listed ({error.strerror})"
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(printable(Path(name)) for name in names[:4]) + more or "nothing"


def nearest_existing(path: Path) -> str:
    """What there is instead of a path that is not there."""
    there = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{printable(there)} contains {list_contents(there)}"


def _may_be_folder(entry: "os.DirEntry[str]") -> bool:
    """Whether it is worth asking what is behind a name that ends like no picture."""
    return entry.is_symlink() or entry.is_dir(follow_symlinks=False)


def _status(entry: "os.DirEntry[str]") -> os.stat_result | str:
    """What is behind a name, or why that cannot be said."""
    try:
        # What Windows knows from listing a folder does not tell files apart.
        return Path(entry.path).stat() if os.name == "nt" else entry.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and entry.is_symlink():
            return "a link to nothing"
        return error.strerror or str(error)


def _once_each(found: list[tuple[Path, os.stat_result | str]]) -> tuple[list[Candidate], list[Path]]:
    """The candidates, and what is left over: further names of the same files."""
    candidates: list[Candidate] = []
    repeated: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for name, status in found:
        if isinstance(status, str):
            candidates.append(Candidate(name, 0, 0, status))
        elif _identity(status) in seen:
            repeated.append(name)
        else:
            seen.add(_identity(status))
            candidates.append(Candidate(name, status.st_size, status.st_mtime_ns, special_file_reason(status.st_mode)))
    return candidates, repeated


def _identity(status: os.stat_result) -> tuple[int, int]:
    """The same for all names of a file or folder."""
    return status.st_dev, status.st_ino


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda odd: ascii(odd[0])[1:-1], text)
