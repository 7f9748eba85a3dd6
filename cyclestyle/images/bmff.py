"""Colour codes in the boxes of HEIC and AVIF files (ISO/IEC 14496-12 and 23008-12)."""

import struct
from collections.abc import Iterator
from typing import IO

_MAX_META = 2**24  # bytes; the boxes that describe an image take a few kB


def colour_codes(stream: IO[bytes]) -> tuple[int, int] | None:
    """Return the colour primaries and the transfer characteristics of the main image, as codes of ITU-T H.273.

    Return None if the file has no such codes.

    Raises:
        struct.error, IndexError: the boxes are damaged.
    """
    meta = _meta(stream)
    boxes = dict(_children(meta, 4))  # 4 bytes of version and flags
    if b"iprp" not in boxes or b"pitm" not in boxes:
        return None
    main = boxes[b"pitm"]
    (item,) = struct.unpack_from(">H" if main[0] == 0 else ">I", main, 4)
    groups = dict(_children(boxes[b"iprp"], 0))
    properties = list(_children(groups.get(b"ipco", b""), 0))
    for number in _associated(groups.get(b"ipma", b""), item):
        kind, data = properties[number - 1] if 0 < number <= len(properties) else (b"", b"")
        if kind == b"colr" and data[:4] == b"nclx":
            primaries, transfer = struct.unpack_from(">HH", data, 4)
            return primaries, transfer
    return None


def _meta(stream: IO[bytes]) -> bytes:
    """Return the content of the `meta` box; empty if there is none."""
    start = 0
    while True:
        stream.seek(start)
        head = stream.read(16)
        if len(head) < 8:
            return b""
        size, kind = struct.unpack_from(">I4s", head)
        skipped = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", head, 8)
            skipped = 16
        if kind == b"meta":
            stream.seek(start + skipped)
            return stream.read(min(size - skipped, _MAX_META) if size else _MAX_META)
        if size < skipped:  # 0 means up to the end of the file
            return b""
        start += size


def _children(content: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and the content of each box in `content`; the first box begins at byte `start`."""
    while start + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, start)
        if size < 8:
            return
        yield kind, content[start + 8 : start + size]
        start += size


def _associated(content: bytes, item: int) -> list[int]:
    """Return the numbers of the properties that an image has; empty if the `ipma` box does not list the image.

    Properties are numbered from 1, in the order of the `ipco` box.

    Args:
        content: content of the `ipma` box, which lists the properties of each image.
        item: id of the image.
    """
    if not content:
        return []
    version, wide = content[0], content[3] & 1
    (count,) = struct.unpack_from(">I", content, 4)
    at = 8
    for _ in range(count):
        (number,) = struct.unpack_from(">I" if version else ">H", content, at)
        at += 4 if version else 2
        entries = content[at]
        values = struct.unpack_from(f">{entries}{'H' if wide else 'B'}", content, at + 1)
        if number == item:
            return [value & (0x7FFF if wide else 0x7F) for value in values]
        at += 1 + entries * (2 if wide else 1)
    return []
