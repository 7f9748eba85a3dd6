"""Which pictures are meant: one file, a folder, a pattern, a list of paths."""

import fnmatch
import glob
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import list_contents, listing, nearest_existing, printable, special_file_reason
from cyclestyle.images import file_formats
from cyclestyle.photoset import path_lists

FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC"  # in words, what `ENDINGS` says
ENDINGS = file_formats.ENDINGS | {
    ".heic",
    ".heif",
    ".hif",
}  # a telephone's pictures are never passed over without a word
STANDARD_INPUT = "-"
LIST = ".txt"


Own = Callable[[Path], Collection[str]]  # of an output folder: the names of translations that are known to be in it


class InputFile(NamedTuple):
    """A picture that is to be translated."""

    path: Path
    name: Path  # relative: under which its translation stands in the output
    size: int = 0  # bytes
    modified_ns: int = 0
    reason: str = ""  # why it cannot be read; empty where nothing is known against it


class FoundInputs(NamedTuple):
    """What was found."""

    sources: list[InputFile]
    skipped_own_outputs: int  # pictures that are translations of earlier commands, and are not translated again


def find(
    wanted: str, *, output: Path | None = None, own: Own = lambda _: (), stream: IO[bytes] | None = None
) -> FoundInputs:
    """The pictures that `wanted` means, each once, in an order that depends on names alone.

    Args:
        wanted: a picture; a folder, searched with all that lies below it; a pattern such as `photos/**/*.jpg`; a .txt
            file with a path on each line, see `lists.entries`; or `-`, for the same on standard input, where paths may
            also be separated by zero bytes, as `find -print0` does it. Among the paths may be folders.
        output: what is found in it by searching folders is passed over.
        own: so are translations that other folders below the input are known to hold.
        stream: standard input, where it is another.

    Raises:
        DataError: there are no pictures; or a list that cannot be decoded, or that names a folder above its own.
    """
    path = Path(wanted)
    is_named = False  # one by one: then nothing is passed over but what was certainly translated
    if wanted == STANDARD_INPUT:
        content = (stream or sys.stdin.buffer).read()
        is_named, found = True, _listed(content, "standard input", folder=Path(), zeros=True)
    elif path.is_dir():
        found = list(_below(path, Path()))
    elif path.is_file() and path.suffix.lower() == LIST:
        is_named, found = True, _list_file(path)
    elif os.path.lexists(path):
        return FoundInputs([_single(path)], 0)
    elif glob.has_magic(wanted):
        found = _matching(path)
    else:
        raise DataError(f"no picture or folder {printable(path.absolute())}: {nearest_existing(path)}")

    found = _once(found)
    kept = list(_foreign(found, path, output=output, is_named=is_named, own=own))
    if not kept:
        raise DataError(_nothing(wanted, path, skipped_own_outputs=len(found)))
    return FoundInputs(kept, len(found) - len(kept))


def names(folder: Path) -> list[Path]:
    """The names of all pictures below a folder.

    Raises:
        DataError: no such folder, no pictures in it, or something there that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {printable(folder.absolute())}: {nearest_existing(folder)}")
    found = find(os.fspath(folder)).sources
    for source in found:
        if source.reason:
            raise DataError(f"{printable(source.path)}: {source.reason}")
    return [source.name for source in found]


def _below(folder: Path, prefix: Path) -> Iterator[InputFile]:
    """What is in a folder; its names begin with `prefix`."""
    found = listing(folder, endings=ENDINGS)
    for name, size, modified_ns, reason in found.candidates:
        yield InputFile(folder / name, prefix / name, size, modified_ns, reason)
    for name, reason in found.unlisted.items():
        yield InputFile(folder / name, prefix / name, reason=f"this folder cannot be listed: {reason}")


def _single(path: Path) -> InputFile:
    """A picture that was asked for by its name."""
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
    """What a pattern finds; names are relative to the folder before its first special character."""
    fixed = Path(*_until_magic(pattern.parts))
    rest = pattern.parts[len(fixed.parts) :]
    if not fixed.is_dir():
        return []
    return [source for source in _below(fixed, Path()) if _matches(source.name.parts, rest)]


def _until_magic(parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a name fits a pattern, or lies below a folder that does; `**` is any number of folders."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(_matches(parts[skip:], pattern[1:]) for skip in range(len(parts)))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _list_file(path: Path) -> list[InputFile]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror}") from None
    return _listed(content, printable(path), folder=path.parent, zeros=False)


def _listed(content: bytes, whose: str, *, folder: Path, zeros: bool) -> list[InputFile]:
    """What a list of paths names; names are relative to the current folder, or to the one that holds them all.

    Args:
        folder: that the list is in.
        zeros: whether zero bytes may separate paths.
    """
    paths = path_lists.entries(content, whose, zeros=zeros)
    path_lists.check_places(paths, folder, whose)

    whole = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - takes .. away and follows no link
    root = _common(whole)
    found: list[InputFile] = []
    for path, place in zip(paths, whole, strict=True):
        name = place.relative_to(root)
        if path.is_dir():
            found += _below(path, name)
        else:
            found.append(_source(path, name))
    return found


def _common(places: list[Path]) -> Path:
    here = Path.cwd()
    if all(place.is_relative_to(here) for place in places):
        return here
    return Path(os.path.commonpath([place.parent for place in places]))


def _once(found: Iterable[InputFile]) -> list[InputFile]:
    """Each picture once, however often it was named, and each name once."""
    seen: set[tuple[int, int] | Path] = set()
    kept = []
    for source in sorted(found, key=lambda one: one.name.parts):
        identity = identity_of(source.path) or source.path
        if identity not in seen:
            seen.add(identity)
            kept.append(source)
    return kept


def identity_of(path: Path) -> tuple[int, int] | None:
    """The same for all names of a file; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _foreign(
    found: Iterable[InputFile], root: Path, *, output: Path | None, is_named: bool, own: Own
) -> Iterator[InputFile]:
    """The pictures without those that are translations.

    In the output all are, and in other folders below the input those that they are known to hold. Of pictures that were
    named one by one only those are passed over that the output is known to hold: a list may be made by searching.
    """
    inside = None if output is None or root.resolve().is_relative_to(output.resolve()) else output.resolve()
    known: dict[Path, frozenset[str]] = {}
    for source in found:
        folder = source.path.parent
        in_output = inside is not None and folder.resolve().is_relative_to(inside)
        if in_output and not is_named:
            continue
        below_input = [folder, *folder.parents][: len(source.name.parts) - 1]
        holders = below_input if not is_named else [output] if in_output and output is not None else []
        for holder in holders:
            if holder not in known:
                known[holder] = frozenset(own(holder))
        if not any(_within(source.path, holder) in known[holder] for holder in holders):
            yield source


def _within(path: Path, folder: Path) -> str:
    """A path relative to a folder that holds it, with slashes."""
    if path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.resolve().relative_to(folder.resolve()).as_posix()


def _nothing(wanted: str, path: Path, *, skipped_own_outputs: int) -> str:
    if skipped_own_outputs:
        return (
            f"all {skipped_own_outputs:,} pictures of {printable(path)} are translations that an earlier command made"
        )
    if path.is_dir():
        return f"no pictures ({FORMATS}) in {printable(path.absolute())}, which contains {list_contents(path)}"
    if wanted == STANDARD_INPUT:
        return f"standard input lists no pictures ({FORMATS})"
    return f"no pictures ({FORMATS}) match {printable(path)}"
