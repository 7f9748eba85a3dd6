"""The embedded data set: landscapes as a camera sees them (a) and as an impressionist paints them (b), drawn offline.

A scene is a number. Both domains draw it from the same layout, in units of the picture's side, so that a scene looks
the same at every size and, on one machine, is the same bytes every time. Training folders hold different scenes; test
folders hold the same ones, which gives unpaired training a hidden truth to be measured against.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from cyclestyle.errors import CommandError, DataError, DiskError

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]
Bytes: TypeAlias = npt.NDArray[np.uint8]

HAIRS = 8  # strands of a brush that can be told apart
VERSION = 1  # bump when the pictures change: folders drawn by another version are refused, not mixed
RECORD = "scenes.json"
_BLOCK = 1_000_000  # scenes kept for each folder: test scenes stay the same however many are trained on


# ---------------------------------------------------------------------------------------------- the two domains


def photograph(scene: int, *, size: int, seed: int = 0) -> Bytes:
    """The scene as a photograph: (size, size, 3), sharp but for the lens, with sensor noise."""
    landscape = _landscape(scene, size, seed)
    rng = _generator(seed, scene, "sensor")
    x, y = _grid(size)
    vignette = 1 - 0.28 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    seen = _blur(landscape.colour, 1) * 0.4 + landscape.colour * 0.6
    grain = rng.standard_normal((size, size, 4), dtype=np.float32)
    noise = 0.010 * grain[..., :1] + 0.006 * grain[..., 1:]  # mostly in brightness, a little in colour
    return _to_bytes(seen * vignette[..., None] + noise)


def painting(scene: int, *, size: int, seed: int = 0) -> Bytes:
    """The same scene as an oil painting: (size, size, 3), another palette, brush strokes with relief, canvas."""
    landscape = _landscape(scene, size, seed)
    fine, margin = 2 * size, size // 4  # laid at twice the resolution and averaged: smooth edges
    side = fine + 2 * margin
    ground = _palette(_blur(landscape.colour, max(1, size // 40))[::4, ::4])
    picture = np.zeros((side, side, 3), dtype=np.float32)
    picture[margin:-margin, margin:-margin] = ground.repeat(8, axis=0).repeat(8, axis=1)[:fine, :fine]
    thickness = np.zeros((side, side), dtype=np.float32)
    for strokes in _plan(_generator(seed, scene, "brush"), landscape):
        _stroke(picture, thickness, strokes, margin)

    thickness = thickness[margin:-margin, margin:-margin]
    relief = 1.3 * (thickness + _weave(fine) * (1.6 - thickness))  # threads show where paint is thin
    dy, dx = np.gradient(relief * (size / 128))
    light = 0.17 * np.clip(-dx - dy, -0.55, 0.55)  # rakes over the canvas from the upper left
    return _to_bytes(_halve(picture[margin:-margin, margin:-margin] + light[..., None]))


# ---------------------------------------------------------------------------------------------- drawing to disk


def draw(
    root: Path,
    *,
    train: int = 300,
    test: int = 40,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the data set into root/{trainA,trainB,testA,testB}/0000.png...; False where it is already drawn.

    The folder appears at once and whole. `progress` is told (pictures done, pictures in all).

    Raises:
        CommandError: numbers that cannot be drawn.
        DataError: `root` holds something else; it is left as it is.
        DiskError: the pictures cannot be written.
    """
    if size < 16 or train < 1 or test < 0 or seed < 0 or max(train, test) > _BLOCK:
        raise CommandError(
            f"cannot draw scenes with train={train}, test={test}, size={size}, seed={seed}: "
            f"train must be 1 to {_BLOCK}, test 0 to {_BLOCK}, size 16 or more, seed 0 or more"
        )
    wanted = {"version": VERSION, "train": train, "test": test, "size": size, "seed": seed}
    if _is_drawn(root, wanted):
        return False
    part = root.absolute().parent / f".{root.absolute().name}-{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
        _draw_all(part, train, test, size, seed, progress)
        (part / RECORD).write_text(json.dumps(wanted) + "\n")
        part.rename(root)
    except OSError as error:
        if _is_drawn(root, wanted):  # by another process in the meantime
            return False
        raise DiskError(f"cannot write scenes to {root.absolute()}: {error}; give data.root another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _draw_all(
    folder: Path, train: int, test: int, size: int, seed: int, progress: Callable[[int, int], None] | None
) -> None:
    jobs = [
        (folder / name / f"{index:04}.png", picture, first + index)
        for name, picture, first, count in (
            ("trainA", photograph, 0, train),
            ("trainB", painting, _BLOCK, train),
            ("testA", photograph, 2 * _BLOCK, test),
            ("testB", painting, 2 * _BLOCK, test),
        )
        for index in range(count)
    ]
    for name in ("trainA", "trainB", "testA", "testB"):
        (folder / name).mkdir()

    def save(job: tuple[Path, Callable[..., Bytes], int]) -> None:
        file, picture, scene = job
        Image.fromarray(picture(scene, size=size, seed=seed)).save(file)

    # Threads, not processes: numpy and zlib let one another run, and a process would first import torch for seconds.
    pool = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8))
    try:
        for done, _ in enumerate(pool.map(save, jobs), start=1):
            if progress is not None:
                progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _is_drawn(root: Path, wanted: dict[str, int]) -> bool:
    """Whether `root` holds the wanted set; False where there is nothing. Raises DataError at anything else."""
    remedy = "give data.root another folder"
    if (root.is_dir() and not any(root.iterdir())) or not root.exists():
        return False
    if not (root / RECORD).is_file():
        raise DataError(f"{root.absolute()} exists and was not drawn by cyclestyle: {remedy}")
    try:
        found = json.loads((root / RECORD).read_text())
    except ValueError as error:
        raise DataError(f"{root / RECORD} cannot be read: delete {root.absolute()}, or {remedy}") from error
    if found != wanted:
        other = ", ".join(
            f"{key}={found.get(key)} not {value}" for key, value in wanted.items() if found.get(key) != value
        )
        raise DataError(f"{root.absolute()} holds other scenes ({other}): delete it, or {remedy}")
    for name, count in (("trainA", "train"), ("trainB", "train"), ("testA", "test"), ("testB", "test")):
        there = sum(file.stat().st_size > 0 for file in (root / name).glob("*.png"))
        if there != wanted[count]:
            raise DataError(
                f"{root / name} holds {there} pictures, not {wanted[count]}: delete {root.absolute()}, or {remedy}"
            )
    return True


# ------------------------------------------------------------------------------------------------------ noise


def _generator(seed: int, scene: int, purpose: str) -> np.random.Generator:
    key = np.random.SeedSequence([seed, scene, *purpose.encode()])
    return np.random.Generator(np.random.Philox(key))


def _grid(size: int) -> tuple[Floats, Floats]:
    """Pixel centres, x (1, size) and y (size, 1), with 0 at the upper left edge and 1 at the lower right one."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return centres[None, :], centres[:, None]


def _noise(rng: np.random.Generator, u: Floats, v: Floats | float, octaves: int = 5, rough: float = 0.5) -> Floats:
    """Fractal value noise about 0, nearly all within [-1, 1]; the longest wavelength is one unit of u and v."""
    total, weight, scale = np.zeros(1, dtype=np.float32), 1.0, 1.0
    for _ in range(octaves):
        lattice = rng.random((32, 32), dtype=np.float32)
        # turned by a different angle each time, so that the lattices' axes do not add up to a visible grid
        s, t = scale * (0.8 * u + 0.6 * v), scale * (0.8 * v - 0.6 * u)
        i, j = np.floor(t), np.floor(s)
        p, q = t - i, s - j
        p, q = p * p * (3 - 2 * p), q * q * (3 - 2 * q)
        i0, j0 = i.astype(np.int64) & 31, j.astype(np.int64) & 31
        i1, j1 = (i0 + 1) & 31, (j0 + 1) & 31
        top = lattice[i0, j0] * (1 - q) + lattice[i0, j1] * q
        low = lattice[i1, j0] * (1 - q) + lattice[i1, j1] * q
        total = total + (top * (1 - p) + low * p - 0.5) * weight
        weight, scale = weight * rough, scale * 2.03
        u, v = 0.8 * u - 0.6 * v, 0.6 * u + 0.8 * v
    return total * (3.2 * (1 - rough))  # the weights add up to 1 / (1 - rough)


# ----------------------------------------------------------------------------------------------------- layout


class Landscape(NamedTuple):
    """What both domains know of a scene."""

    colour: Floats  # (size, size, 3) in [0, 1], before lens and sensor
    angle: Floats  # (size, size) radians, the way a brush would be led there; 0 is horizontal


class Light(NamedTuple):
    zenith: Floats
    horizon: Floats
    sun: Floats  # what lit things are multiplied by
    shade: Floats  # the same for things in shadow
    sun_x: float
    sun_height: float  # above the horizon; low suns are in the picture
    cover: float  # of the sky by clouds, 0 to 1
    toward: int  # 1: the sun is on the right, -1: on the left


_MOODS = (  # zenith, horizon, sun, shade, height of the sun, clouds from-to, how often
    # noon, evening, dawn, overcast, showers
    ((0.22, 0.43, 0.75), (0.72, 0.83, 0.91), (1.16, 1.08, 0.92), (0.38, 0.46, 0.56), 0.90, (0.10, 0.60), 0.36),
    ((0.40, 0.48, 0.68), (1.00, 0.80, 0.56), (1.26, 0.95, 0.60), (0.37, 0.39, 0.52), 0.12, (0.20, 0.55), 0.24),
    ((0.46, 0.53, 0.74), (0.96, 0.78, 0.73), (1.12, 0.92, 0.82), (0.42, 0.45, 0.58), 0.08, (0.10, 0.50), 0.14),
    ((0.60, 0.64, 0.69), (0.84, 0.85, 0.85), (0.94, 0.93, 0.91), (0.55, 0.58, 0.61), 0.90, (0.70, 0.90), 0.12),
    ((0.28, 0.35, 0.46), (0.78, 0.79, 0.76), (1.14, 1.04, 0.82), (0.34, 0.38, 0.47), 0.90, (0.60, 0.80), 0.14),
)


def _landscape(scene: int, size: int, seed: int) -> Landscape:
    rng = _generator(seed, scene, "layout")
    light = _light(rng)
    horizon = float(rng.uniform(0.36, 0.64))
    canvas = _sky(rng, size, light, horizon)
    _hills(rng, canvas, light, horizon, alpine=rng.random() < 0.3)
    _woods(rng, canvas, light, horizon)
    count = int(rng.integers(1, 6))
    if rng.random() < 0.4:
        _water(rng, canvas, light, horizon)
        if rng.random() < 0.75:
            shore = float(rng.uniform(0.76, 0.93))
            _field(rng, canvas, light, horizon, shore)
            _trees(rng, canvas, light, shore, (count + 1) // 2)
    else:
        _field(rng, canvas, light, horizon, horizon)
        _trees(rng, canvas, light, horizon + 0.02, count + 1)
    return Landscape(np.clip(canvas.colour, 0, 1), canvas.angle)


def _light(rng: np.random.Generator) -> Light:
    *colours, height, cover, _ = _pick(rng, _MOODS)
    drift = rng.normal(0, 0.02, (4, 3))  # no two noons are alike
    zenith, horizon, sun, shade = (np.array(colours) + drift).astype(np.float32)
    sun_x = float(rng.uniform(0.1, 0.9))
    height *= float(rng.uniform(0.7, 1.5))
    return Light(zenith, horizon, sun, shade, sun_x, height, float(rng.uniform(*cover)), 1 if sun_x > 0.5 else -1)


class _Canvas:
    """A picture in the making; what is laid later covers what was there."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.x, self.y = _grid(size)
        self.colour = np.zeros((size, size, 3), dtype=np.float32)
        self.angle = np.zeros((size, size), dtype=np.float32)

    def span(self, first: float, last: float) -> slice:
        """The pixels that the stretch from `first` to `last` of either axis touches."""
        start, stop = (min(max(int(at * self.size), 0), self.size) for at in (first, last + 1 / self.size))
        return slice(start, max(start, stop))

    def lay(
        self, alpha: Floats, colour: Floats, angle: Floats | float, rows: slice, columns: slice = slice(None)
    ) -> None:
        window = (rows, columns)
        self.colour[window] += alpha[..., None] * (colour - self.colour[window])
        self.angle[window] = np.where(alpha > 0.5, angle, self.angle[window])

    def below(self, line: Floats | float, rows: slice) -> Floats:
        """Coverage of all that is under the line y(x), with an edge one pixel wide."""
        return np.asarray(np.clip((self.y[rows] - line) * self.size + 0.5, 0, 1) + 0 * self.x)

    def lit(self, relief: Floats, light: Light) -> Floats:
        """How much a relief's slopes face the sun, about 0; relief in units of the picture's side."""
        dy, dx = np.gradient(relief, axis=0), np.gradient(relief, axis=1)
        return np.asarray((0.5 * dy - light.toward * dx) * self.size)


def _sky(rng: np.random.Generator, size: int, light: Light, horizon: float) -> _Canvas:
    canvas = _Canvas(size)
    rows = canvas.span(0, horizon + 0.04)
    x, y = canvas.x, canvas.y[rows]
    up = np.clip((horizon - y) / horizon, 0, 1)
    colour = _mix(light.horizon, light.zenith, up**0.8 + 0 * x)
    away = np.hypot(x - light.sun_x, y - horizon + light.sun_height * horizon)
    colour += (np.exp(-3.2 * away) * 0.45)[..., None] * (light.sun - 0.4)
    if light.sun_height < 0.3:
        colour += np.clip(1.5 - 36 * away, 0, 1)[..., None] * 0.6

    # Clouds lie on a plane overhead: they shrink and flatten towards the horizon.
    far = 1 / (0.9 * up + 0.22)
    stretch, drift = float(rng.uniform(1.4, 3.0)), float(rng.uniform(0, 9))
    cloud = _noise(rng, (x - 0.5) * far * 1.5 + drift, far * stretch, 6, 0.55)
    body = cloud - 0.42 + light.cover
    density = _smooth(body / 0.45) * _smooth(5 * up + 0.15)
    lit = np.clip(0.72 - 0.03 * canvas.lit(cloud, light) - 0.4 * _smooth((body - 0.3) / 0.8), 0, 1)
    white = np.clip(0.22 + 0.76 * light.sun, 0, 1)
    gray = 0.6 * light.shade + 0.25 * light.horizon + 0.15 * light.zenith
    colour += (0.92 * density)[..., None] * (_mix(gray, white, lit) - colour)
    canvas.lay(np.ones_like(cloud), colour, 0.75 * _noise(rng, 2.2 * x, 3.0 * y, 2), rows)  # air is painted in swirls
    return canvas


_FOREST, _MEADOW, _ROCK, _SNOW = (0.25, 0.35, 0.18), (0.48, 0.54, 0.26), (0.46, 0.44, 0.44), (0.96, 0.97, 1.0)


def _hills(rng: np.random.Generator, canvas: _Canvas, light: Light, horizon: float, *, alpine: bool) -> None:
    """Ridges from far to near, the far ones bluer: aerial perspective. The farthest may be mountains with snow."""
    count = int(rng.integers(2, 5))
    haze = 0.55 * light.horizon + 0.45 * light.zenith
    for k in range(count):
        near, peak = (k + 1) / count, alpine and k == 0
        shape = _noise(rng, canvas.x * (2.2 if peak else 1.2 + 0.6 * near), float(k), 6, 0.42)
        rise = float(rng.uniform(0.16, 0.26)) if peak else float(rng.uniform(0.05, 0.17)) * (1.2 - 0.7 * near)
        line = horizon + 0.02 - 0.06 * (1 - near) - rise * (1.1 - 1.6 * np.abs(shape) if peak else 0.5 + shape)
        rows = canvas.span(float(line.min()) - 0.03, horizon + 0.04)
        deep = np.maximum(canvas.y[rows] - line, 0)
        wood = _noise(rng, 9 * canvas.x, 20 * canvas.y[rows], 4, 0.6)
        folds = _noise(rng, 5 * canvas.x + 2 * deep, 5 * canvas.y[rows], 5, 0.6)
        albedo = _mix(_FOREST, _MEADOW, _smooth(1.6 * wood + float(rng.uniform(0, 0.9))))
        if peak:
            albedo = _mix(_ROCK, _FOREST, _smooth(9 * deep - 0.7 + 0.4 * wood))
            albedo = _mix(albedo, _SNOW, _smooth(1.2 - 13 * deep + 1.5 * folds))
        lit = np.clip(0.58 - 0.07 * canvas.lit(folds, light) + 0.2 * wood, 0, 1)
        colour = _mix(
            albedo * _mix(light.shade, light.sun, lit),
            haze,
            0.68 * (1 - near) ** 0.8 + 0.08 + 1.2 * np.minimum(deep, 0.1),
        )
        slope = np.arctan(np.gradient(line[0]) * canvas.size)
        canvas.lay(canvas.below(line, rows), colour, slope, rows)


def _woods(rng: np.random.Generator, canvas: _Canvas, light: Light, base: float) -> None:
    """A belt of far trees, with gaps, where the hills end."""
    height = 0.05 * _smooth(0.35 + 1.3 * _noise(rng, 1.3 * canvas.x, 0.0, 3))
    rows = canvas.span(base - 0.1, base + 0.02)
    crowns = _noise(rng, 26 * canvas.x, 20 * canvas.y[rows], 4, 0.65)
    top = base + 0.012 - height * (0.75 + 0.5 * _noise(rng, 22 * canvas.x, 0.0, 3)) * (1 + 0.3 * crowns)
    lit = np.clip(0.75 - (canvas.y[rows] - top) * 14 + 0.6 * crowns, 0, 1)
    colour = _mix(_FOREST * _mix(0.9 * light.shade, light.sun, lit), light.horizon, 0.2 + 0 * lit)
    belt = canvas.below(top, rows) * (1 - canvas.below(base + 0.015, rows))
    canvas.lay(belt, colour, np.pi / 2, rows)


def _water(rng: np.random.Generator, canvas: _Canvas, light: Light, top: float) -> None:
    rows = canvas.span(top - 0.01, 1)
    x, y, size = canvas.x, canvas.y[rows], canvas.size
    deep = np.clip(y - top, 0, 1)
    ripple = _noise(rng, 2.2 * x / (deep + 0.15), 2.6 / (deep + 0.07), 4, 0.6)
    squeeze = min(0.9, 0.9 * top / (1 - top))  # the lower edge mirrors what is still in the picture
    mirrored = np.clip((top - squeeze * deep + ripple * (0.004 + 0.07 * deep)) * size, 0, size - 1).astype(np.int64)
    columns = np.clip((x + 0.012 * ripple) * size, 0, size - 1).astype(np.int64)
    body = np.array((0.16, 0.33, 0.40)) * (0.45 + 0.55 * light.sun)
    colour = _mix(0.95 * canvas.colour[mirrored, columns], body, np.clip(0.08 + 0.62 * deep + 0.25 * ripple, 0, 1))
    glitter = np.exp(-(((x - light.sun_x) / (0.04 + 0.25 * deep)) ** 2)) * _smooth(3.5 * ripple)
    colour += (glitter * (0.5 if light.sun_height < 0.3 else 0.1))[..., None] * light.sun
    canvas.lay(canvas.below(top, rows), colour, 0.12 * ripple, rows)


_FIELDS = (  # albedo, albedo of tufts or furrows, how much of it in rows, flowers, how often
    ((0.45, 0.57, 0.23), (0.25, 0.38, 0.14), 0.0, None, 0.34),  # grass
    ((0.74, 0.66, 0.40), (0.48, 0.47, 0.24), 0.0, None, 0.16),  # dry grass
    ((0.92, 0.79, 0.46), (0.68, 0.53, 0.28), 0.4, None, 0.18),  # wheat
    ((0.54, 0.43, 0.70), (0.33, 0.43, 0.22), 1.0, None, 0.12),  # lavender
    ((0.43, 0.55, 0.22), (0.24, 0.37, 0.14), 0.0, (0.88, 0.16, 0.10), 0.12),  # poppies
    ((0.46, 0.58, 0.26), (0.28, 0.41, 0.17), 0.0, (0.98, 0.93, 0.70), 0.08),  # daisies
)


def _field(rng: np.random.Generator, canvas: _Canvas, light: Light, horizon: float, top: float) -> None:
    rows = canvas.span(top - 0.03, 1)
    x, y = canvas.x, canvas.y[rows]
    deep = np.maximum(y - horizon, 0.012)
    far = 1 / (deep + 0.03)
    u, v = (x - 0.5) * far, 1.4 * far
    main, tuft, sown, flower, _ = _pick(rng, _FIELDS)
    patch = _noise(rng, 0.5 * u, 0.8 * v, 3)
    blades = _noise(rng, 34 * x / (deep + 0.4), 30 * np.sqrt(deep), 4, 0.75) * np.clip(0.3 + 2 * deep, 0, 1)
    vanish = float(rng.uniform(0.15, 0.85))
    furrow = np.sin(9 * (x - vanish) * far + 0.5 * patch) * np.clip(9 * deep - 0.2, 0, 1)
    albedo = _mix(tuft, main, _smooth(0.5 + 0.6 * (1 - sown) * patch + 0.6 * blades + 0.6 * sown * furrow))
    bend, wind = float(rng.uniform(0.1, 0.3)), float(rng.uniform(5, 9))
    if flower is not None:
        bloom = _noise(rng, 9 * x / (deep + 0.25), 20 * np.sqrt(deep), 2, 0.8) + 0.6 * patch
        albedo = _mix(albedo, flower, 0.9 * _smooth(3.5 * bloom - 0.9))
    elif bend > 0.2:  # a path winds to the horizon
        middle = 0.5 + 0.8 * (vanish - 0.5 + bend * np.sin(wind * deep + 1))
        track = _smooth(1.6 - 1.3 * np.abs(x - middle) / (0.012 + 0.16 * deep) + 0.4 * blades)
        albedo = _mix(albedo, (0.78, 0.68, 0.54), track)
    clouds = _noise(rng, 0.35 * u, 0.35 * v, 2)  # their shadows
    lit = albedo * _mix(light.shade, light.sun, np.clip(0.75 + 0.5 * clouds + 0.35 * blades, 0, 1))
    colour = _mix(lit, light.horizon, 0.3 * np.exp(-14 * deep) + 0 * x)
    lean = np.arctan2(deep + 0.02, x - vanish) if sown > 0.5 else 0.25 * patch - 0.3 * (x - 0.5)
    edge = top + 0.02 * _noise(rng, 2 * x, 0.0, 3)
    canvas.lay(canvas.below(edge, rows), colour, lean, rows)


_KINDS = (  # albedo, width over height, taper (1: a cone), how often
    ((0.27, 0.39, 0.13), 0.85, 0.0, 0.36),  # oak
    ((0.42, 0.50, 0.18), 0.66, 0.1, 0.18),  # birch
    ((0.13, 0.26, 0.17), 0.44, 0.9, 0.20),  # spruce
    ((0.22, 0.35, 0.13), 0.24, 0.4, 0.12),  # poplar
    ((0.78, 0.36, 0.10), 0.74, 0.1, 0.14),  # autumn
)


def _trees(rng: np.random.Generator, canvas: _Canvas, light: Light, top: float, count: int) -> None:
    """Trees on the ground below `top`, far and small to near and tall, at the sides more than in the middle."""
    grove = _pick(rng, _KINDS)  # most are of one kind
    for near in np.sort(rng.uniform(0, 1, count) ** 1.5):
        kind = grove if rng.random() < 0.7 else _pick(rng, _KINDS)
        height = (0.10 + 0.6 * float(near)) * float(rng.uniform(0.75, 1.2))
        x = 0.5 + float(rng.choice((-1, 1))) * float(rng.uniform(0.1, 0.5))
        _tree(rng, canvas, light, kind, x, top + (0.95 - top) * 0.8 * float(near), height)


def _tree(
    rng: np.random.Generator, canvas: _Canvas, light: Light, kind: Any, x: float, foot: float, height: float
) -> None:
    albedo, slim, taper, _ = kind
    wide = 0.5 * slim * height
    rows, columns = canvas.span(foot - 1.1 * height, foot + 0.1 * height), canvas.span(x - 2 * wide, x + 2 * wide)
    px, py = canvas.x[:, columns] - x, canvas.y[rows] - foot
    cx, cy = px / wide, (py + 0.55 * height) / (0.45 * height)  # the crown is a unit disc, cy = 1 at its foot
    ground = np.hypot((px + 0.5 * light.toward * wide) / (1.3 * wide), py / (0.06 * height))
    canvas.colour[rows, columns] *= (1 - 0.5 * _smooth(1.3 - ground))[..., None]  # the shadow it casts

    limbs = _noise(rng, 4.5 * px / height + x, 5.5 * py / height, 5, 0.62)
    leaves = _noise(rng, 26 * px / height, 26 * py / height, 3, 0.75)
    inside = 1 - np.hypot(cx / (1 - taper * np.clip(0.5 - 0.5 * cy, 0, 0.95)), cy) + 0.42 * limbs + 0.2 * leaves
    lit = 0.42 + 0.3 * light.toward * cx - 0.3 * cy + 0.75 * limbs + 0.45 * leaves
    crown = albedo * _mix(0.75 * light.shade, 1.15 * light.sun, np.clip(lit, 0, 1))
    stem = np.clip(1.5 - np.abs(px) / (0.02 * height), 0, 1) * (np.abs(py + 0.2 * height) < 0.2 * height)
    bark = np.array((0.30, 0.24, 0.20)) * _mix(
        light.shade, light.sun, np.clip(0.5 + 4 * light.toward * cx, 0, 1) + 0 * cy
    )

    canvas.lay(stem, bark, np.pi / 2, rows, columns)
    lean = np.pi / 2 + 0.4 * cx + 0 * cy if slim < 0.5 else np.arctan2(cx, -cy)  # round crowns are painted round
    canvas.lay(_smooth(inside * 9 * (height * canvas.size / 64) ** 0.5), crown, lean, rows, columns)


# -------------------------------------------------------------------------------------------------- the brush


class Strokes(NamedTuple):
    """Brush strokes in units of the picture's side, later ones above earlier ones; all arrays (count,)."""

    x: Floats
    y: Floats
    angle: Floats
    length: Floats  # half of it
    width: Floats  # half of it
    colour: Floats  # (count, 3)
    hairs: Floats  # (count, HAIRS) in [0, 1], how much paint each strand of the brush holds


def _plan(rng: np.random.Generator, landscape: Landscape) -> tuple[Strokes, Strokes]:
    """Broad strokes that cover the canvas, and fine ones where there is something to tell."""
    size = landscape.colour.shape[0]
    angle, detail = _brush_field(landscape)
    soft = _blur(landscape.colour, max(1, size // 128))
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
        colour = _palette(soft[cells]) + 0.028 * hue + 0.026 * chance[:, 3:4]
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
    dy, dx = np.gradient(_blur(landscape.colour.mean(axis=2, keepdims=True), radius)[..., 0] * size)
    # Orientations add as double angles; the contour's is the gradient's turned by a right angle, hence the minus.
    contour = _blur(np.stack([dy * dy - dx * dx, -2 * dx * dy, dx * dx + dy * dy], axis=2), radius)
    cos = contour[..., 0] + 0.5 * np.cos(2 * landscape.angle)
    sin = contour[..., 1] + 0.5 * np.sin(2 * landscape.angle)
    return 0.5 * np.arctan2(sin, cos), contour[..., 2] / (contour[..., 2] + 1.5)


def _stroke(picture: Floats, thickness: Floats, strokes: Strokes, margin: int) -> None:
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


def _weave(size: int) -> Floats:
    """Height of the canvas's threads, over and under in turn, (size, size)."""
    x, y = _grid(size)
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


def _palette(colour: Floats) -> Floats:
    """The painter's colour for each of the camera's (..., 3): a smooth field of shifts between the pigments."""
    total, shift = np.full(colour.shape[:-1], 1e-6, dtype=np.float32), np.zeros_like(colour)
    for seen, mixed in _PIGMENTS:
        weight = np.exp(((colour - seen) ** 2).sum(axis=-1) * np.float32(-0.5 / 0.10**2))
        total += weight
        shift += weight[..., None] * (mixed - seen)
    return np.clip(colour + shift / total[..., None], 0, 1)


# ---------------------------------------------------------------------------------------------- small picture maths


def _pick(rng: np.random.Generator, table: tuple[Any, ...]) -> Any:
    """A row; the last column says how often."""
    return table[int(rng.choice(len(table), p=[row[-1] for row in table]))]


def _mix(a: npt.ArrayLike, b: npt.ArrayLike, t: Floats) -> Floats:
    """From colour a (t = 0) to colour b (t = 1); t has no colour axis."""
    first, second = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    return first + (second - first) * np.asarray(t, dtype=np.float32)[..., None]


def _smooth(t: Floats) -> Floats:
    """The step from 0 to 1 without corners."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _blur(picture: Floats, radius: int) -> Floats:
    """Two boxes (2 radius + 1 wide) along each axis, edges repeated; picture (height, width, channels)."""
    for axis in (0, 1, 0, 1):
        wide = np.pad(picture, [(radius, radius) if axis == k else (0, 0) for k in range(3)], mode="edge")
        length = picture.shape[axis]
        slices = (wide[(slice(None),) * axis + (slice(k, k + length),)] for k in range(2 * radius + 1))
        picture = sum(slices, np.zeros_like(picture)) * np.float32(1 / (2 * radius + 1))
    return picture


def _halve(picture: Floats) -> Floats:
    return (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2]) / 4


def _to_bytes(picture: Floats) -> Bytes:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
