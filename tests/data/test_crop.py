"""Training crops of images of any size."""

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.data.crop import Crop
from cyclestyle.errors import CommandError
from tests.pictures import picture


def crop(resize: str, load_size: int = 20, crop_size: int = 16, *, flip: bool = False) -> Crop:
    return Crop(resize=resize, load_size=load_size, crop_size=crop_size, flip=flip)


def middle(image: Image.Image, side: int) -> torch.Tensor:
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image)[top : top + side, left : left + side]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(("resize", "size"), [("stretch", (20, 20)), ("short", (40, 20)), ("none", (60, 30))])
def test_image_is_resized_before_crop(resize: str, size: tuple[int, int]) -> None:
    image = picture(5, 60, 30)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    assert torch.equal(crop(resize).centre(image), middle(resized, 16))


@pytest.mark.parametrize(
    ("size", "enlarged"), [((8, 4), (32, 16)), ((4, 8), (16, 32)), ((40, 10), (64, 16)), ((1, 1), (16, 16))]
)
def test_image_below_crop_size_is_enlarged(size: tuple[int, int], enlarged: tuple[int, int]) -> None:
    image = picture(5, *size)
    resized = image.resize(enlarged, Image.Resampling.BICUBIC)
    assert torch.equal(crop("none").centre(image), middle(resized, 16))


@pytest.mark.parametrize("resize", ["stretch", "short", "none"])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (17, 16), (33, 21), (300, 7)])
def test_random_crop_has_requested_size(resize: str, size: tuple[int, int]) -> None:
    pixels = crop(resize, flip=True).random(picture(1, *size), np.random.default_rng(0))
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.uint8


def test_crop_as_large_as_image_equals_image() -> None:
    image = picture(5, 16, 16)
    assert torch.equal(crop("none").random(image, np.random.default_rng(0)), middle(image, 16))


def test_crops_are_not_mirrored_if_option_flip_is_false() -> None:
    random, image = np.random.default_rng(0), picture(5, 24, 24)
    crops = [crop("none").random(image, random) for _ in range(50)]
    assert all(pixels[0, 0, 0] < pixels[0, 0, -1] for pixels in crops)


@pytest.mark.parametrize("resize", ["stretch", "short"])
def test_crop_size_above_load_size_is_rejected_if_images_are_resized(resize: str) -> None:
    with pytest.raises(CommandError, match=r"data\.crop_size 21 .* data\.load_size 20.*set data\.load_size to 21"):
        crop(resize, 20, 21)
    crop("none", 20, 21)  # load_size has no effect with resize=none


def test_crop_size_zero_is_rejected() -> None:
    with pytest.raises(CommandError, match="at least 1"):
        crop("none", 20, 0)
