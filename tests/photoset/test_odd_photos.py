"""One odd photo costs that photo: whatever is raised between its file and its translation, the rest is done."""

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
SPELT_OUT = ("damaged or unreadable picture", "not a picture that can be read", "colours")


def layouts() -> list[Layout]:
    table = itertools.product(BITS, range(1, 6), PHOTOMETRIC, (1, 2))
    extras = itertools.cycle(EXTRA)
    found = [Layout(*one, extra) for one in table for extra in ((), (2,), next(extras))]
    return list(dict.fromkeys([*found, *every_extra()]))


def every_extra() -> list[Layout]:
    """All kinds of further channels where they matter, and numbers that are signed or floating point."""
    table = itertools.product((8, 16), range(1, 6), (0, 1, 2, 5), (1, 2), EXTRA)
    numbers = itertools.product((16, 32, 64), range(1, 5), (1, 2), (1, 2), ((),), (2, 3))
    return [Layout(*one) for one in (*table, *numbers)]


def shown_by(layout: Layout) -> np.ndarray | None:
    """The colours that a layout stands for, as far as they are the stored numbers; alpha does not multiply them."""
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
    """Files of every layout in one folder, and how a command on them has fared."""
    pytest.importorskip("tifffile", reason="16 bits a channel need the extra `deep`")
    pytest.importorskip("imagecodecs", reason="16 bits a channel need the extra `deep`")
    folder = tmp_path_factory.mktemp("table")
    (folder / "in").mkdir()
    named = {layout.name: layout for layout in layouts()}
    for name, layout in named.items():
        (folder / "in" / name).write_bytes(encoded(layout))
    return named, folder, run(folder / "in", folder / "out", workers=0)


def test_every_layout_of_a_tiff_is_translated_or_fails_by_name(
    table: tuple[dict[str, Layout], Path, JobResult],
) -> None:
    named, folder, outcome = table
    assert len(named) > 2200
    done, failures = outcome.count("translated"), outcome.failures
    assert done + len(failures) == len(named)
    assert done >= 140
    assert tree(folder / "out") == {line.source.name for line in outcome.lines} - {one.source.name for one in failures}
    assert {one.reason for one in failures if not any(words in one.reason for words in SPELT_OUT)} <= {
        f"{bits} bits a channel are not supported, save it with 8 or 16" for bits in (12, 24, 32, 64)
    }


def test_layouts_whose_colours_are_plain_are_translated_as_what_they_hold(
    table: tuple[dict[str, Layout], Path, JobResult],
) -> None:
    named, folder, outcome = table
    compared = 0
    for line in outcome.lines:
        expected = shown_by(named[line.source.name])
        if line.status == "translated" and expected is not None:
            made = reading.read(folder / "out" / line.source.name).pixels
            assert made.shape == (HEIGHT, WIDTH, 3)
            assert np.array_equal(np.iinfo(made.dtype).max - made, expected), line.source.name
            compared += 1
    assert compared >= 80


@pytest.mark.parametrize(
    ("photometric", "samples", "workers"), [(2, 1, 0), (2, 1, 2), (2, 2, 0), (5, 1, 0), (5, 2, 0), (5, 3, 0)]
)
def test_a_16_bit_tiff_with_too_few_samples_fails_alone_at_every_start(
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


# -- what nobody expects ----------------------------------------------------------------------------------------------

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
def test_what_a_worker_returns_is_checked_before_it_joins_a_batch(
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
    assert all(one.reason == outcome.failures[0].reason for one in alone(tmp_path / "in" / "2.png", tmp_path / "one"))


def alone(source: Path, output: Path, treatment: Inverted | None = None) -> list[runner.JournalEntry]:
    """What the cluster's way makes of a picture."""
    plan = planned(source, output)
    assert plan.journal is not None
    plan.journal.release()
    settings = Settings(worker_tasks.Reading(), worker_tasks.Writing(output), "settings")
    return [runner.translate_one(job, treatment or Inverted(), settings) for job in plan.todo]


def test_what_nobody_expects_of_a_picture_that_is_written_is_its_own_failure(tmp_path: Path) -> None:
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


def test_a_thumbnail_that_cannot_be_made_is_a_note_and_the_translation_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert [line.notes for line in outcome.lines] == [
        (),
        ("it has no thumbnail (ValueError: an encoder's mood)",),
        (),
    ]
    assert tree(tmp_path / "out") == {"0.png", "1.png", "2.png"}


def test_a_disk_that_takes_no_thumbnail_still_ends_the_command(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    sheet = tmp_path / "out" / FOLDER / "thumbnails"
    sheet.parent.mkdir(parents=True)
    sheet.touch()
    with pytest.raises(DiskError):
        run(tmp_path / "in", tmp_path / "out", sheet=sheet)


# -- a model that fails -----------------------------------------------------------------------------------------------


class Picky(Inverted):
    """A model that fails on black pictures, and on any batch that has one."""

    error: Exception = ValueError("nothing to see")

    def __call__(self, pixels: torch.Tensor, *, advance: object = None) -> list[torch.Tensor]:
        if any(not one.any() for one in pixels):
            raise self.error
        return super().__call__(pixels, advance=advance)


def treated(folder: Path, black: str, *, error: Exception | None = None, batch_size: int = 3) -> JobResult:
    """A set of pictures, those of the letter b being black."""
    for n, one in enumerate(black):
        write_picture(folder / "in" / f"{n:02}.png", seed=n)
        if one == "b":
            Image.new("RGB", (12, 9)).save(folder / "in" / f"{n:02}.png")
    model = Picky()
    model.error = error or Picky.error
    plan = planned(folder / "in", folder / "out")
    assert plan.journal is not None
    try:
        how = Settings(worker_tasks.Reading(), worker_tasks.Writing(folder / "out"), "settings")
        return runner.run_plan(plan, model, how, batch_size=batch_size, workers=0)
    finally:
        plan.journal.release()


@pytest.mark.parametrize("black", ["wwbwwww", "bwwwwww", "wwwwwwb", "bbbwwww", "wbwbwbwbwbwbw", "wwwwbbb"])
def test_a_picture_that_the_model_fails_on_fails_alone_where_it_works_on_others(tmp_path: Path, black: str) -> None:
    outcome = treated(tmp_path, black)
    assert counts(outcome) == (black.count("w"), 0, 0, black.count("b"))
    assert [int(line.source.stem) for line in outcome.failures] == [n for n, one in enumerate(black) if one == "b"]
    assert {line.reason for line in outcome.failures} == {"the model fails on it (ValueError: nothing to see)"}
    assert (pixels_of(tmp_path / "out" / tree(tmp_path / "out").pop()) > 0).any()


@pytest.mark.parametrize("black", ["b", "bb", "bbb", "bbbbww", "wwwwwwbbbbww"])
def test_a_model_that_fails_on_all_or_on_four_in_a_row_is_a_bug(tmp_path: Path, black: str) -> None:
    with pytest.raises(ValueError, match="nothing to see"):
        treated(tmp_path, black, batch_size=1)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: unspecified launch failure"), DiskError("no room")])
def test_a_lost_device_or_a_full_disk_is_no_picture_s_failure(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        treated(tmp_path, "wwwwbwwww", error=error)


def test_an_actor_returns_what_a_model_raises_and_ends_with_no_picture(tmp_path: Path) -> None:
    Image.new("RGB", (12, 9)).save(tmp_path / "black.png")
    (tmp_path / "odd.tif").write_bytes(encoded(Layout(16, 1, 2)))
    write_picture(tmp_path / "white.png")
    plan = planned(tmp_path, tmp_path / "out")
    assert plan.journal is not None
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

    actor.treatment.error = RuntimeError("CUDA error: unspecified launch failure")  # type: ignore[attr-defined]
    assert actor({"number": 0})["device"].startswith("the device failed (CUDA error")
    actor.treatment.error = MemoryError()  # type: ignore[attr-defined]
    assert actor({"number": 0})["entry"].reason.startswith("out of memory")


@pytest.mark.slow  # twenty seconds for the start of Ray
def test_ray_names_a_picture_that_the_model_fails_on_and_raises_what_fails_on_all(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray", reason="engine=ray needs Ray")
    for n in range(4):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    Image.new("RGB", (12, 9)).save(tmp_path / "in" / "1.png")
    settings = Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out"), "settings")
    plan = planned(tmp_path / "in", tmp_path / "out")
    assert plan.journal is not None
    outcome = ray_engine.run_plan(plan, Picky, settings, workers=1)
    plan.journal.release()
    assert counts(outcome) == (3, 0, 0, 1)
    assert outcome.failures[0].reason == "the model fails on it (ValueError: nothing to see)"

    plan = planned(tmp_path / "in", tmp_path / "out")
    assert plan.journal is not None
    with pytest.raises(ray_engine.BrokenModelError, match=r"Traceback(.|\n)*nothing to see"):
        ray_engine.run_plan(plan, Picky, settings, workers=1)
    plan.journal.release()
