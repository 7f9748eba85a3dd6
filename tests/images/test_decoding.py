"""Decoding: every file gives an upright RGB image, or an error that contains the path of the file."""

import os
import pickle
import random
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from cyclestyle.errors import DataError
from cyclestyle.images import decoding, reading, tensors
from tests.forked import in_a_child


def noise(width: int = 12, height: int = 8, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = noise(32, 16) if ending != "jpg" else np.kron(noise(4, 2), np.ones((16, 16, 1), np.uint8))
    stored = {  # orientation -> pixels in the file
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{ending}"
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(ending, {})
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(path, exif=exif, **lossless)
    pixels = np.asarray(reading.read_8_bit(path)).astype(int)
    assert np.abs(pixels - upright).max() <= (4 if ending == "jpg" else 0)  # JPEG preserves blocks of one colour
    assert reading.probe(path)[:2] == upright.shape[1::-1]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_image_keeps_its_brightness(tmp_path: Path, ending: str) -> None:
    grey = np.array([[0, 257, 128 * 257, 200 * 257, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"x.{ending}")
    assert np.asarray(reading.read_8_bit(tmp_path / f"x.{ending}"))[0, :, 1].tolist() == [0, 1, 128, 200, 255]


def test_transparent_pixels_are_composited_over_white_by_default(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert np.asarray(reading.read_8_bit(tmp_path / "rgba.png"))[0].tolist() == [[255, 0, 0], [255] * 3, [127] * 3]
    Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), mode=None).save(tmp_path / "la.png")
    assert np.asarray(reading.read_8_bit(tmp_path / "la.png"))[0].tolist() == [[0] * 3, [255] * 3]


def test_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert np.asarray(reading.read_8_bit(tmp_path / "p.png"))[0].tolist() == [[10, 20, 30], [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_every_colour_mode_is_converted_to_rgb(mode: str) -> None:
    converted = decoding.to_rgb(Image.new(mode, (3, 2)))
    assert (converted.mode, converted.size) == ("RGB", (3, 2))


@pytest.mark.parametrize("background", ["#808080", "white", "black", "rgb(10, 200, 30)"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_composited_over_given_background(tmp_path: Path, mode: str, background: str) -> None:
    colour = np.array({"#808080": [128] * 3, "white": [255] * 3, "black": [0] * 3}.get(background, [10, 200, 30]))
    alpha = np.array([[0.0, 1.0]]) if mode == "P" else np.array([[0.0, 85 / 255, 1.0]])
    colours = np.array([[[40, 40, 40]] * alpha.shape[1]])
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([40, 40, 40] * 2)
        image.putpixel((1, 0), 1)
        image.save(tmp_path / "x.png", transparency=0)
    else:
        values = np.dstack([colours[..., : len(mode) - 1], np.rint(alpha * 255)]).astype(np.uint8)
        Image.fromarray(values, mode).save(tmp_path / "x.png")
    expected = colours * alpha[..., None] + colour * (1 - alpha[..., None])
    pixels = np.asarray(reading.read_8_bit(tmp_path / "x.png", transparent_as=background)).astype(float)
    assert np.abs(pixels - expected).max() <= 1


def test_colour_parser_ignores_alpha_and_rejects_unknown_names() -> None:
    assert decoding.colour("#ff000080") == (255, 0, 0)
    for text in ("greenish", "", "#12", "x" * 1000):
        with pytest.raises(ValueError):  # noqa: PT011
            decoding.colour(text)


def test_cmyk_and_one_bit_images_keep_their_colours(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 128, 0, 64]]], np.uint8)
    Image.fromarray(inks, "CMYK").save(tmp_path / "x.tif")
    expected = (255 - inks[..., :3].astype(float)) * (255 - inks[..., 3:]) / 255
    assert np.abs(np.asarray(reading.read_8_bit(tmp_path / "x.tif")) - expected).max() <= 1
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").mode == "1"
    assert np.asarray(reading.read_8_bit(tmp_path / "x.png")).tolist() == [[[255] * 3, [0] * 3]]


FRAMES = [Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (40, 200)]
ANIMATIONS = {"gif": {}, "webp": {"lossless": True}, "png": {}, "tif": {}}


@pytest.mark.parametrize("ending", ANIMATIONS)
def test_only_first_frame_of_an_animation_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    FRAMES[0].save(path, save_all=True, append_images=FRAMES[1:], **ANIMATIONS[ending])
    assert np.array_equal(np.asarray(reading.read_8_bit(path)), np.asarray(FRAMES[0]))
    assert reading.probe(path) == decoding.ImageInfo(8, 6, animated=True, decoded=True)
    FRAMES[0].save(path)
    assert reading.probe(path) == decoding.ImageInfo(8, 6, animated=False, decoded=True)


def test_mpo_previews_do_not_count_as_animation(tmp_path: Path) -> None:
    FRAMES[0].save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=FRAMES[1:])
    assert Image.open(tmp_path / "x.jpg").n_frames == 2
    assert not reading.probe(tmp_path / "x.jpg").animated


def png_chunks(whole: bytes) -> list[tuple[int, bytes, int]]:
    """Return the offset, kind and data length in bytes of each chunk in a PNG file."""
    chunks, at = [], 8
    while at < len(whole):
        length = int.from_bytes(whole[at : at + 4], "big")
        chunks.append((at, whole[at + 4 : at + 8], length))
        at += length + 12
    return chunks


def test_png_with_a_wrong_checksum_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    smooth = np.add.outer(np.arange(200), np.arange(200)).astype(np.uint8)
    Image.fromarray(smooth).save(path)
    whole, undetected = path.read_bytes(), 0
    for at in range(8, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x55
        path.write_bytes(damaged)
        with suppress(OSError, SyntaxError), Image.open(path) as opened:
            undetected += not np.array_equal(np.asarray(opened), smooth)
        for function in (reading.read_8_bit, reading.probe):
            with pytest.raises(decoding.ImageError):
                function(path)
    assert undetected > 50  # damaged images that Pillow alone would return without an error

    path.write_bytes(whole[:-14] + bytes([whole[-14] ^ 1]) + whole[-13:])
    with pytest.raises(decoding.ImageError, match=r"x\.png: .*checksum of a part b'IDAT' is wrong"):
        reading.read_8_bit(path)


def test_truncated_png_is_rejected_but_png_with_trailing_bytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(noise(60, 50)).save(path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 4, len(whole) - 12, len(whole) - 13, len(whole) // 2, 60, 33, 20, 9, 8):
        path.write_bytes(whole[:length])
        with pytest.raises(decoding.ImageError):
            reading.probe(path)
    path.write_bytes(whole + b"trailing data of other programs")
    assert reading.probe(path).decoded


@pytest.mark.parametrize(("ending", "settings"), [
    ("jpg", {}), ("jpg", {"progressive": True}), ("png", {}), ("webp", {}), ("webp", {"lossless": True}), ("bmp", {}),
    ("tif", {}), ("tif", {"compression": "tiff_lzw"}), ("gif", {}),
])  # fmt: skip
def test_file_truncated_at_any_length_is_rejected(tmp_path: Path, ending: str, settings: dict[str, object]) -> None:
    path = tmp_path / f"x.{ending}"
    Image.fromarray(noise(60, 50)).save(path, **settings)
    whole = path.read_bytes()
    for length in (len(whole) - 30, len(whole) // 2, len(whole) // 10, 30, 3):
        path.write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for function in (reading.read_8_bit, reading.probe):
                with pytest.raises(decoding.ImageError):
                    function(path)


def test_image_with_too_many_pixels_is_rejected_without_decoding(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (4000, 3000)).save(path)
    whole = path.read_bytes()
    at = next(at for at, kind, _ in png_chunks(whole) if kind == b"IDAT")
    path.write_bytes(whole[: at + 40])  # pixel data cut off: undecodable
    assert reading.probe(path, max_pixels=11_999_999) == decoding.ImageInfo(4000, 3000, animated=False, decoded=False)
    with pytest.raises(decoding.ImageError, match="4,000 x 3,000 pixels are more than 11,999,999"):
        reading.read_8_bit(path, max_pixels=11_999_999)
    with pytest.raises(decoding.ImageError, match="damaged"):
        reading.probe(path, max_pixels=12_000_000)


def test_pixel_limit_of_pillow_does_not_apply(tmp_path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(tmp_path / "x.png")  # Pillow's default warns above 89.5 megapixels
    Image.new("1", (1, 1)).save(tmp_path / "y.png")
    # Pillow's default raises an error above 179 megapixels.
    header = struct.pack(">4sIIBBBBB", b"IHDR", 20_000, 9_000, 1, 0, 0, 0, 0)
    whole = (tmp_path / "y.png").read_bytes()
    (tmp_path / "y.png").write_bytes(whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reading.probe(tmp_path / "x.png", max_pixels=90_000_000).decoded
        assert reading.probe(tmp_path / "y.png") == decoding.ImageInfo(20_000, 9_000, animated=False, decoded=False)


def test_pillow_flag_load_truncated_images_is_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(60, 50)).save(tmp_path / "x.jpg")
    (tmp_path / "x.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:-200])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for function in (reading.read_8_bit, reading.probe):
        with pytest.raises(decoding.ImageError, match="truncated"):
            function(tmp_path / "x.jpg")


def test_floating_point_colours_are_rejected(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "x.tif")
    for function in (reading.read_8_bit, reading.probe):
        with pytest.raises(DataError, match=r"x\.tif: .*floating-point"):
            function(tmp_path / "x.tif")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\x00"], ids=repr)
def test_error_for_a_file_that_is_no_image_contains_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/x\.jpg: "):
        reading.read_8_bit(tmp_path / "x.jpg")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif"])
def test_file_with_damaged_bytes_is_read_or_raises_data_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    Image.fromarray(noise(40, 30)).save(path, **({} if ending == "bmp" else {"exif": exif}))
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 4])):
            damaged[rng.randrange(min(len(damaged), rng.choice([150, len(damaged)])))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice([len(damaged), rng.randrange(len(damaged))])])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(DataError):
                assert reading.read_8_bit(path).mode == "RGB"


def test_damaged_exif_is_ignored_except_by_earlier_decoder(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "x.png", exif=b"Exif\0\0garbage!")
    with pytest.raises(DataError, match=r"x\.png: .*header b'garbage!'"):
        reading.read_8_bit(tmp_path / "x.png", decoder="earlier")
    assert np.array_equal(np.asarray(reading.read_8_bit(tmp_path / "x.png")), noise())


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>404", b"  \n<HTML>"])
def test_error_for_an_html_file_mentions_a_web_page(tmp_path: Path, page: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(page)
    with pytest.raises(DataError, match="a web page, not a picture"):
        reading.read_8_bit(tmp_path / "x.jpg")


def test_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")

    def read_all() -> list[str]:
        reasons = []
        for name in ("pipe.png", "zero.png", "gone.png", "."):
            with pytest.raises(decoding.ImageError) as caught:
                reading.read_8_bit(tmp_path / name)
            reasons.append(caught.value.reason)
        return reasons

    assert in_a_child(read_all) == [
        "not a regular file but a pipe",
        "not a regular file but a device",
        "No such file or directory",
        "not a regular file but a folder",
    ]


def test_image_error_survives_pickling(tmp_path: Path) -> None:
    error = decoding.ImageError(tmp_path / "a\nb.png", "broken\nin two", False)
    assert str(error) == rf"{tmp_path}/a\nb.png: broken in two"
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.path, copied.permanent, copied.code) == (str(error), error.path, False, 3)


MAGIC = [
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"RIFF\x40\0\0\0WEBPVP8 ",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"GIF89a",
]


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(MAGIC), rest=st.binary(max_size=300), ending=st.sampled_from(sorted(decoding.EXTENSIONS)))
def test_arbitrary_bytes_are_an_image_or_raise_image_error(
    tmp_path: Path, start: bytes, rest: bytes, ending: str
) -> None:
    path = tmp_path / f"x{ending}"
    path.write_bytes(start + rest)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(decoding.ImageError):
            info = reading.probe(path, max_pixels=10**6)
            assert info.width * info.height > 0


def test_uint8_to_float_round_trip_is_exact() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    values = tensors.to_float(pixels)
    assert (values.min(), values.max()) == (-1, 1)
    assert torch.equal(tensors.to_uint8(values), pixels)
    assert tensors.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_every_integer_survives_the_float_round_trip(dtype: torch.dtype) -> None:
    largest = torch.iinfo(dtype).max
    pixels = torch.arange(largest + 1).to(dtype).reshape(1, -1, 256)
    values = tensors.to_float(pixels)
    assert values.dtype == torch.float32
    expected = np.arange(largest + 1, dtype=np.float64) / largest * 2 - 1
    assert np.abs(values.flatten().double().numpy() - expected).max() < 1e-6
    quantized = tensors.quantize(values, dtype)
    assert quantized.dtype == dtype
    assert torch.equal(quantized.to(torch.int64), pixels.to(torch.int64))
    beyond = tensors.quantize(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]), dtype)
    assert beyond.tolist() == [0, 0, (largest + 1) // 2, largest, largest]
    between = torch.tensor([2 * 100.4 / largest - 1, 2 * 100.6 / largest - 1])
    assert tensors.quantize(between, dtype).tolist() == [100, 101]


def test_decoding_does_not_import_torch() -> None:
    script = "import sys, cyclestyle.images.decoding; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("ending", sorted(decoding.EXTENSIONS))
def test_save_uses_the_format_of_the_file_extension(tmp_path: Path, ending: str) -> None:
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    decoding.save(Image.fromarray(smooth), tmp_path / f"x{ending.upper()}")
    pixels = np.asarray(reading.read_8_bit(tmp_path / f"x{ending.upper()}")).astype(int)
    assert np.abs(pixels - smooth).max() <= (12 if ending in {".jpg", ".jpeg", ".webp"} else 0)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{ending.upper()}"]  # no temporary file


def test_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.webp").write_bytes(b"old")
    with pytest.raises((OSError, ValueError)):
        decoding.save(Image.new("RGB", (20_000, 1)), tmp_path / "x.webp")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.webp", b"old")]


def test_images_of_a_folder_and_subfolders_are_listed_in_name_order(tmp_path: Path) -> None:
    for name in ["b/2.PNG", "a.jpg", "b/10.tiff", ".hidden.png", ".git/x.png", "c.txt", "d.jpg/e.webp"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert [str(name) for name in decoding.find(tmp_path)] == ["a.jpg", "b/10.tiff", "b/2.PNG", "d.jpg/e.webp"]


def test_linked_folder_is_listed_once_whatever_the_scan_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").touch()
    (tmp_path / "link").symlink_to("real")
    expected, scandir = decoding.find(tmp_path), os.scandir
    for order in (False, True):  # file systems list entries in any order
        monkeypatch.setattr(os, "scandir", lambda path, o=order: sorted(scandir(path), key=lambda e: e.name, reverse=o))
        assert decoding.find(tmp_path) == expected


def test_unlistable_folder_raises_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # patched, since root may list any folder
    with pytest.raises(DataError, match=rf"^{tmp_path} cannot be listed: Permission denied"):
        decoding.find(tmp_path)
