"""Search for photos by a file, a folder, a pattern or a list."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclestyle.errors import DataError
from cyclestyle.photoset import inputs
from cyclestyle.photoset.contact_sheet import page
from cyclestyle.photoset.plan import make_jobs
from tests.translation.models import write_picture


def find_names(spec: Path | str, **options: object) -> list[str]:
    return [str(source.name) for source in inputs.find(str(spec), **options).sources]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "sub/c.JPG", "sub/deep/d.webp"):
        write_picture(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("nothing")
    return tmp_path / "in"


def test_folder_is_searched_recursively(folder: Path) -> None:
    assert find_names(folder) == ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]


def test_single_photo_is_found(folder: Path) -> None:
    (source,) = inputs.find(str(folder / "b.jpg")).sources
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
def test_pattern_matches_files_and_folders(folder: Path, pattern: str, expected: list[str]) -> None:
    assert find_names(folder / pattern) == expected


def test_existing_file_with_brackets_is_not_a_pattern(tmp_path: Path) -> None:
    write_picture(tmp_path / "x[1].png")
    write_picture(tmp_path / "x1.png")
    assert find_names(tmp_path / "x[1].png") == ["x[1].png"]


def test_path_list_may_name_photos_and_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    Path("list.txt").write_text(f"in/b.jpg\r\n\n{folder}/sub\nin/../in/b.jpg\nin/gone.png\nin/notes.txt\n")
    assert find_names("list.txt") == ["in/b.jpg", "in/gone.png", "in/notes.txt", "in/sub/c.JPG", "in/sub/deep/d.webp"]
    reasons = {str(source.name): source.reason for source in inputs.find("list.txt").sources if source.reason}
    assert reasons["in/gone.png"] == "No such file or directory"
    assert reasons["in/notes.txt"].startswith("does not end like a picture")


def test_path_list_names_are_relative_to_the_common_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    Path("list.txt").write_text(f"{folder}/a.png\n{folder}/sub/c.JPG\n")
    assert find_names("list.txt") == ["a.png", "sub/c.JPG"]


def test_paths_on_standard_input_are_separated_by_line_ends_or_zero_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    odd = os.fsdecode(b"line\nbreak \xff.png")
    write_picture(folder / odd)
    assert find_names("-", stream=io.BytesIO(b"a.png\nb.jpg")) == ["a.png", "b.jpg"]
    assert find_names("-", stream=io.BytesIO(b"a.png\0" + os.fsencode(odd))) == ["a.png", odd]


def test_photo_with_several_links_is_found_once(folder: Path) -> None:
    (folder / "sub" / "again").symlink_to(folder)
    (folder / "z.png").hardlink_to(folder / "a.png")
    assert find_names(folder) == ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]


def test_pipes_and_broken_links_are_listed_with_a_reason(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    reasons = {str(source.name): source.reason for source in inputs.find(str(folder)).sources if source.reason}
    assert reasons == {"pipe.png": "not a regular file but a pipe", "dead.png": "a link to nothing"}


def test_unreadable_heic_file_is_listed_as_input(folder: Path) -> None:
    (folder / "IMG_1.HEIC").write_bytes(b"whatever")
    assert "IMG_1.HEIC" in find_names(folder)


def test_files_in_output_folder_and_known_translations_are_skipped(folder: Path) -> None:
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

    def known(output: Path) -> set[str]:
        return {folder / "earlier": {"sub/y.png"}, folder / "out": {"x.png"}}.get(output, set())

    assert find_names(folder) == everything
    assert find_names(folder, output=folder / "out", known_outputs=known) == photos
    assert inputs.find(str(folder), output=folder / "out", known_outputs=known).skipped_own_outputs == 2
    assert find_names(folder / "**" / "*.png", output=folder / "out", known_outputs=known) == [
        "a.png",
        "earlier/mine.png",
    ]
    assert find_names(folder / "earlier", output=folder / "out", known_outputs=known) == [
        "mine.png",
        "sub/y.png",
    ]  # the folder itself is the input


def test_only_known_translations_in_output_folder_are_skipped_in_path_list(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When `find photos | ... input=- output=photos/out` is repeated, `find` also lists earlier translations."""
    for name in ("out/x.png", "out/mine.png", "earlier/y.png"):
        write_picture(folder / name)
    monkeypatch.chdir(folder)
    known = {folder / "out": {"x.png"}, Path("out"): {"x.png"}, folder / "earlier": {"y.png"}}
    listed = io.BytesIO(b"a.png\nout/x.png\nout/mine.png\nearlier/y.png")
    for output in (folder / "out", Path("out")):
        listed.seek(0)
        names = find_names("-", stream=listed, output=output, known_outputs=lambda place: known.get(place, set()))
        assert names == ["a.png", "earlier/y.png", "out/mine.png"]


def test_pattern_search_with_circular_links_terminates(folder: Path) -> None:
    (folder / "one").symlink_to(folder)
    (folder / "two").symlink_to(folder)
    assert find_names(folder / "**" / "*.png") == ["a.png"]


def test_path_list_with_bom_and_crlf_keeps_tilde_of_unknown_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    write_picture(folder / "~x.png")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n~x.png\r\n")
    assert find_names("list.txt") == ["a.png", "~x.png"]


def test_no_photo_is_skipped_if_output_folder_contains_input(folder: Path) -> None:
    assert len(find_names(folder, output=folder.parent)) == 4


def test_error_for_missing_input_lists_nearest_existing_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "x.png")
    with pytest.raises(DataError, match=rf"no picture or folder {tmp_path}/fotos/a: {tmp_path} contains photos$"):
        inputs.find(str(tmp_path / "fotos" / "a"))
    with pytest.raises(DataError, match=rf"no pictures \(JPEG.*\) match {tmp_path}/photos/\*\.tif"):
        inputs.find(str(tmp_path / "photos" / "*.tif"))


def test_error_for_folder_without_photos_lists_its_contents(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(DataError, match=rf"in {tmp_path}, which contains a.txt, b.txt, c.txt, d.txt and 2 more$"):
        inputs.find(str(tmp_path))


def test_file_without_image_ending_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").touch()
    with pytest.raises(DataError, match=r"x\.pdf does not end like a picture"):
        inputs.find(str(tmp_path / "x.pdf"))


def test_empty_path_list_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n\n")
    with pytest.raises(DataError, match=r"list\.txt lists no pictures: give a path on each line"):
        inputs.find(str(tmp_path / "list.txt"))


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b"\xef\xbb\xbf"), ("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff"),
     ("utf-32-le", b"\xff\xfe\0\0"), ("utf-32-be", b"\0\0\xfe\xff")],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_path_list_is_decoded_by_its_byte_order_mark(
    folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, mark: bytes, end: str
) -> None:
    monkeypatch.chdir(folder)
    write_picture(folder / "Müller 🎨.png")
    content = mark + end.join(["a.png", "", "Müller 🎨.png", "sub/c.JPG", ""]).encode(encoding)
    Path("list.txt").write_bytes(content)
    assert (
        find_names("list.txt") == find_names("-", stream=io.BytesIO(content)) == ["Müller 🎨.png", "a.png", "sub/c.JPG"]
    )


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["photos/a.png\r\n", "a.png\nb.png\n", "Фото/1.jpg\r\n", "a.png", "C:\\x\\y.jpg"])
def test_utf_16_path_list_without_byte_order_mark_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    """If such a list were split at zero bytes, it would name the folders `.` and `/`."""
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
def test_invalid_path_list_gives_one_line_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.chdir(folder)
    Path("list.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"^list\.txt {reason}") as caught:
        inputs.find("list.txt")
    assert "\n" not in str(caught.value)


def test_zero_separated_names_are_used_verbatim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = ["#x.png", "'y'.png", "~z.png", "w.png\r.png", "1", "2"]
    for name in names[:4]:
        write_picture(folder / name)
    for name in names[4:]:
        write_picture(folder / name / "x.png")
    content = "\0".join(names).encode()
    expected = sorted([*names[:4], "1/x.png", "2/x.png"])
    assert find_names("-", stream=io.BytesIO(content)) == expected
    assert find_names("-", stream=io.BytesIO(content + b"\0")) == expected
    assert find_names("-", stream=io.BytesIO(b".\0./a.png\0")) == find_names(
        "."
    )  # the output of `find . -print0` begins with `.`
    assert find_names("-", stream=io.BytesIO(b"1\0002\0")) == ["1/x.png", "2/x.png"]


def test_path_list_may_have_comments_and_quotes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("#x.png", "it's.png", "a b.png", "'q'.png"):
        write_picture(folder / name)
    lines = ["# of 2019", "  # a.png", '"a b.png"', " 'b.jpg' ", "./#x.png", "it's.png", "'q'.png", "", '"']
    Path("list.txt").write_text("\n".join(lines))
    assert find_names("list.txt") == ['"', "#x.png", "'q'.png", "a b.png", "b.jpg", "it's.png"]
    Path("list.txt").write_text("'#x.png'\n")
    assert find_names("list.txt") == ["#x.png"]


def test_tilde_in_a_path_list_is_the_home_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("HOME", str(folder))
    Path("list.txt").write_text('~/a.png\n"~/sub"\n')
    assert find_names("list.txt") == ["a.png", "sub/c.JPG", "sub/deep/d.webp"]


@pytest.mark.parametrize(
    "entry", ["/", "//", "..", "../..", "sub/../..", "{above}", "{link}", "'..'", "sub/deep/../../.."]
)
def test_path_list_naming_a_parent_folder_is_rejected_before_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, entry: str
) -> None:
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(folder.parent)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "scandir", None)  # any search of a folder would fail
    line = entry.format(above=folder.parent, link=link)
    Path("list.txt").write_text(f"a.png\n{line}\n")
    with pytest.raises(DataError, match=r"^list\.txt lists .*, which is (above|the root of a disk)"):
        inputs.find("list.txt")
    with pytest.raises(DataError, match=r"^standard input lists .*, which is (above|the root of a disk)"):
        inputs.find("-", stream=io.BytesIO(line.strip("'").encode() + b"\0b.jpg"))


def test_parent_folder_check_uses_the_folder_of_the_path_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "sub" / "list.txt").write_text(".\n")
    with pytest.raises(DataError, match=r"^sub/list\.txt lists \., which is above .*/sub: is the list damaged"):
        inputs.find("sub/list.txt")
    (folder / "list.txt").write_text(".\n")
    assert find_names("list.txt") == ["a.png", "b.jpg", "sub/c.JPG", "sub/deep/d.webp"]


def test_path_list_in_linked_folder_may_not_name_parents_of_link_or_target(
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


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_links_to_a_photo_are_reported_as_repeated(link: Callable[[Path, Path], None], tmp_path: Path) -> None:
    for name in ("a/x.jpg", "a/y.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b").mkdir()
    link(tmp_path / "a/x.jpg", tmp_path / "b/z.jpg")
    found = inputs.find(str(tmp_path))
    assert [str(source.name) for source in found.sources] == ["a/x.jpg", "a/y.jpg"]
    assert found.repeated == (tmp_path / "b/z.jpg",)
    assert make_jobs(str(tmp_path), tmp_path / "out").repeated == found.repeated
    # A pattern that names only the further name finds the photo.
    assert [str(source.name) for source in inputs.find(str(tmp_path / "b" / "*.jpg")).sources] == ["z.jpg"]
    assert [str(source.name) for source in inputs.find(str(tmp_path / "**" / "z.jpg")).sources] == ["b/z.jpg"]


def test_path_listed_twice_is_not_reported_as_repeated(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/x.jpg\n" * 2)
    assert inputs.find(str(tmp_path / "list.txt")).repeated == ()


def test_files_passed_over_are_counted_by_kind(folder: Path) -> None:
    for name in ("raw/1.CR2", "raw/2.CR2", "raw/1.xmp", "@eaDir/b.jpg/SYNOPHOTO_THUMB.jpg", "#recycle/old.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("__MACOSX/._b.jpg", ".AppleDouble/b.jpg", ".cyclestyle/thumbnails/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = inputs.find(str(folder))
    assert not {part for source in found.sources for part in source.name.parts} & {"@eaDir", "#recycle", "__MACOSX"}
    text = found.passed_over.summary()
    assert "2 .CR2" in text
    assert "1 .xmp" in text
    assert text.endswith("4 hidden or system folders: #recycle, .AppleDouble, @eaDir, __MACOSX")


def test_contact_sheet_inside_the_input_is_not_counted_as_passed_over(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    page.write(tmp_path / "out" / page.NAME, page.page([], title="", facts=[]))
    assert inputs.find(str(tmp_path), output=tmp_path / "out").passed_over.summary() == ""
    (tmp_path / "other.html").touch()
    assert inputs.find(str(tmp_path), output=tmp_path / "out").passed_over.summary() == "passed over: 1 file: 1 .html"


def test_error_lists_hidden_files_last(tmp_path: Path) -> None:
    for name in (".DS_Store", ".a", ".b", ".c", "notes.txt", "raw.CR2"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"which contains notes\.txt, raw\.CR2, \.DS_Store, \.a and 2 more$"):
        inputs.find(str(tmp_path))
