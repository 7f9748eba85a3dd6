"""Scores of one direction, compared with scikit-image, NumPy and plain loops."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from cyclestyle.data.scenes.drawing import painting, photograph
from cyclestyle.errors import CommandError, DataError
from cyclestyle.evaluation.pair_rulers import PairRuler
from cyclestyle.evaluation.report import DirectionReport
from cyclestyle.evaluation.rulers import Layers, Ruler
from cyclestyle.evaluation.scores import SCORES, Sets, score_direction
from cyclestyle.evaluation.sets import from_folders
from tests import profiles
from tests.evaluation.small_network import small_ruler
from tests.translation.models import invert, noise, pixels_of, write_picture

LUMA = np.array([0.299, 0.587, 0.114])
PIXELS = ["colours", "content_ssim", "truth_psnr", "truth_ssim", "truth_l1"]


def smooth(seed: int, *, centre: float, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    """Create an image of smooth blobs around level `centre`; each seed gives another image and other scores."""
    small = Image.fromarray(noise(5, 4, seed=seed)).resize(size, Image.Resampling.BICUBIC)
    return (centre + (np.asarray(small, dtype=float) - 128) * 0.3).round().clip(0, 255).astype(np.uint8)


def write_set(folder: Path, *, centre: float = 128, seed: int = 0, count: int = 4) -> list[np.ndarray]:
    """Write images of two sizes; return them in the order of their names."""
    folder.mkdir()
    images = [smooth(seed + n, centre=centre, size=(32 + 3 * (n % 2), 24)) for n in range(count)]
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{n}.png")
    return images


def write_all(root: Path) -> Sets:
    """Write six photos, five targets and seven references of different colours."""
    for name, count, centre, seed in (("photos", 6, 90, 0), ("targets", 5, 160, 50), ("references", 7, 150, 90)):
        write_set(root / name, count=count, centre=centre, seed=seed)
    files = {name: sorted((root / name).iterdir()) for name in ("photos", "targets", "references")}
    return Sets(files["photos"], files["targets"], references=files["references"])


def score(sets: Sets, model: Callable[[Tensor], Tensor] = invert, **settings: object) -> DirectionReport:
    options = {"rulers": [small_ruler()], "cache": False, "batch_size": 3} | settings
    return score_direction(model, sets, direction="photo2monet", **options)


def value(report: DirectionReport, name: str, row: str = "translated", ruler: str | None = None) -> float:
    found = report.find(name, ruler, row)
    assert found is not None, f"no {name} of {row}"
    return found.value


def features(images: list[np.ndarray], ruler: Ruler, part: str) -> np.ndarray:
    """Measure images one by one; for `grams`, those of the first layer."""
    rows = []
    for image in images:
        measured = ruler.measure(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None], [part])
        rows.append(measured.grams[0] if part == "grams" else getattr(measured, part))
    return torch.cat(rows).double().numpy()


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    return structural_similarity(
        x @ LUMA, y @ LUMA, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )


def lab_statistics(images: list[np.ndarray]) -> np.ndarray:
    pooled = np.concatenate([rgb2lab(image).reshape(-1, 3) for image in images])
    return np.concatenate([pooled.mean(0), pooled.std(0)])


def kid_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    def within(z: np.ndarray) -> float:
        pairs = [kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in x for b in y]
    return within(x) + within(y) - 2 * sum(across) / len(across)


def fid_by_eigenvalues(x: np.ndarray, y: np.ndarray) -> float:
    covariances = [np.cov(z, rowvar=False) for z in (x, y)]
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))  # eigenvalues of the root
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sum(covariances)) - 2 * roots.sum())


# ----------------------------------------------------------------------------------------------- scores of pixels


def test_pixel_scores_match_scikit_image(tmp_path: Path) -> None:
    photos = write_set(tmp_path / "photos", centre=90, seed=0)
    truths = write_set(tmp_path / "truth", centre=150, seed=50)
    targets = write_set(tmp_path / "target", centre=180, seed=90, count=3)
    sets = from_folders(tmp_path / "photos", truth=tmp_path / "truth", target=tmp_path / "target")
    report = score(sets, names=PIXELS, rulers=[])

    before, after = (
        np.concatenate([image.reshape(-1, 3) for image in images]).astype(float) for images in (photos, truths)
    )
    gain = after.std(0) / before.std(0)
    mapped = [((x - before.mean(0)) * gain + after.mean(0)).round().clip(0, 255).astype(np.uint8) for x in photos]
    translations = [255 - photo for photo in photos]
    for row, images in (("untouched", photos), ("mapped", mapped), ("translated", translations)):
        pairs = list(zip(truths, images, strict=True))
        psnrs = [peak_signal_noise_ratio(truth, image) for truth, image in pairs]
        assert value(report, "truth_psnr", row) == pytest.approx(np.mean(psnrs), rel=1e-6)
        assert value(report, "truth_ssim", row) == pytest.approx(np.mean([ssim(*pair) for pair in pairs]), rel=1e-6)

    target = lab_statistics(targets)
    for row, images in (("untouched", photos), ("translated", translations)):
        distance = np.linalg.norm(lab_statistics(images) - target)
        assert value(report, "colours", row) == pytest.approx(distance, abs=0.01)
    assert report.find("colours").reference == 3

    ssims = [ssim(photo, image) for photo, image in zip(photos, translations, strict=True)]
    content = report.find("content_ssim")
    assert content.value == pytest.approx(np.mean(ssims), rel=1e-6)
    assert min(ssims) < content.low < content.value < content.high < max(ssims)
    assert (content.n, content.reference, content.size, content.ruler) == (4, None, None, None)


def test_reconstruction_is_compared_with_photo(tmp_path: Path) -> None:
    write_set(tmp_path / "photos")
    sets, names = from_folders(tmp_path / "photos"), ["reconstruction_psnr", "reconstruction_ssim"]
    exact = score(sets, names=names, back=invert)
    assert (value(exact, "reconstruction_psnr"), value(exact, "reconstruction_ssim")) == (np.inf, pytest.approx(1))
    brighter = score(sets, names=names, back=lambda pixels: 255 - pixels + 1)
    assert value(brighter, "reconstruction_psnr") == pytest.approx(20 * np.log10(255), abs=1e-5)
    without = score(sets, names=names)
    assert without.scores == ()
    assert without.notes == (
        "left out: reconstruction_psnr, reconstruction_ssim (the model has no generator for the opposite direction)",
    )


def test_photos_with_profiles_are_scored_in_srgb(tmp_path: Path) -> None:
    scenes = [photograph(number, size=32) for number in range(3)]
    for number, scene in enumerate(scenes):
        stored = (profiles.srgb_as_adobe(scene / 255) * 255).round().astype(np.uint8)
        for folder, pixels, options in (("photos", stored, {"icc_profile": profiles.adobe()}), ("truth", scene, {})):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png", **options)
    report = score(from_folders(tmp_path / "photos", truth=tmp_path / "truth"), names=PIXELS)
    assert value(report, "truth_psnr", "untouched") > 45  # dB; differences by rounding alone
    assert value(report, "colours", "untouched") < 0.1


def test_photo_size_resizes_photos_and_truths_first(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "x.png", size=(12, 9))
    write_picture(tmp_path / "b" / "x.png", size=(9, 12), seed=1)
    sets = from_folders(tmp_path / "a", truth=tmp_path / "b")
    sizes = []
    report = score(sets, lambda pixels: sizes.append(tuple(pixels.shape)) or pixels, photo_size=16, names=PIXELS)
    assert sizes == [(1, 3, 16, 16)]
    x, y = (
        np.asarray(Image.open(tmp_path / side / "x.png").resize((16, 16), Image.Resampling.BICUBIC)) for side in "ab"
    )
    assert value(report, "truth_psnr") == pytest.approx(peak_signal_noise_ratio(x, y), abs=1e-5)
    assert (report.find("truth_psnr").size, report.find("truth_psnr").resize) == (16, "bicubic")


# -------------------------------------------------------------------------------------------- scores of features


def test_feature_scores_match_independent_computations(tmp_path: Path) -> None:
    sets, ruler = write_all(tmp_path), small_ruler()
    report = score(sets)
    photos, targets = ([pixels_of(file) for file in files] for files in (sets.sources, sets.targets))
    translations = [255 - photo for photo in photos]
    references = [pixels_of(file) for file in sets.references]
    floor = [references[number * 7 // 6] for number in range(6)]
    for row, images in (("translated", translations), ("untouched", photos), ("floor", floor)):
        x, y = (features(one, ruler, "pooled") for one in (images, targets))
        assert value(report, "kid", row) == pytest.approx(kid_by_loops(x, y), rel=1e-4)
        assert value(report, "fid", row) == pytest.approx(fid_by_eigenvalues(x, y), rel=1e-3, abs=1e-3)
        found = report.find("kid", row=row)
        assert (found.n, found.reference, found.size, found.resize) == (6, 5, 32, "bicubic")
        assert found.low < found.value < found.high

    x, y = (features(images, ruler, "tokens") for images in (translations, photos))
    similarities = [
        [token @ token.T / np.outer(norm, norm) for token in z for norm in [np.linalg.norm(token, axis=1)]]
        for z in (x, y)
    ]
    expected = np.mean([(a - b) ** 2 for a, b in zip(*similarities, strict=True)])
    assert value(report, "structure") == pytest.approx(expected, rel=1e-4)

    x, y = (features(images, ruler, "pooled") for images in (translations, references))
    cosines = x @ y.T / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1))
    assert value(report, "copying") == pytest.approx(np.mean(1 - cosines.max(1)), rel=1e-4)
    assert report.find("copying").reference == 7


def test_style_distance_is_relative_squared_distance_of_mean_gram_matrices(tmp_path: Path) -> None:
    layers = Layers(pooled=(), structure=None, style=("shallow",))
    sets, ruler = write_all(tmp_path), small_ruler(layers=layers)
    report = score(sets, rulers=[ruler])
    x, y = (features([255 - pixels_of(f) for f in sets.sources], ruler, "grams"),
            features([pixels_of(f) for f in sets.targets], ruler, "grams"))  # fmt: skip

    def within(z: np.ndarray) -> float:
        return float(np.mean([z[i] @ z[j] for i in range(len(z)) for j in range(len(z)) if i != j]))

    expected = (within(x) + within(y) - 2 * np.mean(x @ y.T)) / np.mean((y**2).sum(1))
    assert value(report, "style") == pytest.approx(expected, rel=1e-4)
    assert {score.name for score in report.scores if score.ruler} == {"style"}
    assert any("kid, fid, copying" in note for note in report.notes)


def test_floor_compares_halves_of_targets_without_references(tmp_path: Path) -> None:
    sets, ruler = write_all(tmp_path)._replace(references=()), small_ruler()
    report = score(sets)
    halves = [[pixels_of(file) for file in sets.targets[first::2]] for first in (0, 1)]
    expected = kid_by_loops(*(features(half, ruler, "pooled") for half in halves))
    assert value(report, "kid", "floor") == pytest.approx(expected, rel=1e-4)
    assert (report.find("kid", row="floor").n, report.find("kid", row="floor").reference) == (3, 2)
    few = score(sets._replace(targets=sets.targets[:3]))
    assert few.find("kid", row="floor") is None
    assert few.find("kid") is not None


def test_targets_are_searched_for_copies_without_references(tmp_path: Path) -> None:
    sets = write_all(tmp_path)._replace(references=())
    copying = score(sets._replace(sources=sets.targets), lambda pixels: pixels)
    assert value(copying, "copying") == pytest.approx(0, abs=1e-6)
    assert copying.find("copying", row="floor") is None


def test_single_reference_is_searched_for_copies(tmp_path: Path) -> None:
    sets = write_all(tmp_path)
    report = score(
        sets._replace(references=sets.references[:1], sources=sets.references[:1] * 2), lambda pixels: pixels
    )
    assert value(report, "copying") == pytest.approx(0, abs=1e-6)
    assert report.find("copying").reference == 1


def test_scores_are_measured_by_each_ruler(tmp_path: Path) -> None:
    first, second = small_ruler(), small_ruler(seed=1)
    second.name = "other"
    report = score(write_all(tmp_path), rulers=[first, second])
    for name in ("kid", "fid", "style", "structure"):
        values = [value(report, name, ruler=ruler) for ruler in ("small", "other")]
        assert values[0] != values[1]
    assert [score.ruler for score in report.scores if score.name == "copying"] == ["small", "small"]


class MeanDifference:
    """Distance of images by their mean absolute difference, in place of LPIPS."""

    name, size = "lpips_alex", 64

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.float() - y.float()).abs().mean(dim=(1, 2, 3))


def test_lpips_compares_translations_with_photos_and_truths(tmp_path: Path) -> None:
    photos = write_set(tmp_path / "photos", centre=90)
    truths = write_set(tmp_path / "truth", centre=150, seed=50)
    sets = from_folders(tmp_path / "photos", truth=tmp_path / "truth")
    report = score(sets, lpips=[MeanDifference()], names=["lpips", "truth_lpips"])

    def mean(images: list[np.ndarray], others: list[np.ndarray]) -> float:
        return float(np.mean([np.abs(x.astype(float) - y).mean() for x, y in zip(images, others, strict=True)]))

    translations = [255 - photo for photo in photos]
    assert value(report, "lpips") == pytest.approx(mean(translations, photos), rel=1e-5)
    assert value(report, "truth_lpips") == pytest.approx(mean(translations, truths), rel=1e-5)
    assert value(report, "truth_lpips", "untouched") == pytest.approx(mean(photos, truths), rel=1e-5)
    assert report.find("truth_lpips", row="mapped") is not None
    assert (report.find("lpips").ruler, report.find("lpips").size) == ("lpips_alex", 64)


# ------------------------------------------------------------------------------------------------- repetition


def test_batches_workers_and_order_of_names_do_not_change_scores(tmp_path: Path) -> None:
    sets = write_all(tmp_path)
    report = score(sets, batch_size=1)
    other = score(sets, batch_size=6, workers=1, names=SCORES[::-1])
    assert [score[:3] for score in other.scores] == [score[:3] for score in report.scores]
    for one, two in zip(report.scores, other.scores, strict=True):
        numbers = [[number for number in score[3:6] if number is not None] for score in (one, two)]
        assert numbers[1] == pytest.approx(numbers[0], rel=1e-5)  # float32 sums depend on the size of the batch
        assert two[6:] == one[6:]
    assert score(sets, batch_size=1) == report


def test_other_seed_changes_intervals_alone(tmp_path: Path) -> None:
    sets = write_all(tmp_path)
    kid, other = (score(sets, seed=seed).find("kid") for seed in (0, 1))
    assert kid.value == other.value
    assert (kid.low, kid.high) != (other.low, other.high)


def test_cached_features_give_same_scores(tmp_path: Path) -> None:
    sets, ruler = write_all(tmp_path), small_ruler()
    first = score(sets, rulers=[ruler], cache=True)
    calls = len(ruler.network.calls)
    again = score(sets, rulers=[ruler], cache=True)
    assert again == first
    assert len(ruler.network.calls) - calls < calls


def test_progress_counts_all_images(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    sets = write_all(tmp_path)
    score(sets, on_progress=lambda done, total: seen.append((done, total)))
    total = 6 + 5 + 6 + 7  # photos, targets, references of the floor, all references
    assert {of for _, of in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)


# --------------------------------------------------------------------------------------------------- strengths


def test_curve_has_scores_of_each_strength(tmp_path: Path) -> None:
    sets = write_all(tmp_path)
    report = score(sets, strengths=[1, 0, 0.5])
    assert [point.strength for point in report.curve] == [0, 0.5, 1]
    assert {score.name for point in report.curve for score in point.scores} == {"kid", "style", "structure"}
    assert {score.row for point in report.curve for score in point.scores} == {"translated"}
    photo, half, whole = report.curve
    assert (report.strength, value(photo, "structure")) == (1, 0)
    for name in ("kid", "style", "structure"):
        assert whole.find(name) == report.find(name)
    assert value(photo, "kid") == pytest.approx(value(report, "kid", "untouched"), rel=1e-6)
    assert 0 < value(half, "structure") != value(whole, "structure")
    assert score(sets).curve == ()


def test_single_strength_scores_blended_images(tmp_path: Path) -> None:
    write_set(tmp_path / "photos")
    sets = from_folders(tmp_path / "photos")
    weak, strong = (score(sets, strengths=[strength], names=["content_ssim"]) for strength in (0.1, 1.0))
    assert value(weak, "content_ssim") > value(strong, "content_ssim")
    assert (weak.strength, weak.curve) == (0.1, ())
    assert score(sets, strengths=[0.1, 0.5], names=["content_ssim"]).strength == 0.5


# -------------------------------------------------------------------------------------------------- bad inputs


def test_scores_of_photos_alone_need_no_other_images(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    report = score(from_folders(tmp_path), lambda pixels: pixels)
    assert {score.name for score in report.scores} == {"structure", "content_ssim"}
    assert (value(report, "structure"), value(report, "content_ssim")) == (0, pytest.approx(1))
    assert report.find("content_ssim").low is None
    assert report.notes[0] == (
        "left out: kid, fid, style, copying, colours (no images of the target domain: give target= or data.root=)"
    )


def test_distances_of_sets_need_two_images_of_each(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "x.png")
    write_set(tmp_path / "targets")
    report = score(from_folders(tmp_path / "photos", target=tmp_path / "targets"))
    assert not {score.name for score in report.scores} & {"kid", "fid", "style"}
    assert "left out: kid, fid, style (two photos and targets at least, there are 1 and 4)" in report.notes
    assert report.find("colours") is not None


def test_truth_of_other_size_is_rejected(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "x.png", size=(12, 9))
    write_picture(tmp_path / "b" / "x.png", size=(9, 12))
    with pytest.raises(DataError, match=r"b/x\.png is 9x12, but its photo is 12x9: resize"):
        score(from_folders(tmp_path / "a", truth=tmp_path / "b"), names=PIXELS)


@pytest.mark.parametrize("broken", ["photos", "targets", "references"])
def test_damaged_image_ends_evaluation_with_error(tmp_path: Path, broken: str) -> None:
    sets = write_all(tmp_path)
    (tmp_path / broken / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match=rf"{broken}/1\.png"):
        score(sets)


def test_unknown_score_is_a_command_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="no score kids: did you mean kid"):
        score(write_all(tmp_path), names=["kids"])


def test_batch_size_below_one_is_a_command_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="batch_size=0"):
        score(write_all(tmp_path), batch_size=0)


# ------------------------------------------------------------------------------------------- published networks


def noisy(photos: Tensor, amount: float) -> Tensor:
    random = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
    return (photos + 60 * amount * random).round().clamp(0, 255).to(torch.uint8)


def blurred(photos: Tensor, amount: float) -> Tensor:
    return photos if not amount else gaussian_blur(photos, [25, 25], [4 * amount, 4 * amount])


def mixed(photos: Tensor, amount: float) -> Tensor:
    """Mix photos with the paintings of the same scenes; `photos` are the first scenes."""
    paintings = torch.stack(
        [torch.from_numpy(painting(number, size=64)).permute(2, 0, 1) for number in range(len(photos))]
    )
    return ((1 - amount) * photos + amount * paintings).round().to(torch.uint8)


@pytest.mark.parametrize("change", [noisy, blurred, mixed])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "vgg16_hed", "lpips_alex"])
def test_every_distance_grows_with_noise_blur_and_mixing(
    name: str, change: Callable[[Tensor, float], Tensor], pretrained: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    ruler = Ruler(name, pretrained(name), size=64)
    pairs = [PairRuler(name, ruler.network, size=64)] if name.startswith("lpips") else []
    for number in range(8):
        Image.fromarray(photograph(number, size=64)).save(tmp_path / f"{number}.png")
    sets = from_folders(tmp_path, target=tmp_path)
    names = ["kid", "fid", "style", "structure", "lpips"]
    reports = [
        score(sets, functools.partial(change, amount=amount), rulers=[ruler], lpips=pairs, names=names, batch_size=8)
        for amount in (0, 0.25, 0.5, 1)
    ]
    measured = {found.name for found in reports[0].scores}
    assert measured >= {"kid", "fid", "structure"} | ({"style"} if ruler.has_style else set())
    for each in measured:
        values = [value(report, each) for report in reports]
        assert values == sorted(values), each
        assert values[0] < values[1] < values[-1], each
