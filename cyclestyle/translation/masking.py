"""Application of masks: each pixel of a photo receives as much of its translation as the photo's mask demands."""

import torch
from torch import Tensor

from cyclestyle.images import tensors
from cyclestyle.images.masks import FULL, Weights
from cyclestyle.images.photo import Photo, PixelArray
from cyclestyle.translation import blending


def masked(photo: Photo, translation: PixelArray) -> PixelArray:
    """Blend a photo with its translation by the photo's mask; without a mask, return `translation` itself.

    Where the weight is 0, the result has the values of the decoded photo, bit for bit, also below transparent pixels.
    Where the weight is `FULL`, it has those of `translation`. In between, colours lie on a straight line in Oklab, as
    for a strength between 0 and 1.

    Args:
        photo: photo (H, W), with its mask.
        translation: array (H, W, 3), or (H, W, 1) if the model's output is grey: then the photo becomes grey too. Size
            and dtype are those of the photo's pixels.
    """
    mask = photo.mask
    if mask is None:
        return translation
    result = translation.copy()
    unfilled = photo.pixels if mask.unfilled is None else mask.unfilled
    height, width = mask.weights.shape
    rows = max(1, blending.STRIP // width)
    for top in range(0, height, rows):
        strip = slice(top, top + rows)
        weights = mask.weights[strip]
        kept = weights == 0
        mixed = ~kept & (weights < FULL)
        result[strip][kept] = _kept(unfilled[strip][kept], channels=translation.shape[2])
        if mixed.any():
            result[strip][mixed] = _mixed(photo.pixels[strip][mixed], translation[strip][mixed], weights[mixed])
    return result


def _kept(pixels: PixelArray, *, channels: int) -> PixelArray:
    """Convert the pixels of a photo (N, 3) to the number of channels of a translation."""
    return pixels if channels == 3 else _to_pixels(tensors.with_channels(_to_row(pixels), channels))


def _mixed(photo: PixelArray, translation: PixelArray, weights: Weights) -> PixelArray:
    """Blend the pixels of a photo (N, 3) with those of its translation (N, C) by weights (N,)."""
    start, end = (tensors.with_channels(tensors.to_float(_to_row(pixels)), 3) for pixels in (photo, translation))
    shares = torch.from_numpy(weights.astype("float32") / FULL)
    if translation.shape[1] == 1:
        start = tensors.with_channels(tensors.with_channels(start, 1), 3)
    blended = blending.mix(start, end, shares)[: translation.shape[1]]
    return _to_pixels(tensors.quantize(blended, _to_row(photo).dtype))


def _to_row(pixels: PixelArray) -> Tensor:
    """Convert pixels (N, C) to an image tensor (C, 1, N) of one row."""
    return tensors.array_to_tensor(pixels[None])


def _to_pixels(row: Tensor) -> PixelArray:
    """Convert an image tensor (C, 1, N) of one row to pixels (N, C)."""
    pixels: PixelArray = tensors.tensor_to_array(row)[0]
    return pixels
