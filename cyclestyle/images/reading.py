"""Decoding of image files: training, evaluation and translation all open image files with `open_image`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from cyclestyle.images import colour_tags, decoding, file_formats, png
from cyclestyle.images.colour import image_to_srgb, to_srgb
from cyclestyle.images.decoded import DecodedImage
from cyclestyle.images.decoders import DECODERS, Colour, Decoder, DecoderName, completing, decode_photo
from cyclestyle.images.decoding import ImageInfo, TooManyPixelsError
from cyclestyle.images.metadata import orientation_of, select_metadata
from cyclestyle.images.photo import Metadata, Photo, PixelArray, fault, largest, to_8_bits

Channels = Literal[1, 3]  # grey or RGB
ValueRange = Literal["full"] | tuple[int, int]  # values of 16-bit files that are black and white; full: 0 and 65535

# To undo an EXIF orientation: mirror left and right if the orientation is in `_MIRRORED`, then rotate
# counter-clockwise by `_QUARTERS` quarter turns.
_MIRRORED = frozenset({2, 4, 5, 7})
_QUARTERS = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}


@dataclass(frozen=True)
class OpenedImage:
    """Decoded image file; `to_image` and `to_photo` convert it to an upright sRGB image."""

    path: Path
    decoded: DecodedImage

    def to_image(self, *, transparent_as: str = "white") -> Image.Image:
        """Return an opaque RGB image with 8 bits per channel; the colour `transparent_as` is put behind the image."""
        colours, alpha = self.decoded.colours, self.decoded.alpha
        if not isinstance(colours, Image.Image):
            photo = self.to_photo()
            image = Image.fromarray(to_8_bits(photo.pixels))
            alpha = None if photo.alpha is None else Image.fromarray(to_8_bits(photo.alpha))
        else:
            image = image_to_srgb(colours, self.decoded.profile)
        if alpha is None:
            return image
        assert isinstance(alpha, Image.Image)
        image.putalpha(alpha)
        return decoding.over_background(image, transparent_as)

    def to_photo(self, *, metadata: bool = False) -> Photo:
        """Return a photo with the bit depth, alpha and notes of the file, and with its metadata if `metadata` is True.

        The image must have been decoded by `decode_photo`.
        """
        decoded = self.decoded
        assert not isinstance(decoded.colours, Image.Image)
        assert not isinstance(decoded.alpha, Image.Image)
        preserved, metadata_notes = (
            select_metadata(decoded.exif, decoded.xmp, decoded.dpi, decoded.iptc) if metadata else (Metadata(), ())
        )
        orientation = orientation_of(decoded.exif)
        pixels, colour_note = to_srgb(decoded.colours, decoded.profile)
        colour_notes = [colour_note] if colour_note else []
        notes = (*decoded.notes, *colour_notes, *metadata_notes, *_extension_notes(self.path, decoded.format))
        alpha = None if decoded.alpha is None else _turned(decoded.alpha, orientation)
        return Photo(_turned(pixels, orientation), alpha, preserved, notes)

    def corner(self) -> "OpenedImage":
        """Return an image of only the top left pixel; converting it tests cheaply whether the colours are supported."""
        colours, alpha = _corner(self.decoded.colours), self.decoded.alpha
        alpha = None if alpha is None else _corner(alpha)
        return OpenedImage(self.path, self.decoded._replace(colours=colours, alpha=alpha))


@contextmanager
def open_image(
    path: Path,
    *,
    colour: Colour = "managed",
    decoder: Decoder = decode_photo,
    value_range: ValueRange = "full",
    max_pixels: int = decoding.MAX_PIXELS,
) -> Iterator[OpenedImage]:
    """Context manager: open and decode an image file; only the first frame of an animation is decoded.

    Training, evaluation and translation open image files only with this function. Errors in the `with` block become
    `ImageError`s.

    Args:
        colour: `managed` converts colours to sRGB by the ICC profile in the file, or by the colour space that the file
            declares by numbers, see `colour_tags`; `raw` ignores both.
        decoder: function that decodes the file.
        value_range: the two values of a 16-bit file, from 0 to 65535, that become black and white; `full` leaves all
            values unchanged. Values outside of the range are clipped.
        max_pixels: largest accepted product of width and height; a larger image is rejected without decoding.

    Raises:
        ImageError: the file is not an image, is damaged, has too many pixels or unsupported colours, or needs a
            library that is not installed.
    """
    with decoding.open_bytes(path) as file:
        stream, faults = png.without_faults(file)
        tag = colour_tags.read(stream) if colour == "managed" else colour_tags.ColourTag()
        stream.seek(0)
        decoded = decoder(path, stream, colour=colour, max_pixels=max_pixels)
        decoded = decoded._replace(notes=(*faults, *decoded.notes))
        decoded = decoded if value_range == "full" else _stretched(decoded, *value_range)
        yield OpenedImage(path, _tagged(decoded, tag) if colour == "managed" else decoded._replace(profile=b""))


def read(
    path: Path, *, resize: int | None = None, metadata: bool = False, max_pixels: int = decoding.MAX_PIXELS
) -> Photo:
    """Decode a photo file to upright sRGB, for translation.

    Args:
        resize: maximum length of the longer side, px; larger photos are shrunk to it. None means no limit.
        metadata: whether the result contains EXIF, XMP, IPTC and resolution, to be preserved in the output file.
        max_pixels: see `open_image`.

    Raises:
        ImageError: see `open_image`.
    """
    with open_image(path, max_pixels=max_pixels) as opened:
        photo = resized(opened.to_photo(metadata=metadata), resize)
        alpha = None if photo.alpha is None else _contiguous_writable(photo.alpha)
        photo = Photo(_contiguous_writable(photo.pixels), alpha, photo.metadata, photo.notes)
        if reason := fault(photo):
            raise ValueError(reason)
        return photo


def resized(photo: Photo, longest: int | None) -> Photo:
    """Shrink a photo to at most `longest` px on its longer side; return a photo that fits unchanged.

    If `longest` is None, every photo is returned unchanged.
    """
    if longest is None or max(photo.pixels.shape[:2]) <= longest:
        return photo
    pixels, alpha = _shrunk(photo.pixels, photo.alpha, longest)
    return replace(photo, pixels=pixels, alpha=alpha)


@dataclass(frozen=True)
class ImageReader:
    """Reads image files as opaque sRGB images with 8 bits per channel, for training and evaluation.

    With the default arguments, images have the same colours as in translation, reduced to 8 bits and placed over white.

    Args:
        colour: see `open_image`.
        decoder: `photo` decodes files as translation does; `earlier` decodes them as training did in earlier versions,
            see `decoders.decode_for_training`.
        value_range: see `open_image`.
        transparent_as: colour that shows through transparent pixels, in any notation that `decoding.colour` accepts.
        max_pixels: see `open_image`.
        incomplete: whether JPEG files that lack their last bytes are read, see `decoders.completing`.
    """

    colour: Colour = "managed"
    decoder: DecoderName = "photo"
    value_range: ValueRange = "full"
    transparent_as: str = "white"
    max_pixels: int = decoding.MAX_PIXELS
    incomplete: bool = False

    def read(self, path: Path, *, channels: Channels = 3) -> Image.Image:
        """Decode an image file to an upright image: mode RGB for 3 channels, or mode L (luma of ITU-R BT.601) for 1.

        Raises:
            ImageError: see `open_image`.
        """
        with self._open(path) as opened:
            image = opened.to_image(transparent_as=self.transparent_as)
            return image if channels == 3 else image.convert("L")

    def probe(self, path: Path) -> ImageInfo:
        """Check an image file by decoding it completely; return its properties.

        If the image has more than `max_pixels` pixels, only its header is read, and no error is raised.

        Raises:
            ImageError: `read` cannot read the file, for a reason other than too many pixels.
        """
        try:
            with self._open(path) as opened:
                opened.corner().to_image()  # raises for unsupported colours
                width, height = _upright_size(opened.decoded)
                return ImageInfo(width, height, opened.decoded.is_animated(), True, _values(opened.decoded.colours))
        except TooManyPixelsError as error:
            return ImageInfo(error.width, error.height, animated=False, decoded=False)

    def _open(self, path: Path) -> AbstractContextManager[OpenedImage]:
        decoder = DECODERS[self.decoder]
        return open_image(
            path,
            colour=self.colour,
            decoder=completing(decoder) if self.incomplete else decoder,
            value_range=self.value_range,
            max_pixels=self.max_pixels,
        )


def read_8_bit(
    path: Path,
    *,
    channels: Channels = 3,
    colour: Colour = "managed",
    decoder: DecoderName = "photo",
    transparent_as: str = "white",
    max_pixels: int = decoding.MAX_PIXELS,
) -> Image.Image:
    """Decode an image file to an upright, opaque sRGB image with 8 bits per channel; see `ImageReader`."""
    reader = ImageReader(colour=colour, decoder=decoder, transparent_as=transparent_as, max_pixels=max_pixels)
    return reader.read(path, channels=channels)


def probe(
    path: Path,
    *,
    colour: Colour = "managed",
    decoder: DecoderName = "photo",
    max_pixels: int = decoding.MAX_PIXELS,
) -> ImageInfo:
    """Check an image file by decoding it completely; see `ImageReader.probe`."""
    return ImageReader(colour=colour, decoder=decoder, max_pixels=max_pixels).probe(path)


def _stretched(decoded: DecodedImage, low: int, high: int) -> DecodedImage:
    """Scale the colours of a 16-bit image linearly so that `low` becomes 0 and `high` 65535; clip other values."""
    colours = decoded.colours
    if isinstance(colours, Image.Image) or colours.dtype != np.uint16:
        return decoded
    full = largest(colours)
    scaled = (colours.astype(np.float32) - low) * (full / (high - low))
    return decoded._replace(colours=scaled.round().clip(0, full).astype(np.uint16))


def _values(colours: PixelArray | Image.Image) -> tuple[int, int] | None:
    """Return the smallest and the largest value of a 16-bit image; None for an image with 8 bits per channel."""
    if isinstance(colours, Image.Image) or colours.dtype != np.uint16:
        return None
    return int(colours.min()), int(colours.max())


def _tagged(decoded: DecodedImage, tag: colour_tags.ColourTag) -> DecodedImage:
    """Apply `tag`, the colour space that a file declares by numbers: return the image with the ICC profile of `tag`.

    An empty profile in `tag` means sRGB. The notes of `tag` are added to those of the image. An image that has an ICC
    profile already is returned unchanged, unless `tag.precedes_icc` is True and the colour space of `tag` is supported.
    """
    if decoded.profile and not (tag.precedes_icc and (tag.profile or not tag.notes)):
        return decoded
    return decoded._replace(profile=tag.profile or b"", notes=(*decoded.notes, *tag.notes))


def _corner(channels: PixelArray | Image.Image) -> PixelArray | Image.Image:
    return channels.crop((0, 0, 1, 1)) if isinstance(channels, Image.Image) else channels[:1, :1]


def _upright_size(decoded: DecodedImage) -> tuple[int, int]:
    if isinstance(decoded.colours, Image.Image):
        return decoded.colours.size
    height, width = decoded.colours.shape[:2]
    return (height, width) if _QUARTERS[orientation_of(decoded.exif)] % 2 else (width, height)


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
