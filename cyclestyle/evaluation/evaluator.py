"""What a model makes of a set of pictures, in numbers: as a stream, whatever the size of the set."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import printable
from cyclestyle.images import decoding, tensors
from cyclestyle.metrics import colour, psnr_ssim
from cyclestyle.metrics.colour import ColourMap, PixelStatistics
from cyclestyle.photoset import batching, inputs
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.progress import Counter


class MeanStd(NamedTuple):
    """A number that every picture of a set has."""

    mean: float
    deviation: float  # standard deviation over the pictures; 0 for a single one


class Similarity(NamedTuple):
    """How like the truth the pictures of a set are."""

    psnr: MeanStd  # dB
    ssim: MeanStd


class PairedScores(NamedTuple):
    """How like the truth pictures are when they are made in different ways."""

    unchanged: Similarity
    mapped: Similarity  # by the best global colour map
    translated: Similarity


class Colours(NamedTuple):
    """Distances of a set's colours to those of the target domain, see `pixels.colour_distance`."""

    unchanged: float
    translated: float
    num_targets: int  # pictures of the target domain


class Report(NamedTuple):
    """All that is known about the translations of a set."""

    num_pictures: int
    truth: PairedScores | None
    colours: Colours | None
    content: MeanStd  # SSIM of luminance of the translations to what they were made from


def evaluate(
    model: batching.Model, folder: Path, *, truth: Path | None = None, target: Path | None = None, batch_size: int = 8
) -> Report:
    """Translate the pictures of a folder and compare them; nothing is written.

    Args:
        model: translates uint8 (N, 3, H, W) to the same.
        truth: holds what the translations should be, under the same names.
        target: holds any pictures of the target domain.

    Raises:
        DataError: pictures that are missing, damaged, or not of the size of their truth.
    """
    names = inputs.names(folder)
    truths = None if truth is None else _truths(folder, names, truth)
    targets = None if target is None else [target / name for name in inputs.names(target)]
    sources = [folder / name for name in names]

    with Workers(0) as workers:
        colour_map = None if truths is None else _colour_map(sources, list(truths.values()), workers)
        tally = _Accumulator(truths, colour_map)
        with Counter(len(sources), what="evaluating") as counter:
            for one in batching.translated(sources, model, batch_size=batch_size, workers=workers, failed=_refuse):
                tally.add(one)
                counter.advance()
        colours = None if targets is None else _colours(tally, targets, workers)
    return Report(len(sources), tally.truth(), colours, _spread(tally.content))


def table(report: Report, *, truth: Path | None, target: Path | None) -> str:
    """The report for people: aligned, one block for each kind of comparison."""
    blocks: list[tuple[str, list[str], list[tuple[str, list[str]]]]] = []
    if report.truth is not None and truth is not None:
        rows = zip(("photo unchanged", "best global colour map", "this model"), report.truth, strict=True)
        cells = [(name, [_cell(like.psnr, digits=2), _cell(like.ssim, digits=3)]) for name, like in rows]
        blocks.append(
            (f"to the truth in {printable(truth)} (n = {report.num_pictures})", ["PSNR in dB", "SSIM"], cells)
        )
    if report.colours is not None and target is not None:
        cells = [
            ("photo unchanged", [f"{report.colours.unchanged:.2f}"]),
            ("this model", [f"{report.colours.translated:.2f}"]),
        ]
        blocks.append((f"to {printable(target)} (n = {report.colours.num_targets})", ["colour distance in Lab"], cells))
    cells = [("this model", [_cell(report.content, digits=3)])]
    blocks.append((f"to the photo itself (n = {report.num_pictures})", ["SSIM: content kept"], cells))

    left = max(len(title) for title, _, _ in blocks)
    return "\n\n".join(_block(*block, left=left) for block in blocks)


class _Accumulator:
    """Takes in translations one by one and keeps numbers only."""

    def __init__(self, truths: dict[Path, Path] | None, colour_map: ColourMap | None) -> None:
        self.truths, self.colour_map = truths, colour_map
        self.photos, self.translations = PixelStatistics(), PixelStatistics()
        self.content: list[float] = []
        self.likenesses: list[list[tuple[float, float]]] = []  # of each picture: unchanged, mapped, translated

    def add(self, one: batching.TranslatedPhoto) -> None:
        self.photos.add(colour.lab(one.photo))
        self.translations.add(colour.lab(one.translation))
        self.content.append(psnr_ssim.ssim(one.photo, one.translation))
        if self.truths is None or self.colour_map is None:
            return
        truth = _read(self.truths[one.source])
        if truth.shape != one.photo.shape:
            sizes = [f"{picture.shape[2]}x{picture.shape[1]}" for picture in (truth, one.photo)]
            raise DataError(f"{printable(self.truths[one.source])} is {sizes[0]}, but its photo is {sizes[1]}")
        made = (one.photo, self.colour_map(one.photo), one.translation)
        self.likenesses.append([(psnr_ssim.psnr(picture, truth), psnr_ssim.ssim(picture, truth)) for picture in made])

    def truth(self) -> PairedScores | None:
        if self.truths is None:
            return None
        ways = zip(*self.likenesses, strict=True)
        return PairedScores(*(Similarity(*(_spread(values) for values in zip(*way, strict=True))) for way in ways))


def _truths(folder: Path, names: Sequence[Path], truth: Path) -> dict[Path, Path]:
    """The truth of each picture."""
    there = set(inputs.names(truth))
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{printable(truth.absolute())} lacks the truth of {len(missing)} of {len(names)} pictures, "
            f"such as {printable(missing[0])}: it must have the same names"
        )
    return {folder / name: truth / name for name in names}


def _colour_map(sources: Sequence[Path], truths: Sequence[Path], workers: Workers) -> ColourMap:
    """What a filter for all pictures at once could do, at best knowing the truth of all."""
    before, after = PixelStatistics(), PixelStatistics()
    for pooled, files in ((before, sources), (after, truths)):
        for photo in batching.photos(files, workers=workers, failed=_refuse):
            pooled.add(photo.pixels)
    return colour.global_colour_map(before.statistics(), after.statistics())


def _colours(tally: _Accumulator, targets: Sequence[Path], workers: Workers) -> Colours:
    wanted = colour.colour_statistics(
        photo.pixels for photo in batching.photos(targets, workers=workers, failed=_refuse)
    )
    return Colours(
        unchanged=colour.colour_distance(tally.photos.statistics(), wanted),
        translated=colour.colour_distance(tally.translations.statistics(), wanted),
        num_targets=len(targets),
    )


def _refuse(_: Path, error: DataError) -> None:
    raise error  # a number over what happens to be readable would be compared with one over all


def _read(path: Path) -> Tensor:
    return tensors.pil_to_uint8(decoding.read(path))


def _spread(values: Sequence[float]) -> MeanStd:
    if not all(map(math.isfinite, values)):  # the PSNR of equal pictures
        return MeanStd(math.inf, math.nan)
    return MeanStd(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def _block(title: str, heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, left: int) -> str:
    """One comparison: a line that says with what, and a line for each way of making pictures."""
    widths = [max(len(head), 15) for head in heads]
    return "\n".join(
        "  ".join([name.ljust(left), *(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))])
        for name, cells in [(title, heads), *((f"  {name}", cells) for name, cells in rows)]
    )


def _cell(value: MeanStd, *, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f}" if math.isfinite(value.mean) else "infinite"
