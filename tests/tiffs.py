"""TIFF encoder for tests, which can write any pixel layout, even a contradictory one."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 7, 5


class Layout(NamedTuple):
    """Pixel layout, as described by the first directory of a TIFF file."""

    bits: int  # bits per sample
    samples: int  # samples per pixel
    photometric: int  # PhotometricInterpretation
    planar: int = 1  # PlanarConfiguration; 2: a plane for each channel
    extra: tuple[int, ...] = ()  # ExtraSamples
    number: int = 1  # SampleFormat; 1: unsigned, 2: signed, 3: floating point

    @property
    def name(self) -> str:
        extra = "".join(map(str, self.extra)) or "none"
        return f"b{self.bits}n{self.number}s{self.samples}p{self.photometric}c{self.planar}x{extra}.tif"


def stored(layout: Layout) -> np.ndarray:
    """Samples of a file with this layout, uint64 (HEIGHT, WIDTH, samples); the same values at each call."""
    seed = [layout.bits, layout.samples, layout.photometric]
    return np.random.default_rng(seed).integers(
        0, 2**layout.bits, (HEIGHT, WIDTH, layout.samples), np.uint64, endpoint=False
    )


def encoded(layout: Layout) -> bytes:
    """Encode a whole file: little-endian, uncompressed, with one strip, or with one strip for each plane."""
    channels = stored(layout)
    planes = [channels] if layout.planar == 1 else [channels[..., index : index + 1] for index in range(layout.samples)]
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
    """Pack rows of samples, each padded to a whole byte."""
    rows = channels.reshape(HEIGHT, -1)
    if bits % 8 == 0 and bits != 24:
        return rows.astype(f"<u{bits // 8}").tobytes()
    binary = (rows[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(binary.astype(np.uint8).reshape(HEIGHT, -1), axis=1).tobytes()


def _file(tags: Sequence[tuple[int, int, Sequence[int]]], strips: Sequence[bytes]) -> bytes:
    """Join the parts of a TIFF file: header, directory, tag values of more than 4 bytes, and strips."""
    formats = {3: "H", 4: "I"}
    behind = 8 + 2 + 12 * len(tags) + 4
    sizes = [struct.calcsize(formats[kind]) * len(values) for _, kind, values in tags]
    first = behind + sum(size + size % 2 for size in sizes if size > 4)
    offsets = [first + sum(map(len, strips[:number])) for number in range(len(strips))]

    table, outside = b"", b""
    for tag, kind, values in tags:
        content = struct.pack(f"<{len(values)}{formats[kind]}", *(offsets if tag == 273 else values))
        field = content.ljust(4, b"\0")
        if len(content) > 4:
            field = struct.pack("<I", behind + len(outside))
            outside += content + b"\0" * (len(content) % 2)
        table += struct.pack("<HHI", tag, kind, len(values)) + field
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + table + bytes(4) + outside + b"".join(strips)
