"""XMP packets: removal of entries that are true of the original photo but not of its translation."""

from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_XMP, _PHOTOSHOP = "http://ns.adobe.com/xap/1.0/", "http://ns.adobe.com/photoshop/1.0/"
_NOTE, _DUBLIN_CORE = "http://ns.adobe.com/xmp/note/", "http://purl.org/dc/elements/1.1/"
_PREFIXES = {_TIFF: "tiff", _EXIF: "exif", _XMP: "xmp", _PHOTOSHOP: "photoshop", _NOTE: "xmpNote", _DUBLIN_CORE: "dc"}

# Entries about size, colour space, coding, previews, and data that are stored elsewhere in the file.
_UNTRUE = frozenset(
    {
        *(
            f"tiff:{name}"
            for name in (
                "ImageWidth", "ImageLength", "BitsPerSample", "Compression", "PhotometricInterpretation",
                "SamplesPerPixel", "PlanarConfiguration", "YCbCrSubSampling", "YCbCrPositioning", "TransferFunction",
                "WhitePoint", "PrimaryChromaticities", "YCbCrCoefficients", "ReferenceBlackWhite", "NativeDigest",
            )
        ),
        *(
            f"exif:{name}"
            for name in ("PixelXDimension", "PixelYDimension", "ColorSpace", "CompressedBitsPerPixel",
                         "ComponentsConfiguration", "Gamma", "NativeDigest")
        ),
        "photoshop:ICCProfile", "photoshop:ColorMode", "xmp:Thumbnails", "xmpNote:HasExtendedXMP", "dc:format",
    }
)  # fmt: skip
# Namespaces of gain maps, which a translation does not have.
_GAIN_MAPS = (
    "http://ns.adobe.com/hdr-gain-map/",
    "http://ns.apple.com/HDRGainMap/",
    "http://ns.google.com/photos/1.0/container/",
)


def updated(packet: bytes) -> tuple[bytes, tuple[str, ...]]:
    """Remove the entries of an XMP packet that are not true of a translation, and set its orientation to upright.

    Such entries describe, for example, the image size, the colour space or a thumbnail. A packet that needs no change
    is returned as it is.

    Also return notes to show to the photo's owner. For a packet that is not valid XML, or contains a DOCTYPE or ENTITY
    declaration, return an empty packet and one note. In all other cases there are no notes.
    """
    if not packet:
        return b"", ()
    damaged = b"", ("its XMP data are damaged: left out",)
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # XMP has neither; entities could expand without limit
        return damaged
    try:
        document = minidom.parseString(packet.rstrip(b"\0 \t\r\n"))
    except (ExpatError, ValueError, LookupError):
        return damaged
    if not _update(document):
        return packet, ()
    text = "".join(node.toxml() for node in document.childNodes)
    return text.encode(), ()


def _update(node: Any) -> bool:
    """Remove the entries below an XML node that are not true of a translation, and set the orientation to upright.

    Return whether anything changed.
    """
    changed = False
    attributes = node.attributes
    for attribute in list(attributes.values()) if attributes else []:
        name = _name(attribute)
        if name == "tiff:Orientation" and attribute.value != "1":
            attribute.value = "1"
            changed = True
        elif _is_untrue(attribute, name):
            node.removeAttributeNode(attribute)
            changed = True
    for child in list(node.childNodes):
        if child.nodeType != child.ELEMENT_NODE:
            continue
        name = _name(child)
        if name == "tiff:Orientation" and child.firstChild is not None and child.firstChild.nodeValue != "1":
            child.firstChild.nodeValue = "1"
            changed = True
        elif _is_untrue(child, name):
            node.removeChild(child)
            changed = True
        else:
            changed |= _update(child)
    return changed


def _is_untrue(node: Any, name: str) -> bool:
    return name in _UNTRUE or (node.namespaceURI or "").startswith(_GAIN_MAPS)


def _name(node: Any) -> str:
    """Return the name of an XML node with the usual prefix of its namespace."""
    prefix = _PREFIXES.get(node.namespaceURI or "")
    return f"{prefix}:{node.localName}" if prefix else str(node.nodeName)
