"""Folders of unpaired images: listed files and their order, probe images, and errors for missing images."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.data import UnpairedFolders
from cyclestyle.errors import CommandError, DataError
from cyclestyle.images import decoding
from tests import profiles
from tests.pictures import folder_of, picture, two_domains

HOMEPAGE = "http://example.org/monet2photo.zip"
COLOURS = ({"colour": "raw"}, {"colour": "managed"})


def unpaired(root: Path | None = None, **settings: object) -> UnpairedFolders:
    settings.setdefault("load_size", 16)
    settings.setdefault("crop_size", 16)
    return UnpairedFolders(None if root is None else str(root), **settings)


def blues(images: torch.Tensor) -> list[int]:
    """Return the number of each image, which `tests.pictures` stores in its blue channel."""
    return [int(image[2, 8, 8]) for image in images]


def test_files_of_all_image_formats_are_listed(tmp_path: Path) -> None:
    expected = ["a.JPG", "b.jpeg", "deep/er/c.png", "deep/d.webp", "e.bmp", "f.tif", "f.TIFF", "größe/ünï 🎨.png"]
    for name in [*expected, ".hidden.png", "._a.jpg", ".git/x.png", "notes.txt", "movie.gif", "png"]:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in decoding.EXTENSIONS:
            picture(1).save(file)
        else:
            file.write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    assert sorted(map(str, decoding.find(tmp_path))) == sorted(expected)


def test_order_of_files_depends_on_names_alone(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "B.png", "a.png", "b/1.png", "b-c/1.png", "ä.png", "z.png"]
    orders = []
    for number in range(3):
        shuffled = random.Random(number).sample(names, len(names))
        for name in shuffled:  # file systems list files in order of creation or in no order
            file = tmp_path / str(number) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            picture(1).save(file)
        orders.append([file.as_posix() for file in decoding.find(tmp_path / str(number))])
    assert orders[0] == orders[1] == orders[2] == sorted(names, key=lambda name: Path(name).parts)


def test_links_are_followed_without_loops(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", 2)
    root = tmp_path / "root"
    folder_of(root / "inside", 1)
    (root / "inside" / "up").symlink_to(root)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "linked again").symlink_to(tmp_path / "elsewhere")
    (root / "itself").symlink_to(root / "itself")
    (root / "nowhere.png").symlink_to(root / "gone.png")
    (root / "one.png").symlink_to(tmp_path / "elsewhere" / "000.png")
    files = [file.as_posix() for file in decoding.find(root)]
    assert files == ["inside/000.png", "linked/000.png", "linked/001.png"]  # each file once, under its first name


def test_options_a_and_b_override_training_folders_below_root(tmp_path: Path) -> None:
    two_domains(tmp_path / "set")
    folder_of(tmp_path / "Fotos (2019), größer 🎨", 2, first=50)
    data = unpaired(tmp_path / "set")
    names = {side: list(sizes) for side, sizes in data.files.items()}
    assert names == {"a": ["000.png", "001.png", "002.png"], "b": [f"00{n}.png" for n in range(5)]}
    assert list(data.files["a"].values()) == [file.stat().st_size for file in data.train_a]
    assert str(data) == "3 a, 5 b"

    other = unpaired(tmp_path / "set", a=str(tmp_path / "Fotos (2019), größer 🎨"))
    assert other.train_a == [tmp_path / "Fotos (2019), größer 🎨" / f"00{n}.png" for n in range(2)]
    assert other.train_b == data.train_b

    both = unpaired(a=str(tmp_path / "set/trainB"), b=str(tmp_path / "set/trainA"), domain_a="monet", domain_b="photo")
    assert both.domains == ("monet", "photo")
    assert both.train_a == data.train_b


def test_relative_root_is_resolved_from_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_domains(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    data = unpaired(Path("set"))
    assert data.draws(0)[0].a.shape == (3, 16, 16)


def test_probes_are_evenly_spaced_in_test_folders(tmp_path: Path) -> None:
    two_domains(tmp_path)
    folder_of(tmp_path / "testA", 8, first=20)
    folder_of(tmp_path / "testB", 2, first=40)
    a, b = unpaired(tmp_path).probes(4)
    assert a.dtype == torch.uint8
    assert a.shape == (4, 3, 16, 16)
    assert blues(a) == [20, 22, 24, 26]
    assert blues(b) == [40, 41]
    assert all(torch.equal(*pair) for pair in zip((a, b), unpaired(tmp_path).probes(4), strict=True))


def test_managed_colour_converts_training_and_probe_images_to_srgb(tmp_path: Path) -> None:
    two_domains(tmp_path)
    for file in [*(tmp_path / "trainA").iterdir(), *(tmp_path / "trainB").iterdir()]:
        Image.open(file).save(file, icc_profile=profiles.adobe())
    exact = {"resize": "none", "crop_size": 20, "flip": False}
    by_default, raw, managed = (unpaired(tmp_path, **exact, **colour) for colour in ({}, *COLOURS))
    stored = torch.from_numpy(np.asarray(Image.open(tmp_path / "trainB" / "000.png")).copy()).permute(2, 0, 1)[
        ..., 2:22
    ]
    converted = profiles.adobe_as_srgb(stored.permute(1, 2, 0).numpy() / 255) * 255
    assert torch.equal(raw.probes(1)[1][0], stored)
    assert np.abs(managed.probes(1)[1][0].permute(1, 2, 0).numpy() - converted).max() <= 2
    for draw in range(3):
        pairs = [data.draws(0)[draw] for data in (by_default, raw, managed)]
        assert torch.equal(pairs[0].a, pairs[1].a)
        assert torch.equal(pairs[0].b, pairs[1].b)
        source = profiles.adobe_as_srgb(pairs[1].a.permute(1, 2, 0).numpy() / 255) * 255
        assert np.abs(pairs[2].a.permute(1, 2, 0).numpy() - source).max() <= 2
        assert np.abs(pairs[1].a.permute(1, 2, 0).numpy() - source).max() > 10


def test_probes_have_channels_of_their_domain(tmp_path: Path) -> None:
    a, b = unpaired(two_domains(tmp_path), channels_a=1, crop_size=16).probes(2)
    assert (a.shape, b.shape) == ((2, 1, 16, 16), (2, 3, 16, 16))


def test_probes_fall_back_to_training_images(tmp_path: Path) -> None:
    two_domains(tmp_path)
    (tmp_path / "testA").mkdir()
    a, b = unpaired(tmp_path).probes(2)
    assert blues(a) == [0, 1]
    assert blues(b) == [100, 102]


def test_configured_test_folder_must_exist(tmp_path: Path) -> None:
    two_domains(tmp_path / "set")
    folder_of(tmp_path / "mine", 2, first=60)
    a, _ = unpaired(tmp_path / "set", test_a=str(tmp_path / "mine")).probes(4)
    assert blues(a) == [60, 61]
    with pytest.raises(DataError, match=f"no folder {tmp_path}/typo with test pictures: correct data.test_b"):
        unpaired(tmp_path / "set", test_b=str(tmp_path / "typo"))


def test_missing_folder_error_names_path_and_homepage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        unpaired(Path("data/monet2photo"), domain_a="monet", homepage=HOMEPAGE)
    text = str(caught.value)
    assert "\n" not in text
    for part in (f"{tmp_path}/data/monet2photo/trainA", "monet", HOMEPAGE, "data.root=", "+experiment=demo"):
        assert part in text
    (tmp_path / "data" / "elsewhere").mkdir(parents=True)
    with pytest.raises(DataError, match=f"{tmp_path}/data contains elsewhere"):
        unpaired(Path("data/monet2photo"))


def test_error_lists_contents_of_folder_without_images(tmp_path: Path) -> None:
    two_domains(tmp_path)
    for file in (tmp_path / "trainB").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(DataError) as caught:
        unpaired(tmp_path, domain_b="photo", homepage=HOMEPAGE)
    for part in (f"no pictures of photo in {tmp_path}/trainB", "000.heic", HOMEPAGE, "+experiment=demo"):
        assert part in str(caught.value)

    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"which contains nothing: \+experiment=demo needs no data"):
        unpaired(tmp_path, b=str(tmp_path / "nothing"))


def test_single_image_is_rejected(tmp_path: Path) -> None:
    two_domains(tmp_path, a=1)
    with pytest.raises(DataError, match=f"only one picture of a in {tmp_path}/trainA"):
        unpaired(tmp_path)


def test_same_folder_for_both_domains_is_rejected(tmp_path: Path) -> None:
    two_domains(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "trainA")
    with pytest.raises(DataError, match=f"both domains are {tmp_path}/trainA"):
        unpaired(a=str(tmp_path / "trainA"), b=str(tmp_path / "link"))


def test_file_instead_of_folder_is_rejected(tmp_path: Path) -> None:
    two_domains(tmp_path)
    with pytest.raises(DataError, match=r"no folder .*000\.png"):
        unpaired(tmp_path, a=str(tmp_path / "trainA/000.png"))


def test_equal_domain_names_are_rejected(tmp_path: Path) -> None:
    two_domains(tmp_path)
    with pytest.raises(CommandError, match="both 'photo'"):
        unpaired(tmp_path, domain_a="photo", domain_b="photo")


@pytest.mark.parametrize("folders", [{}, {"a": "photos"}])
def test_missing_folder_keys_are_named_in_error(folders: dict[str, str]) -> None:
    with pytest.raises(CommandError, match=r"data\.root, or data\.a and data\.b \(data\.[ab] is not set\)"):
        unpaired(**folders)
