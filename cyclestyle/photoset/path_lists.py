"""Parsing of lists of photo paths, and a check that a list names no folder above the folder that contains the list."""

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import printable

# Byte order marks with their encodings. UTF-32 comes before UTF-16, whose mark is the start of the UTF-32 mark.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_QUOTES = ("'", '"')


def entries(content: bytes, list_name: str, *, allow_zeros: bool) -> list[Path]:
    """Return the paths in a list, in the order of the list.

    The list has one path per line. It is decoded as UTF-8, or as UTF-16 or UTF-32 if it begins with the byte order
    mark of that encoding. A path that is not valid UTF-8 may have been written in Windows-1252. It is decoded so if the
    decoded path exists, and the original bytes name no file; else the bytes are used unchanged. Empty lines and lines
    that begin with `#` are skipped, quotes around a whole line are removed, and a leading `~` is replaced with the home
    folder.

    The paths in a list may also be separated by zero bytes instead of line ends. These paths are used unchanged.

    Args:
        content: bytes of the list.
        list_name: name of the list in error messages.
        allow_zeros: whether zero bytes may separate the paths, as in the output of `find -print0`.

    Raises:
        DataError: the list is empty, cannot be decoded, or has zero bytes although `allow_zeros` is false.
    """
    encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        names = _between_zeros(content, list_name, allow_zeros=allow_zeros)
        paths = [Path(os.fsdecode(name)) for name in names]
    else:
        text = _decode(content, *(encoding or (b"", "")), list_name)
        paths = [Path(os.path.expanduser(_existing(name))) for name in _names(text)]  # noqa: PTH111 - leaves an unknown user's ~ as it is
    if not paths:
        raise DataError(f"{list_name} lists no pictures: give a path on each line")
    return paths


def check_places(paths: Sequence[Path], folder: Path, list_name: str) -> None:
    """Check that a list of paths names no root folder, and no folder above the folder that contains the list.

    A list that names such a folder is probably damaged. Links and `..` in the paths are resolved.

    Args:
        paths: paths in the list.
        folder: folder that contains the list; the list may name this folder itself.
        list_name: name of the list in error messages.

    Raises:
        DataError: a path is a root folder or a folder above `folder`.
    """
    above = {*folder.absolute().parents, *folder.resolve().parents}
    identities = {identity for place in above if (identity := _identity(place)) is not None}
    for path in paths:
        absolute = Path(os.path.abspath(path))  # noqa: PTH100 - removes .. without following links
        if absolute.parent == absolute or _identity(path) in identities:
            place = "the root of a disk" if absolute.parent == absolute else f"above {printable(folder.absolute())}"
            raise DataError(
                f"{list_name} lists {printable(path)}, which is {place}: is the list damaged? To translate all that is "
                f"there, give input={printable(absolute)} itself"
            )


def _between_zeros(content: bytes, list_name: str, *, allow_zeros: bool) -> list[bytes]:
    """Split a list into paths at its zero bytes.

    Raises:
        DataError: the zero bytes are halves of UTF-16 characters, or are not allowed because `allow_zeros` is false.
    """
    names = [name for name in content.split(b"\0") if name]
    # In UTF-16, each Latin letter, slash and line end has a zero byte, so the text falls into names of one byte. Up to
    # three names of one byte are accepted, since folders may be called 1, 2, 3.
    is_single = [len(name) == 1 for name in names]
    if (sum(is_single) * 2 > len(names) > 3) or any(name in (b"\n", b"\r") for name in names):
        raise DataError(f"{list_name} looks like UTF-16 without a byte order mark: save it as UTF-8")
    if not allow_zeros:
        raise DataError(
            f"{list_name} holds zero bytes, which separate names on standard input only: give a path on each line, or "
            "input=- and the list as standard input"
        )
    return names


def _decode(content: bytes, mark: bytes, encoding: str, list_name: str) -> str:
    """Remove the byte order mark `mark` from a list, and decode the rest.

    An empty `encoding` means the encoding that the system uses for file names.

    Raises:
        DataError: the list cannot be decoded, or contains zero characters.
    """
    content = content.removeprefix(mark)
    try:
        text = content.decode(encoding) if encoding else os.fsdecode(content)
    except UnicodeDecodeError:
        raise DataError(f"{list_name} is damaged: it begins as {encoding.upper()}, and cannot be decoded so") from None
    if "\0" in text:
        raise DataError(f"{list_name} is damaged: it holds zero characters, which no name has")
    return text


def _names(text: str) -> Iterator[str]:
    """Yield the paths in the text of a list; comments, empty lines and enclosing quotes are left out."""
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        is_quoted = len(bare) > 2 and bare[0] in _QUOTES and bare[-1] == bare[0]
        yield bare[1:-1] if is_quoted else line


def _existing(name: str) -> str:
    """Return the path `name` unchanged, or decoded as Windows-1252.

    It is decoded if `name` is not valid UTF-8 and does not exist, but the decoded path does.
    """
    content = os.fsencode(name)
    if os.path.lexists(content) or content.isascii():
        return name
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        other = content.decode("cp1252", errors="surrogateescape")
        return other if os.path.lexists(other) else name
    return name


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode numbers of a file or folder, equal for all paths to it; None if nothing exists."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
