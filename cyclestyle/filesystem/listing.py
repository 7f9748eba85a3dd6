"""Recursive listing of image files, and formatting of arbitrary file names as printable text on one line."""

import os
import re
import stat
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cyclestyle.errors import DataError

# Names of folders, in lower case, whose files are copies, thumbnails or remains that a system or another program made:
# never the pictures of a user. Folders whose names start with a dot (`.AppleDouble`, `.Trash-1000`) are skipped too.
SYSTEM_FOLDERS = frozenset({
    "@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot",  # network storage (Synology, QNAP)
    "__macosx", "network trash folder", "temporary items",  # macOS, also in its ZIP files and on its servers
    "$recycle.bin", "recycler", "system volume information",  # Windows
    "lost+found",  # Linux
})  # fmt: skip
# Names of files, in lower case, that systems write beside pictures; they are not worth a mention.
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"})

_MAX_KINDS = 8  # kinds of files that a summary lists
_LONGEST_ENDING = 12  # characters; a longer one is a part of the name, as in `img.made in summer`


class Candidate(NamedTuple):
    """File with an image extension that `listing` found; it may be unreadable, for example a broken link."""

    name: Path  # relative to the listed folder
    size: int  # bytes
    modified_ns: int  # modification time, ns since 1970
    reason: str = ""  # why the path cannot be read, such as `a link to nothing`; empty for regular files


@dataclass(frozen=True)
class PassedOver:
    """Numbers of files and folders that a listing skipped.

    Hidden files and files named in `SYSTEM_FILES` are not counted.

    Attributes:
        files: file extension -> number of files. The extension is spelled as in the file name, such as `.CR2`; it is
            empty for files without an extension.
        folders: folder name, such as `@eaDir` -> number of folders. The files in these folders are not counted.
    """

    files: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)

    def plus(self, other: "PassedOver") -> "PassedOver":
        """Return the sum of this count and that of another listing."""
        return PassedOver(self.files + other.files, self.folders + other.folders)

    def kinds(self) -> dict[str, int]:
        """Return the number of files by kind, the most frequent first; `.cr2` and `.CR2` are one kind.

        A kind is a file extension in its most frequent spelling, or `without an extension`.
        """
        spellings: dict[str, Counter[str]] = {}
        for ending, count in self.files.items():
            spellings.setdefault(ending.lower(), Counter())[ending] += count
        totals = {min(each, key=lambda ending: (-each[ending], ending)): each.total() for each in spellings.values()}
        ordered = sorted(totals.items(), key=lambda kind: (-kind[1], kind[0].lower()))
        return {printable(Path(ending)) if ending else "without an extension": count for ending, count in ordered}

    def summary(self) -> str:
        """Return a line such as `passed over: 212 files: 120 .CR2, 92 .xmp`; empty if nothing was passed over."""
        parts = []
        if kinds := self.kinds():
            shown = [f"{count:,} {kind}" for kind, count in list(kinds.items())[:_MAX_KINDS]]
            if rest := list(kinds.values())[_MAX_KINDS:]:
                shown.append(f"{sum(rest):,} of {len(rest):,} more kinds")
            parts.append(f"{_counted(self.files.total(), 'file')}: {', '.join(shown)}")
        if self.folders:
            names = sorted(self.folders)
            more = [f"{len(names) - _MAX_KINDS:,} other names"] if len(names) > _MAX_KINDS else []
            shown = [*(printable(Path(name)) for name in names[:_MAX_KINDS]), *more]
            parts.append(f"{_counted(self.folders.total(), 'hidden or system folder')}: {', '.join(shown)}")
        return f"passed over: {'; '.join(parts)}" if parts else ""


class Listing(NamedTuple):
    """Image files found in a folder and its subfolders; the order of paths depends only on their names."""

    candidates: list[Candidate]  # one per file, under the first of its paths in name order
    repeated: list[Path]  # other paths of the same files, which exist because of links
    named_like_pictures: list[Path]  # folders with an image extension; their content is listed too
    unlisted: dict[Path, str]  # subfolder that cannot be listed -> reason
    folders: frozenset[tuple[int, int]]  # device and inode of each listed folder
    passed_over: PassedOver  # other files, and folders that are not listed


def listing(root: Path, *, endings: Collection[str], system_folders: Collection[str] = SYSTEM_FOLDERS) -> Listing:
    """List the files below `root` whose extension is in `endings`.

    No file is opened, since opening a pipe or a device could block. If links make a file or folder reachable through
    several paths, it is listed once, under the path that comes first in name order. Files and folders whose names start
    with a dot are skipped, and so are `system_folders`. Files with other extensions are counted in
    `Listing.passed_over`.

    Args:
        root: folder to list.
        endings: extensions to list, in lower case and with the dot.
        system_folders: names of folders to skip, in lower case; they are compared without regard to case.

    Raises:
        DataError: `root` itself cannot be listed.
    """
    matches: list[tuple[Path, os.stat_result | str]] = []
    lookalikes: list[Path] = []  # folders with an image's extension
    unlisted: dict[Path, str] = {}
    passed_over = PassedOver()
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
            if _is_skipped(entry, has_ending=has_ending, system_folders=system_folders, passed_over=passed_over):
                continue
            status = _status(entry)
            if not isinstance(status, str) and stat.S_ISDIR(status.st_mode):
                subfolders.append(name)
                lookalikes += [name] if has_ending else []
            elif has_ending:
                matches.append((name, status))
            else:
                passed_over.files[_ending(entry.name)] += 1
        folders += reversed(subfolders)  # a stack: a folder with several paths is listed under the first

    candidates, repeated = _once_each(sorted(matches, key=lambda match: match[0].parts))
    return Listing(candidates, repeated, sorted(lookalikes), unlisted, frozenset(entered), passed_over)


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
        # hidden names such as .DS_Store come last: they explain nothing
        names = sorted((entry.name for entry in folder.iterdir()), key=lambda name: (name.startswith("."), name))
    except OSError as error:
        return f"nothing that can be listed ({error.strerror})"
    more = f" and {len(names) - 4:,} more" if len(names) > 4 else ""
    return ", ".join(printable(Path(name)) for name in names[:4]) + more or "nothing"


def nearest_existing(path: Path) -> str:
    """Return text for an error about a missing `path`: its nearest existing parent, and names in that parent."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{printable(folder)} contains {list_contents(folder)}"


def _is_skipped(
    entry: "os.DirEntry[str]", *, has_ending: bool, system_folders: Collection[str], passed_over: PassedOver
) -> bool:
    """Return whether an entry can be skipped without a `stat` call.

    This holds for hidden entries, for system folders, and for files whose extension is not one of those to list. They
    are counted in `passed_over`, except links, hidden files and files named in `SYSTEM_FILES`.

    Args:
        entry: file, folder or link in a listed folder.
        has_ending: whether the name of the entry has one of the extensions to list.
        system_folders: see `listing`.
        passed_over: counts of skipped files and folders, updated in place.
    """
    name = entry.name.lower()
    may_be_folder = _may_be_folder(entry)
    if name.startswith(".") or (may_be_folder and name in system_folders):
        passed_over.folders.update([entry.name] if entry.is_dir(follow_symlinks=False) else [])
        return True
    if has_ending or may_be_folder:
        return False
    passed_over.files.update([] if name in SYSTEM_FILES else [_ending(entry.name)])
    return True


def _ending(name: str) -> str:
    """Return the extension of a file name as written, such as `.CR2`; empty if there is none.

    A suffix that is long or contains white space, as in `img.made in summer`, is no extension.
    """
    ending = Path(name).suffix
    return "" if len(ending) > _LONGEST_ENDING or any(character.isspace() for character in ending) else ending


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
    """Keep one path for each file.

    Args:
        matches: pairs (path, `stat` result) or, if `stat` failed, (path, reason of the failure). Links can give several
            paths to one file.

    Returns:
        (a `Candidate` for each file, with the file's first path in `matches`; all other paths in `matches`).
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


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _printable(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda match: ascii(match[0])[1:-1], text)
