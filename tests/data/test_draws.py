"""Draws: a pure function of the seed and the draw number, whoever fetches them."""

import os
import signal
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.data.draws import Batch, Draws, batches
from cyclestyle.data.transforms import Crop
from cyclestyle.errors import DataError
from tests.pictures import folder_of

SEED = 7
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the worker in /proc")


@pytest.fixture
def draws(tmp_path: Path) -> Draws:
    crop = Crop(resize="stretch", load_size=20, crop_size=16, flip=True)
    return Draws(folder_of(tmp_path / "a", 3), folder_of(tmp_path / "b", 5, first=100), crop=crop, seed=SEED)


def fetched(draws: Draws, **which: int) -> list[Batch]:
    settings = {"batch_size": 4, "start": 0, "stop": 6, "rank": 0, "ranks": 1, "workers": 0} | which
    return list(batches(draws, **settings, pin=False))


def same(ours: list[Batch], theirs: list[Batch]) -> bool:
    return len(ours) == len(theirs) and all(
        one.draws == other.draws and torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
        for one, other in zip(ours, theirs, strict=True)
    )


def randomness(purpose: str, count: int) -> np.random.Generator:
    """Philox under a key of 128 bits, from low to high: the seed (64), the count (32), the purpose's CRC (32)."""
    return np.random.Generator(np.random.Philox(key=SEED + (count << 64) + (zlib.crc32(purpose.encode()) << 96)))


def expected(file: Path, purpose: str, draw: int) -> torch.Tensor:
    random = randomness(purpose, draw)
    image = Image.open(file).resize((20, 20), Image.Resampling.BICUBIC)
    left, top = int(random.integers(5)), int(random.integers(5))
    pixels = np.asarray(image)[top : top + 16, left : left + 16]
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_a_draw_follows_the_formula(draws: Draws) -> None:
    for n in (0, 1, 2, 3, 11, 1_000_003):
        file_a = draws.a[randomness("a", n // 3).permutation(3)[n % 3]]
        file_b = draws.b[randomness("b", n).integers(5)]
        assert draws.files(n) == (file_a, file_b)

        pair = draws[n]
        assert pair.draw == n
        assert pair.a.dtype == torch.uint8
        assert torch.equal(pair.a, expected(file_a, "crop a", n))
        assert torch.equal(pair.b, expected(file_b, "crop b", n))


def test_each_of_a_comes_once_before_any_comes_twice_in_ever_new_orders(draws: Draws) -> None:
    rounds = [tuple(draws.files(n)[0] for n in range(start, start + 3)) for start in range(0, 90, 3)]
    assert all(set(one) == set(draws.a) for one in rounds)
    assert len(set(rounds)) == 6  # all the orders that there are


def test_b_is_uniform_and_independent_of_a(draws: Draws) -> None:
    count = 3000
    seen = Counter(draws.files(n) for n in range(count))
    mean = count / 15
    assert len(seen) == 15
    assert sum((times - mean) ** 2 / mean for times in seen.values()) < 36.1  # chi squared, 14 degrees, p = 0.001


def test_crops_reach_every_corner_and_half_are_mirrored(draws: Draws) -> None:
    crop = Crop(resize="none", load_size=1, crop_size=16, flip=True)  # of 24 x 20
    pixels = [Draws(draws.a, draws.b, crop=crop, seed=SEED)[n].a for n in range(300)]
    lefts = {int(one[0].min()) // 7 for one in pixels}
    tops = {int(one[1].min()) // 11 for one in pixels}
    mirrored = sum(bool(one[0, 0, 0] > one[0, 0, -1]) for one in pixels)
    assert lefts == set(range(9))
    assert tops == set(range(5))
    assert 110 < mirrored < 190


def test_an_epoch_is_one_look_at_the_larger_domain(draws: Draws) -> None:
    assert len(draws) == 5


def test_another_seed_draws_other_pictures(draws: Draws) -> None:
    other = Draws(draws.a, draws.b, crop=draws.crop, seed=SEED + 1)
    assert [draws.files(n) for n in range(20)] != [other.files(n) for n in range(20)]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize("workers", [1, 3])
def test_the_worker_count_changes_no_pixel(draws: Draws, workers: int) -> None:
    assert same(fetched(draws, workers=workers), fetched(draws))


def test_position_s_of_a_batch_belongs_to_rank_s_mod_the_ranks(draws: Draws) -> None:
    whole = fetched(draws)
    shares = [fetched(draws, rank=rank, ranks=2) for rank in range(2)]
    assert [one.draws for one in whole[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [one.draws for one in shares[1][:2]] == [[1, 3], [5, 7]]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(shares[rank][step].a, batch.a[rank::2])
            assert torch.equal(shares[rank][step].b, batch.b[rank::2])


def test_a_late_start_is_the_tail_of_an_early_one(draws: Draws) -> None:
    assert same(fetched(draws, start=4), fetched(draws)[4:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named_in_one_line(draws: Draws, workers: int) -> None:
    for file in draws.a:
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        fetched(draws, workers=workers)
    assert str(draws.a[0].parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.fixture
def reading(draws: Draws) -> tuple[Iterator[Batch], int]:
    """Forty steps, of which one has been read, and the process that reads ahead."""
    before = set(children())
    steps = batches(draws, batch_size=1, start=0, stop=40, rank=0, ranks=1, workers=1, pin=False)
    next(steps)
    (worker,) = set(children()) - before
    return steps, worker


@ON_LINUX
def test_a_worker_outlives_the_signals_that_stop_a_run(reading: tuple[Iterator[Batch], int]) -> None:
    steps, worker = reading
    for name in ("INT", "TERM"):
        subprocess.run(["kill", "-s", name, str(worker)], check=True)  # as anyone but the trainer does
    assert len(list(steps)) == 39


@ON_LINUX
def test_a_worker_left_behind_is_ended_by_its_trainer(reading: tuple[Iterator[Batch], int]) -> None:
    steps, worker = reading
    os.kill(worker, signal.SIGTERM)
    until = time.monotonic() + 30
    while Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < until
        time.sleep(0.01)
    steps.close()


def children() -> list[int]:
    return [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
