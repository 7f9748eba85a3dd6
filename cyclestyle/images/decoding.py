"""Pictures as files and pictures as tensors: the only place that knows both.

A picture is an upright RGB `PIL.Image`, its pixels are uint8 (3, H, W), and networks see float in [-1, 1].
PyTorch is imported by the functions that make tensors, so that processes that only read and write files start quickly.
"""

import os
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageFile, ImageOps, UnidentifiedImageError

from cyclestyle.errors import DataError
from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.filesystem.listing import listing, one_line, printable, special_file_reason

if TYPE_CHECKING:
    pass

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 178_956_970  # above which Pillow would refuse a picture if it were asked

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")  # Pillow knows others, for which nobody vouches
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "TIFF": {"compression": "tiff_deflate"},
}

Image.MAX_IMAGE_PIXELS = None  # `read` and `facts` have limits of their own, and Pillow's warns from half of its on


class ImageError(DataError):
    """A file that is no picture, or a damaged one.

    Args:
        path: of the file.
        reason: what is wrong with it, in one line.
        permanent: the file itself is at fault, so that reading it again would end the same; False for a refused
            permission, a disk that is gone and the like.
    """

    def __init__(self, path: Path, reason: str, permanent: bool = True) -> None:
        super().__init__(path, reason, permanent)  # all of them, so that it survives the way out of a data worker
        self.path, self.reason, self.permanent = path, one_line(reason), permanent

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


class ImageInfo(NamedTuple):
    """What a file holds."""

    width: int  # px, as of `height`: turned upright
    height: int
    animated: bool  # it has more frames than the first, which is the picture
    decoded: bool  # all of it; False where only its header was read, because it has too many pixels


def find(root: Path) -> list[Path]:
    """All picture files below `root`, relative to it, in an order that depends on their names alone.

    Files and folders come once each, by the first of their names, so that links cannot lead in circles; names that
    start with a dot are passed over, and so is what is no file: pipes, devices, links to nothing.

    Raises:
        DataError: a folder that cannot be listed.
    """
    found = listing(root, endings=EXTENSIONS)
    for folder, reason in found.unlisted.items():
        raise DataError(f"{printable((root / folder).absolute())} cannot be listed: {reason}")
    return [candidate.name for candidate in found.candidates if not candidate.reason]


def read(path: Path, *, background: str = "white", max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file: RGB, turned upright, of an animated one the first frame.

    Args:
        background: what transparent pictures are laid on; see `colour`.
        max_pixels: of a larger picture nothing but the header is read.

    Raises:
        PictureError: the file is not a picture, its data are damaged, or it has too many pixels.
    """
    with open_image(path) as image:
        if image.width * image.height > max_pixels:
            raise ImageError(path, too_large(image.width, image.height, max_pixels))
        return to_rgb(apply_orientation(image), background=background)


def probe(path: Path, *, max_pixels: int = MAX_PIXELS) -> ImageInfo:
    """What `read` would find: the whole file is decoded, unless it has more than `max_pixels`.

    Raises:
        PictureError: as of `read`, but not for too many pixels.
    """
    with open_image(path) as image:
        if image.width * image.height > max_pixels:
            return ImageInfo(image.width, image.height, animated=False, decoded=False)
        turned = apply_orientation(image)
        to_rgb(turned.crop((0, 0, 1, 1)))  # whether its kind of colours can be had
        return ImageInfo(turned.width, turned.height, animated=is_animated(image), decoded=True)


def too_large(width: int, height: int, max_pixels: int) -> str:
    """Why a picture with more than `max_pixels` is not used."""
    return f"{width:,} x {height:,} pixels are more than {max_pixels:,}"


def colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour as Pillow writes them: `white`, `#808080`, `rgb(128, 128, 128)`.

    Raises:
        ValueError: no such colour.
    """
    red, green, blue, *_ = ImageColor.getrgb(text)
    return red, green, blue


def to_rgb(image: Image.Image, *, background: str = "white") -> Image.Image:
    """Any colour mode as RGB; 16-bit grey keeps its brightness, transparency is laid over a colour (see `colour`).

    Raises:
        ValueError: floating-point colours, which have no agreed white: Pillow would make most of them black.
    """
    if image.mode == "F":
        raise ValueError("floating-point colours are not supported")
    if image.mode.startswith("I"):  # Pillow's own conversion would cut 16 bits at 255: all white
        grey = np.asarray(image, dtype=np.float32) / 257.0
        image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, colour(background))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic with antialiasing, as the reference does it."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> None:
    """Write a picture in the format that the name's ending says, whole or not at all."""
    format_name = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as stream:
        image.save(stream, format=format_name, **_SAVE_OPTIONS.get(format_name, {}))


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile.ImageFile]:
    """A picture whose header has been read; whatever goes wrong with it then is a PictureError too."""
    with open_bytes(path) as stream, identify(path, stream) as image:
        yield image


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """What is in a file, not empty; whatever goes wrong with it in the block is a PictureError."""
    try:
        with _stream(path) as stream:
            yield stream
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        if error.errno is not None:
            raise ImageError(path, error.strerror or str(error), False) from None
        raise ImageError(path, f"damaged or unreadable picture ({error})") from None
    except Exception as error:  # at damaged data Pillow raises nearly anything, and what it raises changes
        raise ImageError(path, f"damaged or unreadable picture ({error})") from None


def identify(path: Path, stream: IO[bytes], *, formats: Collection[str] = FORMATS) -> ImageFile.ImageFile:
    """A picture whose header has been read.

    Args:
        path: of the file, for the error.
        stream: what is in it, from its start.
        formats: those that are tried, by Pillow's names.

    Raises:
        PictureError: it is of none of them.
    """
    try:
        return Image.open(stream, formats=tuple(formats))
    except UnidentifiedImageError:
        stream.seek(0)
        start = stream.read(512).lstrip().lower()
        is_page = start.startswith((b"<!doctype html", b"<html"))
        raise ImageError(path, f"{'a web page, ' if is_page else ''}not a picture that can be read") from None


def decode(image: ImageFile.ImageFile) -> None:
    """Read all of a picture; raise nearly anything if its data are damaged, `content` makes a PictureError of it."""
    if image.format == "PNG":
        assert image.fp is not None
        check_png(image.fp)
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # its default, which other libraries are known to change
    image.load()


def apply_orientation(image: ImageFile.ImageFile) -> Image.Image:
    """The picture itself, decoded and turned as its EXIF data say."""
    decode(image)
    ImageOps.exif_transpose(image, in_place=True)
    return image


def check_png(stream: IO[bytes]) -> None:
    """Raise a ValueError unless all of a PNG is there with its checksums right.

    Pillow does not look at those of the pixels and fills with black what it then cannot decode.
    """
    before = stream.tell()
    stream.seek(8)  # the signature
    kind = b""
    while kind != b"IEND":
        head = stream.read(8)
        if len(head) < 8:
            raise ValueError("the end is missing")
        left, kind = struct.unpack(">I4s", head)
        checksum = zlib.crc32(kind)
        while piece := stream.read(min(left, 2**20)):
            checksum = zlib.crc32(piece, checksum)
            left -= len(piece)
        if left or stream.read(4) != checksum.to_bytes(4, "big"):
            raise ValueError(f"the checksum of a part {kind!r} is wrong")
    stream.seek(before)


def is_animated(image: ImageFile.ImageFile) -> bool:
    """Whether there are frames beyond the first; the smaller versions in a telephone's JPEG (MPO) are none."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame, and again nearly anything
        return True


def _stream(path: Path) -> IO[bytes]:
    """A file opened for reading; nothing else is, for opening a pipe may block and a device may do anything."""
    why_not = special_file_reason(path.stat().st_mode)
    if not why_not:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # it may be a pipe by now
        stream = os.fdopen(os.open(path, flags), "rb")
        status = os.fstat(stream.fileno())
        why_not = special_file_reason(status.st_mode) or (
            "" if status.st_size else "empty, not a picture that can be read"
        )
        if not why_not:
            return stream
        stream.close()
    raise ImageError(path, why_not)
