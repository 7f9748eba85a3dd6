"""What was in a file, before its colours are sRGB and its pixels upright."""

from typing import Any, NamedTuple

from PIL import Image

from cyclestyle.images.photo import PixelArray


class DecodedImage(NamedTuple):
    """A decoded file."""

    colours: PixelArray  # uint8 or uint16 (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK, more being more ink
    alpha: PixelArray | None  # (H, W); colours are not multiplied by it
    profile: bytes  # ICC; empty if there is none
    exif: Image.Exif
    xmp: bytes | str
    dpi: tuple[Any, Any] | None
    format: str  # as Pillow calls it
    notes: tuple[str, ...] = ()
