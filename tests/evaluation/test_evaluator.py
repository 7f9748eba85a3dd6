"""Evaluation scores, compared with results of scikit-image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cyclestyle.data.scenes.drawing import photograph
from cyclestyle.errors import DataError
from cyclestyle.evaluation import evaluator
from tests import profiles
from tests.translation.models import invert, noise, write_picture

LUMA = np.array([0.299, 0.587, 0.114])


def smooth(seed: int, *, centre: float, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """Create an image of smooth blobs around level `centre`; each seed gives another image and other scores."""
    small = Image.fromarray(noise(5, 4, seed=seed)).resize(size, Image.Resampling.BICUBIC)
    return (centre + (np.asarray(small, dtype=float) - 128) * 0.3).round().clip(0, 255).astype(np.uint8)


def write_set(folder: Path, *, centre: float, seed: int, count: int = 4) -> list[np.ndarray]:
    folder.mkdir()
    images = [smooth(seed + n, centre=centre, size=(32 + 3 * (n % 2), 24)) for n in range(count)]
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{n}.png")
    return images


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    return structural_similarity(
        x @ LUMA, y @ LUMA, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def lab_statistics(images: list[np.ndarray]) -> np.ndarray:
    pooled = np.concatenate([rgb2lab(image).reshape(-1, 3) for image in images])
    return np.concatenate([pooled.mean(0), pooled.std(0)])


def test_scores_match_scikit_image(tmp_path: Path) -> None:
    photos = write_set(tmp_path / "photos", centre=90, seed=0)
    truths = write_set(tmp_path / "truth", centre=150, seed=50)
    targets = write_set(tmp_path / "target", centre=180, seed=90, count=3)
    report = evaluator.evaluate(
        invert, tmp_path / "photos", truth=tmp_path / "truth", target=tmp_path / "target", batch_size=3
    )

    before, after = (
        np.concatenate([image.reshape(-1, 3) for image in images]).astype(float) for images in (photos, truths)
    )
    gain = after.std(0) / before.std(0)
    mapped = [((x - before.mean(0)) * gain + after.mean(0)).round().clip(0, 255).astype(np.uint8) for x in photos]
    translations = [255 - photo for photo in photos]
    for images, scores in zip((photos, mapped, translations), report.truth, strict=True):
        psnrs = [peak_signal_noise_ratio(truth, image) for truth, image in zip(truths, images, strict=True)]
        ssims = [ssim(truth, image) for truth, image in zip(truths, images, strict=True)]
        assert scores.psnr == pytest.approx((np.mean(psnrs), np.std(psnrs, ddof=1)), rel=1e-6)
        assert scores.ssim == pytest.approx((np.mean(ssims), np.std(ssims, ddof=1)), rel=1e-6)

    target = lab_statistics(targets)
    assert report.colours.unchanged == pytest.approx(np.linalg.norm(lab_statistics(photos) - target), abs=0.01)
    assert report.colours.translated == pytest.approx(np.linalg.norm(lab_statistics(translations) - target), abs=0.01)
    assert report.colours.num_targets == 3

    ssims = [ssim(photo, image) for photo, image in zip(photos, translations, strict=True)]
    assert report.content == pytest.approx((np.mean(ssims), np.std(ssims, ddof=1)), rel=1e-6)
    assert report.num_images == 4


def test_content_score_needs_no_ground_truth_or_target(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    report = evaluator.evaluate(lambda pixels: pixels, tmp_path)
    assert (report.truth, report.colours, report.content.mean) == (None, None, pytest.approx(1.0))
    assert "content kept" in evaluator.table(report, truth=None, target=None)


def test_table_of_perfect_scores_is_aligned(tmp_path: Path) -> None:
    write_set(tmp_path / "a", centre=100, seed=0)
    report = evaluator.evaluate(lambda pixels: pixels, tmp_path / "a", truth=tmp_path / "a", target=tmp_path / "a")
    table = evaluator.table(report, truth=tmp_path / "a", target=tmp_path / "a")
    assert "infinite" in table
    assert "nan" not in table
    for block in table.split("\n\n"):
        assert len({len(line) for line in block.splitlines()}) == 1


def test_error_states_number_of_photos_without_ground_truth(tmp_path: Path) -> None:
    write_set(tmp_path / "a", centre=100, seed=0)
    write_set(tmp_path / "b", centre=100, seed=0, count=1)
    with pytest.raises(DataError, match=rf"{tmp_path}/b lacks the truth of 3 of 4 photos, such as 1\.png"):
        evaluator.evaluate(invert, tmp_path / "a", truth=tmp_path / "b")


def test_ground_truth_of_other_size_is_rejected(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "x.png", size=(12, 9))
    write_picture(tmp_path / "b" / "x.png", size=(9, 12))
    with pytest.raises(DataError, match=r"b/x\.png is 9x12, but its photo is 12x9"):
        evaluator.evaluate(invert, tmp_path / "a", truth=tmp_path / "b")


def test_damaged_photo_ends_evaluation_with_error(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"y\.png"):
        evaluator.evaluate(invert, tmp_path)


def test_missing_folder_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no folder {tmp_path}/none"):
        evaluator.evaluate(invert, tmp_path / "none")


def test_photos_with_profiles_are_scored_in_srgb(tmp_path: Path) -> None:
    scenes = [photograph(number, size=32) for number in range(3)]
    for number, scene in enumerate(scenes):
        stored = (profiles.srgb_as_adobe(scene / 255) * 255).round().astype(np.uint8)
        for folder, pixels, options in (("photos", stored, {"icc_profile": profiles.adobe()}), ("truth", scene, {})):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png", **options)
    report = evaluator.evaluate(
        lambda photos: photos, tmp_path / "photos", truth=tmp_path / "truth", target=tmp_path / "truth"
    )
    assert report.truth is not None
    assert report.colours is not None
    assert report.truth.unchanged.psnr.mean > 45  # dB; differences by rounding alone
    assert report.colours.unchanged < 0.1
