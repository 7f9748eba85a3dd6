"""Square crops for training, cut from images of any size."""

from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.images import decoding, tensors

Resize = Literal["stretch", "short", "none"]


class Crop:
    """Preparation of training images: resizing, a random square crop and a random horizontal flip.

    Args:
        resize: `stretch` resizes to a square of side `load_size` (as in the paper; the aspect ratio is lost), `short`
            scales the image until its short side is `load_size`, `none` keeps the original size. An image that is still
            smaller than the crop is enlarged until the crop fits.
        load_size: side in px after resizing; no effect if `resize` is `none`.
        crop_size: side of the square crop in px.
        flip: mirror images horizontally with probability 1/2.

    Raises:
        CommandError: a size is below 1, or `resize` is `stretch` or `short` and `crop_size` exceeds `load_size`.
    """

    def __init__(self, *, resize: Resize, load_size: int, crop_size: int, flip: bool) -> None:
        if crop_size < 1 or load_size < 1:
            raise CommandError(f"data.load_size {load_size} and data.crop_size {crop_size} must be at least 1")
        if resize != "none" and crop_size > load_size:
            raise CommandError(
                f"data.crop_size {crop_size} does not fit into data.load_size {load_size}: "
                f"set data.load_size to {crop_size} or more, or data.resize=none"
            )
        self.resize, self.load_size, self.crop_size, self.flip = resize, load_size, crop_size, flip

    def fits(self, width: int, height: int) -> bool:
        """Return whether an image of `width` x `height` px, once resized, is at least as large as the crop."""
        return min(self._resized_to(width, height)) >= self.crop_size

    def random(self, image: Image.Image, random: np.random.Generator) -> Tensor:
        """Return a crop of `image`, uint8 (C, crop_size, crop_size); its position and flip are drawn from `random`.

        C is 3 for an RGB image and 1 for a grey image.
        """
        image = self._resized(image)
        left = int(random.integers(image.width - self.crop_size + 1))
        top = int(random.integers(image.height - self.crop_size + 1))
        mirrored = self.flip and random.random() < 0.5
        return self._cut(image, left, top, mirrored=mirrored)

    def centre(self, image: Image.Image) -> Tensor:
        """Return the central crop of `image`, uint8 (C, crop_size, crop_size), never flipped.

        C is 3 for an RGB image and 1 for a grey image.
        """
        image = self._resized(image)
        return self._cut(image, (image.width - self.crop_size) // 2, (image.height - self.crop_size) // 2)

    def _resized(self, image: Image.Image) -> Image.Image:
        width, height = self._resized_to(image.width, image.height)
        if min(width, height) < self.crop_size:
            width, height = _scaled(width, height, short=self.crop_size)
        return decoding.resize(image, width, height)

    def _resized_to(self, width: int, height: int) -> tuple[int, int]:
        if self.resize == "stretch":
            return self.load_size, self.load_size
        return _scaled(width, height, short=self.load_size) if self.resize == "short" else (width, height)

    def _cut(self, image: Image.Image, left: int, top: int, *, mirrored: bool = False) -> Tensor:
        pixels = tensors.pil_to_uint8(image.crop((left, top, left + self.crop_size, top + self.crop_size)))
        return pixels.flip(-1) if mirrored else pixels


def _scaled(width: int, height: int, *, short: int) -> tuple[int, int]:
    """Return `width` and `height`, scaled by the same factor so that the smaller of them is `short` px."""
    factor = short / min(width, height)
    return max(short, round(width * factor)), max(short, round(height * factor))
