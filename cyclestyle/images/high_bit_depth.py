"""Decoding of PNG and TIFF files with 16 bits per channel.

Pillow reduces such files to 8 bits per channel, or cannot open them.
"""

import io
import logging
import struct
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from cyclestyle.images import decoding
from cyclestyle.images.decoded import DecodedImage
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.metadata import embedded_exif, exif_of, iptc_of, xmp_of
from cyclestyle.images.photo import PixelArray, largest

_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 256, 257, 258, 262, 277, 284, 338, 339
_X_RESOLUTION, _Y_RESOLUTION, _UNIT, _XMP, _PROFILE = 282, 283, 296, 700, 34675
_PREMULTIPLIED, _ALPHA = 1, 2  # values of ExtraSamples
_UNSIGNED, _FLOATING, _UNDEFINED = 1, 3, 4  # values of SampleFormat
_WHITE_IS_ZERO = 0  # value of PhotometricInterpretation
_SEPARATE_PLANES = 2  # value of PlanarConfiguration
_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4}  # PhotometricInterpretation of grey, RGB or CMYK -> number of colour channels
_METADATA_CHUNKS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt", b"pHYs")
_PER_INCH = {2: 1.0, 3: 2.54}  # ResolutionUnit -> factor to pixels per inch


class Png(NamedTuple):
    """Header of a PNG file; `read` decodes the file."""

    width: int
    height: int
    bits: int  # number of bits per channel

    def read(self, path: Path, stream: IO[bytes]) -> DecodedImage:
        """Decode the PNG file with this header; the file must have 16 bits per channel.

        Args:
            path: path of the file, for error messages.
            stream: the open file.
        """
        import imagecodecs

        stream.seek(0)
        decoding.check_png(stream)
        stream.seek(0)
        content = stream.read()
        channels = imagecodecs.png_decode(content)
        if channels.ndim == 2:
            channels = channels[..., None]
        count = 1 if channels.shape[2] <= 2 else 3
        colours, alpha = _split_alpha(channels, count, count if channels.shape[2] > count else None)

        stream.seek(0)
        with decoding.identify(path, stream) as image:
            if any(kind in content[content.rfind(b"IDAT") :] for kind in _METADATA_CHUNKS):
                image.load()  # Pillow reads chunks after the pixels only when it decodes
            info = image.info
            frames = int(getattr(image, "n_frames", 1))
            exif, notes = exif_of(lambda: embedded_exif(image))
            profile, xmp, dpi = info.get("icc_profile", b""), xmp_of(info), info.get("dpi")
        notes += (f"the first of {frames} frames",) if frames > 1 else ()
        iptc = iptc_of(info, {})
        return DecodedImage(colours, alpha, profile, exif, xmp, dpi, "PNG", notes, iptc, is_animated=lambda: frames > 1)


class Tiff(NamedTuple):
    """Header of a TIFF file: the tags in its first image file directory; `read` decodes the file."""

    tags: Mapping[int, Any]
    bits: int  # number of bits per channel
    offset: int  # bytes from the start of the file to the directory
    start: bytes  # first 4 bytes of the file: byte order and version

    @property
    def width(self) -> int:
        return int(self.tags[_WIDTH])

    @property
    def height(self) -> int:
        return int(self.tags[_HEIGHT])

    def read(self, path: Path, stream: IO[bytes]) -> DecodedImage:
        """Decode the TIFF file with this header; the file must have 16 bits per channel.

        Args:
            path: path of the file, for error messages.
            stream: the open file.
        """
        kind = self.tags.get(_PHOTOMETRIC, -1)
        if kind not in _COLOURS:
            raise ImageError(path, "16-bit colours that are neither grey, RGB nor CMYK are not supported")
        channels, pages = _tiff_channels(stream)
        if channels.ndim != 3 or channels.shape[2] < _COLOURS[kind]:
            raise ValueError(f"its colours take {_COLOURS[kind]} samples a pixel, it has {channels.shape[-1]}")
        extra = _as_tuple(self.tags.get(_EXTRA, ()))
        extra = extra or (_ALPHA,) * (channels.shape[2] - _COLOURS[kind])
        alphas = [number for number, channel in enumerate(extra) if channel in (_PREMULTIPLIED, _ALPHA)]
        if alphas and _COLOURS[kind] + alphas[0] >= channels.shape[2]:
            raise ValueError("its header announces an alpha channel, which is missing")
        colours, alpha = _split_alpha(channels, _COLOURS[kind], _COLOURS[kind] + alphas[0] if alphas else None)
        if alpha is not None and extra[alphas[0]] == _PREMULTIPLIED:
            colours = _unpremultiply(colours, alpha)
        if kind == _WHITE_IS_ZERO:
            colours = largest(colours) - colours

        exif, notes = exif_of(lambda: self._exif(stream))
        profile, xmp = self.tags.get(_PROFILE, b""), self.tags.get(_XMP, b"")
        notes += (f"the first of {pages} pages",) if pages > 1 else ()
        has_pages, dpi, iptc = pages > 1, self._dpi(), iptc_of({}, self.tags)
        return DecodedImage(colours, alpha, profile, exif, xmp, dpi, "TIFF", notes, iptc, is_animated=lambda: has_pages)

    def _exif(self, stream: IO[bytes]) -> Image.Exif:
        exif = Image.Exif()
        exif.endian, exif.bigtiff = "<" if self.start.startswith(b"II") else ">", 43 in self.start[2:4]
        exif.load_from_fp(stream, self.offset)
        return exif

    def _dpi(self) -> tuple[Any, Any] | None:
        factor = _PER_INCH.get(self.tags.get(_UNIT, 2))
        across, down = self.tags.get(_X_RESOLUTION), self.tags.get(_Y_RESOLUTION)
        return (across * factor, down * factor) if factor and across and down else None


def header(path: Path, stream: IO[bytes]) -> Png | Tiff | None:
    """Read the header of a PNG or TIFF file; return None for other formats, and for headers without a valid size.

    Raises:
        ImageError: the channels of a TIFF have an unsupported number type or number of bits.
    """
    stream.seek(0)
    start = stream.read(33)
    stream.seek(0)
    if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR" and _has_checksum(start):
        return Png(*struct.unpack(">IIB", start[16:25]))
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        directory = ImageFileDirectory_v2(start[: 16 if 43 in start[2:4] else 8])
        offset = directory.next
        stream.seek(offset)
        directory.load(stream)
        stream.seek(0)
        if _WIDTH in directory and _HEIGHT in directory:
            return Tiff(directory, _tiff_bits(path, directory), offset, start[:4])
    return None


def _has_checksum(start: bytes) -> bool:
    """Return whether `start`, the first 33 bytes of a PNG, has the right header checksum.

    With a wrong checksum, the size in the header is meaningless.
    """
    return len(start) == 33 and zlib.crc32(start[12:29]).to_bytes(4, "big") == start[29:]


def check_libraries(path: Path) -> None:
    """Raise an `ImageError` about `path` unless the libraries for 16 bits per channel are installed."""
    if not has_libraries():
        raise ImageError(path, "16 bits a channel need more libraries: pip install 'cyclestyle[deep]'", False)


def has_libraries() -> bool:
    """Return whether the libraries for 16 bits per channel are installed."""
    return all(_is_installed(name) for name in ("tifffile", "imagecodecs"))


def _tiff_bits(path: Path, tags: Mapping[int, Any]) -> int:
    kinds = set(_as_tuple(tags.get(_FORMAT, 1)))
    if kinds - {_UNSIGNED, _UNDEFINED}:
        kind = "floating-point" if _FLOATING in kinds else "signed or complex"
        raise ImageError(path, f"{kind} colours are not supported, save it with 8 or 16 bits a channel")
    widths = sorted(set(_as_tuple(tags.get(_BITS, 1))))
    if len(widths) > 1 or widths[0] not in (1, 2, 4, 8, 16):
        bits = " and ".join(map(str, widths))
        raise ImageError(path, f"{bits} bits a channel are not supported, save it with 8 or 16")
    return int(widths[0])


def is_negative_plane(tags: Mapping[int, Any]) -> bool:
    """Return whether a TIFF has one grey channel, 0 as white, and the planar configuration "separate planes".

    If the pixels of such a file are uncompressed, Pillow does not invert them, so the caller must.

    Args:
        tags: tag number -> value.
    """
    samples = tags.get(_SAMPLES, 1)
    return tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and tags.get(_PLANAR) == _SEPARATE_PLANES and samples == 1


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # raised if `sys.modules[name]` is None, which disables the import
        return False


def _tiff_channels(stream: IO[bytes]) -> tuple[PixelArray, int]:
    """Decode the first page of a TIFF to a uint16 array (H, W, channels); also return the number of pages in the file.

    Raises:
        ValueError: strips or tiles of the page are missing.
    """
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # errors are logged, but raised as well
    stream.seek(0)
    content = stream.read()  # tifffile needs a file name, which a file opened by descriptor lacks
    with tifffile.TiffFile(io.BytesIO(content)) as opened:
        page = opened.pages[0]
        parts = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if len(parts) != prod(page.chunked) or any(not count or start + count > len(content) for start, count in parts):
            raise ValueError("parts of it are missing")  # tifffile would fill them with black
        channels = page.asarray(maxworkers=1).astype(np.uint16, copy=False)
        if channels.ndim == 2:
            return channels[..., None], len(opened.pages)
        return (np.moveaxis(channels, 0, -1) if page.axes == "SYX" else channels), len(opened.pages)


def _split_alpha(channels: PixelArray, count: int, alpha: int | None) -> tuple[PixelArray, PixelArray | None]:
    colours = channels[..., 0] if count == 1 else channels[..., :count]
    return colours, None if alpha is None else channels[..., alpha]


def _unpremultiply(colours: PixelArray, alpha: PixelArray) -> PixelArray:
    """Divide premultiplied colours by `alpha`; pixels whose alpha is 0 become black."""
    full = largest(colours)
    weights = alpha.astype(np.float64)[(...,) + (None,) * (colours.ndim - 2)]
    restored = np.divide(colours * float(full), weights, out=np.zeros(colours.shape), where=weights > 0)
    return restored.round().clip(0, full).astype(colours.dtype)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,)
