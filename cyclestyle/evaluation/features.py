"""Features of sets of real images: computed by all ranks together, and cached by the content of the files.

A ruler is a pretrained network that turns images into features, see `evaluation.rulers`.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from cyclestyle.distributed.world import World
from cyclestyle.errors import DataError
from cyclestyle.evaluation import statistics_cache
from cyclestyle.evaluation.image_files import content_hash, read_square
from cyclestyle.evaluation.rulers import Part, Ruler
from cyclestyle.photoset.batching import check_batch_size
from cyclestyle.photoset.worker_pool import Workers

SetPart = Literal["pooled", "grams"]
OnProgress = Callable[[int, int], object]  # called with the number of measured images and the total
MAX_GRAMS = 500  # images of a set with Gram matrices, which take up to 0.7 MB per image

_PARTS: tuple[SetPart, ...] = ("pooled", "grams")
_Item = TypeVar("_Item")


class SetFeatures(NamedTuple):
    """Features of a set of n images by one ruler (pretrained network), float32 on the CPU, in the order of the files.

    Attributes:
        pooled: one vector of length d per image (n, d); (n, 0) if not requested.
        grams: one tensor (m, g) per style layer, with one row per Gram matrix, see `metrics.style.gram`. Only m of the
            n images have Gram matrices: those with the indices `gram_indices(n)`. The tuple is empty if not requested.
    """

    pooled: Tensor
    grams: tuple[Tensor, ...] = ()


def gram_indices(count: int, *, limit: int = MAX_GRAMS) -> list[int]:
    """Return the indices of the images whose Gram matrices are computed, in a set of `count` images.

    There are at most `limit` indices, evenly spaced, in ascending order from 0.
    """
    chosen = min(count, limit)
    return [number * count // chosen for number in range(chosen)]


def set_features(
    files: Sequence[Path],
    ruler: Ruler,
    *,
    parts: Collection[Part],
    photo_size: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    world: World | None = None,
    cache: bool = True,
    on_progress: OnProgress = lambda done, total: None,
) -> SetFeatures:
    """Return the features of a set of real images, from the cache or by measuring the images.

    The memory in use depends on the number of images, but not on their size. All ranks must call this function
    together: each measures a part of the batches, and all get the features of all images. The composition of the
    batches does not depend on the number of ranks, so the result equals that of one process.

    Args:
        files: image files.
        ruler: pretrained network that measures the images.
        parts: kinds of features to compute: `pooled`, `grams` or both. `tokens` is ignored, since tokens serve to
            compare single images, not sets.
        photo_size: side in px of a square that images are resized to before the ruler resizes them, as in training by
            `data.load_size`; None leaves the images as they are.
        batch_size: maximum number of images that are measured at once.
        workers: number of processes that read images on each rank; 0 reads them in threads.
        world: the ranks; None for one process.
        cache: whether the features are read from the cache, and written to it. They are found by the content of the
            files, so renamed or copied files have the same features.
        on_progress: function that is called after each batch, and at the end, with the number of measured images and
            the total.

    Raises:
        DataError: there are no files, or an image is missing or damaged.
        CommandError: the batch size is below 1, or the ruler does not have one of the parts.
        FailedElsewhereError: another rank failed.
    """
    if not files:
        raise DataError("no pictures to measure: the list of files is empty")
    check_batch_size(batch_size)
    world = world or World()
    wanted = [part for part in _PARTS if part in parts]
    found: dict[SetPart, list[Tensor]] = {}
    with Workers(workers) as pool:
        measurement = _Measurement(files, ruler, photo_size, batch_size, pool, world)
        names = measurement.cache_names(wanted) if cache else {}
        for part, name in names.items():
            tensors = statistics_cache.read(name, is_silent=world.local_rank != 0)
            if not world.any(tensors is None, no_timeout=True) and tensors is not None:
                found[part] = tensors
        if missing := [part for part in wanted if part not in found]:
            found.update(measurement.measured(missing, on_progress))
    if cache and world.local_rank == 0:  # the hosts of a run may have separate caches
        for part in missing:
            statistics_cache.write(names[part], found[part])
    on_progress(len(files), len(files))
    pooled = found["pooled"][0] if "pooled" in found else torch.empty(len(files), 0)
    return SetFeatures(pooled, tuple(found.get("grams", ())))


class _Measurement(NamedTuple):
    """Measurement of a set of images by all ranks; the arguments are those of `set_features`."""

    files: Sequence[Path]
    ruler: Ruler
    photo_size: int | None
    batch_size: int
    pool: Workers
    world: World

    def cache_names(self, parts: Sequence[SetPart]) -> dict[SetPart, str]:
        """Return part -> name of the file in the cache, whether it exists or not.

        The name depends on the ruler and the content of the image files. Each rank reads and hashes a share of them.
        """
        with self.world.all_or_none(no_timeout=True):
            own = self.files[self.world.rank :: self.world.size]
            own_hashes = [self.pool.finish(task) for _, task in self.pool.ahead(content_hash, own)]
        hashes = _interleaved(self.world.gather(own_hashes))
        names: dict[SetPart, str] = {}
        for part in parts:
            content = [hashes[number] for number in gram_indices(len(hashes))] if part == "grams" else hashes
            ruler = [self.ruler.protocol, self.ruler.fingerprint, self.ruler.layers.of(part)]
            names[part] = statistics_cache.file_name(f"{self.ruler.name}-{part}", *ruler, self.photo_size, content)
        return names

    def measured(self, parts: Sequence[SetPart], on_progress: OnProgress) -> dict[SetPart, list[Tensor]]:
        """Measure the images on all ranks together; each rank takes every `world.size`-th batch.

        Returns:
            Part -> features of all images, in the order of the files: one tensor for `pooled`, one tensor per style
            layer for `grams`.
        """
        with self.world.all_or_none(no_timeout=True):
            rows = self._own_rows(parts, on_progress)
        gathered = self.world.gather(rows)
        return {part: _in_order([of_rank[part] for of_rank in gathered]) for part in parts}

    def _own_rows(self, parts: Sequence[SetPart], on_progress: OnProgress) -> dict[SetPart, "_Rows"]:
        """Measure the images of this rank's batches; return part -> features of these images."""
        count = len(self.files)
        batches = [range(start, min(start + self.batch_size, count)) for start in range(0, count, self.batch_size)]
        with_grams = set(gram_indices(count))
        if "pooled" not in parts:
            batches = [batch for batch in batches if with_grams.intersection(batch)]
        own = batches[self.world.rank :: self.world.size]
        sides = [side for side in (self.photo_size, self.ruler.size) if side is not None]
        read = functools.partial(read_square, sides=sides)
        tasks = self.pool.ahead(read, (self.files[index] for batch in own for index in batch))

        rows: dict[SetPart, _Rows] = {part: _Rows([], []) for part in parts}
        for number, batch in enumerate(own, 1):
            pixels = np.stack([self.pool.finish(next(tasks)[1]) for _ in batch])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            features = self.ruler.measure(images, {*parts})
            if features.pooled is not None:
                rows["pooled"].add(batch, [features.pooled])
            if features.grams:
                chosen = [row for row, index in enumerate(batch) if index in with_grams]
                rows["grams"].add([batch[row] for row in chosen], [gram[chosen] for gram in features.grams])
            done = sum(map(len, batches[: number * self.world.size]))  # the other ranks are about equally fast
            on_progress(done, sum(map(len, batches)))
        return rows


class _Rows(NamedTuple):
    """Features of those images of a set that one rank has measured.

    `indices` holds the indices of the images in the set. `batches` holds one list per batch, with one tensor for
    `pooled`, or one per style layer for `grams`. The rows of the tensors belong to the images in `indices`, in order.
    """

    indices: list[int]
    batches: list[list[Tensor]]

    def add(self, indices: Sequence[int], tensors: list[Tensor]) -> None:
        self.indices.extend(indices)
        self.batches.append(tensors)


def _in_order(rows: Sequence[_Rows]) -> list[Tensor]:
    """Join the features that the ranks have measured; return the tensors with one row per image, in the set's order.

    `rows` has one item per rank.
    """
    order = torch.tensor([index for own in rows for index in own.indices]).argsort()
    batches = [tensors for own in rows for tensors in own.batches]
    return [torch.cat(tensors)[order] for tensors in zip(*batches, strict=True)]


def _interleaved(shares: Sequence[Sequence[_Item]]) -> list[_Item]:
    """Return the items in their original order; of n shares, share r has the items r, r + n, r + 2 n and so on."""
    total = sum(map(len, shares))
    return [shares[index % len(shares)][index // len(shares)] for index in range(total)]
