"""Whatever a file holds becomes an upright RGB picture or an error that names the file."""

import os
import random
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle import images
from cyclestyle.errors import DataError


def noise(width: int = 12, height: int = 8, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_upright_picture(tmp_path: Path, orientation: int) -> None:
    upright = noise()
    undo = {  # how a camera held that way stores the scene
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
    Image.fromarray(np.ascontiguousarray(undo[orientation])).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(images.read(tmp_path / "x.png")), upright)


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_keeps_its_brightness(tmp_path: Path, ending: str) -> None:
    grey = np.array([[0, 257, 128 * 257, 200 * 257, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"x.{ending}")
    assert np.asarray(images.read(tmp_path / f"x.{ending}"))[0, :, 1].tolist() == [0, 1, 128, 200, 255]


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert np.asarray(images.read(tmp_path / "rgba.png"))[0].tolist() == [[255, 0, 0], [255] * 3, [127] * 3]
    Image.fromarray(np.array([[[0, 255], [0, 0]]], np.uint8), mode=None).save(tmp_path / "la.png")
    assert np.asarray(images.read(tmp_path / "la.png"))[0].tolist() == [[0] * 3, [255] * 3]


def test_a_transparent_palette_colour_lies_on_white(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert np.asarray(images.read(tmp_path / "p.png"))[0].tolist() == [[10, 20, 30], [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    made = images.to_rgb(Image.new(mode, (3, 2)))
    assert (made.mode, made.size) == ("RGB", (3, 2))


def test_floating_point_colours_are_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: .*floating-point"):
        images.read(tmp_path / "x.tif")


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\x00"], ids=repr)
def test_what_is_no_picture_is_a_data_error_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/x\.jpg: "):
        images.read(tmp_path / "x.jpg")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif"])
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    Image.fromarray(noise(40, 30)).save(path, **({} if ending == "bmp" else {"exif": exif}))
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 4])):
            damaged[chance.randrange(min(len(damaged), chance.choice([150, len(damaged)])))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with suppress(DataError):
                assert images.read(path).mode == "RGB"


def test_broken_metadata_are_a_data_error_too(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "x.png", exif=b"Exif\0\0garbage!")
    with pytest.raises(DataError, match=r"x\.png: .*header b'garbage!'"):
        images.read(tmp_path / "x.png")


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16)
    values = images.to_float(pixels)
    assert (values.min(), values.max()) == (-1, 1)
    assert torch.equal(images.to_uint8(values), pixels)
    assert images.to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


@pytest.mark.parametrize("ending", sorted(images.EXTENSIONS))
def test_pictures_are_saved_in_the_format_of_their_name(tmp_path: Path, ending: str) -> None:
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    images.save(Image.fromarray(smooth), tmp_path / f"x{ending.upper()}")
    made = np.asarray(images.read(tmp_path / f"x{ending.upper()}")).astype(int)
    assert np.abs(made - smooth).max() <= (12 if ending in {".jpg", ".jpeg", ".webp"} else 0)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{ending.upper()}"]  # no temporary file


def test_a_picture_that_cannot_be_encoded_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "x.webp").write_bytes(b"old")
    with pytest.raises((OSError, ValueError)):
        images.save(Image.new("RGB", (20_000, 1)), tmp_path / "x.webp")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.webp", b"old")]


def test_pictures_are_found_below_a_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ["b/2.PNG", "a.jpg", "b/10.tiff", ".hidden.png", ".git/x.png", "c.txt", "d.jpg/e.webp"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    assert [str(name) for name in images.find(tmp_path)] == ["a.jpg", "b/10.tiff", "b/2.PNG", "d.jpg/e.webp"]


def test_of_two_ways_into_a_folder_the_same_one_is_always_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.png").touch()
    (tmp_path / "link").symlink_to("real")
    usual, scandir = images.find(tmp_path), os.scandir
    for order in (False, True):  # a file system lists as it likes
        monkeypatch.setattr(os, "scandir", lambda path, o=order: sorted(scandir(path), key=lambda e: e.name, reverse=o))
        assert images.find(tmp_path) == usual


def test_a_folder_that_cannot_be_listed_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)  # root, who runs tests in containers, may list everything
    with pytest.raises(DataError, match=rf"^{tmp_path} cannot be listed: Permission denied"):
        images.find(tmp_path)
