"""The plane of style and structure: a diagram of how much translations change the style and structure of photos.

A stronger translation has more of the target domain's style, and less of the photo's structure. Each point of the plane
is a set of images, with its structure distance to the photos on the x axis and its style distance to real images of the
target domain on the y axis. Both are better when smaller. The floor is the style distance between two sets of real
images; it shows how small the style distance of a perfect model can be.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cyclestyle.errors import warn
from cyclestyle.evaluation import plots
from cyclestyle.evaluation.plots import BLUE, ORANGE, Label, Line
from cyclestyle.evaluation.report import DirectionReport, Score
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.metrics.estimate import Estimate

STEM = "plane"  # file stem of plane.json, plane.png and plane.svg


class Point(NamedTuple):
    """One set of images in the plane.

    Attributes:
        strength: weight of the model's output in the images: 0 for the untouched photos, 1 for the model's output.
        structure: structure distance to the photos.
        style: style distance to the real images of the target domain.
    """

    strength: float
    structure: Estimate
    style: Estimate

    @property
    def label(self) -> str:
        """Label of the point in the diagram, such as `untouched photo` or `strength 0.5`."""
        names = {0.0: "untouched photo", 1.0: "model"}
        return names.get(self.strength, f"strength {self.strength:g}")


class Plane(NamedTuple):
    """All points of one direction, and example scores that state how the points were measured.

    Attributes:
        direction: name of the direction, such as `photo2monet`.
        points: points in order of their strength; empty if there are no scores of style or of structure.
        floor: style distance of real images of the target domain to other ones; None if it was not measured.
        style: a style score, which states network, size and numbers of images; None if `points` is empty.
        structure: a structure score, which states the same; None if `points` is empty.
    """

    direction: str
    points: tuple[Point, ...] = ()
    floor: Estimate | None = None
    style: Score | None = None
    structure: Score | None = None


def of_report(report: DirectionReport) -> Plane:
    """Collect the points of a direction: the model at each scored strength, and the untouched photos."""
    return plane([(report.strength, report), *((point.strength, point) for point in report.curve)])


def plane(curve: Sequence[tuple[float, DirectionReport]]) -> Plane:
    """Collect the points of one direction from reports at several strengths.

    All style distances are those of the first network that measures style. The structure distances are those of the
    same network. If it measures no structure, they are those of the first network that does.

    Args:
        curve: pairs of a strength and the report at this strength, in any order, at least one. If a strength occurs
            twice, the first report that has scores is used. One of the reports should have the scores of the untouched
            photos and of the floor, which are real images of the target domain.
    """
    reports = [report for _, report in curve]
    direction = reports[0].direction
    style = _first(reports, "style")
    structure = None if style is None else _first(reports, "structure", style.ruler) or _first(reports, "structure")
    if style is None or structure is None:
        return Plane(direction)

    points: dict[float, Point] = {}
    for strength, report in curve:
        own = report.find("style", style.ruler), report.find("structure", structure.ruler)
        if own[0] is not None and own[1] is not None:
            points.setdefault(float(strength), Point(float(strength), _estimate(own[1]), _estimate(own[0])))
    untouched = _first(reports, "style", style.ruler, "untouched")
    if untouched is not None:  # a photo does not differ from itself
        points.setdefault(0.0, Point(0.0, Estimate(0.0, 0.0, 0.0), _estimate(untouched)))
    floor = _first(reports, "style", style.ruler, "floor")
    ordered = tuple(points[strength] for strength in sorted(points))
    return Plane(direction, ordered, None if floor is None else _estimate(floor), style, structure)


def write(planes: Sequence[Plane], folder: Path) -> list[Path]:
    """Write plane.json, and plane.png and plane.svg with one panel for each direction; return the paths of the files.

    A plane without points is left out. If no plane has points, no file is written. If matplotlib is missing, only
    plane.json is written, and a warning names the extra to install.

    Raises:
        OSError: a file cannot be written.
    """
    planes = [each for each in planes if each.points]
    if not planes:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    numbers = folder / f"{STEM}.json"
    content = {"format": 1, "directions": [_numbers(each) for each in planes]}
    write_text(numbers, json.dumps(content, indent=1, allow_nan=False) + "\n")
    if not plots.available():
        warn(f"{STEM}.png and {STEM}.svg are left out: drawing them {plots.MISSING}")
        return [numbers]

    figure, panels = plots.new_figure(len(planes))
    for each, axes in zip(planes, panels, strict=True):
        _draw(each, axes)
    return [numbers, *plots.save(figure, folder, STEM)]


def _first(
    reports: Sequence[DirectionReport], name: str, ruler: str | None = None, row: Any = "translated"
) -> Score | None:
    scores: Iterator[Score | None] = (report.find(name, ruler, row) for report in reports)
    return next((score for score in scores if score is not None), None)


def _estimate(score: Score) -> Estimate:
    missing = score.low is None or score.high is None
    return Estimate(score.value, *((math.nan, math.nan) if missing else (score.low, score.high)))  # type: ignore[arg-type]


def _numbers(each: Plane) -> dict[str, Any]:
    """Return a plane as JSON values."""
    return {
        "direction": each.direction,
        **{
            name: {key: getattr(score, key) for key in ("ruler", "size", "resize", "n", "reference")}
            for name, score in (("style", each.style), ("structure", each.structure))
        },
        "floor": None if each.floor is None else _interval(each.floor),
        "points": [
            {
                "label": point.label,
                "strength": point.strength,
                "structure": _interval(point.structure),
                "style": _interval(point.style),
            }
            for point in each.points
        ],
    }


def _interval(estimate: Estimate) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in estimate._asdict().items()}


def _draw(each: Plane, axes: Any) -> None:
    """Draw the panel of one direction.

    A curve joins the points of all strengths; each point has bars for its 95 % intervals. A horizontal line shows the
    floor: the style distance of real images of the target domain to other ones.
    """
    assert each.style is not None
    assert each.structure is not None
    xs = [point.structure.value for point in each.points]
    ys = [point.style.value for point in each.points]
    axes.plot(xs, ys, color=BLUE, linewidth=1.6, zorder=2)
    labels: list[Label] = []
    lines: list[Line] = [(xs, ys)]
    for point in each.points:
        size = 9 if point.strength == 1 else 6
        lines += plots.draw_point(axes, point.structure, point.style, colour=BLUE, size=size)
        labels.append(Label(point.structure.value, point.style.value, point.label))

    right, top = (max(0.0, *(value for line in lines for value in line[axis])) or 1.0 for axis in (0, 1))
    bottom = 0.0
    if each.floor is not None:
        bottom, top = min(bottom, each.floor.value), max(top, each.floor.value)
        axes.axhline(each.floor.value, color=ORANGE, linewidth=1.6, linestyle=(0, (5, 3)), zorder=1)
        if math.isfinite(each.floor.low) and math.isfinite(each.floor.high):
            axes.axhspan(each.floor.low, each.floor.high, color=ORANGE, alpha=0.18, linewidth=0, zorder=0)
        labels.append(Label(0.62 * right, each.floor.value, "floor: real images against real images", ORANGE))
        lines.append(([-0.04 * right, 1.2 * right], [each.floor.value] * 2))
    axes.set_xlim(-0.04 * right, 1.2 * right)
    axes.set_ylim(bottom - 0.06 * (top - bottom), top + 0.1 * (top - bottom))

    plots.set_texts(
        axes,
        title=each.direction,
        subtitle=f"n = {each.style.n} against {each.style.reference}; bars: 95 % intervals; smaller is better",
        x=f"structure distance to the photos ({_instrument(each.structure)})",
        y=f"style distance to the target images ({_instrument(each.style)})",
    )
    plots.place(axes, labels, lines=lines)


def _instrument(score: Score) -> str:
    return f"{score.ruler}, {score.size} px"
