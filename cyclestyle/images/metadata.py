"""Metadata of a photo (EXIF, XMP, resolution): reading, selection and correction for the output file."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.ExifTags import IFD, Base

from cyclestyle.images.photo import Metadata

# Preserved tags of the first EXIF directory; its other tags describe how the pixels were stored.
_PRESERVED = (
    Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution, Base.ResolutionUnit,
    Base.Software, Base.DateTime, Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent,
    Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject,
)  # fmt: skip
_SRGB = 1  # value of EXIF's `ColorSpace`
_ORIENTATION = rb"""(tiff:Orientation(?:>|\s*=\s*["'])\s*)[0-9]+"""
_PREVIEWS = rb"(?s)<xmp:Thumbnails\b.*?</xmp:Thumbnails\s*>"


def exif_of(read: Callable[[], Image.Exif]) -> tuple[Image.Exif, tuple[str, ...]]:
    """Call `read` to get EXIF data; return the data, and notes to show to the photo's owner.

    If the data are damaged, return empty EXIF data and a note that explains this.
    """
    try:
        exif = read()
        exif.get(Base.Orientation)
    except Exception:  # Pillow raises nearly any type for damaged data
        return Image.Exif(), ("its EXIF data are damaged: left out, and the picture is taken for upright",)
    return exif, ()


def xmp_of(info: Mapping[Any, Any]) -> bytes | str:
    """Return the XMP data in `info`, the attribute `info` of a Pillow image; empty if the image has no XMP."""
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp", b"")
    return xmp if isinstance(xmp, bytes | str) else b""


def orientation_of(exif: Image.Exif) -> int:
    """Return the orientation in EXIF data, from 1 to 8; 1 (upright) if the orientation is missing or invalid."""
    value = exif.get(Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def select_metadata(
    exif: Image.Exif, xmp: bytes | str, dpi: tuple[Any, Any] | None
) -> tuple[Metadata, tuple[str, ...]]:
    """Select the metadata to copy to the output file, and set the orientation in them to upright.

    Also return a note, to show to the photo's owner, if the EXIF data are damaged and therefore left out.
    """
    if isinstance(xmp, str):
        xmp = xmp.encode()
    xmp = re.sub(_PREVIEWS, b"", re.sub(_ORIENTATION, rb"\g<1>1", xmp))
    try:
        return Metadata(_copied(exif), xmp, _resolution(dpi)), ()
    except Exception:  # Pillow raises nearly any type for damaged data
        return Metadata(b"", xmp, _resolution(dpi)), ("its EXIF data are damaged: left out",)


def with_size(exif: bytes, width: int, height: int) -> Image.Exif:
    """Parse encoded EXIF data, and return them with the image size set to `width` x `height` px."""
    resized = Image.Exif()
    resized.load(exif)
    details = resized.get_ifd(IFD.Exif)
    details[Base.ExifImageWidth], details[Base.ExifImageHeight] = width, height
    return resized


def _copied(exif: Image.Exif) -> bytes:
    copy = Image.Exif()
    for tag in _PRESERVED:
        if tag in exif:
            copy[tag] = exif[tag]
    details = dict(exif.get_ifd(IFD.Exif))
    gps = dict(exif.get_ifd(IFD.GPSInfo))
    if not (len(copy) or details or gps):
        return b""
    copy[Base.Orientation] = 1
    if details:
        details.pop(ExifTags.IFD.Interop, None)  # the Interop directory may name a colour space other than sRGB
        if Base.ColorSpace in details:
            details[Base.ColorSpace] = _SRGB
        copy.get_ifd(IFD.Exif).update(details)
    if gps:
        copy.get_ifd(IFD.GPSInfo).update(gps)
    return copy.tobytes()


def _resolution(dpi: tuple[Any, Any] | None) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in dpi or ())
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if all(math.isfinite(value) and 1 <= value < 1e6 for value in (across, down)) else None
