"""Inspection of image files: results, the cache, and which files are opened."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cyclestyle.data.inspection import FileCheck, FileChecks, as_image_error, inspect
from cyclestyle.filesystem.listing import Candidate, listing
from cyclestyle.images.decoding import ImageInfo
from cyclestyle.images.reading import ImageReader
from tests.filesystem.test_listing import AS_ROOT, ODD_NAMES
from tests.forked import NOBODY, in_a_child
from tests.pictures import folder_of, picture

GOOD = FileCheck(ImageInfo(24, 20, animated=False, decoded=True))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for the inspection cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cyclestyle"


def listed(folder: Path) -> list[Candidate]:
    return listing(folder, endings={".png", ".jpg", ".gif"}).candidates


def inspected(folder: Path, **settings: object) -> tuple[dict[str, FileCheck], int]:
    """Return the results of inspecting `folder`, and the number of files that were opened."""
    progress: list[tuple[int, int]] = []
    checks = inspect(
        {folder: listed(folder)},
        reader=ImageReader(**settings),
        on_progress=lambda *counts: progress.append(counts),
    )
    assert checks is not None
    assert progress == [(done, len(progress)) for done in range(1, len(progress) + 1)]
    return by_name(checks[folder]), len(progress)


def by_name(checks: FileChecks) -> dict[str, FileCheck]:
    return {str(name): check for name, check in checks.items()}


def spoil(file: Path) -> None:
    """Replace the content of `file`, but keep its size and time of modification."""
    status = file.stat()
    file.write_bytes(bytes(status.st_size))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_cached_files_are_not_opened_again(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 3)
    files[2].write_bytes(b"no picture")
    first, opened = inspected(tmp_path / "x")
    assert opened == 3
    assert first["000.png"] == first["001.png"] == GOOD
    assert first["002.png"].reason == "not a picture that can be read"
    for file in files:
        spoil(file)
    assert inspected(tmp_path / "x") == (first, 0)


def test_managed_and_raw_colour_have_separate_caches(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 2)
    first = inspected(tmp_path / "x", colour="raw")
    assert inspected(tmp_path / "x", colour="managed") == first == ({"000.png": GOOD, "001.png": GOOD}, 2)
    for file in files:
        spoil(file)
    for colour in ("raw", "managed"):
        assert inspected(tmp_path / "x", colour=colour) == (first[0], 0)


@pytest.mark.parametrize("change", ["time", "size"])
def test_only_changed_file_is_opened_again(tmp_path: Path, change: str) -> None:
    files = folder_of(tmp_path / "x", 3)
    inspected(tmp_path / "x")
    for file in files:
        spoil(file)
    status = files[1].stat()
    if change == "size":
        files[1].write_bytes(bytes(status.st_size + 1))
    os.utime(files[1], ns=(0, status.st_mtime_ns + (change == "time")))
    checks, opened = inspected(tmp_path / "x")
    assert opened == 1
    assert (checks["000.png"], checks["002.png"]) == (GOOD, GOOD)
    assert checks["001.png"].facts is None


def test_folders_of_same_name_have_separate_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    for place, side in (("one", 24), ("two", 30)):
        file = tmp_path / place / "x" / "a.bmp.png"
        file.parent.mkdir(parents=True)
        picture(1, side, 20).save(file)
        os.utime(file, ns=(0, 0))
        monkeypatch.chdir(tmp_path / place)
        checks, _ = inspected(Path("x"))
        assert checks["a.bmp.png"].facts == ImageInfo(side, 20, animated=False, decoded=True)
    assert len(list(cache.iterdir())) == 2


def test_odd_file_names_are_cached(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for name in ODD_NAMES:
        picture(1).save(tmp_path / "x" / name)
    (tmp_path / "x" / ODD_NAMES[4]).write_bytes(b"no picture")
    first, opened = inspected(tmp_path / "x")
    assert (set(first), opened) == (set(ODD_NAMES), len(ODD_NAMES))
    assert inspected(tmp_path / "x") == (first, 0)


def test_large_images_are_decoded_after_max_pixels_increases(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 2)
    intact = files[1].read_bytes()
    files[1].write_bytes(intact[:-20] + bytes(20))
    header = FileCheck(ImageInfo(24, 20, animated=False, decoded=False))
    assert inspected(tmp_path / "x", max_pixels=479) == ({"000.png": header, "001.png": header}, 2)
    assert inspected(tmp_path / "x", max_pixels=479)[1] == 0
    checks, opened = inspected(tmp_path / "x", max_pixels=480)
    assert opened == 2
    assert checks["000.png"] == GOOD
    assert "checksum" in checks["001.png"].reason
    assert inspected(tmp_path / "x", max_pixels=479) == (checks, 0)  # results of decoded images stay in the cache


def test_very_large_image_is_decoded(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", 1)
    Image.new("1", (6000, 6000)).save(tmp_path / "x" / "large.png")
    checks, opened = inspected(tmp_path / "x")
    assert checks["large.png"] == FileCheck(ImageInfo(6000, 6000, animated=False, decoded=True))
    assert opened == 2


def broken_caches(path: Path) -> Iterator[str | bytes]:
    text = path.read_text()
    yield from ("", "[]", "null", "{", "\x00", '{"version": 1}', b"\xff\xfe", "[" * 100_000)
    content = json.loads(text)
    yield json.dumps(content | {"version": "0"})
    yield json.dumps(content | {"folder": "/elsewhere"})
    for files in ([], None, {"000.png": None}, {"000.png": [1, 2, 3]}, {"000.png": "xxxxxx"}):
        yield json.dumps(content | {"files": files})
    row = content["files"]["000.png"]
    yield json.dumps(content | {"files": {"000.png": [*row[:2], None, "x", 1, 1]}})


def test_damaged_cache_is_rebuilt(tmp_path: Path, cache: Path) -> None:
    folder_of(tmp_path / "x", 1)
    first = inspected(tmp_path / "x")
    (cache_file,) = cache.iterdir()
    for content in list(broken_caches(cache_file)):
        cache_file.write_bytes(content if isinstance(content, bytes) else content.encode())
        assert inspected(tmp_path / "x") == first
        assert inspected(tmp_path / "x") == (first[0], 0)


@pytest.mark.parametrize("where", ["/dev/null/x", "relative", ""])
def test_files_are_inspected_every_time_if_cache_is_unwritable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder_of(tmp_path / "x", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", where)
    monkeypatch.setenv("HOME", "/dev/null")  # fallback for a relative XDG_CACHE_HOME
    for _ in range(2):
        assert inspected(tmp_path / "x") == ({"000.png": GOOD}, 1)


def test_partial_results_are_cached_if_inspection_stops(tmp_path: Path, cache: Path) -> None:
    folder_of(tmp_path / "x", 9)
    counts: list[int] = []

    def stopping() -> bool:
        return len(counts) >= 4

    candidates = listed(tmp_path / "x")
    checks = inspect(
        {tmp_path / "x": candidates},
        reader=ImageReader(),
        on_progress=lambda done, _: counts.append(done),
        stopping=stopping,
    )
    assert (checks, counts) == (None, [1, 2, 3, 4])
    assert inspected(tmp_path / "x")[1] == 5

    (cache_file,) = cache.iterdir()
    cache_file.unlink()
    assert inspect({tmp_path / "x": candidates}, reader=ImageReader(), stopping=lambda: True) is None
    assert inspected(tmp_path / "x")[1] == 9


@pytest.fixture
def shared_cache() -> Iterator[Path]:
    """A cache folder writable by every user; pytest's own folders are closed to other users."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@AS_ROOT
def test_permission_error_is_reported_and_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    files = folder_of(tmp_path / "x", 2)
    files[0].chmod(0o600)
    tmp_path.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    monkeypatch.chdir(tmp_path)  # the folders above are closed to other users
    candidates = listed(Path("x"))

    def inspect_again() -> dict[str, FileCheck]:
        checks = inspect({Path("x"): candidates}, reader=ImageReader())
        assert checks is not None
        return by_name(checks[Path("x")])

    checks = in_a_child(inspect_again, uid=NOBODY)
    assert len(list(shared_cache.rglob("*.json"))) == 1
    assert checks == {"000.png": FileCheck(None, "Permission denied", False), "001.png": GOOD}
    assert inspect_again() == {"000.png": GOOD, "001.png": GOOD}


def test_special_files_are_not_opened(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", 1)
    os.mkfifo(tmp_path / "x" / "pipe.png")
    (tmp_path / "x" / "gone.png").symlink_to("nowhere")
    checks, opened = in_a_child(lambda: inspected(tmp_path / "x"))
    assert opened == 1
    assert {name: check.reason for name, check in checks.items()} == {
        "000.png": "",
        "gone.png": "a link to nothing",
        "pipe.png": "not a regular file but a pipe",
    }


def test_file_removed_after_listing_is_reported(tmp_path: Path) -> None:
    files = folder_of(tmp_path / "x", 2)
    candidates = listed(tmp_path / "x")
    files[1].unlink()
    checks = inspect({tmp_path / "x": candidates}, reader=ImageReader())
    assert checks is not None
    assert checks[tmp_path / "x"][Path("001.png")] == FileCheck(None, "No such file or directory", False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ZeroDivisionError("of\ntwo lines"), "ZeroDivisionError: of two lines"),
        (KeyError(), "KeyError"),
        (MemoryError(), "not enough memory to decode it"),
    ],
)
def test_unexpected_error_is_reported_and_not_cached(error: Exception, reason: str) -> None:
    image_error = as_image_error(Path("x.png"), error)
    assert (str(image_error), image_error.permanent) == (f"x.png: {reason}", False)


def test_pillow_metadata_warnings_are_hidden(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "x").mkdir()
    path = tmp_path / "x" / "x.jpg"
    exif = Image.Exif()
    exif[0x010F] = "a maker with a long name"
    picture(1).save(path, exif=exif)
    intact = path.read_bytes()
    start = intact.index(b"Exif\0\0") + 6
    # This number of EXIF entries is higher than the number of entries in the file.
    path.write_bytes(intact[: start + 8] + b"\xff\x00" + intact[start + 10 :])
    inspected(tmp_path / "x")
    assert not recwarn.list
