"""Small maths on pictures as arrays: grids, noise, blur, colours."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]
Bytes: TypeAlias = npt.NDArray[np.uint8]


def generator(seed: int, scene: int, purpose: str) -> np.random.Generator:
    key = np.random.SeedSequence([seed, scene, *purpose.encode()])
    return np.random.Generator(np.random.Philox(key))


def grid(size: int) -> tuple[Floats, Floats]:
    """Pixel centres, x (1, size) and y (size, 1), with 0 at the upper left edge and 1 at the lower right one."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return centres[None, :], centres[:, None]


def noise(rng: np.random.Generator, u: Floats, v: Floats | float, octaves: int = 5, rough: float = 0.5) -> Floats:
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


def pick(rng: np.random.Generator, table: tuple[Any, ...]) -> Any:
    """A row; the last column says how often."""
    return table[int(rng.choice(len(table), p=[row[-1] for row in table]))]


def mix(a: npt.ArrayLike, b: npt.ArrayLike, t: Floats) -> Floats:
    """From colour a (t = 0) to colour b (t = 1); t has no colour axis."""
    first, second = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    return first + (second - first) * np.asarray(t, dtype=np.float32)[..., None]


def smooth(t: Floats) -> Floats:
    """The step from 0 to 1 without corners."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def blur(picture: Floats, radius: int) -> Floats:
    """Two boxes (2 radius + 1 wide) along each axis, edges repeated; picture (height, width, channels)."""
    for axis in (0, 1, 0, 1):
        wide = np.pad(picture, [(radius, radius) if axis == k else (0, 0) for k in range(3)], mode="edge")
        length = picture.shape[axis]
        slices = (wide[(slice(None),) * axis + (slice(k, k + length),)] for k in range(2 * radius + 1))
        picture = sum(slices, np.zeros_like(picture)) * np.float32(1 / (2 * radius + 1))
    return picture


def halve(picture: Floats) -> Floats:
    return (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2]) / 4


def to_bytes(picture: Floats) -> Bytes:
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
