"""Faults of PNG files that browsers ignore: damaged or oversized ancillary chunks, which contain no pixels."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from PIL import PngImagePlugin

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 2**26  # bytes of one text or profile, decompressed; some profiles of printers take 4 MB
_MAX_ALL_TEXTS = 2**28  # bytes of all texts of a file
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"pHYs": 9, b"cICP": 4, b"acTL": 8, b"fcTL": 26}
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_BAD_PROFILE = "its colour profile cannot be read: taken for sRGB"

# Pillow's limits, 1 MB and 64 MB, raise an error for intact files; larger texts are left out below.
PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT
PngImagePlugin.MAX_TEXT_MEMORY = 2 * _MAX_ALL_TEXTS


class Chunk(NamedTuple):
    """Position of a chunk of a PNG file."""

    kind: bytes  # four letters, such as `IDAT`
    start: int  # bytes from the start of the file to the chunk, whose first 8 bytes are length and kind
    length: int  # bytes of data, between `kind` and the checksum


def chunks(stream: IO[bytes]) -> Iterator[Chunk]:
    """Yield the chunks of a PNG file, without reading their data; stop at the end or at a truncated chunk."""
    end = stream.seek(0, io.SEEK_END)
    start = len(SIGNATURE)
    while start + 12 <= end:
        stream.seek(start)
        length, kind = struct.unpack(">I4s", stream.read(8))
        if start + 12 + length > end:
            return
        yield Chunk(kind, start, length)
        start += 12 + length


def data_of(stream: IO[bytes], chunk: Chunk) -> bytes:
    """Return the data of a chunk."""
    stream.seek(chunk.start + 8)
    return stream.read(chunk.length)


def without_faults(stream: IO[bytes]) -> tuple[IO[bytes], tuple[str, ...]]:
    """Return a PNG without its faulty ancillary chunks, and notes about them to show to the photo's owner.

    Browsers ignore these chunks, too. A chunk is faulty if it has a wrong checksum, a wrong length, an unreadable
    profile, or an unreadable or far too long text. Critical chunks, which contain the pixels, are kept in any case. If
    no chunk is faulty, or the file is not a PNG, the result is `stream` itself, positioned at its start.
    """
    stream.seek(0)
    is_png = stream.read(len(SIGNATURE)) == SIGNATURE
    faults = _faults(stream) if is_png else {}
    stream.seek(0)
    if not faults:
        return stream, ()
    content = stream.read()
    pieces, start = [], 0
    for chunk in faults:
        pieces.append(content[start : chunk.start])
        start = chunk.start + 12 + chunk.length
    return io.BytesIO(b"".join([*pieces, content[start:]])), tuple(dict.fromkeys(faults.values()))


def _faults(stream: IO[bytes]) -> dict[Chunk, str]:
    """Return the faulty ancillary chunks of a PNG, in the order of the file, each with a note about its fault."""
    faults, texts = {}, 0
    for chunk in chunks(stream):
        name = chunk.kind.decode("latin-1")
        if chunk.kind.upper() in _CRITICAL or not chunk.kind[:1].islower():
            continue
        if _checksum(stream, chunk) != stream.read(4):
            faults[chunk] = f"the checksum of its part {name} is wrong: the part is ignored"
        elif chunk.length != _LENGTHS.get(chunk.kind, chunk.length):
            faults[chunk] = f"its part {name} has a wrong length: the part is ignored"
        elif chunk.kind == b"iCCP" and not _has_profile(data_of(stream, chunk)):
            faults[chunk] = _BAD_PROFILE
        elif chunk.kind in _TEXT_STARTS:
            count = _text_length(stream, chunk)
            if count is None or count > MAX_TEXT or texts + count > _MAX_ALL_TEXTS:
                why = "cannot be read" if count is None else "is too long"
                faults[chunk] = f"a text in its part {name} {why}: the text is ignored"
            else:
                texts += count
    return faults


def _checksum(stream: IO[bytes], chunk: Chunk) -> bytes:
    """Compute the checksum of a chunk; leave `stream` positioned at the checksum that the file contains."""
    stream.seek(chunk.start + 4)
    checksum, remaining = 0, 4 + chunk.length
    while piece := stream.read(min(remaining, 2**20)):
        checksum = zlib.crc32(piece, checksum)
        remaining -= len(piece)
    return checksum.to_bytes(4, "big")


def _has_profile(data: bytes) -> bool:
    """Return whether the data of an iCCP chunk can be decompressed; the profile itself is not checked."""
    name, _, rest = data.partition(b"\0")
    if not name or rest[:1] != b"\0":
        return False
    return 0 < len(_decompressed(rest[1:]) or b"") <= MAX_TEXT


def _text_length(stream: IO[bytes], chunk: Chunk) -> int | None:
    """Return the length of a text chunk after decompression, bytes; None if the chunk cannot be read.

    If the text is longer than `MAX_TEXT`, the result is some number above `MAX_TEXT`.
    """
    if chunk.length > MAX_TEXT:
        return chunk.length
    data = data_of(stream, chunk)
    start = _TEXT_STARTS[chunk.kind](data)
    if start is None:
        return None
    if start == 0:
        return len(data)
    text = _decompressed(data[start:])
    return None if text is None else len(text)


def _compressed_start(data: bytes) -> int | None:
    """Return the position of the compressed text in the data of a zTXt chunk; None if the data are invalid."""
    keyword, zero, rest = data.partition(b"\0")
    return len(keyword) + 2 if zero and rest[:1] == b"\0" else None


def _international_start(data: bytes) -> int | None:
    """Return the position of the compressed text in the data of an iTXt chunk.

    Return 0 if the text is not compressed, and None if the data are invalid.
    """
    keyword, zero, rest = data.partition(b"\0")
    parts = rest[2:].split(b"\0", 2)
    if not zero or len(rest) < 2 or len(parts) < 3:
        return None
    if rest[0] == 0:
        return 0
    return len(keyword) + 3 + len(parts[0]) + 1 + len(parts[1]) + 1 if rest[1] == 0 else None


def _plain_start(data: bytes) -> int:
    del data
    return 0


# Kind of a text chunk -> function that returns the position of the compressed text in its data, 0 if it is plain.
_TEXT_STARTS: dict[bytes, Callable[[bytes], int | None]] = {
    b"tEXt": _plain_start,
    b"zTXt": _compressed_start,
    b"iTXt": _international_start,
}


def _decompressed(data: bytes) -> bytes | None:
    """Decompress up to `MAX_TEXT` + 1 bytes; return None for damaged data."""
    try:
        return zlib.decompressobj().decompress(data, MAX_TEXT + 1)
    except zlib.error:
        return None
