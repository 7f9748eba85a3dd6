"""Training examples as a pure function of the draw number, and the loader that fetches them in time.

Draw n is the n-th pair that a run trains on, counted from 0 over all its steps and processes. Which files, crops and
flips it takes follows from the seed and n alone, so that workers, processes and restarts cannot change it.
"""

import functools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cyclestyle import images
from cyclestyle.data.transforms import Crop
from cyclestyle.errors import DataError
from cyclestyle.seeds import decisions


class Pair(NamedTuple):
    """One draw: two pictures, uint8 (3, H, W), that have nothing to do with each other."""

    a: Tensor
    b: Tensor
    draw: int


class Batch(NamedTuple):
    """Several draws: uint8 (N, 3, H, W) each, and the draws' numbers."""

    a: Tensor
    b: Tensor
    draws: list[int]


class Draws(Dataset[Pair]):
    """The training examples of two lists of files.

    Each of a's files comes once before any comes twice, in an order shuffled anew every time around; b's come
    uniformly at random (the reference's order).

    Args:
        a, b: picture files of the two domains.
        crop: what is cut from a picture.
        seed: the run's seed.
    """

    def __init__(self, a: list[Path], b: list[Path], *, crop: Crop, seed: int) -> None:
        self.a, self.b, self.crop, self.seed = a, b, crop, seed

    def __len__(self) -> int:
        """Draws in an epoch: one look at every file of the larger domain, on average."""
        return max(len(self.a), len(self.b))

    def files(self, draw: int) -> tuple[Path, Path]:
        """The files that a draw takes."""
        around, position = divmod(draw, len(self.a))
        index_a = _shuffled(len(self.a), self.seed, around)[position]
        index_b = decisions(self.seed, "b", draw).integers(len(self.b))
        return self.a[index_a], self.b[index_b]

    def __getitem__(self, draw: int) -> Pair:
        file_a, file_b = self.files(draw)
        return Pair(
            self.crop.random(images.read(file_a), decisions(self.seed, "crop a", draw)),
            self.crop.random(images.read(file_b), decisions(self.seed, "crop b", draw)),
            draw,
        )


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
        DataError: a picture that cannot be read, when its batch is asked for.
    """
    loader = DataLoader(
        _Told(draws),
        batch_sampler=_Shares(batch_size, range(start, stop), rank, ranks),
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_trainer,
        prefetch_factor=4 if workers else None,
    )
    for fetched in loader:
        if isinstance(fetched, DataError):
            raise fetched
        yield fetched


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
    )


def _leave_signals_to_the_trainer(_: int) -> None:
    """Ctrl-C, `timeout` and schedulers reach a whole group of processes; the trainer still needs data for its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere there is no telling who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_the_trainer_says_so, daemon=True).start()
    torch.set_num_threads(1)


def _leave_when_the_trainer_says_so() -> None:
    """The trainer ends workers that it could not end otherwise by SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
