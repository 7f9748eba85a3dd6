"""Features of sets of images: files of all kinds, ranks, progress and memory."""

import itertools
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.errors import CommandError, DataError
from cyclestyle.evaluation import features
from cyclestyle.evaluation.features import SetFeatures, gram_indices, set_features
from cyclestyle.evaluation.image_files import shorter_side
from cyclestyle.evaluation.rulers import Ruler, load_rulers, shared_size
from cyclestyle.images import reading, tensors
from tests import tiffs
from tests.evaluation.measuring_program import Job, Result, run
from tests.evaluation.small_network import small_ruler
from tests.forked import in_a_child
from tests.pictures import folder_of, picture


def one_by_one(files: list[Path], ruler: Ruler) -> SetFeatures:
    """Features of a set, measured image by image."""
    images = [tensors.pil_to_uint8(reading.read_8_bit(file))[None] for file in files]
    measured = [ruler.measure(image, ["pooled", "grams"]) for image in images]
    grams = zip(*(each.grams for each in measured), strict=True)
    return SetFeatures(torch.cat([each.pooled for each in measured]), tuple(torch.cat(layer) for layer in grams))


def assert_equal(x: SetFeatures, y: SetFeatures) -> None:
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def mixed_folder(folder: Path) -> list[Path]:
    """Image files of different sizes, modes and formats, in the order of their names."""
    folder.mkdir()
    rgb = picture(7, 45, 33)
    rgb.save(folder / "a.png")
    rgb.convert("L").resize((20, 61)).save(folder / "b.jpg")
    cut_out = rgb.convert("RGBA")
    cut_out.putalpha(Image.linear_gradient("L").resize(rgb.size))
    cut_out.save(folder / "c.png")
    deep = (np.asarray(rgb.convert("L"), dtype=np.uint16) * 257) + 100
    Image.fromarray(deep).save(folder / "d.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder / "e.jpg", exif=turned)
    rgb.quantize(8).save(folder / "f.png")
    picture(9, 1, 1).save(folder / "g.bmp")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_files_of_all_kinds_are_read_as_in_evaluation(tmp_path: Path, batch_size: int) -> None:
    files = mixed_folder(tmp_path / "set")
    measured = set_features(files, small_ruler(), parts=["pooled", "grams"], batch_size=batch_size, cache=False)
    assert_equal(measured, one_by_one(files, small_ruler()))


def test_worker_processes_give_the_same_features(tmp_path: Path) -> None:
    files = mixed_folder(tmp_path / "set")
    settings = {"parts": ["pooled", "grams"], "batch_size": 3, "cache": False}
    threads, processes = (set_features(files, small_ruler(), workers=workers, **settings) for workers in (0, 1))
    torch.testing.assert_close(processes, threads, rtol=0, atol=0)


def test_photo_size_resizes_images_to_a_square_first(tmp_path: Path) -> None:
    (file,) = folder_of(tmp_path / "set", 1, width=45, height=33)
    measured = set_features([file], small_ruler(), parts=["pooled"], photo_size=12, cache=False)
    small = picture(0, 45, 33).resize((12, 12), Image.Resampling.BICUBIC)
    expected = small_ruler().measure(tensors.pil_to_uint8(small)[None], ["pooled"])
    assert torch.equal(measured.pooled, expected.pooled)
    assert not torch.allclose(measured.pooled, one_by_one([file], small_ruler()).pooled)


def test_parts_that_are_not_requested_are_empty(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "set", 3)
    pooled = set_features(files, small_ruler(), parts=["pooled"])
    grams = set_features(files, small_ruler(), parts=["grams", "tokens"])
    assert (pooled.pooled.shape, pooled.grams) == ((3, 6), ())
    assert (grams.pooled.shape, [len(layer) for layer in grams.grams]) == ((3, 0), [3, 3])


def test_gram_indices_are_evenly_spaced() -> None:
    assert gram_indices(3) == [0, 1, 2]
    assert gram_indices(10, limit=4) == [0, 2, 5, 7]
    many = gram_indices(1234)
    assert len(many) == 500
    assert {after - before for before, after in itertools.pairwise(many)} == {2, 3}


@pytest.mark.parametrize("cache", [False, True])
def test_number_of_gram_matrices_is_bounded(tmp_path: Path, cache: bool) -> None:
    originals = folder_of(tmp_path / "set", 2, width=4, height=4)
    files = [originals[number % 5 == 0] for number in range(600)]
    both = set_features(files, small_ruler(), parts=["pooled", "grams"], batch_size=50, cache=cache)
    alone = set_features(files, small_ruler(), parts=["grams"], batch_size=50, cache=cache)
    first, second = one_by_one(originals, small_ruler()).grams[0]
    expected = torch.stack([second if index % 5 == 0 else first for index in gram_indices(600)])
    torch.testing.assert_close(both.grams[0], expected)
    torch.testing.assert_close(alone.grams[0], expected)
    assert len(both.pooled) == 600


def test_batches_without_gram_matrices_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "gram_indices", lambda count: [0, 5])
    files, ruler = folder_of(tmp_path / "set", 9), small_ruler()
    progress: list[tuple[int, int]] = []
    measured = set_features(
        files, ruler, parts=["grams"], batch_size=2, cache=False, on_progress=lambda *counts: progress.append(counts)
    )
    assert [count for count, _ in ruler.network.calls] == [2, 2]  # images 0, 1 and 4, 5
    torch.testing.assert_close(measured.grams[0], one_by_one([files[0], files[5]], small_ruler()).grams[0])
    assert progress == [(2, 4), (4, 4), (9, 9)]


COUNTS = {1: [[1], []], 3: [[2], [1]], 7: [[2, 2], [2, 1]]}  # number of images -> sizes of the batches of both ranks


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Result]]:
    """Results of both ranks for several jobs, which run in one launch."""
    root = tmp_path_factory.mktemp("two_ranks")
    for count in COUNTS:
        folder_of(root / str(count), count, width=45, height=33)
    damaged = folder_of(root / "damaged", 4)[3]
    damaged.write_bytes(damaged.read_bytes()[:60])
    jobs = {
        **{str(count): Job(str(root / str(count))) for count in COUNTS},
        "damaged": Job(str(root / "damaged")),
        "damaged, cached": Job(str(root / "damaged"), cache=True),
        "cached": Job(str(root / "7"), cache=True),
        "cached again": Job(str(root / "7"), cache=True),
        "after the failures": Job(str(root / "3")),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYCLESTYLE_CACHE", str(root / "cache"))
        ranks = run(root / "out", list(jobs.values()), ranks=2)
    return {name: list(results) for name, results in zip(jobs, zip(*ranks, strict=True), strict=True)}


@pytest.mark.parametrize("count", COUNTS)
def test_two_ranks_return_the_features_of_one_process(
    two_ranks: dict[str, list[Result]], tmp_path: Path, count: int
) -> None:
    files = folder_of(tmp_path / "set", count, width=45, height=33)
    expected = set_features(files, small_ruler(), parts=["pooled", "grams"], batch_size=2, cache=False)
    for result in two_ranks[str(count)]:
        assert torch.equal(result.pooled, expected.pooled)
        assert all(map(torch.equal, result.grams, expected.grams))
    assert [result.batches for result in two_ranks[str(count)]] == COUNTS[count]


def test_two_ranks_share_the_cache(two_ranks: dict[str, list[Result]]) -> None:
    assert [result.batches for result in two_ranks["cached"]] == COUNTS[7]
    assert [result.batches for result in two_ranks["cached again"]] == [[], []]
    for result in [*two_ranks["cached"], *two_ranks["cached again"]]:
        assert torch.equal(result.pooled, two_ranks["7"][0].pooled)
        assert all(map(torch.equal, result.grams, two_ranks["7"][0].grams))


@pytest.mark.parametrize("job", ["damaged", "damaged, cached"])
def test_image_that_is_damaged_on_one_rank_fails_on_all_ranks(two_ranks: dict[str, list[Result]], job: str) -> None:
    assert [result.error for result in two_ranks[job]] == ["FailedElsewhereError", "ImageError"]
    assert [result.error for result in two_ranks["after the failures"]] == ["", ""]


def test_progress_counts_the_images_of_all_ranks(two_ranks: dict[str, list[Result]], tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    set_features(
        folder_of(tmp_path / "set", 7),
        small_ruler(),
        parts=["pooled"],
        batch_size=2,
        cache=False,
        on_progress=lambda *counts: progress.append(counts),
    )
    assert progress == [(2, 7), (4, 7), (6, 7), (7, 7), (7, 7)]
    assert [result.progress for result in two_ranks["7"]] == [[(4, 7), (7, 7), (7, 7)]] * 2
    assert [result.progress for result in two_ranks["cached again"]] == [[(7, 7)]] * 2


def test_large_images_are_not_held_in_memory(tmp_path: Path) -> None:
    Image.effect_noise((1000, 1000), 40).convert("RGB").save(tmp_path / "large.jpg")

    def growth_of_memory() -> float:
        """Growth of the highest memory in use, in images of 3 MB, when 64 images are measured in one batch."""
        set_features([tmp_path / "large.jpg"], small_ruler(), parts=["pooled"], cache=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        set_features([tmp_path / "large.jpg"] * 64, small_ruler(), parts=["pooled"], batch_size=64, cache=False)
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (1000 * 1000 * 3)

    assert in_a_child(growth_of_memory, seconds=60) < 32


def test_no_files_are_a_data_error() -> None:
    with pytest.raises(DataError, match="no pictures to measure"):
        set_features([], small_ruler(), parts=["pooled"])
    with pytest.raises(DataError, match="no pictures to measure"):
        shared_size([])


def test_missing_file_is_a_data_error(tmp_path: Path) -> None:
    for cache in (False, True):
        with pytest.raises(DataError, match=r"none\.png: No such file"):
            set_features([tmp_path / "none.png"], small_ruler(), parts=["pooled"], cache=cache)


def test_batch_size_below_one_is_a_command_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="batch_size=0"):
        set_features(folder_of(tmp_path / "set", 1), small_ruler(), parts=["pooled"], batch_size=0)


def test_shared_size_is_the_median_shorter_side_within_limits(tmp_path: Path) -> None:
    def size(*sides: tuple[int, int]) -> int:
        files = [tmp_path / f"{number}.png" for number in range(len(sides))]
        for file, shape in zip(files, sides, strict=True):
            Image.new("RGB", shape).save(file)
        return shared_size(files)

    assert size((200, 150), (160, 400), (300, 170)) == 160
    assert size((200, 150), (160, 400), (300, 170), (900, 800)) == 160
    assert size((20, 15)) == 128
    assert size((2000, 1500)) == 256


def test_shared_size_reads_only_headers(tmp_path: Path) -> None:
    (file,) = folder_of(tmp_path / "set", 1, width=140, height=150)
    file.write_bytes(file.read_bytes()[:60])
    assert shared_size([file]) == 140


def test_shorter_side_of_a_16_bit_file_that_pillow_cannot_open(tmp_path: Path) -> None:
    layout = tiffs.Layout(bits=16, samples=2, photometric=1, extra=(2,))
    (tmp_path / "deep.tif").write_bytes(tiffs.encoded(layout))
    assert shorter_side(tmp_path / "deep.tif") == tiffs.HEIGHT


def test_shared_size_of_a_file_that_is_no_image_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(DataError, match=r"x\.png: not a picture"):
        shared_size([tmp_path / "x.png"])


def test_unknown_ruler_is_a_command_error() -> None:
    with pytest.raises(CommandError, match="vgg17: there are efficientnet_lite0, vgg16_hed"):
        load_rulers(["vgg17"], size=128)


def test_rulers_without_weights_are_skipped_if_requested() -> None:
    assert load_rulers(["vgg19"], size=128, missing="skip") == ([], ["vgg19"])
    with pytest.raises(CommandError, match="no weights of vgg19"):
        load_rulers(["vgg19"], size=128)
