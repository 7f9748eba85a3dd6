"""Conversion of grey, RGB, CMYK and CIELAB colours to sRGB, with or without an embedded ICC profile."""

import io
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from cyclestyle.images.photo import PixelArray, largest

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_EXACT = _FLAGS | ImageCms.Flags.NOOPTIMIZE  # the default optimization uses a coarse table, wrong by 4 % in dark greys
_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode
_CHANNELS = {1: "L", 3: "RGB", 4: "CMYK"}  # number of channels -> Pillow's mode


class Conversion(NamedTuple):
    """Parsed ICC profile, and the transform from its colour space to sRGB."""

    mode: str  # Pillow's mode of the input colours: L, RGB or CMYK
    is_srgb: bool  # whether the transform changes colours by at most 1/255
    transform: ImageCms.ImageCmsTransform  # to sRGB, for 8 bits per channel
    profile: bytes  # ICC profile of the input colours


@cache
def srgb() -> bytes:
    """Return the sRGB ICC profile for output files; its bytes are the same in every call and on every system."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes.fromhex("07ea 0001 0001 0000 0000 0000")  # creation date 2026-01-01
    profile[40:44] = bytes(4)  # platform of creation
    return bytes(profile)


@cache
def srgb_grey() -> bytes:
    """Return an ICC profile for grey output files, made of the white point and the tone curve of the sRGB profile."""
    source = srgb()
    (count,) = struct.unpack_from(">I", source, 128)
    tags = {}
    for number in range(count):
        name, start, length = struct.unpack_from(">4sII", source, 132 + 12 * number)
        tags[name] = source[start : start + length]
    chosen = {name: tags[name] for name in (b"desc", b"cprt", b"wtpt", b"chad") if name in tags}
    chosen[b"kTRC"] = tags[b"rTRC"]

    table, data = struct.pack(">I", len(chosen)), b""
    start = 128 + 4 + 12 * len(chosen)
    for name, content in chosen.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)  # tags begin at multiples of 4 bytes
    header = struct.pack(">I", start + len(data)) + source[4:16] + b"GRAY" + source[20:84] + bytes(16) + source[100:128]
    return header + table + data  # the 16 bytes are the checksum of the profile; 0 means none


def to_srgb(colours: PixelArray, profile: bytes) -> tuple[PixelArray, str]:
    """Convert colours to sRGB with relative colorimetric intent and black point compensation.

    The profile is used if it is readable and made for the same kind of colours (grey, RGB or CMYK); an RGB profile is
    used for grey colours too. Without a usable profile, grey and RGB colours are treated as sRGB, and CMYK inks are
    subtracted from white.

    Args:
        colours: uint8 or uint16 (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK. In CMYK, larger values mean more ink.
        profile: ICC profile of the colours; empty if they have none.

    Returns:
        sRGB array (H, W, 3) of the same dtype, and a note to show to the photo's owner. The note is empty unless
        `profile` is given but cannot be used.
    """
    conversion, note = _select(_mode(colours), profile)
    return (_without_profile(colours) if conversion is None else _apply(colours, conversion)), note


def image_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert an 8-bit image of mode L, RGB or CMYK to an sRGB image; `to_srgb` documents the use of `profile`."""
    conversion, _ = _select(image.mode, profile)
    if conversion is None:
        return image.convert("RGB")
    if conversion.mode == "L":
        return Image.fromarray(_apply(np.asarray(image), conversion))
    return _transformed(image if image.mode == conversion.mode else image.convert("RGB"), conversion)


def lab_to_srgb(image: Image.Image) -> Image.Image:
    """Convert an 8-bit CIELAB image, whose white point is D50, to an sRGB image."""
    converted = ImageCms.applyTransform(image, _from_lab())
    assert converted is not None
    return converted


@cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    lab, target = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, target, "LAB", "RGB", renderingIntent=_INTENT, flags=_EXACT)


def _select(mode: str, profile: bytes) -> tuple[Conversion | None, str]:
    """Return the conversion for colours of Pillow's `mode`, and a note to show to the photo's owner.

    The conversion is None if `profile` is empty, unusable or nearly sRGB. The note is empty unless `profile` is
    unusable.
    """
    if not profile:
        return None, ""
    conversion = _conversion(profile)
    if conversion is None:
        return None, "its colour profile cannot be read: taken for sRGB"
    if conversion.mode != mode and (conversion.mode, mode) != ("RGB", "L"):
        return None, "its colour profile is for another kind of colours: taken for sRGB"
    return (None if conversion.is_srgb else conversion), ""


def _apply(colours: PixelArray, conversion: Conversion) -> PixelArray:
    if conversion.mode == "RGB" and _mode(colours) == "L":
        colours = _without_profile(colours)
    if conversion.mode == "L":  # a lookup table of all grey values
        greys = np.arange(largest(colours) + 1, dtype=colours.dtype)[None]
        table: PixelArray = _converted(greys, conversion)[0]
        return table[colours]
    return _converted(colours, conversion)


def _mode(colours: PixelArray) -> str:
    return _CHANNELS[1 if colours.ndim == 2 else colours.shape[2]]


def _without_profile(colours: PixelArray) -> PixelArray:
    """Convert grey, RGB or CMYK colours to sRGB by fixed formulas, ignoring any profile."""
    return _TO_RGB[_mode(colours)](colours)


def _grey_to_rgb(grey: PixelArray) -> PixelArray:
    return np.repeat(grey[..., None], 3, axis=2)


def _identity(colours: PixelArray) -> PixelArray:
    return colours


def _cmyk_to_rgb(inks: PixelArray) -> PixelArray:
    if inks.dtype == np.uint8:
        return np.asarray(_to_pil(inks).convert("RGB"))
    full = largest(inks)
    paper = full - inks.astype(np.float32)
    return (paper[..., :3] * (paper[..., 3:] / full)).round().astype(inks.dtype)


_TO_RGB: dict[str, Callable[[PixelArray], PixelArray]] = {"L": _grey_to_rgb, "RGB": _identity, "CMYK": _cmyk_to_rgb}


@lru_cache(maxsize=16)  # most photos of a set share one profile
def _conversion(profile: bytes) -> Conversion | None:
    """Build the conversion to sRGB from the colour space of an ICC profile.

    Return None if the profile is damaged or its colour space is not grey, RGB or CMYK.
    """
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[opened.profile.xcolor_space.strip()]
        target = ImageCms.ImageCmsProfile(io.BytesIO(srgb()))
        flags = _EXACT if mode == "L" else _FLAGS
        transform = ImageCms.buildTransform(opened, target, mode, "RGB", renderingIntent=_INTENT, flags=flags)
    except (OSError, ImageCms.PyCMSError, KeyError, ValueError):
        return None
    conversion = Conversion(mode, False, transform, profile)
    return conversion._replace(is_srgb=mode in _PROBES and _is_nearly_srgb(conversion, _PROBES[mode]()))


def _grey_ramp() -> PixelArray:
    return np.arange(256, dtype=np.uint8)[None]


def _coarse_cube() -> PixelArray:
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, -1, 3)


_PROBES: dict[str, Callable[[], PixelArray]] = {"L": _grey_ramp, "RGB": _coarse_cube}


def _is_nearly_srgb(conversion: Conversion, colours: PixelArray) -> bool:
    converted = _convert_8bit(colours, conversion).astype(int)
    return bool(np.abs(converted - _without_profile(colours)).max() <= 1)


def _converted(colours: PixelArray, conversion: Conversion) -> PixelArray:
    return (_convert_8bit if colours.dtype == np.uint8 else _convert_16bit)(colours, conversion)


def _convert_8bit(colours: PixelArray, conversion: Conversion) -> PixelArray:
    return np.asarray(_transformed(_to_pil(colours), conversion))


def _transformed(image: Image.Image, conversion: Conversion) -> Image.Image:
    converted = ImageCms.applyTransform(image, conversion.transform)
    assert converted is not None
    return converted


def _convert_16bit(colours: PixelArray, conversion: Conversion) -> PixelArray:
    import imagecodecs

    spaces = {"L": "gray", "RGB": "rgb", "CMYK": "cmyk"}
    converted: PixelArray = imagecodecs.cms_transform(
        np.ascontiguousarray(colours),
        conversion.profile,
        srgb(),
        colorspace=spaces[conversion.mode],
        outcolorspace="rgb",
        outdtype="uint16",
        intent=int(_INTENT),
        flags=int(_EXACT),
    )
    return converted


def _to_pil(colours: PixelArray) -> Image.Image:
    return Image.frombytes(_mode(colours), (colours.shape[1], colours.shape[0]), colours.tobytes())
