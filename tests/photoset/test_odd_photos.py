"""Odd photos and failing models: an error in reading, translating or writing a photo does not affect other photos."""

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.errors import DiskError
from cyclestyle.images import reading
from cyclestyle.images.decoding import ImageError
from cyclestyle.images.photo import Metadata, Photo
from cyclestyle.photoset import ray_engine, runner, worker_tasks
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.runner import JobResult, Settings
from tests.tiffs import HEIGHT, WIDTH, Layout, encoded, stored
from tests.translation.models import Inverted, noise, pixels_of, write_picture
from tests.translation.sets import counts, planned, run, tree

BITS = (1, 2, 4, 8, 12, 16, 24, 32)
PHOTOMETRIC = range(9)  # white is zero, black is zero, RGB, palette, mask, CMYK, YCbCr, none, CIELAB
EXTRA = ((), (0,), (1,), (2,), (2, 0), (0, 1))
GREY = (0, 1)
KNOWN_REASONS = ("damaged or unreadable picture", "not a picture that can be read", "colours")


def layouts() -> list[Layout]:
    table = itertools.product(BITS, range(1, 6), PHOTOMETRIC, (1, 2))
    extras = itertools.cycle(EXTRA)
    combined = [Layout(*row, extra) for row in table for extra in ((), (2,), next(extras))]
    return list(dict.fromkeys([*combined, *every_extra()]))


def every_extra() -> list[Layout]:
    """Return layouts with all kinds of extra channels, and layouts with signed or floating-point numbers."""
    table = itertools.product((8, 16), range(1, 6), (0, 1, 2, 5), (1, 2), EXTRA)
    numbers = itertools.product((16, 32, 64), range(1, 5), (1, 2), (1, 2), ((),), (2, 3))
    return [Layout(*row) for row in (*table, *numbers)]


def plain_colours(layout: Layout) -> np.ndarray | None:
    """Return the colours of a layout that stores colours unchanged.

    Return None for other layouts, and for layouts with premultiplied alpha.
    """
    channels, full = stored(layout), 2**layout.bits - 1
    if layout.photometric in GREY:
        grey = channels[..., :1] if layout.photometric else full - channels[..., :1]
        colours = np.repeat(grey, 3, axis=2)
    elif layout.photometric == 2 and layout.samples >= 3:
        colours = channels[..., :3]
    else:
        return None
    return None if 1 in layout.extra else colours * (max(full, 255) // full)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Layout], Path, JobResult]:
    """Return all layouts keyed by file name, the folder of `in` and `out`, and the outcome of translating the files."""
    pytest.importorskip("tifffile", reason="16 bits a channel need the extra `deep`")
    pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")
    folder = tmp_path_factory.mktemp("table")
    (folder / "in").mkdir()
    named = {layout.name: layout for layout in layouts()}
    for name, layout in named.items():
        (folder / "in" / name).write_bytes(encoded(layout))
    return named, folder, run(folder / "in", folder / "out", workers=0)


def test_every_tiff_layout_is_translated_or_fails_with_reason(
    table: tuple[dict[str, Layout], Path, JobResult],
) -> None:
    named, folder, outcome = table
    assert len(named) > 2200
    done, failures = outcome.count("translated"), outcome.failures
    assert done + len(failures) == len(named)
    assert done >= 140
    assert tree(folder / "out") == {row.source.name for row in outcome.lines} - {row.source.name for row in failures}
    assert {row.reason for row in failures if not any(words in row.reason for words in KNOWN_REASONS)} <= {
        f"{bits} bits a channel are not supported, save it with 8 or 16" for bits in (12, 24, 32, 64)
    }


def test_plain_tiff_colours_are_translated_exactly(
    table: tuple[dict[str, Layout], Path, JobResult],
) -> None:
    named, folder, outcome = table
    compared = 0
    for row in outcome.lines:
        expected = plain_colours(named[row.source.name])
        if row.status == "translated" and expected is not None:
            photo = reading.read(folder / "out" / row.source.name)
            pixels, alpha = photo.pixels, photo.alpha
            assert pixels.shape == (HEIGHT, WIDTH, 3)
            visible = np.ones((HEIGHT, WIDTH), bool) if alpha is None else alpha > 0  # hidden colours are replaced
            assert visible.mean() > 0.9
            assert np.array_equal((np.iinfo(pixels.dtype).max - pixels)[visible], expected[visible]), row.source.name
            compared += 1
    assert compared >= 80


@pytest.mark.parametrize(
    ("photometric", "samples", "workers"), [(2, 1, 0), (2, 1, 2), (2, 2, 0), (5, 1, 0), (5, 2, 0), (5, 3, 0)]
)
def test_16_bit_tiff_with_too_few_samples_does_not_stop_others(
    tmp_path: Path, photometric: int, samples: int, workers: int
) -> None:
    pytest.importorskip("tifffile", reason="16 bits a channel need the extra `deep`")
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    (tmp_path / "in" / "1odd.tif").write_bytes(encoded(Layout(16, samples, photometric)))
    for expected in ((3, 0, 0, 1), (0, 3, 0, 1)):
        outcome = run(tmp_path / "in", tmp_path / "out", workers=workers)
        assert counts(outcome) == expected
        colours = {2: 3, 5: 4}[photometric]
        assert f"its colours take {colours} samples a pixel, it has {samples}" in outcome.failures[0].reason


# -- unexpected errors ------------------------------------------------------------------------------------------------

WHOLE = np.zeros((9, 12, 3), np.uint8)


@pytest.mark.parametrize(
    ("photo", "reason"),
    [
        (Photo(WHOLE.astype(np.float32)), "numbers of the type float32"),
        (Photo(WHOLE.astype(np.int64)), "numbers of the type int64"),
        (Photo(WHOLE[..., 0]), r"channels of the shape \(9, 12\)"),
        (Photo(WHOLE[..., :1]), r"channels of the shape \(9, 12, 1\)"),
        (Photo(np.dstack([WHOLE, WHOLE])), r"channels of the shape \(9, 12, 6\)"),
        (Photo(WHOLE[:0]), "no pixels"),
        (Photo(WHOLE, WHOLE[:5, :, 0]), r"alpha of uint8 \(5, 12\) for colours of uint8 \(9, 12, 3\)"),
        (Photo(WHOLE, WHOLE[..., 0].astype(np.uint16)), "alpha of uint16"),
        (KeyError(3), "unexpected KeyError: 3"),
        (AssertionError(), "unexpected AssertionError$"),
    ],
)
def test_photo_with_invalid_pixels_or_read_error_does_not_stop_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Photo | Exception, reason: str
) -> None:
    for n in range(5):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    before = worker_tasks.read

    def read(path: Path, how: worker_tasks.Reading) -> Photo:
        if path.name != "2.png":
            return before(path, how)
        if isinstance(photo, Exception):
            raise photo
        return photo

    monkeypatch.setattr(worker_tasks, "read", read)
    outcome = run(tmp_path / "in", tmp_path / "out", batch_size=3, workers=0)
    assert counts(outcome) == (4, 0, 0, 1)
    assert outcome.failures[0].source.name == "2.png"
    assert re.search(reason, outcome.failures[0].reason)
    entries = translated_one_by_one(tmp_path / "in" / "2.png", tmp_path / "one")
    assert all(entry.reason == outcome.failures[0].reason for entry in entries)


def translated_one_by_one(source: Path, output: Path) -> list[runner.JournalEntry]:
    """Return the journal entries from `translate_one`, the function that Ray's actors call."""
    plan = planned(source, output)
    plan.journal.release()
    settings = Settings(worker_tasks.Reading(), worker_tasks.Writing(output), "settings")
    return [runner.translate_one(job, Inverted(), settings) for job in plan.todo]


def test_unexpected_write_error_becomes_an_image_error(tmp_path: Path) -> None:
    odd = Photo(noise(12, 9), metadata=Metadata(exif=b"Exif\0\0no directory"))
    with pytest.raises(ImageError, match=r"unexpected|cannot be written"):
        worker_tasks.write(odd, [odd.pixels], [Path("x.png")], [], worker_tasks.Writing(tmp_path))
    assert list(tmp_path.iterdir()) == []
    smaller = [odd.pixels[:4]]
    with pytest.raises(ImageError, match=r"unexpected ValueError|cannot be written"):
        worker_tasks.write(
            replace(odd, metadata=Metadata(), alpha=odd.pixels[..., 0]),
            smaller,
            [Path("x.png")],
            [],
            worker_tasks.Writing(tmp_path),
        )


def test_failed_thumbnail_adds_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", size=(12 + n, 9), seed=n)
    before = Image.Image.save

    def save(image: Image.Image, stream: object, format: str | None = None, **options: object) -> None:  # noqa: A002
        if format == "WEBP" and image.width == 13:
            raise ValueError("an encoder's mood")
        before(image, stream, format, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", save)
    outcome = run(tmp_path / "in", tmp_path / "out", sheet=tmp_path / "out" / FOLDER / "thumbnails", workers=0)
    assert counts(outcome) == (3, 0, 0, 0)
    assert [row.notes for row in outcome.lines] == [
        (),
        ("it has no thumbnail (ValueError: an encoder's mood)",),
        (),
    ]
    assert tree(tmp_path / "out") == {"0.png", "1.png", "2.png"}


def test_unwritable_thumbnail_folder_ends_the_command(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    sheet = tmp_path / "out" / FOLDER / "thumbnails"
    sheet.parent.mkdir(parents=True)
    sheet.touch()
    with pytest.raises(DiskError):
        run(tmp_path / "in", tmp_path / "out", sheet=sheet)


# -- a model that fails -----------------------------------------------------------------------------------------------


class Picky(Inverted):
    """A model that fails on black images, and on any batch that contains one."""

    error: Exception = ValueError("nothing to see")

    def __call__(self, pixels: torch.Tensor, *, advance: object = None) -> list[torch.Tensor]:
        if any(not image.any() for image in pixels):
            raise self.error
        return super().__call__(pixels, advance=advance)


def run_picky(folder: Path, colours: str, *, error: Exception | None = None, batch_size: int = 3) -> JobResult:
    """Translate a set with `Picky`; each letter of `colours` is a photo, and `b` is a black photo."""
    for n, colour in enumerate(colours):
        write_picture(folder / "in" / f"{n:02}.png", seed=n)
        if colour == "b":
            Image.new("RGB", (12, 9)).save(folder / "in" / f"{n:02}.png")
    model = Picky()
    model.error = error or Picky.error
    plan = planned(folder / "in", folder / "out")
    try:
        how = Settings(worker_tasks.Reading(), worker_tasks.Writing(folder / "out"), "settings")
        return runner.run_plan(plan, model, how, batch_size=batch_size, workers=0)
    finally:
        plan.journal.release()


@pytest.mark.parametrize("colours", ["wwbwwww", "bwwwwww", "wwwwwwb", "bbbwwww", "wbwbwbwbwbwbw", "wwwwbbb"])
def test_model_error_on_one_photo_fails_only_that_photo(tmp_path: Path, colours: str) -> None:
    outcome = run_picky(tmp_path, colours)
    assert counts(outcome) == (colours.count("w"), 0, 0, colours.count("b"))
    black = [n for n, colour in enumerate(colours) if colour == "b"]
    assert [int(row.source.stem) for row in outcome.failures] == black
    assert {row.reason for row in outcome.failures} == {"the model fails on it (ValueError: nothing to see)"}
    assert (pixels_of(tmp_path / "out" / tree(tmp_path / "out").pop()) > 0).any()


@pytest.mark.parametrize("colours", ["b", "bb", "bbb", "bbbbww", "wwwwwwbbbbww"])
def test_model_error_on_all_photos_or_four_consecutive_photos_is_raised(tmp_path: Path, colours: str) -> None:
    with pytest.raises(ValueError, match="nothing to see"):
        run_picky(tmp_path, colours, batch_size=1)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: unspecified launch failure"), DiskError("no room")])
def test_lost_device_or_full_disk_ends_the_command(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run_picky(tmp_path, "wwwwbwwww", error=error)


def test_ray_actor_returns_errors_in_rows(tmp_path: Path) -> None:
    Image.new("RGB", (12, 9)).save(tmp_path / "black.png")
    (tmp_path / "odd.tif").write_bytes(encoded(Layout(16, 1, 2)))
    write_picture(tmp_path / "white.png")
    plan = planned(tmp_path, tmp_path / "out")
    plan.journal.release()
    actor = ray_engine.Actor(
        Picky, Settings(worker_tasks.Reading(), worker_tasks.Writing(plan.folder), "settings"), plan.todo
    )
    black, odd, white = (actor({"number": number}) for number in range(3))
    assert black["entry"] is None
    assert black["reason"] == "the model fails on it (ValueError: nothing to see)"
    assert black["trace"].startswith("Traceback")
    assert "16 bits" in odd["entry"].reason or "samples a pixel" in odd["entry"].reason
    assert white["entry"].is_done

    actor.pipeline.error = RuntimeError("CUDA error: unspecified launch failure")  # type: ignore[attr-defined]
    assert actor({"number": 0})["device"].startswith("the device failed (CUDA error")
    actor.pipeline.error = MemoryError()  # type: ignore[attr-defined]
    assert actor({"number": 0})["entry"].reason.startswith("out of memory")


@pytest.mark.slow  # Ray takes 20 s to start
def test_ray_engine_reports_one_failed_photo_but_raises_if_all_fail(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="engine=ray needs Ray")
    for n in range(4):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    Image.new("RGB", (12, 9)).save(tmp_path / "in" / "1.png")
    settings = Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out"), "settings")
    plan = planned(tmp_path / "in", tmp_path / "out")
    outcome = ray_engine.run_plan(plan, Picky, settings, workers=1)
    plan.journal.release()
    assert counts(outcome) == (3, 0, 0, 1)
    assert outcome.failures[0].reason == "the model fails on it (ValueError: nothing to see)"

    plan = planned(tmp_path / "in", tmp_path / "out")
    with pytest.raises(ray_engine.BrokenModelError, match=r"Traceback(.|\n)*nothing to see"):
        ray_engine.run_plan(plan, Picky, settings, workers=1)
    plan.journal.release()
