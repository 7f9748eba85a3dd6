"""What is listed in a folder: each real file once, nothing opened, everything printable."""

import os
import socket
from pathlib import Path

import pytest

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import Listing, list_contents, listing, one_line, printable
from tests.forked import NOBODY, in_a_child

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def listed(root: Path) -> Listing:
    return listing(root, endings={".jpg", ".png"})


def names(root: Path) -> list[str]:
    return [str(candidate.name) for candidate in listed(root).candidates]


def reasons(root: Path) -> dict[str, str]:
    return {str(candidate.name): candidate.reason for candidate in listed(root).candidates}


def test_a_file_with_several_names_comes_once_by_the_first_of_them(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "b" / "x.png").write_bytes(b"1")
    (root / "a.png").symlink_to("b/x.png")
    (root / "c.png").hardlink_to(root / "b" / "x.png")
    (tmp_path / "y.png").write_bytes(b"22")
    (root / "d.png").symlink_to(tmp_path / "y.png")
    found = listed(root)
    assert [(str(one.name), one.size) for one in found.candidates] == [("a.png", 1), ("d.png", 2)]
    assert [str(name) for name in found.repeated] == ["b/x.png", "c.png"]


def test_loops_of_links_end_and_each_folder_is_entered_by_its_first_name(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.png").touch()
    (tmp_path / "m" / "up").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to("m")
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert names(tmp_path) == ["m/x.png"]
    (tmp_path / "a").symlink_to("m")
    assert names(tmp_path) == ["a/x.png"]


def test_what_is_no_file_is_a_candidate_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    monkeypatch.chdir(tmp_path)  # the name of a socket may not be long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        found = in_a_child(lambda: reasons(tmp_path))
    assert found == {
        "device.png": "not a regular file but a device",
        "gone.png": "a link to nothing",
        "good.png": "",
        "loop.png": "Too many levels of symbolic links",
        "pipe.png": "not a regular file but a pipe",
        "socket.png": "not a regular file but a socket",
    }


def test_a_folder_named_like_a_picture_is_entered_and_told(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "x.jpg" / "y.png").touch()
    assert names(tmp_path) == ["x.jpg/y.png"]
    assert listed(tmp_path).named_like_pictures == [Path("x.jpg")]


@AS_ROOT
def test_a_folder_that_cannot_be_listed_is_told_and_the_rest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("closed", "open"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    (tmp_path / "closed").chmod(0o700)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # what lies above is closed to others
    found = in_a_child(lambda: listed(Path()), uid=NOBODY)
    assert [str(one.name) for one in found.candidates] == ["open/x.png"]
    assert found.unlisted == {Path("closed"): "Permission denied"}
    with pytest.raises(DataError, match="closed cannot be listed: Permission denied"):
        in_a_child(lambda: listed(Path("closed")), uid=NOBODY)


def test_a_long_tree_is_no_trouble(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["folder"] * 200)
    deep.mkdir(parents=True)
    (deep / "x.png").touch()
    assert names(tmp_path) == [str(deep.relative_to(tmp_path) / "x.png")]


ODD_NAMES = ["-rf.png", "a\nb.png", "\x1b[31m.png", "🎨.png", os.fsdecode(b"\xff\xfe.png"), " .png"]


def test_any_name_is_found_and_can_be_shown_on_one_line(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).touch()
    assert sorted(names(tmp_path)) == sorted(ODD_NAMES)
    assert [printable(Path(name)) for name in ODD_NAMES] == [
        "-rf.png", r"a\nb.png", r"\x1b[31m.png", "🎨.png", r"\xff\xfe.png", " .png"
    ]  # fmt: skip
    for name in ODD_NAMES:
        printable(tmp_path / name).encode()


def test_reasons_are_one_line_and_not_endless() -> None:
    assert one_line("a\n  b\tc \x07") == r"a b c \x07"
    assert len(one_line("x" * 1000)) == 200


def test_contents_name_four_and_count_the_rest(tmp_path: Path) -> None:
    assert list_contents(tmp_path) == "nothing"
    for number in range(6):
        (tmp_path / f"{number}").touch()
    assert list_contents(tmp_path) == "0, 1, 2, 3 and 2 more"
    assert list_contents(tmp_path / "0") == "what cannot be listed (Not a directory)"
