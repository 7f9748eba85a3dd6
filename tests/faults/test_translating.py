"""Translating a set while it is broken: bad pictures, kills, signals, full disks. Nothing good is lost or redone."""

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
    temporaries,
    wait_for_all,
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
def undisturbed(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a command that nothing happens to makes of them."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert in_process(model, photos, output) == 0
    return files(output)


def in_process(model: Path, photos: Path | str, output: Path, **options: object) -> int:
    """The command without its command line, as the processes of these tests run it."""
    given = {"direction": "a2b", "device": "cpu", "precision": "fp32", "workers": 0, "sheet": False, "batch_size": 1}
    return translate(model, str(photos), output, **(given | options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- bad pictures among good


def bad_pictures(folder: Path) -> dict[str, str]:
    """Put everything that can be wrong with a picture into a folder; returns each name with words of its reason."""
    folder.mkdir(exist_ok=True)
    picture = Image.fromarray(noise(40, 30))
    whole = {}
    for ending in ("jpg", "png"):
        picture.save(folder / f"whole.{ending}")
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
        here = Path.cwd()
        os.chdir(folder)  # the name of a socket may not be long
        bound.bind("socket.jpg")
        os.chdir(here)
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
    """A PNG that says how large it is, and nothing else: 9 GB if anybody believed it."""
    told = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + told + struct.pack(">I", zlib.crc32(told))


GOOD = ["a.png", "-dash.png", "🎨 ö.png", "line\nbreak.png", os.fsdecode(b"latin \xff.png"), "folder.jpg/x.png",
        "sub/a.png"]  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_every_good_picture_is_written_and_every_bad_one_reported_with_its_reason(place: Place, workers: int) -> None:
    for seed, name in enumerate(GOOD):
        write_picture(place.photos / name, size=(9 + seed, 8), seed=seed)
    bad = bad_pictures(place.photos)
    (place.photos / "sub" / "circle").symlink_to(place.photos)

    since = time.monotonic()
    said = place.run(f"workers={workers}", "sheet=true", code=6)
    assert time.monotonic() - since < 60

    assert f"{len(GOOD)} ok, {len(bad)} failed in " in said
    made = files(place.output)
    assert made.pop("index.html")
    assert set(made) == set(GOOD)
    report = {os.path.relpath(line["source"], place.photos): line for line in place.report()}
    assert len(place.report()) == len(report) == len(GOOD) + len(bad)
    assert {name for name, line in report.items() if line["status"] == "translated"} == set(GOOD)
    for name, words in bad.items():
        assert report[name]["status"] == "failed"
        assert words in report[name]["reason"], name
        assert "\n" not in report[name]["reason"]
    for name in GOOD:
        assert pixels_of(place.output / name).shape == pixels_of(place.photos / name).shape
    assert not temporaries(place.output)

    before = identities(place.output)
    assert f"{len(GOOD)} ok ({len(GOOD)} up to date), {len(bad)} failed in " in place.run("sheet=false", code=6)
    assert identities(place.output) == before


def test_a_set_of_bad_pictures_only_is_reported_all_the_same(place: Place) -> None:
    bad = bad_pictures(place.photos)
    assert f"0 ok, {len(bad)} failed in " in place.run(code=6)
    assert files(place.output) == {}
    assert len(place.report()) == len(bad)


def open_to_nobody(folder: Path, model: Path) -> None:
    """Somebody else may read a test's files, and finds all modules imported: they may lie where only root reads."""
    for parent in [folder, *folder.parents][:4]:  # pytest's three, and one more where it runs several processes
        if stat.S_IMODE(parent.stat().st_mode) == 0o700:
            parent.chmod(0o755)
    model.parent.chmod(0o755)
    write_picture(folder / "warm" / "x.png")
    assert in_process(model, folder / "warm", folder / "warmed") == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not read a file")
def test_what_may_not_be_read_is_reported(tmp_path: Path, model: Path) -> None:
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


@pytest.mark.parametrize("by", ["list", "standard input"])
def test_a_list_with_bad_names_does_the_good_ones(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    for seed, name in enumerate(GOOD):
        write_picture(tmp_path / "in" / name, seed=seed)
    bad = [*bad_pictures(tmp_path / "in"), "gone.jpg", "gone/too.jpg", "a.txt"]
    good = [name for name in GOOD if by != "list" or "\n" not in name]  # which only zero bytes can separate
    bad = [name for name in bad if by != "list" or "\n" not in name]
    told = (b"\n" if by == "list" else b"\0").join(os.fsencode(name) for name in [*good, *bad])
    monkeypatch.chdir(tmp_path / "in")
    Path("a.txt").write_text("not a picture")
    (tmp_path / "list.txt").write_bytes(told)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(told)))
    assert in_process(model, tmp_path / "list.txt" if by == "list" else "-", tmp_path / "out") == 6
    report = lines_of(tmp_path / "out" / HIDDEN / "report.jsonl")
    assert {line["source"] for line in report if line["status"] == "translated"} == set(good)
    assert {line["source"] for line in report if line["status"] == "failed"} == set(bad)


def test_paths_work_as_they_are_typed(place: Place) -> None:
    for name in ("Größe (2019), it's=ä 🎨", os.fsdecode(b"latin \xff"), "${oc.env:HOME}", "--x=[a,b]"):
        photos, output = place.folder / f"in {name}", place.folder / f"out {name}"
        write_picture(photos / "x.png")
        said = place.run(f"input={photos}", f"output={output}")
        assert "1 ok, 0 failed" in said
        assert list(files(output)) == ["x.png"]


# ------------------------------------------------------------------------------------------- kills and signals


def assert_whole(place: Place, undisturbed: dict[str, bytes]) -> None:
    """Whatever stands in the output under the name of a translation is that translation, all of it."""
    for name, content in files(place.output).items():
        if not name.endswith(".tmp"):
            assert content == undisturbed[name], name


def assert_goes_on(place: Place, undisturbed: dict[str, bytes], *arguments: str) -> None:
    """The same command does the rest: what was noted is not made again, and the end is the undisturbed one."""
    done = done_in(place.journal())
    before = {name: identity for name, identity in identities(place.output).items() if name in done}
    assert len(before) == len(done)
    said = place.run(*arguments)
    assert f"{len(undisturbed)} ok" in said
    assert f"{len(undisturbed) - len(done)} to translate" in said
    after = identities(place.output)
    assert {name: after[name] for name in before} == before
    assert files(place.output) == undisturbed
    assert not temporaries(place.output)
    assert done_in(place.journal()) == set(undisturbed)
    assert len(place.report()) == len(undisturbed)


def kill_when(place: Place, noted: int, *arguments: str) -> bool:
    """Start the command and kill it when so many photos are noted as done; False if it was quicker."""
    process = place.start(f"input={place.photos}", *arguments)
    taken = place.output / HIDDEN / "lock"
    until(lambda: process.poll() is not None or (taken.exists() and place.noted() >= noted), f"{noted} photos")
    process.kill()
    return process.poll() == -signal.SIGKILL


def test_killed_at_any_length_of_the_journal_it_goes_on_where_it_was(
    place: Place, photos: Path, undisturbed: dict[str, bytes]
) -> None:
    place.photos = photos
    kills = 0
    for noted in (0, 1, 7, 8, 20, 33, 39):
        kills += kill_when(place, noted)
        assert_whole(place, undisturbed)
    assert kills >= 3
    assert_goes_on(place, undisturbed)
    assert f"{len(undisturbed)} up to date" in place.run()


def test_killed_at_random_moments_it_goes_on_where_it_was(
    place: Place, photos: Path, undisturbed: dict[str, bytes]
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
        assert_whole(place, undisturbed)
        assert_goes_on(place, undisturbed)


def test_killed_with_its_workers_at_work_it_leaves_none_and_goes_on(
    place: Place, photos: Path, undisturbed: dict[str, bytes]
) -> None:
    place.photos = photos
    process = place.start("workers=2", "sheet=true")
    until(lambda: place.noted() >= 4, "four photos", alive=process)
    workers = children(process.pid)
    process.send(signal.SIGKILL)  # it alone, as the system does that is short of memory
    assert process.wait() == -signal.SIGKILL
    wait_for_all(workers)
    assert_whole(place, undisturbed)
    assert_goes_on(place, undisturbed)


def wait_for_worker(process: Start) -> None:
    """Wait for a worker that starts: it has been told what to do, and imports what that takes."""

    def found() -> bool:
        for pid in children(process.pid):
            about = Path(f"/proc/{pid}")
            with contextlib.suppress(OSError):
                if "spawn_main" in (about / "cmdline").read_text() and "numpy" in (about / "maps").read_text():
                    return True
        return False

    until(found, "a worker that starts", alive=process)


def test_killed_while_its_workers_start_it_leaves_none(place: Place, photos: Path) -> None:
    place.photos = photos
    process = place.start("workers=2")
    wait_for_worker(process)
    workers = children(process.pid)
    process.send(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_for_all(workers)


def test_a_terminal_s_ctrl_c_while_workers_start_ends_all_without_a_word_of_theirs(place: Place, photos: Path) -> None:
    place.photos = photos
    process = place.start("workers=2")
    wait_for_worker(process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 75, process.said()
    assert len(process.said().splitlines()) == 2, process.said()


def test_workers_need_no_program_that_can_be_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    main = ModuleType("__main__")
    main.__file__ = "<stdin>"
    monkeypatch.setitem(sys.modules, "__main__", main)
    with Workers(1) as workers:
        assert workers.finish(workers.start(os.getpid)) != os.getpid()
    assert sys.modules["__main__"] is main


def test_one_killed_worker_costs_no_photo(place: Place, photos: Path, undisturbed: dict[str, bytes]) -> None:
    place.photos = photos
    process = place.start("workers=2")
    until(lambda: place.noted() >= 2, "two photos", alive=process)
    worker = next(pid for pid in children(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    (place.output / "sub 1").mkdir(exist_ok=True)
    (place.output / "sub 1" / ".0123456789abcdef.tmp").write_text("as it may leave it")
    assert process.wait() == 0, process.said()
    assert "40 ok, 0 failed" in process.said()
    assert files(place.output) == undisturbed
    assert not temporaries(place.output)


def test_what_was_left_half_written_is_swept_wherever_it_is_and_nothing_else(place: Place, photos: Path) -> None:
    place.photos = photos
    place.run("sheet=true")
    hidden = place.output / HIDDEN
    places = (place.output, place.output / "sub 1", hidden, hidden / "thumbnails")
    left = [folder / ".0123456789abcdef.tmp" for folder in places]
    others = [place.output / "sub 1" / ".mine.tmp", place.output / "sub 1" / "0123456789abcdef.tmp"]
    for path in [*left, *others]:
        path.write_text("half of a picture")
    place.run("sheet=true")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_asked_to_stop_it_ends_at_once_and_the_same_command_does_the_rest(
    place: Place, photos: Path, undisturbed: dict[str, bytes], number: signal.Signals, workers: int
) -> None:
    place.photos = photos
    process = place.start(f"workers={workers}")
    until(lambda: place.noted() >= 3, "three photos", alive=process)
    workers_there = children(process.pid)
    since = time.monotonic()
    process.send(number)
    assert process.wait() == 75, process.said()
    assert time.monotonic() - since < 10
    assert process.said().splitlines()[-1] == (
        f"cyclestyle translate: stopped by {number.name}: what is done is kept, and the same command does the rest"
    )
    assert "Traceback" not in process.said()
    wait_for_all(workers_there)
    assert_whole(place, undisturbed)
    assert len(files(place.output)) - place.noted() <= 1  # the one that was just being handed to its writer
    assert_goes_on(place, undisturbed)


# ------------------------------------------------------------------------------------------- disks


def on_small_files(size: int, function: Callable[[], object]) -> object:
    """A function in a process that can make no file larger than `size` bytes, as if the disk were that small."""

    def limited() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return function()

    return in_a_child(limited, seconds=60)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fills_up_keeps_what_is_good_and_with_room_again_none_of_it_is_made_again(
    place: Place, small_disk: Path, photos: Path, undisturbed: dict[str, bytes], workers: int
) -> None:
    place.photos, place.output = photos, small_disk / "out"
    *_, last = place.run(f"workers={workers}", code=74).splitlines()
    assert last.startswith(f"cyclestyle translate: cannot write {small_disk}/out/")
    assert "no space left on device; all pictures written so far are whole, and the same command does the rest" in last
    assert not temporaries(small_disk)
    assert_whole(place, undisturbed)
    assert 20 <= len(files(place.output)) < 40
    assert len(files(place.output)) - place.noted() <= 1  # the one whose line had no room

    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert_goes_on(place, undisturbed)


def test_a_disk_that_takes_small_files_only_fails_with_the_name_of_the_first_large_one(
    tmp_path: Path, model: Path
) -> None:
    for name, size in (("a.png", 8), ("b.png", 8), ("c.png", 90), ("d.png", 8)):
        write_picture(tmp_path / "in" / name, size=(size, size))
    with pytest.raises(DiskError, match=rf"cannot write {tmp_path}/out/c\.png: file too large; all pictures written"):
        on_small_files(16_384, lambda: in_process(model, tmp_path / "in", tmp_path / "out"))
    assert {"a.png", "b.png"} <= set(files(tmp_path / "out")) <= {"a.png", "b.png", "d.png"}
    before = identities(tmp_path / "out")
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    assert before.items() <= identities(tmp_path / "out").items()


def test_a_journal_that_has_no_room_ends_the_command_and_nothing_noted_is_made_again(
    tmp_path: Path, model: Path
) -> None:
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


def test_no_room_for_the_page_is_told_when_all_photos_are_written(tmp_path: Path, model: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", size=(20, 20), seed=n)
    with pytest.raises(DiskError, match=r"cannot write .*/out/index\.html: file too large"):
        on_small_files(8192, lambda: in_process(model, tmp_path / "in", tmp_path / "out", sheet=True))
    assert not temporaries(tmp_path / "out")
    before = identities(tmp_path / "out")
    assert len(before) == 3
    assert in_process(model, tmp_path / "in", tmp_path / "out", sheet=True) == 0
    assert before.items() <= identities(tmp_path / "out").items()
    assert (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize("name", ["thumbnails", "report.jsonl"])
def test_what_stands_in_the_way_of_the_program_s_own_files_is_named(tmp_path: Path, model: Path, name: str) -> None:
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
    )  # the other is known before anything is made


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_an_output_of_somebody_else_is_told_before_anything_is_computed(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_picture(tmp_path / "in" / "x.png")
    open_to_nobody(tmp_path, model)
    (tmp_path / "theirs" / "sub").mkdir(parents=True)
    capfd.readouterr()
    for output in (tmp_path / "theirs", tmp_path / "theirs" / "new"):
        with pytest.raises(DiskError, match=rf"cannot write {output}/\.cyclestyle: permission denied"):
            in_a_child(lambda: in_process(model, tmp_path / "in", output), uid=NOBODY)  # noqa: B023
    assert "to translate" not in capfd.readouterr().out


# ------------------------------------------------------------------------------------------- sizes, names, places


def test_every_size_from_one_pixel_on_stays_as_it_is(tmp_path: Path, model: Path) -> None:
    """1,600 sizes: a third has alpha, a third lies on its side and says so and where it was taken."""
    random_bytes = noise(64, 64)
    (tmp_path / "in").mkdir()
    for height in range(1, 41):
        for width in range(1, 41):
            write_variant(tmp_path / "in", random_bytes[:height, :width], (height + width) % 3)
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    made = {name: tmp_path / "out" / name for name in files(tmp_path / "out")}
    assert len(made) == 1600
    for name, path in made.items():
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
    """A PNG named for the size in which it is seen: 1 has alpha, 2 lies on its side."""
    height, width = pixels.shape[:2]
    if kind == 1:
        pixels = np.dstack([pixels, pixels[..., :1]])
    exif = Image.Exif()
    if kind == 2:
        exif[0x0112] = 6
        exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0)})
        width, height = height, width
    Image.fromarray(pixels).save(folder / f"{width}-{height}-{kind}.png", exif=exif if kind == 2 else None)


def test_no_translation_takes_the_place_of_another(tmp_path: Path, model: Path) -> None:
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


def test_a_file_of_one_s_own_in_the_place_of_a_photo_that_failed_is_kept(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "ours.png")
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    whole = (tmp_path / "in" / "ours.png").read_bytes()
    for name in ("ours.png", "theirs.png"):
        (tmp_path / "in" / name).write_bytes(b"damaged")
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 6
    theirs = write_picture(tmp_path / "out" / "theirs.png", seed=5)  # made by hand, since it failed here
    before = identities(tmp_path / "out")
    for name in ("ours.png", "theirs.png"):
        (tmp_path / "in" / name).write_bytes(whole)
    assert in_process(model, tmp_path / "in", tmp_path / "out") == 0
    after = identities(tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out" / "theirs.png"), theirs)
    assert after["theirs.png"] == before["theirs.png"]
    assert after["ours.png"] != before["ours.png"]


def test_inputs_are_never_overwritten_by_whatever_way_they_are_named(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_picture(tmp_path / "in" / "y.png", seed=1)
    before = identities(tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for wanted, output in (("in", "in"), ("in", "link"), ("link", "in"), ("in", "in/../in"), ("in/*.png", "in"),
                           ("in/x.png", "in/x.png"), ("in/x.png", "in"), ("in/x.png", "link/x.png")):  # fmt: skip
        with pytest.raises(CommandError, match="inputs are never overwritten"):
            in_process(model, tmp_path / wanted, tmp_path / output, existing="overwrite")
    assert identities(tmp_path / "in") == before


def test_outputs_inside_the_input_are_not_read(tmp_path: Path, model: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    for output in ("out", "out", "second/out", "out", "second/out", "out"):
        assert in_process(model, tmp_path / "in", tmp_path / "in" / output, sheet=True) == 0
        assert len(lines_of(tmp_path / "in" / output / HIDDEN / "report.jsonl")) == 3
    assert len(list((tmp_path / "in").rglob("*.png"))) == 9


# ------------------------------------------------------------------------------------------- models and memory


def test_a_photo_too_large_for_the_memory_fails_alone_and_in_pieces_it_does_not(tmp_path: Path, model: Path) -> None:
    write_picture(tmp_path / "in" / "large.png", size=(400, 300))
    write_picture(tmp_path / "in" / "small.png", size=(8, 8))
    assert in_process(model, tmp_path / "in", tmp_path / "whole", memory="1GB") == 0
    assert in_process(model, tmp_path / "in", tmp_path / "out", tile="off", memory="2MB") == 0
    assert in_process(model, tmp_path / "in", tmp_path / "pieces", tile=64) == 0
    whole, pieces = (pixels_of(tmp_path / name / "large.png").astype(int) for name in ("whole", "pieces"))
    assert np.abs(whole - pieces).max() <= 1
    assert in_process(model, tmp_path / "in", tmp_path / "none", memory="2MB") == 6
    report = {Path(line["source"]).name: line for line in lines_of(tmp_path / "none" / HIDDEN / "report.jsonl")}
    assert report["large.png"]["reason"].startswith("memory=2.0 MB cannot hold")


@pytest.mark.parametrize("damage", [b"", b"not a model", b"\xff" * 64, None])
def test_a_damaged_model_ends_with_4_before_anything_is_written(tmp_path: Path, model: Path, damage: bytes) -> None:
    write_picture(tmp_path / "in" / "x.png")
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(model.read_bytes()[:5000] if damage is None else damage)
    with pytest.raises(CheckpointError):
        in_process(broken, tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
