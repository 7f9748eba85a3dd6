"""Colours for the transparent pixels of cut-outs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.images import cutouts, tensors
from cyclestyle.images.photo import Photo
from cyclestyle.photoset import worker_tasks
from cyclestyle.translation.pipeline import TranslationPipeline
from tests.translation.models import write_model


def cutout(hidden: int, *, kind: type = np.uint8, height: int = 37, width: int = 51) -> Photo:
    """Return a disc of noise with a soft edge; all channels of its transparent pixels are `hidden`."""
    full = np.iinfo(kind).max
    down, across = np.indices((height, width))
    distance = np.hypot(down - height / 2, across - width / 2)
    alpha = ((12 - distance).clip(0, 3) / 3 * full).astype(kind)
    pixels = np.random.default_rng(0).integers(full // 4, full // 2, (height, width, 3), kind)
    pixels[alpha == 0] = hidden
    return Photo(pixels, alpha)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_filled_colours_of_transparent_pixels_depend_on_visible_pixels_only(kind: type) -> None:
    full = int(np.iinfo(kind).max)
    first, second = cutout(0, kind=kind), cutout(full, kind=kind)
    filled = [cutouts.filled(photo) for photo in (first, second)]
    assert np.array_equal(filled[0].pixels, filled[1].pixels)
    assert filled[0].pixels.dtype == kind
    assert first.alpha is not None
    visible = first.alpha > 0
    assert np.array_equal(filled[0].pixels[visible], first.pixels[visible])
    colours = filled[0].pixels[~visible]
    assert full // 4 <= colours.min() <= colours.max() <= full // 2  # averages lie among the visible colours
    assert (first.pixels[~visible] == 0).all()  # the photo given is not changed


def test_transparent_pixels_are_filled_with_colours_of_nearest_visible_ones() -> None:
    pixels, alpha = np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint8)
    pixels[:, :8], pixels[:, -8:] = (200, 10, 10), (10, 10, 200)
    alpha[:, :8] = alpha[:, -8:] = 255
    filled = cutouts.filled(Photo(pixels, alpha)).pixels.astype(int)
    assert np.abs(filled[:, 8:12] - (200, 10, 10)).max() < 30
    assert np.abs(filled[:, -12:-8] - (10, 10, 200)).max() < 30
    assert (np.diff(filled[16, :, 0]) <= 0).all()  # from red to blue without steps back
    assert np.abs(np.diff(filled[16, :, 0])).max() < 40


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (5, 5), (33, 16)])
def test_single_visible_pixel_gives_all_transparent_pixels_its_colour(size: tuple[int, int]) -> None:
    pixels, alpha = np.full((*size, 3), 250, np.uint8), np.zeros(size, np.uint8)
    pixels[-1, -1], alpha[-1, -1] = (10, 20, 30), 1
    assert (cutouts.filled(Photo(pixels, alpha)).pixels == (10, 20, 30)).all()


def test_filled_pixels_do_not_depend_on_number_of_rows_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = cutout(0, height=77)
    whole = cutouts.filled(photo).pixels
    for rows in (2, 10, 32):
        monkeypatch.setattr(cutouts, "_ROWS", rows)
        assert np.array_equal(cutouts.filled(photo).pixels, whole)


@pytest.mark.parametrize("alpha", [None, np.zeros((4, 5), np.uint8), np.full((4, 5), 1, np.uint8)])
def test_photos_with_all_or_no_pixels_visible_are_left_unfilled(alpha: np.ndarray | None) -> None:
    photo = Photo(np.arange(60, dtype=np.uint8).reshape(4, 5, 3), alpha)
    assert cutouts.filled(photo) is photo


@pytest.mark.parametrize("tile", ["off", 8])
@pytest.mark.parametrize("resize", [None, 30])
def test_hidden_colours_do_not_change_visible_pixels_of_translation(
    tmp_path: Path, tile: int | str, resize: int | None
) -> None:
    pipeline = TranslationPipeline.load(
        write_model(tmp_path), direction="photo2monet", device="cpu", precision="fp32", tile=tile
    )
    outputs = []
    for hidden in (0, 255):
        photo = cutout(hidden)
        path = tmp_path / f"{hidden}.png"
        Image.fromarray(np.dstack([photo.pixels, photo.alpha])).save(path)
        read = worker_tasks.read(path, worker_tasks.Reading(resize=resize))
        assert read.alpha is not None
        outputs.append(pipeline(tensors.array_to_tensor(read.pixels)[None])[0][0].numpy()[:, read.alpha > 0])
    assert outputs[0].size > 300
    assert np.array_equal(*outputs)
