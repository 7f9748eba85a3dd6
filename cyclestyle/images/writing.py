"""From sRGB pixels to a file in the format that its name says."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.images import colour, file_formats, high_bit_depth, tiff
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.metadata import with_size
from cyclestyle.images.photo import Metadata, Photo, PixelArray, largest

_ANY = 2**31 - 1
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)  # within EXIF data


class _Format(NamedTuple):
    """What a kind of file can hold, and how it is made."""

    encoded: Callable[[PixelArray, Metadata, int], bytes]  # (H, W, 3 or 4), what it can hold, quality
    alpha: bool = True
    deep: bool = False  # 16 bits a channel
    longest: int = _ANY  # px a side
    exif: int = _ANY  # bytes, as of `xmp`
    xmp: int = _ANY
    dpi: bool = True
    doubtful: bool = False  # its encoder makes files, now and then, that nothing can decode


def write(photo: Photo, path: Path, *, quality: int = 95) -> tuple[str, ...]:
    """Write a photo in the format that the name's ending says, whole or not at all; equal photos give equal bytes.

    The file takes its name once its size and its header were read back and are right; a HEIC is decoded as well.

    Args:
        path: see `target_name`.
        quality: of JPEG, WebP, AVIF and HEIC, 1 to 100.

    Returns:
        what its owner should know, a few words each.

    Raises:
        PictureError: the format cannot hold the picture, or what was written cannot be opened again.
        OSError: of the disk.
    """
    assert photo.pixels.dtype in (np.uint8, np.uint16), photo.pixels.dtype
    assert photo.alpha is None or photo.alpha.dtype == photo.pixels.dtype, photo.alpha.dtype
    name, kind = file_formats.BY_ENDING[path.suffix.lower()], _FORMATS[file_formats.BY_ENDING[path.suffix.lower()]]
    height, width = photo.pixels.shape[:2]
    if max(height, width) > kind.longest:
        raise ImageError(
            path,
            f"{width:,} x {height:,} pixels do not fit a {name} (at most {kind.longest:,} a side): choose format=png",
        )

    channels, notes = _fit_to_format(photo, kind, name)
    metadata, more = _fitting_metadata(photo.metadata, kind, name, width, height)
    if channels.dtype == np.uint16:
        high_bit_depth.check_libraries(path)
    try:
        content = kind.encoded(channels, metadata, quality)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise nearly anything
        raise ImageError(path, f"cannot be written as a {name} ({error}): choose format=png") from None
    with atomic_write(path) as stream:
        stream.write(content)
        stream.flush()
        _verify(Path(stream.name), path, len(content), (width, height))
    return (*notes, *more)


def _verify(written: Path, path: Path, count: int, size: tuple[int, int]) -> None:
    """Raise a PictureError unless a file has so many bytes and opens as a picture of that size.

    Args:
        written: the file.
        path: its final name, whose ending is that of the format.
        size: width and height in px.
    """
    name, kind = file_formats.BY_ENDING[path.suffix.lower()], _FORMATS[file_formats.BY_ENDING[path.suffix.lower()]]
    there = written.stat().st_size
    if there != count:
        raise ImageError(path, f"{there:,} bytes of {count:,} were written: is the disk damaged?", permanent=False)
    try:
        with Image.open(written, formats=(file_formats.pillow_name(name),)) as image:
            if kind.doubtful:
                image.load()
            found = image.size
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        other = "png" if name == "JPEG" else "jpeg"
        raise ImageError(path, f"the {name} cannot be opened again ({error}): choose format={other}") from None
    if found != size:
        raise ImageError(path, f"the {name} has {found[0]} x {found[1]} pixels, not {size[0]} x {size[1]}")


def _fit_to_format(photo: Photo, kind: _Format, name: str) -> tuple[PixelArray, list[str]]:
    """The channels, (H, W, 3) or with alpha (H, W, 4), as a kind of file can hold them, and what was lost."""
    channels, alpha, notes = photo.pixels, photo.alpha, []
    if alpha is not None and kind.alpha:
        channels = np.dstack([channels, alpha])
    elif alpha is not None and alpha.min() < largest(alpha):
        channels = _over_white(channels, alpha)
        notes.append(f"{name} has no transparency: laid over white")
    if channels.dtype == np.uint16 and not kind.deep:
        channels = ((channels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        notes.append(f"{name} has 8 bits a channel: 16 became 8")
    return channels, notes


def _over_white(pixels: PixelArray, alpha: PixelArray) -> PixelArray:
    full = largest(pixels)
    weights = (alpha / np.float32(full))[..., None]
    return (full - (full - pixels) * weights).round().astype(pixels.dtype)


def _fitting_metadata(
    metadata: Metadata, kind: _Format, name: str, width: int, height: int
) -> tuple[Metadata, list[str]]:
    """What a kind of file can hold, true for the picture's size, and what was lost."""
    notes = []
    exif = with_size(metadata.exif, width, height).tobytes() if metadata.exif else b""
    made = replace(metadata, exif=exif)
    if len(exif) > kind.exif:
        made = replace(made, exif=b"")
        notes.append(f"its EXIF data do not fit a {name}: left out")
    if len(metadata.xmp) > kind.xmp:
        made = replace(made, xmp=b"")
        notes.append(f"its XMP data do not fit a {name}: left out")
    if metadata.dpi and not kind.dpi:
        made = replace(made, dpi=None)
        if not made.exif:  # where it may stand as well
            notes.append(f"its resolution does not fit a {name}: left out")
    return made, notes


def _by_pillow(pillow_name: str, **options: Any) -> Callable[[PixelArray, Metadata, int], bytes]:
    """Formats that Pillow writes completely. They are made in memory: its errors of full disks have no number."""

    def encoded(channels: PixelArray, metadata: Metadata, quality: int) -> bytes:
        told: dict[str, Any] = {"quality": quality, "icc_profile": colour.srgb(), **options}
        told |= {"exif": metadata.exif} if metadata.exif else {}
        told |= {"xmp": metadata.xmp} if metadata.xmp else {}
        told |= {"dpi": metadata.dpi} if metadata.dpi else {}
        stream = io.BytesIO()
        Image.fromarray(channels).save(stream, pillow_name, **told)
        return stream.getvalue()

    return encoded


def _png(channels: PixelArray, metadata: Metadata, quality: int) -> bytes:
    del quality
    if channels.dtype == np.uint16:
        return _deep_png(channels, metadata)
    told: dict[str, Any] = {"icc_profile": colour.srgb(), "compress_level": tiff.DEFLATE_LEVEL}
    told |= {"exif": metadata.exif} if metadata.exif else {}
    told |= {"dpi": metadata.dpi} if metadata.dpi else {}
    if metadata.xmp:
        told["pnginfo"] = PngImagePlugin.PngInfo()
        told["pnginfo"].add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    stream = io.BytesIO()
    Image.fromarray(channels).save(stream, "PNG", **told)
    return stream.getvalue()


def _deep_png(channels: PixelArray, metadata: Metadata) -> bytes:
    """Pillow has no 16 bits, imagecodecs no other chunks than those of the pixels."""
    import imagecodecs

    bare = bytes(imagecodecs.png_encode(np.ascontiguousarray(channels), level=tiff.DEFLATE_LEVEL))
    chunks = [(b"iCCP", b"sRGB\0\0" + zlib.compress(colour.srgb()))]
    if metadata.dpi:
        across, down = (round(value / 0.0254) for value in metadata.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    start = 8 + 12 + 13  # signature and header
    return bare[:start] + b"".join(_chunk(kind, data) for kind, data in chunks) + bare[start:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _tiff(channels: PixelArray, metadata: Metadata, quality: int) -> bytes:
    del quality
    exif = Image.Exif()
    exif.load(metadata.exif)
    tags = {tag: exif.get_ifd(tag) if tag in _DIRECTORIES else value for tag, value in exif.items()}
    return tiff.encoded(channels, profile=colour.srgb(), metadata=metadata, exif=tags)


_FORMATS = {
    "PNG": _Format(_png, deep=True),
    "TIFF": _Format(_tiff, deep=True),
    "JPEG": _Format(_by_pillow("JPEG", subsampling=0), alpha=False, longest=65_500, exif=65_533, xmp=65_533 - 29),
    "WebP": _Format(_by_pillow("WEBP"), longest=16_383, dpi=False),
    "BMP": _Format(_by_pillow("BMP"), alpha=False, exif=0, xmp=0),
    # With more threads, or tiles as suit their number, the bytes would depend on the machine.
    "AVIF": _Format(
        _by_pillow("AVIF", subsampling="4:4:4", max_threads=1, autotiling=False), longest=65_536, dpi=False
    ),
    "HEIC": _Format(_by_pillow("HEIF", chroma=444), dpi=False, doubtful=True),
}
