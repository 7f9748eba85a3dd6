"""Diagrams as PNG and SVG files, with colours that differ for colour-blind people too, and labels that do not overlap.

The diagrams need matplotlib (extra `metrics`), which is imported on first use.
"""

import importlib.util
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cyclestyle.filesystem.atomic import atomic_write
from cyclestyle.metrics.estimate import Estimate

MISSING = "needs matplotlib: pip install 'cyclestyle[metrics]'"

INK, MUTED, GRID, PAPER = "#1f2328", "#59636e", "#dfe3e8", "#ffffff"  # text, second text, lines, background
# Three colours like those of Okabe and Ito (2008), which differ for people with any common kind of colour blindness;
# all of them are dark enough for text on white.
BLUE, ORANGE, GREEN = "#0072b2", "#bf4f00", "#00805c"
SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))  # colour and marker of each curve
# Colours of the same things on a dark background.
DARK = {
    INK: "#e6edf3", MUTED: "#a0a8b2", GRID: "#30363d", PAPER: "#0d1117", BLUE: "#58b6ec", ORANGE: "#ff9650",
    GREEN: "#35c99d",
}  # fmt: skip

FONT_PT = 10.0
DOTS_PER_INCH = 160
GAP_PT = 7.0  # distance between a point and its label


class Label(NamedTuple):
    """Text beside a point of a diagram, in the units of the axes."""

    x: float
    y: float
    text: str
    colour: str = INK


Line = tuple[Sequence[float], Sequence[float]]  # x values and y values of a polyline


def available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(panels: int, *, width: float = 6.4, height: float = 5.0) -> tuple[Any, list[Any]]:
    """Create a figure with panels in a row; return the figure and one axes object per panel.

    Args:
        panels: number of panels.
        width, height: size of a panel, with its axis labels, in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), dpi=DOTS_PER_INCH, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in all_axes:
        axes.set_facecolor(PAPER)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=MUTED, labelsize=FONT_PT - 1, length=0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(MUTED)
    return figure, all_axes


def set_texts(axes: Any, *, title: str, subtitle: str, x: str, y: str) -> None:
    """Set the title of a panel, a second line below it, and the labels of both axes."""
    axes.set_title(f"{title}\n", loc="left", color=INK, fontsize=FONT_PT + 3, fontweight="bold")
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, color=MUTED, fontsize=FONT_PT - 1, va="bottom")
    axes.set_xlabel(x, color=INK, fontsize=FONT_PT)
    axes.set_ylabel(y, color=INK, fontsize=FONT_PT)


def draw_point(axes: Any, x: Estimate, y: Estimate, *, colour: str, marker: str = "o", size: float = 6.0) -> list[Line]:
    """Draw a point with the error bars of both coordinates; return the bars as lines, which labels should not cover.

    Args:
        x, y: coordinates; an interval of NaN has no bar.
        colour, marker: colour, and shape as matplotlib names it.
        size: diameter in points.
    """
    (x0, x1), (y0, y1) = (
        (each.low, each.high) if math.isfinite(each.low) and math.isfinite(each.high) else (each.value, each.value)
        for each in (x, y)
    )
    bars: list[Line] = [([x0, x1], [y.value, y.value]), ([x.value, x.value], [y0, y1])]
    for xs, ys in bars:
        axes.plot(xs, ys, color=colour, linewidth=1.2, solid_capstyle="butt", zorder=3)
    axes.plot(x.value, y.value, marker, color=colour, markersize=size, zorder=4)
    return bars


def place(axes: Any, labels: Sequence[Label], *, lines: Sequence[Line] = ()) -> None:
    """Write each label beside its point, where it covers no other label, no point and, if possible, no line.

    Call this function last, since it depends on the limits of the axes.

    Args:
        labels: labels; the first ones get the best places.
        lines: polylines to be kept free, as (x values, y values).
    """
    figure = axes.figure
    figure.draw_without_rendering()  # the layout determines the size of the axes in px
    pixel = figure.dpi / 72
    points = [tuple(axes.transData.transform((label.x, label.y))) for label in labels]
    taken = [_Box(x - 5 * pixel, y - 5 * pixel, x + 5 * pixel, y + 5 * pixel) for x, y in points]
    drawn = [dot for xs, ys in lines for dot in _dots(axes.transData.transform(list(zip(xs, ys, strict=True))))]
    inside = _Box(*axes.bbox.extents)

    for label, point in zip(labels, points, strict=True):
        text = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", color=label.colour,
            fontsize=FONT_PT - 0.5, ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip
        extent = text.get_window_extent()
        best, best_cost, best_offset = None, float("inf"), (0.0, 0.0)
        for number, offset in enumerate(_offsets(extent.width, extent.height, gap=GAP_PT * pixel)):
            left, bottom = point[0] + offset[0], point[1] + offset[1]
            box = _Box(left, bottom, left + extent.width, bottom + extent.height)
            covered = 100 * sum(box.meets(other) for other in taken) + sum(box.contains(*dot) for dot in drawn)
            cost = covered + 1000 * (not box.lies_in(inside)) + 0.15 * number
            if cost < best_cost:
                best, best_cost, best_offset = box, cost, offset
        assert best is not None
        text.set_position((best_offset[0] / pixel, best_offset[1] / pixel))
        taken.append(best)


def save(figure: Any, folder: Path, stem: str) -> list[Path]:
    """Write a figure as `stem`.png, on white, and `stem`.svg, which browsers show in dark colours on a dark page.

    The same figure gives the same bytes again.

    Returns:
        Paths of the files.

    Raises:
        OSError: a file cannot be written.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    with mpl.rc_context({"svg.hashsalt": stem}):
        for path in paths:
            kind = path.suffix[1:]
            metadata = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, facecolor=PAPER, metadata=metadata)
            content = buffer.getvalue() if kind == "png" else _for_both_backgrounds(buffer.getvalue())
            with atomic_write(path) as file:
                file.write(content)
    return paths


class _Box(NamedTuple):
    """Rectangle in px of the figure."""

    left: float
    bottom: float
    right: float
    top: float

    def meets(self, other: "_Box") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.bottom < other.top
            and other.bottom < self.top
        )  # fmt: skip

    def contains(self, x: float, y: float) -> bool:
        return self.left <= x <= self.right and self.bottom <= y <= self.top

    def lies_in(self, other: "_Box") -> bool:
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.bottom <= self.bottom
            and self.top <= other.top
        )  # fmt: skip


def _offsets(width: float, height: float, *, gap: float) -> Iterator[tuple[float, float]]:
    """Yield positions of a label's lower left corner relative to its point, in px, the best ones first."""
    for distance in (gap, 2 * gap, 3.5 * gap, 5 * gap):
        right, left, middle = distance, -distance - width, -width / 2
        above, below, beside = distance / 2, -distance / 2 - height, -height / 2
        yield from [(right, above), (right, below), (left, above), (left, below), (right, beside), (left, beside)]
        yield from [(middle, distance), (middle, -distance - height)]


def _dots(corners: Any, *, spacing: float = 4.0) -> Iterator[tuple[float, float]]:
    """Yield points along a polyline whose corners are given in px."""
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        count = max(1, int(max(abs(x1 - x0), abs(y1 - y0)) / spacing))
        for step in range(count + 1):
            yield x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count


def _for_both_backgrounds(svg: bytes) -> bytes:
    """Add rules for dark pages to an SVG file; programs that ignore them show the light colours."""
    rules = "".join(
        f'[style*="{kind}: {light}"] {{ {kind}: {dark} !important }}\n'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>\n".encode()
    return re.sub(rb"(<svg [^>]*>\n?)", lambda match: match[1] + style, svg, count=1)
