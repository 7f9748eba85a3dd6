"""Translation of a photo set: names and pixels of the output, failures, the report, memory in use, and workers."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.errors import CommandError, DataError, DiskError
from cyclestyle.images.photo import Photo
from cyclestyle.photoset import batching, runner, worker_tasks
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.worker_pool import Workers
from tests.translation.models import Inverted, noise, pixels_of, write_picture
from tests.translation.sets import counts, planned, run, tree

FORMATS = {
    "jpg": "JPEG",
    "JPEG": "JPEG",
    "png": "PNG",
    "webp": "WEBP",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "avif": "AVIF",
}
NAMES = [
    "Müller öß.png",
    "🎨 👩‍🎨.png",
    "two  words (2019), it's #1 = ~good~.png",
    "line\nbreak\ttab.png",
    "-dash.png",
    "[bold]rich[/bold].png",
    os.fsdecode(b"latin \xff\xfe.png"),
]


def test_output_preserves_folders_names_sizes_and_formats(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "deep" / "out"
    sizes = {}
    for number, ending in enumerate(FORMATS):
        name = f"{'sub/' * (number % 3)}picture{number}.{ending}"
        sizes[name] = (10 + number, 30 - number)
        write_picture(source / name, size=sizes[name])
    (source / "notes.txt").write_text("not a picture")

    assert counts(run(source, output)) == (8, 0, 0, 0)
    assert tree(output) == set(sizes)
    for name, size in sizes.items():
        with Image.open(output / name) as image:
            assert (image.size, image.format) == (size, FORMATS[name.rpartition(".")[2]])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_photo_gets_its_own_translation(tmp_path: Path, workers: int) -> None:
    # Two sizes alternate, in batches of three: photos are translated out of order.
    photos = {f"{n}.png": write_picture(tmp_path / "in" / f"{n}.png", size=(9 + n % 2, 8), seed=n) for n in range(17)}
    assert counts(run(tmp_path / "in", tmp_path / "out", batch_size=3, workers=workers)) == (17, 0, 0, 0)
    for name, pixels in photos.items():
        assert np.array_equal(pixels_of(tmp_path / "out" / name), 255 - pixels)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_photos_with_odd_file_names_are_translated(tmp_path: Path, name: str) -> None:
    pixels = write_picture(tmp_path / "in" / name)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / name), 255 - pixels)
    (tmp_path / "in" / name).write_bytes(b"damaged")
    plan = planned(tmp_path / "in", tmp_path / "out", existing="overwrite")
    plan.journal.release()
    outcome = run(tmp_path / "in", tmp_path / "out", existing="overwrite")
    lines = runner.summary(outcome, plan, where=plan.folder).splitlines()
    assert len(lines) == 2
    lines[1].encode()  # raises on unprintable names


def test_folder_search_with_circular_links_terminates(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "sub" / "x.png")
    (tmp_path / "in" / "sub" / "again").symlink_to(tmp_path / "in")
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)


def test_damaged_photos_do_not_stop_others(tmp_path: Path) -> None:
    for n in range(20):
        write_picture(tmp_path / "in" / f"{n:02}.png", seed=n)
    whole = (tmp_path / "in" / "00.png").read_bytes()
    bad = {
        "03.png": b"",
        "07.png": b"<html>not found</html>",
        "11.png": whole[: len(whole) // 2],
        "19.png": whole[:60] + bytes(40) + whole[100:],
    }
    for name, content in bad.items():
        (tmp_path / "in" / name).write_bytes(content)

    outcome = run(tmp_path / "in", tmp_path / "out", batch_size=4)

    assert counts(outcome) == (16, 0, 0, 4)
    assert [failure.source.name for failure in outcome.failures] == sorted(bad)
    assert tree(tmp_path / "out") == {f"{n:02}.png" for n in range(20) if f"{n:02}.png" not in bad}
    assert "not a picture that can be read" in outcome.failures[0].reason
    assert str(tmp_path) not in outcome.failures[0].reason


def test_failed_photos_are_retried(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "x.png").write_bytes(b"damaged")
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 1)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 1)
    write_picture(tmp_path / "in" / "x.png")
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 1, 0, 0)


def test_report_is_complete_and_summary_shows_five_failures(tmp_path: Path) -> None:
    for n in range(8):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{n}.png").write_bytes(b"damaged")
    write_picture(tmp_path / "in" / "good.png", size=(13, 7))
    plan = planned(tmp_path / "in", tmp_path / "out")
    plan.journal.release()
    outcome = run(tmp_path / "in", tmp_path / "out")

    lines = runner.summary(outcome, plan, where=plan.folder).splitlines()
    assert lines[0].startswith("1 ok, 8 failed in ")
    assert lines[0].endswith(f": {tmp_path / 'out'}")
    assert [Path(line.strip().partition(":")[0]).name for line in lines[1:6]] == [f"{n}.png" for n in range(5)]
    report = tmp_path / "out" / FOLDER / "report.jsonl"
    assert lines[6:] == [f"  and 3 more, all listed in {report}"]

    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert [Path(row["source"]).name for row in rows] == [f"{n}.png" for n in range(8)] + ["good.png"]
    assert [row["status"] for row in rows] == ["failed"] * 8 + ["translated"]
    assert all("not a picture" in row["reason"] for row in rows[:8])
    assert (rows[8]["targets"], rows[8]["width"], rows[8]["height"]) == (["good.png"], 13, 7)


def test_bad_batch_size_and_workers_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="batch_size=0"):
        runner.check(batch_size=0, workers="auto")
    with pytest.raises(CommandError, match="workers=-1"):
        runner.check(batch_size=8, workers=-1)


def test_output_below_a_file_is_a_disk_error(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=rf"cannot write {tmp_path}/file/out/.cyclestyle: not a directory"):
        run(tmp_path / "in", tmp_path / "file" / "out")


@pytest.mark.parametrize(("ending", "width"), [("webp", 16_384), ("jpg", 65_501)])
def test_image_too_wide_for_its_format_does_not_stop_others(tmp_path: Path, ending: str, width: int) -> None:
    write_picture(tmp_path / "in" / f"x.{ending}")
    Image.new("RGB", (width, 1)).save(tmp_path / "in" / f"long.{ending}", format="PNG")
    (tmp_path / "in" / f"other.{ending}").write_bytes(b"damaged")
    outcome = run(tmp_path / "in", tmp_path / "out")
    assert counts(outcome) == (1, 0, 0, 2)
    assert [failure.source.stem for failure in outcome.failures] == ["long", "other"]
    assert "choose format=png" in outcome.failures[0].reason


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = noise(12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "x.png", exif=exif)
    run(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), 255 - np.rot90(pixels, -1))
    with Image.open(tmp_path / "out" / "x.png") as image:
        assert 0x0112 not in image.getexif()  # else viewers would rotate it again


def test_photo_and_each_translation_have_thumbnails(tmp_path: Path) -> None:
    pixels = write_picture(tmp_path / "in" / "x.png", size=(40, 30))
    sheet = tmp_path / "out" / FOLDER / "thumbnails"
    run(tmp_path / "in", tmp_path / "out", count=2, sheet=sheet)
    names = runner.thumbnail_names(["0/x.png", "1/x.png"])
    assert sorted(path.name for path in sheet.iterdir()) == sorted(names)
    photo, *translations = (pixels_of(sheet / name).astype(float) for name in names)
    assert abs(photo.mean() - pixels.mean()) < 5
    assert all(abs(translation.mean() - (255 - pixels).mean()) < 5 for translation in translations)


class PhotosInMemory:
    """Counter of photos that have been read but not yet written; it replaces the functions `read` and `write`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peak = 0
        self._current, self._lock = 0, threading.Lock()
        self._read, self._write = worker_tasks.read, worker_tasks.write
        monkeypatch.setattr(worker_tasks, "read", self.read)
        monkeypatch.setattr(worker_tasks, "write", self.write)

    def read(self, *arguments: object, **how: object) -> Photo:
        with self._lock:
            self._current += 1
            self.peak = max(self.peak, self._current)
        return self._read(*arguments, **how)

    def write(self, *arguments: object) -> worker_tasks.Written:
        written = self._write(*arguments)
        with self._lock:
            self._current -= 1
        return written


def test_number_of_photos_in_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds photos read ahead, photos of two batches, and photos waiting to be written, never all 150 photos."""
    for n in range(150):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_picture(tmp_path / "in" / f"{n}.png", size=(4, 4), seed=n)
    in_memory = PhotosInMemory(monkeypatch)
    assert counts(run(tmp_path / "in", tmp_path / "out", batch_size=4, workers=0)) == (150, 0, 0, 0)
    with Workers(0) as workers:
        assert in_memory.peak <= 2 * (workers.max_ahead + 1) + 3 * 4


def test_number_of_large_photos_in_memory_is_limited_by_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts pixels: if it allows two photos, two wait for the model, and two wait to be written."""
    for n in range(12):
        write_picture(tmp_path / "in" / f"{n}.png", size=(40, 30), seed=n)
    monkeypatch.setattr(batching, "MAX_WAITING_PIXELS", 2 * 40 * 30)
    in_memory = PhotosInMemory(monkeypatch)
    assert counts(run(tmp_path / "in", tmp_path / "out", batch_size=1, workers=0)) == (12, 0, 0, 0)
    assert in_memory.peak <= (2 + 1) + 1 + (2 + 1)  # both limits are checked after one more photo


class ShortOfMemory(Inverted):
    """A model that runs out of memory on batches of more than three images, and on black images."""

    def __call__(self, pixels: torch.Tensor, *, advance: object = None) -> list[torch.Tensor]:
        if len(pixels) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        if not pixels.any():
            raise MemoryError
        return super().__call__(pixels, advance=advance)


def test_out_of_memory_batch_is_split_into_photos(tmp_path: Path) -> None:
    for n in range(9):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    Image.new("RGB", (12, 9)).save(tmp_path / "in" / "black.png")
    plan = planned(tmp_path / "in", tmp_path / "out")
    how = runner.Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out"), "settings")
    outcome = runner.run_plan(plan, ShortOfMemory(), how, batch_size=5)
    plan.journal.release()
    assert counts(outcome) == (9, 0, 0, 1)
    assert outcome.failures[0].source.name == "black.png"
    assert outcome.failures[0].reason.startswith("out of memory")


def test_model_error_other_than_out_of_memory_is_raised(tmp_path: Path) -> None:
    class Broken(Inverted):
        def __call__(self, pixels: torch.Tensor, *, advance: object = None) -> list[torch.Tensor]:
            raise ValueError("a bug")

    write_picture(tmp_path / "in" / "x.png")
    plan = planned(tmp_path / "in", tmp_path / "out")
    how = runner.Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out"), "settings")
    with pytest.raises(ValueError, match="a bug"):
        runner.run_plan(plan, Broken(), how)
    plan.journal.release()


def test_contact_sheet_requested_later_gets_missing_thumbnails(tmp_path: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    run(tmp_path / "in", tmp_path / "out")
    plan = planned(tmp_path / "in", tmp_path / "out")
    sheet = tmp_path / "out" / FOLDER / "thumbnails"
    how = runner.Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out", sheet=sheet), "settings")
    outcome = runner.run_plan(plan, Inverted(), how)
    assert counts(outcome) == (0, 3, 0, 0)
    runner.complete_sheet(plan, outcome, how, 0)
    plan.journal.release()
    assert len(list(sheet.iterdir())) == 6
    before, after = (pixels_of(sheet / name).astype(float) for name in runner.thumbnail_names(["1.png"]))
    assert abs(before.mean() + after.mean() - 255) < 2


def kill_own_process(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def own_pid(_: object) -> int:
    return os.getpid()


def test_photo_that_kills_its_worker_does_not_stop_others() -> None:
    with Workers(1) as workers:
        calls = [workers.start(function, None) for function in (own_pid, kill_own_process, own_pid)]
        assert workers.finish(calls[0]) != os.getpid()
        with pytest.raises(DataError, match="its worker process was killed twice"):
            workers.finish(calls[1])
        assert workers.finish(calls[2]) != os.getpid()
        assert workers.finish(workers.start(own_pid, None)) != os.getpid()


def test_workers_end_if_parent_is_killed(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.close(reader)
        workers = Workers(1)
        os.write(writer, f"{workers.finish(workers.start(own_pid, None))}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        worker = int(pipe.readline())
    os.waitpid(child, 0)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{worker}").exists() and "zombie" not in Path(f"/proc/{worker}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
