"""How the painter works: where strokes go, what they leave on the canvas, and with which colours."""

from typing import NamedTuple

import numpy as np

from cyclestyle.data.scenes.landscape import Landscape
from cyclestyle.data.scenes.raster import Floats, Ints, blur, grid

HAIRS = 8  # strands of a brush that can be told apart


class Strokes(NamedTuple):
    """Brush strokes in units of the picture's side, later ones above earlier ones; all arrays (count,)."""

    x: Floats
    y: Floats
    angle: Floats
    length: Floats  # half of it
    width: Floats  # half of it
    colour: Floats  # (count, 3)
    hairs: Floats  # (count, HAIRS) in [0, 1], how much paint each strand of the brush holds


def plan(rng: np.random.Generator, landscape: Landscape) -> tuple[Strokes, Strokes]:
    """Broad strokes that cover the canvas, and fine ones where there is something to tell."""
    size = landscape.colour.shape[0]
    angle, detail = _brush_field(landscape)
    soft = blur(landscape.colour, max(1, size // 128))
    plans = []
    for side, length, width, least in ((29, 8.5, 2.7, 0.0), (50, 4.7, 1.7, 0.45)):
        at = _scatter(rng, side)
        chance = rng.normal(0, 1, (len(at), 7)).astype(np.float32)
        hairs = rng.random((len(at), HAIRS), dtype=np.float32)
        cells = _cells(at, size)
        busy = detail[cells]
        calm = (1 - 0.35 * busy) / 128
        # Broken colour: neighbours differ in hue more than in light. Small, for nothing can foresee it.
        hue = chance[:, :3] - chance[:, :3].mean(axis=1, keepdims=True)
        colour = palette(soft[cells]) + 0.028 * hue + 0.026 * chance[:, 3:4]
        strokes = Strokes(
            at[:, 0],
            at[:, 1],
            angle[cells] + 0.12 * chance[:, 4],
            length * calm * (1 + 0.12 * np.clip(chance[:, 5], -2, 2)),
            width * calm * (1 + 0.08 * np.clip(chance[:, 6], -2, 2)),
            colour,
            hairs,
        )
        plans.append(Strokes(*(array[busy >= least] for array in strokes)))
    return plans[0], plans[1]


def _scatter(rng: np.random.Generator, side: int) -> Floats:
    """side * side points (x, y), one in each cell of a grid, in random order: even cover without visible rows."""
    cell = rng.permutation(side * side)
    corner = np.stack([cell % side, cell // side], axis=1)
    return ((corner + rng.random((side * side, 2))) / side).astype(np.float32)


def _cells(at: Floats, size: int) -> tuple[Ints, Ints]:
    index = np.clip((at * size).astype(np.int64), 0, size - 1)
    return index[:, 1], index[:, 0]


def _brush_field(landscape: Landscape) -> tuple[Floats, Floats]:
    """Angle of the brush, along strong contours and else as the region asks, and detail in [0, 1]: (size, size)."""
    size = landscape.colour.shape[0]
    radius = max(1, size // 64)
    dy, dx = np.gradient(blur(landscape.colour.mean(axis=2, keepdims=True), radius)[..., 0] * size)
    # Orientations add as double angles; the contour's is the gradient's turned by a right angle, hence the minus.
    contour = blur(np.stack([dy * dy - dx * dx, -2 * dx * dy, dx * dx + dy * dy], axis=2), radius)
    cos = contour[..., 0] + 0.5 * np.cos(2 * landscape.angle)
    sin = contour[..., 1] + 0.5 * np.sin(2 * landscape.angle)
    return 0.5 * np.arctan2(sin, cos), contour[..., 2] / (contour[..., 2] + 1.5)


def stroke(picture: Floats, thickness: Floats, strokes: Strokes, margin: int) -> None:
    """Lay all strokes at once: each is a lattice of samples, and numpy keeps the last value of a repeated index.

    The arrays (size + 2 margin)^2 are changed in place; a stroke may reach `margin` beyond the picture.
    """
    side = picture.shape[0]
    size = side - 2 * margin
    rows = int(2.2 * size * float(strokes.length.max(initial=0))) + 2  # a little denser than pixels: no holes
    columns = int(2.2 * size * float(strokes.width.max(initial=0))) + 2
    u = np.linspace(-1, 1, rows, dtype=np.float32)[None, :, None]
    v = np.linspace(-1, 1, columns, dtype=np.float32)[None, None, :]
    strand = np.arange(columns) * HAIRS // columns
    top = np.full(side * side, -1, dtype=np.int64)  # which sample of which stroke each pixel shows
    for first in range(0, len(strokes.x), 64):  # in portions that stay in the processor's cache
        part = Strokes(*(array[first : first + 64] for array in strokes))
        x, y, angle, length, width = (array[:, None, None] * np.float32(1) for array in part[:5])
        cos, sin = np.cos(angle) * size, np.sin(angle) * size
        px = (margin + x * size + cos * length * u) - sin * width * v
        py = (margin + y * size + sin * length * u) + cos * width * v
        pixel = py.astype(np.int32) * side + px.astype(np.int32)
        paint = part.hairs[:, None, strand]
        wet = np.flatnonzero(u * u + 0.5 * v**4 <= 1 - 0.4 * paint)  # strands with little paint end early
        top[pixel.ravel()[wet]] = wet + first * rows * columns

    there = np.flatnonzero(top >= 0)
    owner, sample = np.divmod(top[there], rows * columns)
    along, across = np.divmod(sample, columns)
    paint = strokes.hairs[owner, strand[across]]
    picture.reshape(-1, 3)[there] = strokes.colour[owner] + (0.05 * (paint - 0.5))[:, None]
    # Paint piles up where the brush begins and at its sides.
    profile = (1 - 0.18 * (u[0] + 1)) * (0.75 + 0.5 * v[0] ** 2)
    thickness.reshape(-1)[there] = profile[along, across] * (0.7 + 0.5 * paint)


def weave(size: int) -> Floats:
    """Height of the canvas's threads, over and under in turn, (size, size)."""
    x, y = grid(size)
    turns = 2 * np.pi * 44
    return np.asarray(0.12 * np.sin(turns * x) * np.sin(turns * y))


_PIGMENTS = np.array(  # what the camera sees -> what the painter mixes
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
        [(0.76, 0.57, 0.29), (0.96, 0.53, 0.24)],  # the same in the evening
        [(0.50, 0.42, 0.22), (0.76, 0.35, 0.44)],  # dry earth: rose
        [(0.74, 0.32, 0.10), (0.82, 0.15, 0.27)],  # autumn: crimson
        [(0.50, 0.42, 0.60), (0.68, 0.26, 0.68)],  # lavender: magenta
    ],
    dtype=np.float32,
)


def palette(colour: Floats) -> Floats:
    """The painter's colour for each of the camera's (..., 3): a smooth field of shifts between the pigments."""
    total, shift = np.full(colour.shape[:-1], 1e-6, dtype=np.float32), np.zeros_like(colour)
    for seen, mixed in _PIGMENTS:
        weight = np.exp(((colour - seen) ** 2).sum(axis=-1) * np.float32(-0.5 / 0.10**2))
        total += weight
        shift += weight[..., None] * (mixed - seen)
    return np.clip(colour + shift / total[..., None], 0, 1)
