"""Training pairs as a function of seed and sample index, for any number of workers and ranks."""

import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.data.crop import Crop
from cyclestyle.data.dataset import Batch, Pair, UnpairedDataset
from cyclestyle.data.loader import batches
from cyclestyle.errors import DataError
from cyclestyle.images.reading import ImageReader
from cyclestyle.signals import STOP_SIGNALS
from tests.pictures import folder_of, picture

SEED = 7
ON_LINUX = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find worker processes")


@pytest.fixture
def draws(tmp_path: Path) -> UnpairedDataset:
    crop = Crop(resize="stretch", load_size=20, crop_size=16, flip=True)
    return UnpairedDataset(folder_of(tmp_path / "a", 3), folder_of(tmp_path / "b", 5, first=100), crop=crop, seed=SEED)


def fetched(draws: UnpairedDataset, **changes: int) -> list[Batch]:
    settings = {"batch_size": 4, "start": 0, "stop": 6, "rank": 0, "ranks": 1, "workers": 0} | changes
    return list(batches(draws, **settings, pin=False))


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        x.draws == y.draws and torch.equal(x.a, y.a) and torch.equal(x.b, y.b)
        for x, y in zip(first, second, strict=True)
    )


def randomness(purpose: str, count: int) -> np.random.Generator:
    """Return Philox with a 128-bit key, from low to high bits: seed (64), count (32), CRC of the purpose (32)."""
    return np.random.Generator(np.random.Philox(key=SEED + (count << 64) + (zlib.crc32(purpose.encode()) << 96)))


def expected(file: Path, purpose: str, draw: int) -> torch.Tensor:
    random = randomness(purpose, draw)
    image = Image.open(file).resize((20, 20), Image.Resampling.BICUBIC)
    left, top = int(random.integers(5)), int(random.integers(5))
    pixels = np.asarray(image)[top : top + 16, left : left + 16]
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def test_files_and_crops_of_a_pair_follow_documented_formula(draws: UnpairedDataset) -> None:
    for n in (0, 1, 2, 3, 11, 1_000_003):
        file_a = draws.a[randomness("a", n // 3).permutation(3)[n % 3]]
        file_b = draws.b[randomness("b", n).integers(5)]
        assert draws.files(n) == (file_a, file_b)

        pair = draws[n]
        assert pair.draw == n
        assert pair.a.dtype == torch.uint8
        assert torch.equal(pair.a, expected(file_a, "crop a", n))
        assert torch.equal(pair.b, expected(file_b, "crop b", n))


def test_domain_a_is_reshuffled_every_round(draws: UnpairedDataset) -> None:
    rounds = [tuple(draws.files(n)[0] for n in range(start, start + 3)) for start in range(0, 90, 3)]
    assert all(set(files) == set(draws.a) for files in rounds)
    assert len(set(rounds)) == 6  # all permutations of 3 files


def test_files_of_b_are_drawn_uniformly_and_independently_of_a(draws: UnpairedDataset) -> None:
    count = 3000
    seen = Counter(draws.files(n) for n in range(count))
    mean = count / 15
    assert len(seen) == 15
    assert sum((times - mean) ** 2 / mean for times in seen.values()) < 36.1  # chi squared, 14 degrees, p = 0.001


def test_crops_cover_image_and_half_are_mirrored(draws: UnpairedDataset) -> None:
    crop = Crop(resize="none", load_size=1, crop_size=16, flip=True)  # images have 24 x 20 px
    pixels = [UnpairedDataset(draws.a, draws.b, crop=crop, seed=SEED)[n].a for n in range(300)]
    lefts = {int(image[0].min()) // 7 for image in pixels}
    tops = {int(image[1].min()) // 11 for image in pixels}
    mirrored = sum(bool(image[0, 0, 0] > image[0, 0, -1]) for image in pixels)
    assert lefts == set(range(9))
    assert tops == set(range(5))
    assert 110 < mirrored < 190


def test_epoch_length_is_file_count_of_larger_domain(draws: UnpairedDataset) -> None:
    assert len(draws) == 5


def test_other_seed_gives_other_pairs(draws: UnpairedDataset) -> None:
    other = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED + 1)
    assert [draws.files(n) for n in range(20)] != [other.files(n) for n in range(20)]


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_independent_of_worker_count(draws: UnpairedDataset, workers: int) -> None:
    assert same(fetched(draws, workers=workers), fetched(draws))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [(1, 3), (3, 1), (1, 1)])
def test_each_domain_can_be_grey_or_colour(draws: UnpairedDataset, channels: tuple[int, int], workers: int) -> None:
    mixed = UnpairedDataset(
        draws.a, draws.b, crop=draws.crop, seed=SEED, channels_a=channels[0], channels_b=channels[1]
    )
    pairs = list(zip(fetched(draws), fetched(mixed, workers=workers), strict=True))
    for colour, batch in pairs:
        assert batch.draws == colour.draws
        for images, originals, count in zip((batch.a, batch.b), (colour.a, colour.b), channels, strict=True):
            assert images.shape == (4, count, 16, 16)
            weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
            wanted = originals.float() if count == 3 else (originals * weights).sum(1, keepdim=True)
            assert (images.float() - wanted).abs().max() <= (0 if count == 3 else 2)  # rounded before resizing


def test_pairs_of_global_batch_are_interleaved_over_ranks(draws: UnpairedDataset) -> None:
    whole = fetched(draws)
    shares = [fetched(draws, rank=rank, ranks=2) for rank in range(2)]
    assert [batch.draws for batch in whole[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [batch.draws for batch in shares[1][:2]] == [[1, 3], [5, 7]]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert torch.equal(shares[rank][step].a, batch.a[rank::2])
            assert torch.equal(shares[rank][step].b, batch.b[rank::2])


def test_batches_are_independent_of_start_step(draws: UnpairedDataset) -> None:
    assert same(fetched(draws, start=4), fetched(draws)[4:])


@pytest.mark.parametrize("workers", [0, 1])
def test_domain_without_readable_image_gives_one_line_error(draws: UnpairedDataset, workers: int) -> None:
    for file in draws.a:
        file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(DataError) as caught:
        fetched(draws, workers=workers)
    assert str(draws.a[0].parent) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def replacement(files: list[Path], bad: set[Path], purpose: str, draw: int) -> Path:
    """Return the first file not in `bad` among the random replacements for sample index `draw`."""
    random = randomness(purpose, draw)
    return next(file for file in iter(lambda: files[random.integers(len(files))], None) if file not in bad)


@pytest.mark.parametrize("workers", [0, 1])
def test_replacement_of_damaged_file_matches_formula(draws: UnpairedDataset, workers: int) -> None:
    before = fetched(draws)
    taken = [draws.files(n) for n in range(24)]
    bad = {draws.a[1], draws.b[0], draws.b[3]}
    for file in bad:
        file.write_bytes(b"damaged")
    lines = {f"{file}: not a picture that can be read" for file in bad}
    reported = set()
    for step, batch in enumerate(fetched(draws, workers=workers)):
        reported |= set(batch.replaced)
        for place, n in enumerate(batch.draws):
            for side, files in enumerate((draws.a, draws.b)):
                file, pixels = taken[n][side], batch[side][place]
                if file in bad:
                    assert f"{file}: not a picture that can be read" in batch.replaced
                    other = replacement(files, bad, f"instead of {'ab'[side]}", n)
                    assert torch.equal(pixels, expected(other, f"crop {'ab'[side]}", n))
                else:
                    assert torch.equal(pixels, before[step][side][place])
    assert reported == lines


def test_known_and_detected_bad_files_have_same_replacements(draws: UnpairedDataset) -> None:
    draws.a[1].write_bytes(b"damaged")
    draws.b[0].write_bytes(b"damaged")
    skipping = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED, bad_a=frozenset({1}), bad_b=frozenset({0}))
    detected, known = fetched(draws), fetched(skipping)
    assert same(detected, known)
    assert any(batch.replaced for batch in detected)
    assert not any(batch.replaced for batch in known)
    assert {draws.a[1], draws.b[0]}.isdisjoint(file for n in range(50) for file in skipping.files(n))


def test_known_bad_file_is_not_opened(draws: UnpairedDataset) -> None:
    skipping = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED, bad_a=frozenset({1}))
    draws.a[1].unlink()
    assert not any(batch.replaced for batch in fetched(skipping))


def test_replacement_files_are_drawn_uniformly(draws: UnpairedDataset) -> None:
    skipping = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED, bad_b=frozenset({2}))
    seen = Counter(skipping.files(n)[1] for n in range(10_000) if draws.files(n)[1] == draws.b[2])
    mean = seen.total() / 4
    assert set(seen) == {draws.b[slot] for slot in (0, 1, 3, 4)}
    assert sum((times - mean) ** 2 / mean for times in seen.values()) < 16.3  # chi squared, 3 degrees, p = 0.001


def test_bad_file_raises_data_error_if_replacement_is_disabled(draws: UnpairedDataset) -> None:
    strict = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED, replacing=False)
    draws.a[1].write_bytes(b"damaged")
    with pytest.raises(DataError, match=f"^{draws.a[1]}: not a picture that can be read$"):
        fetched(strict)


def test_image_above_max_pixels_is_replaced(draws: UnpairedDataset) -> None:
    limited = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED, reader=ImageReader(max_pixels=500))
    picture(1, 30, 30).save(draws.a[1])
    reported = {line for batch in fetched(limited) for line in batch.replaced}
    assert reported == {f"{draws.a[1]}: 30 x 30 pixels are more than 500"}


class PickyCrop(Crop):
    """A crop that returns `result`, or raises it if it is an error, for images of width 30 px."""

    def __init__(self, result: object) -> None:
        super().__init__(resize="stretch", load_size=20, crop_size=16, flip=True)
        self.result = result

    def random(self, image: Image.Image, random: np.random.Generator) -> torch.Tensor:
        if image.width == 30 and isinstance(self.result, Exception):
            raise self.result
        return self.result if image.width == 30 else super().random(image, random)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (ZeroDivisionError("a part\nof the package"), "ZeroDivisionError: a part of the package"),
        (MemoryError(), "not enough memory to decode it"),
        (torch.zeros(3, 16, 16), "decoded to torch.float32 (3, 16, 16), not torch.uint8 (3, 16, 16)"),
        (torch.zeros(3, 16, 8, dtype=torch.uint8), "decoded to torch.uint8 (3, 16, 8), not torch.uint8 (3, 16, 16)"),
        (None, "AttributeError: 'NoneType' object has no attribute 'dtype'"),
    ],
)
def test_any_read_error_leads_to_replacement_of_only_that_image(
    draws: UnpairedDataset, workers: int, result: object, reason: str
) -> None:
    skipping = UnpairedDataset(draws.a, draws.b, crop=draws.crop, seed=SEED, bad_a=frozenset({1}))
    before = fetched(skipping)
    picture(1, 30, 20).save(draws.a[1])
    odd = UnpairedDataset(draws.a, draws.b, crop=PickyCrop(result), seed=SEED)
    after = fetched(odd, workers=workers)
    assert same(after, before)
    assert {line for batch in after for line in batch.replaced} == {f"{draws.a[1]}: {reason}"}

    strict = UnpairedDataset(draws.a, draws.b, crop=PickyCrop(result), seed=SEED, replacing=False)
    with pytest.raises(DataError) as caught:
        fetched(strict, workers=workers)
    assert str(caught.value) == f"{draws.a[1]}: {reason}"


class DatasetCalling(UnpairedDataset):
    """A dataset that returns the result of `act()` at sample index 7, and ordinary pairs elsewhere."""

    def __init__(self, draws: UnpairedDataset, act: Callable[[], Pair]) -> None:
        super().__init__(draws.a, draws.b, crop=draws.crop, seed=draws.seed)
        self.act = act

    def __getitem__(self, draw: int) -> Pair:
        return self.act() if draw == 7 else super().__getitem__(draw)


def raises_error() -> Pair:
    raise ZeroDivisionError("a bug\nof two lines")


def cannot_be_sent() -> Pair:
    pixels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    return Pair(pixels, pixels, 7, [lambda: None])  # type: ignore[list-item]


def is_of_another_size() -> Pair:
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    return Pair(pixels, pixels, 7)


def has_no_memory() -> Pair:
    raise MemoryError


def exits() -> Pair:
    os._exit(0)


def is_killed() -> Pair:
    os.kill(os.getpid(), signal.SIGXCPU)  # a fatal signal for which pytest installs no handler
    raise AssertionError


@ON_LINUX
@pytest.mark.parametrize(
    ("act", "words"),
    [
        (raises_error, "(ZeroDivisionError: a bug of two lines): data.workers=0"),
        (cannot_be_sent, "pickle"),
        (is_of_another_size, "(RuntimeError: stack expects each tensor to be equal size"),
        (has_no_memory, "failed at step 2 (MemoryError): data.workers=0 shows where"),
        (exits, "ended with code 0: find the reason with data.workers=0"),
        (is_killed, "was killed by SIGXCPU: lower data.workers"),
    ],
)
def test_failed_worker_gives_one_line_data_error(draws: UnpairedDataset, act: Callable[[], Pair], words: str) -> None:
    others, began = set(children()), time.monotonic()
    with pytest.raises(DataError) as caught:
        fetched(DatasetCalling(draws, act), workers=1)
    assert time.monotonic() - began < 10
    assert str(caught.value).startswith("data worker ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(children()) <= others


@ON_LINUX
def test_wait_for_batch_ends_on_stop_request(draws: UnpairedDataset) -> None:
    others, stop_requested = set(children()), threading.Event()
    hanging = DatasetCalling(draws, threading.Event().wait)
    steps = batches(
        hanging, batch_size=1, start=0, stop=99, rank=0, ranks=1, workers=2, pin=False, stopping=stop_requested.is_set
    )
    assert [next(steps).draws for _ in range(7)] == [[n] for n in range(7)]
    timer = threading.Timer(0.3, stop_requested.set)
    timer.start()
    assert next(steps, None) is None
    timer.join()
    assert set(children()) <= others


@ON_LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_loader_does_not_hang_if_worker_is_killed_or_paused(draws: UnpairedDataset, number: signal.Signals) -> None:
    others, stop_requested = set(children()), threading.Event()
    large = Crop(resize="stretch", load_size=512, crop_size=512, flip=False)  # 1.5 MB per step: more than a pipe holds
    steps = batches(
        UnpairedDataset(draws.a, draws.b, crop=large, seed=SEED),
        batch_size=1, start=0, stop=99, rank=0, ranks=1, workers=1, pin=False, stopping=stop_requested.is_set,
    )  # fmt: skip
    next(steps)
    (worker,) = set(children()) - others
    wait_until_blocked_on_pipe(worker)
    os.kill(worker, number)
    if number == signal.SIGKILL:
        with pytest.raises(DataError, match="killed by SIGKILL"):
            list(steps)
    else:
        timer = threading.Timer(0.3, stop_requested.set)
        timer.start()
        assert len(list(steps)) < 98
        timer.join()
    assert set(children()) <= others


def wait_until_blocked_on_pipe(worker: int) -> None:
    """Wait until the worker process is asleep in 20 successive polls; while it decodes, it never sleeps."""
    deadline, asleep = time.monotonic() + 30, 0
    while asleep < 20:
        assert time.monotonic() < deadline
        state = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" else 0
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_spawned_workers_and_caller_give_same_batches(draws: UnpairedDataset, method: str, tmp_path: Path) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not support the start method {method}")
    code = f"""
import multiprocessing, pickle, sys, torch
from cyclestyle.data import batches
multiprocessing.set_start_method({method!r})
draws = pickle.load(open("draws", "rb"))
read = batches(draws, batch_size=4, start=0, stop=6, rank=0, ranks=1, workers=2, pin=False)
torch.save([(batch.a, batch.b, batch.draws) for batch in read], "read")
"""
    (tmp_path / "draws").write_bytes(pickle.dumps(draws))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert same([Batch(*fields) for fields in torch.load(tmp_path / "read")], fetched(draws))
    assert done.stderr == ""


@ON_LINUX
def test_failed_worker_start_is_a_data_error(draws: UnpairedDataset) -> None:
    others, limits = set(children()), resource.getrlimit(resource.RLIMIT_NOFILE)
    num_fds = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (num_fds + 5, limits[1]))  # enough for the first worker only
    try:
        with pytest.raises(DataError) as caught:
            fetched(draws, workers=3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "cannot start data worker" in str(caught.value)
    assert "Too many open files: lower data.workers, or set data.workers=0" in str(caught.value)
    assert set(children()) <= others


@ON_LINUX
def test_workers_exit_while_exception_is_still_referenced(draws: UnpairedDataset) -> None:
    others = set(children())
    for file in draws.a:
        file.write_bytes(b"damaged")
    with pytest.raises(DataError) as caught:
        fetched(draws, workers=1)
    assert set(children()) <= others
    assert caught.value.__traceback__ is not None


@pytest.fixture
def reading(draws: UnpairedDataset) -> tuple[Iterator[Batch], int]:
    """Return an iterator over the last 39 of 40 steps, and the process id of the worker that reads them."""
    before = set(children())
    steps = batches(draws, batch_size=1, start=0, stop=40, rank=0, ranks=1, workers=1, pin=False)
    next(steps)
    (worker,) = set(children()) - before
    return steps, worker


@ON_LINUX
def test_worker_ignores_stop_signals(reading: tuple[Iterator[Batch], int]) -> None:
    steps, worker = reading
    for name in ("INT", "TERM"):
        subprocess.run(["kill", "-s", name, str(worker)], check=True)  # the sender is not the trainer
    assert len(list(steps)) == 39


@ON_LINUX
def test_worker_exits_on_sigterm_from_trainer(reading: tuple[Iterator[Batch], int]) -> None:
    steps, worker = reading
    end(worker, signal.SIGTERM)
    steps.close()


def children() -> list[int]:
    pids = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread has ended meanwhile
            pids += [int(pid) for pid in (task / "children").read_text().split()]
    return pids


def end(worker: int, number: signal.Signals) -> None:
    """Send signal `number` from this process, the trainer, to its worker, and wait until the worker has exited."""
    os.kill(worker, number)
    os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # WNOWAIT leaves the exit status for the loader


@ON_LINUX
def test_killed_worker_is_a_data_error_at_next_batch(
    reading: tuple[Iterator[Batch], int],
) -> None:
    steps, worker = reading
    end(worker, signal.SIGKILL)  # like the out-of-memory killer
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        next(steps)
    text = str(caught.value)
    assert time.monotonic() - began < 10
    assert text.startswith(f"data worker {worker} was killed by SIGKILL: out of memory?")
    assert "data.workers=0" in text
    assert "\n" not in text
    assert caught.value.__context__ is None  # a context would keep the loader alive


@ON_LINUX
def test_worker_killed_during_wait_is_a_data_error(draws: UnpairedDataset) -> None:
    before = set(children())
    steps = batches(draws, batch_size=1, start=0, stop=10**6, rank=0, ranks=1, workers=1, pin=False)
    next(steps)
    (worker,) = set(children()) - before
    timer = threading.Timer(0.2, os.kill, (worker, signal.SIGKILL))
    timer.start()
    with pytest.raises(DataError, match="killed by SIGKILL"):
        for _ in steps:
            pass
    timer.join()


@ON_LINUX
def test_closed_iterator_releases_workers_threads_and_pipes(draws: UnpairedDataset) -> None:
    before, others = [signal.getsignal(number) for number in signal.valid_signals()], set(children())
    threads = threading.active_count()
    num_fds = len(list(Path("/proc/self/fd").iterdir()))
    steps = batches(draws, batch_size=1, start=0, stop=40, rank=0, ranks=1, workers=1, pin=False)
    next(steps)
    assert [signal.getsignal(number) for number in signal.valid_signals()] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(STOP_SIGNALS)
    assert threading.active_count() > threads
    steps.close()
    assert set(children()) <= others
    assert threading.active_count() == threads
    assert len(list(Path("/proc/self/fd").iterdir())) == num_fds
