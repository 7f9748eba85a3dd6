"""Colour spaces named by numbers: PNG's cICP, gAMA and cHRM, `nclx` of AVIF and HEIC, and high dynamic range."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.images import bmff, colour_tags, file_formats, reading
from tests import profiles
from tests.images.test_png_faults import chunk

STEPS = np.linspace(0, 255, 7).astype(np.uint8)
PIXELS = np.stack(np.meshgrid(STEPS, STEPS, STEPS), axis=-1).reshape(7, 49, 3)
P3_POINTS = (31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)  # white, red, green, blue: x, y
SRGB_POINTS = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
AS_P3 = profiles.p3_as_srgb(PIXELS / 255) * 255


def write_png(path: Path, *chunks: bytes, **options: object) -> None:
    Image.fromarray(PIXELS).save(path, **options)
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def gamma(value: int) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", value))


def chromaticities(points: tuple[int, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *points))


def cicp(*codes: int) -> bytes:
    return chunk(b"cICP", bytes(codes))


def error(path: Path, expected: np.ndarray) -> float:
    """Return the largest difference to `expected`; training must read the same pixels as translation."""
    photo = reading.read(path)
    assert np.array_equal(np.asarray(reading.read_8_bit(path)), photo.pixels)
    assert np.array_equal(np.asarray(reading.read_8_bit(path, colour="raw")), PIXELS)
    return float(np.abs(photo.pixels - expected.clip(0, 255)).max())


@pytest.mark.parametrize(
    "chunks",
    [
        (gamma(45455), chromaticities(P3_POINTS)),
        (chromaticities(P3_POINTS),),
        (cicp(12, 13, 0, 1),),
        (cicp(12, 1, 0, 1),),
        (cicp(12, 13, 0, 1), chunk(b"sRGB", b"\0"), gamma(100000)),
    ],
    ids=["gamma-and-points", "points", "cicp", "cicp-video", "cicp-first"],
)
def test_wide_gamut_of_png_is_converted(tmp_path: Path, chunks: tuple[bytes, ...]) -> None:
    write_png(tmp_path / "x.png", *chunks)
    assert error(tmp_path / "x.png", AS_P3) <= 2
    assert np.abs(AS_P3.clip(0, 255) - PIXELS).max() > 30
    assert reading.read(tmp_path / "x.png").notes == ()


@pytest.mark.parametrize(("value", "exponent"), [(100000, 1.0), (55556, 1.8), (50000, 2.0)])
def test_gamma_of_png_is_converted(tmp_path: Path, value: int, exponent: float) -> None:
    write_png(tmp_path / "x.png", gamma(value))
    assert error(tmp_path / "x.png", profiles.srgb_encoded((PIXELS / 255) ** exponent) * 255) <= 2


def test_gamma_of_a_grey_png_is_converted(tmp_path: Path) -> None:
    greys = np.arange(256, dtype=np.uint8)[None]
    Image.fromarray(greys).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[:33] + gamma(100000) + content[33:])
    expected = profiles.srgb_encoded(greys / 255) * 255
    assert np.abs(reading.read(tmp_path / "x.png").pixels - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
    "chunks",
    [
        (gamma(45455),),
        (gamma(45455), chromaticities(SRGB_POINTS)),
        (chunk(b"sRGB", b"\0"), gamma(100000)),
        (cicp(1, 13, 0, 1), gamma(100000)),
        (cicp(2, 2, 0, 1),),
    ],
    ids=["gamma", "gamma-and-points", "srgb", "cicp", "unspecified"],
)
def test_png_tagged_as_srgb_is_unchanged(tmp_path: Path, chunks: tuple[bytes, ...]) -> None:
    write_png(tmp_path / "x.png", *chunks)
    assert error(tmp_path / "x.png", PIXELS) == 0
    assert reading.read(tmp_path / "x.png").notes == ()


def test_icc_profile_takes_precedence_over_gamma_but_not_over_cicp(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", gamma(100000), icc_profile=profiles.p3())
    assert error(tmp_path / "x.png", AS_P3) <= 2
    write_png(tmp_path / "x.png", cicp(1, 13, 0, 1), icc_profile=profiles.p3())
    assert error(tmp_path / "x.png", PIXELS) == 0


@pytest.mark.parametrize(
    ("chunks", "note"),
    [
        ((cicp(10, 13, 0, 1),), "colours of the code 10/13 are not supported: taken for sRGB"),
        ((cicp(9, 17, 0, 1),), "colours of the code 9/17 are not supported: taken for sRGB"),
        ((cicp(12, 13, 0, 0),), "its cICP is not of RGB in full range: ignored"),
        ((gamma(0),), "its gAMA is out of range: taken for sRGB"),
        ((chromaticities((31270, 32900) + (64000, 33000) * 3),), "its cHRM is invalid: taken for sRGB"),
        ((chromaticities((31270, 0, *P3_POINTS[2:])),), "its cHRM is invalid: taken for sRGB"),
    ],
)
def test_unsupported_colour_tags_are_ignored_with_a_note(tmp_path: Path, chunks: tuple[bytes, ...], note: str) -> None:
    write_png(tmp_path / "x.png", *chunks)
    assert error(tmp_path / "x.png", PIXELS) == 0
    assert reading.read(tmp_path / "x.png").notes == (note,)


def pq(nits: np.ndarray) -> np.ndarray:
    """Return the PQ values, in [0, 1], of light in cd/m2 (SMPTE ST 2084, inverse EOTF)."""
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_tone_mapped_with_a_note(tmp_path: Path, transfer: int, name: str) -> None:
    nits = np.array([0.0, 2, 20, 50, 100, 203, 400, 1000])
    scene = (nits / 1000) ** (1 / 1.2)
    hlg = np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log((12 * scene - 0.28466892).clip(1e-9)) + 0.55991073
    )
    values = (pq(nits) if transfer == 16 else hlg) * 255
    greys = np.repeat(values.round().astype(np.uint8)[None, :, None], 3, axis=2)
    Image.fromarray(greys).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[:33] + cicp(9, transfer, 0, 1) + content[33:])

    photo = reading.read(tmp_path / "x.png")
    assert photo.notes == (f"HDR ({name}) is tone mapped to SDR",)
    levels = photo.pixels[0].astype(int)
    assert (levels.max(axis=1) - levels.min(axis=1)).max() <= 1  # greys remain grey
    expected = profiles.srgb_encoded(nits / 203) * 255
    assert np.abs(levels[:5, 1] - expected[:5]).max() <= 6  # the rounding of the stored values is 3 %
    assert 205 < levels[5, 1] < levels[6, 1] < 250
    assert levels[7, 1] >= 253


@pytest.mark.parametrize("ending", [".avif", *({".heic"} & file_formats.ENDINGS)])
def test_nclx_of_avif_and_heic_is_converted(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    smooth = np.stack(np.meshgrid(np.linspace(40, 220, 64), np.linspace(30, 200, 64)), axis=-1)
    pixels = np.dstack([smooth, np.full((64, 64), 90)]).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    codes = with_codes(path, 12, 13)
    with reading.open_image(path, colour="raw") as opened:
        assert np.array_equal(opened.to_photo().pixels, stored)
    expected = (profiles.p3_as_srgb(stored / 255) * 255).clip(0, 255)
    assert codes == (12, 13)
    assert np.abs(reading.read(path).pixels - expected).max() <= 2
    assert np.abs(expected - stored).max() > 15


def with_codes(path: Path, primaries: int, transfer: int) -> tuple[int, int] | None:
    """Replace the colour codes in a HEIC or AVIF file; return the codes that the file has then."""
    content = bytearray(path.read_bytes())
    at = content.index(b"colrnclx") + 8
    content[at : at + 4] = struct.pack(">HH", primaries, transfer)
    path.write_bytes(content)
    with path.open("rb") as stream:
        return bmff.colour_codes(stream)


@pytest.mark.parametrize("transfer", [16, 18, 17])
def test_avif_with_hdr_or_unknown_transfer_code_is_read_with_one_note(tmp_path: Path, transfer: int) -> None:
    path = tmp_path / "x.avif"
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(path, quality=95)
    assert with_codes(path, 9, transfer) == (9, transfer)
    (note,) = reading.read(path).notes
    assert note.startswith("HDR (" if transfer != 17 else "colours of the code 9/17")


def test_colour_tag_search_in_damaged_avif_raises_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x.avif"
    Image.fromarray(np.full((16, 16, 3), 128, np.uint8)).save(path)
    whole, draws = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole[: draws.integers(40, len(whole))])
        damaged[draws.integers(8, len(damaged)) :][:4] = draws.bytes(4)
        path.write_bytes(damaged)
        with path.open("rb") as stream:
            assert isinstance(colour_tags.read(stream), colour_tags.ColourTag)
