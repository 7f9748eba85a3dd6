"""Listings of folders: each file is listed once and never opened, and every name is printable."""

import os
import socket
from pathlib import Path

import pytest

from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import Listing, PassedOver, list_contents, listing, one_line, printable
from tests.forked import NOBODY, in_a_child

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def list_images(root: Path) -> Listing:
    return listing(root, endings={".jpg", ".png"})


def names(root: Path) -> list[str]:
    return [str(candidate.name) for candidate in list_images(root).candidates]


def reasons(root: Path) -> dict[str, str]:
    return {str(candidate.name): candidate.reason for candidate in list_images(root).candidates}


def test_file_with_several_links_is_listed_once_under_first_path(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "b").mkdir(parents=True)
    (root / "b" / "x.png").write_bytes(b"1")
    (root / "a.png").symlink_to("b/x.png")
    (root / "c.png").hardlink_to(root / "b" / "x.png")
    (tmp_path / "y.png").write_bytes(b"22")
    (root / "d.png").symlink_to(tmp_path / "y.png")
    content = list_images(root)
    assert [(str(candidate.name), candidate.size) for candidate in content.candidates] == [("a.png", 1), ("d.png", 2)]
    assert [str(name) for name in content.repeated] == ["b/x.png", "c.png"]


def test_listing_a_folder_with_link_loops_ends_and_enters_each_folder_once(tmp_path: Path) -> None:
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


def test_special_files_and_broken_links_are_listed_with_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "loop.png").symlink_to("loop.png")
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most 107 bytes
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        listed = in_a_child(lambda: reasons(tmp_path))
    assert listed == {
        "device.png": "not a regular file but a device",
        "gone.png": "a link to nothing",
        "good.png": "",
        "loop.png": "Too many levels of symbolic links",
        "pipe.png": "not a regular file but a pipe",
        "socket.png": "not a regular file but a socket",
    }


def test_folder_with_image_extension_is_entered_and_reported(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").mkdir()
    (tmp_path / "x.jpg" / "y.png").touch()
    assert names(tmp_path) == ["x.jpg/y.png"]
    assert list_images(tmp_path).named_like_pictures == [Path("x.jpg")]


@AS_ROOT
def test_unlistable_folder_is_reported_and_other_folders_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("closed", "open"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").touch()
    (tmp_path / "closed").chmod(0o700)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # the parents of `tmp_path` are closed to other users
    content = in_a_child(lambda: list_images(Path()), uid=NOBODY)
    assert [str(candidate.name) for candidate in content.candidates] == ["open/x.png"]
    assert content.unlisted == {Path("closed"): "Permission denied"}
    with pytest.raises(DataError, match="closed cannot be listed: Permission denied"):
        in_a_child(lambda: list_images(Path("closed")), uid=NOBODY)


def test_deeply_nested_file_is_listed(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["folder"] * 200)
    deep.mkdir(parents=True)
    (deep / "x.png").touch()
    assert names(tmp_path) == [str(deep.relative_to(tmp_path) / "x.png")]


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


SYSTEM = [
    "@eaDir", "#recycle", "#snapshot", "@Recycle", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"
]  # fmt: skip


def test_system_and_hidden_folders_are_skipped_and_named_in_summary(tmp_path: Path) -> None:
    make(tmp_path, "x.jpg", "deep/@eaDir/x.jpg/SYNOPHOTO_THUMB_M.jpg", ".AppleDouble/x.jpg", "deep/._x.jpg")
    make(tmp_path, *(f"{folder}/{number}/x.jpg" for folder in SYSTEM for number in range(2)), ".DS_Store", "Thumbs.db")
    assert names(tmp_path) == ["x.jpg"]
    passed_over = list_images(tmp_path).passed_over
    assert passed_over.folders == {**dict.fromkeys(SYSTEM, 1), "@eaDir": 2, ".AppleDouble": 1}
    assert not passed_over.files  # hidden files and those of systems are no pictures that the user may miss
    assert passed_over.summary() == (
        "passed over: 10 hidden or system folders: #recycle, #snapshot, $RECYCLE.BIN, .AppleDouble, @Recycle, @eaDir, "
        "System Volume Information, __MACOSX, 1 other names"
    )
    assert names(tmp_path / "@eaDir") == ["0/x.jpg", "1/x.jpg"]  # a folder that the user names is listed


def test_link_is_skipped_by_its_own_name_not_by_name_of_its_target(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/@eaDir/x.jpg", "root/y.jpg", "root/@eaDir.jpg")
    (tmp_path / "root" / "photos").symlink_to(tmp_path / "elsewhere" / "@eaDir")
    (tmp_path / "root" / "__MACOSX").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path / "root") == ["@eaDir.jpg", "photos/x.jpg", "y.jpg"]


def test_system_folders_are_listed_if_none_are_to_be_skipped(tmp_path: Path) -> None:
    make(tmp_path, "@eaDir/x.jpg", ".AppleDouble/x.jpg")
    listed = listing(tmp_path, endings={".jpg"}, system_folders=())
    assert [candidate.name for candidate in listed.candidates] == [Path("@eaDir/x.jpg")]


def test_skipped_files_are_counted_by_file_extension(tmp_path: Path) -> None:
    make(tmp_path, *(f"{n}.CR2" for n in range(6)), *(f"deep/{n}.cr2" for n in range(2)), "x.JPG", "README")
    make(tmp_path, "x.xmp", "y.xmp", "a.made in summer", "b.psd", "c.\x1b[31m")
    (tmp_path / "gone").symlink_to("nowhere")
    passed_over = list_images(tmp_path).passed_over
    assert passed_over.kinds() == {".CR2": 8, "without an extension": 3, ".xmp": 2, r".\x1b[31m": 1, ".psd": 1}
    assert passed_over.summary() == (
        r"passed over: 15 files: 8 .CR2, 3 without an extension, 2 .xmp, 1 .\x1b[31m, 1 .psd"
    )


def test_summary_of_two_listings_adds_counts_and_merges_rare_kinds(tmp_path: Path) -> None:
    make(
        tmp_path, *(f"a/{n}.k{kind}" for kind in range(10) for n in range(10 - kind)), "a/.git/x", "b/x.k9", "b/.git/x"
    )
    both = list_images(tmp_path / "a").passed_over.plus(list_images(tmp_path / "b").passed_over)
    assert both.summary() == (
        "passed over: 56 files: 10 .k0, 9 .k1, 8 .k2, 7 .k3, 6 .k4, 5 .k5, 4 .k6, 3 .k7, 4 of 2 more kinds; "
        "2 hidden or system folders: .git"
    )
    assert PassedOver().summary() == ""


ODD_NAMES = ["-rf.png", "a\nb.png", "\x1b[31m.png", "🎨.png", os.fsdecode(b"\xff\xfe.png"), " .png"]


def test_files_with_odd_names_are_listed_and_names_made_printable(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        (tmp_path / name).touch()
    assert sorted(names(tmp_path)) == sorted(ODD_NAMES)
    assert [printable(Path(name)) for name in ODD_NAMES] == [
        "-rf.png", r"a\nb.png", r"\x1b[31m.png", "🎨.png", r"\xff\xfe.png", " .png"
    ]  # fmt: skip
    for name in ODD_NAMES:
        printable(tmp_path / name).encode()


def test_error_text_is_joined_to_one_line_of_limited_length() -> None:
    assert one_line("a\n  b\tc \x07") == r"a b c \x07"
    assert len(one_line("x" * 1000)) == 200


def test_folder_contents_are_summarized_by_four_names_and_count_of_the_rest(tmp_path: Path) -> None:
    assert list_contents(tmp_path) == "nothing"
    for number in range(6):
        (tmp_path / f"{number}").touch()
    assert list_contents(tmp_path) == "0, 1, 2, 3 and 2 more"
    assert list_contents(tmp_path / "0") == "nothing that can be listed (Not a directory)"
