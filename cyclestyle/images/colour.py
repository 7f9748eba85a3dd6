"""Colours of whatever kind, through an embedded ICC profile or without, as sRGB."""

import io
from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

from cyclestyle.images.photo import PixelArray, largest

_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION
_EXACT = _FLAGS | ImageCms.Flags.NOOPTIMIZE  # otherwise through a coarse table, which misses dark greys by 4 %
_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}  # colour spaces of profiles, as Pillow calls them
_CHANNELS = {1: "L", 3: "RGB", 4: "CMYK"}


class Conversion(NamedTuple):
    """A profile, ready to be used."""

    mode: str  # of the colours that it is for: L, RGB or CMYK
    is_srgb: bool  # or so near that nobody could tell
    shallow: ImageCms.ImageCmsTransform  # for 8 bits
    profile: bytes


@cache
def srgb() -> bytes:
    """The profile that output is tagged with, the same bytes at every call and on every system."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes.fromhex("07ea 0001 0001 0000 0000 0000")  # made on 2026-01-01
    profile[40:44] = bytes(4)  # the system that it was made on
    return bytes(profile)


def to_srgb(colours: PixelArray, profile: bytes) -> tuple[PixelArray, str]:
    """Colours as sRGB (H, W, 3) of the same depth, and what their owner should know; empty if nothing.

    Relative colorimetric, with black point compensation. What has no profile is taken for sRGB; inks are then
    subtracted from white.

    Args:
        colours: uint8 or uint16 (H, W) grey, (H, W, 3) RGB or (H, W, 4) CMYK, more being more ink.
        profile: ICC; empty if there is none.
    """
    if not profile:
        return _without_profile(colours), ""
    found = _conversion(profile)
    if found is None:
        return _without_profile(colours), "its colour profile cannot be read: taken for sRGB"
    if found.mode == "RGB" and _mode(colours) == "L":
        colours = _without_profile(colours)
    if found.mode != _mode(colours):
        return _without_profile(colours), "its colour profile is for another kind of colours: taken for sRGB"
    if found.is_srgb:
        return _without_profile(colours), ""
    if found.mode == "L":  # every grey that there is, once
        return _converted(np.arange(largest(colours) + 1, dtype=colours.dtype)[None], found)[0][colours], ""
    return _converted(colours, found), ""


def lab_to_srgb(picture: Image.Image) -> Image.Image:
    """A CIELAB picture of 8 bits, whose white is D50, as sRGB."""
    made = ImageCms.applyTransform(picture, _from_lab())
    assert made is not None
    return made


@cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    lab, target = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, target, "LAB", "RGB", renderingIntent=_INTENT, flags=_EXACT)


def _mode(colours: PixelArray) -> str:
    return _CHANNELS[1 if colours.ndim == 2 else colours.shape[2]]


def _without_profile(colours: PixelArray) -> PixelArray:
    """Without a profile."""
    return _PLAIN[_mode(colours)](colours)


def _repeated(grey: PixelArray) -> PixelArray:
    return np.repeat(grey[..., None], 3, axis=2)


def _identity(colours: PixelArray) -> PixelArray:
    return colours


def _cmyk_to_rgb(inks: PixelArray) -> PixelArray:
    if inks.dtype == np.uint8:
        return np.asarray(_picture(inks).convert("RGB"))
    full = largest(inks)
    paper = full - inks.astype(np.float32)
    return (paper[..., :3] * (paper[..., 3:] / full)).round().astype(inks.dtype)


_PLAIN: dict[str, Callable[[PixelArray], PixelArray]] = {"L": _repeated, "RGB": _identity, "CMYK": _cmyk_to_rgb}


@lru_cache(maxsize=16)  # of a photo set, most have the same
def _conversion(profile: bytes) -> Conversion | None:
    """None for what is no profile, or one for no kind of colours that pictures have."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES[opened.profile.xcolor_space.strip()]
        target = ImageCms.ImageCmsProfile(io.BytesIO(srgb()))
        flags = _EXACT if mode == "L" else _FLAGS
        transform = ImageCms.buildTransform(opened, target, mode, "RGB", renderingIntent=_INTENT, flags=flags)
    except (OSError, ImageCms.PyCMSError, KeyError, ValueError):
        return None
    conversion = Conversion(mode, False, transform, profile)
    return conversion._replace(is_srgb=mode in _TRIED and _is_nearly_srgb(conversion, _TRIED[mode]()))


def _grey_ramp() -> PixelArray:
    return np.arange(256, dtype=np.uint8)[None]


def _coarse_cube() -> PixelArray:
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    return np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(16, -1, 3)


_TRIED: dict[str, Callable[[], PixelArray]] = {"L": _grey_ramp, "RGB": _coarse_cube}


def _is_nearly_srgb(conversion: Conversion, colours: PixelArray) -> bool:
    made = _convert_8bit(colours, conversion).astype(int)
    return bool(np.abs(made - _without_profile(colours)).max() <= 1)


def _converted(colours: PixelArray, conversion: Conversion) -> PixelArray:
    return (_convert_8bit if colours.dtype == np.uint8 else _convert_16bit)(colours, conversion)


def _convert_8bit(colours: PixelArray, conversion: Conversion) -> PixelArray:
    made = ImageCms.applyTransform(_picture(colours), conversion.shallow)
    assert made is not None
    return np.asarray(made)


def _convert_16bit(colours: PixelArray, conversion: Conversion) -> PixelArray:
    import imagecodecs

    spaces = {"L": "gray", "RGB": "rgb", "CMYK": "cmyk"}
    made: PixelArray = imagecodecs.cms_transform(
        np.ascontiguousarray(colours),
        conversion.profile,
        srgb(),
        colorspace=spaces[conversion.mode],
        outcolorspace="rgb",
        outdtype="uint16",
        intent=int(_INTENT),
        flags=int(_EXACT),
    )
    return made


def _picture(colours: PixelArray) -> Image.Image:
    return Image.frombytes(_mode(colours), (colours.shape[1], colours.shape[0]), colours.tobytes())
