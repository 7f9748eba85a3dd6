"""Robustness: how far translations move if their photos get noise, blur or JPEG artefacts.

Each photo is translated as it is, and again with each degradation. The movement of the photo is its distance to the
degraded photo; the movement of the translation is the distance between both translations, by the same measure. A model
that moves less than its photos hides degradations, one that moves more amplifies them.
"""

import functools
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from cyclestyle.errors import warn
from cyclestyle.evaluation import plots
from cyclestyle.evaluation.image_files import read_square
from cyclestyle.evaluation.plots import MUTED, Label, Line
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.images import tensors
from cyclestyle.metrics import psnr_ssim
from cyclestyle.metrics.estimate import Estimate, mean_estimate
from cyclestyle.objectives import degradations
from cyclestyle.photoset import batching
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.rng import rng_for

Kind = Literal["noise", "blur", "jpeg"]


class Level(NamedTuple):
    """One degradation of photos.

    Attributes:
        kind: noise, blur or JPEG compression.
        amount: for noise, the standard deviation in 1/255 of the range from black to white; for blur, the standard
            deviation of the Gaussian in px; for JPEG, the quality from 1 to 100.
    """

    kind: Kind
    amount: float

    def __str__(self) -> str:
        return {"noise": "noise {:g}/255", "blur": "blur {:g} px", "jpeg": "JPEG quality {:g}"}[self.kind].format(
            self.amount
        )


LEVELS = (
    *(Level("noise", sigma) for sigma in (5, 10, 20)),
    *(Level("blur", sigma) for sigma in (0.5, 1, 2)),
    *(Level("jpeg", quality) for quality in (75, 40, 15)),
)


class Measure(Protocol):
    """Distance between two images, such as LPIPS with one of its networks."""

    @property
    def name(self) -> str:
        """Name of the measure, such as `lpips_alex`."""

    @property
    def size(self) -> int | None:
        """Side, in px, of the square to which both images are resized first; None if they are compared as they are."""

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distances (N,) of two batches of uint8 images (N, 3, H, W)."""
        ...


class OnProgress(Protocol):
    """Function that is called after each batch with the number of photos done and the total number."""

    def __call__(self, done: int, total: int) -> object: ...


class Movement(NamedTuple):
    """Mean movements of photos and translations for one degradation, by one measure.

    Attributes:
        measure: name of the measure.
        size: side, in px, of the square to which images are resized for the measure; None if they are not resized.
        level: the degradation.
        photos: mean distance of a photo to its degraded copy.
        translations: mean distance of the translation of a photo to the translation of its degraded copy.
    """

    measure: str
    size: int | None
    level: Level
    photos: Estimate
    translations: Estimate

    @property
    def ratio(self) -> float:
        """Movement of the translations divided by that of the photos; NaN if the photos do not move."""
        return self.translations.value / self.photos.value if self.photos.value else math.nan


class RobustnessReport(NamedTuple):
    """Movements of one direction by all measures.

    Attributes:
        direction: name of the direction, such as `photo2monet`; empty if the caller gave no name.
        n: number of photos.
        photo_size: side, in px, of the square to which the photos were resized; None if they were not.
        seed: seed of the noise and of the intervals.
        movements: movements, grouped by measure, in the order of `LEVELS`.
    """

    direction: str
    n: int
    photo_size: int | None
    seed: int
    movements: tuple[Movement, ...]

    def by_measure(self) -> dict[tuple[str, int | None], list[Movement]]:
        """Return the movements of each measure; a key holds the measure's `name` and `size`."""
        groups: dict[tuple[str, int | None], list[Movement]] = {}
        for movement in self.movements:
            groups.setdefault((movement.measure, movement.size), []).append(movement)
        return groups


class RootMeanSquare:
    """Root mean square difference of the pixels, in 1/255 of the range from black to white."""

    name, size = "RMS in 1/255", None

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.double() - y.double()).square().flatten(1).mean(1).sqrt()


class Dissimilarity:
    """1 - SSIM of luminance: 0 for equal images."""

    name, size = "1 - SSIM", None

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(x.cpu(), y.cpu(), strict=True)
        return torch.tensor([1 - psnr_ssim.ssim(*pair) for pair in pairs], dtype=torch.float64)


def robustness(
    model: batching.Model,
    sources: Sequence[Path],
    *,
    measures: Sequence[Measure] = (),
    direction: str = "",
    photo_size: int | None = None,
    batch_size: int = 8,
    workers: int = 0,
    seed: int = 0,
    on_progress: OnProgress = lambda done, total: None,
) -> RobustnessReport:
    """Translate photos and degraded copies of them; measure how far photos and translations move. Write no image.

    Each photo is translated once for each of `LEVELS`, and once as it is. The noise of a photo depends on `seed` and
    its place in `sources` alone.

    Args:
        model: function that translates a batch of photos, uint8 (N, 3, H, W), to images of the same shape.
        sources: files of the photos, at least one.
        measures: distances of two images, such as networks of LPIPS; without any, 1 - SSIM takes their place. The root
            mean square difference of pixels is added in any case.
        direction: name of the direction, such as `photo2monet`, for tables and files.
        photo_size: side, in px, of the square to which all photos are resized first, like training images by
            `data.load_size`; None leaves them as stored.
        batch_size: maximum number of photos of equal size that are translated together.
        workers: number of processes that read photos; 0 reads them in threads.
        seed: seed of the noise, and of the bootstrap from which the intervals follow.
        on_progress: function that is called after each batch of photos.

    Raises:
        DataError: a photo is missing or damaged.
    """
    measures = [*(measures or [Dissimilarity()]), RootMeanSquare()]
    moved = torch.full((len(measures), len(LEVELS), 2, len(sources)), math.nan, dtype=torch.float64)
    done = 0
    with Workers(workers) as pool:
        for batch in batching.batches(_photos(sources, photo_size, pool), batch_size):
            places = [photo.place for photo in batch]
            photos = torch.stack([photo.pixels for photo in batch])
            translations = model(photos)
            for column, level in enumerate(LEVELS):
                degraded = torch.stack([degrade(photo.pixels, level, number=photo.place, seed=seed) for photo in batch])
                answers = model(degraded)
                for measure, rows in zip(measures, moved[:, column], strict=True):
                    rows[0, places] = measure.distance(photos, degraded).to(rows)
                    rows[1, places] = measure.distance(translations, answers).to(rows)
            done += len(batch)
            on_progress(done, len(sources))

    def estimate(values: Tensor) -> Estimate:
        # Equal random numbers for all movements: the same photos are drawn for each of them.
        generator = torch.Generator().manual_seed(int(rng_for(seed, f"{direction} robustness").integers(2**62)))
        return mean_estimate(values, generator=generator)

    movements = [
        Movement(measure.name, measure.size, level, estimate(moved[row, column, 0]), estimate(moved[row, column, 1]))
        for row, measure in enumerate(measures)
        for column, level in enumerate(LEVELS)
    ]
    return RobustnessReport(direction, len(sources), photo_size, seed, tuple(movements))


def degrade(photo: Tensor, level: Level, *, number: int, seed: int) -> Tensor:
    """Return a degraded copy of a photo.

    Args:
        photo: uint8 (3, H, W) in sRGB.
        level: the degradation; JPEG files are written and read by Pillow.
        number: place of the photo in its set; photos with different numbers get different noise.
        seed: seed of the noise.
    """
    if level.kind == "jpeg":
        file = io.BytesIO()
        tensors.uint8_to_pil(photo).save(file, "JPEG", quality=int(level.amount))
        return tensors.pil_to_uint8(Image.open(file)).to(photo.device)
    image = tensors.to_float(photo)[None]
    if level.kind == "blur":
        changed = degradations.blur(image, level.amount)
    else:  # the same pattern for all levels, so that they differ in its strength alone
        changed = degradations.noise(image, level.amount, random=rng_for(seed, "robustness noise", number))
    return tensors.to_uint8(changed)[0]


def table(report: RobustnessReport) -> str:
    """Format the movements as text: one block for each measure, one line for each degradation."""
    blocks = [
        _block(report, _title(*measure), movements) for measure, movements in report.by_measure().items()
    ]  # fmt: skip
    about = "ratio: movement of the translations / movement of the photos; brackets: 95 % intervals"
    return "\n\n".join([*blocks, about])


def write(report: RobustnessReport, folder: Path) -> list[Path]:
    """Write the movements as robustness_DIRECTION.json, and as curves in .png and .svg; return the paths of the files.

    Without matplotlib only the JSON file is written, and a line names the extra to install.

    Raises:
        OSError: a file cannot be written.
    """
    stem = "_".join(["robustness", *filter(None, [re.sub(r"[^\w-]", "_", report.direction)])])
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / f"{stem}.json"
    content = {
        "format": 1,
        **report._asdict(),
        "movements": [_numbers(movement) for movement in report.movements],
    }
    write_text(numbers, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if not plots.available():
        warn(f"{stem}.png and {stem}.svg are left out: drawing them {plots.MISSING}")
        return [numbers]

    groups = report.by_measure()
    figure, panels = plots.new_figure(len(groups))
    for (measure, movements), axes in zip(groups.items(), panels, strict=True):
        _draw(report, _title(*measure), movements, axes)
    return [numbers, *plots.save(figure, folder, stem)]


class _Photo(NamedTuple):
    """A photo, and its place in the list of files, counted from 0."""

    place: int
    pixels: Tensor  # uint8 (3, H, W)


def _photos(sources: Sequence[Path], photo_size: int | None, workers: Workers) -> Iterator[_Photo]:
    read = functools.partial(read_square, sides=() if photo_size is None else (photo_size,))
    for place, (_, task) in enumerate(workers.ahead(read, sources)):
        yield _Photo(place, tensors.array_to_tensor(workers.finish(task)))


def _title(measure: str, size: int | None) -> str:
    return measure if size is None else f"{measure}, images resized to {size} px"


def _block(report: RobustnessReport, title: str, movements: Sequence[Movement]) -> str:
    photos = "photos as stored" if report.photo_size is None else f"photos of {report.photo_size} px"
    first = ", ".join(filter(None, [report.direction, "robustness", title, photos, f"n = {report.n}"]))
    cells = [["degradation of the photos", "photos move", "translations move", "ratio"]]
    for movement in movements:
        ratio = f"{movement.ratio:.2f}" if math.isfinite(movement.ratio) else "-"
        cells.append([str(movement.level), _number(movement.photos), _number(movement.translations), ratio])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([first, *(f"  {line}" for line in lines)])


def _number(estimate: Estimate) -> str:
    """Format an estimate with three significant digits of its value: `0.0410 [0.0360, 0.0470]`."""
    digits = max(0, 2 - math.floor(math.log10(abs(estimate.value)))) if estimate.value else 3
    if not math.isfinite(estimate.low):
        return f"{estimate.value:.{digits}f}"
    return f"{estimate.value:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _numbers(movement: Movement) -> dict[str, Any]:
    """Return a movement as JSON values."""
    level = movement.level
    return {
        "measure": movement.measure,
        "size": movement.size,
        "degradation": level.kind,
        "amount": level.amount,
        "photos": _finite(movement.photos._asdict()),
        "translations": _finite(movement.translations._asdict()),
        **_finite({"ratio": movement.ratio}),
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _draw(report: RobustnessReport, title: str, movements: Sequence[Movement], axes: Any) -> None:
    """Draw the panel of one measure.

    The x axis shows the movement of the photos, the y axis that of the translations. Each kind of degradation has one
    curve. A dashed diagonal shows equal movements.
    """
    labels: list[Label] = []  # the strongest level of a kind has its name, the weaker ones have their amounts only
    lines: list[Line] = []
    kinds = list(dict.fromkeys(movement.level.kind for movement in movements))
    for kind, (colour, marker) in zip(kinds, plots.SERIES, strict=True):
        own = [movement for movement in movements if movement.level.kind == kind]
        xs, ys = ([0.0, *values] for values in zip(*((m.photos.value, m.translations.value) for m in own), strict=True))
        axes.plot(xs, ys, color=colour, linewidth=1.6, zorder=2)
        for movement in own:
            x, y = movement.photos, movement.translations
            lines += plots.draw_point(axes, x, y, colour=colour, marker=marker)
            text = str(movement.level) if movement is own[-1] else f"{movement.level.amount:g}"
            labels.append(Label(x.value, y.value, text, colour))
        lines.append((xs, ys))

    right, top = (max(number for line in lines for number in line[axis]) or 1.0 for axis in (0, 1))
    right, top = 1.18 * right, 1.08 * top
    axes.set_xlim(0, right)
    axes.set_ylim(0, top)
    end = min(right, top)
    axes.plot([0, end], [0, end], color=MUTED, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    lines.append(([0.0, end], [0.0, end]))
    labels.append(Label(0.9 * end, 0.9 * end, "equal movement", MUTED))
    plots.set_texts(
        axes,
        title=", ".join(filter(None, [report.direction, "robustness"])),
        subtitle=f"{title}; n = {report.n}; bars: 95 % intervals; lower is steadier",
        x="movement of the photos",
        y="movement of the translations",
    )
    plots.place(axes, labels, lines=lines)
