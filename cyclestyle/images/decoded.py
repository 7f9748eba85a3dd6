"""Content of an image file, before the conversion to sRGB and to upright pixels."""

from typing import Any, NamedTuple

from PIL import Image

from cyclestyle.images.photo import PixelArray


class DecodedImage(NamedTuple):
    """Decoded image file: stored colours and metadata."""

    colours: PixelArray  # uint8 or uint16: (H, W) grey, (H, W, 3) RGB, or (H, W, 4) CMYK (0 is no ink)
    alpha: PixelArray | None  # (H, W), dtype of `colours`, which are not premultiplied
    profile: bytes  # ICC; empty if there is none
    exif: Image.Exif
    xmp: bytes | str
    dpi: tuple[Any, Any] | None
    format: str  # Pillow's name of the file format, such as `WEBP`
    notes: tuple[str, ...] = ()  # for the photo's owner, a few words each
