"""Translation of the photos of a direction, and measurements of each photo and of its translation."""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cyclestyle.distributed.world import World
from cyclestyle.errors import DataError
from cyclestyle.evaluation.features import gram_indices
from cyclestyle.evaluation.image_files import read_square
from cyclestyle.evaluation.report import Row
from cyclestyle.evaluation.rulers import Part, Ruler
from cyclestyle.evaluation.sets import Sets
from cyclestyle.filesystem.listing import printable
from cyclestyle.images import tensors
from cyclestyle.metrics import colour, psnr_ssim
from cyclestyle.metrics.colour import ColourMap, PixelStatistics
from cyclestyle.metrics.structure import structure_distance
from cyclestyle.photoset.batching import Model, check_batch_size
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.translation.blending import blend
from cyclestyle.translation.pipeline import MAX_PIXELS_IN_BATCH

GRAM = "gram"  # name of columns with Gram matrices, before the number of the layer


class PairDistance(Protocol):
    """Perceptual distance between two images, such as LPIPS with one of its networks."""

    name: str  # name of the network, such as `lpips_alex`
    size: int  # px; both images are resized to a square of this side first

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances, float32 (N,), of two batches of uint8 images (N, 3, H, W)."""
        ...


class Column(NamedTuple):
    """Name of a measurement, and the images that have it.

    `row` is a kind of image, such as `translated` or `untouched`, see `report.Score`.
    """

    name: str  # such as `content_ssim`, or `pooled` and `gram 0` for the features of a ruler
    ruler: str | None = None
    row: Row = "translated"
    strength: float | None = None  # None for measurements that do not depend on the strength


class Instruments(NamedTuple):
    """Functions that translate and measure the photos of a direction.

    Attributes:
        model: function that translates a batch of photos, uint8 (N, 3, H, W), to images of the same shape.
        back: function like `model` for the opposite direction; None if reconstructions are not measured.
        rulers: pretrained networks, each with the parts of its features to compute, such as `pooled` or `grams`.
        lpips: networks that measure the perceptual distance of two images.
        names: names of the scores for which measurements are made.
        strengths: weights of the model's output in the measured images.
        main: one of `strengths`; measurements of pixels and of LPIPS are made only at this strength.
    """

    model: Model
    back: Model | None
    rulers: Sequence[tuple[Ruler, Collection[Part]]]
    lpips: Sequence[PairDistance]
    names: Collection[str]
    strengths: Sequence[float]
    main: float


class Batch(NamedTuple):
    """Photos of one size, with the indices of their files, and their true translations if there are any."""

    indices: list[int]
    photos: Tensor  # uint8 (N, 3, H, W)
    truths: Tensor | None


Columns = Mapping[Column, Tensor]


def measure(
    instruments: Instruments,
    sets: Sets,
    *,
    photo_size: int | None,
    batch_size: int,
    workers: Workers,
    world: World,
    on_batch: Callable[[int], object],
) -> Columns:
    """Translate and measure all photos of `sets`; return the measurements in the order of the files.

    The ranks take groups of `batch_size` consecutive photos in turn. The composition of the batches therefore does not
    depend on the number of ranks. Every rank returns the measurements of all photos.

    Args:
        on_batch: function that is called after each batch with the number of its photos.

    Raises:
        DataError: an image is missing or damaged, or a true translation differs in size from its photo.
    """
    check_batch_size(batch_size)
    read = Reader(workers, photo_size)
    colour_map = None
    if sets.truths is not None and {"truth_psnr", "truth_ssim", "truth_l1", "truth_lpips"} & set(instruments.names):
        colour_map = _colour_map(sets.sources, list(sets.truths.values()), read)
    with_grams = {*gram_indices(len(sets.sources))}
    rows: dict[Column, list[tuple[list[int], Tensor]]] = {}
    for batch in batches(sets, read, batch_size=batch_size, world=world):
        for column, values in _measured(instruments, batch, colour_map):
            kept = list(range(len(batch.indices)))
            if column.name.startswith(GRAM):
                kept = [row for row in kept if batch.indices[row] in with_grams]
            rows.setdefault(column, []).append(([batch.indices[row] for row in kept], values.cpu()[kept]))
        on_batch(len(batch.indices))
    return _gathered(rows, world)


class Reader:
    """Reader of image files, which are decoded ahead by worker processes or threads.

    Args:
        workers: pool that decodes the files.
        photo_size: side, in px, of the square to which images are resized, like training images by `data.load_size`;
            None keeps their sizes.
    """

    def __init__(self, workers: Workers, photo_size: int | None) -> None:
        self._workers = workers
        self._read = functools.partial(read_square, sides=[] if photo_size is None else [photo_size])

    def __call__(self, files: Iterable[Path]) -> Iterator[Tensor]:
        """Yield the images in the order of the files, uint8 (3, H, W) in sRGB."""
        for _, task in self._workers.ahead(self._read, files):
            yield tensors.array_to_tensor(self._workers.finish(task))


def batches(sets: Sets, read: Reader, *, batch_size: int, world: World) -> Iterator[Batch]:
    """Yield this rank's batches.

    The ranks take groups of `batch_size` consecutive photos in turn. Photos of equal size in a group form a batch, or
    several batches if they have more than `MAX_PIXELS_IN_BATCH` pixels.
    """
    everything = range(len(sets.sources))
    chunks = [everything[start : start + batch_size] for start in range(0, len(everything), batch_size)]
    own = chunks[world.rank :: world.size]
    files = (file for chunk in own for index in chunk for file in _files(sets, index))
    images = read(files)
    for chunk in own:
        groups: dict[torch.Size, list[tuple[int, Tensor, Tensor | None]]] = {}
        for index in chunk:
            photo = next(images)
            truth = None if sets.truths is None else next(images)
            if truth is not None and truth.shape != photo.shape:
                raise _unequal(sets.truths[sets.sources[index]], truth, photo)  # type: ignore[index]
            groups.setdefault(photo.shape, []).append((index, photo, truth))
        for shape, group in groups.items():
            most = max(1, MAX_PIXELS_IN_BATCH // shape[-2:].numel())
            for start in range(0, len(group), most):
                yield _stacked(group[start : start + most])


def pixel_sums(pixels: Tensor) -> Tensor:
    """Return the sums from which `pooled_statistics` computes colour statistics.

    Args:
        pixels: uint8 images (N, 3, H, W) in sRGB.

    Returns:
        float64 (N, 7): number of pixels, sums of L*, a* and b*, and sums of their squares.
    """
    rows = []
    for image in pixels:
        values = colour.lab(image).flatten(1)
        count = torch.tensor([values.shape[1]], dtype=torch.float64)
        rows.append(torch.cat([count, values.sum(1), values.square().sum(1)]))
    return torch.stack(rows)


def pooled_statistics(sums: Tensor) -> colour.ColourStatistics:
    """Compute mean and standard deviation of L*, a*, b* over all pixels of a set, from its `pixel_sums`."""
    total = sums.sum(0)
    mean, mean_square = total[1:4] / total[0], total[4:7] / total[0]
    return colour.ColourStatistics(mean, (mean_square - mean.square()).clamp(min=0).sqrt())


def _files(sets: Sets, index: int) -> Iterator[Path]:
    """Yield the files to read for a photo: the photo itself, then its true translation if there is one."""
    yield sets.sources[index]
    if sets.truths is not None:
        yield sets.truths[sets.sources[index]]


def _unequal(path: Path, truth: Tensor, photo: Tensor) -> DataError:
    sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (truth, photo)]
    return DataError(
        f"{printable(path)} is {sizes[0]}, but its photo is {sizes[1]}: resize one of them, or both with photo_size="
    )


def _stacked(group: Sequence[tuple[int, Tensor, Tensor | None]]) -> Batch:
    indices, photos, truths = zip(*group, strict=True)
    return Batch(list(indices), torch.stack(photos), None if truths[0] is None else torch.stack(truths))


def _colour_map(sources: Sequence[Path], truths: Sequence[Path], read: Reader) -> ColourMap:
    """Return the colour map of the baseline, the same for all photos.

    It changes the mean and standard deviation of the photos' colours to those of the true translations.
    """
    before, after = PixelStatistics(), PixelStatistics()
    for pooled, files in ((before, sources), (after, truths)):
        for image in read(files):
            pooled.add(image)
    return colour.global_colour_map(before.statistics(), after.statistics())


def _measured(instruments: Instruments, batch: Batch, colour_map: ColourMap | None) -> Iterator[tuple[Column, Tensor]]:
    """Translate one batch, and yield all its measurements."""
    translation = instruments.model(batch.photos)
    images = {value: _blended(batch.photos, translation, value) for value in instruments.strengths}
    scored = images[instruments.main]
    rows: dict[Row, Tensor] = {"translated": scored, "untouched": batch.photos}
    yield from _pixel_columns(instruments.names, rows)
    if batch.truths is not None and colour_map is not None:
        rows["mapped"] = torch.stack([colour_map(photo) for photo in batch.photos])
        yield from _truth_columns(instruments, rows, batch.truths)
    if "lpips" in instruments.names:
        for network in instruments.lpips:
            yield Column("lpips", network.name), network.distance(scored, batch.photos)
    if instruments.back is not None:
        yield from _similarities(
            "reconstruction", instruments, "translated", instruments.back(translation), batch.photos
        )
    for ruler, parts in instruments.rulers:
        if parts:
            yield from _feature_columns(ruler, parts, batch.photos, images)


def _blended(photos: Tensor, translation: Tensor, strength: float) -> Tensor:
    """Blend uint8 photos and their translation; exactly the photos at strength 0, the translation at strength 1."""
    if strength in (0, 1):
        return translation if strength else photos
    return tensors.to_uint8(blend(tensors.to_float(photos), tensors.to_float(translation), strength=strength))


def _pixel_columns(names: Collection[str], rows: Mapping[Row, Tensor]) -> Iterator[tuple[Column, Tensor]]:
    if "content_ssim" in names:
        yield Column("content_ssim"), _each(psnr_ssim.ssim, rows["translated"], rows["untouched"])
    if "colours" in names:
        for row, images in rows.items():
            yield Column("colours", row=row), pixel_sums(images)


def _truth_columns(
    instruments: Instruments, rows: Mapping[Row, Tensor], truths: Tensor
) -> Iterator[tuple[Column, Tensor]]:
    for row, images in rows.items():
        yield from _similarities("truth", instruments, row, images, truths)
        if "truth_lpips" in instruments.names:
            for network in instruments.lpips:
                yield Column("truth_lpips", network.name, row), network.distance(images, truths)


def _similarities(
    prefix: str, instruments: Instruments, row: Row, images: Tensor, others: Tensor
) -> Iterator[tuple[Column, Tensor]]:
    for name, function in (("psnr", psnr_ssim.psnr), ("ssim", psnr_ssim.ssim), ("l1", psnr_ssim.l1)):
        if f"{prefix}_{name}" in instruments.names:
            yield Column(f"{prefix}_{name}", row=row), _each(function, images, others)


def _each(function: Callable[[Tensor, Tensor], float], x: Tensor, y: Tensor) -> Tensor:
    return torch.tensor([function(*pair) for pair in zip(x, y, strict=True)], dtype=torch.float64)


def _feature_columns(
    ruler: Ruler, parts: Collection[Part], photos: Tensor, images: Mapping[float, Tensor]
) -> Iterator[tuple[Column, Tensor]]:
    """Yield the features of the photos and of their translations at each strength, and the structure distances."""
    untouched = ruler.measure(photos, parts)
    if untouched.pooled is not None:
        yield Column("pooled", ruler.name, "untouched"), untouched.pooled
    for number, gram in enumerate(untouched.grams):
        yield Column(f"{GRAM} {number}", ruler.name, "untouched"), gram
    for strength, translated in images.items():
        features = untouched if strength == 0 else ruler.measure(translated, parts)
        if untouched.tokens is not None and features.tokens is not None:
            distance = structure_distance(features.tokens, untouched.tokens)
            yield Column("structure", ruler.name, "translated", strength), distance
        if features.pooled is not None:
            yield Column("pooled", ruler.name, "translated", strength), features.pooled
        for number, gram in enumerate(features.grams):
            yield Column(f"{GRAM} {number}", ruler.name, "translated", strength), gram


def _gathered(rows: Mapping[Column, list[tuple[list[int], Tensor]]], world: World) -> Columns:
    """Join the measurements of all ranks, in the order of the files."""
    pieces: dict[Column, list[tuple[list[int], Tensor]]] = {}
    for of_rank in world.gather(rows):
        for column, own in of_rank.items():
            pieces.setdefault(column, []).extend(own)
    gathered = {}
    for column, own in pieces.items():
        order = torch.tensor([index for indices, _ in own for index in indices]).argsort()
        gathered[column] = torch.cat([values for _, values in own])[order]
    return gathered
