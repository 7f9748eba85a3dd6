"""Filling of the transparent pixels of cut-out images with colours of the visible pixels."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from cyclestyle.images.photo import Photo, PixelArray, largest

Plane = npt.NDArray[np.float32]

_ROWS = 256  # rows of a strip, an even number


def filled(photo: Photo) -> Photo:
    """Give fully transparent pixels the colours of visible pixels near them; change no other pixel.

    Without filling, the hidden colours of transparent pixels would influence the visible part of a translation, since
    instance norm averages over all pixels. Two images become equal if they differ only where alpha is 0. An image is
    returned unchanged if all its pixels are fully transparent, or none is.

    The method is push-pull (Gortler et al., The Lumigraph, 1996): visible pixels are averaged, weighted by alpha, at
    lower and lower resolutions; each pixel is filled from the highest resolution that has an average at its place.
    """
    if photo.alpha is None:
        return photo
    hidden = photo.alpha == 0
    if not hidden.any() or hidden.all():
        return photo
    del hidden
    pixels = photo.pixels.copy()
    for channel in range(pixels.shape[2]):
        _fill(pixels[..., channel], photo.alpha)
    return replace(photo, pixels=pixels)


def _fill(plane: PixelArray, alpha: PixelArray) -> None:
    """Fill the transparent pixels of one colour channel (H, W) in place; `alpha` is (H, W), 0 where transparent.

    To save memory, the pixels are converted to floats in groups of `_ROWS` rows, not all at once.
    """
    height, width = plane.shape
    strips = [slice(top, min(top + _ROWS, height)) for top in range(0, height, _ROWS)]
    halved = [_push(plane[rows], _weights(alpha[rows])) for rows in strips]
    smaller = _averages(np.concatenate([means for means, _ in halved]), np.concatenate([sums for _, sums in halved]))
    for rows in strips:
        hidden = alpha[rows] == 0
        if hidden.any():
            above = 1 if rows.start else 0  # interpolation needs a row beyond each end
            doubled = _doubled(smaller[rows.start // 2 - above : (rows.stop + 1) // 2 + 1])[2 * above :]
            plane[rows][hidden] = doubled[: rows.stop - rows.start, :width][hidden].round().astype(plane.dtype)


def _weights(alpha: PixelArray) -> Plane:
    return alpha.astype(np.float32) / np.float32(largest(alpha))


def _push(plane: PixelArray, weights: Plane) -> tuple[Plane, Plane]:
    """Average blocks of 2 x 2 pixels, weighted by `weights`.

    Return the averages, a plane of half the height and width, and their weights, from 0 to 1.
    """
    sums = _halved(weights)
    means = _halved(plane * weights)
    np.divide(means, sums, out=means, where=sums > 0)
    return means, np.minimum(sums, 1)  # a block counts as full from one opaque pixel on


def _averages(plane: Plane, weights: Plane) -> Plane:
    """Replace pixels of weight 0 by averages of other pixels near them; `plane` and `weights` (0 to 1) are (H, W)."""
    if weights.min() > 0:
        return plane
    height, width = plane.shape
    smaller = _averages(*_push(plane, weights))
    return np.where(weights > 0, plane, _doubled(smaller)[:height, :width])


def _halved(plane: Plane) -> Plane:
    """Return the sums of blocks of 2 x 2 pixels; a plane with an odd side is first padded with zeros."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)))
    halved: Plane = even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]
    return halved


def _doubled(plane: Plane) -> Plane:
    """Enlarge a plane to twice its height and width, with linear interpolation."""
    for axis in (0, 1):
        before, after = (np.take(plane, _shifted(plane.shape[axis], by), axis=axis) for by in (-1, 1))
        pair = np.stack([0.75 * plane + 0.25 * before, 0.75 * plane + 0.25 * after], axis=axis + 1)
        plane = pair.reshape(*plane.shape[:axis], 2 * plane.shape[axis], *plane.shape[axis + 1 :])
    return plane


def _shifted(count: int, by: int) -> npt.NDArray[np.int64]:
    return (np.arange(count) + by).clip(0, count - 1)
