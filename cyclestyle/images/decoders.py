"""Decoders of image files: one for all files that can be translated, one for training as in earlier versions."""

import functools
import io
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np
from PIL import Image, ImageFile

from cyclestyle.images import decoding, file_formats, high_bit_depth
from cyclestyle.images.colour import lab_to_srgb
from cyclestyle.images.decoded import DecodedImage
from cyclestyle.images.decoding import ImageError, check_size
from cyclestyle.images.metadata import embedded_exif, exif_of, iptc_of, xmp_of
from cyclestyle.images.photo import PixelArray

# Use of embedded ICC profiles: `managed` converts colours to sRGB by the profile, `raw` takes them for sRGB.
Colour = Literal["managed", "raw"]

# Decoder of training images: `photo` is `decode_photo`, `earlier` is `decode_for_training`.
DecoderName = Literal["photo", "earlier"]

_START_OF_JPEG, _END_OF_JPEG = b"\xff\xd8", b"\xff\xd9"
_FRAME_NAMES = {"TIFF": "pages", "HEIF": "pictures"}  # word for frames in notes; "frames" for other formats

_GREY = frozenset({"1", "L", "LA", "La"})
_COLOURED = frozenset({"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr", "LAB", "CMYK"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_WITH_ALPHA = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})


class Decoder(Protocol):
    """Function that decodes the first frame of the image file at `path`, which is open as `stream`.

    A decoder raises an `ImageError` if the image has more than `max_pixels` pixels, and errors of any type for damaged
    data. It returns the ICC profile without applying it. `colour` announces whether the caller will apply the profile
    (`managed`) or ignore it (`raw`); the choice of the decoding method may depend on this.
    """

    def __call__(self, path: Path, stream: IO[bytes], *, colour: Colour, max_pixels: int) -> DecodedImage: ...


def decode_photo(path: Path, stream: IO[bytes], *, colour: Colour, max_pixels: int) -> DecodedImage:
    """Decode any file that can be translated; see `Decoder`.

    Colours have 16 bits per channel if the file is a PNG or TIFF with 16 bits, else 8.
    """
    header = high_bit_depth.header(path, stream)
    if header is not None:
        check_size(path, header.width, header.height, max_pixels)
        if header.bits == 16:
            high_bit_depth.check_libraries(path)
            return _checked(header.read(path, stream), header.width, header.height)
    if not file_formats.HAS_HEIF and _is_heif(stream):
        raise ImageError(path, "HEIC needs another library: pip install 'cyclestyle[heic]'", False)
    with decoding.identify(path, stream, formats=file_formats.READ) as image:
        check_size(path, image.width, image.height, max_pixels)
        width, height = image.size
        source = _decode_8bit(path, image, bits=header.bits if header else _bits(image, stream))
        return _checked(source, width, height)


def decode_for_training(path: Path, stream: IO[bytes], *, colour: Colour, max_pixels: int) -> DecodedImage:
    """Decode a training image as earlier versions did: with Pillow, upright, with 8 bits per channel; see `Decoder`.

    Training runs that began in an earlier version use this decoder, so they resume with the same pixels. Differences
    from `decode_photo`: HEIC, CIELAB and damaged EXIF are errors, 16-bit RGB values are cut to their upper 8 bits, and
    some layouts of 16-bit TIFF files are misread.

    One exception: if `colour` is `managed`, a PNG or TIFF with an ICC profile and 16 bits per channel is decoded
    by `decode_photo`, provided that the libraries for 16 bits are installed.
    """
    image = decoding.identify(path, stream)
    check_size(path, image.width, image.height, max_pixels)
    is_animated = functools.partial(decoding.is_animated, image)
    if colour == "managed" and _has_16_bits_and_profile(path, stream, image):
        decoded = decode_photo(path, stream, colour=colour, max_pixels=max_pixels)
        return decoded._replace(is_animated=is_animated)
    decoding.apply_orientation(image)
    colours, alpha = _channels_for_training(image)
    profile = image.info.get("icc_profile") or b""
    return DecodedImage(colours, alpha, profile, Image.Exif(), b"", None, str(image.format), is_animated=is_animated)


def completing(decoder: Decoder) -> Decoder:
    """Return a decoder that equals `decoder`, except that it also decodes JPEG files that lack their last bytes.

    The part of the image that was in the missing bytes is grey, or blurred if the JPEG is progressive.
    """

    def decode(path: Path, stream: IO[bytes], *, colour: Colour, max_pixels: int) -> DecodedImage:
        try:
            return decoder(path, stream, colour=colour, max_pixels=max_pixels)
        except (ImageError, MemoryError):
            raise
        except Exception:
            stream.seek(0)
            content = stream.read()
            if not content.startswith(_START_OF_JPEG):
                raise
            return decoder(path, io.BytesIO(content + _END_OF_JPEG), colour=colour, max_pixels=max_pixels)

    return decode


DECODERS: dict[DecoderName, Decoder] = {"photo": decode_photo, "earlier": decode_for_training}


def _has_16_bits_and_profile(path: Path, stream: IO[bytes], image: ImageFile.ImageFile) -> bool:
    """Return whether an opened PNG or TIFF has an ICC profile and 16 bits per channel, and `decode_photo` can read it.

    The result is False for other formats.
    """
    if image.format not in ("PNG", "TIFF") or not image.info.get("icc_profile"):
        return False
    position = stream.tell()
    try:
        header = high_bit_depth.header(path, stream)
    except ImageError:  # Pillow decodes a few files that `high_bit_depth` rejects
        header = None
    stream.seek(position)
    return header is not None and header.bits == 16 and high_bit_depth.has_libraries()


def _channels_for_training(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Split an image into its colours, mode L, RGB or CMYK, and its alpha, mode L; alpha is None for an opaque image.

    Raises:
        ValueError: the colours are floating-point numbers or CIELAB.
    """
    image = decoding.to_8_bits(image)
    grey = image.mode in _GREY
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return rgba.getchannel("R") if grey else rgba.convert("RGB"), rgba.getchannel("A")
    mode = "L" if grey else "CMYK" if image.mode == "CMYK" else "RGB"
    return image if image.mode == mode else image.convert(mode), None


def _checked(source: DecodedImage, width: int, height: int) -> DecodedImage:
    """Return `source` unchanged; raise a ValueError if its arrays have a wrong size or number of channels.

    Args:
        width: expected width, from the header of the file, px.
        height: expected height, px.
    """
    assert not isinstance(source.colours, Image.Image)
    shape, channels = source.colours.shape[:2], 1 if source.colours.ndim == 2 else source.colours.shape[-1]
    if shape != (height, width):
        raise ValueError(f"it has {shape[1]} x {shape[0]} pixels, but its header states {width} x {height}")
    if channels not in (1, 3, 4) or source.colours.ndim > 3:
        raise ValueError(f"it has {channels} channels, expected 1, 3 or 4")
    assert not isinstance(source.alpha, Image.Image)
    if source.alpha is not None and source.alpha.shape != shape:
        raise ValueError(f"its alpha has the shape {source.alpha.shape}, but its colours {shape}")
    return source


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
    exif, notes = exif_of(lambda: embedded_exif(image))
    profile, xmp, dpi = image.info.get("icc_profile", b""), xmp_of(image.info), image.info.get("dpi")
    if image.mode == "L" and bits < 8 and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= 255 // (2**bits - 1)  # Pillow scales the pixels to 8 bits, but not this value
    colours, alpha = _channels(image)
    notes += (f"{bits} bits a channel became 8",) if bits > 8 else ()
    iptc, frames = iptc_of(image.info, getattr(image, "tag_v2", {})), _frames(image)
    return DecodedImage(
        colours,
        alpha,
        profile,
        exif,
        xmp,
        dpi,
        str(image.format),
        notes + frames,
        iptc,
        is_animated=lambda: bool(frames),
    )


def _invert_when_decoded(image: ImageFile.ImageFile) -> None:
    """Make Pillow invert the grey values of an opened TIFF when it decodes them, if the file is uncompressed.

    Call this only if `high_bit_depth.is_negative_plane` returns True for the file. Pillow inverts such a file without
    help if it is compressed, so a compressed image is left unchanged.
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
        return np.asarray(lab_to_srgb(image)), None
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
