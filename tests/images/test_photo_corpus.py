"""Corpus of unusual photo files: each is read and written correctly, or rejected with the expected reason.

Expected pixels are computed from the arrays from which a file was made, never by the code under test.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from cyclestyle.images import decoding, file_formats, reading, writing
from cyclestyle.images.decoders import Colour
from cyclestyle.images.photo import Metadata
from tests import profiles

tifffile = pytest.importorskip("tifffile", reason="16 bits a channel need the extra `deep`")
imagecodecs = pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")

try:
    import pillow_heif  # noqa: F401
except ImportError:
    HAS_HEIF = False
else:
    HAS_HEIF = True

Make = Callable[[Path], None]
HEIGHT, WIDTH = 24, 40

# Extension -> largest coding error for a smooth image, in 255ths.
LOSSES = {".jpg": 8, ".jpeg": 8, ".webp": 24, ".avif": 8, ".heic": 8}


@dataclass(frozen=True)
class Good:
    """Test case: a readable photo file, and its expected content."""

    name: str
    make: Make
    pixels: np.ndarray  # (H, W, 3), uint8 or uint16, upright, sRGB
    alpha: np.ndarray | None = None
    near: float = 0  # largest allowed error of the pixels, in steps of the dtype
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bad:
    """Test case: an unreadable photo file, and the reason expected in its error."""

    name: str
    make: Make
    reason: str  # regular expression


# -- images -----------------------------------------------------------------------------------------------------------


def scene(full: int = 255) -> np.ndarray:
    """Return an RGB gradient with a different colour in each corner, smooth so that lossy formats change it little."""
    across, down = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
    values = np.stack([0.1 + 0.8 * across, 0.9 - 0.7 * down, 0.2 + 0.3 * across + 0.4 * down], axis=-1)
    return (values.astype(float) * full).round().astype(np.uint8 if full == 255 else np.uint16)


def fading(full: int = 255) -> np.ndarray:
    """Return an alpha channel that rises from transparent at the left to opaque at the right."""
    return np.linspace(0, full, WIDTH)[None].repeat(HEIGHT, 0).round().astype(np.uint8 if full == 255 else np.uint16)


RGB, RGB16, ALPHA, ALPHA16 = scene(), scene(65535), fading(), fading(65535)
GREY, GREY16 = RGB[..., 2], RGB16[..., 2]
BITS = (np.indices((HEIGHT, WIDTH)).sum(0) % 3 == 0).astype(np.uint8)
INDICES = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 7 % 6).astype(np.uint8)
PALETTE = np.array([[10, 20, 30], [200, 100, 50], [0, 255, 0], [90, 90, 200], [255, 255, 255], [1, 2, 3]], np.uint8)
CMYK = np.dstack([255 - RGB, RGB[..., 0] // 3])
CMYK16 = np.dstack([65535 - RGB16, RGB16[..., 0] // 3])
CORNERS = np.repeat(np.repeat(np.array(np.meshgrid([0, 1], [0, 1], [0, 1], [0, 1])).reshape(4, 2, 8), 8, 1), 8, 2)
CORNERS = CORNERS.transpose(1, 2, 0).astype(np.uint8)  # (16, 64, 4): the 16 combinations of inks


def to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def cmyk_to_rgb(inks: np.ndarray) -> np.ndarray:
    full = np.iinfo(inks.dtype).max
    return ((full - inks[..., :3].astype(float)) * (full - inks[..., 3:]) / full).round().astype(inks.dtype)


def as_numbers(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    full = np.iinfo(like.dtype).max
    return (values.astype(float) * full).round().clip(0, full).astype(like.dtype)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the pixels that a file with the given EXIF orientation has to store to show an upright image."""
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a),
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    return np.ascontiguousarray(turn(pixels))


# -- files ------------------------------------------------------------------------------------------------------------


def exif_with(orientation: int = 1) -> bytes:
    """Return EXIF data with a camera model, a comment, a place and an orientation."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "SECRET camera", orientation
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0SECRET comment"
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (48.0, 12.0, 30.0)
    return exif.tobytes()


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><SECRET/></x:xmpmeta>'


def pillow(image: Image.Image | np.ndarray, format_name: str, **options: Any) -> Make:
    def make(path: Path) -> None:
        first = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        if "append_images" in options:  # copies: Pillow changes frames while writing
            options["append_images"] = [frame.copy() for frame in options["append_images"]]
        first.save(path, format_name, **options)

    return make


def image_of_mode(mode: str, channels: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, channels.shape[1::-1], np.ascontiguousarray(channels).tobytes())


def one_bit() -> Image.Image:
    return Image.fromarray(BITS * 255).convert("1")


def palette() -> Image.Image:
    image = image_of_mode("P", INDICES)
    image.putpalette(PALETTE.tobytes())
    return image


def tiff(channels: np.ndarray, **options: Any) -> Make:
    options = {"photometric": "rgb", "metadata": None, "software": False, **options}

    def make(path: Path) -> None:
        tifffile.imwrite(path, channels, **options)

    return make


def bytes_of(content: bytes) -> Make:
    def make(path: Path) -> None:
        path.write_bytes(content)

    return make


def changed(make: Make, change: Callable[[bytes], bytes]) -> Make:
    def make_changed(path: Path) -> None:
        make(path)
        path.write_bytes(change(path.read_bytes()))

    return make_changed


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    channels: np.ndarray, *, bits: int, kind: int, chunks: bytes = b"", size: tuple[int, int] | None = None
) -> Make:
    """Return a function that writes `channels` as a PNG without an image library; samples below 8 bits share a byte.

    Args:
        bits: bits per sample.
        kind: PNG colour type.
        chunks: encoded chunks to insert between header and pixels.
        size: width and height to write to the header; None for the actual size.
    """
    height, width = channels.shape[:2]
    if bits < 8:
        binary = np.unpackbits(channels.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :]
        rows = [np.packbits(row).tobytes() for row in binary.reshape(height, -1)]
    else:
        rows = [row.astype(f">u{bits // 8}").tobytes() for row in channels]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), bits, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    content = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return bytes_of(b"\x89PNG\r\n\x1a\n" + content)


def moved_behind(kind: bytes) -> Callable[[bytes], bytes]:
    """Return a function that moves the chunk `kind` of an encoded PNG to the end, just before the chunk IEND."""

    def move(data: bytes) -> bytes:
        at = data.index(kind) - 4
        (length,) = struct.unpack(">I", data[at : at + 4])
        return data[:at] + data[at + length + 12 : -12] + data[at : at + length + 12] + data[-12:]

    return move


def profile_chunk(profile: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))


def bmp_with_alpha(path: Path) -> None:
    """Write a BMP with header version 4, which defines a mask for alpha."""
    rows = np.dstack([RGB[..., ::-1], ALPHA])[::-1].tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, WIDTH, HEIGHT, 1, 32, 3, len(rows), 2835, 2835, 0, 0)
    head += struct.pack("<IIIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000, 0x73524742) + bytes(48)
    path.write_bytes(struct.pack("<2sIII", b"BM", 14 + len(head) + len(rows), 0, 14 + len(head)) + head + rows)


def twelve_bit_grey(path: Path) -> None:
    rows = np.packbits(np.unpackbits((GREY16 >> 4).astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 4:])
    body = rows.tobytes()
    tags = [
        (256, WIDTH),
        (257, HEIGHT),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, HEIGHT),
        (279, len(body)),
    ]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + table + bytes(4)
    )


def multiplied(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    full = np.iinfo(colours.dtype).max
    return np.dstack([(colours * (alpha[..., None] / full)).round().astype(colours.dtype), alpha])


HALF, HALF16 = ALPHA // 2 + 127, ALPHA16 // 2 + 32767  # alpha from 0.5 to 1, so that premultiplying discards few bits
CLEAR = np.where(INDICES == 1, 0, 255).astype(np.uint8)  # alpha of a palette with one transparent colour
SHADES = np.array([255, 0, 128, 7, 200, 90], np.uint8)
KEY16 = RGB16.copy()
KEY16[3, 4] = (1, 2, 3)
KEYED16 = np.where((KEY16 == (1, 2, 3)).all(-1), 0, 65535).astype(np.uint16)
KEY = RGB.copy()
KEY[3, 4] = (1, 2, 3)
KEYED = np.where((KEY == (1, 2, 3)).all(-1), 0, 255).astype(np.uint8)
FOUR, TWO = (GREY // 16), (GREY // 64)
LAB = np.dstack(
    [RGB[..., 0], (RGB[..., 1] // 10).astype(np.int8).view(np.uint8), (GREY // 10).astype(np.int8).view(np.uint8)]
)
LAB_VALUES = np.dstack([LAB[..., 0] / 255 * 100, LAB[..., 1].view(np.int8), LAB[..., 2].view(np.int8)])
FRAMES = {"save_all": True, "append_images": [Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]}
FINE = {"quality": 98, "subsampling": 0}
EXACT = {"lossless": True, "exact": True}

GIF_NOTE = "GIF is read only: another format is written"


def eight_bits() -> list[Good]:
    from_palette = PALETTE[INDICES]
    return [
        Good("grey1.png", pillow(one_bit(), "PNG"), to_rgb(BITS * 255)),
        Good("grey2.png", png(TWO, bits=2, kind=0), to_rgb(TWO * 85)),
        Good("grey4.png", png(FOUR, bits=4, kind=0), to_rgb(FOUR * 17)),
        Good("grey8.png", pillow(GREY, "PNG"), to_rgb(GREY)),
        Good(
            "grey1key.png",
            png(BITS, bits=1, kind=0, chunks=chunk(b"tRNS", b"\0\1")),
            to_rgb(BITS * 255),
            (1 - BITS) * 255,
        ),
        Good(
            "grey2key.png",
            png(TWO, bits=2, kind=0, chunks=chunk(b"tRNS", b"\0\1")),
            to_rgb(TWO * 85),
            np.where(TWO == 1, 0, 255).astype(np.uint8),
        ),
        Good(
            "grey4key.png",
            png(FOUR, bits=4, kind=0, chunks=chunk(b"tRNS", b"\0\5")),
            to_rgb(FOUR * 17),
            np.where(FOUR == 5, 0, 255).astype(np.uint8),
        ),
        Good(
            "grey8key.png",
            png(GREY, bits=8, kind=0, chunks=chunk(b"tRNS", struct.pack(">H", GREY[5, 5]))),
            to_rgb(GREY),
            np.where(GREY[5, 5] == GREY, 0, 255).astype(np.uint8),
        ),
        Good("la.png", pillow(np.dstack([GREY, ALPHA]), "PNG"), to_rgb(GREY), ALPHA),
        Good("palette.png", pillow(palette(), "PNG"), from_palette),
        Good("palette8.png", pillow(palette(), "PNG", bits=8), from_palette),
        Good("palettekey.png", pillow(palette(), "PNG", transparency=1), from_palette, CLEAR),
        Good(
            "palettealpha.png", pillow(palette(), "PNG", transparency=SHADES.tobytes()), from_palette, SHADES[INDICES]
        ),
        Good("rgb.png", pillow(RGB, "PNG"), RGB),
        Good("rgbkey.png", pillow(KEY, "PNG", transparency=(1, 2, 3)), KEY, KEYED),
        Good("rgba.png", pillow(np.dstack([RGB, ALPHA]), "PNG"), RGB, ALPHA),
        Good("capitals.PNG", pillow(RGB, "PNG"), RGB),
        Good("animated.png", pillow(RGB, "PNG", **FRAMES), RGB, notes=("the first of 3 frames",)),
        Good("grey.jpg", pillow(GREY, "JPEG", **FINE), to_rgb(GREY), near=4),
        Good("rgb.jpg", pillow(RGB, "JPEG", **FINE), RGB, near=6),
        Good("rgb.jpeg", pillow(RGB, "JPEG", quality=98, subsampling="4:2:0"), RGB, near=8),
        Good("progressive.jpg", pillow(RGB, "JPEG", **FINE, progressive=True), RGB, near=6),
        Good("cmyk.jpg", pillow(image_of_mode("CMYK", CMYK), "JPEG", **FINE), cmyk_to_rgb(CMYK), near=8),
        Good("telephone.jpg", pillow(RGB, "MPO", **FINE, **FRAMES), RGB, near=6),
        Good("lossless.webp", pillow(RGB, "WEBP", **EXACT), RGB),
        Good("lossy.webp", pillow(RGB, "WEBP", quality=98), RGB, near=10),
        Good("rgba.webp", pillow(np.dstack([RGB, ALPHA]), "WEBP", **EXACT), RGB, ALPHA),
        Good("animated.webp", pillow(RGB, "WEBP", lossless=True, **FRAMES), RGB, notes=("the first of 3 frames",)),
        Good("grey1.tif", pillow(one_bit(), "TIFF"), to_rgb(BITS * 255)),
        Good("fax.tif", pillow(one_bit(), "TIFF", compression="group4"), to_rgb(BITS * 255)),
        Good("grey.tif", pillow(GREY, "TIFF"), to_rgb(GREY)),
        Good("negative.tif", tiff(255 - GREY, photometric="miniswhite"), to_rgb(GREY)),
        Good("la.tif", pillow(np.dstack([GREY, ALPHA]), "TIFF"), to_rgb(GREY), ALPHA),
        Good(
            "lapremultiplied.tif",
            tiff(
                multiplied(GREY[..., None], HALF),
                photometric="minisblack",
                extrasamples=["assocalpha"],
                planarconfig="contig",
            ),
            to_rgb(GREY),
            HALF,
            near=2,
        ),
        Good("palette.tif", pillow(palette(), "TIFF"), from_palette),
        Good("rgb.tiff", pillow(RGB, "TIFF"), RGB),
        *(Good(f"{way}.tif", pillow(RGB, "TIFF", compression=f"tiff_{way}"), RGB) for way in ("lzw", "deflate")),
        Good("packbits.tif", pillow(RGB, "TIFF", compression="packbits"), RGB),
        Good("jpeg.tif", pillow(RGB, "TIFF", compression="jpeg", quality=98), RGB, near=8),
        Good("ycbcr.tif", pillow(Image.fromarray(RGB).convert("YCbCr"), "TIFF"), RGB, near=3),
        Good("lab.tif", tiff(LAB, photometric="cielab"), as_numbers(profiles.lab_as_srgb(LAB_VALUES), RGB), near=1),
        Good("cmyk.tif", pillow(image_of_mode("CMYK", CMYK), "TIFF"), cmyk_to_rgb(CMYK), near=1),
        Good("rgba.tif", pillow(np.dstack([RGB, ALPHA]), "TIFF"), RGB, ALPHA),
        Good("rgbx.tif", tiff(np.dstack([RGB, ALPHA]), extrasamples=["unspecified"]), RGB),
        Good("premultiplied.tif", tiff(multiplied(RGB, HALF), extrasamples=["assocalpha"]), RGB, HALF, near=2),
        Good("planes.tif", tiff(RGB.transpose(2, 0, 1), planarconfig="separate"), RGB),
        Good("tiles.tif", tiff(RGB, tile=(16, 16)), RGB),
        Good("bigendian.tif", tiff(RGB, byteorder=">"), RGB),
        Good("big.tif", tiff(RGB, bigtiff=True), RGB),
        Good("pages.tif", pillow(RGB, "TIFF", **FRAMES), RGB, notes=("the first of 3 pages",)),
        Good("grey1.bmp", pillow(one_bit(), "BMP"), to_rgb(BITS * 255)),
        Good("grey.bmp", pillow(GREY, "BMP"), to_rgb(GREY)),
        Good("palette.bmp", pillow(palette(), "BMP"), from_palette),
        Good("rgb.bmp", pillow(RGB, "BMP"), RGB),
        Good("rgba.bmp", bmp_with_alpha, RGB, ALPHA),
        Good("palette.gif", pillow(palette(), "GIF"), from_palette, notes=(GIF_NOTE,)),
        Good("key.gif", pillow(palette(), "GIF", transparency=1), from_palette, CLEAR, notes=(GIF_NOTE,)),
        Good("grey.gif", pillow(GREY, "GIF"), to_rgb(GREY), notes=(GIF_NOTE,)),
        Good(
            "animated.gif",
            pillow(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
            to_rgb(GREY),
            notes=("the first of 2 frames", GIF_NOTE),
        ),
        Good("rgb.avif", pillow(RGB, "AVIF", quality=98, subsampling="4:4:4"), RGB, near=5),
        Good("rgba.avif", pillow(np.dstack([RGB, ALPHA]), "AVIF", quality=98, subsampling="4:4:4"), RGB, ALPHA, near=5),
        Good("grey.avif", pillow(GREY, "AVIF", quality=98), to_rgb(GREY), near=5),
        Good(
            "tenbits.avif",
            bytes_of(imagecodecs.avif_encode(RGB16 >> 6, level=98, bitspersample=10, pixelformat="444")),
            RGB,
            near=6,
            notes=("10 bits a channel became 8",),
        ),
        Good("png.jpg", pillow(RGB, "PNG"), RGB, notes=("PNG in spite of its name",)),
        Good("jpeg.png", pillow(RGB, "JPEG", **FINE), RGB, near=6, notes=("JPEG in spite of its name",)),
        Good("one.png", pillow(RGB[:1, :1], "PNG"), RGB[:1, :1]),
        Good("thin.tif", pillow(RGB[:, :1], "TIFF"), RGB[:, :1]),
    ]


def heic() -> list[Good]:
    cases = [
        Good("rgb.heic", pillow(RGB, "HEIF", quality=98, chroma=444), RGB, near=6),
        Good("rgba.heif", pillow(np.dstack([RGB, ALPHA]), "HEIF", quality=98, chroma=444), RGB, ALPHA, near=6),
        Good("grey.heic", pillow(GREY, "HEIF", quality=98), to_rgb(GREY), near=6),
        Good(
            "heic.jpg", pillow(RGB, "HEIF", quality=98, chroma=444), RGB, near=6, notes=("HEIC in spite of its name",)
        ),
    ]
    for number in range(2, 9):
        make = pillow(oriented(RGB, number), "HEIF", quality=98, chroma=444, exif=exif_with(number))
        cases.append(Good(f"oriented{number}.heic", make, RGB, near=6))
    return cases


def sixteen_bits() -> list[Good]:
    rgba = np.dstack([RGB16, ALPHA16])
    grey = {"photometric": "minisblack"}
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    grey_key = chunk(b"tRNS", struct.pack(">H", GREY16[5, 5]))
    with_alpha = {**grey, "extrasamples": ["unassalpha"], "planarconfig": "contig"}
    return [
        Good("grey16.png", pillow(GREY16, "PNG"), to_rgb(GREY16)),
        Good(
            "grey16key.png",
            png(GREY16, bits=16, kind=0, chunks=grey_key),
            to_rgb(GREY16),
            np.where(GREY16[5, 5] == GREY16, 0, 65535).astype(np.uint16),
        ),
        Good("la16.png", png(np.dstack([GREY16, ALPHA16]), bits=16, kind=4), to_rgb(GREY16), ALPHA16),
        Good("rgb16.png", png(RGB16, bits=16, kind=2), RGB16),
        Good("rgb16key.png", png(KEY16, bits=16, kind=2, chunks=key), KEY16, KEYED16),
        Good("rgba16.png", png(rgba, bits=16, kind=6), RGB16, ALPHA16),
        Good("grey16.tif", pillow(GREY16, "TIFF"), to_rgb(GREY16)),
        Good("grey16big.tif", tiff(GREY16, byteorder=">", **grey), to_rgb(GREY16)),
        Good("negative16.tif", tiff(65535 - GREY16, photometric="miniswhite"), to_rgb(GREY16)),
        Good("la16.tif", tiff(np.dstack([GREY16, ALPHA16]), **with_alpha), to_rgb(GREY16), ALPHA16),
        Good("rgb16.tif", tiff(RGB16), RGB16),
        *(Good(f"{way}16.tif", tiff(RGB16, compression=way, predictor=True), RGB16) for way in ("lzw", "zlib", "zstd")),
        Good("lzma16.tif", tiff(RGB16, compression="lzma"), RGB16),
        Good("packbits16.tif", tiff(RGB16, compression="packbits"), RGB16),
        Good("rgba16.tif", tiff(rgba, extrasamples=["unassalpha"]), RGB16, ALPHA16),
        Good("rgbx16.tif", tiff(rgba, extrasamples=["unspecified"]), RGB16),
        Good(
            "premultiplied16.tif", tiff(multiplied(RGB16, HALF16), extrasamples=["assocalpha"]), RGB16, HALF16, near=2
        ),
        Good("cmyk16.tif", tiff(CMYK16, photometric="separated"), cmyk_to_rgb(CMYK16), near=1),
        Good("planes16.tif", tiff(RGB16.transpose(2, 0, 1), planarconfig="separate"), RGB16),
        Good("tiles16.tif", tiff(RGB16, tile=(16, 16), compression="zlib"), RGB16),
        Good("bigendian16.tif", tiff(RGB16, byteorder=">"), RGB16),
        Good("big16.tif", tiff(RGB16, bigtiff=True), RGB16),
        Good("pages16.tif", tiff(np.stack([RGB16, RGB16 // 2])), RGB16, notes=("the first of 2 pages",)),
        Good("rgb16.jpg", png(RGB16, bits=16, kind=2), RGB16, notes=("PNG in spite of its name",)),
    ]


def all_orientations() -> list[Good]:
    """Return test cases in all EXIF orientations, with metadata that must not reach the output."""
    cases = []
    for number in range(1, 9):
        stored, exif = oriented(RGB, number), exif_with(number)
        cases += [
            Good(
                f"oriented{number}.jpg",
                pillow(stored, "JPEG", **FINE, exif=exif, xmp=XMP, comment=b"SECRET"),
                RGB,
                near=6,
            ),
            Good(f"oriented{number}.png", pillow(stored, "PNG", exif=exif), RGB),
            Good(f"oriented{number}.tif", pillow(stored, "TIFF", exif=exif, description="SECRET"), RGB),
            Good(f"oriented{number}.webp", pillow(stored, "WEBP", exif=exif, xmp=XMP, **EXACT), RGB),
            Good(
                f"oriented{number}.avif",
                pillow(stored, "AVIF", quality=98, subsampling="4:4:4", exif=exif, xmp=XMP),
                RGB,
                near=5,
            ),
        ]
        stored16 = oriented(np.dstack([RGB16, ALPHA16]), number)
        chunks = chunk(b"eXIf", exif[6:]) + chunk(b"tEXt", b"Comment\0SECRET")
        tags = [(274, "H", 1, number, True), (271, "s", 0, "SECRET camera", True)]
        cases += [
            Good(f"oriented{number}at16.png", png(stored16, bits=16, kind=6, chunks=chunks), RGB16, ALPHA16),
            Good(
                f"oriented{number}at16.tif", tiff(stored16, extrasamples=["unassalpha"], extratags=tags), RGB16, ALPHA16
            ),
        ]
    exif = chunk(b"eXIf", exif_with(6)[6:])
    return [
        *cases,
        Good(
            "late.png",
            changed(png(oriented(RGB, 6), bits=8, kind=2, chunks=exif), moved_behind(b"eXIf")),
            RGB,
        ),
        Good(
            "late16.png",
            changed(png(oriented(RGB16, 6), bits=16, kind=2, chunks=exif), moved_behind(b"eXIf")),
            RGB16,
        ),
        Good("held9.jpg", pillow(RGB, "JPEG", **FINE, exif=exif_with(9)), RGB, near=6),
        Good(
            "noexif.png",
            pillow(RGB, "PNG", exif=b"Exif\0\0garbage!"),
            RGB,
            notes=("its EXIF data are damaged: left out, and the picture is taken for upright",),
        ),
    ]


def with_profiles() -> list[Good]:
    """Return test cases with embedded colour profiles."""
    wide, grey, inks = profiles.wide(), profiles.linear_grey(), profiles.inks()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    seen, seen16 = (as_numbers(profiles.wide_as_srgb(a / np.iinfo(a.dtype).max), a) for a in (RGB, RGB16))
    bright, bright16 = (as_numbers(profiles.srgb_encoded(a / np.iinfo(a.dtype).max), a) for a in (GREY, GREY16))
    mixed = as_numbers(profiles.odd_inks(CORNERS), RGB)
    adobe, p3 = profiles.adobe(), profiles.p3()
    from_adobe = as_numbers(profiles.adobe_as_srgb(RGB / 255), RGB)
    from_p3, from_p3_16 = (as_numbers(profiles.p3_as_srgb(a / np.iinfo(a.dtype).max), a) for a in (RGB, RGB16))
    unreadable = ("its colour profile cannot be read: taken for sRGB",)
    other = ("its colour profile is for another kind of colours: taken for sRGB",)
    wide_palette = as_numbers(profiles.wide_as_srgb(PALETTE / 255), RGB)
    rgba = np.dstack([RGB, ALPHA])
    return [
        Good("wide.png", pillow(RGB, "PNG", icc_profile=wide), seen, near=2),
        Good("widepalette.png", pillow(palette(), "PNG", icc_profile=wide), wide_palette[INDICES], near=2),
        Good("widealpha.png", pillow(rgba, "PNG", icc_profile=wide), seen, ALPHA, near=2),
        Good("wide.jpg", pillow(RGB, "JPEG", **FINE, icc_profile=wide), seen, near=16),
        Good("wide.tif", pillow(RGB, "TIFF", icc_profile=wide), seen, near=2),
        Good("wide.webp", pillow(RGB, "WEBP", icc_profile=wide, **EXACT), seen, near=2),
        Good("wide.avif", pillow(RGB, "AVIF", quality=98, subsampling="4:4:4", icc_profile=wide), seen, near=13),
        Good("adobe.png", pillow(RGB, "PNG", icc_profile=adobe), from_adobe, near=2),
        Good("adobe.jpg", pillow(RGB, "JPEG", **FINE, icc_profile=adobe), from_adobe, near=20),
        Good("p3.png", pillow(RGB, "PNG", icc_profile=p3), from_p3, near=2),
        Good("p3.webp", pillow(RGB, "WEBP", icc_profile=p3, **EXACT), from_p3, near=2),
        Good("p316.tif", tiff(RGB16, iccprofile=p3), from_p3_16, near=150),
        Good("wide16.tif", tiff(RGB16, iccprofile=wide), seen16, near=150),
        Good("wide16.png", png(RGB16, bits=16, kind=2, chunks=profile_chunk(wide)), seen16, near=150),
        Good(
            "wideoriented.jpg",
            pillow(oriented(RGB, 6), "JPEG", **FINE, icc_profile=wide, exif=exif_with(6)),
            seen,
            near=16,
        ),
        Good(
            "widegrey.png",
            pillow(GREY, "PNG", icc_profile=wide),
            as_numbers(profiles.wide_as_srgb(to_rgb(GREY) / 255), RGB),
            near=2,
        ),
        Good("linear.png", pillow(GREY, "PNG", icc_profile=grey), to_rgb(bright), near=2),
        Good(
            "linearalpha.png", pillow(np.dstack([GREY, ALPHA]), "PNG", icc_profile=grey), to_rgb(bright), ALPHA, near=2
        ),
        Good("linear.jpg", pillow(GREY, "JPEG", **FINE, icc_profile=grey), to_rgb(bright), near=9),
        Good("linear16.tif", tiff(GREY16, photometric="minisblack", iccprofile=grey), to_rgb(bright16), near=60),
        Good("linear1.tif", pillow(one_bit(), "TIFF", icc_profile=grey), to_rgb(BITS * 255)),
        Good("srgb.png", pillow(RGB, "PNG", icc_profile=srgb), RGB),
        Good("nearlysrgb.png", pillow(RGB, "PNG", icc_profile=profiles.nearly_srgb()), RGB),
        Good("srgb.tif", pillow(RGB, "TIFF", icc_profile=srgb), RGB),
        Good("srgb16.png", png(RGB16, bits=16, kind=2, chunks=profile_chunk(srgb)), RGB16),
        Good("inks.tif", pillow(image_of_mode("CMYK", CORNERS * 255), "TIFF", icc_profile=inks), mixed, near=1),
        Good("inks.jpg", pillow(image_of_mode("CMYK", CORNERS * 255), "JPEG", **FINE, icc_profile=inks), mixed, near=6),
        Good(
            "inks16.tif",
            tiff(CORNERS.astype(np.uint16) * 65535, photometric="separated", iccprofile=inks),
            as_numbers(profiles.odd_inks(CORNERS), RGB16),
            near=150,
        ),
        Good("broken.png", pillow(RGB, "PNG", icc_profile=b"no profile" * 20), RGB, notes=unreadable),
        Good("cut.tif", pillow(RGB, "TIFF", icc_profile=wide[:200]), RGB, notes=unreadable),
        Good("broken16.png", png(RGB16, bits=16, kind=2, chunks=profile_chunk(b"x" * 200)), RGB16, notes=unreadable),
        Good(
            "brokeninks.tif",
            pillow(image_of_mode("CMYK", CMYK), "TIFF", icc_profile=inks[:150]),
            cmyk_to_rgb(CMYK),
            near=1,
            notes=unreadable,
        ),
        Good("other.png", pillow(RGB, "PNG", icc_profile=grey), RGB, notes=other),
        Good(
            "otherinks.tif",
            pillow(image_of_mode("CMYK", CMYK), "TIFF", icc_profile=wide),
            cmyk_to_rgb(CMYK),
            near=1,
            notes=other,
        ),
    ]


def bad() -> list[Bad]:
    noisy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noisy16 = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    whole: dict[str, Make] = {
        "jpg": pillow(noisy, "JPEG"),
        "png": pillow(noisy, "PNG"),
        "webp": pillow(noisy, "WEBP"),
        "tif": pillow(noisy, "TIFF"),
        "lzw.tif": pillow(noisy, "TIFF", compression="tiff_lzw"),
        "bmp": pillow(noisy, "BMP"),
        "gif": pillow(noisy[..., 0], "GIF"),
        "avif": pillow(noisy, "AVIF"),
        "16.png": png(noisy16, bits=16, kind=2),
        "16.tif": tiff(noisy16),
        "zlib16.tif": tiff(noisy16, compression="zlib"),
        "strips16.tif": tiff(noisy16, compression="lzw", rowsperstrip=8),
    }
    damaged = "damaged or unreadable"
    cases = [
        Bad(
            f"cut{part}.{name}",
            changed(make, lambda data, p=part: data[: len(data) * p // 4]),
            f"{damaged}|not a picture",
        )
        for name, make in whole.items()
        for part in (1, 3)
    ]
    cases += [Bad(f"empty.{name}", bytes_of(b""), "empty, not a picture") for name in ("jpg", "png", "tif", "gif")]

    def flipped(data: bytes) -> bytes:
        return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]

    def no_counts(data: bytes) -> bytes:  # sets the lengths of the strips to zero; some decoders return black
        at = data.index(struct.pack("<HHI", 279, 4, 1)) + 8
        return data[:at] + bytes(4) + data[at + 4 :]

    grey = {"photometric": "minisblack"}
    return [
        *cases,
        Bad("flipped.png", changed(whole["png"], flipped), "checksum of a part b'IDAT' is wrong"),
        Bad("flipped16.png", changed(whole["16.png"], flipped), "checksum of a part b'IDAT' is wrong"),
        Bad("flipped16.tif", changed(whole["zlib16.tif"], flipped), damaged),
        Bad("nocounts16.tif", changed(whole["16.tif"], no_counts), "parts of it are missing|damaged"),
        Bad("page.jpg", bytes_of(b"<!DOCTYPE html><p>404"), "a web page, not a picture"),
        Bad("text.png", bytes_of(b"just words"), "^not a picture that can be read"),
        Bad("zip.tif", bytes_of(b"PK\x03\x04" + bytes(100)), "^not a picture that can be read"),
        Bad("start.png", bytes_of(b"\x89PNG\r\n\x1a\n"), "not a picture|damaged"),
        Bad("start.tif", bytes_of(b"II*\0"), "not a picture|damaged"),
        Bad("pipe.png", os.mkfifo, "not a regular file but a pipe"),
        Bad("folder.png", Path.mkdir, "not a regular file but a folder"),
        Bad("nowhere.png", lambda path: path.symlink_to("gone"), "No such file"),
        Bad("device.png", lambda path: path.symlink_to("/dev/zero"), "not a regular file but a device"),
        Bad("circle.png", lambda path: path.symlink_to(path), "symbolic links"),
        Bad("bomb.png", png(RGB, bits=8, kind=2, size=(60_000, 60_000)), r"60,000 x 60,000 pixels are more than"),
        Bad("bomb16.png", png(RGB16, bits=16, kind=2, size=(60_000, 60_000)), r"60,000 x 60,000 pixels are more than"),
        Bad(
            "bomb.bmp",
            changed(whole["bmp"], lambda data: data[:18] + struct.pack("<ii", 50_000, 50_000) + data[26:]),
            r"50,000 x 50,000 pixels are more than",
        ),
        Bad(
            "bomb16.tif",
            changed(
                tiff(noisy16, byteorder=">"),
                lambda data: re.sub(
                    re.escape(struct.pack(">HHI", 257, 4, 1)) + b"....",
                    struct.pack(">HHII", 257, 4, 1, 10**9),
                    data,
                    flags=re.DOTALL,
                ),
            ),
            r"64 x 1,000,000,000 pixels are more than",
        ),
        Bad("float.tif", tiff(RGB.astype(np.float32) / 255), "floating-point colours are not supported"),
        Bad("floatgrey.tif", pillow(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "floating-point colours"),
        Bad("half.tif", tiff(RGB.astype(np.float16) / 255), "floating-point colours"),
        Bad("double.tif", tiff(GREY.astype(np.float64), **grey), "floating-point colours"),
        Bad("signed.tif", tiff(GREY16.astype(np.int16), **grey), "signed or complex colours are not supported"),
        Bad("integers.tif", tiff(GREY16.astype(np.uint32), **grey), "32 bits a channel are not supported"),
        Bad("signedintegers.tif", pillow(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), "signed or complex"),
        Bad("rgb32.tif", tiff(RGB16.astype(np.uint32)), "32 bits a channel are not supported, save it with 8 or 16"),
        Bad("long.tif", tiff(GREY16.astype(np.uint64), **grey), "64 bits a channel are not supported"),
        Bad("twelve.tif", twelve_bit_grey, "12 bits a channel are not supported"),
        Bad("lab16.tif", tiff(RGB16, photometric="cielab"), "neither grey, RGB nor CMYK"),
    ]


GOOD = [*eight_bits(), *sixteen_bits(), *all_orientations(), *with_profiles()]
BAD = bad()
HEIC = heic() if HAS_HEIF else []


def test_corpus_is_large_and_has_unique_names() -> None:
    names = [case.name for case in (*GOOD, *BAD, *HEIC)]
    assert len(set(names)) == len(names) >= 120
    assert len(GOOD) >= 150
    assert len(BAD) >= 50


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_good_file_is_read_and_written(tmp_path: Path, case: Good) -> None:
    check(tmp_path, case)


@pytest.mark.skipif(not HAS_HEIF, reason="HEIC needs the extra `heic`")
@pytest.mark.parametrize("format_name", ["keep", "heic"])
@pytest.mark.parametrize("case", HEIC, ids=lambda case: case.name)
def test_heic_file_is_read_and_written(tmp_path: Path, case: Good, format_name: file_formats.Format) -> None:
    check(tmp_path, case, format_name)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_bad_file_is_rejected_with_expected_reason(tmp_path: Path, case: Bad) -> None:
    case.make(tmp_path / case.name)
    with pytest.raises(decoding.ImageError) as caught:
        reading.read(tmp_path / case.name)
    assert re.search(case.reason, caught.value.reason)
    assert caught.value.path == tmp_path / case.name


TAGGED = with_profiles()
UNTAGGED = [*eight_bits(), *sixteen_bits(), *all_orientations(), *BAD, *HEIC]


TURNED = [case for case in TAGGED if case.name.endswith((".png", ".jpg")) and "oriented" not in case.name]


@pytest.mark.parametrize(
    ("case", "orientation"),
    [*((case, 1) for case in TAGGED), *((case, 6) for case in TURNED)],
    ids=lambda value: str(value) if isinstance(value, int) else value.name,
)
def test_training_reads_same_pixels_as_translation_of_file_with_profile(
    tmp_path: Path, case: Good, orientation: int
) -> None:
    path = tmp_path / case.name
    case.make(path)
    if orientation != 1:
        tag_orientation(path, orientation)
    photo = reading.read(path)
    full = np.iinfo(photo.pixels.dtype).max
    expected = (photo.pixels.astype(float) * 255 / full).round().astype(np.uint8)
    if photo.alpha is not None:
        opaque = Image.merge("RGBA", [*Image.fromarray(expected).split(), Image.fromarray(photo.alpha)])
        expected = np.asarray(Image.alpha_composite(Image.new("RGBA", opaque.size, "#336699"), opaque).convert("RGB"))
    assert np.array_equal(np.asarray(reading.read_8_bit(path, colour="managed", transparent_as="#336699")), expected)
    assert reading.probe(path, colour="managed")[:2] == expected.shape[1::-1]


def tag_orientation(path: Path, orientation: int) -> None:
    """Add an EXIF orientation to a PNG or JPEG file without coding its pixels again."""
    content, exif = path.read_bytes(), exif_with(orientation).removeprefix(b"Exif\0\0")
    if path.suffix == ".png":
        path.write_bytes(content[:33] + chunk(b"eXIf", exif) + content[33:])  # after the header
    else:
        segment = b"Exif\0\0" + exif
        path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:])


@pytest.mark.parametrize("case", UNTAGGED, ids=lambda case: case.name)
def test_earlier_decoder_reads_untagged_file_alike_with_managed_and_raw_colour(
    tmp_path: Path, case: Good | Bad
) -> None:
    case.make(tmp_path / case.name)
    managed, raw = (outcome(tmp_path / case.name, colour) for colour in ("managed", "raw"))
    assert managed == raw == outcome_in_pillow(tmp_path / case.name)


@pytest.mark.parametrize("case", TAGGED, ids=lambda case: case.name)
def test_earlier_decoder_ignores_profiles_if_colour_option_is_raw(tmp_path: Path, case: Good) -> None:
    case.make(tmp_path / case.name)
    assert outcome(tmp_path / case.name, "raw") == outcome_in_pillow(tmp_path / case.name)


def outcome(path: Path, colour: Colour) -> tuple[object, ...]:
    """Return size and pixels of an image as earlier versions read it; for an unreadable file, only the text `error`."""
    try:
        image = reading.read_8_bit(path, colour=colour, decoder="earlier")
    except decoding.ImageError:
        return ("error",)
    return image.mode, image.size, image.tobytes()


def outcome_in_pillow(path: Path) -> tuple[object, ...]:
    """Return the result that `outcome` had before profiles were used: all decoding is done by Pillow."""
    if not path.is_file():  # a pipe would block
        return ("error",)
    try:
        with Image.open(path, formats=decoding.FORMATS) as image:
            if image.width * image.height > decoding.MAX_PIXELS:
                return ("error",)
            decoding.decode(image)
            upright = decoding.to_rgb(ImageOps.exif_transpose(image))
    except Exception:  # decoders raise nearly any type
        return ("error",)
    return upright.mode, upright.size, upright.tobytes()


def check(folder: Path, case: Good, format_name: file_formats.Format = "keep") -> None:
    case.make(folder / case.name)
    photo = reading.read(folder / case.name)
    assert photo.pixels.dtype == case.pixels.dtype
    assert all(a is None or (a.flags.c_contiguous and a.flags.writeable) for a in (photo.pixels, photo.alpha))
    assert distance(photo.pixels, case.pixels) <= case.near
    assert photo.notes == case.notes
    assert photo.metadata == Metadata()
    if case.alpha is None:
        assert photo.alpha is None
    else:
        assert photo.alpha is not None
        assert photo.alpha.dtype == case.alpha.dtype
        assert distance(photo.alpha, case.alpha) <= (4 if case.name.endswith((".avif", ".heif")) else 0)

    full = np.iinfo(photo.pixels.dtype).max
    target = folder / "out" / file_formats.target_name(Path(case.name), format_name)
    target.parent.mkdir()
    notes = writing.write(replace(photo, pixels=full - photo.pixels), target)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    check_written(target, full - case.pixels, case.alpha, case.near, notes)


def check_written(
    target: Path, pixels: np.ndarray, alpha: np.ndarray | None, near: float, notes: tuple[str, ...]
) -> None:
    """Check that a written file contains `pixels`, using decoders other than the code under test."""
    ending, full = target.suffix.lower(), np.iinfo(pixels.dtype).max
    expected, losses = pixels.astype(float), []
    if alpha is not None and ending in (".jpg", ".jpeg", ".bmp"):
        losses.append("has no transparency: laid over white")
        expected, alpha = full - (full - expected) * (alpha[..., None] / full), None
    sixteen_bit = pixels.dtype == np.uint16 and ending in (".png", ".tif", ".tiff")
    if pixels.dtype == np.uint16 and not sixteen_bit:
        losses.append("has 8 bits a channel: 16 became 8")
        expected, near = expected / 257, near / 257 + 0.5
    assert [note.split(" ", 1)[1] for note in notes] == losses

    with Image.open(target) as image:
        assert image.size == pixels.shape[1::-1]
        if ending != ".bmp":
            check_profile(image.info["icc_profile"])
        assert not image.getexif().get_ifd(0x8769)
        assert not image.getexif().get_ifd(0x8825)
        assert b"SECRET" not in target.read_bytes()
        assert image.getexif().get(0x0112, 1) == 1
        assert image.mode == ("RGB" if alpha is None else "RGBA")
        channels = np.asarray(image)
    if sixteen_bit:
        channels = imagecodecs.png_decode(target.read_bytes()) if ending == ".png" else tifffile.imread(target)
        assert channels.dtype == np.uint16
    # Lossy formats may change the colours of transparent pixels.
    opacity = 1 if alpha is None or ending not in LOSSES else alpha[..., None] / full
    tolerance = near + LOSSES.get(ending, 0.5 if losses else 0)
    assert distance(channels[..., :3] * opacity, expected * opacity) <= tolerance
    if alpha is not None:
        assert distance(channels[..., 3], alpha) <= (8 if ending in (".avif", ".heic", ".heif") else 0)


def check_profile(profile: bytes) -> None:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    assert opened.profile_description == "sRGB built-in"
    assert opened.creation_date is not None
    assert opened.creation_date.year == 2026


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(float) - b.astype(float)).max())
