"""Reading, shrinking and feathering of masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.images import masks, reading, writing
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Photo
from tests import profiles


def saved(path: Path, values: np.ndarray, **options: object) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


def ramp(height: int = 4, width: int = 6) -> np.ndarray:
    return np.linspace(0, 255, height * width).round().astype(np.uint8).reshape(height, width)


def shapes(height: int = 60, width: int = 90) -> np.ndarray:
    """Return weights with black discs, a black pixel, a grey area and white at the border of the image."""
    down, across = np.indices((height, width))
    weights = np.full((height, width), masks.FULL, np.uint16)
    weights[:, 60:] = 20000
    weights[np.hypot(down - 30, across - 20) < 12] = 0
    weights[5, 50] = 0
    weights[50:, 70:] = 0
    return weights


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".gif"])
def test_grey_values_of_8_bits_are_weights(tmp_path: Path, ending: str) -> None:
    weights = masks.read(saved(tmp_path / f"m{ending}", ramp()), height=4, width=6)
    assert weights.dtype == np.uint16
    assert np.array_equal(weights, ramp().astype(int) * 257)


def test_grey_values_of_16_bits_are_weights(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")
    values = np.linspace(0, 65535, 24).round().astype(np.uint16).reshape(4, 6)
    writing.write(Photo(np.repeat(values[..., None], 3, axis=2)), tmp_path / "m.png")
    assert np.array_equal(masks.read(tmp_path / "m.png", height=4, width=6), values)


def test_colours_of_a_mask_count_by_their_luma(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    weights = masks.read(saved(tmp_path / "m.png", colours), height=5, width=7)
    assert np.array_equal(weights, np.asarray(Image.fromarray(colours).convert("L")).astype(int) * 257)


def test_mask_of_1_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(ramp() > 100).save(tmp_path / "m.png")
    assert np.array_equal(masks.read(tmp_path / "m.png", height=4, width=6), np.where(ramp() > 100, 65535, 0))


def test_transparent_parts_of_a_mask_are_black(tmp_path: Path) -> None:
    white = np.full((4, 6), 255, np.uint8)
    weights = masks.read(saved(tmp_path / "m.png", np.dstack([white, ramp()])), height=4, width=6)
    assert np.array_equal(weights, ramp().astype(int) * 257)


def test_colour_profile_of_a_mask_is_ignored(tmp_path: Path) -> None:
    """Values are numbers: a profile with another curve than that of sRGB, which editors embed, does not change them."""
    values = np.repeat(ramp()[..., None], 3, axis=2)
    saved(tmp_path / "m.png", values, icc_profile=profiles.wide())
    assert np.abs(reading.read(tmp_path / "m.png").pixels.astype(int) - values).max() > 5  # as colours, they change
    assert np.array_equal(masks.read(tmp_path / "m.png", height=4, width=6), ramp().astype(int) * 257)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_is_turned_upright_by_its_own_orientation(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(tmp_path / "m.png", ramp(), exif=exif)
    upright = reading.read(tmp_path / "m.png").pixels[..., 0]
    weights = masks.read(tmp_path / "m.png", height=upright.shape[0], width=upright.shape[1])
    assert np.array_equal(weights, upright.astype(int) * 257)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (4, 7, "it has 6 x 4 px, and the photo 7 x 4: a mask has the size of its photo"),
        (6, 4, "it has 6 x 4 px, and the photo 4 x 6: save the mask upright"),
    ],
)
def test_mask_of_another_size_is_an_error(tmp_path: Path, height: int, width: int, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        masks.read(saved(tmp_path / "m.png", ramp()), height=height, width=width)


def test_mask_of_zeros_and_ones_is_an_error_with_remedy(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no other values than 0 and 1, but white is 255: multiply the values by 255"):
        masks.read(saved(tmp_path / "m.png", (ramp() > 100).astype(np.uint8)), height=4, width=6)


def test_feather_equals_a_smooth_step_of_the_distance_to_black() -> None:
    """The reference compares every pixel with every black pixel."""
    weights = shapes()
    positions = np.argwhere(weights == 0)
    pixels = np.argwhere(np.ones_like(weights))
    distances = np.sqrt(((pixels[:, None] - positions[None]) ** 2).sum(-1)).min(1).reshape(weights.shape)
    for feather in (1, 4, 15, 100):
        share = (distances / (feather + 1)).clip(max=1)
        expected = weights * (3 * share**2 - 2 * share**3)
        assert np.abs(masks.feathered(weights, feather) - expected).max() < 1


def test_feather_keeps_black_and_raises_no_weight() -> None:
    weights = shapes()
    soft = masks.feathered(weights, 8)
    assert (soft[weights == 0] == 0).all()
    assert (soft <= weights).all()
    assert (soft < weights).any()
    assert soft[0, 0] == masks.FULL  # far from black, at the border of the image
    assert np.array_equal(masks.feathered(weights, 0), weights)


def test_feather_does_not_depend_on_the_number_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = masks.feathered(shapes(), 6)
    for rows in (6, 7, 20):
        monkeypatch.setattr(masks, "_ROWS", rows)
        assert np.array_equal(masks.feathered(shapes(), 6), whole)


def test_shrunk_mask_has_the_averages_of_areas() -> None:
    weights = np.random.default_rng(0).integers(0, masks.FULL, (40, 60), np.uint16)
    weights[:, 20:40] = 0
    means = [[weights[y : y + 4, x : x + 4].mean() for x in range(0, 60, 4)] for y in range(0, 40, 4)]
    small = masks.shrunk(weights, 10, 15)
    assert np.abs(small - np.array(means)).max() <= 1
    assert (small[:, 5:10] == 0).all()
