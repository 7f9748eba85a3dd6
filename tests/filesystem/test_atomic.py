"""Atomic writes: after each write, the target file has either all of its new content or its old content."""

import os
from pathlib import Path

import pytest

from cyclestyle.filesystem.atomic import atomic_write, write_text


def test_target_file_appears_only_when_with_block_exits(tmp_path: Path) -> None:
    target = tmp_path / "größe 🎨.txt"
    with atomic_write(target) as stream:
        stream.write(b"new")
        stream.flush()
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_exception_in_with_block_keeps_old_file_and_removes_temporary_file(tmp_path: Path) -> None:
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


def test_temporary_file_is_hidden_and_beside_its_target(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out.png"):
        (temporary,) = tmp_path.iterdir()
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".tmp"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_file_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "written", "")
        (tmp_path / "usual").touch()
        now = os.umask(umask)
    finally:
        os.umask(before)
    assert now == umask
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_write_text_encodes_text_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "größe 🎨\n")
    assert (tmp_path / "text").read_bytes() == "größe 🎨\n".encode()
