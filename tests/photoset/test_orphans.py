"""Orphans: translations whose photos are gone; which ones `prune=` finds, and what it removes."""

import json
from pathlib import Path

import pytest

from cyclestyle.errors import CommandError
from cyclestyle.photoset import orphans
from cyclestyle.photoset.journal import FOLDER, Journal
from cyclestyle.photoset.orphans import Orphan
from cyclestyle.translate import translate
from tests.translation.models import write_model, write_picture
from tests.translation.sets import planned, run, tree


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b.png", "sub/c.tif")):
        write_picture(tmp_path / "in" / name, seed=seed)
    return tmp_path / "in"


def sheet(output: Path) -> Path:
    return output / FOLDER / "thumbnails"


def found(photos: Path, output: Path, **options) -> list[Orphan]:
    plan = planned(photos, output, **options)
    plan.journal.release()
    return orphans.find(plan, photos)


def pruned(photos: Path, output: Path) -> None:
    plan = planned(photos, output)
    orphans.remove(plan, orphans.find(plan, photos))
    plan.journal.release()


def test_translations_of_deleted_photos_are_removed(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(photos, output, sheet=sheet(output))
    assert found(photos, output) == []
    (photos / "sub" / "c.tif").unlink()
    assert [orphan.targets for orphan in found(photos, output)] == [("sub/c.tif",)]
    assert tree(output) == {"a.png", "b.png", "sub/c.tif"}

    pruned(photos, output)
    assert tree(output) == {"a.png", "b.png"}
    assert not (output / "sub").exists()
    assert len(list(sheet(output).iterdir())) == 2 * 2
    journal = Journal(output)
    journal.read()
    assert journal.translations() == {"a.png", "b.png"}
    assert run(photos, output).count("up to date") == 2


def test_only_unchanged_files_listed_in_the_journal_are_orphans(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(photos, output)
    write_picture(output / "mine.png")
    write_picture(output / "a.png", size=(14, 9), seed=9)  # edited after it was translated
    (photos / "a.png").unlink()
    (photos / "b.png").unlink()
    pruned(photos, output)
    assert tree(output) == {"a.png", "mine.png", "sub/c.tif"}


def test_translations_of_other_inputs_are_no_orphans(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_picture(tmp_path / "disk" / "d.png", seed=7)
    run(tmp_path / "disk", output)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    assert found(photos, output) == []


def test_translations_of_photos_below_a_broken_link_are_no_orphans(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_picture(tmp_path / "disk" / "d.png", seed=7)
    (photos / "disk").symlink_to(tmp_path / "disk")
    run(photos, output)
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    assert found(photos, output) == []


def test_target_files_of_existing_photos_are_no_orphans(photos: Path, tmp_path: Path) -> None:
    """A photo of another format has taken the name of the deleted one."""
    output = tmp_path / "out"
    run(photos, output, format="jpeg")
    (photos / "a.png").rename(photos / "a.webp")
    assert found(photos, output, format="jpeg") == []
    (photos / "b.png").unlink()
    assert [orphan.targets for orphan in found(photos, output, format="jpeg")] == [("b.jpg",)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(False, "no"), (True, "remove"), ("true", "remove"), ("list", "list"), ("remove", "remove"), (None, "no")],
)
def test_option_prune_accepts_booleans_and_names_of_actions(
    value: bool | str | None, expected: str, tmp_path: Path
) -> None:
    assert orphans.parse(value, input=str(tmp_path)) == expected


def test_bad_values_of_prune_are_rejected(photos: Path) -> None:
    with pytest.raises(CommandError, match="prune=all: give list, remove or false"):
        orphans.parse("all", input=str(photos))
    for single in (photos / "a.png", f"{photos}/*.png", "-"):
        with pytest.raises(CommandError, match="prune=list needs a folder as input="):
            orphans.parse("list", input=str(single))


def test_orphans_are_listed_by_prune_list_and_deleted_by_prune_remove(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = write_model(tmp_path / "model"), tmp_path / "out"

    def lines(**options: object) -> list[str]:
        assert translate(model, photos, output, direction="a2b", device="cpu", workers=0, **options) == 0
        return capsys.readouterr().out.splitlines()

    def last_row() -> dict:
        return json.loads((output / FOLDER / "report.jsonl").read_text().splitlines()[-1])

    lines()
    (photos / "b.png").unlink()
    assert not any("gone" in line for line in lines())
    assert lines(prune="list")[-2:] == [
        "prune=list: 1 translation whose photo is gone: prune=remove removes it", "  b.png",
    ]  # fmt: skip
    assert last_row()["status"] == "orphan"
    assert (output / "b.png").exists()
    assert lines(prune=True)[-2:] == ["prune=remove: removed 1 translation whose photo is gone", "  b.png"]
    assert last_row()["status"] == "removed"
    assert not (output / "b.png").exists()
    assert lines(prune="remove")[-1] == "prune=remove: removed 0 translations whose photos are gone"
