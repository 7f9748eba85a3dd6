"""Evaluation of a model on a set of photos; the memory needed does not grow with the number of photos."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import printable
from cyclestyle.images import reading, tensors
from cyclestyle.metrics import colour, psnr_ssim
from cyclestyle.metrics.colour import ColourMap, PixelStatistics
from cyclestyle.photoset import batching, inputs
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.progress import Counter


class MeanStd(NamedTuple):
    """Mean and standard deviation of a score over a set of images."""

    mean: float
    deviation: float  # standard deviation; 0 for a single image


class Similarity(NamedTuple):
    """Similarity of a set of images to their ground truth: mean and standard deviation of PSNR and SSIM."""

    psnr: MeanStd  # dB
    ssim: MeanStd


class PairedScores(NamedTuple):
    """Similarity to the ground truth of three sets: photos, recoloured photos (a baseline) and translations."""

    unchanged: Similarity
    mapped: Similarity  # photos changed by the best global colour map
    translated: Similarity


class Colours(NamedTuple):
    """Colour distance of the photos, and of the translations, from the target domain; see `metrics.colour`."""

    unchanged: float
    translated: float
    num_targets: int  # number of images of the target domain


class Report(NamedTuple):
    """All scores of a set of translations; a score is None if its reference images were not given."""

    num_images: int
    truth: PairedScores | None
    colours: Colours | None
    content: MeanStd  # SSIM of luminance between each translation and its photo


def evaluate(
    model: batching.Model, folder: Path, *, truth: Path | None = None, target: Path | None = None, batch_size: int = 8
) -> Report:
    """Translate the photos of a folder and score the results; no files are written.

    Args:
        model: function that translates photos, uint8 (N, 3, H, W), to images of the same dtype and shape.
        truth: folder with a ground-truth image for each photo, under the same file name.
        target: folder with images of the target domain, which need not correspond to the photos.
        batch_size: maximum number of photos per batch; all photos in a batch have the same size.

    Raises:
        DataError: an image is missing or damaged, or a ground-truth image differs in size from its photo.
    """
    names = inputs.names(folder)
    truths = None if truth is None else _truths(folder, names, truth)
    targets = None if target is None else [target / name for name in inputs.names(target)]
    sources = [folder / name for name in names]

    with Workers(0) as workers:
        colour_map = None if truths is None else _colour_map(sources, list(truths.values()), workers)
        scores = _Accumulator(truths, colour_map)
        with Counter(len(sources), what="evaluating") as counter:
            for photo in batching.translated(sources, model, batch_size=batch_size, workers=workers, failed=_raise):
                scores.add(photo)
                counter.advance()
        colours = None if targets is None else _colours(scores, targets, workers)
    return Report(len(sources), scores.truth(), colours, _mean_std(scores.content))


def table(report: Report, *, truth: Path | None, target: Path | None) -> str:
    """Format `report` as a text table with one block of rows per reference: ground truth, target domain, photo.

    `truth` and `target` are the folders of the reference images, for the titles of the blocks.
    """
    blocks: list[tuple[str, list[str], list[tuple[str, list[str]]]]] = []
    if report.truth is not None and truth is not None:
        rows = zip(("photo unchanged", "best global colour map", "this model"), report.truth, strict=True)
        cells = [(name, [_cell(score.psnr, digits=2), _cell(score.ssim, digits=3)]) for name, score in rows]
        blocks.append((f"to the truth in {printable(truth)} (n = {report.num_images})", ["PSNR in dB", "SSIM"], cells))
    if report.colours is not None and target is not None:
        cells = [
            ("photo unchanged", [f"{report.colours.unchanged:.2f}"]),
            ("this model", [f"{report.colours.translated:.2f}"]),
        ]
        blocks.append((f"to {printable(target)} (n = {report.colours.num_targets})", ["colour distance in Lab"], cells))
    cells = [("this model", [_cell(report.content, digits=3)])]
    blocks.append((f"to the photo itself (n = {report.num_images})", ["SSIM: content kept"], cells))

    name_width = max(len(title) for title, _, _ in blocks)
    return "\n\n".join(_block(*block, name_width=name_width) for block in blocks)


class _Accumulator:
    """Accumulator for scores: translations are added one by one, and no images are stored."""

    def __init__(self, truths: dict[Path, Path] | None, colour_map: ColourMap | None) -> None:
        self.truths, self.colour_map = truths, colour_map
        self.photos, self.translations = PixelStatistics(), PixelStatistics()
        self.content: list[float] = []
        # For each photo, (PSNR, SSIM) of the unchanged photo, the colour-mapped photo and the translation.
        self.similarities: list[list[tuple[float, float]]] = []

    def add(self, translated: batching.TranslatedPhoto) -> None:
        self.photos.add(colour.lab(translated.photo))
        self.translations.add(colour.lab(translated.translation))
        self.content.append(psnr_ssim.ssim(translated.photo, translated.translation))
        if self.truths is None or self.colour_map is None:
            return
        truth = _read(self.truths[translated.source])
        if truth.shape != translated.photo.shape:
            sizes = [f"{image.shape[2]}x{image.shape[1]}" for image in (truth, translated.photo)]
            raise DataError(f"{printable(self.truths[translated.source])} is {sizes[0]}, but its photo is {sizes[1]}")
        images = (translated.photo, self.colour_map(translated.photo), translated.translation)
        self.similarities.append([(psnr_ssim.psnr(image, truth), psnr_ssim.ssim(image, truth)) for image in images])

    def truth(self) -> PairedScores | None:
        if self.truths is None:
            return None
        methods = zip(*self.similarities, strict=True)
        return PairedScores(
            *(Similarity(*(_mean_std(values) for values in zip(*pairs, strict=True))) for pairs in methods)
        )


def _truths(folder: Path, names: Sequence[Path], truth: Path) -> dict[Path, Path]:
    """Return a dictionary from the path of each photo to the path of its ground truth."""
    present = set(inputs.names(truth))
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"{printable(truth.absolute())} lacks the truth of {len(missing)} of {len(names)} photos, "
            f"such as {printable(missing[0])}: both folders must have the same file names"
        )
    return {folder / name: truth / name for name in names}


def _colour_map(sources: Sequence[Path], truths: Sequence[Path], workers: Workers) -> ColourMap:
    """Return the baseline: one colour map for all photos, fitted to match the colours of the ground truth."""
    before, after = PixelStatistics(), PixelStatistics()
    for pooled, files in ((before, sources), (after, truths)):
        for photo in batching.photos(files, workers=workers, failed=_raise):
            pooled.add(photo.pixels)
    return colour.global_colour_map(before.statistics(), after.statistics())


def _colours(scores: _Accumulator, targets: Sequence[Path], workers: Workers) -> Colours:
    target = colour.colour_statistics(
        photo.pixels for photo in batching.photos(targets, workers=workers, failed=_raise)
    )
    return Colours(
        unchanged=colour.colour_distance(scores.photos.statistics(), target),
        translated=colour.colour_distance(scores.translations.statistics(), target),
        num_targets=len(targets),
    )


def _raise(_: Path, error: DataError) -> None:
    raise error  # scores without this photo would not be comparable between models


def _read(path: Path) -> Tensor:
    return tensors.pil_to_uint8(reading.read_8_bit(path))


def _mean_std(values: Sequence[float]) -> MeanStd:
    if not all(map(math.isfinite, values)):  # the PSNR of identical images is infinite
        return MeanStd(math.inf, math.nan)
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _block(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, name_width: int) -> str:
    """Format one block: a first line with `title` and the column `heads`, then one line per row (name, cells)."""
    widths = [max(len(head), 15) for head in heads]
    return "\n".join(
        "  ".join([name.ljust(name_width), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, cells in [(title, heads), *((f"  {name}", cells) for name, cells in rows)]
    )


def _cell(value: MeanStd, *, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f}" if math.isfinite(value.mean) else "infinite"
