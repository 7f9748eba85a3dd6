"""Blending of photos with their translations by masks."""

import numpy as np
import pytest
import torch

from cyclestyle.images import tensors
from cyclestyle.images.masks import FULL
from cyclestyle.images.photo import Mask, Photo
from cyclestyle.translation import blending
from cyclestyle.translation.masking import masked
from tests.translation.test_blending import to_oklab


def noise(kind: type, seed: int, *, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, (20, 30, channels), kind, endpoint=True)


def floats(pixels: np.ndarray) -> torch.Tensor:
    return tensors.to_float(tensors.array_to_tensor(pixels))


def random_mask() -> np.ndarray:
    """Return weights, a third each black, white and grey."""
    generator = np.random.default_rng(3)
    greys = generator.integers(1, FULL, (20, 30), np.uint16)
    return np.choose(generator.integers(0, 3, (20, 30)), [np.zeros_like(greys), np.full_like(greys, FULL), greys])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_black_is_the_photo_and_white_the_translation_bit_for_bit(kind: type) -> None:
    photo, translation, weights = noise(kind, 0), noise(kind, 1), random_mask()
    result = masked(Photo(photo, mask=Mask(weights)), translation)
    assert result.dtype == kind
    assert np.array_equal(result[weights == 0], photo[weights == 0])
    assert np.array_equal(result[weights == FULL], translation[weights == FULL])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_of_a_mask_equals_a_strength_between_0_and_1(kind: type) -> None:
    photo, translation = noise(kind, 0), noise(kind, 1)
    for weight in (1, 100 * 257, 128 * 257, FULL - 1):
        result = masked(Photo(photo, mask=Mask(np.full((20, 30), weight, np.uint16))), translation)
        blended = blending.blend(floats(photo), floats(translation), strength=weight / FULL)
        expected = tensors.tensor_to_array(tensors.quantize(blended, floats_dtype(kind)))
        assert np.abs(result.astype(int) - expected).max() <= 1


def floats_dtype(kind: type) -> torch.dtype:
    return torch.uint8 if kind is np.uint8 else torch.uint16


def test_blended_colours_lie_on_a_line_in_oklab() -> None:
    """Colours far from the edge of sRGB, so that none is brought back into it; Oklab is computed independently."""
    pair = [torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2 for seed in (0, 1)]
    weights = torch.rand(8, 9, generator=torch.Generator().manual_seed(2))
    start, end = map(to_oklab, pair)
    expected = start + (end - start) * weights.numpy()[..., None]
    assert np.abs(to_oklab(blending.mix(*pair, weights)) - expected).max() < 1e-5


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_photo_becomes_grey_if_the_translation_is_grey(kind: type) -> None:
    photo, translation, weights = noise(kind, 0), noise(kind, 1, channels=1), random_mask()
    result = masked(Photo(photo, mask=Mask(weights)), translation)
    luma = tensors.tensor_to_array(tensors.with_channels(tensors.array_to_tensor(photo), 1))
    assert result.shape == (20, 30, 1)
    assert np.array_equal(result[weights == 0], luma[weights == 0])
    assert np.array_equal(result[weights == FULL], translation[weights == FULL])
    low, high = np.minimum(luma, translation).astype(int), np.maximum(luma, translation).astype(int)
    assert ((result >= low - 1) & (result <= high + 1)).all()


def test_black_shows_hidden_colours_as_they_were_before_filling() -> None:
    photo, unfilled, translation, weights = (*(noise(np.uint8, seed) for seed in range(3)), random_mask())
    result = masked(Photo(photo, mask=Mask(weights, unfilled)), translation)
    assert np.array_equal(result[weights == 0], unfilled[weights == 0])


def test_photo_without_mask_is_translated_whole_without_a_copy() -> None:
    translation = noise(np.uint8, 1)
    assert masked(Photo(noise(np.uint8, 0)), translation) is translation


def test_result_does_not_depend_on_the_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, translation = Photo(noise(np.uint8, 0), mask=Mask(random_mask())), noise(np.uint8, 1)
    whole = masked(photo, translation)
    monkeypatch.setattr(blending, "STRIP", 70)
    assert np.array_equal(masked(photo, translation), whole)
