"""Training examples as a pure function of the draw number, and the loader that fetches them in time.

Draw n is the n-th pair that a run trains on, counted from 0 over all its steps and processes. Which files, crops and
flips it takes follows from the seed and n alone, so that workers, processes and restarts cannot change it.
"""

import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cyclestyle import images
from cyclestyle.data.transforms import Crop
from cyclestyle.errors import DataError
from cyclestyle.images import PictureError
from cyclestyle.seeds import decisions

MOST_TRIES = 100  # files in a row that cannot be read, until the disk must be at fault


class Pair(NamedTuple):
    """One draw: two pictures, uint8 (3, H, W), that have nothing to do with each other."""

    a: Tensor
    b: Tensor
    draw: int
    replaced: Sequence[str] = ()


class Batch(NamedTuple):
    """Several draws: uint8 (N, 3, H, W) each, and the draws' numbers."""

    a: Tensor
    b: Tensor
    draws: list[int]
    replaced: Sequence[str] = ()  # `path: reason` of files that could not be read, whose places others took


class Draws(Dataset[Pair]):
    """The training examples of two lists of files.

    Each of a's files comes once before any comes twice, in an order shuffled anew every time around; b's come
    uniformly at random (the reference's order). Where a file cannot be read, the draw takes another of its domain,
    chosen at random from the seed and the draw's number; no other draw changes.

    Args:
        a, b: picture files of the two domains.
        crop: what is cut from a picture.
        seed: the run's seed.
        bad_a, bad_b: places in `a` and `b` of files that are not to be read.
        replacing: False makes a file that cannot be read an error.
        background, max_pixels: see `images.read`.
    """

    def __init__(
        self,
        a: list[Path],
        b: list[Path],
        *,
        crop: Crop,
        seed: int,
        bad_a: frozenset[int] = frozenset(),
        bad_b: frozenset[int] = frozenset(),
        replacing: bool = True,
        background: str = "white",
        max_pixels: int = images.MAX_PIXELS,
    ) -> None:
        assert len(bad_a) < len(a)
        assert len(bad_b) < len(b)
        self.a, self.b, self.bad_a, self.bad_b = a, b, bad_a, bad_b
        self.crop, self.seed, self.replacing = crop, seed, replacing
        self.background, self.max_pixels = background, max_pixels

    def __len__(self) -> int:
        """Draws in an epoch: one look at every file of the larger domain, on average."""
        return max(len(self.a), len(self.b))

    def files(self, draw: int) -> tuple[Path, Path]:
        """The files that a draw takes, if they can be read."""
        return next(self._tries_a(draw)), next(self._tries_b(draw))

    def __getitem__(self, draw: int) -> Pair:
        image_a, replaced_a = self._first_readable(self._tries_a(draw))
        image_b, replaced_b = self._first_readable(self._tries_b(draw))
        return Pair(
            self.crop.random(image_a, decisions(self.seed, "crop a", draw)),
            self.crop.random(image_b, decisions(self.seed, "crop b", draw)),
            draw,
            [*replaced_a, *replaced_b],
        )

    def _tries_a(self, draw: int) -> Iterator[Path]:
        around, position = divmod(draw, len(self.a))
        slot = int(_shuffled(len(self.a), self.seed, around)[position])
        return self._tries(self.a, slot, bad=self.bad_a, purpose="instead of a", draw=draw)

    def _tries_b(self, draw: int) -> Iterator[Path]:
        slot = int(decisions(self.seed, "b", draw).integers(len(self.b)))
        return self._tries(self.b, slot, bad=self.bad_b, purpose="instead of b", draw=draw)

    def _tries(self, files: list[Path], slot: int, *, bad: frozenset[int], purpose: str, draw: int) -> Iterator[Path]:
        """The file in a slot, then those that may take its place: the same whether it is bad before or found bad."""
        if slot not in bad:
            yield files[slot]
        random = decisions(self.seed, purpose, draw)
        while True:
            slot = int(random.integers(len(files)))
            if slot not in bad:
                yield files[slot]

    def _first_readable(self, tries: Iterator[Path]) -> tuple[Image.Image, list[str]]:
        """The first picture that can be read, and what is wrong with the files before it."""
        wrong: dict[Path, str] = {}
        for file in itertools.islice(tries, MOST_TRIES):
            try:
                return images.read(file, background=self.background, max_pixels=self.max_pixels), list(wrong.values())
            except PictureError as error:
                if not self.replacing:
                    raise
                wrong[file] = str(error)
        reason = list(wrong.values())[-1]
        raise DataError(f"{MOST_TRIES} tries at random found no picture that can be read; the last: {reason}")


@functools.lru_cache(maxsize=2)  # consecutive draws ask for the same order; across its end for two
def _shuffled(count: int, seed: int, around: int) -> np.ndarray:
    return decisions(seed, "a", around).permutation(count)


def batches(
    draws: Draws, *, batch_size: int, start: int, stop: int, rank: int, ranks: int, workers: int, pin: bool
) -> Iterator[Batch]:
    """This process's share of every step's global batch, from step `start` up to but not including `stop`.

    Step t is made of draws t * batch_size and the batch_size - 1 that follow; position s of them belongs to rank
    s mod ranks.

    Args:
        workers: processes that read ahead; 0 reads in this one.
        pin: page-lock the memory, which makes copies to a GPU faster.

    Raises:
        DataError: pictures that cannot be read, when their batch is asked for, or a worker that was killed.
    """
    loader = DataLoader(
        _Told(draws),
        batch_sampler=_Shares(batch_size, range(start, stop), rank, ranks),
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=functools.partial(_leave_signals_to_the_trainer, os.getpid()),
        prefetch_factor=4 if workers else None,
    )
    with _Fetching(loader) as fetching:
        while (fetched := fetching.next()) is not None:
            if isinstance(fetched, DataError):
                raise fetched
            yield fetched


class _Fetching:
    """A DataLoader at work; that a worker died is heard when the next batch is asked for, and at no other time.

    PyTorch tells it from a signal handler, by an exception wherever the main thread then is, say amid a step.
    """

    def __init__(self, loader: "DataLoader[Pair | DataError]") -> None:
        others = set(multiprocessing.active_children())
        self._coming: Iterator[Batch | DataError] = iter(loader)
        self._workers = set(multiprocessing.active_children()) - others
        self._waiting = False
        self._heard: RuntimeError | None = None
        self._of_torch: object = None

    def __enter__(self) -> "_Fetching":
        if self._workers and hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
            self._of_torch = signal.signal(signal.SIGCHLD, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        del self._coming  # ends the workers, now and not when an exception that holds on to this is forgotten
        if self._of_torch is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, self._of_torch)  # type: ignore[arg-type]

    def next(self) -> Batch | DataError | None:
        """The next batch, or an error that came instead of it; None after the last."""
        error: Exception
        self._waiting = True
        try:
            if self._heard is None:
                return next(self._coming, None)
            error = self._heard
        except (RuntimeError, OSError, EOFError) as caught:  # the last two from amid a batch that a worker handed over
            error = caught
        finally:
            self._waiting = False
        ended = multiprocessing.connection.wait([worker.sentinel for worker in self._workers], timeout=1)
        for worker in self._workers:
            if worker.sentinel in ended:
                worker.join()  # which takes a moment where it is still dying
                if worker.exitcode:
                    raise DataError(_how_it_ended(worker.pid, worker.exitcode))
        raise error

    def _hear(self, number: int, frame: FrameType | None) -> None:
        try:
            if callable(self._of_torch):
                self._of_torch(number, frame)
        except RuntimeError as error:
            if self._waiting:
                raise
            self._heard = error


def _how_it_ended(pid: int | None, code: int) -> str:
    """The message for a worker that did not end by itself; multiprocessing gives signals as negative codes."""
    if code > 0:
        return f"data worker {pid} ended with code {code}: find the reason with data.workers=0"
    name = signal.Signals(-code).name
    causes = {"SIGKILL": "out of memory? ", "SIGBUS": "is /dev/shm full? "}
    remedy = "lower data.workers, or set data.workers=0 to read in the training process"
    return f"data worker {pid} was killed by {name}: {causes.get(name, '')}{remedy}"


class _Shares(Sampler[list[int]]):
    """The draws of one process, step by step."""

    def __init__(self, batch_size: int, steps: range, rank: int, ranks: int) -> None:
        self.batch_size, self.steps, self.rank, self.ranks = batch_size, steps, rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.ranks))


class _Told(Dataset[Pair | DataError]):
    """Draws whose errors come as values: raised in a worker they would reach the user with two tracebacks in them."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def __getitem__(self, draw: int) -> Pair | DataError:
        try:
            return self.draws[draw]
        except DataError as error:
            return error


def _collate(fetched: list[Pair | DataError]) -> Batch | DataError:
    pairs = [pair for pair in fetched if isinstance(pair, Pair)]
    if len(pairs) < len(fetched):
        return next(error for error in fetched if isinstance(error, DataError))
    return Batch(
        torch.stack([pair.a for pair in pairs]),
        torch.stack([pair.b for pair in pairs]),
        [pair.draw for pair in pairs],
        [line for pair in pairs for line in pair.replaced],
    )


def _leave_signals_to_the_trainer(trainer: int, _: int) -> None:
    """Ctrl-C, `timeout` and schedulers reach a whole group of processes; the trainer still needs data for its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere there is no telling who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(trainer,), daemon=True).start()
    torch.set_num_threads(1)


def _leave_when_told(trainer: int) -> None:
    """The trainer, by its process id, ends workers that it could not end otherwise by SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)
