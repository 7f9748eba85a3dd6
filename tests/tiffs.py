"""TIFF files of any layout, made byte by byte, also of layouts that contradict themselves."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 7, 5


class Layout(NamedTuple):
    """The pixels of a TIFF by its first directory."""

    bits: int
    samples: int
    photometric: int
    planar: int = 1  # 2: a plane for each channel
    extra: tuple[int, ...] = ()  # kinds of the channels beyond the colours
    number: int = 1  # 1 is unsigned, 2 signed, 3 floating point

    @property
    def name(self) -> str:
        extra = "".join(map(str, self.extra)) or "none"
        return f"b{self.bits}n{self.number}s{self.samples}p{self.photometric}c{self.planar}x{extra}.tif"


def stored(layout: Layout) -> np.ndarray:
    """The numbers that a file of this layout holds, unsigned (HEIGHT, WIDTH, samples), the same at each call."""
    seed = [layout.bits, layout.samples, layout.photometric]
    return np.random.default_rng(seed).integers(
        0, 2**layout.bits, (HEIGHT, WIDTH, layout.samples), np.uint64, endpoint=False
    )


def encoded(layout: Layout) -> bytes:
    """A whole file, little-endian, not compressed, in one strip, or one for each plane."""
    channels = stored(layout)
    planes = [channels] if layout.planar == 1 else [channels[..., one : one + 1] for one in range(layout.samples)]
    strips = [_packed(plane, layout.bits) for plane in planes]
    shorts, longs = 3, 4
    tags: list[tuple[int, int, Sequence[int]]] = [
        (256, longs, [WIDTH]), (257, longs, [HEIGHT]), (258, shorts, [layout.bits] * layout.samples),
        (259, shorts, [1]), (262, shorts, [layout.photometric]), (273, longs, [0] * len(strips)),
        (277, shorts, [layout.samples]), (278, longs, [HEIGHT]),
        (279, longs, [len(strip) for strip in strips]), (284, shorts, [layout.planar]),
    ]  # fmt: skip
    if layout.photometric == 3:
        colours = np.random.default_rng(0).integers(0, 2**16, 3 * 2 ** min(layout.bits, 8))
        tags.append((320, shorts, colours.tolist()))
    if layout.extra:
        tags.append((338, shorts, layout.extra))
    if layout.number != 1:
        tags.append((339, shorts, [layout.number] * layout.samples))
    return _file(tags, strips)


def _packed(channels: np.ndarray, bits: int) -> bytes:
    """Rows of numbers, each row filled up to a whole byte."""
    rows = channels.reshape(HEIGHT, -1)
    if bits % 8 == 0 and bits != 24:
        return rows.astype(f"<u{bits // 8}").tobytes()
    ones = (rows[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(ones.astype(np.uint8).reshape(HEIGHT, -1), axis=1).tobytes()


def _file(tags: Sequence[tuple[int, int, Sequence[int]]], strips: Sequence[bytes]) -> bytes:
    """Header, directory, values that do not fit it, strips."""
    formats = {3: "H", 4: "I"}
    behind = 8 + 2 + 12 * len(tags) + 4
    sizes = [struct.calcsize(formats[kind]) * len(values) for _, kind, values in tags]
    at = behind + sum(size + size % 2 for size in sizes if size > 4)
    offsets = [at + sum(map(len, strips[:number])) for number in range(len(strips))]

    table, outside = b"", b""
    for tag, kind, values in tags:
        content = struct.pack(f"<{len(values)}{formats[kind]}", *(offsets if tag == 273 else values))
        field = content.ljust(4, b"\0")
        if len(content) > 4:
            field = struct.pack("<I", behind + len(outside))
            outside += content + b"\0" * (len(content) % 2)
        table += struct.pack("<HHI", tag, kind, len(values)) + field
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + bytes(4) + outside + b"".join(strips)
