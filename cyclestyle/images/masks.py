"""Reading of masks: grey images that decide, for each pixel, how much of its translation a photo receives.

This module does not import PyTorch.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cyclestyle.images import decoding, reading
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import PixelArray

Weights = npt.NDArray[np.uint16]  # (H, W); 0 keeps the photo, `FULL` takes the translation

FULL = 65535  # the weight of white, also in masks of 8 bits
_RED, _GREEN, _BLUE = 19595, 38470, 7471  # luma of ITU-R BT.601, times 65536
_ROWS = 128  # smallest number of rows that are feathered at a time; limits the memory for large masks


def read(path: Path, *, height: int, width: int, max_pixels: int = decoding.MAX_PIXELS) -> Weights:
    """Decode a mask file of any readable format to upright weights (H, W) from 0 (black) to 65535 (white).

    The values in a mask are numbers, not colours: colour profiles are ignored. Colours count by their luma (ITU-R
    BT.601), and transparent parts count as black. The mask is turned upright by its own EXIF orientation.

    Args:
        path: path of the mask file.
        height: height of the upright photo, px.
        width: width of the upright photo, px.
        max_pixels: see `reading.open_image`.

    Raises:
        ImageError: the file cannot be read, has another size than the photo, or has no other values than 0 and 1.
    """
    with reading.open_image(path, colour="raw", max_pixels=max_pixels) as opened:
        image = opened.to_photo()
        if image.pixels.shape[:2] != (height, width):
            raise ImageError(path, _other_size(image.pixels.shape[:2], (height, width)))
        if image.pixels.max() == 1:
            raise ImageError(path, "it has no other values than 0 and 1, but white is 255: multiply the values by 255")
        weights = _to_16_bits(_luma(image.pixels))
        if image.alpha is not None:
            weights = _scaled(weights, _to_16_bits(image.alpha))
        return np.ascontiguousarray(weights)


def shrunk(weights: Weights, height: int, width: int) -> Weights:
    """Shrink weights to `height` x `width` px by averages over areas: areas that are black remain 0."""
    if weights.shape == (height, width):
        return weights
    plane = Image.fromarray(weights.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    return np.asarray(plane).round().clip(0, FULL).astype(np.uint16)


def feathered(weights: Weights, feather: int) -> Weights:
    """Soften the edges of black areas by reducing the weights within `feather` px around them.

    A weight is multiplied by a factor that depends on the distance to the nearest weight of 0: a smooth step that
    reaches 1 at a distance of `feather` + 1 px. No weight increases, so black areas remain 0. Edges between other
    greys, and the border of the image, are not softened.

    Args:
        weights: weights (H, W).
        feather: width of the soft edge, px; 0 changes nothing.
    """
    if feather == 0 or weights.all():
        return weights
    soft = np.empty_like(weights)
    rows = max(_ROWS, feather)
    for top in range(0, len(weights), rows):
        above = min(top, feather)
        near = weights[top - above : top + rows + feather]
        distances = _distances(near == 0, feather + 1)[above : above + rows]
        share = distances / (feather + 1)
        factor = share * share * (3 - 2 * share)
        soft[top : top + rows] = (weights[top : top + rows] * factor).round().astype(np.uint16)
    return soft


def _other_size(mask: tuple[int, ...], photo: tuple[int, int]) -> str:
    """Return the error message for a mask of another size than its photo; both sizes are (height, width)."""
    sizes = f"it has {mask[1]} x {mask[0]} px, and the photo {photo[1]} x {photo[0]}"
    if mask == photo[::-1]:
        return f"{sizes}: save the mask upright, as programs show the photo (its EXIF orientation turns it)"
    return f"{sizes}: a mask has the size of its photo"


def _luma(pixels: PixelArray) -> PixelArray:
    """Return the luma (H, W) of colours (H, W, 3), rounded to the same dtype; greys keep their value."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * _RED + green * _GREEN + blue * _BLUE + 2**15) >> 16).astype(pixels.dtype)


def _to_16_bits(samples: PixelArray) -> Weights:
    return samples if samples.dtype == np.uint16 else samples.astype(np.uint16) * np.uint16(257)


def _scaled(weights: Weights, alpha: Weights) -> Weights:
    return ((weights.astype(np.uint32) * alpha + FULL // 2) // FULL).astype(np.uint16)


def _distances(black: npt.NDArray[np.bool_], limit: int) -> npt.NDArray[np.float32]:
    """Return the distance of each pixel to the nearest pixel where `black` is true, in px, but at most `limit`."""
    squares = np.square(_distances_in_rows(black, limit).astype(np.float32))
    nearest = squares.copy()
    for step in range(1, min(limit, len(black))):
        if step * step >= nearest.max():
            break
        np.minimum(nearest[step:], squares[:-step] + np.float32(step * step), out=nearest[step:])
        np.minimum(nearest[:-step], squares[step:] + np.float32(step * step), out=nearest[:-step])
    return np.sqrt(nearest)


def _distances_in_rows(black: npt.NDArray[np.bool_], limit: int) -> npt.NDArray[np.int32]:
    """Return the distance of each pixel to the nearest black pixel in its row, in px, but at most `limit`."""
    columns = np.arange(black.shape[1], dtype=np.int32)
    before = np.maximum.accumulate(np.where(black, columns, np.int32(-limit)), axis=1)
    after = np.where(black, columns, np.int32(black.shape[1] + limit))
    after = np.minimum.accumulate(after[:, ::-1], axis=1)[:, ::-1]
    nearest: npt.NDArray[np.int32] = np.minimum(columns - before, after - columns).clip(max=limit)
    return nearest
