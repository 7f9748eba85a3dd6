"""Colour of training images: numbers for photos in wide colour spaces, missing libraries, grey images, tensors."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.data.scenes.drawing import photograph
from cyclestyle.images import decoding, reading, tensors
from tests import profiles
from tests.images.test_photos import output_without


@pytest.mark.parametrize(
    ("profile", "encoded", "expected"),
    [(profiles.p3(), profiles.srgb_as_p3, 3.59), (profiles.adobe(), profiles.srgb_as_adobe, 4.25)],
    ids=["p3", "adobe"],
)
def test_ignoring_the_colour_profile_shifts_8_bit_values_by_3_to_5_on_average(
    tmp_path: Path, profile: bytes, encoded: Callable[[np.ndarray], np.ndarray], expected: float
) -> None:
    scenes = np.concatenate([photograph(number, size=256) for number in range(4)])  # in sRGB
    stored = (encoded(scenes / 255) * 255).round().astype(np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(stored).save(path, icc_profile=profile)
    managed, raw = (np.asarray(reading.read_8_bit(path, colour=colour)).astype(int) for colour in ("managed", "raw"))
    assert np.abs(managed - scenes).mean() < 0.5  # rounding to 8 bits, twice
    assert np.array_equal(raw, stored)
    assert np.abs(raw - managed).mean() == pytest.approx(expected, abs=0.05)  # 8-bit levels


def test_without_16_bit_libraries_earlier_decoder_reads_upper_8_bits_of_tagged_file(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="16 bits a channel need the extra `deep`")
    pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")
    path, pixels = tmp_path / "x.tif", np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    tifffile.imwrite(path, pixels, photometric="rgb", iccprofile=profiles.wide())
    script = "from cyclestyle.images.reading import read_8_bit; "
    script += "print(read_8_bit(Path({!r}), decoder='earlier').tobytes().hex())"
    output = output_without(("imagecodecs",), script.format(str(path)))
    with_8_bits = np.frombuffer(bytes.fromhex(output), np.uint8).astype(int)
    with_16_bits = np.asarray(reading.read_8_bit(path)).ravel().astype(int)
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(tmp_path / "x.png", icc_profile=profiles.wide())
    assert np.array_equal(with_8_bits, np.asarray(reading.read_8_bit(tmp_path / "x.png")).ravel())
    assert 0 < np.abs(with_16_bits - with_8_bits).mean() < 1


def test_colour_file_with_profile_read_as_grey_gives_luma_of_its_srgb_colours(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png", icc_profile=profiles.wide())
    colour = np.asarray(reading.read_8_bit(tmp_path / "x.png")).astype(float)
    grey = reading.read_8_bit(tmp_path / "x.png", channels=1)
    assert grey.mode == "L"
    assert np.abs(np.asarray(grey) - colour @ (0.299, 0.587, 0.114)).max() <= 0.51


def test_grey_file_keeps_its_values_as_grey_channel(tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8)[None]
    Image.fromarray(levels).save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(reading.read_8_bit(tmp_path / "x.png", channels=1)), levels)


def test_grey_image_and_tensor_round_trip() -> None:
    levels = torch.arange(48, dtype=torch.uint8).reshape(1, 6, 8)
    image = tensors.uint8_to_pil(levels)
    assert (image.mode, image.size) == ("L", (8, 6))
    assert torch.equal(tensors.pil_to_uint8(image), levels)


def test_error_about_too_many_pixels_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(decoding.TooManyPixelsError(Path("x.png"), 30, 20, 599)))
    assert (error.width, error.height, str(error)) == (30, 20, "x.png: 30 x 20 pixels are more than 599")
