"""Pictures through a model as a stream: read ahead, put into batches of one size, translated.

What is held in memory at any time does not grow with the number of pictures.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cyclestyle.errors import CommandError, DataError
from cyclestyle.images import decoding, tensors
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.translation.pipeline import MOST_IN_BATCH

Model = Callable[[Tensor], Tensor]  # uint8 (N, 3, H, W) both ways
FailedPhoto = Callable[[Path, DataError], object]

MOST_WAITING = 2**25  # pixels of pictures that wait for others of their size: 100 MB


class HasPixels(Protocol):
    """Whatever has a picture's pixels, (3, H, W)."""

    @property
    def pixels(self) -> Tensor: ...


_Item = TypeVar("_Item", bound=HasPixels)


class QueuedPhoto(NamedTuple):
    """A picture and where it comes from."""

    source: Path
    pixels: Tensor  # uint8 (3, H, W)


class TranslatedPhoto(NamedTuple):
    """A picture before and after, uint8 (3, H, W) each."""

    source: Path
    photo: Tensor
    translation: Tensor


def translated(
    sources: Iterable[Path], model: Model, *, batch_size: int, workers: Workers, failed: FailedPhoto
) -> Iterator[TranslatedPhoto]:
    """Every picture with its translation, not in the order of `sources`: sizes that are alike go together.

    Args:
        batch_size: pictures in a batch, at most; large ones share it with fewer.
        workers: who reads.
        failed: is told of pictures that cannot be read, which are then passed over; it may raise.
    """
    for batch in batches(photos(sources, workers=workers, failed=failed), batch_size):
        made = model(torch.stack([photo.pixels for photo in batch]))
        for photo, translation in zip(batch, made, strict=True):
            yield TranslatedPhoto(photo.source, photo.pixels, translation)


def photos(sources: Iterable[Path], *, workers: Workers, failed: FailedPhoto) -> Iterator[QueuedPhoto]:
    """The pictures, in order, a few of them being read ahead."""
    for source, reading in workers.ahead(_pixels, sources):
        try:
            yield QueuedPhoto(source, workers.finish(reading))
        except DataError as error:
            failed(source, error)


def batches(
    coming: Iterable[_Item],
    batch_size: int,
    *,
    most: Callable[[int, int], int] = lambda height, width: MOST_IN_BATCH // (height * width),
    first: int | None = None,
) -> Iterator[list[_Item]]:
    """Pictures of one size and type together, as many as may be in a batch, and fewer where too many others would wait.

    Args:
        batch_size: pictures in a batch.
        most: of a height and a width, if that is less.
        first: pictures in the first batch, where somebody waits to see one.
    """
    check_batch_size(batch_size)
    now = batch_size if first is None else first
    waiting: dict[tuple[torch.Size, torch.dtype], list[_Item]] = {}
    for picture in coming:
        kind = picture.pixels.shape[-2:], picture.pixels.dtype
        alike = waiting.setdefault(kind, [])
        alike.append(picture)
        if len(alike) >= max(1, min(now, most(*kind[0]))):
            now = batch_size
            yield waiting.pop(kind)
        elif _is_crowded(waiting.values(), batch_size):
            yield waiting.pop(max(waiting, key=lambda kind: _count(waiting[kind])))
    yield from waiting.values()


def check_batch_size(batch_size: int) -> None:
    """Raise a CommandError unless it is a size."""
    if batch_size < 1:
        raise CommandError(f"batch_size={batch_size}: give a number of pictures, 1 or more")


def _is_crowded(sets: Iterable[list[_Item]], batch_size: int) -> bool:
    """Whether sets of many sizes hold too many pictures back, or too many pixels."""
    sets = list(sets)
    return sum(map(len, sets)) >= 4 * batch_size or sum(map(_count, sets)) > MOST_WAITING


def _count(alike: list[_Item]) -> int:
    """Pixels of pictures of one size."""
    return len(alike) * alike[0].pixels.shape[-2:].numel()


def _pixels(source: Path) -> Tensor:
    return tensors.pil_to_uint8(decoding.read(source))
