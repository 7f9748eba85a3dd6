"""What a file says besides its pixels: which of it is kept, and that it stays true."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.ExifTags import IFD, Base

from cyclestyle.images.photo import Metadata

# Of a file's first directory; the others there describe how the pixels were stored.
_KEPT = (
    Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution, Base.ResolutionUnit,
    Base.Software, Base.DateTime, Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent,
    Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject,
)  # fmt: skip
_SRGB = 1  # as EXIF's `ColorSpace`
_ORIENTATION = rb"""(tiff:Orientation(?:>|\s*=\s*["'])\s*)[0-9]+"""
_PREVIEWS = rb"(?s)<xmp:Thumbnails\b.*?</xmp:Thumbnails\s*>"


def exif_of(read: Callable[[], Image.Exif]) -> tuple[Image.Exif, tuple[str, ...]]:
    """What `read` finds, nothing if that is damaged, and what the picture's owner should know about it."""
    try:
        found = read()
        found.get(Base.Orientation)
    except Exception:  # damaged, at which Pillow raises nearly anything
        return Image.Exif(), ("its EXIF data are damaged: left out, and the picture is taken for upright",)
    return found, ()


def xmp_of(info: Mapping[Any, Any]) -> bytes | str:
    """XMP data of an opened picture, by its `info`."""
    found = info.get("xmp") or info.get("XML:com.adobe.xmp", b"")
    return found if isinstance(found, bytes | str) else b""


def orientation_of(exif: Image.Exif) -> int:
    """How the camera was held, 1 to 8; 1 where that is not said or makes no sense."""
    value = exif.get(Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def select_metadata(
    exif: Image.Exif, xmp: bytes | str, dpi: tuple[Any, Any] | None
) -> tuple[Metadata, tuple[str, ...]]:
    """What is kept of a file, for its upright pixels, and what its owner should know about that."""
    if isinstance(xmp, str):
        xmp = xmp.encode()
    xmp = re.sub(_PREVIEWS, b"", re.sub(_ORIENTATION, rb"\g<1>1", xmp))
    try:
        return Metadata(_copied(exif), xmp, _resolution(dpi)), ()
    except Exception:  # damaged, at which Pillow raises nearly anything
        return Metadata(b"", xmp, _resolution(dpi)), ("its EXIF data are damaged: left out",)


def with_size(exif: bytes, width: int, height: int) -> Image.Exif:
    """EXIF data that give their picture's size in pixels."""
    made = Image.Exif()
    made.load(exif)
    details = made.get_ifd(IFD.Exif)
    details[Base.ExifImageWidth], details[Base.ExifImageHeight] = width, height
    return made


def _copied(exif: Image.Exif) -> bytes:
    made = Image.Exif()
    for tag in _KEPT:
        if tag in exif:
            made[tag] = exif[tag]
    details = dict(exif.get_ifd(IFD.Exif))
    place = dict(exif.get_ifd(IFD.GPSInfo))
    if not (len(made) or details or place):
        return b""
    made[Base.Orientation] = 1
    if details:
        details.pop(ExifTags.IFD.Interop, None)  # may name another colour space than sRGB
        if Base.ColorSpace in details:
            details[Base.ColorSpace] = _SRGB
        made.get_ifd(IFD.Exif).update(details)
    if place:
        made.get_ifd(IFD.GPSInfo).update(place)
    return made.tobytes()


def _resolution(dpi: tuple[Any, Any] | None) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in dpi or ())
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if all(math.isfinite(value) and 1 <= value < 1e6 for value in (across, down)) else None
