"""Colour spaces declared by numbers: the chunks cICP, gAMA and cHRM of PNG, and the `nclx` data of HEIC and AVIF.

Code points are those of ITU-T H.273. High dynamic range (PQ and HLG, ITU-R BT.2100) is tone mapped.
"""

import struct
from functools import lru_cache
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt

from cyclestyle.images import bmff, icc, png
from cyclestyle.images.icc import Curve, Primaries

Array = npt.NDArray[np.float64]

_D65 = (0.3127, 0.3290)
_SRGB = Primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), _D65)
_NTSC = Primaries((0.63, 0.34), (0.31, 0.595), (0.155, 0.07), _D65)
_PRIMARIES = {
    1: _SRGB,
    2: _SRGB,  # unspecified
    4: Primaries((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), (0.310, 0.316)),
    5: Primaries((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),
    6: _NTSC,
    7: _NTSC,
    8: Primaries((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), (0.310, 0.316)),
    9: Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
    22: Primaries((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),
}
_PQ, _HLG = 16, 18
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_LIKE_SRGB = frozenset({1, 2, 6, 7, 13, 14, 15})  # viewers show the curves of video standards as that of sRGB
_NAMES = {_PQ: "PQ", _HLG: "HLG"}

_WHITE = 203.0  # cd/m2, diffuse white of HDR (ITU-R BT.2408)
_PEAK = 1000.0  # cd/m2, this light and brighter light become white
_KNEE = 0.5  # fraction of diffuse white up to which light is unchanged
_SRGB_GAMMA = 0.45455  # written by encoders for sRGB


class ColourTag(NamedTuple):
    """Colour space that a file declares by numbers: by ITU-T H.273 code points, or by gamma and chromaticities."""

    profile: bytes = b""  # ICC profile of it; empty for sRGB
    notes: tuple[str, ...] = ()  # to show to the photo's owner
    precedes_icc: bool = False  # whether it applies although the file has an ICC profile


def read(stream: IO[bytes]) -> ColourTag:
    """Read the colour space that a PNG, HEIC or AVIF file declares by numbers.

    Return an empty tag, which means sRGB, if the numbers are missing or damaged.
    """
    stream.seek(0)
    start = stream.read(12)
    try:
        if start.startswith(png.SIGNATURE):
            return _of_png(stream)
        if start[4:8] == b"ftyp":
            codes = bmff.colour_codes(stream)
            return ColourTag() if codes is None else _of_codes(*codes)
    except (struct.error, IndexError):
        pass
    return ColourTag()


def _of_png(stream: IO[bytes]) -> ColourTag:
    """Read the colour space of a PNG from the chunks that precede the pixel data.

    Chunk cICP takes precedence over chunk sRGB, and both over the chunks gAMA and cHRM. An ICC profile in the file is
    not read here; the caller uses it instead of the result, unless the result comes from a supported cICP.
    """
    found: dict[bytes, bytes] = {}
    for chunk in png.chunks(stream):
        if chunk.kind == b"IDAT":
            break
        if chunk.kind in (b"cICP", b"sRGB", b"gAMA", b"cHRM"):
            found[chunk.kind] = png.data_of(stream, chunk)
    if b"cICP" in found:
        primaries, transfer, matrix, full_range = struct.unpack(">4B", found[b"cICP"])
        tag = _of_codes(primaries, transfer)._replace(precedes_icc=True)
        if matrix == 0 and full_range:
            return tag
        return ColourTag(notes=("its cICP is not of RGB in full range: ignored",))
    if b"sRGB" in found or not found:
        return ColourTag()
    return _of_gamma(found.get(b"gAMA", b""), found.get(b"cHRM", b""))


@lru_cache(maxsize=16)
def _of_codes(primaries: int, transfer: int) -> ColourTag:
    curve = _curve(transfer)
    if primaries not in _PRIMARIES or curve is None:
        return ColourTag(notes=(f"colours of the code {primaries}/{transfer} are not supported: taken for sRGB",))
    notes = (f"HDR ({_NAMES[transfer]}) is tone mapped to SDR",) if transfer in _NAMES else ()
    if _PRIMARIES[primaries] == _SRGB and transfer in _LIKE_SRGB:
        return ColourTag()
    return ColourTag(icc.matrix_profile(_PRIMARIES[primaries], curve), notes)


@lru_cache(maxsize=16)
def _of_gamma(gamma: bytes, chromaticities: bytes) -> ColourTag:
    """Convert the data of PNG's gAMA and cHRM chunks to a colour space; empty data mean the values of sRGB."""
    exponent = struct.unpack(">I", gamma)[0] / 1e5 if gamma else _SRGB_GAMMA
    primaries = _SRGB
    if chromaticities:
        white, red, green, blue = ((x / 1e5, y / 1e5) for x, y in struct.iter_unpack(">ii", chromaticities))
        primaries = Primaries(red, green, blue, white)
    like_srgb = abs(exponent / _SRGB_GAMMA - 1) < 0.01
    if like_srgb and np.abs(np.subtract(primaries, _SRGB)).max() < 0.002:
        return ColourTag()
    if not 0.05 < exponent < 20:
        return ColourTag(notes=("its gAMA is out of range: taken for sRGB",))
    try:
        return ColourTag(icc.matrix_profile(primaries, _srgb_curve if like_srgb else _power(1 / exponent)))
    except ValueError:
        return ColourTag(notes=("its cHRM is invalid: taken for sRGB",))


def _curve(transfer: int) -> Curve | None:
    if transfer in _LIKE_SRGB:
        return _srgb_curve
    if transfer in _GAMMAS:
        return _power(_GAMMAS[transfer])
    return {_PQ: _pq_curve, _HLG: _hlg_curve}.get(transfer)


def _srgb_curve(values: Array) -> Array:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _power(exponent: float) -> Curve:
    def curve(values: Array) -> Array:
        light: Array = values**exponent
        return light

    return curve


def _pq_curve(values: Array) -> Array:
    """Convert PQ values in [0, 1] (SMPTE ST 2084) to linear light in [0, 1], tone mapped."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    root = values ** (1 / m2)
    return _tone_mapped(10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))


def _hlg_curve(values: Array) -> Array:
    """Convert HLG values in [0, 1] (ARIB STD-B67) to linear light in [0, 1], tone mapped.

    The tone mapping starts from the light of a display with a peak of 1000 cd/m2.
    """
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(values <= 0.5, values**2 / 3, (np.exp((values - c) / a) + b) / 12)
    return _tone_mapped(1000 * scene**1.2)


def _tone_mapped(nits: Array) -> Array:
    """Convert light in cd/m2 to multiples of `_WHITE` (diffuse white), and compress the highlights to at most 1.

    Multiples above `_KNEE` are compressed, after Reinhard (Photographic tone reproduction for digital images, 2002,
    eq. 4). The light `_PEAK` in cd/m2 becomes 1.
    """
    light = nits / _WHITE
    excess, peak = (np.maximum(value - _KNEE, 0) / (1 - _KNEE) for value in (light, np.float64(_PEAK / _WHITE)))
    compressed = _KNEE + (1 - _KNEE) * excess * (1 + excess / peak**2) / (1 + excess)
    return np.where(light <= _KNEE, light, compressed).clip(0, 1)
