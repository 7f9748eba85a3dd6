"""Search for the photos that `input=` names: one file, a folder, a pattern, or a list of paths."""

import fnmatch
import glob
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import (
    PassedOver,
    list_contents,
    listing,
    nearest_existing,
    printable,
    special_file_reason,
)
from cyclestyle.images import file_formats
from cyclestyle.photoset import path_lists
from cyclestyle.photoset.contact_sheet import page

FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or HEIC"  # `ENDINGS` in words
# HEIC files are found even if the library that reads them is missing: they are reported, never skipped silently.
ENDINGS = file_formats.ENDINGS | {".heic", ".heif", ".hif"}
STANDARD_INPUT = "-"
LIST = ".txt"
FOLDER = ".cyclestyle"  # folder in an output folder, which `journal` describes


KnownOutputs = Callable[[Path], Collection[str]]  # output folder -> names of its known translations


class InputFile(NamedTuple):
    """A photo found in the input, or an unreadable file or folder, whose `reason` states why it cannot be read."""

    path: Path
    name: Path  # relative path, from which the path of the translation in the output is made
    size: int = 0  # bytes
    modified_ns: int = 0  # modification time
    reason: str = ""  # why the file cannot be read; empty if no reason is known


class FoundInputs(NamedTuple):
    """Photos found by `find`, and the files that it skipped."""

    sources: list[InputFile]
    skipped_own_outputs: int  # count of translations of earlier commands, which are not translated again
    repeated: tuple[Path, ...] = ()  # further names of photos, made by links; each photo is translated once
    passed_over: PassedOver = PassedOver()  # other files in folders; a pattern leaves out files on purpose: not counted


def find(
    spec: str,
    *,
    output: Path | None = None,
    known_outputs: KnownOutputs = lambda _: (),
    stream: IO[bytes] | None = None,
) -> FoundInputs:
    """Find the photos that `spec` names; each file is returned once, and the files are sorted by name.

    Args:
        spec: a photo; a folder, searched with all its subfolders; a pattern such as `photos/**/*.jpg`; a .txt file with
            a path on each line, see `path_lists.entries`; or `-`, for such a list on standard input, where zero bytes
            (from `find -print0`) may separate the paths instead of line ends. A path in a list may be a folder.
        output: output folder; if `spec` is a folder or a pattern, all files in the output folder are skipped, unless
            the output folder contains the input.
        known_outputs: called with a folder; returns the paths, relative to that folder, of the translations that
            earlier commands wrote there. These files are skipped too.
        stream: stream from which a list is read instead of standard input.

    Raises:
        DataError: no photos were found; or the list cannot be decoded, or names a folder above the list's folder.
    """
    path = Path(spec)
    passed_over = PassedOver()
    is_list = False  # a list names photos one by one, so only known translations are skipped
    if spec == STANDARD_INPUT:
        content = _standard_input(stream)
        is_list = True
        candidates, passed_over = _from_list(content, "standard input", folder=Path(), allow_zeros=True)
    elif path.is_dir():
        candidates, passed_over = _in_folder(path, Path())
    elif path.is_file() and path.suffix.lower() == LIST:
        is_list = True
        candidates, passed_over = _from_list_file(path)
    elif os.path.lexists(path):
        return FoundInputs([_single(path)], 0)
    elif glob.has_magic(spec):
        candidates = _matching(path)
    else:
        raise DataError(f"no picture or folder {printable(path.absolute())}: {nearest_existing(path)}")

    if output is not None and output.resolve().is_relative_to(path.resolve()) and _has_own_page(output):
        passed_over = PassedOver(_removed(passed_over.files, Path(page.NAME).suffix), passed_over.folders)
    candidates, repeated = _unique(candidates)
    sources = list(_without_translations(candidates, path, output=output, is_list=is_list, known_outputs=known_outputs))
    if not sources:
        raise DataError(_nothing_found(spec, path, skipped_own_outputs=len(candidates)))
    return FoundInputs(sources, len(candidates) - len(sources), tuple(repeated), passed_over)


def _standard_input(stream: IO[bytes] | None) -> bytes:
    """Return all bytes of `stream`, or of standard input if `stream` is None.

    Raises:
        DataError: standard input is closed.
    """
    if stream is None and sys.stdin is None:
        raise DataError("input=-: standard input is closed: pipe a list of paths into the command")
    return (stream or sys.stdin.buffer).read()


def names(folder: Path) -> list[Path]:
    """Return the paths of all photos below a folder, relative to that folder.

    Raises:
        DataError: the folder is missing, has no photos, or contains a file or subfolder that cannot be read.
    """
    if folder.is_file():
        raise DataError(f"{printable(folder.absolute())} is a file: give a folder of pictures")
    if not folder.is_dir():
        raise DataError(f"no folder {printable(folder.absolute())}: {nearest_existing(folder)}")
    sources = find(os.fspath(folder)).sources
    for source in sources:
        if source.reason:
            raise DataError(f"{printable(source.path)}: {source.reason}")
    return [source.name for source in sources]


def all_names(folder: Path) -> list[InputFile]:
    """Return the image files in a folder and its subfolders.

    A file with several names, because of links, is returned once for each name.
    """
    return _in_folder(folder, Path())[0]


def one_file(path: Path) -> InputFile:
    """Return the file at `path`; its `reason` is not empty if it cannot be read."""
    return _source(path, Path(path.name))


def folded(path: Path) -> str:
    """Return a path with normalized Unicode (NFC) and folded case, since some file systems ignore such differences."""
    return unicodedata.normalize("NFC", os.fspath(path)).casefold()


def _in_folder(folder: Path, prefix: Path) -> tuple[list[InputFile], PassedOver]:
    """Return the photos below a folder, and counts of the other files.

    A photo that links make reachable through several paths is returned once for each path. A subfolder that cannot be
    listed is returned among the photos, with a `reason`.

    Args:
        folder: folder to search.
        prefix: path that is prepended to each photo's path relative to `folder`, to give `InputFile.name`.
    """
    contents = listing(folder, endings=ENDINGS)
    photos = [
        InputFile(folder / name, prefix / name, size, modified_ns, reason)
        for name, size, modified_ns, reason in contents.candidates
    ]
    repeated = [_source(folder / name, prefix / name) for name in contents.repeated]
    unlisted = [
        InputFile(folder / name, prefix / name, reason=f"this folder cannot be listed: {reason}")
        for name, reason in contents.unlisted.items()
    ]
    others = contents.passed_over
    passed_over = PassedOver(others.files, _removed(others.folders, FOLDER, count=others.folders[FOLDER]))
    return photos + repeated + unlisted, passed_over


def _removed(counts: Counter[str], key: str, *, count: int = 1) -> Counter[str]:
    """Return the counts with `count` fewer of `key`; counts of 0 are left out."""
    return counts - Counter({key: count})


def _single(path: Path) -> InputFile:
    """Return the photo at a path; raise a DataError if the file name does not have the ending of an image format."""
    if path.suffix.lower() not in ENDINGS and path.is_file():
        raise DataError(
            f"{printable(path.absolute())} does not end like a picture ({FORMATS}) or a list of them ({LIST})"
        )
    return _source(path, Path(path.name))


def _source(path: Path, name: Path) -> InputFile:
    try:
        status = path.stat()
    except OSError as error:
        return InputFile(path, name, reason="a link to nothing" if path.is_symlink() else error.strerror or str(error))
    reason = special_file_reason(status.st_mode)
    if not reason and path.suffix.lower() not in ENDINGS:
        reason = f"does not end like a picture ({FORMATS})"
    return InputFile(path, name, status.st_size, status.st_mtime_ns, reason)


def _matching(pattern: Path) -> list[InputFile]:
    """Return the photos that match a pattern; their names are relative to `a/b` if the pattern is `a/b/**/*.jpg`."""
    root = Path(*_until_magic(pattern.parts))
    rest = pattern.parts[len(root.parts) :]
    if not root.is_dir():
        raise DataError(f"no folder {printable(root.absolute())}: {nearest_existing(root)}")
    photos, _ = _in_folder(root, Path())
    return [source for source in photos if _matches(source.name.parts, rest)]


def _until_magic(parts: Iterable[str]) -> Iterator[str]:
    """Yield the parts of a path before the first part with a wildcard."""
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path, or a folder above it, matches a pattern; `**` matches any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _from_list_file(path: Path) -> tuple[list[InputFile], PassedOver]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from None
    return _from_list(content, printable(path), folder=path.parent, allow_zeros=False)


def _from_list(
    content: bytes, list_name: str, *, folder: Path, allow_zeros: bool
) -> tuple[list[InputFile], PassedOver]:
    """Return the photos that a list of paths names, and count the other files in the folders that it names.

    The names of the photos are relative to the current folder if that folder contains all paths, else to the deepest
    folder that contains all paths.

    Args:
        content: bytes of the list.
        list_name: name of the list in error messages.
        folder: folder that contains the list.
        allow_zeros: whether zero bytes may separate paths.
    """
    paths = path_lists.entries(content, list_name, allow_zeros=allow_zeros)
    path_lists.check_places(paths, folder, list_name)

    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - removes .. and follows no link
    root = _common_folder(absolute)
    sources: list[InputFile] = []
    passed_over = PassedOver()
    for path, absolute_path in zip(paths, absolute, strict=True):
        name = absolute_path.relative_to(root)
        if path.is_dir():
            photos, others = _in_folder(path, name)
            sources += photos
            passed_over = passed_over.plus(others)
        else:
            sources.append(_source(path, name))
    return sources, passed_over


def _common_folder(paths: list[Path]) -> Path:
    """Return the current folder if it contains all paths, else the deepest folder that contains all paths."""
    current = Path.cwd()
    if all(path.is_relative_to(current) for path in paths):
        return current
    return Path(os.path.commonpath([path.parent for path in paths]))


def _has_own_page(output: Path) -> bool:
    """Return whether an output folder contains a contact sheet of this program."""
    return (output / page.NAME).is_file() and page.is_own_page(output / page.NAME)


def _unique(candidates: Iterable[InputFile]) -> tuple[list[InputFile], list[Path]]:
    """Return each photo of `candidates` once, sorted by name, and all further paths that lead to these photos.

    If the same path occurs twice, the repetition is not among the further paths.
    """
    seen: dict[tuple[int, int] | Path, set[Path]] = {}
    unique, repeated = [], []
    for source in sorted(candidates, key=lambda source: source.name.parts):
        identity = identity_of(source.path) or source.path
        if identity not in seen:
            unique.append(source)
        elif source.path not in seen[identity]:
            repeated.append(source.path)
        seen.setdefault(identity, set()).add(source.path)
    return unique, repeated


def identity_of(path: Path) -> tuple[int, int] | None:
    """Return the device and inode numbers of a file, equal for all paths to the file; None if no file exists."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _without_translations(
    candidates: Iterable[InputFile], root: Path, *, output: Path | None, is_list: bool, known_outputs: KnownOutputs
) -> Iterator[InputFile]:
    """Yield the photos that are not translations of earlier commands.

    If the input is a folder or a pattern, all files in the output folder are left out, and so are the files that
    `known_outputs` returns for each subfolder of the input. If the input is a list, only the files that `known_outputs`
    returns for the output folder are left out: a command such as `find` may have listed them together with the photos.

    Args:
        candidates: photos found in the input.
        root: path that the user gave as input.
        output: output folder; treated as None if `root` lies in it.
        is_list: whether the input is a list of paths.
        known_outputs: see `find`.
    """
    inside = None if output is None or root.resolve().is_relative_to(output.resolve()) else output.resolve()
    known: dict[Path, frozenset[str]] = {}
    for source in candidates:
        folder = source.path.parent
        in_output = inside is not None and folder.resolve().is_relative_to(inside)
        if in_output and not is_list:
            continue
        below_input = [folder, *folder.parents][: len(source.name.parts) - 1]
        holders = below_input if not is_list else [output] if in_output and output is not None else []
        for holder in holders:
            if holder not in known:
                known[holder] = frozenset(known_outputs(holder))
        if not any(_within(source.path, holder) in known[holder] for holder in holders):
            yield source


def _within(path: Path, folder: Path) -> str:
    """Return a path relative to a folder that contains it, with forward slashes."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.resolve().relative_to(folder.resolve()).as_posix()


def _nothing_found(spec: str, path: Path, *, skipped_own_outputs: int) -> str:
    """Return the error message for an input without photos.

    Args:
        spec: input as the user gave it, see `find`.
        path: `spec` as a path.
        skipped_own_outputs: number of files in the input that were skipped as translations of earlier commands.
    """
    if skipped_own_outputs:
        return (
            f"all {skipped_own_outputs:,} pictures of {printable(path)} are translations that an earlier command made"
        )
    if path.is_dir():
        return f"no pictures ({FORMATS}) in {printable(path.absolute())}, which contains {list_contents(path)}"
    if spec == STANDARD_INPUT:
        return f"standard input lists no pictures ({FORMATS})"
    return f"no pictures ({FORMATS}) match {printable(path)}"
