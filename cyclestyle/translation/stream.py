"""Pictures through a model as a stream: read ahead, put into batches of one size, translated.

What is held in memory at any time does not grow with the number of pictures.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cyclestyle import images
from cyclestyle.errors import CommandError, DataError

Model = Callable[[Tensor], Tensor]  # uint8 (N, 3, H, W) both ways
Failed = Callable[[Path, DataError], object]

THREADS = min(4, os.cpu_count() or 1)  # Pillow's codecs let go of the interpreter, so that threads are enough
MOST_AHEAD = 2 * THREADS  # pictures that are read, or being read, before they are asked for
MOST_WAITING = 2**25  # pixels of pictures that wait for others of their size: 100 MB
MOST_IN_BATCH = 2**21  # pixels in a batch of several pictures; 64 channels take about 1 GB for each million in float32

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class Photo(NamedTuple):
    """A picture and where it comes from."""

    source: Path
    pixels: Tensor  # uint8 (3, H, W)


class Translated(NamedTuple):
    """A picture before and after, uint8 (3, H, W) each."""

    source: Path
    photo: Tensor
    translation: Tensor


def translated(
    sources: Iterable[Path], model: Model, *, batch_size: int, pool: Executor, failed: Failed
) -> Iterator[Translated]:
    """Every picture with its translation, not in the order of `sources`: sizes that are alike go together.

    Args:
        batch_size: pictures in a batch, at most; large ones share it with fewer.
        pool: threads that read.
        failed: is told of pictures that cannot be read, which are then passed over; it may raise.
    """
    for batch in batches(photos(sources, pool=pool, failed=failed), batch_size):
        made = model(torch.stack([photo.pixels for photo in batch]))
        for photo, translation in zip(batch, made, strict=True):
            yield Translated(photo.source, photo.pixels, translation)


def photos(sources: Iterable[Path], *, pool: Executor, failed: Failed) -> Iterator[Photo]:
    """The pictures, in order, a few of them being read ahead."""
    for source, reading in ahead(pool, _pixels, sources):
        try:
            yield Photo(source, reading.result())
        except DataError as error:
            failed(source, error)


def batches(coming: Iterable[Photo], batch_size: int) -> Iterator[list[Photo]]:
    """Pictures of one size together, as many as may be in a batch, and fewer where too many others would wait."""
    check_batch_size(batch_size)
    waiting: dict[torch.Size, list[Photo]] = {}
    for photo in coming:
        size = photo.pixels.shape[-2:]
        alike = waiting.setdefault(size, [])
        alike.append(photo)
        if len(alike) >= max(1, min(batch_size, MOST_IN_BATCH // size.numel())):
            yield waiting.pop(size)
        elif _is_crowded(waiting, batch_size):
            yield waiting.pop(max(waiting, key=lambda size: size.numel() * len(waiting[size])))
    yield from waiting.values()


def check_batch_size(batch_size: int) -> None:
    """Raise a CommandError unless it is a size."""
    if batch_size < 1:
        raise CommandError(f"batch_size={batch_size}: give a number of pictures, 1 or more")


def ahead(
    pool: Executor, function: Callable[[_Argument], _Result], arguments: Iterable[_Argument]
) -> Iterator[tuple[_Argument, "Future[_Result]"]]:
    """Each argument with its result, in order, while the pool works on the next few."""
    running: deque[tuple[_Argument, Future[_Result]]] = deque()
    for argument in arguments:
        running.append((argument, pool.submit(function, argument)))
        if len(running) > MOST_AHEAD:
            yield running.popleft()
    while running:
        yield running.popleft()


def _is_crowded(waiting: dict[torch.Size, list[Photo]], batch_size: int) -> bool:
    """Whether sets of many sizes hold too many pictures back, or too many pixels."""
    count = sum(map(len, waiting.values()))
    pixels = sum(size.numel() * len(alike) for size, alike in waiting.items())
    return count >= 4 * batch_size or pixels > MOST_WAITING


def _pixels(source: Path) -> Tensor:
    return images.to_pixels(images.read(source))
