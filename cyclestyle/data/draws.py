"""Training examples as a pure function of the draw number, and the loader that fetches them in time.

Draw n is the n-th pair that a run trains on, counted from 0 over all its steps and processes. Which files, crops and
flips it takes follows from the seed and n alone, so that workers, processes and restarts cannot change it.
"""

import functools
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cyclestyle import images
from cyclestyle.data.transforms import Crop
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
    """
    return iter(
        DataLoader(
            draws,
            batch_sampler=_Shares(batch_size, range(start, stop), rank, ranks),
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=_leave_interrupts_to_the_trainer,
            prefetch_factor=4 if workers else None,
        )
    )


class _Shares(Sampler[list[int]]):
    """The draws of one process, step by step."""

    def __init__(self, batch_size: int, steps: range, rank: int, ranks: int) -> None:
        self.batch_size, self.steps, self.rank, self.ranks = batch_size, steps, rank, ranks

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.ranks))


def _collate(pairs: list[Pair]) -> Batch:
    return Batch(
        torch.stack([pair.a for pair in pairs]),
        torch.stack([pair.b for pair in pairs]),
        [pair.draw for pair in pairs],
    )


def _leave_interrupts_to_the_trainer(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the trainer still needs the data of the step it finishes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
