"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from cyclestyle.filesystem.atomic import atomic_write, write_text


def test_a_file_appears_under_its_name_when_the_block_ends_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "größe 🎨.txt"
    with atomic_write(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "status.json"
    write_text(target, "old")

    def interrupted() -> None:
        with atomic_write(target) as stream:
            stream.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_what_is_being_written_lies_beside_its_target_and_is_no_picture(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out.png"):
        (unfinished,) = tmp_path.iterdir()
        assert unfinished.name.startswith(".")
        assert unfinished.suffix == ".tmp"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "ours", "")
        (tmp_path / "usual").touch()
        now = os.umask(umask)
    finally:
        os.umask(before)
    assert now == umask
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_text_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "größe 🎨\n")
    assert (tmp_path / "text").read_bytes() == "größe 🎨\n".encode()
