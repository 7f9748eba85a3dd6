"""Array functions for drawing: grids, noise, blur, colours."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Ints: TypeAlias = npt.NDArray[np.int64]
Bytes: TypeAlias = npt.NDArray[np.uint8]


def generator(seed: int, scene: int, purpose: str) -> np.random.Generator:
    """Return the random generator for one purpose in one scene; the numbers for each purpose are independent."""
    key = np.random.SeedSequence([seed, scene, *purpose.encode()])
    return np.random.Generator(np.random.Philox(key))


def grid(size: int) -> tuple[Floats, Floats]:
    """Return coordinates of pixel centres: x (1, size), from left (0) to right (1), and y (size, 1), downwards."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return centres[None, :], centres[:, None]


def noise(rng: np.random.Generator, u: Floats, v: Floats | float, octaves: int = 5, rough: float = 0.5) -> Floats:
    """Return fractal noise at the points (u, v), mostly within [-1, 1]; its longest wavelength is 1.

    Each further octave has about half the wavelength, and its amplitude is multiplied by `rough`.
    """
    total, weight, scale = np.zeros(1, dtype=np.float32), 1.0, 1.0
    for _ in range(octaves):
        lattice = rng.random((32, 32), dtype=np.float32)
        # Each octave is rotated further, so that the axes of the lattices do not form a visible grid.
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
    """Return a random row of `table`; the last column of the table holds the probabilities of the rows."""
    return table[int(rng.choice(len(table), p=[row[-1] for row in table]))]


def mix(a: npt.ArrayLike, b: npt.ArrayLike, t: Floats) -> Floats:
    """Interpolate linearly from colour `a` (t = 0) to colour `b` (t = 1); `t` has no colour axis."""
    first, second = np.asarray(a, dtype=np.float32), np.asarray(b, dtype=np.float32)
    return first + (second - first) * np.asarray(t, dtype=np.float32)[..., None]


def smooth(t: Floats) -> Floats:
    """Return a cubic step: 0 for t <= 0, rising smoothly to 1 for t >= 1."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def blur(image: Floats, radius: int) -> Floats:
    """Blur an image (height, width, channels) with two box filters per axis, each 2 * radius + 1 px wide.

    Beyond the edges of the image, the edge pixels are repeated.
    """
    for axis in (0, 1, 0, 1):
        wide = np.pad(image, [(radius, radius) if axis == k else (0, 0) for k in range(3)], mode="edge")
        length = image.shape[axis]
        slices = (wide[(slice(None),) * axis + (slice(k, k + length),)] for k in range(2 * radius + 1))
        image = sum(slices, np.zeros_like(image)) * np.float32(1 / (2 * radius + 1))
    return image


def halve(image: Floats) -> Floats:
    """Return an image of half the size; each pixel is the mean of a block of 2 x 2 pixels."""
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def to_bytes(image: Floats) -> Bytes:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
