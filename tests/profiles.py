"""ICC profiles for tests, and conversions of their colours to sRGB without a colour management library."""

import struct

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])

# Columns: XYZ of red, green and blue under D50.
SRGB = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)
WIDE = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])  # near Display P3
P3 = np.array([[0.51512, 0.29198, 0.15710], [0.24120, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
GAMMA = 563 / 256


def srgb_encoded(linear: np.ndarray) -> np.ndarray:
    """Encode linear light as sRGB values in [0, 1]; light beyond [0, 1] is clipped."""
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def srgb_decoded(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def wide_as_srgb(values: np.ndarray) -> np.ndarray:
    """Convert (..., 3) values in [0, 1] under the profile `wide` to sRGB values in [0, 1]."""
    return srgb_encoded(values**GAMMA @ WIDE.T @ np.linalg.inv(SRGB).T)


def adobe_as_srgb(values: np.ndarray) -> np.ndarray:
    """Convert (..., 3) values in [0, 1] under the profile `adobe` to sRGB values in [0, 1]."""
    return srgb_encoded(values**GAMMA @ ADOBE.T @ np.linalg.inv(SRGB).T)


def p3_as_srgb(values: np.ndarray) -> np.ndarray:
    """Convert (..., 3) values in [0, 1] under the profile `p3` to sRGB values in [0, 1]."""
    return srgb_encoded(srgb_decoded(values) @ P3.T @ np.linalg.inv(SRGB).T)


def srgb_as_adobe(values: np.ndarray) -> np.ndarray:
    """Convert (..., 3) sRGB values in [0, 1] to values in [0, 1] under the profile `adobe`."""
    return (srgb_decoded(values) @ SRGB.T @ np.linalg.inv(ADOBE).T).clip(0, 1) ** (1 / GAMMA)


def srgb_as_p3(values: np.ndarray) -> np.ndarray:
    """Convert (..., 3) sRGB values in [0, 1] to values in [0, 1] under the profile `p3`."""
    return srgb_encoded(srgb_decoded(values) @ SRGB.T @ np.linalg.inv(P3).T)


def lab(xyz: np.ndarray) -> np.ndarray:
    ratio = xyz / D50
    root = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1
    )


def lab_as_srgb(values: np.ndarray) -> np.ndarray:
    """Convert CIELAB values (..., 3) under illuminant D50 to sRGB values in [0, 1]."""
    middle = (values[..., 0] + 16) / 116
    root = np.stack([middle + values[..., 1] / 500, middle, middle - values[..., 2] / 200], axis=-1)
    ratio = np.where(root**3 > 216 / 24389, root**3, (116 * root - 16) * 27 / 24389)
    return srgb_encoded(ratio * D50 @ np.linalg.inv(SRGB).T)


def wide() -> bytes:
    """Wide-gamut RGB profile, which consists of a matrix and a curve."""
    return _matrix_profile(WIDE, _curve(GAMMA))


def adobe() -> bytes:
    """RGB profile with the primaries and the gamma of Adobe RGB (1998)."""
    return _matrix_profile(ADOBE, _curve(GAMMA))


def p3() -> bytes:
    """RGB profile with the primaries of Display P3 and the curve of sRGB."""
    return _matrix_profile(P3, _srgb_curve(1.0))


def nearly_srgb() -> bytes:
    """RGB profile that equals sRGB with 0.6 % less light: the brightest colours differ by 1 of 255."""
    return _matrix_profile(SRGB, _srgb_curve(0.994))


def linear_grey() -> bytes:
    """Grey profile whose values are proportional to light."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(1.0)})


def odd_inks(cmyk: np.ndarray) -> np.ndarray:
    """Convert inks in {0, 1} to sRGB values in [0, 1]; unlike real inks, ink 1 absorbs blue and ink 2 red."""
    return (1 - cmyk[..., [1, 2, 0]]) * (1 - cmyk[..., 3:])


def inks() -> bytes:
    """CMYK profile: a table of all 16 combinations of inks, with the colours of `odd_inks`."""
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), axis=-1).reshape(16, 4)
    values = lab(srgb_decoded(odd_inks(corners)) @ SRGB.T)
    coded = np.concatenate([values[:, :1] * 652.8, (values[:, 1:] + 128) * 256], axis=1).round().clip(0, 65535)
    table = struct.pack(">4s4xBBBx", b"mft2", 4, 3, 2)
    table += b"".join(struct.pack(">i", value << 16) for value in (1, 0, 0, 0, 1, 0, 0, 0, 1))
    table += struct.pack(">HH", 2, 2) + struct.pack(">HH", 0, 65535) * 4
    table += coded.astype(">u2").tobytes() + struct.pack(">HH", 0, 65535) * 3
    return _profile(b"scnr", b"CMYK", b"Lab ", {b"A2B0": table})


def _matrix_profile(matrix: np.ndarray, curve: bytes) -> bytes:
    tags = {f"{name}TRC".encode(): curve for name in "rgb"}
    tags |= {f"{name}XYZ".encode(): _xyz(matrix[:, number]) for number, name in enumerate("rgb")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": _xyz(D50), **tags}
    offset, table, body = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    size = offset + len(body)
    start = struct.pack(">I4sI4s4s4s12x4s", size, b"none", 0x02400000, kind, space, connection, b"acsp")
    return start.ljust(68, b"\0") + _xyz(D50)[8:] + bytes(48) + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    return struct.pack(">4s4xIH", b"curv", 1, round(gamma * 256))


def _srgb_curve(light: float) -> bytes:
    """Curve of sRGB, scaled so that the largest value has the given amount of light."""
    values = (srgb_decoded(np.linspace(0, 1, 1024)) * light * 65535).round().astype(">u2")
    return struct.pack(">4s4xI", b"curv", 1024) + values.tobytes()
