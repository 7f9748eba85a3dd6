"""Data sets whose folders have other names than trainA and trainB: the error names the keys that fit."""

import shlex
from pathlib import Path

import pytest
from PIL import Image

from cyclestyle.data import UnpairedFolders
from cyclestyle.errors import DataError
from tests.pictures import folder_of, two_domains


def refused(root: Path, **settings: object) -> str:
    """Return the one-line error about the folders in `root`."""
    with pytest.raises(DataError) as caught:
        UnpairedFolders(str(root), **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def suggested(error: str) -> dict[str, str]:
    """Return the keys that an error suggests, as the constructor of `UnpairedFolders` takes them."""
    keys = shlex.split(error[error.index("data.") :])
    return dict(key.removeprefix("data.").split("=", 1) for key in keys)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("train_A", "train_B"),
        ("traina", "trainb"),
        ("TrainA", "TrainB"),
        ("train-a", "train-b"),
        ("train/A", "train/B"),
        ("train/a", "train/b"),
        ("A/train", "B/train"),
        ("A", "B"),
        ("my set/train_A", "my set/train_B"),
        ("monet_jpg", "photo_jpg"),
        ("photos", "a monet's works"),
        ("summer", "winter"),
    ],
)
def test_error_suggests_training_folders_of_other_layouts(tmp_path: Path, a: str, b: str) -> None:
    folder_of(tmp_path / a, 2)
    folder_of(tmp_path / b, 3, first=50)
    domains = {"domain_a": "monet", "domain_b": "photo"}
    error = refused(tmp_path, **domains)
    assert f"no folder {tmp_path}/trainA" in error
    keys = suggested(error)
    swapped = a == "photos"
    assert keys == {"a": str(tmp_path / (b if swapped else a)), "b": str(tmp_path / (a if swapped else b))}
    assert str(UnpairedFolders(**keys, **domains)) == ("3 monet, 2 photo" if swapped else "2 monet, 3 photo")


def test_error_suggests_test_folders_of_other_layouts(tmp_path: Path) -> None:
    for name in ("train_A", "train_B", "test_A", "test_B"):
        folder_of(tmp_path / name, 2)
    assert suggested(refused(tmp_path)) == {
        "a": str(tmp_path / "train_A"),
        "b": str(tmp_path / "train_B"),
        "test_a": str(tmp_path / "test_A"),
        "test_b": str(tmp_path / "test_B"),
    }


@pytest.mark.parametrize(("place", "root"), [("horse2zebra", "."), ("a/b", "."), (".", "trainA"), (".", "typo")])
def test_error_suggests_root_above_or_below_given_root(tmp_path: Path, place: str, root: str) -> None:
    two_domains(tmp_path / place)
    error = refused(tmp_path / root)
    assert suggested(error) == {"root": str((tmp_path / place).resolve())}
    assert str(UnpairedFolders(**suggested(error))) == "3 a, 5 b"


def test_error_suggests_folders_with_images_if_training_folders_are_empty(tmp_path: Path) -> None:
    folder_of(tmp_path / "train_A", 2)
    folder_of(tmp_path / "train_B", 2)
    for name in ("trainA", "trainB"):
        (tmp_path / name).mkdir()
    error = refused(tmp_path)
    assert f"no pictures of a in {tmp_path}/trainA" in error
    assert suggested(error) == {"a": str(tmp_path / "train_A"), "b": str(tmp_path / "train_B")}


@pytest.mark.parametrize("place", [".", "train"])
def test_error_recognises_images_of_joined_pairs(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    for number in range(3):
        Image.new("RGB", (64, 32)).save(tmp_path / place / f"{number}.jpg")
    (tmp_path / "val").mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / "val" / "0.jpg")
    error = refused(tmp_path)
    assert f"the pictures in {(tmp_path / place)} are twice as wide as high, like joined pairs" in error
    assert error.endswith("give these as data.a= and data.b=")


def test_error_suggests_no_folders_of_unrecognised_layout(tmp_path: Path) -> None:
    for name in ("one", "two", "three", ".hidden/trainA", ".hidden/trainB", "@eaDir/A", "@eaDir/B"):
        folder_of(tmp_path / name, 2)
    assert refused(tmp_path).endswith("+experiment=demo needs no data")
    assert refused(tmp_path / "missing").endswith("+experiment=demo needs no data")


def test_error_suggests_no_folders_if_options_a_and_b_are_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "train_A", 2)
    folder_of(tmp_path / "train_B", 2)
    with pytest.raises(DataError) as caught:
        UnpairedFolders(a=str(tmp_path / "typo"), b=str(tmp_path / "train_B"))
    assert str(caught.value).startswith(
        f"no folder {tmp_path}/typo with the pictures of a ({tmp_path} contains train_A"
    )
