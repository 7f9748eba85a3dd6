"""Which pictures are meant by one file, a folder, a pattern or a list."""

import io
import os
from pathlib import Path

import pytest

from cyclestyle.errors import DataError
from cyclestyle.translation import inputs
from tests.translation.models import write_picture


def found(wanted: Path | str, **options: object) -> list[str]:
    return [str(source.name) for source in inputs.find(str(wanted), **options).sources]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "sub/c.JPG", "sub/deep/d.webp"):
        write_picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    return tmp_path / "in"


def test_a_folder_is_searched_with_all_below_it(folder: Path) -> None:
    assert found(folder) == ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]


def test_one_picture_is_itself(folder: Path) -> None:
    ((source,), _) = inputs.find(str(folder / "b.jpg"))
    status = (folder / "b.jpg").stat()
    assert source == (folder / "b.jpg", Path("b.jpg"), status.st_size, status.st_mtime_ns, "")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["a.png"]),
        ("**/*.jpg", ["b.jpg"]),
        ("**/*.[jJ][pP][gG]", ["b.jpg", "sub/c.JPG"]),
        ("*", ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]),
        ("s*", ["sub/c.JPG", "sub/deep/d.webp"]),
        ("sub/**", ["c.JPG", "deep/d.webp"]),
    ],
)
def test_a_pattern_finds_files_and_folders(folder: Path, pattern: str, expected: list[str]) -> None:
    assert found(folder / pattern) == expected


def test_a_name_with_brackets_is_a_name_where_there_is_one(tmp_path: Path) -> None:
    write_picture(tmp_path / "x[1].png")
    write_picture(tmp_path / "x1.png")
    assert found(tmp_path / "x[1].png") == ["x[1].png"]


def test_a_list_names_pictures_and_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    Path("list.txt").write_text(f"in/b.jpg\r\n\n{folder}/sub\nin/../in/b.jpg\nin/gone.png\nin/notes.txt\n")
    assert found("list.txt") == ["in/b.jpg", "in/gone.png", "in/notes.txt", "in/sub/c.JPG", "in/sub/deep/d.webp"]
    reasons = {str(one.name): one.reason for one in inputs.find("list.txt").sources if one.reason}
    assert reasons["in/gone.png"] == "No such file or directory"
    assert reasons["in/notes.txt"].startswith("does not end like a picture")


def test_a_list_of_places_elsewhere_has_names_from_the_folder_that_holds_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    Path("list.txt").write_text(f"{folder}/a.png\n{folder}/sub/c.JPG\n")
    assert found("list.txt") == ["a.png", "sub/c.JPG"]


def test_standard_input_takes_lines_and_zero_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    odd = os.fsdecode(b"line\nbreak \xff.png")
    write_picture(folder / odd)
    assert found("-", stream=io.BytesIO(b"a.png\nb.jpg")) == ["a.png", "b.jpg"]
    assert found("-", stream=io.BytesIO(b"a.png\0" + os.fsencode(odd))) == ["a.png", odd]


def test_each_picture_comes_once_whatever_it_is_called(folder: Path) -> None:
    (folder / "sub" / "again").symlink_to(folder)
    (folder / "z.png").hardlink_to(folder / "a.png")
    assert found(folder) == ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]


def test_what_cannot_be_read_is_told(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    reasons = {str(one.name): one.reason for one in inputs.find(str(folder)).sources if one.reason}
    assert reasons == {"pipe.png": "not a regular file but a pipe", "dead.png": "a link to nothing"}


def test_a_telephone_s_picture_is_not_passed_over_even_where_it_cannot_be_read(folder: Path) -> None:
    (folder / "IMG_1.HEIC").write_bytes(b"whatever")
    assert "IMG_1.HEIC" in found(folder)


def test_an_output_inside_the_input_is_passed_over_and_so_are_translations_elsewhere(folder: Path) -> None:
    write_picture(folder / "out" / "x.png")
    write_picture(folder / "earlier" / "sub" / "y.png")
    write_picture(folder / "earlier" / "mine.png")
    everything = [
        "a.png",
        "b.jpg",
        "earlier/mine.png",
        "earlier/sub/y.png",
        "out/x.png",
        "sub/c.JPG",
        "sub/deep/d.webp",
    ]
    photos = ["a.png", "b.jpg", "earlier/mine.png", "sub/c.JPG", "sub/deep/d.webp"]

    def own(place: Path) -> set[str]:
        return {folder / "earlier": {"sub/y.png"}, folder / "out": {"x.png"}}.get(place, set())

    assert found(folder) == everything
    assert found(folder, output=folder / "out", own=own) == photos
    assert inputs.find(str(folder), output=folder / "out", own=own).passed == 2
    assert found(folder / "**" / "*.png", output=folder / "out", own=own) == ["a.png", "earlier/mine.png"]
    assert found(folder / "earlier", output=folder / "out", own=own) == [
        "mine.png",
        "sub/y.png",
    ]  # asked for by its name


def test_what_a_list_names_is_taken_but_for_translations_in_the_output(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`find photos | ... input=- output=photos/out` finds, the second time, what it has made the first time."""
    for name in ("out/x.png", "out/mine.png", "earlier/y.png"):
        write_picture(folder / name)
    monkeypatch.chdir(folder)
    known = {folder / "out": {"x.png"}, Path("out"): {"x.png"}, folder / "earlier": {"y.png"}}
    listed = io.BytesIO(b"a.png\nout/x.png\nout/mine.png\nearlier/y.png")
    for output in (folder / "out", Path("out")):
        listed.seek(0)
        taken = found("-", stream=listed, output=output, own=lambda place: known.get(place, set()))
        assert taken == ["a.png", "earlier/y.png", "out/mine.png"]


def test_links_in_circles_end_in_patterns_too(folder: Path) -> None:
    (folder / "one").symlink_to(folder)
    (folder / "two").symlink_to(folder)
    assert found(folder / "**" / "*.png") == ["a.png"]


def test_a_list_from_another_system_or_of_odd_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write_picture(folder / "~x.png")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n~x.png\r\n")
    assert found("list.txt") == ["a.png", "~x.png"]


def test_an_output_above_the_input_is_no_reason_to_pass_pictures_over(folder: Path) -> None:
    assert len(found(folder, output=folder.parent)) == 4


def test_what_is_not_there_is_answered_with_what_is(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "x.png")
    with pytest.raises(DataError, match=rf"no picture or folder {tmp_path}/fotos/a: {tmp_path} contains photos$"):
        inputs.find(str(tmp_path / "fotos" / "a"))
    with pytest.raises(DataError, match=rf"no pictures \(JPEG.*\) match {tmp_path}/photos/\*\.tif"):
        inputs.find(str(tmp_path / "photos" / "*.tif"))


def test_a_folder_without_pictures_names_what_it_has(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(DataError, match=rf"in {tmp_path}, which contains a.txt, b.txt, c.txt, d.txt and 2 more$"):
        inputs.find(str(tmp_path))


def test_a_file_that_is_no_picture_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").touch()
    with pytest.raises(DataError, match=r"x\.pdf does not end like a picture"):
        inputs.find(str(tmp_path / "x.pdf"))


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"list\.txt lists no pictures: give a path on each line"):
        inputs.find(str(tmp_path / "list.txt"))
