"""Functions that find, check, decode (with Pillow) and save image files; `reading.open_image` opens a file.

This module does not import PyTorch.
"""

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

from cyclestyle.errors import DataError
from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.filesystem.listing import listing, one_line, printable, special_file_reason
from cyclestyle.images.metadata import embedded_exif, exif_of

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 178_956_970  # Pillow's default limit: it raises an error for images with more pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # Pillow reads more formats, which are untested here
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}

Image.MAX_IMAGE_PIXELS = None  # `check_size` applies `max_pixels`; Pillow would warn above half its limit


class ImageError(DataError):
    """Error about a file that cannot be read or written as an image.

    Args:
        path: path of the file.
        reason: cause of the error, in one line.
        permanent: True if the content of the file is at fault, so another attempt would fail too; False if the cause
            may disappear, such as a missing permission or an unmounted disk.
    """

    def __init__(self, path: Path, reason: str, permanent: bool = True) -> None:
        super().__init__(path, reason, permanent)  # unpickling in another process needs all arguments
        self.path, self.reason, self.permanent = path, one_line(reason), permanent

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


class TooManyPixelsError(ImageError):
    """Error about an image of `width` x `height` px, whose area exceeds `max_pixels`; only its header was read."""

    def __init__(self, path: Path, width: int, height: int, max_pixels: int) -> None:
        super().__init__(path, too_large(width, height, max_pixels))
        self.args = path, width, height, max_pixels  # unpickling in another process needs all arguments
        self.width, self.height = width, height


class ImageInfo(NamedTuple):
    """Properties of an image file, returned by `reading.probe`."""

    width: int  # px, of the upright image
    height: int  # px, of the upright image
    animated: bool  # more than one frame; only the first is used
    decoded: bool  # False if only the header was read, because the image has too many pixels
    values: tuple[int, int] | None = None  # smallest and largest value, from 0 to 65535; None unless it has 16 bits


def find(root: Path) -> list[Path]:
    """Return the paths of all files with an image extension below `root`, relative to `root` and in name order.

    If links make a file or folder reachable through several paths, it is listed once, under the path that comes first
    in name order. Files and folders whose names start with a dot are skipped, and so are pipes, devices and broken
    links.

    Raises:
        DataError: `root` or one of its subfolders cannot be listed.
    """
    content = listing(root, endings=EXTENSIONS)
    for folder, reason in content.unlisted.items():
        raise DataError(f"{printable((root / folder).absolute())} cannot be listed: {reason}")
    return [candidate.name for candidate in content.candidates if not candidate.reason]


def too_large(width: int, height: int, max_pixels: int) -> str:
    """Return the error message for an image of `width` x `height` px, whose area exceeds `max_pixels`."""
    return f"{width:,} x {height:,} pixels are more than {max_pixels:,}"


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raise a `TooManyPixelsError` if an image of `width` x `height` px has more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise TooManyPixelsError(path, width, height, max_pixels)


def colour(text: str) -> tuple[int, int, int]:
    """Parse a colour such as `white`, `#808080` or `rgb(128, 128, 128)` to (red, green, blue), each from 0 to 255.

    Any colour notation of Pillow is accepted; an alpha value in it is ignored.

    Raises:
        ValueError: `text` is not a colour.
    """
    red, green, blue, *_ = ImageColor.getrgb(text)
    return red, green, blue


def to_rgb(image: Image.Image, *, background: str = "white") -> Image.Image:
    """Convert an image of any colour mode to RGB.

    16-bit grey values are scaled to 8 bits, which keeps the brightness. The colour `background` shows through
    transparent pixels.

    Raises:
        ValueError: the image has floating-point colours, which are unsupported: no value is defined as white.
    """
    image = to_8_bits(image)
    if image.has_transparency_data:
        image = over_background(image.convert("RGBA"), background)
    return image.convert("RGB")


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey values to 8 bits, mode L; return an image of another mode unchanged.

    Raises:
        ValueError: the image has floating-point colours, which are unsupported: no value is defined as white.
    """
    if image.mode == "F":
        raise ValueError("floating-point colours are not supported")  # Pillow would turn most of them black
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image, dtype=np.float32) / 257.0  # Pillow would clip 16-bit values at 255: all white
    return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))


def over_background(image: Image.Image, background: str) -> Image.Image:
    """Composite an RGBA image over the colour `background`; return an opaque RGB image."""
    ground = Image.new("RGBA", image.size, colour(background))
    return Image.alpha_composite(ground, image).convert("RGB")


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize an image to `width` x `height` px with the antialiased bicubic filter of the original CycleGAN."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> None:
    """Write an image atomically to `path`, in the format that belongs to the extension of `path`."""
    format_name = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as stream:
        image.save(stream, format=format_name, **_SAVE_OPTIONS.get(format_name, {}))


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Context manager: open a non-empty file for reading; errors here or in the `with` block become `ImageError`s.

    A MemoryError is raised unchanged.
    """
    try:
        with _stream(path) as stream:
            yield stream
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise ImageError(path, error.strerror or str(error), False) from None
        raise ImageError(path, f"damaged or unreadable picture ({error})") from None
    except Exception as error:  # Pillow raises nearly any type for damaged data, varying by version
        raise ImageError(path, f"damaged or unreadable picture ({error})") from None


def identify(path: Path, stream: IO[bytes], *, formats: Collection[str] = FORMATS) -> ImageFile.ImageFile:
    """Detect the format of an image file and read its header, without decoding pixels.

    Args:
        path: path of the file, for the error message.
        stream: open file, positioned at its start.
        formats: Pillow's names of the formats to try.

    Raises:
        ImageError: the file has none of these formats.
    """
    try:
        return Image.open(stream, formats=tuple(formats))
    except UnidentifiedImageError:
        stream.seek(0)
        start = stream.read(512).lstrip().lower()
        is_page = start.startswith((b"<!doctype html", b"<html"))
        raise ImageError(path, f"{'a web page, ' if is_page else ''}not a picture that can be read") from None


def decode(image: ImageFile.ImageFile) -> None:
    """Decode all pixels of an opened image.

    Damaged data can raise any type of exception. Call this function in the `with` block of `open_bytes`, which turns
    such exceptions into `ImageError`s.
    """
    if image.format == "PNG":
        assert image.fp is not None
        check_png(image.fp)
    if image.format == "TIFF":
        exif_of(lambda: embedded_exif(image))  # otherwise Pillow would turn the image by the orientation in XMP
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # Pillow's default, which some other libraries change
    image.load()


def apply_orientation(image: ImageFile.ImageFile) -> Image.Image:
    """Decode an image, rotate or mirror it in place according to its EXIF orientation, and return it."""
    decode(image)
    embedded_exif(image)  # removes an orientation that comes from XMP
    ImageOps.exif_transpose(image, in_place=True)
    return image


def check_png(stream: IO[bytes]) -> None:
    """Raise a ValueError unless a PNG is complete and all its checksums match.

    Pillow does not check this: it ignores the checksums of pixel data and fills undecodable parts with black.
    """
    before = stream.tell()
    stream.seek(8)  # after the signature
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("the end is missing")
        remaining, kind = struct.unpack(">I4s", head)
        checksum = zlib.crc32(kind)
        while piece := stream.read(min(remaining, 2**20)):
            checksum = zlib.crc32(piece, checksum)
            remaining -= len(piece)
        if remaining or stream.read(4) != checksum.to_bytes(4, "big"):
            raise ValueError(f"the checksum of a part {kind!r} is wrong")
    stream.seek(before)


def is_animated(image: ImageFile.ImageFile) -> bool:
    """Return whether an image has several frames; previews that some phones add to a JPEG (MPO) do not count."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged; Pillow then raises nearly any type
        return True


def _stream(path: Path) -> IO[bytes]:
    """Open a regular file for reading; raise an `ImageError` for an empty file, a pipe or a device.

    Pipes and devices are not opened: a pipe could block, and opening a device could have side effects.
    """
    fault = special_file_reason(path.stat().st_mode)
    if not fault:
        # O_NONBLOCK, since a pipe may have replaced the file after the check above.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        stream = os.fdopen(os.open(path, flags), "rb")
        status = os.fstat(stream.fileno())
        fault = special_file_reason(status.st_mode) or (
            "" if status.st_size else "empty, not a picture that can be read"
        )
        if not fault:
            return stream
        stream.close()
    raise ImageError(path, fault)
