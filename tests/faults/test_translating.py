"""Tests of faults during a translation (bad images, kills, signals, full disks): no work is lost or repeated."""

import contextlib
import io
import os
import random
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cyclestyle.errors import CheckpointError, CommandError, DiskError
from cyclestyle.images import colour
from cyclestyle.photoset.worker_pool import Workers
from cyclestyle.translate import translate
from tests.faults.commands import Start, until
from tests.faults.translate_server import (
    HIDDEN,
    Place,
    Translations,
    at_place,
    children,
    done_in,
    files,
    identities,
    lines_of,
    temporary_files,
    wait_for_exit,
)
from tests.forked import NOBODY, in_a_child
from tests.translation.models import noise, pixels_of, write_model, write_picture

SECOND = 1_000_000_000  # ns


@pytest.fixture(scope="module")
def server() -> Iterator[Translations]:
    server = Translations()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(server: Translations, tmp_path: Path, model: Path) -> Iterator[Place]:
    yield from at_place(server, tmp_path, model)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photos of four sizes in three folders."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(40):
        write_picture(folder / f"sub {n % 3}" / f"{n:02}.png", size=(48 + n % 4, 40), seed=n)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Translations of `photos` by an uninterrupted command: name -> contents of the file."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    assert in_process(model, photos, output) == 0
    return files(output)


def in_process(model: Path, photos: Path | str, output: Path, **options: object) -> int:
    """Translate in this process, with the settings of the commands that these tests start; return the exit code."""
    defaults = {"direction": "a2b", "device": "cpu", "precision": "fp32", "workers": 0, "sheet": False, "batch_size": 1}
    return translate(model, str(photos), output, **(defaults | options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- bad images among good


def bad_images(folder: Path) -> dict[str, str]:
    """Write one bad image of each kind into a folder; return file name -> part of the expected failure reason."""
    folder.mkdir(exist_ok=True)
    image = Image.fromarray(noise(40, 30))
    whole = {}
    for ending in ("jpg", "png"):
        image.save(folder / f"whole.{ending}")
        whole[ending] = (folder / f"whole.{ending}").read_bytes()
        (folder / f"whole.{ending}").unlink()
    middle = len(whole["png"]) // 2
    contents = {
        "corrupt.jpg": (noise(40, 30).tobytes(), "not a picture"),
        "truncated.jpg": (whole["jpg"][: len(whole["jpg"]) // 2], "damaged or unreadable"),
        "truncated.png": (whole["png"][:middle], "damaged or unreadable"),
        "empty.jpg": (b"", "empty"),
        "page.jpg": (b"<!DOCTYPE html><html>not found</html>", "a web page"),
        "crc.png": (whole["png"][:middle] + bytes([whole["png"][middle] ^ 1]) + whole["png"][middle + 1 :], "checksum"),
        "huge.png": (png_header(60_000, 50_000), "60,000 x 50,000 pixels are more than"),
        "-dash bad.jpg": (b"x", "not a picture"),
        "🎨 bad.jpg": (b"x", "not a picture"),
        "line\nbreak bad.jpg": (b"x", "not a picture"),
        os.fsdecode(b"latin \xff bad.jpg"): (b"x", "not a picture"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "float.tif")
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as bound:
        current = Path.cwd()
        os.chdir(folder)  # socket paths are limited to about 100 bytes
        bound.bind("socket.jpg")
        os.chdir(current)
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "dead.jpg").symlink_to("nowhere.jpg")
    (folder / "circle.jpg").symlink_to("circle.jpg")
    others = {
        "float.tif": "float",
        "pipe.jpg": "a pipe",
        "socket.jpg": "a socket",
        "zero.jpg": "a device",
        "dead.jpg": "a link to nothing",
        "circle.jpg": "Too many levels",
    }
    return {name: reason for name, (_, reason) in contents.items()} | others


def png_header(width: int, height: int) -> bytes:
    """PNG file that has a header with this size, but no pixels; allocating the pixels would take up to 9 GB."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


GOOD = ["a.png", "-dash.png", "🎨 ö.png", "line\nbreak.png", os.fsdecode(b"latin \xff.png"), "folder.jpg/x.png",
        "sub/a.png"]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_good_images_are_translated_and_bad_images_reported(place: Place, workers: int) -> None:
    for seed, name in enumerate(GOOD):
        write_picture(place.photos / name, size=(9 + seed, 8), seed=seed)
    bad = bad_images(place.photos)
    (place.photos / "sub" / "circle").symlink_to(place.photos)

    since = time.monotonic()
    printed = place.run(f"workers={workers}", "sheet=true", code=6)
    assert time.monotonic() - since < 60

    assert f"{len(GOOD)} ok, {len(bad)} failed in " in printed
    translated = files(place.output)
    assert translated.pop("index.html")
    assert set(translated) == set(GOOD)
    report = {os.path.relpath(line["source"], place.photos): line for line in place.report()}
    assert len(place.report()) == len(report) == len(GOOD) + len(bad)
    assert {name for name, line in report.items() if line["status"] == "translated"} == set(GOOD)
    for name, words in bad.items():
        assert report[name]["status"] == "failed"
        assert words in report[name]["reason"], name
        assert "\n" not in report[name]["reason"]
    for name in GOOD:
        assert pixels_of(place.output / name).shape == pixels_of(place.photos / name).shape
    assert not temporary_files(place.output)

    before = identities(place.output)
    assert f"{len(GOOD)} ok ({len(GOOD)} up to date), {len(bad)} failed in " in place.run("sheet=false", code=6)
    assert identities(place.output) == before


def test_photo_set_without_good_images_is_reported(place: Place) -> None:
    bad = bad_images(place.photos)
    assert f"0 ok, {len(bad)} failed in " in place.run(code=6)
    assert files(place.output) == {}
    assert len(place.report()) == len(bad)


def open_to_nobody(folder: Path, model: Path) -> None:
    """Let another user read the files of a test.

    First translate once, so that this process has imported all modules, which may be readable by root only.
    """
    for parent in [folder, *folder.parents][:4]:  # pytest creates three folders, and a parallel run one more
        if stat.S_IMODE(parent.stat().st_mode) == 0o700:
            parent.chmod(0o755)
    model.parent.chmod(0o755)
    write_picture(folder / "warm" / "x.png")
    assert in_process(model, folder / "warm", folder / "warmed") == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user")
def test_files_and_folders_without_read_permission_are_reported(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "good.png")
    open_to_nobody(tmp_path, model)
    write_picture(tmp_path / "in" / "secret.png")
    write_picture(tmp_path / "in" / "closed" / "x.png")
    (tmp_path / "in" / "secret.png").chmod(0)
    (tmp_path / "in" / "closed").chmod(0)
    (tmp_path / "out").mkdir()
    os.chown(tmp_path / "out", NOBODY, NOBODY)
    assert in_a_child(lambda: in_process(model, tmp_path / "in", tmp_path / "out"), uid=NOBODY) == 6
    report = {Path(line["source"]).name: line for line in lines_of(tmp_path / "out" / HIDDEN / "report.jsonl")}
    assert report["good.png"]["status"] == "translated"
    assert report["secret.png"]["reason"] == "Permission denied"
    assert report["closed"]["reason"] == "this folder cannot be listed: Permission denied"


@pytest.mark.parametrize("source", ["list", "standard input"])
def test_photo_list_with_bad_names_translates_good_photos(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    for seed, name in enumerate(GOOD):
        write_picture(tmp_path / "in" / name, seed=seed)
    bad = [*bad_images(tmp_path / "in"), "gone.jpg", "gone/too.jpg", "a.txt"]
    good = [name for name in GOOD if source != "list" or "\n" not in name]  # a list file separates names by line breaks
    bad = [name for name in bad if source != "list" or "\n" not in name]
    content = (b"\n" if source == "list" else b"\0").join(os.fsencode(name) for name in [*good, *bad])
    monkeypatch.chdir(tmp_path / "in")
    Path("a.txt").write_text("not an image")
    (tmp_path / "list.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert in_process(model, tmp_path / "list.txt" if source == "list" else "-", tmp_path / "out") == 6
    report = lines_of(tmp_path / "out" / HIDDEN / "report.jsonl")
    assert {line["source"] for line in report if line["status"] == "translated"} == set(good)
    assert {line["source"] for line in report if line["status"] == "failed"} == set(bad)


def test_special_characters_in_paths_are_literal(place: Place) -> None:
    for name in ("Größe (2019), it's=ä 🎨", os.fsdecode(b"latin \xff"), "${oc.env:HOME}", "--x=[a,b]"):
        photos, output = place.folder / f"in {name}", place.folder / f"out {name}"
        write_picture(photos / "x.png")
        if "${" in name:
            output.mkdir()  # a path with `${` must exist, since it may be meant as an interpolation
        printed = place.run(f"input={photos}", f"output={output}")
        assert "1 ok, 0 failed" in printed
        assert list(files(output)) == ["x.png"]


# ------------------------------------------------------------------------------------------- kills and signals


def assert_whole(place: Place, uninterrupted: dict[str, bytes]) -> None:
    """Assert that each translation in the output folder is complete: its contents equal those in `uninterrupted`."""
    for name, content in files(place.output).items():
        if not name.endswith(".tmp"):
            assert content == uninterrupted[name], name


def assert_resumes(place: Place, uninterrupted: dict[str, bytes], *arguments: str) -> None:
    """Assert that the same command translates exactly the remaining photos, and completes the output."""
    done = done_in(place.journal())
    before = {name: identity for name, identity in identities(place.output).items() if name in done}
    assert len(before) == len(done)
    printed = place.run(*arguments)
    assert f"{len(uninterrupted)} ok" in printed
    assert f"{len(uninterrupted) - len(done)} to translate" in printed
    after = identities(place.output)
    assert {name: after[name] for name in before} == before
    assert files(place.output) == uninterrupted
    assert not temporary_files(place.output)
    assert done_in(place.journal()) == set(uninterrupted)
    assert len(place.report()) == len(uninterrupted)


def kill_when(place: Place, done: int, *arguments: str) -> bool:
    """Kill the command when its journal has `done` photos; return False if the command finished before that."""
    process = place.start(f"input={place.photos}", *arguments)
    lock = place.output / HIDDEN / "lock"
    until(lambda: process.poll() is not None or (lock.exists() and place.done_count() >= done), f"{done} photos")
    process.kill()
    return process.poll() == -signal.SIGKILL


def test_translation_killed_at_any_journal_length_resumes(
    place: Place, photos: Path, uninterrupted: dict[str, bytes]
) -> None:
    place.photos = photos
    kills = 0
    for done in (0, 1, 7, 8, 20, 33, 39):
        kills += kill_when(place, done)
        assert_whole(place, uninterrupted)
    assert kills >= 3
    assert_resumes(place, uninterrupted)
    assert f"{len(uninterrupted)} up to date" in place.run()


def test_translation_killed_at_random_moments_resumes(
    place: Place, photos: Path, uninterrupted: dict[str, bytes]
) -> None:
    place.photos, chance = photos, random.Random(0)
    for round_ in range(3):
        place.output = place.folder / f"out {round_}"
        process = place.start()
        until((place.output / HIDDEN).exists, "the start", alive=process)
        end = time.monotonic() + chance.uniform(0, 0.5)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        assert_whole(place, uninterrupted)
        assert_resumes(place, uninterrupted)


def test_command_killed_with_busy_workers_leaves_no_worker_and_resumes(
    place: Place, photos: Path, uninterrupted: dict[str, bytes]
) -> None:
    place.photos = photos
    process = place.start("workers=2", "sheet=true")
    until(lambda: place.done_count() >= 4, "four photos", alive=process)
    workers = children(process.pid)
    process.send(signal.SIGKILL)  # only the main process is killed, as by the kernel's out-of-memory killer
    assert process.wait() == -signal.SIGKILL
    wait_for_exit(workers)
    assert_whole(place, uninterrupted)
    assert_resumes(place, uninterrupted)


def wait_for_worker(process: Start) -> None:
    """Wait until a worker process is starting: it has received its task and is importing modules."""

    def is_importing() -> bool:
        for pid in children(process.pid):
            entry = Path(f"/proc/{pid}")
            with contextlib.suppress(OSError):
                if "spawn_main" in (entry / "cmdline").read_text() and "numpy" in (entry / "maps").read_text():
                    return True
        return False

    until(is_importing, "a starting worker", alive=process)


def test_kill_during_worker_start_leaves_no_worker(place: Place, photos: Path) -> None:
    place.photos = photos
    process = place.start("workers=2")
    wait_for_worker(process)
    workers = children(process.pid)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for_exit(workers)


def test_ctrl_c_during_worker_start_prints_two_lines(place: Place, photos: Path) -> None:
    place.photos = photos
    process = place.start("workers=2")
    wait_for_worker(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 75, process.printed()
    assert len(process.printed().splitlines()) == 2, process.printed()


def test_workers_do_not_rerun_main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.__file__ = "<stdin>"
    monkeypatch.setitem(sys.modules, "__main__", main)
    with Workers(1) as workers:
        assert workers.finish(workers.start(os.getpid)) != os.getpid()
    assert sys.modules["__main__"] is main


def test_killed_worker_loses_no_photo(place: Place, photos: Path, uninterrupted: dict[str, bytes]) -> None:
    place.photos = photos
    process = place.start("workers=2")
    until(lambda: place.done_count() >= 2, "two photos", alive=process)
    worker = next(pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    (place.output / "sub 1").mkdir(exist_ok=True)
    (place.output / "sub 1" / ".0123456789abcdef.tmp").write_text("like that of a killed worker")
    assert process.wait() == 0, process.printed()
    assert "40 ok, 0 failed" in process.printed()
    assert files(place.output) == uninterrupted
    assert not temporary_files(place.output)


def test_only_own_temporary_files_are_removed(place: Place, photos: Path) -> None:
    place.photos = photos
    place.run("sheet=true")
    hidden = place.output / HIDDEN
    folders = (place.output, place.output / "sub 1", hidden, hidden / "thumbnails")
    own = [folder / ".0123456789abcdef.tmp" for folder in folders]
    others = [place.output / "sub 1" / ".mine.tmp", place.output / "sub 1" / "0123456789abcdef.tmp"]
    for path in [*own, *others]:
        path.write_text("half of an image")
    place.run("sheet=true")
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_translation_stopped_on_request_ends_quickly_and_resumes(
    place: Place, photos: Path, uninterrupted: dict[str, bytes], number: signal.Signals, workers: int
) -> None:
    place.photos = photos
    process = place.start(f"workers={workers}")
    until(lambda: place.done_count() >= 3, "three photos", alive=process)
    processes = children(process.pid)
    since = time.monotonic()
    process.send(number)
    assert process.wait() == 75, process.printed()
    assert time.monotonic() - since < 10
    assert process.printed().splitlines()[-1] == (
        f"cyclestyle translate: stopped by {number.name}: what is done is kept, and the same command does the rest"
    )
    assert "Traceback" not in process.printed()
    wait_for_exit(processes)
    assert_whole(place, uninterrupted)
    assert len(files(place.output)) - place.done_count() <= 1  # the photo that was being written at the signal
    assert_resumes(place, uninterrupted)


def test_translation_stopped_on_request_writes_contact_sheet_of_finished_photos(place: Place, photos: Path) -> None:
    place.photos = photos
    process = place.start("sheet=true", "workers=0")
    until(lambda: place.done_count() >= 3, "three photos", alive=process)
    process.send(signal.SIGINT)
    assert process.wait() == 75, process.printed()
    done = place.done_count()
    assert done < 40
    page = (place.output / "index.html").read_text()
    assert f"<li>{done} photos</li>" in page
    assert f"<li>stopped early: {40 - done} remain</li>" in page
    assert len(place.report()) == done


# ------------------------------------------------------------------------------------------- disks


def on_small_files(size: int, function: Callable[[], object]) -> object:
    """Run a function in a process that can write at most `size` bytes per file, to simulate a small disk."""

    def limited() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return function()

    return in_a_child(limited, seconds=60)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Folder in which a file system of 256 kB is mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_translation_on_full_disk_keeps_finished_photos_and_resumes(
    place: Place, small_disk: Path, photos: Path, uninterrupted: dict[str, bytes], workers: int
) -> None:
    place.photos, place.output = photos, small_disk / "out"
    *_, last = place.run(f"workers={workers}", code=74).splitlines()
    assert last.startswith(f"cyclestyle translate: cannot write {small_disk}/out/")
    assert "no space left on device; all pictures written so far are whole, and the same command does the rest" in last
    assert not temporary_files(small_disk)
    assert_whole(place, uninterrupted)
    assert 20 <= len(files(place.output)) < 40
    assert len(files(place.output)) - place.done_count() <= 1  # the photo whose journal line did not fit on the disk

    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert_resumes(place, uninterrupted)


def test_error_names_first_file_above_file_size_limit(tmp_path: Path, model: Path) -> None:
    for name, size in (("a.png", 8), ("b.png", 8), ("c.png", 90), ("d.png", 8)):
        write_picture(tmp_path / "in" / name, size=(size, size))
    with pytest.raises(DiskError, match=rf"cannot write {tmp_path}/out/c\.png: file too large; all pictures written"):
        on_small_files(16_384, lambda: in_process(model, tmp_path / "in", tmp_path / "out"))
    assert {"a.png", "b.png"} <= set(files(tmp_path / "out")) <= {"a.png", "b.png", "d.png"}
    before = identities(tmp_path / "out")
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    assert before.items() <= identities(tmp_path / "out").items()


def test_translation_ends_on_failed_journal_write_and_can_be_resumed(tmp_path: Path, model: Path) -> None:
    for n in range(20):
        write_picture(tmp_path / "in" / f"{n:02}.png", size=(3, 3), seed=n)
    with pytest.raises(DiskError, match=r"cannot write .*/\.cyclestyle/journal\.jsonl: "):
        on_small_files(4096, lambda: in_process(model, tmp_path / "in", tmp_path / "out"))
    done = done_in(lines_of(tmp_path / "out" / HIDDEN / "journal.jsonl"))
    assert 0 < len(done) < 20
    before = {name: identity for name, identity in identities(tmp_path / "out").items() if name in done}
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    assert before.items() <= identities(tmp_path / "out").items()
    assert len(done_in(lines_of(tmp_path / "out" / HIDDEN / "journal.jsonl"))) == len(files(tmp_path / "out")) == 20


def test_full_disk_at_contact_sheet_fails_only_after_all_photos_are_written(tmp_path: Path, model: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", size=(20, 20), seed=n)
    with pytest.raises(DiskError, match=r"cannot write .*/out/index\.html: file too large"):
        on_small_files(8192, lambda: in_process(model, tmp_path / "in", tmp_path / "out", sheet=True))
    assert not temporary_files(tmp_path / "out")
    before = identities(tmp_path / "out")
    assert len(before) == 3
    assert in_process(model, tmp_path / "in", tmp_path / "out", sheet=True) == 0
    assert before.items() <= identities(tmp_path / "out").items()
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize("name", ["thumbnails", "report.jsonl"])
def test_file_where_a_folder_is_expected_is_reported_and_the_reverse(tmp_path: Path, model: Path, name: str) -> None:
    write_picture(tmp_path / "in" / "x.png")
    in_the_way = tmp_path / "out" / HIDDEN / name
    in_the_way.parent.mkdir(parents=True)
    if name == "thumbnails":
        in_the_way.write_text("a file where a folder should be")
    else:
        in_the_way.mkdir()
    with pytest.raises(DiskError, match=rf"cannot write .*{name}"):
        in_process(model, tmp_path / "in", tmp_path / "out", sheet=True)
    assert ("x.png" in files(tmp_path / "out")) == (
        name == "report.jsonl"
    )  # an obstacle to the thumbnails is found before any translation


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user")
def test_output_folder_owned_by_another_user_is_rejected_before_work(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "in" / "x.png")
    open_to_nobody(tmp_path, model)
    (tmp_path / "foreign" / "sub").mkdir(parents=True)
    capfd.readouterr()
    for output in (tmp_path / "foreign", tmp_path / "foreign" / "new"):
        with pytest.raises(DiskError, match=rf"cannot write {output}/\.cyclestyle: permission denied"):
            in_a_child(lambda: in_process(model, tmp_path / "in", output), uid=NOBODY)  # noqa: B023
    assert "to translate" not in capfd.readouterr().out


# ------------------------------------------------------------------------------------------- sizes, names, places


def test_image_sizes_from_1_to_40_px_are_preserved_by_translation(tmp_path: Path, model: Path) -> None:
    """Translate images of 1,600 sizes: a third has alpha, a third has EXIF data with a rotation and a location."""
    random_bytes = noise(64, 64)
    (tmp_path / "in").mkdir()
    for height in range(1, 41):
        for width in range(1, 41):
            write_variant(tmp_path / "in", random_bytes[:height, :width], (height + width) % 3)
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    paths = {name: tmp_path / "out" / name for name in files(tmp_path / "out")}
    assert len(paths) == 1600
    for name, path in paths.items():
        width, height, kind = map(int, path.stem.split("-"))
        with Image.open(path) as image:
            assert image.size == (width, height), name
            assert image.mode == ("RGBA" if kind == 1 else "RGB")
            assert image.info["icc_profile"] == colour.srgb()
            assert dict(image.getexif()) == {}
            if kind == 1:
                with Image.open(tmp_path / "in" / name) as source:
                    assert np.array_equal(np.asarray(image)[..., 3], np.asarray(source)[..., 3]), name


def write_variant(folder: Path, pixels: np.ndarray, kind: int) -> None:
    """Write `WIDTH-HEIGHT-KIND.png`, named by the upright image's size; kind 1 has alpha, kind 2 an EXIF rotation."""
    height, width = pixels.shape[:2]
    if kind == 1:
        pixels = np.dstack([pixels, pixels[..., :1]])
    exif = Image.Exif()
    if kind == 2:
        exif[0x0112] = 6
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0)})
        width, height = height, width
    Image.fromarray(pixels).save(folder / f"{width}-{height}-{kind}.png", exif=exif if kind == 2 else None)


def test_similar_names_get_distinct_outputs(tmp_path: Path, model: Path) -> None:
    names = [
        "a.jpg",
        "a.png",
        "A.png",
        "a.PNG",
        "a.jpg.png",
        "sub/a.png",
        "Sub/a.png",
        "sub/a.webp",
        "ö.png",
        "o\u0308.png",
    ]
    for seed, name in enumerate(names):
        write_picture(tmp_path / "in" / name, size=(10 + seed, 8), seed=seed)
    assert in_process(model, tmp_path / "in", tmp_path / "out", format="png") == 0
    report = lines_of(tmp_path / "out" / HIDDEN / "report.jsonl")
    targets = {os.path.relpath(line["source"], tmp_path / "in"): line["targets"][0] for line in report}
    folded = {target.casefold() for target in targets.values()}
    assert len(targets) == len(folded) == len(files(tmp_path / "out")) == len(names)
    for seed, name in enumerate(names):
        assert pixels_of(tmp_path / "out" / targets[name]).shape == (8, 10 + seed, 3)
    before = identities(tmp_path / "out")
    assert in_process(model, tmp_path / "in", tmp_path / "out", format="png") == 0
    assert identities(tmp_path / "out") == before


def test_file_of_user_at_output_path_of_failed_photo_is_kept(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "own.png")
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    whole = (tmp_path / "in" / "own.png").read_bytes()
    for name in ("own.png", "foreign.png"):
        (tmp_path / "in" / name).write_bytes(b"damaged")
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 6
    foreign = write_picture(tmp_path / "out" / "foreign.png", seed=5)  # made by the user, because its photo failed
    before = identities(tmp_path / "out")
    for name in ("own.png", "foreign.png"):
        (tmp_path / "in" / name).write_bytes(whole)
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    after = identities(tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out" / "foreign.png"), foreign)
    assert after["foreign.png"] == before["foreign.png"]
    assert after["own.png"] != before["own.png"]


def test_inputs_are_never_overwritten(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_picture(tmp_path / "in" / "y.png", seed=1)
    before = identities(tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for source, output in (("in", "in"), ("in", "link"), ("link", "in"), ("in", "in/../in"), ("in/*.png", "in"),
                           ("in/x.png", "in/x.png"), ("in/x.png", "in"), ("in/x.png", "link/x.png")):  # fmt: skip
        with pytest.raises(CommandError, match="inputs are never overwritten"):
            in_process(model, tmp_path / source, tmp_path / output, existing="overwrite")
    assert identities(tmp_path / "in") == before


def test_no_output_is_read_if_input_folder_contains_output_folder(tmp_path: Path, model: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    for output in ("out", "out", "second/out", "out", "second/out", "out"):
        assert in_process(model, tmp_path / "in", tmp_path / "in" / output, sheet=True) == 0
        rows = lines_of(tmp_path / "in" / output / HIDDEN / "report.jsonl")
        assert len([row for row in rows if row["status"] != "passed over"]) == 3
    assert len(list((tmp_path / "in").rglob("*.png"))) == 9


# ------------------------------------------------------------------------------------------- models and memory


def test_photo_too_large_for_memory_is_tiled_or_reported_as_failed(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "large.png", size=(400, 300))
    write_picture(tmp_path / "in" / "small.png", size=(8, 8))
    assert in_process(model, tmp_path / "in", tmp_path / "whole", memory="1GB") == 0
    assert in_process(model, tmp_path / "in", tmp_path / "out", tile="off", memory="2MB") == 0
    assert in_process(model, tmp_path / "in", tmp_path / "tiled", tile=64) == 0
    whole, tiled = (pixels_of(tmp_path / name / "large.png").astype(int) for name in ("whole", "tiled"))
    assert np.abs(whole - tiled).max() <= 1
    assert in_process(model, tmp_path / "in", tmp_path / "none", memory="2MB") == 6
    report = {Path(line["source"]).name: line for line in lines_of(tmp_path / "none" / HIDDEN / "report.jsonl")}
    assert report["large.png"]["reason"].startswith("memory=2.0 MB cannot hold")


@pytest.mark.parametrize("damage", [b"", b"not a model", b"\xff" * 64, None])
def test_damaged_model_is_rejected_before_writing(tmp_path: Path, model: Path, damage: bytes) -> None:
    write_picture(tmp_path / "in" / "x.png")
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(model.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(CheckpointError):
        in_process(broken, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
