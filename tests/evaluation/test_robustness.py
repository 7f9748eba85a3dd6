"""Robustness: movements of translations beside those of their photos, on drawn scenes."""

import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cyclestyle.data.scenes.drawing import photograph
from cyclestyle.errors import DataError
from cyclestyle.evaluation import robustness
from cyclestyle.evaluation.plots import DARK, SERIES
from cyclestyle.evaluation.robustness import LEVELS, Level, RobustnessReport, degrade
from cyclestyle.metrics import psnr_ssim


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six drawn photos; two of them are smaller."""
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for index in range(6):
        files.append(folder / f"{index}.png")
        Image.fromarray(photograph(index, size=64)[: 48 if index in (1, 4) else 64]).save(files[-1])
    return files


def identity(images: Tensor) -> Tensor:
    return images


def darker(images: Tensor) -> Tensor:
    return images // 2


class MeanColour:
    """A measure with a size, as LPIPS has: absolute difference of the mean values."""

    name, size = "mean colour", 32

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.float().mean(dim=(1, 2, 3)) - y.float().mean(dim=(1, 2, 3))).abs()


def values(report: RobustnessReport, measure: str, side: str) -> list[float]:
    return [getattr(each, side).value for each in report.movements if each.measure == measure]


def test_translations_of_an_identity_model_move_like_their_photos(photos: Sequence[Path]) -> None:
    report = robustness.robustness(identity, photos)
    assert {movement.measure for movement in report.movements} == {"1 - SSIM", "RMS in 1/255"}
    assert [movement.level for movement in report.movements] == [*LEVELS, *LEVELS]
    for movement in report.movements:
        assert movement.photos == movement.translations
        assert movement.ratio == 1
        assert 0 < movement.photos.low < movement.photos.value < movement.photos.high


def test_model_that_halves_contrast_halves_pixel_movements(photos: Sequence[Path]) -> None:
    report = robustness.robustness(darker, photos)
    for movement in report.by_measure()["RMS in 1/255", None]:
        assert movement.ratio == pytest.approx(0.5, abs=0.03)


def test_constant_model_does_not_move(photos: Sequence[Path]) -> None:
    report = robustness.robustness(torch.zeros_like, photos)
    assert all(movement.translations == (0, 0, 0) for movement in report.movements)
    assert all(movement.ratio == 0 for movement in report.movements)


def test_stronger_degradations_move_photos_further(photos: Sequence[Path]) -> None:
    report = robustness.robustness(identity, photos, photo_size=64)
    for measure in ("1 - SSIM", "RMS in 1/255"):
        moved = np.array(values(report, measure, "photos")).reshape(3, 3)  # kinds x levels
        assert (np.diff(moved, axis=1) > 0).all(), measure
    noise = values(report, "RMS in 1/255", "photos")[:3]
    assert noise == pytest.approx([5, 10, 20], rel=0.1)  # a part of the noise is clipped


def test_movements_are_means_over_photos_of_plain_comparisons(photos: Sequence[Path]) -> None:
    report = robustness.robustness(darker, photos, seed=3)
    for column, level in enumerate(LEVELS):
        distances = []
        for number, file in enumerate(photos):
            photo = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
            poor = degrade(photo, level, number=number, seed=3)
            distances.append(1 - psnr_ssim.ssim(photo // 2, poor // 2))
        expected = sum(distances) / len(distances)
        assert report.movements[column].translations.value == pytest.approx(expected, rel=1e-9)


def test_batch_size_and_workers_leave_the_report_unchanged(photos: Sequence[Path]) -> None:
    expected = robustness.robustness(darker, photos, measures=[MeanColour()], batch_size=1)
    assert robustness.robustness(darker, photos, measures=[MeanColour()], batch_size=4) == expected
    assert robustness.robustness(darker, photos, measures=[MeanColour()], workers=1) == expected
    assert robustness.robustness(darker, photos, measures=[MeanColour()], seed=1) != expected


def test_photos_are_resized_before_they_are_degraded_and_translated(photos: Sequence[Path]) -> None:
    shapes = set()

    def model(images: Tensor) -> Tensor:
        shapes.add(tuple(images.shape[1:]))
        return images

    done: list[tuple[int, int]] = []
    robustness.robustness(model, photos, photo_size=40, batch_size=4, on_progress=lambda *counts: done.append(counts))
    assert shapes == {(3, 40, 40)}
    assert done == [(4, 6), (6, 6)]


def test_jpeg_level_is_a_real_file_and_noise_depends_on_number_and_seed() -> None:
    pixels = photograph(2, size=48)
    photo = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(degrade(photo, Level("jpeg", 40), number=0, seed=0), expected)

    level = Level("noise", 10)
    first = degrade(photo, level, number=0, seed=0)
    assert torch.equal(first, degrade(photo, level, number=0, seed=0))
    assert not torch.equal(first, degrade(photo, level, number=1, seed=0))
    assert not torch.equal(first, degrade(photo, level, number=0, seed=1))
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    weak, strong = (degrade(grey, Level("noise", sigma), number=0, seed=0).double() - 128 for sigma in (5, 20))
    assert (strong - 4 * weak).abs().max() <= 2.5  # the same pattern, rounded


def test_damaged_photo_ends_the_measurement(photos: Sequence[Path], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(photos[0].read_bytes()[:200])
    with pytest.raises(DataError, match=r"damaged\.png"):
        robustness.robustness(identity, [*photos, damaged])


def test_table_has_a_block_per_measure_with_its_size(photos: Sequence[Path]) -> None:
    report = robustness.robustness(darker, photos, measures=[MeanColour()], direction="photo2monet", photo_size=64)
    colour, rms, about = robustness.table(report).split("\n\n")
    heading, heads, *rows = rms.splitlines()
    assert heading == "photo2monet, robustness, RMS in 1/255, photos of 64 px, n = 6"
    assert heads.split("  ")[1:2] == ["degradation of the photos"]
    assert [row[2:18].strip() for row in rows[2::3]] == ["noise 20/255", "blur 2 px", "JPEG quality 15"]
    (noise,) = (movement for movement in report.movements if movement.level == LEVELS[2] and movement.size is None)
    assert f"{noise.photos.value:.1f} [{noise.photos.low:.1f}, {noise.photos.high:.1f}]" in rows[2]
    assert rows[2].endswith(f"{noise.ratio:.2f}")
    assert colour.splitlines()[0].startswith("photo2monet, robustness, mean colour, images resized to 32 px")
    assert "95 %" in about


def test_files_have_all_numbers_and_readable_curves(photos: Sequence[Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = robustness.robustness(darker, photos, direction="photo2monet")
    files = robustness.write(report, tmp_path)
    assert [file.name for file in files] == [f"robustness_photo2monet.{kind}" for kind in ("json", "png", "svg")]
    content = json.loads(files[0].read_text())
    assert (content["n"], content["direction"], len(content["movements"])) == (6, "photo2monet", 2 * len(LEVELS))
    assert content["movements"][0]["photos"]["value"] == report.movements[0].photos.value
    with Image.open(files[1]) as image:
        assert image.width > 1.8 * image.height  # a panel for each measure
        assert len(image.convert("RGB").getcolors(2**24)) > 10
    drawn = files[2].read_text().split("</style>", 1)[1]
    assert {colour for colour, _ in SERIES} <= {*re.findall(r"(?:fill|stroke): (#\w+)", drawn)} <= DARK.keys()


def test_report_of_motionless_photos_is_written_without_ratio(tmp_path: Path) -> None:
    grey = tmp_path / "grey.png"
    Image.new("RGB", (32, 32), (128, 128, 128)).save(grey)
    report = robustness.robustness(identity, [grey])
    blurred = [each for each in report.movements if each.level.kind == "blur" and each.measure != "1 - SSIM"]
    assert all(each.photos.value == 0 for each in blurred)
    assert robustness.table(report).splitlines()[5].endswith("  -")
    files = robustness.write(report, tmp_path)
    numbers = json.loads(files[0].read_text())["movements"]
    assert [each["ratio"] for each in numbers if each["degradation"] == "blur"] == [None] * 6


def test_without_matplotlib_movements_are_written_and_one_line_names_the_extra(
    photos: Sequence[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    report = robustness.robustness(identity, photos[:2])
    assert robustness.write(report, tmp_path) == [tmp_path / "robustness.json"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "robustness.svg are left out: drawing them needs matplotlib: pip install 'cyclestyle[metrics]'"
    )
