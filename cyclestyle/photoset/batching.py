"""Translation of a stream of images: the images are read ahead, batched by image size, and translated.

The memory in use does not grow with the number of images.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cyclestyle.errors import CommandError, DataError
from cyclestyle.images import reading, tensors
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.translation.pipeline import MAX_PIXELS_IN_BATCH

Model = Callable[[Tensor], Tensor]  # input and output are uint8 (N, 3, H, W)
FailedPhoto = Callable[[Path, DataError], object]

MAX_WAITING_PIXELS = (
    2**25
)  # maximum number of pixels in images that wait for others of the same size; 100 MB at 8 bits per channel


class HasPixels(Protocol):
    """Any object whose attribute `pixels` is an image tensor (3, H, W)."""

    @property
    def pixels(self) -> Tensor: ...


_Item = TypeVar("_Item", bound=HasPixels)


class QueuedPhoto(NamedTuple):
    """An image that was read, and the path of its file."""

    source: Path
    pixels: Tensor  # uint8 (3, H, W)


class TranslatedPhoto(NamedTuple):
    """An image before and after translation, as two uint8 tensors (3, H, W), and the path of its file."""

    source: Path
    photo: Tensor
    translation: Tensor


def translated(
    sources: Iterable[Path], model: Model, *, batch_size: int, workers: Workers, failed: FailedPhoto
) -> Iterator[TranslatedPhoto]:
    """Yield every readable image with its translation; images are grouped by size, so the order of `sources` is lost.

    Args:
        sources: paths of the image files.
        model: translates a batch of images of equal size.
        batch_size: maximum number of images in a batch; batches of large images have fewer images.
        workers: pool that reads the files.
        failed: called with the path of an unreadable file and the error; if the call returns, the file is skipped.
    """
    for batch in batches(photos(sources, workers=workers, failed=failed), batch_size):
        translations = model(torch.stack([photo.pixels for photo in batch]))
        for photo, translation in zip(batch, translations, strict=True):
            yield TranslatedPhoto(photo.source, photo.pixels, translation)


def photos(sources: Iterable[Path], *, workers: Workers, failed: FailedPhoto) -> Iterator[QueuedPhoto]:
    """Yield the images in the order of `sources`; the next few images are read ahead.

    `failed` is called for each unreadable file, see `translated`.
    """
    for source, task in workers.ahead(_pixels, sources):
        try:
            yield QueuedPhoto(source, workers.finish(task))
        except DataError as error:
            failed(source, error)


def batches(
    items: Iterable[_Item],
    batch_size: int,
    *,
    max_batch: Callable[[int, int], int] = lambda height, width: MAX_PIXELS_IN_BATCH // (height * width),
    first_batch_size: int | None = None,
) -> Iterator[list[_Item]]:
    """Yield batches of images that have equal size and dtype.

    Images wait until enough images of the same size and dtype have been read. If too many images are waiting, the
    group with the most pixels is yielded early, as a smaller batch. At the end, the incomplete groups are yielded.

    Args:
        items: images, whose sizes may differ.
        batch_size: maximum number of images in a batch.
        max_batch: called with a height and width; returns a second limit for the batch size of images of this size.
        first_batch_size: maximum number of images in the first batch; a low maximum gives an early result. None means
            `batch_size`.
    """
    check_batch_size(batch_size)
    size = batch_size if first_batch_size is None else first_batch_size
    waiting: dict[tuple[torch.Size, torch.dtype], list[_Item]] = {}
    for item in items:
        kind = item.pixels.shape[-2:], item.pixels.dtype
        group = waiting.setdefault(kind, [])
        group.append(item)
        if len(group) >= max(1, min(size, max_batch(*kind[0]))):
            size = batch_size
            yield waiting.pop(kind)
        elif _is_crowded(waiting.values(), batch_size):
            yield waiting.pop(max(waiting, key=lambda kind: _pixel_count(waiting[kind])))
    yield from waiting.values()


def check_batch_size(batch_size: int) -> None:
    """Raise a CommandError for a batch size below 1."""
    if batch_size < 1:
        raise CommandError(f"batch_size={batch_size}: give a number of pictures, 1 or more")


def _is_crowded(groups: Iterable[list[_Item]], batch_size: int) -> bool:
    """Return whether the groups of waiting images together hold too many images, so that one must be yielded early.

    The limits are `4 * batch_size` images and `MAX_WAITING_PIXELS` pixels.
    """
    groups = list(groups)
    return sum(map(len, groups)) >= 4 * batch_size or sum(map(_pixel_count, groups)) > MAX_WAITING_PIXELS


def _pixel_count(group: list[_Item]) -> int:
    """Return the total number of pixels in a group of images of equal size."""
    return len(group) * group[0].pixels.shape[-2:].numel()


def _pixels(source: Path) -> Tensor:
    return tensors.pil_to_uint8(reading.read_8_bit(source))
