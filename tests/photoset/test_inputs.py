"""Which pictures are meant by one file, a folder, a pattern or a list."""

import io
import os
from pathlib import Path

import pytest

from cyclestyle.errors import DataError
from cyclestyle.photoset import inputs
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
    assert inputs.find(str(folder), output=folder / "out", own=own).skipped_own_outputs == 2
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


def lines_in(text: str, encoding: str, mark: bytes = b"") -> bytes:
    return mark + text.encode(encoding)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff"),
     ("utf-32-le", b"\xff\xfe\0\0"), ("utf-32-be", b"\0\0\xfe\xff")],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_is_decoded_by_its_byte_order_mark(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, mark: bytes, end: str
) -> None:
    monkeypatch.chdir(folder)
    write_picture(folder / "Müller 🎨.png")
    content = lines_in(end.join(["a.png", "", "Müller 🎨.png", "sub/c.JPG", ""]), encoding, mark)
    Path("list.txt").write_bytes(content)
    assert found("list.txt") == found("-", stream=io.BytesIO(content)) == ["Müller 🎨.png", "a.png", "sub/c.JPG"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["photos/a.png\r\n", "a.png\nb.png\n", "Фото/1.jpg\r\n", "a.png", "C:\\x\\y.jpg"])
def test_utf_16_without_its_mark_is_refused_and_walks_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    """Taken for names with zero bytes between them, one of these would be `.` and another `/`."""
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"^list\.txt looks like UTF-16 without a byte order mark: save it as UTF-8$"):
        inputs.find("list.txt")
    with pytest.raises(DataError, match=r"^standard input looks like UTF-16 without"):
        inputs.find("-", stream=io.BytesIO(text.encode(encoding)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a.png\0b.jpg\0", r"holds zero bytes, which separate names on standard input only: .*input=-"),
        (b"\xff\xfea\0b", r"is damaged: it begins as UTF-16-LE, and cannot be decoded so"),
        (b"\xff\xfe\0\xd8a\0", r"is damaged: it begins as UTF-16-LE, and cannot be decoded so"),
        (b"\xff\xfea\0\0\0b\0", r"is damaged: it holds zero characters"),
        (b"\xef\xbb\xbfa\0b", r"is damaged: it holds zero characters"),
        (b"\xff\xfe", r"lists no pictures"),
        (b"# a.png\n", r"lists no pictures"),
    ],
)
def test_a_list_that_cannot_be_decoded_is_refused_in_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.chdir(folder)
    Path("list.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"^list\.txt {reason}") as caught:
        inputs.find("list.txt")
    assert "\n" not in str(caught.value)


def test_zero_bytes_on_standard_input_leave_names_as_they_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = ["#x.png", "'y'.png", "~z.png", "w.png\r.png", "1", "2"]
    for name in names[:4]:
        write_picture(folder / name)
    for name in names[4:]:
        write_picture(folder / name / "x.png")
    content = "\0".join(names).encode()
    expected = sorted([*names[:4], "1/x.png", "2/x.png"])
    assert found("-", stream=io.BytesIO(content)) == expected
    assert found("-", stream=io.BytesIO(content + b"\0")) == expected
    assert found("-", stream=io.BytesIO(b".\0./a.png\0")) == found(".")  # `find . -print0` begins so
    assert found("-", stream=io.BytesIO(b"1\0002\0")) == ["1/x.png", "2/x.png"]


def test_a_list_has_comments_and_quoted_lines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("#x.png", "it's.png", "a b.png", "'q'.png"):
        write_picture(folder / name)
    lines = ["# of 2019", "  # a.png", '"a b.png"', " 'b.jpg' ", "./#x.png", "it's.png", "'q'.png", "", '"']
    Path("list.txt").write_text("\n".join(lines))
    assert found("list.txt") == ['"', "#x.png", "'q'.png", "a b.png", "b.jpg", "it's.png"]
    Path("list.txt").write_text("'#x.png'\n")
    assert found("list.txt") == ["#x.png"]


def test_a_tilde_in_a_list_is_a_home_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("HOME", str(folder))
    Path("list.txt").write_text('~/a.png\n"~/sub"\n')
    assert found("list.txt") == ["a.png", "sub/c.JPG", "sub/deep/d.webp"]


@pytest.mark.parametrize(
    "entry", ["/", "//", "..", "../..", "sub/../..", "{above}", "{link}", "'..'", "sub/deep/../../.."]
)
def test_a_list_that_names_a_folder_above_its_own_is_refused_before_anything_is_walked(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, entry: str
) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(folder.parent)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "scandir", None)  # nothing can be walked without
    line = entry.format(above=folder.parent, link=link)
    Path("list.txt").write_text(f"a.png\n{line}\n")
    with pytest.raises(DataError, match=r"^list\.txt lists .*, which is (above|the root of a disk)"):
        inputs.find("list.txt")
    with pytest.raises(DataError, match=r"^standard input lists .*, which is (above|the root of a disk)"):
        inputs.find("-", stream=io.BytesIO(line.strip("'").encode() + b"\0b.jpg"))


def test_what_is_above_a_list_is_meant_by_where_it_is_not_by_where_the_command_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "sub" / "list.txt").write_text(".\n")
    with pytest.raises(DataError, match=r"^sub/list\.txt lists \., which is above .*/sub: is the list damaged"):
        inputs.find("sub/list.txt")
    (folder / "list.txt").write_text(".\n")
    assert found("list.txt") == ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]


def test_a_list_behind_a_link_may_not_name_what_is_above_either_of_its_folders(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "link").symlink_to(folder / "sub")
    (folder / "sub" / "list.txt").write_text(f"{folder}\n")
    with pytest.raises(DataError, match="which is above"):
        inputs.find(str(elsewhere / "link" / "list.txt"))
    (folder / "sub" / "list.txt").write_text(f"{elsewhere}\n")
    with pytest.raises(DataError, match="which is above"):
        inputs.find(str(elsewhere / "link" / "list.txt"))
