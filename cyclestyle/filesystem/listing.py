"""Recursive listing of image files, and formatting of arbitrary file names as printable text on one line."""

import os
import re
import stat
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import DataError


class Candidate(NamedTuple):
    """Path of an image file found by `listing`, judged by its extension; may be unreadable, such as a broken link."""

    name: Path  # relative to the listed folder
    size: int  # bytes
    modified_ns: int  # modification time, ns since 1970
    reason: str = ""  # why the path cannot be read, such as `a link to nothing`; empty for regular files


class Listing(NamedTuple):
    """Image files found in a folder and its subfolders; the order of paths depends only on their names."""

    candidates: list[Candidate]  # one per file, under the first of its paths in name order
    repeated: list[Path]  # other paths of the same files, which exist because of links
    named_like_pictures: list[Path]  # folders with an image extension; their content is listed too
    unlisted: dict[Path, str]  # subfolder that cannot be listed -> reason
    folders: frozenset[tuple[int, int]]  # device and inode of each listed folder


def listing(root: Path, *, endings: Collection[str]) -> Listing:
    """List the files below `root` whose extension is in `endings`; no file is opened.

    Opening a file could block if it is a pipe or device. If links make a file or folder reachable through several
    paths, it is listed once, under the path that comes first in name order; so a loop of links cannot repeat a folder.
    Files and folders whose names start with a dot are skipped.

    Args:
        root: folder to list.
        endings: extensions to list, in lower case and with the dot.

    Raises:
        DataError: `root` itself cannot be listed.
    """
    matches: list[tuple[Path, os.stat_result | str]] = []
    lookalikes: list[Path] = []  # folders with an image's extension
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

        subfolders: list[Path] = []
        for entry in entries:
            name = folder / entry.name
            has_ending = name.suffix.lower() in endings
            if entry.name.startswith(".") or not (has_ending or _may_be_folder(entry)):
                continue
            status = _status(entry)
            if not isinstance(status, str) and stat.S_ISDIR(status.st_mode):
                subfolders.append(name)
                lookalikes += [name] if has_ending else []
            elif has_ending:
                matches.append((name, status))
        folders += reversed(subfolders)  # a stack: a folder with several paths is listed under the first

    candidates, repeated = _once_each(sorted(matches, key=lambda match: match[0].parts))
    return Listing(candidates, repeated, sorted(lookalikes), unlisted, frozenset(entered))


def special_file_reason(mode: int) -> str:
    """Return why a path whose `st_mode` is `mode` cannot be read as a file; empty for a regular file."""
    if stat.S_ISREG(mode):
        return ""
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    return f"not a regular file but {kinds.get(stat.S_IFMT(mode), 'a device')}"


def printable(path: Path) -> str:
    """Format a path for printing on one line, with escapes for control characters and invalid UTF-8."""
    return _printable(os.fsencode(path).decode("utf-8", "backslashreplace"))


def one_line(text: str) -> str:
    """Format text as one line of at most 200 characters, with escaped control characters."""
    text = _printable(" ".join(text.split()))
    return text if len(text) <= 200 else f"{text[:197]}..."


def list_contents(folder: Path) -> str:
    """Return text for an error about a missing path: up to four names in `folder`, and the number of others."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        return f"nothing that can be listed ({error.strerror})"
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(printable(Path(name)) for name in names[:4]) + more or "nothing"


def nearest_existing(path: Path) -> str:
    """Return text for an error about a missing `path`: its nearest existing parent, and names in that parent."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{printable(folder)} contains {list_contents(folder)}"


def _may_be_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link, which may lead to a folder; this needs no `stat` call."""
    return entry.is_symlink() or entry.is_dir(follow_symlinks=False)


def _status(entry: "os.DirEntry[str]") -> os.stat_result | str:
    """Return the `stat` result of an entry, after following links, or the reason why `stat` fails."""
    try:
        # On Windows `entry.stat()` gives no inode, so two paths of one file would not be recognized.
        return Path(entry.path).stat() if os.name == "nt" else entry.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and entry.is_symlink():
            return "a link to nothing"
        return error.strerror or str(error)


def _once_each(matches: list[tuple[Path, os.stat_result | str]]) -> tuple[list[Candidate], list[Path]]:
    """Return one candidate for each file, under its first path in `matches`; also return the other paths of all files.

    Args:
        matches: pairs of a path and its `stat` result; in place of the result, the reason if `stat` failed.
    """
    candidates: list[Candidate] = []
    repeated: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for name, status in matches:
        if isinstance(status, str):
            candidates.append(Candidate(name, 0, 0, status))
        elif _identity(status) in seen:
            repeated.append(name)
        else:
            seen.add(_identity(status))
            candidates.append(Candidate(name, status.st_size, status.st_mtime_ns, special_file_reason(status.st_mode)))
    return candidates, repeated


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Return the pair (device, inode), which is equal for all paths of one file or folder."""
    return status.st_dev, status.st_ino


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)
