"""Content of a decoded image file, before its colours are converted to sRGB and the image is turned upright."""

from typing import Any, NamedTuple

from PIL import Image

from cyclestyle.images.photo import PixelArray


class DecodedImage(NamedTuple):
    """Colours, alpha, ICC profile and metadata of an image file; profile and EXIF orientation are not yet applied."""

    colours: PixelArray  # uint8 or uint16: (H, W) grey, (H, W, 3) RGB, or (H, W, 4) CMYK (0 is no ink)
    alpha: PixelArray | None  # (H, W), same dtype as `colours`; `colours` are not premultiplied by it
    profile: bytes  # ICC profile; empty if the file has none
    exif: Image.Exif
    xmp: bytes | str
    dpi: tuple[Any, Any] | None
    format: str  # Pillow's name of the file format, such as `WEBP`
    notes: tuple[str, ...] = ()  # to show to the photo's owner, a few words each
