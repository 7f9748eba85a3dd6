"""ICC profiles made from the primaries and the transfer curve of a colour space."""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Curve = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]  # stored values to light, both from 0 to 1
Point = tuple[float, float]  # CIE 1931 chromaticity x, y

_D50 = np.array([0.9642, 1.0, 0.8249])  # white of ICC profiles, XYZ
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_ENTRIES = 4096  # entries of the table for a curve


class Primaries(NamedTuple):
    """CIE 1931 chromaticities of the primaries and the white point of an RGB colour space."""

    red: Point
    green: Point
    blue: Point
    white: Point


def matrix_profile(primaries: Primaries, curve: Curve) -> bytes:
    """Return an ICC profile (version 2.4) of the RGB colour space with these primaries and this transfer curve.

    The white point is adapted to D50 by Bradford's method.

    Raises:
        ValueError: the primaries do not form a triangle, or a value is out of range.
    """
    matrix = _to_xyz_d50(primaries)
    stored = (curve(np.linspace(0, 1, _ENTRIES)).clip(0, 1) * 65535).round().astype(">u2")
    table = struct.pack(">4s4xI", b"curv", _ENTRIES) + stored.tobytes()
    tags = {b"desc": _description("RGB"), b"cprt": b"text\0\0\0\0none\0", b"wtpt": _xyz(_D50)}
    tags |= {f"{name}XYZ".encode(): _xyz(matrix[:, number]) for number, name in enumerate("rgb")}

    start = 128 + 4 + 12 * (len(tags) + 3)
    entries, body = b"", b""
    for name, data in [*tags.items(), (b"rTRC", table)]:
        entries += struct.pack(">4sII", name, start + len(body), len(data))
        body += data + bytes(-len(data) % 4)  # tags begin at multiples of 4 bytes
    curve_at = entries[-8:]
    entries += b"gTRC" + curve_at + b"bTRC" + curve_at  # one table for all channels
    header = struct.pack(">I4sI4s4s4s12x4s", start + len(body), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    return header.ljust(68, b"\0") + _xyz(_D50)[8:] + bytes(48) + struct.pack(">I", len(tags) + 3) + entries + body


def _to_xyz_d50(primaries: Primaries) -> npt.NDArray[np.float64]:
    """Return the 3 x 3 matrix from linear RGB to XYZ under D50."""
    if any(not point[1] > 0 for point in primaries):
        raise ValueError("a chromaticity y is not positive")
    red, green, blue, white = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in primaries)
    unscaled = np.column_stack([red, green, blue])
    try:
        matrix = unscaled * np.linalg.solve(unscaled, white)
    except np.linalg.LinAlgError:
        raise ValueError("the primaries are no triangle") from None
    adapt = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    adapted: npt.NDArray[np.float64] = adapt @ matrix
    if not (np.isfinite(adapted).all() and np.abs(adapted).max() < 4):
        raise ValueError("the primaries are out of range")
    return adapted


def _xyz(values: npt.NDArray[np.float64]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _description(text: str) -> bytes:
    data = text.encode() + b"\0"
    return struct.pack(">4s4xI", b"desc", len(data)) + data + bytes(4 + 4 + 2 + 1 + 67)
