"""Synthetic data set: deterministic images, paintings with brush strokes, and pairs in the test folders only."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from cyclestyle.data.scenes import Bytes
from cyclestyle.data.scenes.drawing import draw, painting, photograph
from cyclestyle.errors import CommandError, DataError, DiskError

Reals = npt.NDArray[np.float64]
WATERS = (2, 3, 9, 11, 13, 14)  # scenes of seed 0 with water in the foreground


def digest(image: Bytes) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def mosaic(image: Bytes) -> Reals:
    """Return the mean brightness of 8 x 8 blocks: the layout without texture."""
    side = image.shape[0] // 8
    return image.astype(np.float64).mean(axis=2).reshape(8, side, 8, side).mean(axis=(1, 3))


def likeness(photos: list[Bytes], paintings: list[Bytes]) -> Reals:
    """Return the correlation of each photo with each painting, without the mean of each row of pixels."""
    shapes = [mosaic(image) for image in photos + paintings]
    rows = np.stack([(shape - shape.mean(axis=1, keepdims=True)).ravel() for shape in shapes])
    return np.corrcoef(rows)[: len(photos), len(photos) :]


def recoloured(photo: Bytes, paint: Bytes) -> Reals:
    """Return the photo in the colours of the painting, by the best-fitting colour table, but without strokes."""
    keys = np.round(photo.reshape(-1, 3) / 255 * 8) @ np.array([81, 9, 1])
    target = paint.reshape(-1, 3).astype(np.float64)
    result = np.empty_like(target)
    for key in np.unique(keys):
        result[keys == key] = target[keys == key].mean(axis=0)
    return result.reshape(paint.shape)


def texture(image: Reals) -> float:
    """Return the RMS brightness at wavelengths of 3 to 12 px in the 16 calmest of 64 tiles; image size 128 x 128."""
    light = image.mean(axis=2)
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None, :])
    band = np.fft.ifft2(np.fft.fft2(light) * ((frequency > 1 / 12) & (frequency < 1 / 3))).real
    tiles = (band**2).reshape(8, 16, 8, 16).mean(axis=(1, 3))
    return float(np.sqrt(np.sort(tiles.ravel())[:16].mean()))


# ---------------------------------------------------------------------------------------------- the images


def test_scenes_are_deterministic_across_processes() -> None:
    code = (
        "import hashlib; from cyclestyle.data import scenes;"
        "pictures = [scenes.photograph(3, size=64, seed=5), scenes.painting(3, size=64, seed=5)];"
        "print(*(hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures))"
    )
    here = [digest(f(3, size=64, seed=5)) for f in (photograph, painting)]
    again = [digest(f(3, size=64, seed=5)) for f in (photograph, painting)]
    command = [sys.executable, "-c", code]
    elsewhere = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert here == again == elsewhere


def test_scenes_and_seeds_give_distinct_images() -> None:
    for render in (photograph, painting):
        assert len({digest(render(scene, size=32, seed=seed)) for scene in range(6) for seed in (0, 1)}) == 12


@pytest.mark.parametrize("size", [16, 33, 64, 96])
def test_scenes_can_be_drawn_at_sizes_from_16_px(size: int) -> None:
    for scene in range(6):
        for image in (photograph(scene, size=size), painting(scene, size=size)):
            assert image.shape == (size, size, 3)
            assert image.dtype == np.uint8
            assert image.std() > 10  # not a uniform image


def test_scene_layout_is_independent_of_size() -> None:
    for scene in range(4):
        for render in (photograph, painting):
            difference = mosaic(render(scene, size=64)) - mosaic(render(scene, size=128))
            assert np.abs(difference).mean() < 6  # levels out of 255


def test_paintings_have_more_texture_than_recoloured_photos() -> None:
    for scene in range(8):
        photo, paint = photograph(scene, size=128), painting(scene, size=128)
        assert texture(paint.astype(np.float64)) > 1.25 * texture(recoloured(photo, paint))


def test_brush_strokes_of_painted_water_are_horizontal() -> None:
    """Strokes show as brightness that changes faster across them than along them."""
    for scene in WATERS:
        light = painting(scene, size=128)[96:].astype(np.float64).mean(axis=2)
        assert np.square(np.diff(light, axis=0)).mean() > 1.4 * np.square(np.diff(light, axis=1)).mean()


# -------------------------------------------------------------------------------------------------- the folders


def folders(root: Path) -> dict[str, list[Bytes]]:
    return {
        name: [np.asarray(Image.open(file)) for file in sorted((root / name).iterdir())]
        for name in ("trainA", "trainB", "testA", "testB")
    }


def test_photos_and_paintings_show_the_same_scenes_only_in_test_folders(tmp_path: Path) -> None:
    draw(tmp_path / "set", train=10, test=10, size=64)
    drawn = folders(tmp_path / "set")

    paired = likeness(drawn["testA"], drawn["testB"])
    assert np.array_equal(paired.argmax(axis=1), np.arange(10))
    assert np.diag(paired).min() > 0.5
    unpaired = likeness(drawn["trainA"], drawn["trainB"])
    assert np.median(unpaired.max(axis=1)) < np.median(np.diag(paired)) - 0.2


def test_scenes_are_unique_and_test_set_is_independent_of_train_count(tmp_path: Path) -> None:
    for train in (3, 5):
        draw(tmp_path / str(train), train=train, test=2, size=32)
    few, many = (folders(tmp_path / str(train)) for train in (3, 5))
    assert len({digest(image) for images in many.values() for image in images}) == 14
    assert np.array_equal(few["testA"], many["testA"])
    assert np.array_equal(few["testB"], many["testB"])


def test_drawing_scenes_reports_progress_and_leaves_a_finished_folder_unchanged(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    assert draw(tmp_path / "set", train=2, test=1, size=16, progress=lambda done, total: progress.append((done, total)))
    assert progress == [(done, 6) for done in range(1, 7)]

    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "set").rglob("*")}
    assert not draw(tmp_path / "set", train=2, test=1, size=16, progress=lambda done, total: pytest.fail("drew again"))
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "set").rglob("*")}


def test_interrupted_drawing_leaves_no_files(tmp_path: Path) -> None:
    def interrupt(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path / "set", train=4, test=2, size=16, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_folder_finished_by_concurrent_drawing_is_accepted(tmp_path: Path) -> None:
    """If two processes draw the same set, the slower one accepts the set that the faster one has finished."""
    root = tmp_path / "set"

    def overtake(done: int, _total: int) -> None:
        if done == 1:
            assert draw(root, train=2, test=1, size=16)

    assert not draw(root, train=2, test=1, size=16, progress=overtake)
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_foreign_folder_is_rejected_and_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "holiday.png").write_bytes(b"dear")
    draw(tmp_path / "other", train=2, test=1, size=16)
    shutil.copytree(tmp_path / "other", tmp_path / "torn")
    (tmp_path / "torn" / "trainB" / "0001.png").unlink()
    (tmp_path / "file").write_text("not a folder")
    before = contents(tmp_path)

    for name, reason in (
        ("mine", "was not drawn by cyclestyle"),
        ("other", "size=16 not 32"),
        ("torn", "1 pictures, not 2"),
        ("file", "was not drawn by cyclestyle"),
    ):
        with pytest.raises(DataError, match=reason) as caught:
            draw(tmp_path / name, train=2, test=1, size=32 if name == "other" else 16)
        assert "data.root" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_bad_size_and_unwritable_root_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="size 16 or more"):
        draw(tmp_path / "set", size=8)
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DiskError, match="cannot write scenes"):
        draw(tmp_path / "file" / "set", train=1, test=0, size=16)
