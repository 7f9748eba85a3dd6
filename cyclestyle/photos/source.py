"""What was in a file, before its colours are sRGB and its pixels upright."""

from typing import Any, NamedTuple

from PIL import Image

from cyclestyle.photos.photo import Samples


class Source(NamedTuple):
    """A decoded file."""

    colours: Samples  # uint8 or uint16 (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK, more being more ink
    alpha: Samples | None  # (H, W); colours are not multiplied by it
    profile: bytes  # ICC; empty if there is none
    exif: Image.Exif
    xmp: bytes | str
    dpi: tuple[Any, Any] | None
    format: str  # as Pillow calls it
    notes: tuple[str, ...] = ()
