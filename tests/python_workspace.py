"""Folder in which the examples of docstrings and of docs/python.md run."""

from pathlib import Path

from tests.pictures import picture


def fill(folder: Path) -> None:
    """Write the files that the examples read: `photo.jpg`, and two images in each of `photos` and `paintings`."""
    picture(0, 48, 32).save(folder / "photo.jpg")
    for seed, name in enumerate(("photos", "paintings")):
        (folder / name).mkdir()
        for number in range(2):
            picture(2 * seed + number, 48, 32).save(folder / name / f"{number}.png")
