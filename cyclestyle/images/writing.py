"""Writing of photos to files, in the format that the file extension selects, and verification of the written files."""

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
from cyclestyle.images.metadata import iptc_resources, with_size
from cyclestyle.images.photo import Metadata, Photo, PixelArray, largest, to_8_bits

_ANY = 2**31 - 1  # bytes or px; practically no limit
_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)  # nested in EXIF data


class _Format(NamedTuple):
    """Encoder for a file format, and the limits of the format."""

    encoded: Callable[
        [PixelArray, Metadata, int], bytes
    ]  # takes channels (H, W, 1 to 4), metadata within the limits, and quality
    alpha: bool = True
    grey: bool = False  # whether it has grey images, with 1 channel, or 2 with alpha
    grey_alpha_16bit: bool = True  # whether Pillow opens grey images with alpha and 16 bits per channel
    sixteen_bit: bool = False  # whether it can hold 16 bits per channel
    longest: int = _ANY  # longest side, px
    exif: int = _ANY  # bytes
    xmp: int = _ANY  # bytes
    iptc: int = 0  # bytes
    dpi: bool = True
    doubtful: bool = False  # the encoder sometimes produces files that no decoder reads


def write(photo: Photo, path: Path, *, quality: int = 95) -> tuple[str, ...]:
    """Write a photo atomically, in the format that the extension of `path` selects; equal photos give equal bytes.

    The photo is first written to a temporary file. Before this file is renamed to `path`, its length and the image size
    in its header are checked; a HEIC file is also decoded.

    Args:
        path: path of the output file, with an extension that can be written; `file_formats.target_name` returns one.
        quality: quality of JPEG, WebP, AVIF and HEIC files, from 1 to 100; ignored by other formats.

    Returns:
        Notes to show to the photo's owner, a few words each.

    Raises:
        ImageError: the format cannot hold the image, or the written file cannot be opened again.
        OSError: writing failed, for example because the disk is full.
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
    except Exception as error:  # encoders raise nearly any type
        raise ImageError(path, f"cannot be written as a {name} ({error}): choose format=png") from None
    with atomic_write(path) as stream:
        stream.write(content)
        stream.flush()
        _verify(Path(stream.name), path, len(content), (width, height))
    return (*notes, *more)


def _verify(written: Path, path: Path, count: int, size: tuple[int, int]) -> None:
    """Raise an `ImageError` unless the file `written` has `count` bytes and opens as an image with the given size.

    Args:
        written: temporary file to check.
        path: name that the file will get; its extension gives the expected format.
        count: expected length of the file, bytes.
        size: expected width and height of the image, px.
    """
    name, kind = file_formats.BY_ENDING[path.suffix.lower()], _FORMATS[file_formats.BY_ENDING[path.suffix.lower()]]
    actual = written.stat().st_size
    if actual != count:
        raise ImageError(path, f"{actual:,} bytes of {count:,} were written: is the disk damaged?", permanent=False)
    try:
        with Image.open(written, formats=(file_formats.pillow_name(name),)) as image:
            if kind.doubtful:
                image.load()
            actual_size = image.size
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly any type
        if isinstance(error, OSError) and error.errno is not None:
            raise
        other = "png" if name == "JPEG" else "jpeg"
        raise ImageError(path, f"the {name} cannot be opened again ({error}): choose format={other}") from None
    if actual_size != size:
        width, height = actual_size
        raise ImageError(path, f"the {name} has {width} x {height} pixels, not {size[0]} x {size[1]}")


def _fit_to_format(photo: Photo, kind: _Format, name: str) -> tuple[PixelArray, list[str]]:
    """Convert a photo to an array (H, W, channels) that the format `kind` can hold.

    The channels are grey or RGB, followed by alpha if the photo has alpha and the format supports it. Also return notes
    about alpha or bits that the conversion discards. `name` is the name of the format in the notes.
    """
    channels, alpha, notes = photo.pixels, photo.alpha, []
    is_16bit_with_alpha = alpha is not None and channels.dtype == np.uint16
    if channels.shape[2] == 1 and not (kind.grey and (kind.grey_alpha_16bit or not is_16bit_with_alpha)):
        channels = np.repeat(channels, 3, axis=2)
    if alpha is not None and kind.alpha:
        channels = np.dstack([channels, alpha])
    elif alpha is not None and alpha.min() < largest(alpha):
        channels = _over_white(channels, alpha)
        notes.append(f"{name} has no transparency: laid over white")
    if channels.dtype == np.uint16 and not kind.sixteen_bit:
        channels = to_8_bits(channels)
        notes.append(f"{name} has 8 bits a channel: 16 became 8")
    return channels, notes


def _over_white(pixels: PixelArray, alpha: PixelArray) -> PixelArray:
    full = largest(pixels)
    weights = (alpha / np.float32(full))[..., None]
    return (full - (full - pixels) * weights).round().astype(pixels.dtype)


def _fitting_metadata(
    metadata: Metadata, kind: _Format, name: str, width: int, height: int
) -> tuple[Metadata, list[str]]:
    """Select the metadata that the format `kind` can hold, and set the image size in them to `width` x `height` px.

    Also return notes about discarded metadata. `name` is the name of the format in the notes.
    """
    notes = []
    exif = with_size(metadata.exif, width, height).tobytes() if metadata.exif else b""
    fitting = replace(metadata, exif=exif)
    if len(exif) > kind.exif:
        fitting = replace(fitting, exif=b"")
        notes.append(f"its EXIF data do not fit a {name}: left out")
    if len(metadata.xmp) > kind.xmp:
        fitting = replace(fitting, xmp=b"")
        notes.append(f"its XMP data do not fit a {name}: left out")
    if len(metadata.iptc) > kind.iptc:
        fitting = replace(fitting, iptc=b"")
        notes.append(f"its IPTC data do not fit a {name}: left out")
    if metadata.dpi and not kind.dpi:
        fitting = replace(fitting, dpi=None)
        if not fitting.exif:  # EXIF data hold the resolution too
            notes.append(f"its resolution does not fit a {name}: left out")
    return fitting, notes


def _by_pillow(pillow_name: str, **options: Any) -> Callable[[PixelArray, Metadata, int], bytes]:
    """Return an encoder for a format that Pillow can write; `options` are passed to `PIL.Image.Image.save`.

    The encoder writes to memory, not to a file: if the disk were full, Pillow would hide the errno of the error.
    """

    def encoded(channels: PixelArray, metadata: Metadata, quality: int) -> bytes:
        fields: dict[str, Any] = {"quality": quality, "icc_profile": _profile(channels), **options}
        fields |= {"exif": metadata.exif} if metadata.exif else {}
        fields |= {"xmp": metadata.xmp} if metadata.xmp else {}
        fields |= {"dpi": metadata.dpi} if metadata.dpi else {}
        fields |= {"extra": _app13(metadata.iptc)} if metadata.iptc else {}
        stream = io.BytesIO()
        _to_pil(channels).save(stream, pillow_name, **fields)
        return stream.getvalue()

    return encoded


def _png(channels: PixelArray, metadata: Metadata, quality: int) -> bytes:
    del quality
    if channels.dtype == np.uint16:
        return _png_16bit(channels, metadata)
    fields: dict[str, Any] = {"icc_profile": _profile(channels), "compress_level": tiff.DEFLATE_LEVEL}
    fields |= {"exif": metadata.exif} if metadata.exif else {}
    fields |= {"dpi": metadata.dpi} if metadata.dpi else {}
    fields["pnginfo"] = PngImagePlugin.PngInfo()
    if metadata.iptc:
        fields["pnginfo"].add(b"zTXt", _iptc_text(metadata.iptc))
    if metadata.xmp:
        fields["pnginfo"].add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    stream = io.BytesIO()
    _to_pil(channels).save(stream, "PNG", **fields)
    return stream.getvalue()


def _png_16bit(channels: PixelArray, metadata: Metadata) -> bytes:
    """Encode a PNG with 16 bits per channel; insert the ICC and metadata chunks, which imagecodecs cannot write."""
    import imagecodecs

    samples = np.ascontiguousarray(_without_single_axis(channels))
    pixels_only = bytes(imagecodecs.png_encode(samples, level=tiff.DEFLATE_LEVEL))
    chunks = [(b"iCCP", b"sRGB\0\0" + zlib.compress(_profile(channels)))]
    if metadata.dpi:
        across, down = (round(value / 0.0254) for value in metadata.dpi)
        chunks.append((b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append((b"eXIf", metadata.exif.removeprefix(b"Exif\0\0")))
    if metadata.xmp:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    if metadata.iptc:
        chunks.append((b"zTXt", _iptc_text(metadata.iptc)))
    start = 8 + 12 + 13  # bytes of the signature and the header chunk
    return pixels_only[:start] + b"".join(_chunk(kind, data) for kind, data in chunks) + pixels_only[start:]


def _app13(iptc: bytes) -> bytes:
    """Return a JPEG segment (APP13) that contains the given IPTC records."""
    content = iptc_resources(iptc)
    return b"\xff\xed" + struct.pack(">H", 2 + len(content)) + content


def _iptc_text(iptc: bytes) -> bytes:
    """Return the data of a zTXt chunk with the given IPTC records, in the notation of ImageMagick and ExifTool."""
    content = iptc_resources(iptc)
    text = f"\niptc\n{len(content):8}\n{content.hex()}\n"
    return b"Raw profile type iptc\0\0" + zlib.compress(text.encode())


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _tiff(channels: PixelArray, metadata: Metadata, quality: int) -> bytes:
    del quality
    exif = Image.Exif()
    exif.load(metadata.exif)
    tags = {tag: exif.get_ifd(tag) if tag in _DIRECTORIES else value for tag, value in exif.items()}
    return tiff.encoded(channels, profile=_profile(channels), metadata=metadata, exif=tags)


def _to_pil(channels: PixelArray) -> Image.Image:
    return Image.fromarray(_without_single_axis(channels))


def _without_single_axis(channels: PixelArray) -> PixelArray:
    return channels[..., 0] if channels.shape[2] == 1 else channels


def _profile(channels: PixelArray) -> bytes:
    return colour.srgb() if channels.shape[2] >= 3 else colour.srgb_grey()


_FORMATS = {
    "PNG": _Format(_png, grey=True, sixteen_bit=True, iptc=_ANY),
    "TIFF": _Format(_tiff, grey=True, grey_alpha_16bit=False, sixteen_bit=True, iptc=_ANY),
    "JPEG": _Format(
        _by_pillow("JPEG", subsampling=0),
        alpha=False,
        grey=True,
        longest=65_500,
        exif=65_533,
        xmp=65_533 - 29,
        iptc=65_533 - 28,
    ),
    "WebP": _Format(_by_pillow("WEBP"), longest=16_383, dpi=False),
    "BMP": _Format(_by_pillow("BMP"), alpha=False, grey=True, exif=0, xmp=0),
    # One thread and no automatic tiling: otherwise the bytes would depend on the machine.
    "AVIF": _Format(
        _by_pillow("AVIF", subsampling="4:4:4", max_threads=1, autotiling=False), longest=65_536, dpi=False
    ),
    "HEIC": _Format(_by_pillow("HEIF", chroma=444), dpi=False, doubtful=True),
}
