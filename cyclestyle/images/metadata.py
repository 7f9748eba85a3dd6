"""Metadata of a photo (EXIF, XMP, IPTC, resolution): reading, selection and correction for the output file."""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.ExifTags import IFD, Base

from cyclestyle.images import xmp as xmp_packets
from cyclestyle.images.photo import Metadata

# Preserved tags of the first EXIF directory; its other tags describe how the pixels were stored.
_PRESERVED = (
    Base.ImageDescription, Base.Make, Base.Model, Base.XResolution, Base.YResolution, Base.ResolutionUnit,
    Base.Software, Base.DateTime, Base.Artist, Base.HostComputer, Base.Copyright, Base.Rating, Base.RatingPercent,
    Base.XPTitle, Base.XPComment, Base.XPAuthor, Base.XPKeywords, Base.XPSubject,
)  # fmt: skip
_SRGB = 1  # value of EXIF's `ColorSpace`
_IPTC, _PHOTOSHOP = 33723, 34377  # tags of a TIFF
_IPTC_RESOURCE = 0x0404  # number among Photoshop's image resources
_PHOTOSHOP_START = b"Photoshop 3.0\0"
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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


def embedded_exif(image: Image.Image) -> Image.Exif:
    """Return the EXIF data of an image opened by Pillow, without an orientation that Pillow copied from XMP.

    Browsers ignore such an orientation, too. It is also removed from the EXIF data cached in `image`. The orientation
    box of an AVIF file is kept: Pillow stores it as EXIF. HEIC images have been turned already by their decoder.
    """
    exif = Image.Image.getexif(image)  # `PngImageFile.getexif` would decode the pixels
    if Base.Orientation in exif and xmp_of(image.info) and not _has_orientation(image):
        del exif[Base.Orientation]
    return exif


def upright(image: Image.Image) -> Image.Image:
    """Return an image turned by its EXIF orientation; `image` itself if it is upright."""
    xmp_only = xmp_of(image.info) and not _has_orientation(image)
    turn = None if xmp_only else _TURNS.get(image.getexif().get(Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _has_orientation(image: Image.Image) -> bool:
    """Return whether the EXIF data in the file of `image` contain an orientation; XMP data do not count."""
    if hasattr(image, "tag_v2"):
        return Base.Orientation in image.tag_v2
    content = image.info.get("exif")
    raw = image.info.get("Raw profile type exif")
    if content is None and isinstance(raw, str):
        content = bytes.fromhex("".join(raw.split("\n")[3:]))
    exif = Image.Exif()
    exif.load(content or b"")
    return Base.Orientation in exif


def iptc_of(info: Mapping[Any, Any], tags: Mapping[int, Any]) -> bytes:
    """Return the IPTC-IIM records of a file; empty if it has none, or if they are damaged.

    Args:
        info: attribute `info` of a Pillow image.
        tags: tags of a TIFF; empty for other formats.
    """
    resources = info.get("photoshop")
    raw = info.get("Raw profile type iptc")
    records: Any = b""
    if isinstance(resources, dict):
        records = resources.get(_IPTC_RESOURCE, b"")
    elif isinstance(raw, str):
        try:
            content = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return b""
        records = content if content[:1] == b"\x1c" else _iptc_resource(content)
    elif isinstance(tags.get(_PHOTOSHOP), bytes):
        records = _iptc_resource(tags[_PHOTOSHOP])
    if not records:
        # Photoshop declares the bytes as 32-bit numbers; Pillow would return one of them, with a warning.
        records = getattr(tags, "_tagdata", {}).get(_IPTC, b"")
        if records[:1] != b"\x1c" and len(records) % 4 == 0:
            records = b"".join(records[at : at + 4][::-1] for at in range(0, len(records), 4))
    return records if isinstance(records, bytes) and records[:1] == b"\x1c" else b""


def iptc_resources(iptc: bytes) -> bytes:
    """Wrap IPTC records in Photoshop's image resources, the form in which JPEG and PNG store them."""
    head = struct.pack(">4sHHI", b"8BIM", _IPTC_RESOURCE, 0, len(iptc))
    return _PHOTOSHOP_START + head + iptc + bytes(len(iptc) % 2)


def _iptc_resource(content: bytes) -> bytes:
    """Extract the IPTC records from Photoshop's image resources; return empty bytes if there are none."""
    content = content.removeprefix(_PHOTOSHOP_START)
    while content[:4] == b"8BIM" and len(content) >= 12:
        (kind,) = struct.unpack_from(">H", content, 4)
        name = 1 + content[6]
        at = 6 + name + name % 2
        (length,) = struct.unpack_from(">I", content.ljust(at + 4, b"\0"), at)
        if kind == _IPTC_RESOURCE:
            return content[at + 4 : at + 4 + length]
        content = content[at + 4 + length + length % 2 :]
    return b""


def xmp_of(info: Mapping[Any, Any]) -> bytes | str:
    """Return the XMP data in `info`, the attribute `info` of a Pillow image; empty if the image has no XMP."""
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp", b"")
    return xmp if isinstance(xmp, bytes | str) else b""


def orientation_of(exif: Image.Exif) -> int:
    """Return the orientation in EXIF data, from 1 to 8; 1 (upright) if the orientation is missing or invalid."""
    value = exif.get(Base.Orientation, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def select_metadata(
    exif: Image.Exif, xmp: bytes | str, dpi: tuple[Any, Any] | None, iptc: bytes = b""
) -> tuple[Metadata, tuple[str, ...]]:
    """Select the metadata to copy to the output file, and set their orientation to upright.

    Entries that are not true of the output file, such as thumbnails, are dropped. Also return notes, to show
    to the photo's owner, about EXIF or XMP data that are damaged and therefore left out.
    """
    xmp, notes = xmp_packets.updated(xmp.encode() if isinstance(xmp, str) else xmp)
    try:
        return Metadata(_copied(exif), xmp, _resolution(dpi), iptc), notes
    except Exception:  # Pillow raises nearly any type for damaged data
        return Metadata(b"", xmp, _resolution(dpi), iptc), (*notes, "its EXIF data are damaged: left out")


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
