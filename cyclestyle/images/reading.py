"""From a photographer's file to sRGB pixels."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from cyclestyle.images import colour, decoding, file_formats, high_bit_depth
from cyclestyle.images.decoded import DecodedImage
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.metadata import exif_of, orientation_of, select_metadata, xmp_of
from cyclestyle.images.photo import Metadata, Photo, PixelArray, fault, largest

_PARTS = {"TIFF": "pages", "HEIF": "pictures"}  # frames, elsewhere

_GREY = frozenset({"1", "L", "LA", "La"})
_COLOURED = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "LAB", "CMYK"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

# Orientation -> how often to turn a quarter to the left after having swapped left and right, if it says so.
_MIRRORED = frozenset({2, 4, 5, 7})
_QUARTERS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}


def read(
    path: Path, *, resize: int | None = None, metadata: bool = False, max_pixels: int = decoding.MAX_PIXELS
) -> Photo:
    """The picture in a file as it should be seen: sRGB, upright, of an animated one the first frame.

    Args:
        resize: the longer side that it is shrunk to, in px; smaller pictures stay as they are.
        metadata: keep EXIF, XMP and resolution.
        max_pixels: of a larger picture nothing but the header is read.

    Raises:
        PictureError: the file is no picture, is damaged, has too many pixels, colours that are not supported, or
            needs a library that is not installed.
    """
    with decoding.open_bytes(path) as stream:
        source = _source(path, stream, max_pixels)
        extras, notes = select_metadata(source.exif, source.xmp, source.dpi) if metadata else (Metadata(), ())
        orientation = orientation_of(source.exif)
        pixels, note = colour.to_srgb(source.colours, source.profile)

        pixels = _turned(pixels, orientation)
        alpha = None if source.alpha is None else _turned(source.alpha, orientation)
        if resize is not None and max(pixels.shape[:2]) > resize:
            pixels, alpha = _shrunk(pixels, alpha, resize)
        about = (*source.notes, *([note] if note else []), *notes, *_extension_notes(path, source.format))
        photo = Photo(
            _contiguous_writable(pixels), None if alpha is None else _contiguous_writable(alpha), extras, about
        )
        if found := fault(photo):
            raise ValueError(found)
        return photo


def _source(path: Path, stream: IO[bytes], max_pixels: int) -> DecodedImage:
    header = high_bit_depth.header(path, stream)
    if header is not None:
        _check_size(path, header.width, header.height, max_pixels)
        if header.bits == 16:
            high_bit_depth.check_libraries(path)
            return _as_announced(header.read(path, stream), header.width, header.height)
    if not file_formats.HAS_HEIF and _is_heif(stream):
        raise ImageError(path, "HEIC needs another library: pip install 'cyclestyle[heic]'")
    with decoding.identify(path, stream, formats=file_formats.READ) as image:
        _check_size(path, image.width, image.height, max_pixels)
        announced = image.size
        source = _shallow(path, image, bits=header.bits if header else _bits(image, stream))
        return _as_announced(source, *announced)


def _as_announced(source: DecodedImage, width: int, height: int) -> DecodedImage:
    """A decoded file whose pixels are as many as in its header; raises ValueError for others."""
    found, channels = source.colours.shape[:2], 1 if source.colours.ndim == 2 else source.colours.shape[-1]
    if found != (height, width):
        raise ValueError(f"{found[1]} x {found[0]} pixels, its header has {width} x {height}")
    if channels not in (1, 3, 4) or source.colours.ndim > 3:
        raise ValueError(f"{channels} channels are no colours")
    if source.alpha is not None and source.alpha.shape != found:
        raise ValueError(f"alpha of another size, {source.alpha.shape}")
    return source


def _check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(path, decoding.too_large(width, height, max_pixels))


def _is_heif(stream: IO[bytes]) -> bool:
    start = stream.read(12)
    stream.seek(0)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


def _shallow(path: Path, image: ImageFile.ImageFile, *, bits: int) -> DecodedImage:
    """All of a picture that Pillow gives 8 bits a channel, or fewer.

    Args:
        bits: a channel has in the file.
    """
    if image.mode not in _GREY | _COLOURED:
        raise ImageError(path, f"colours of the kind {image.mode} are not supported")
    if high_bit_depth.is_negative_plane(getattr(image, "tag_v2", {})):
        _invert_when_decoded(image)
    decoding.decode(image)
    exif, notes = exif_of(image.getexif)
    profile, xmp, dpi = image.info.get("icc_profile", b""), xmp_of(image.info), image.info.get("dpi")
    if image.mode == "L" and bits < 8 and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= 255 // (2**bits - 1)  # Pillow has scaled the pixels, but not this
    colours, alpha = _channels(image)
    notes += (f"{bits} bits a channel became 8",) if bits > 8 else ()
    return DecodedImage(colours, alpha, profile, exif, xmp, dpi, str(image.format), notes + _frames(image))


def _invert_when_decoded(image: ImageFile.ImageFile) -> None:
    """Have Pillow know that white is zero, which it forgets of grey planes that are not compressed."""
    image.tile = [
        tile._replace(args=(f"{image.mode};I", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and tile.args[0] == image.mode
        else tile
        for tile in image.tile
    ]


def _channels(image: Image.Image) -> tuple[PixelArray, PixelArray | None]:
    """Grey, RGB or CMYK as they stand in the file, and alpha."""
    grey = image.mode in _GREY
    if image.has_transparency_data or image.mode in _WITH_ALPHA:
        channels = np.asarray(image.convert("LA" if grey else "RGBA"))
        return channels[..., 0] if grey else channels[..., :3], channels[..., -1]
    if image.mode == "LAB":
        return np.asarray(colour.lab_to_srgb(image)), None
    return np.asarray(image.convert("L" if grey else "CMYK" if image.mode == "CMYK" else "RGB")), None


def _frames(image: ImageFile.ImageFile) -> tuple[str, ...]:
    """What the owner of an opened picture with more than one frame should know."""
    if not decoding.is_animated(image):
        return ()
    parts = _PARTS.get(str(image.format), "frames")
    which = "the main one" if image.format == "HEIF" else "the first"
    try:
        return (f"{which} of {getattr(image, 'n_frames', 1)} {parts}",)
    except Exception:  # a damaged second frame, at which Pillow raises nearly anything
        return (f"{which} of several {parts}",)


def _bits(image: ImageFile.ImageFile, stream: IO[bytes]) -> int:
    """Bits a channel of what is neither PNG nor TIFF."""
    if image.format != "AVIF":
        return int(image.info.get("bit_depth", 8))  # which HEIC have
    stream.seek(0)
    start = stream.read(2**16)
    _, found, configuration = start.partition(b"av1C")
    flags = configuration[2] if found and len(configuration) > 2 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _turned(channels: PixelArray, orientation: int) -> PixelArray:
    """As it should be seen; numpy turns to the left."""
    if orientation in _MIRRORED:
        channels = channels[:, ::-1]
    return np.rot90(channels, _QUARTERS[orientation])


def _shrunk(pixels: PixelArray, alpha: PixelArray | None, longest: int) -> tuple[PixelArray, PixelArray | None]:
    """Bicubic with antialiasing; colours count by how opaque they are, so that hidden ones do not bleed."""
    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if alpha is None and pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)), None

    full = largest(pixels)
    weights = np.ones((height, width), np.float32) if alpha is None else alpha.astype(np.float32) / full
    made_weights = _resized(weights, size).clip(0, 1)
    made = np.zeros((size[1], size[0], 3), np.float32)
    for channel in range(3):
        premultiplied = _resized(pixels[..., channel] * weights, size)
        np.divide(premultiplied, made_weights, out=made[..., channel], where=made_weights > 0.5 / full)
    colours = made.round().clip(0, full).astype(pixels.dtype)
    return colours, None if alpha is None else (made_weights * full).round().astype(alpha.dtype)


def _resized(channel: PixelArray, size: tuple[int, int]) -> PixelArray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size, Image.Resampling.BICUBIC))


def _contiguous_writable(channels: PixelArray) -> PixelArray:
    """In one piece, and free to be changed, as PyTorch asks for."""
    return np.require(channels, requirements=["C", "W"])


def _extension_notes(path: Path, pillow_name: str) -> list[str]:
    """What a file's owner should know about its name."""
    ending, found = path.suffix.lower(), file_formats.own_name(pillow_name)
    told = [f"{found} in spite of its name"] if file_formats.BY_ENDING.get(ending, found) != found else []
    if not file_formats.is_written(ending):
        told.append(f"{file_formats.BY_ENDING.get(ending, 'such a name')} is read only: another format is written")
    return told
