"""Looking into all files once: what is found, what is remembered, and that nothing is opened twice."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cyclestyle.data.inspection import FileCheck, FileChecks, inspect, what_is_wrong
from cyclestyle.filesystem.listing import Candidate, listing
from cyclestyle.images.decoding import ImageInfo
from tests.filesystem.test_listing import AS_ROOT, ODD_NAMES
from tests.forked import NOBODY, in_a_child
from tests.pictures import folder_of, picture

GOOD = FileCheck(ImageInfo(24, 20, animated=False, decoded=True))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that nothing was put into."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cyclestyle"


def listed(folder: Path) -> list[Candidate]:
    return listing(folder, endings={".png", ".jpg", ".gif"}).candidates


def inspected(folder: Path, *, max_pixels: int = 10**8) -> tuple[dict[str, FileCheck], int]:
    """What was found, and how many files were opened for it."""
    told: list[tuple[int, int]] = []
    found = inspect({folder: listed(folder)}, max_pixels=max_pixels, tell=lambda *counts: told.append(counts))
    assert found is not None
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
    return by_name(found[folder]), len(told)


def by_name(findings: FileChecks) -> dict[str, FileCheck]:
    return {str(name): finding for name, finding in findings.items()}


def spoil(file: Path) -> None:
    """Other bytes that cannot be told from the old ones without opening the file."""
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_seen_before_is_not_opened_again(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 3)
    files[2].write_bytes(b"no picture")
    first, opened = inspected(tmp_path / "x")
    assert opened == 3
    assert first["000.png"] == first["001.png"] == GOOD
    assert first["002.png"].reason == "not a picture that can be read"
    for file in files:
        spoil(file)
    assert inspected(tmp_path / "x") == (first, 0)


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_file_that_changed_is_opened_again_and_no_other(tmp_path: Path, change: str) -> None:
    files = folder_of(tmp_path / "x", 3)
    inspected(tmp_path / "x")
    for file in files:
        spoil(file)
    status = files[1].stat()
    if change == "size":
        files[1].write_bytes(bytes(status.st_size + 1))
    os.utime(files[1], ns=(0, status.st_mtime_ns + (change == "time")))
    found, opened = inspected(tmp_path / "x")
    assert opened == 1
    assert (found["000.png"], found["002.png"]) == (GOOD, GOOD)
    assert found["001.png"].facts is None


def test_folders_of_one_name_in_two_places_are_not_confused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    for place, side in (("one", 24), ("two", 30)):
        file = tmp_path / place / "x" / "a.bmp.png"
        file.parent.mkdir(parents=True)
        picture(1, side, 20).save(file)
        os.utime(file, ns=(0, 0))
        monkeypatch.chdir(tmp_path / place)
        found, _ = inspected(Path("x"))
        assert found["a.bmp.png"].facts == ImageInfo(side, 20, animated=False, decoded=True)
    assert len(list(cache.iterdir())) == 2


def test_odd_names_are_inspected_and_remembered(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ODD_NAMES:
        picture(1).save(tmp_path / "x" / name)
    (tmp_path / "x" / ODD_NAMES[4]).write_bytes(b"no picture")
    first, opened = inspected(tmp_path / "x")
    assert (set(first), opened) == (set(ODD_NAMES), len(ODD_NAMES))
    assert inspected(tmp_path / "x") == (first, 0)


def test_a_limit_that_is_raised_has_the_large_pictures_decoded(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 2)
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-20] + bytes(20))
    header = FileCheck(ImageInfo(24, 20, animated=False, decoded=False))
    assert inspected(tmp_path / "x", max_pixels=479) == ({"000.png": header, "001.png": header}, 2)
    assert inspected(tmp_path / "x", max_pixels=479)[1] == 0
    found, opened = inspected(tmp_path / "x", max_pixels=480)
    assert opened == 2
    assert found["000.png"] == GOOD
    assert "checksum" in found["001.png"].reason
    assert inspected(tmp_path / "x", max_pixels=479) == (found, 0)  # what was learned is not forgotten


def test_pictures_too_large_to_be_decoded_side_by_side_are_decoded_all_the_same(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", 1)
    Image.new("1", (6000, 6000)).save(tmp_path / "x" / "large.png")
    found, opened = inspected(tmp_path / "x")
    assert found["large.png"] == FileCheck(ImageInfo(6000, 6000, animated=False, decoded=True))
    assert opened == 2


def broken_caches(path: Path) -> Iterator[str | bytes]:
    text = path.read_text()
    yield from ("", "[]", "null", "{", "\x00", '{"version": 1}', b"\xff\xfe", "[" * 100_000)
    kept = json.loads(text)
    yield json.dumps(kept | {"version": "0"})
    yield json.dumps(kept | {"folder": "/elsewhere"})
    for files in ([], None, {"000.png": None}, {"000.png": [1, 2, 3]}, {"000.png": "xxxxxx"}):
        yield json.dumps(kept | {"files": files})
    row = kept["files"]["000.png"]
    yield json.dumps(kept | {"files": {"000.png": [*row[:2], None, "x", 1, 1]}})


def test_a_damaged_cache_only_costs_time(tmp_path: Path, cache: Path) -> None:
    folder_of(tmp_path / "x", 1)
    first = inspected(tmp_path / "x")
    (kept,) = cache.iterdir()
    for content in list(broken_caches(kept)):
        kept.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert inspected(tmp_path / "x") == first
        assert inspected(tmp_path / "x") == (first[0], 0)


@pytest.mark.parametrize("where", ["/dev/null/x", "relative", ""])
def test_without_a_cache_everything_is_inspected_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder_of(tmp_path / "x", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", where)
    monkeypatch.setenv("HOME", "/dev/null")  # where a path that is not absolute is not taken
    for _ in range(2):
        assert inspected(tmp_path / "x") == ({"000.png": GOOD}, 1)


def test_one_that_stops_says_nothing_and_keeps_what_it_found(tmp_path: Path, cache: Path) -> None:
    folder_of(tmp_path / "x", 9)
    counts: list[int] = []

    def stopping() -> bool:
        return len(counts) >= 4

    candidates = listed(tmp_path / "x")
    found = inspect(
        {tmp_path / "x": candidates}, max_pixels=10**8, tell=lambda done, _: counts.append(done), stopping=stopping
    )
    assert (found, counts) == (None, [1, 2, 3, 4])
    assert inspected(tmp_path / "x")[1] == 5

    (kept,) = cache.iterdir()
    kept.unlink()
    assert inspect({tmp_path / "x": candidates}, max_pixels=10**8, stopping=lambda: True) is None
    assert inspected(tmp_path / "x")[1] == 9


@pytest.fixture
def shared_cache() -> Iterator[Path]:
    """A cache that every user may write; pytest's folders are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@AS_ROOT
def test_a_refused_permission_is_told_and_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    files = folder_of(tmp_path / "x", 2)
    files[0].chmod(0o600)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    monkeypatch.chdir(tmp_path)  # what lies above is closed to others
    candidates = listed(Path("x"))

    def looked() -> dict[str, FileCheck]:
        found = inspect({Path("x"): candidates}, max_pixels=10**8)
        assert found is not None
        return by_name(found[Path("x")])

    found = in_a_child(looked, uid=NOBODY)
    assert len(list(shared_cache.rglob("*.json"))) == 1
    assert found == {"000.png": FileCheck(None, "Permission denied", False), "001.png": GOOD}
    assert looked() == {"000.png": GOOD, "001.png": GOOD}


def test_no_file_is_opened_where_there_is_none(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", 1)
    os.mkfifo(tmp_path / "x" / "pipe.png")
    (tmp_path / "x" / "gone.png").symlink_to("nowhere")
    found, opened = in_a_child(lambda: inspected(tmp_path / "x"))
    assert opened == 1
    assert {name: finding.reason for name, finding in found.items()} == {
        "000.png": "",
        "gone.png": "a link to nothing",
        "pipe.png": "not a regular file but a pipe",
    }


def test_a_file_that_went_between_listing_and_looking_is_told(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 2)
    candidates = listed(tmp_path / "x")
    files[1].unlink()
    found = inspect({tmp_path / "x": candidates}, max_pixels=10**8)
    assert found is not None
    assert found[tmp_path / "x"][Path("001.png")] == FileCheck(None, "No such file or directory", False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("of\ntwo lines"), "ZeroDivisionError: of two lines"),
        (KeyError(), "KeyError"),
        (MemoryError(), "not enough memory to decode it"),
    ],
)
def test_an_unforeseen_error_is_one_of_its_file_and_is_not_remembered(error: Exception, reason: str) -> None:
    wrong = what_is_wrong(Path("x.png"), error)
    assert (str(wrong), wrong.permanent) == (f"x.png: {reason}", False)


def test_pillow_s_warnings_about_metadata_are_not_shown(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "x.jpg"
    exif = Image.Exif()
    exif[0x010F] = "a maker with a long name"
    picture(1).save(path, exif=exif)
    whole = path.read_bytes()
    at = whole.index(b"Exif\0\0") + 6
    path.write_bytes(whole[: at + 8] + b"\xff\x00" + whole[at + 10 :])  # more entries than there are
    inspected(tmp_path / "x")
    assert not recwarn.list
