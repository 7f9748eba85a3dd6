"""Decoding of photo files to upright sRGB pixels and metadata."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from cyclestyle.images import colour, decoding, file_formats, high_bit_depth
from cyclestyle.images.decoded import DecodedImage
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.metadata import exif_of, orientation_of, select_metadata, xmp_of
from cyclestyle.images.photo import Metadata, Photo, PixelArray, fault, largest

_FRAME_NAMES = {"TIFF": "pages", "HEIF": "pictures"}  # word for frames in notes; "frames" for other formats

_GREY = frozenset({"1", "L", "LA", "La"})
_COLOURED = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "LAB", "CMYK"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

# To undo an EXIF orientation: mirror left and right if the orientation is in `_MIRRORED`, then rotate
# counter-clockwise by `_QUARTERS` quarter turns.
_MIRRORED = frozenset({2, 4, 5, 7})
_QUARTERS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}


def read(
    path: Path, *, resize: int | None = None, metadata: bool = False, max_pixels: int = decoding.MAX_PIXELS
) -> Photo:
    """Decode a photo file to upright sRGB; only the first frame of an animation is read.

    Args:
        resize: maximum length of the longer side, px; larger photos are shrunk to it. None means no limit.
        metadata: whether the result contains EXIF, XMP and resolution, to be preserved in the output file.
        max_pixels: largest accepted product of width and height; a larger photo is rejected without decoding.

    Raises:
        ImageError: the file is not an image, is damaged, has too many pixels or unsupported colours, or needs a
            library that is not installed.
    """
    with decoding.open_bytes(path) as stream:
        source = _source(path, stream, max_pixels)
        preserved, metadata_notes = (
            select_metadata(source.exif, source.xmp, source.dpi) if metadata else (Metadata(), ())
        )
        orientation = orientation_of(source.exif)
        pixels, colour_note = colour.to_srgb(source.colours, source.profile)

        pixels = _turned(pixels, orientation)
        alpha = None if source.alpha is None else _turned(source.alpha, orientation)
        if resize is not None and max(pixels.shape[:2]) > resize:
            pixels, alpha = _shrunk(pixels, alpha, resize)
        colour_notes = [colour_note] if colour_note else []
        notes = (*source.notes, *colour_notes, *metadata_notes, *_extension_notes(path, source.format))
        alpha = None if alpha is None else _contiguous_writable(alpha)
        photo = Photo(_contiguous_writable(pixels), alpha, preserved, notes)
        if reason := fault(photo):
            raise ValueError(reason)
        return photo


def _source(path: Path, stream: IO[bytes], max_pixels: int) -> DecodedImage:
    header = high_bit_depth.header(path, stream)
    if header is not None:
        _check_size(path, header.width, header.height, max_pixels)
        if header.bits == 16:
            high_bit_depth.check_libraries(path)
            return _checked(header.read(path, stream), header.width, header.height)
    if not file_formats.HAS_HEIF and _is_heif(stream):
        raise ImageError(path, "HEIC needs another library: pip install 'cyclestyle[heic]'")
    with decoding.identify(path, stream, formats=file_formats.READ) as image:
        _check_size(path, image.width, image.height, max_pixels)
        width, height = image.size
        source = _decode_8bit(path, image, bits=header.bits if header else _bits(image, stream))
        return _checked(source, width, height)


def _checked(source: DecodedImage, width: int, height: int) -> DecodedImage:
    """Return `source` unchanged; raise a ValueError if its arrays have a wrong size or number of channels.

    Args:
        width: expected width, from the header of the file, px.
        height: expected height, px.
    """
    shape, channels = source.colours.shape[:2], 1 if source.colours.ndim == 2 else source.colours.shape[-1]
    if shape != (height, width):
        raise ValueError(f"it has {shape[1]} x {shape[0]} pixels, but its header states {width} x {height}")
    if channels not in (1, 3, 4) or source.colours.ndim > 3:
        raise ValueError(f"it has {channels} channels, expected 1, 3 or 4")
    if source.alpha is not None and source.alpha.shape != shape:
        raise ValueError(f"its alpha has the shape {source.alpha.shape}, but its colours {shape}")
    return source


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(path, decoding.too_large(width, height, max_pixels))


def _is_heif(stream: IO[bytes]) -> bool:
    start = stream.read(12)
    stream.seek(0)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _decode_8bit(path: Path, image: ImageFile.ImageFile, *, bits: int) -> DecodedImage:
    """Decode an image with Pillow, which reduces it to 8 bits per channel if it has more.

    Args:
        path: path of the file, for error messages.
        image: image opened by Pillow, not yet decoded.
        bits: number of bits per channel in the file; above 8, the result contains a note about the reduction.
    """
    if image.mode not in _GREY | _COLOURED:
        raise ImageError(path, f"colours of the kind {image.mode} are not supported")
    if high_bit_depth.is_negative_plane(getattr(image, "tag_v2", {})):
        _invert_when_decoded(image)
    decoding.decode(image)
    exif, notes = exif_of(image.getexif)
    profile, xmp, dpi = image.info.get("icc_profile", b""), xmp_of(image.info), image.info.get("dpi")
    if image.mode == "L" and bits < 8 and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= 255 // (2**bits - 1)  # Pillow scales the pixels to 8 bits, but not this value
    colours, alpha = _channels(image)
    notes += (f"{bits} bits a channel became 8",) if bits > 8 else ()
    return DecodedImage(colours, alpha, profile, exif, xmp, dpi, str(image.format), notes + _frames(image))


def _invert_when_decoded(image: ImageFile.ImageFile) -> None:
    """Set up `image` so that Pillow inverts its pixels while decoding them; do nothing if they are compressed.

    This is needed for files for which `high_bit_depth.is_negative_plane` returns True. By default, Pillow inverts their
    pixels only if they are compressed.
    """
    image.tile = [
        tile._replace(args=(f"{image.mode};I", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and tile.args[0] == image.mode
        else tile
        for tile in image.tile
    ]


def _channels(image: Image.Image) -> tuple[PixelArray, PixelArray | None]:
    """Return the colours of an image and its alpha, as arrays; alpha is None if the image is opaque.

    Grey, RGB and CMYK colours are returned as stored. CIELAB colours are converted to sRGB, and other colours to RGB.
    """
    grey = image.mode in _GREY
    if image.has_transparency_data or image.mode in _WITH_ALPHA:
        channels = np.asarray(image.convert("LA" if grey else "RGBA"))
        return channels[..., 0] if grey else channels[..., :3], channels[..., -1]
    if image.mode == "LAB":
        return np.asarray(colour.lab_to_srgb(image)), None
    return np.asarray(image.convert("L" if grey else "CMYK" if image.mode == "CMYK" else "RGB")), None


def _frames(image: ImageFile.ImageFile) -> tuple[str, ...]:
    """Return one note, to show to the photo's owner, if an image has several frames; else return no notes."""
    if not decoding.is_animated(image):
        return ()
    frames = _FRAME_NAMES.get(str(image.format), "frames")
    which = "the main one" if image.format == "HEIF" else "the first"
    try:
        return (f"{which} of {getattr(image, 'n_frames', 1)} {frames}",)
    except Exception:  # the second frame is damaged; Pillow then raises nearly any type
        return (f"{which} of several {frames}",)


def _bits(image: ImageFile.ImageFile, stream: IO[bytes]) -> int:
    """Return the number of bits per channel in an image file that is neither PNG nor TIFF."""
    if image.format != "AVIF":
        return int(image.info.get("bit_depth", 8))  # only the HEIC decoder sets `bit_depth`
    stream.seek(0)
    start = stream.read(2**16)
    _, marker, configuration = start.partition(b"av1C")
    flags = configuration[2] if marker and len(configuration) > 2 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _turned(channels: PixelArray, orientation: int) -> PixelArray:
    """Mirror and rotate `channels` to undo an EXIF orientation from 1 to 8."""
    if orientation in _MIRRORED:
        channels = channels[:, ::-1]
    return np.rot90(channels, _QUARTERS[orientation])


def _shrunk(pixels: PixelArray, alpha: PixelArray | None, longest: int) -> tuple[PixelArray, PixelArray | None]:
    """Shrink an image with a bicubic, antialiasing filter.

    Colours are weighted by alpha: otherwise the hidden colours of transparent pixels would bleed into visible pixels.

    Args:
        longest: length of the longer side of the result, in px.
    """
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if alpha is None and pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)), None

    full = largest(pixels)
    weights = np.ones((height, width), np.float32) if alpha is None else alpha.astype(np.float32) / full
    new_weights = _resized(weights, size).clip(0, 1)
    shrunk = np.zeros((size[1], size[0], 3), np.float32)
    for channel in range(3):
        premultiplied = _resized(pixels[..., channel] * weights, size)
        np.divide(premultiplied, new_weights, out=shrunk[..., channel], where=new_weights > 0.5 / full)
    colours = shrunk.round().clip(0, full).astype(pixels.dtype)
    return colours, None if alpha is None else (new_weights * full).round().astype(alpha.dtype)


def _resized(channel: PixelArray, size: tuple[int, int]) -> PixelArray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size, Image.Resampling.BICUBIC))


def _contiguous_writable(channels: PixelArray) -> PixelArray:
    """Return `channels` as a contiguous, writable array, for `torch.from_numpy`; copy them only if necessary."""
    return np.require(channels, requirements=["C", "W"])


def _extension_notes(path: Path, pillow_name: str) -> list[str]:
    """Return notes, to show to the photo's owner, about the extension of `path`.

    One note is returned if the extension belongs to another format than `pillow_name`, the actual format of the file.
    Another note is returned if files with this extension cannot be written.
    """
    ending, actual = path.suffix.lower(), file_formats.own_name(pillow_name)
    notes = [f"{actual} in spite of its name"] if file_formats.BY_ENDING.get(ending, actual) != actual else []
    if not file_formats.is_written(ending):
        notes.append(f"{file_formats.BY_ENDING.get(ending, 'such a name')} is read only: another format is written")
    return notes
