"""Choice of the files that directions are scored on."""

from pathlib import Path

import pytest

from cyclestyle.data import UnpairedFolders
from cyclestyle.errors import CommandError, DataError
from cyclestyle.evaluation import sets
from tests.translation.models import write_picture


def write(folder: Path, *names: str) -> list[Path]:
    for seed, name in enumerate(names):
        write_picture(folder / name, seed=seed)
    return [folder / name for name in names]


def data_set(root: Path, **counts: int) -> UnpairedFolders:
    """Write a data set with this number of images in each folder."""
    for folder, count in counts.items():
        write(root / folder, *(f"{number}.png" for number in range(count)))
    return UnpairedFolders(str(root), domain_a="photo", domain_b="monet")


def test_folders_give_photos_targets_and_truths_in_order_of_names(tmp_path: Path) -> None:
    photos = write(tmp_path / "photos", "b.png", "a.png", "sub/c.png")
    targets = write(tmp_path / "targets", "x.png")
    write(tmp_path / "truth", "a.png", "b.png", "sub/c.png", "unused.png")
    found = sets.from_folders(tmp_path / "photos", target=tmp_path / "targets", truth=tmp_path / "truth")
    assert found.sources == [photos[1], photos[0], photos[2]]
    assert found.targets == targets
    assert found.truths == {photo: tmp_path / "truth" / photo.relative_to(tmp_path / "photos") for photo in photos}
    assert not found.references


def test_truths_are_targets_if_no_targets_are_given(tmp_path: Path) -> None:
    write(tmp_path / "photos", "a.png", "b.png")
    truths = write(tmp_path / "truth", "a.png", "b.png")
    assert sets.from_folders(tmp_path / "photos", truth=tmp_path / "truth").targets == truths
    assert sets.from_folders(tmp_path / "photos").targets == []


def test_limit_takes_evenly_spaced_images(tmp_path: Path) -> None:
    files = write(tmp_path / "photos", *(f"{number}.png" for number in range(9)))
    assert sets.from_folders(tmp_path / "photos", limit=3).sources == [files[0], files[3], files[6]]
    assert sets.from_folders(tmp_path / "photos", limit=9).sources == files
    assert sets.from_folders(tmp_path / "photos", limit=99).sources == files
    with pytest.raises(CommandError, match="images=0: give the maximum number"):
        sets.from_folders(tmp_path / "photos", limit=0)


def test_data_set_gives_test_images_of_both_domains_and_training_images_of_target(tmp_path: Path) -> None:
    folders = data_set(tmp_path, trainA=3, trainB=4, testA=2, testB=1)
    ab, ba = (sets.from_data_set(folders, side=side) for side in ("ab", "ba"))
    assert (ab.sources, ab.targets, ab.references) == (folders.test_a, folders.test_b, folders.train_b)
    assert (ba.sources, ba.targets, ba.references) == (folders.test_b, folders.test_a, folders.train_a)
    assert {file.parent.name for file in [*ab.sources, *ab.targets, *ab.references]} == {"testA", "testB", "trainB"}
    assert ab.truths is None
    assert ab.notes == ()


def test_training_images_are_scored_without_test_images(tmp_path: Path) -> None:
    folders = data_set(tmp_path, trainA=3, trainB=4)
    ab = sets.from_data_set(folders, side="ab")
    assert (ab.sources, ab.targets, ab.references) == (folders.train_a, folders.train_b, [])
    reason = "are training images, which the model may know by heart"
    assert ab.notes == (f"no test images: the photos {reason}", f"no test images: the target images {reason}")


@pytest.mark.parametrize(
    ("photo", "truth"),
    [
        ("1.png", "1.png"),
        ("1.jpg", "1.png"),
        ("1_A.jpg", "1_B.jpg"),
        ("sub/1-a.png", "sub/1-b.jpg"),
        ("_A.png", "_A.png"),
    ],
)
def test_aligned_test_images_are_matched_by_name(tmp_path: Path, photo: str, truth: str) -> None:
    data_set(tmp_path, trainA=2, trainB=2)
    photos, truths = write(tmp_path / "testA", photo, "2.png"), write(tmp_path / "testB", truth, "2.png", "3.png")
    folders = UnpairedFolders(str(tmp_path), domain_a="photo", domain_b="monet")
    ab = sets.from_data_set(folders, side="ab", is_aligned=True)
    assert ab.truths == {photos[0]: truths[0], photos[1]: truths[1]}


def test_equal_name_is_preferred_to_similar_name(tmp_path: Path) -> None:
    names = [Path("1.png"), Path("1_A.png")]
    assert sets.aligned(names, [Path("1.png"), Path("1_A.png"), Path("1.jpg"), Path("1_B.png")], where=tmp_path) == {
        name: name for name in names
    }


def test_error_states_number_of_photos_without_truth(tmp_path: Path) -> None:
    write(tmp_path / "a", "0.png", "1.png", "2.png", "3.png")
    write(tmp_path / "b", "0.png")
    with pytest.raises(DataError, match=rf"{tmp_path}/b lacks the truth of 3 of 4 photos, such as 1\.png"):
        sets.from_folders(tmp_path / "a", truth=tmp_path / "b")


def test_missing_and_empty_folders_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no folder {tmp_path}/none"):
        sets.from_folders(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"no pictures .* in {tmp_path}/empty"):
        sets.from_folders(tmp_path / "empty")
