"""PNG files with faults beside the pixels, which browsers ignore."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.images import decoding, png, reading
from tests import profiles

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
CUT = "its colour profile cannot be read: taken for sRGB"


def chunk(kind: bytes, data: bytes, *, fault: int = 0) -> bytes:
    """Return a chunk of a PNG; its checksum is wrong if `fault` is not 0."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ fault)


def write(path: Path, *chunks: bytes, last: bytes = b"") -> None:
    """Write `PIXELS` with more chunks after the header, and with `last` after the pixels."""
    Image.fromarray(PIXELS).save(path)
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:-12] + last + content[-12:])


@pytest.mark.parametrize(
    "data",
    [b"x\0\1abc", b"x\0\0no zlib", b"no zero byte", b"", b"\0\0" + zlib.compress(profiles.wide()), b"x\0\0"],
    ids=["method", "zlib", "name", "empty", "nameless", "no-data"],
)
def test_damaged_profile_chunk_is_ignored_with_a_note(tmp_path: Path, data: bytes) -> None:
    write(tmp_path / "x.png", chunk(b"iCCP", data))
    photo = reading.read(tmp_path / "x.png")
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == (CUT,)
    assert np.array_equal(np.asarray(reading.read_8_bit(tmp_path / "x.png")), PIXELS)


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize(
    "kind", [b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"prVt"]
)
def test_wrong_checksum_of_ancillary_chunk_is_ignored_with_a_note(
    tmp_path: Path, kind: bytes, after_pixels: bool
) -> None:
    part = chunk(kind, b"\0\1\2\3", fault=1)
    write(tmp_path / "x.png", *([] if after_pixels else [part]), last=part if after_pixels else b"")
    photo = reading.read(tmp_path / "x.png", metadata=True)
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == (f"the checksum of its part {kind.decode()} is wrong: the part is ignored",)
    assert reading.probe(tmp_path / "x.png")[:2] == (9, 6)


@pytest.mark.parametrize("kind", [b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"cICP", b"acTL"])
def test_wrong_length_of_ancillary_chunk_is_ignored_with_a_note(tmp_path: Path, kind: bytes) -> None:
    write(tmp_path / "x.png", chunk(kind, b"\0\1"))
    photo = reading.read(tmp_path / "x.png")
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == (f"its part {kind.decode()} has a wrong length: the part is ignored",)


@pytest.mark.parametrize("kind", [b"PLTE", b"IDAT"])
def test_wrong_checksum_of_critical_chunk_raises_image_error(tmp_path: Path, kind: bytes) -> None:
    write(tmp_path / "x.png", chunk(kind, b"\0\1\2", fault=1))
    with pytest.raises(decoding.ImageError):
        reading.read(tmp_path / "x.png")


def test_png_with_long_texts_is_read_without_a_note(tmp_path: Path) -> None:
    long = b"a" * (3 * 2**20)
    write(
        tmp_path / "x.png",
        chunk(b"tEXt", b"comment\0" + long),
        chunk(b"zTXt", b"comment\0\0" + zlib.compress(long)),
        chunk(b"iTXt", b"comment\0\1\0\0\0" + zlib.compress(long)),
    )
    photo = reading.read(tmp_path / "x.png", metadata=True)
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == ()
    assert np.array_equal(np.asarray(reading.read_8_bit(tmp_path / "x.png")), PIXELS)


def test_profile_of_several_megabytes_is_used(tmp_path: Path) -> None:
    profile = profiles.wide() + bytes(3 * 2**20)
    profile = struct.pack(">I", len(profile)) + profile[4:]
    write(tmp_path / "x.png", chunk(b"iCCP", b"x\0\0" + zlib.compress(profile)))
    expected = (profiles.wide_as_srgb(PIXELS / 255) * 255).round()
    photo = reading.read(tmp_path / "x.png")
    assert photo.notes == ()
    assert np.abs(photo.pixels - expected).max() <= 2


def test_oversized_compressed_chunks_of_png_are_skipped_with_a_note(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(png.MAX_TEXT + 1))
    write(tmp_path / "x.png", chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iCCP", b"x\0\0" + bomb))
    photo = reading.read(tmp_path / "x.png")
    assert np.array_equal(photo.pixels, PIXELS)
    assert photo.notes == ("a text in its part zTXt is too long: the text is ignored", CUT)


def test_16_bit_png_with_faulty_ancillary_chunk_is_read(tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")
    pixels = np.random.default_rng(1).integers(0, 65536, (6, 9, 3), dtype=np.uint16)
    content = bytes(imagecodecs.png_encode(pixels))
    (tmp_path / "x.png").write_bytes(content[:33] + chunk(b"gAMA", b"\0\1\2\3", fault=9) + content[33:])
    photo = reading.read(tmp_path / "x.png")
    assert np.array_equal(photo.pixels, pixels)
    assert photo.notes == ("the checksum of its part gAMA is wrong: the part is ignored",)


def test_intact_png_is_decoded_from_its_own_stream_without_a_copy(tmp_path: Path) -> None:
    write(tmp_path / "x.png", chunk(b"gAMA", struct.pack(">I", 45455)))
    with (tmp_path / "x.png").open("rb") as stream:
        assert png.without_faults(stream) == (stream, ())
        assert stream.tell() == 0
