"""Lists of paths: how they are encoded, what separates names, and the places that a list may not name."""

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import printable

# The longer marks first: the one of UTF-32 begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, ""),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_QUOTES = ("'", '"')


def entries(content: bytes, whose: str, *, zeros: bool) -> list[Path]:
    """The paths in a list, in its order.

    Lines are UTF-8, or by their byte order mark UTF-16 or UTF-32. Empty lines and those that begin with
    `#` are left out, quotes around a whole line are taken off, and `~` is a home folder. Where zero bytes separate
    names, each name is taken byte by byte.

    Args:
        whose: list it is, for errors.
        zeros: whether zero bytes may separate names, as `find -print0` writes them.

    Raises:
        DataError: it cannot be decoded, or lists nothing.
    """
    encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None and b"\0" in content:
        names = _between_zeros(content, whose, zeros=zeros)
        paths = [Path(os.fsdecode(name)) for name in names]
    else:
        text = _decoded(content, *(encoding or (b"", "")), whose)
        paths = [Path(os.path.expanduser(name)) for name in _names(text)]  # noqa: PTH111 - leaves nobody's ~ alone
    if not paths:
        raise DataError(f"{whose} lists no pictures: give a path on each line")
    return paths


def check_places(paths: Sequence[Path], folder: Path, whose: str) -> None:
    """Refuse paths that hold the list itself and much besides: a root, or any folder above `folder`.

    Links and `..` are followed; `folder` itself is no reason to refuse.

    Args:
        folder: that the list is in.

    Raises:
        DataError: one of the paths is such a place.
    """
    above = {*folder.absolute().parents, *folder.resolve().parents}
    identities = {identity for place in above if (identity := _identity(place)) is not None}
    for path in paths:
        whole = Path(os.path.abspath(path))  # noqa: PTH100 - takes .. away without following links
        if whole.parent == whole or _identity(path) in identities:
            what = "the root of a disk" if whole.parent == whole else f"above {printable(folder.absolute())}"
            raise DataError(
                f"{whose} lists {printable(path)}, which is {what}: is the list damaged? To translate all that is "
                f"there, give input={printable(whole)} itself"
            )


def _between_zeros(content: bytes, whose: str, *, zeros: bool) -> list[bytes]:
    """The names that zero bytes separate.

    Raises:
        DataError: the zero bytes are halves of characters, or separate names where they may not.
    """
    names = [name for name in content.split(b"\0") if name]
    # In UTF-16 every second byte of Latin letters, slashes and line ends is zero; a few folders may be called 1, 2, 3.
    is_single = [len(name) == 1 for name in names]
    if (sum(is_single) * 2 > len(names) > 3) or any(name in (b"\n", b"\r") for name in names):
        raise DataError(f"{whose} looks like UTF-16 without a byte order mark: save it as UTF-8")
    if not zeros:
        raise DataError(
            f"{whose} holds zero bytes, which separate names on standard input only: give a path on each line, or "
            "input=- and the list as standard input"
        )
    return names


def _decoded(content: bytes, mark: bytes, encoding: str, whose: str) -> str:
    """The text behind a byte order mark; without an encoding, as the file system spells names."""
    content = content.removeprefix(mark)
    try:
        text = content.decode(encoding) if encoding else os.fsdecode(content)
    except UnicodeDecodeError:
        raise DataError(f"{whose} is damaged: it begins as {encoding.upper()}, and cannot be decoded so") from None
    if "\0" in text:
        raise DataError(f"{whose} is damaged: it holds zero characters, which no name has")
    return text


def _names(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        bare = line.strip()
        if not bare or bare.startswith("#"):
            continue
        is_quoted = len(bare) > 2 and bare[0] in _QUOTES and bare[-1] == bare[0]
        yield bare[1:-1] if is_quoted else line


def _identity(path: Path) -> tuple[int, int] | None:
    """The same for all names of a file or folder; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
