"""Content of a decoded image file, before its colours are converted to sRGB and the image is turned upright."""

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image

from cyclestyle.images.photo import PixelArray


class DecodedImage(NamedTuple):
    """Colours, alpha, ICC profile and metadata of an image file; profile and EXIF orientation are not yet applied."""

    # Array of uint8 or uint16, (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK; or 8-bit image of mode L, RGB or CMYK.
    # In CMYK, 0 is no ink.
    colours: PixelArray | Image.Image
    alpha: PixelArray | Image.Image | None  # (H, W), same kind as `colours`; `colours` are not premultiplied by it
    profile: bytes  # ICC profile; empty if the file has none
    exif: Image.Exif  # empty if the decoder has turned `colours` upright
    xmp: bytes | str
    dpi: tuple[Any, Any] | None
    format: str  # Pillow's name of the file format, such as `WEBP`
    notes: tuple[str, ...] = ()  # to show to the photo's owner, a few words each
    iptc: bytes = b""  # IPTC-IIM records; empty if the file has none
    is_animated: Callable[[], bool] = lambda: False  # searches the open file for further frames, which can take long
