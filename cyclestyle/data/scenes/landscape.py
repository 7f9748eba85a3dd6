"""Layout and true colours of a scene: sky, hills, water, fields, trees."""

from typing import Any, NamedTuple

import numpy as np

from cyclestyle.data.scenes.raster import Floats, generator, grid, mix, noise, pick, smooth


class Landscape(NamedTuple):
    """Colours and brush directions of a scene, shared by its photo and its painting."""

    colour: Floats  # (size, size, 3) in [0, 1], before lens and sensor
    angle: Floats  # (size, size) brush direction in radians; 0 is horizontal


class Light(NamedTuple):
    """Light in a scene: its colours, each of shape (3,), and the position of the sun."""

    zenith: Floats
    horizon: Floats
    sun: Floats  # factor on the albedo of lit surfaces
    shade: Floats  # factor on the albedo of surfaces in shadow
    sun_x: float  # in units of the image's width
    sun_height: float  # above the horizon, in units of the sky's height; below 0.3 the sun is visible in the image
    cover: float  # fraction of the sky covered by clouds, 0 to 1
    toward: int  # 1: the sun is on the right, -1: on the left


_MOODS = (  # zenith, horizon, sun, shade, height of the sun, range of cloud cover, probability
    # rows: noon, evening, dawn, overcast, showers
    ((0.22, 0.43, 0.75), (0.72, 0.83, 0.91), (1.16, 1.08, 0.92), (0.38, 0.46, 0.56), 0.90, (0.10, 0.60), 0.36),
    ((0.40, 0.48, 0.68), (1.00, 0.80, 0.56), (1.26, 0.95, 0.60), (0.37, 0.39, 0.52), 0.12, (0.20, 0.55), 0.24),
    ((0.46, 0.53, 0.74), (0.96, 0.78, 0.73), (1.12, 0.92, 0.82), (0.42, 0.45, 0.58), 0.08, (0.10, 0.50), 0.14),
    ((0.60, 0.64, 0.69), (0.84, 0.85, 0.85), (0.94, 0.93, 0.91), (0.55, 0.58, 0.61), 0.90, (0.70, 0.90), 0.12),
    ((0.28, 0.35, 0.46), (0.78, 0.79, 0.76), (1.14, 1.04, 0.82), (0.34, 0.38, 0.47), 0.90, (0.60, 0.80), 0.14),
)


def lay_out(scene: int, size: int, seed: int) -> Landscape:
    """Return the landscape with number `scene` at `size` x `size` px; the layout is the same at every size."""
    rng = generator(seed, scene, "layout")
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
    *colours, height, cover, _ = pick(rng, _MOODS)
    drift = rng.normal(0, 0.02, (4, 3))  # slight variation within a mood
    zenith, horizon, sun, shade = (np.array(colours) + drift).astype(np.float32)
    sun_x = float(rng.uniform(0.1, 0.9))
    height *= float(rng.uniform(0.7, 1.5))
    return Light(zenith, horizon, sun, shade, sun_x, height, float(rng.uniform(*cover)), 1 if sun_x > 0.5 else -1)


class _Canvas:
    """A scene under construction; later layers cover earlier ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.x, self.y = grid(size)
        self.colour = np.zeros((size, size, 3), dtype=np.float32)
        self.angle = np.zeros((size, size), dtype=np.float32)

    def span(self, first: float, last: float) -> slice:
        """Return the slice of pixel rows or columns that an interval touches.

        The interval from `first` to `last` is in units of the image's side.
        """
        start, stop = (min(max(int(at * self.size), 0), self.size) for at in (first, last + 1 / self.size))
        return slice(start, max(start, stop))

    def lay(
        self, alpha: Floats, colour: Floats, angle: Floats | float, rows: slice, columns: slice = slice(None)
    ) -> None:
        """Blend `colour` with opacity `alpha` into a region of the drawn image, which `rows` and `columns` select.

        Where `alpha` is above 0.5, the brush angle of the pixels becomes `angle`.
        """
        window = (rows, columns)
        self.colour[window] += alpha[..., None] * (colour - self.colour[window])
        self.angle[window] = np.where(alpha > 0.5, angle, self.angle[window])

    def below(self, line: Floats | float, rows: slice) -> Floats:
        """Return which fraction of each pixel in `rows` lies below a line, as an array (rows, columns).

        Args:
            line: y coordinate of the line in each column, or one y coordinate for all columns.
        """
        return np.asarray(np.clip((self.y[rows] - line) * self.size + 0.5, 0, 1) + 0 * self.x)

    def lit(self, relief: Floats, light: Light) -> Floats:
        """Return how much `relief` faces the sun at each pixel; negative values face away from it.

        `relief` holds the height of the ground at each pixel, as a fraction of the image's side.
        """
        dy, dx = np.gradient(relief, axis=0), np.gradient(relief, axis=1)
        return np.asarray((0.5 * dy - light.toward * dx) * self.size)


def _sky(rng: np.random.Generator, size: int, light: Light, horizon: float) -> _Canvas:
    canvas = _Canvas(size)
    rows = canvas.span(0, horizon + 0.04)
    x, y = canvas.x, canvas.y[rows]
    up = np.clip((horizon - y) / horizon, 0, 1)
    colour = mix(light.horizon, light.zenith, up**0.8 + 0 * x)
    away = np.hypot(x - light.sun_x, y - horizon + light.sun_height * horizon)
    colour += (np.exp(-3.2 * away) * 0.45)[..., None] * (light.sun - 0.4)
    if light.sun_height < 0.3:
        colour += np.clip(1.5 - 36 * away, 0, 1)[..., None] * 0.6

    # Clouds lie on a plane overhead: they shrink and flatten towards the horizon.
    far = 1 / (0.9 * up + 0.22)
    stretch, drift = float(rng.uniform(1.4, 3.0)), float(rng.uniform(0, 9))
    cloud = noise(rng, (x - 0.5) * far * 1.5 + drift, far * stretch, 6, 0.55)
    body = cloud - 0.42 + light.cover
    density = smooth(body / 0.45) * smooth(5 * up + 0.15)
    lit = np.clip(0.72 - 0.03 * canvas.lit(cloud, light) - 0.4 * smooth((body - 0.3) / 0.8), 0, 1)
    white = np.clip(0.22 + 0.76 * light.sun, 0, 1)
    gray = 0.6 * light.shade + 0.25 * light.horizon + 0.15 * light.zenith
    colour += (0.92 * density)[..., None] * (mix(gray, white, lit) - colour)
    swirls = 0.75 * noise(rng, 2.2 * x, 3.0 * y, 2)
    canvas.lay(np.ones_like(cloud), colour, swirls, rows)
    return canvas


_FOREST, _MEADOW, _ROCK, _SNOW = (0.25, 0.35, 0.18), (0.48, 0.54, 0.26), (0.46, 0.44, 0.44), (0.96, 0.97, 1.0)


def _hills(rng: np.random.Generator, canvas: _Canvas, light: Light, horizon: float, *, alpine: bool) -> None:
    """Draw ridges of hills, far ones first and bluer (aerial perspective); with `alpine`, the farthest is snowy."""
    count = int(rng.integers(2, 5))
    haze = 0.55 * light.horizon + 0.45 * light.zenith
    for k in range(count):
        near, peak = (k + 1) / count, alpine and k == 0
        shape = noise(rng, canvas.x * (2.2 if peak else 1.2 + 0.6 * near), float(k), 6, 0.42)
        rise = float(rng.uniform(0.16, 0.26)) if peak else float(rng.uniform(0.05, 0.17)) * (1.2 - 0.7 * near)
        line = horizon + 0.02 - 0.06 * (1 - near) - rise * (1.1 - 1.6 * np.abs(shape) if peak else 0.5 + shape)
        rows = canvas.span(float(line.min()) - 0.03, horizon + 0.04)
        deep = np.maximum(canvas.y[rows] - line, 0)
        wood = noise(rng, 9 * canvas.x, 20 * canvas.y[rows], 4, 0.6)
        folds = noise(rng, 5 * canvas.x + 2 * deep, 5 * canvas.y[rows], 5, 0.6)
        albedo = mix(_FOREST, _MEADOW, smooth(1.6 * wood + float(rng.uniform(0, 0.9))))
        if peak:
            albedo = mix(_ROCK, _FOREST, smooth(9 * deep - 0.7 + 0.4 * wood))
            albedo = mix(albedo, _SNOW, smooth(1.2 - 13 * deep + 1.5 * folds))
        lit = np.clip(0.58 - 0.07 * canvas.lit(folds, light) + 0.2 * wood, 0, 1)
        colour = mix(
            albedo * mix(light.shade, light.sun, lit),
            haze,
            0.68 * (1 - near) ** 0.8 + 0.08 + 1.2 * np.minimum(deep, 0.1),
        )
        slope = np.arctan(np.gradient(line[0]) * canvas.size)
        canvas.lay(canvas.below(line, rows), colour, slope, rows)


def _woods(rng: np.random.Generator, canvas: _Canvas, light: Light, base: float) -> None:
    """Draw distant trees at the foot of the hills, y = `base`, in a row with gaps."""
    height = 0.05 * smooth(0.35 + 1.3 * noise(rng, 1.3 * canvas.x, 0.0, 3))
    rows = canvas.span(base - 0.1, base + 0.02)
    crowns = noise(rng, 26 * canvas.x, 20 * canvas.y[rows], 4, 0.65)
    top = base + 0.012 - height * (0.75 + 0.5 * noise(rng, 22 * canvas.x, 0.0, 3)) * (1 + 0.3 * crowns)
    lit = np.clip(0.75 - (canvas.y[rows] - top) * 14 + 0.6 * crowns, 0, 1)
    colour = mix(_FOREST * mix(0.9 * light.shade, light.sun, lit), light.horizon, 0.2 + 0 * lit)
    belt = canvas.below(top, rows) * (1 - canvas.below(base + 0.015, rows))
    canvas.lay(belt, colour, np.pi / 2, rows)


def _water(rng: np.random.Generator, canvas: _Canvas, light: Light, top: float) -> None:
    rows = canvas.span(top - 0.01, 1)
    x, y, size = canvas.x, canvas.y[rows], canvas.size
    deep = np.clip(y - top, 0, 1)
    ripple = noise(rng, 2.2 * x / (deep + 0.15), 2.6 / (deep + 0.07), 4, 0.6)
    squeeze = min(0.9, 0.9 * top / (1 - top))  # keeps the reflected rows inside the image
    mirrored = np.clip((top - squeeze * deep + ripple * (0.004 + 0.07 * deep)) * size, 0, size - 1).astype(np.int64)
    columns = np.clip((x + 0.012 * ripple) * size, 0, size - 1).astype(np.int64)
    body = np.array((0.16, 0.33, 0.40)) * (0.45 + 0.55 * light.sun)
    colour = mix(0.95 * canvas.colour[mirrored, columns], body, np.clip(0.08 + 0.62 * deep + 0.25 * ripple, 0, 1))
    glitter = np.exp(-(((x - light.sun_x) / (0.04 + 0.25 * deep)) ** 2)) * smooth(3.5 * ripple)
    colour += (glitter * (0.5 if light.sun_height < 0.3 else 0.1))[..., None] * light.sun
    canvas.lay(canvas.below(top, rows), colour, 0.12 * ripple, rows)


_FIELDS = (  # albedo, albedo of tufts or furrows, weight of furrows, albedo of flowers, probability
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
    main, tuft, sown, flower, _ = pick(rng, _FIELDS)
    patch = noise(rng, 0.5 * u, 0.8 * v, 3)
    blades = noise(rng, 34 * x / (deep + 0.4), 30 * np.sqrt(deep), 4, 0.75) * np.clip(0.3 + 2 * deep, 0, 1)
    vanish = float(rng.uniform(0.15, 0.85))
    furrow = np.sin(9 * (x - vanish) * far + 0.5 * patch) * np.clip(9 * deep - 0.2, 0, 1)
    albedo = mix(tuft, main, smooth(0.5 + 0.6 * (1 - sown) * patch + 0.6 * blades + 0.6 * sown * furrow))
    bend, wind = float(rng.uniform(0.1, 0.3)), float(rng.uniform(5, 9))
    if flower is not None:
        bloom = noise(rng, 9 * x / (deep + 0.25), 20 * np.sqrt(deep), 2, 0.8) + 0.6 * patch
        albedo = mix(albedo, flower, 0.9 * smooth(3.5 * bloom - 0.9))
    elif bend > 0.2:  # a path winds to the horizon
        middle = 0.5 + 0.8 * (vanish - 0.5 + bend * np.sin(wind * deep + 1))
        track = smooth(1.6 - 1.3 * np.abs(x - middle) / (0.012 + 0.16 * deep) + 0.4 * blades)
        albedo = mix(albedo, (0.78, 0.68, 0.54), track)
    clouds = noise(rng, 0.35 * u, 0.35 * v, 2)  # shadows of clouds
    lit = albedo * mix(light.shade, light.sun, np.clip(0.75 + 0.5 * clouds + 0.35 * blades, 0, 1))
    colour = mix(lit, light.horizon, 0.3 * np.exp(-14 * deep) + 0 * x)
    lean = np.arctan2(deep + 0.02, x - vanish) if sown > 0.5 else 0.25 * patch - 0.3 * (x - 0.5)
    edge = top + 0.02 * noise(rng, 2 * x, 0.0, 3)
    canvas.lay(canvas.below(edge, rows), colour, lean, rows)


_KINDS = (  # albedo, width over height, taper (1: a cone), probability
    ((0.27, 0.39, 0.13), 0.85, 0.0, 0.36),  # oak
    ((0.42, 0.50, 0.18), 0.66, 0.1, 0.18),  # birch
    ((0.13, 0.26, 0.17), 0.44, 0.9, 0.20),  # spruce
    ((0.22, 0.35, 0.13), 0.24, 0.4, 0.12),  # poplar
    ((0.78, 0.36, 0.10), 0.74, 0.1, 0.14),  # autumn
)


def _trees(rng: np.random.Generator, canvas: _Canvas, light: Light, top: float, count: int) -> None:
    """Draw `count` trees with their feet at y = `top` or below, far and small trees first.

    No tree has its foot in the middle fifth of the image's width.
    """
    grove = pick(rng, _KINDS)  # most trees are of one kind
    for near in np.sort(rng.uniform(0, 1, count) ** 1.5):
        kind = grove if rng.random() < 0.7 else pick(rng, _KINDS)
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
    canvas.colour[rows, columns] *= (1 - 0.5 * smooth(1.3 - ground))[..., None]  # cast shadow

    limbs = noise(rng, 4.5 * px / height + x, 5.5 * py / height, 5, 0.62)
    leaves = noise(rng, 26 * px / height, 26 * py / height, 3, 0.75)
    inside = 1 - np.hypot(cx / (1 - taper * np.clip(0.5 - 0.5 * cy, 0, 0.95)), cy) + 0.42 * limbs + 0.2 * leaves
    lit = 0.42 + 0.3 * light.toward * cx - 0.3 * cy + 0.75 * limbs + 0.45 * leaves
    crown = albedo * mix(0.75 * light.shade, 1.15 * light.sun, np.clip(lit, 0, 1))
    stem = np.clip(1.5 - np.abs(px) / (0.02 * height), 0, 1) * (np.abs(py + 0.2 * height) < 0.2 * height)
    bark = np.array((0.30, 0.24, 0.20)) * mix(
        light.shade, light.sun, np.clip(0.5 + 4 * light.toward * cx, 0, 1) + 0 * cy
    )

    canvas.lay(stem, bark, np.pi / 2, rows, columns)
    # Strokes are nearly vertical in slim crowns, and follow the outline of round crowns.
    lean = np.pi / 2 + 0.4 * cx + 0 * cy if slim < 0.5 else np.arctan2(cx, -cy)
    canvas.lay(smooth(inside * 9 * (height * canvas.size / 64) ** 0.5), crown, lean, rows, columns)
