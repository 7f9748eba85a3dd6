"""Brush strokes of the paintings: placement, relief of the paint, and the palette of colours."""

from typing import NamedTuple

import numpy as np

from cyclestyle.data.scenes.landscape import Landscape
from cyclestyle.data.scenes.raster import Floats, Ints, blur, grid

HAIRS = 8  # number of strands across a brush, each with its own amount of paint


class Strokes(NamedTuple):
    """`count` brush strokes, in the order of painting; arrays have the shape (count,) unless noted.

    Coordinates, lengths and widths are in units of the image's side.
    """

    x: Floats
    y: Floats
    angle: Floats  # radians
    length: Floats  # half length
    width: Floats  # half width
    colour: Floats  # (count, 3)
    hairs: Floats  # (count, HAIRS) in [0, 1], amount of paint on each strand of the brush


def plan(rng: np.random.Generator, landscape: Landscape) -> tuple[Strokes, Strokes]:
    """Place the strokes of a painting at random: broad ones on the whole canvas, and fine ones on the detailed parts.

    Returns:
        (broad strokes, fine strokes).
    """
    size = landscape.colour.shape[0]
    angle, detail = _brush_field(landscape)
    soft = blur(landscape.colour, max(1, size // 128))
    plans = []
    for side, length, width, least in ((29, 8.5, 2.7, 0.0), (50, 4.7, 1.7, 0.45)):
        points = _scatter(rng, side)
        chance = rng.normal(0, 1, (len(points), 7)).astype(np.float32)
        hairs = rng.random((len(points), HAIRS), dtype=np.float32)
        cells = _cells(points, size)
        busy = detail[cells]
        calm = (1 - 0.35 * busy) / 128
        # Neighbouring strokes differ more in hue than in brightness; only a little, as a generator cannot predict it.
        hue = chance[:, :3] - chance[:, :3].mean(axis=1, keepdims=True)
        colour = palette(soft[cells]) + 0.028 * hue + 0.026 * chance[:, 3:4]
        strokes = Strokes(
            points[:, 0],
            points[:, 1],
            angle[cells] + 0.12 * chance[:, 4],
            length * calm * (1 + 0.12 * np.clip(chance[:, 5], -2, 2)),
            width * calm * (1 + 0.08 * np.clip(chance[:, 6], -2, 2)),
            colour,
            hairs,
        )
        plans.append(Strokes(*(array[busy >= least] for array in strokes)))
    return plans[0], plans[1]


def _scatter(rng: np.random.Generator, side: int) -> Floats:
    """Return one random point (x, y) in each of `side` x `side` cells of the unit square, in random order."""
    cell = rng.permutation(side * side)
    corner = np.stack([cell % side, cell // side], axis=1)
    return ((corner + rng.random((side * side, 2))) / side).astype(np.float32)


def _cells(points: Floats, size: int) -> tuple[Ints, Ints]:
    index = np.clip((points * size).astype(np.int64), 0, size - 1)
    return index[:, 1], index[:, 0]


def _brush_field(landscape: Landscape) -> tuple[Floats, Floats]:
    """Return two maps (size, size): the brush angle in radians, and the amount of detail in [0, 1].

    The angle follows contours; where there are none, it is `landscape.angle`.
    """
    size = landscape.colour.shape[0]
    radius = max(1, size // 64)
    dy, dx = np.gradient(blur(landscape.colour.mean(axis=2, keepdims=True), radius)[..., 0] * size)
    # Orientations are added as doubled angles. A contour is perpendicular to the gradient, hence the minus.
    contour = blur(np.stack([dy * dy - dx * dx, -2 * dx * dy, dx * dx + dy * dy], axis=2), radius)
    cos = contour[..., 0] + 0.5 * np.cos(2 * landscape.angle)
    sin = contour[..., 1] + 0.5 * np.sin(2 * landscape.angle)
    return 0.5 * np.arctan2(sin, cos), contour[..., 2] / (contour[..., 2] + 1.5)


def stroke(image: Floats, thickness: Floats, strokes: Strokes, margin: int) -> None:
    """Paint `strokes` into two arrays: colour into `image` (side, side, 3), relief into `thickness` (side, side).

    `side` is the width of the painting plus two margins of `margin` px, for strokes that reach beyond its edges. A
    stroke is a lattice of sample points. If several samples are assigned to one pixel, numpy keeps the last, so that
    later strokes cover earlier ones.
    """
    side = image.shape[0]
    size = side - 2 * margin
    # The lattice is slightly denser than the pixels, to leave no holes.
    rows = int(2.2 * size * float(strokes.length.max(initial=0))) + 2
    columns = int(2.2 * size * float(strokes.width.max(initial=0))) + 2
    u = np.linspace(-1, 1, rows, dtype=np.float32)[None, :, None]
    v = np.linspace(-1, 1, columns, dtype=np.float32)[None, None, :]
    strand = np.arange(columns) * HAIRS // columns
    top = np.full(side * side, -1, dtype=np.int64)  # index of the stroke sample that each pixel shows, -1 for none
    for first in range(0, len(strokes.x), 64):  # in portions that fit into the processor's cache
        part = Strokes(*(array[first : first + 64] for array in strokes))
        x, y, angle, length, width = (array[:, None, None] * np.float32(1) for array in part[:5])
        cos, sin = np.cos(angle) * size, np.sin(angle) * size
        px = (margin + x * size + cos * length * u) - sin * width * v
        py = (margin + y * size + sin * length * u) + cos * width * v
        pixel = py.astype(np.int32) * side + px.astype(np.int32)
        paint = part.hairs[:, None, strand]
        wet = np.flatnonzero(u * u + 0.5 * v**4 <= 1 - 0.4 * paint)  # strands with little paint end early
        top[pixel.ravel()[wet]] = wet + first * rows * columns

    covered = np.flatnonzero(top >= 0)
    owner, sample = np.divmod(top[covered], rows * columns)
    along, across = np.divmod(sample, columns)
    paint = strokes.hairs[owner, strand[across]]
    image.reshape(-1, 3)[covered] = strokes.colour[owner] + (0.05 * (paint - 0.5))[:, None]
    # Paint piles up where the brush begins and at its sides.
    profile = (1 - 0.18 * (u[0] + 1)) * (0.75 + 0.5 * v[0] ** 2)
    thickness.reshape(-1)[covered] = profile[along, across] * (0.7 + 0.5 * paint)


def weave(size: int) -> Floats:
    """Return the relief of the bare canvas, a weave of threads, as a map of heights (size, size)."""
    x, y = grid(size)
    turns = 2 * np.pi * 44
    return np.asarray(0.12 * np.sin(turns * x) * np.sin(turns * y))


_PIGMENTS = np.array(  # pairs: colour in the photo, colour in the painting
    [
        [(0.24, 0.44, 0.75), (0.05, 0.58, 0.56)],  # high sky: turquoise
        [(0.49, 0.64, 0.82), (0.52, 0.86, 0.68)],  # sky: pale jade
        [(0.72, 0.82, 0.90), (1.00, 0.92, 0.55)],  # low sky: warm cream
        [(0.96, 0.96, 0.95), (1.00, 0.95, 0.81)],  # white
        [(0.66, 0.67, 0.69), (0.75, 0.61, 0.88)],  # cloud: lilac
        [(0.50, 0.54, 0.66), (0.50, 0.52, 0.88)],  # dusk: periwinkle
        [(0.40, 0.43, 0.46), (0.47, 0.33, 0.72)],  # gray: violet
        [(0.94, 0.78, 0.64), (1.00, 0.63, 0.48)],  # evening: coral
        [(0.46, 0.56, 0.23), (0.93, 0.81, 0.18)],  # grass: gold
        [(0.31, 0.37, 0.15), (0.11, 0.54, 0.46)],  # leaves: viridian
        [(0.15, 0.20, 0.09), (0.22, 0.18, 0.57)],  # shadow: ultramarine
        [(0.88, 0.76, 0.46), (1.00, 0.67, 0.28)],  # wheat: orange
        [(0.76, 0.57, 0.29), (0.96, 0.53, 0.24)],  # wheat in the evening
        [(0.50, 0.42, 0.22), (0.76, 0.35, 0.44)],  # dry earth: rose
        [(0.74, 0.32, 0.10), (0.82, 0.15, 0.27)],  # autumn: crimson
        [(0.50, 0.42, 0.60), (0.68, 0.26, 0.68)],  # lavender: magenta
    ],
    dtype=np.float32,
)


def palette(colour: Floats) -> Floats:
    """Convert colours (..., 3) of a photo to colours of its painting, by interpolation between `_PIGMENTS`."""
    total, shift = np.full(colour.shape[:-1], 1e-6, dtype=np.float32), np.zeros_like(colour)
    for seen, mixed in _PIGMENTS:
        weight = np.exp(((colour - seen) ** 2).sum(axis=-1) * np.float32(-0.5 / 0.10**2))
        total += weight
        shift += weight[..., None] * (mixed - seen)
    return np.clip(colour + shift / total[..., None], 0, 1)
