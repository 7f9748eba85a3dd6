"""Masks of a photo set: which mask belongs to which photo, repeated commands, errors, and pixels of the files."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.errors import CommandError, DataError
from cyclestyle.images import reading, writing
from cyclestyle.images.photo import Photo
from cyclestyle.photoset import masks, ray_engine, runner, worker_tasks
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.runner import JobResult, Settings
from cyclestyle.translate import main, translate
from tests.translation.models import Inverted, noise, pixels_of, write_model, write_picture
from tests.translation.sets import counts, planned, run, tree


def write_mask(path: Path, *, size: tuple[int, int] = (12, 9), columns: int = 5) -> np.ndarray:
    """Write a mask whose first `columns` columns are black, the others white; return where it is white, (H, W)."""
    white = np.zeros(size[::-1], bool)
    white[:, columns:] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(white.astype(np.uint8) * 255).save(path)
    return white


def is_masked(result: np.ndarray, photo: np.ndarray, white: np.ndarray) -> bool:
    """Return whether an image equals the inverted photo where `white` is true, and the photo elsewhere."""
    return np.array_equal(result, np.where(white[..., None], 255 - photo, photo))


def mask_names(folder: Path, *photos: str) -> list[str]:
    """Return the names of the masks in `folder` that belong to `photos`; of photos without a mask, the reason."""
    found = masks.find(folder)
    return [mask.reason or mask.path.relative_to(folder).as_posix() for mask in map(found.of, map(Path, photos))]


def test_mask_has_the_name_of_its_photo_with_any_ending(tmp_path: Path) -> None:
    for name in ("a.png", "sub/a.tif", "b.jpg.png", "b.png", "C.PNG", "e.f.png", "o\u0308.png"):
        write_mask(tmp_path / name)
    photos = ["a.jpg", "sub/a.png", "b.jpg", "b.webp", "b.png", "c.jpeg", "e.f.bmp", "\u00f6.jpg"]
    expected = ["a.png", "sub/a.tif", "b.jpg.png", "b.png", "b.png", "C.PNG", "e.f.png", "o\u0308.png"]
    assert mask_names(tmp_path, *photos) == expected


def test_photo_without_mask_or_with_several_masks_has_a_reason(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "sub/b.png"):
        write_mask(tmp_path / name)
    several, missing = mask_names(tmp_path, "a.jpg", "b.jpg")
    assert several.startswith("it has several masks, ")
    assert several.endswith(": remove all but one")
    assert missing == f"it has no mask {tmp_path / 'b.png'} (or another ending): add one"


def test_links_give_one_mask_to_several_photos(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    os.link(tmp_path / "a.png", tmp_path / "c.png")
    assert mask_names(tmp_path, "a.jpg", "b.jpg", "c.jpg") == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_photo_is_masked_by_its_own_mask_at_every_strength(tmp_path: Path, workers: int) -> None:
    # Two sizes alternate, in batches of three: photos are translated out of order.
    photos, white = {}, {}
    for n in range(9):
        size = (12 + n % 2, 9)
        photos[n] = write_picture(tmp_path / "in" / "sub" / f"{n}.png", size=size, seed=n)
        white[n] = write_mask(tmp_path / "masks" / "sub" / f"{n}.bmp", size=size, columns=n + 1)
    how = {"masks": masks.find(tmp_path / "masks"), "batch_size": 3, "workers": workers}
    assert counts(run(tmp_path / "in", tmp_path / "out", count=2, **how)) == (9, 0, 0, 0)
    for n, photo in photos.items():
        for folder in "01":
            assert is_masked(pixels_of(tmp_path / "out" / folder / "sub" / f"{n}.png"), photo, white[n])


def test_one_mask_file_applies_to_all_photos_of_its_size(tmp_path: Path) -> None:
    photos = [write_picture(tmp_path / "in" / f"{n}.png", seed=n) for n in range(2)]
    write_picture(tmp_path / "in" / "wide.png", size=(13, 9))
    white = write_mask(tmp_path / "m.png")
    outcome = run(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "m.png"))
    assert counts(outcome) == (2, 0, 0, 1)
    (failure,) = outcome.failures
    assert failure.reason == (
        f"its mask {tmp_path / 'm.png'}: it has 12 x 9 px, and the photo 13 x 9: a mask has the size of its photo"
    )
    assert all(is_masked(pixels_of(tmp_path / "out" / f"{n}.png"), photos[n], white) for n in range(2))


def test_photos_without_a_readable_mask_fail_and_others_are_translated(tmp_path: Path) -> None:
    for n in range(4):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    write_mask(tmp_path / "masks" / "0.png")
    (tmp_path / "masks" / "1.png").write_bytes(b"")
    write_mask(tmp_path / "masks" / "2.png", size=(9, 12))
    outcome = run(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "masks"))
    assert counts(outcome) == (1, 0, 0, 3)
    assert tree(tmp_path / "out") == {"0.png"}
    empty, turned, missing = (failure.reason for failure in outcome.failures)
    assert empty == f"its mask {tmp_path / 'masks' / '1.png'}: empty, not a picture that can be read"
    assert "save the mask upright" in turned
    assert missing.startswith(f"it has no mask {tmp_path / 'masks' / '3.png'}")

    write_mask(tmp_path / "masks" / "3.png")
    assert counts(run(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "masks"))) == (1, 1, 0, 2)


def test_mask_is_laid_over_the_upright_photo(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(noise(12, 9)).save(tmp_path / "in" / "x.png", exif=exif)
    photo = reading.read(tmp_path / "in" / "x.png").pixels
    assert photo.shape == (12, 9, 3)
    white = write_mask(tmp_path / "masks" / "x.png", size=(9, 12), columns=3)
    assert counts(run(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "masks"))) == (1, 0, 0, 0)
    assert is_masked(pixels_of(tmp_path / "out" / "x.png"), photo, white)


def test_changed_mask_or_settings_make_a_translation_outdated(tmp_path: Path) -> None:
    photos = [write_picture(tmp_path / "in" / f"{n}.png", seed=n) for n in range(2)]
    for n in range(2):
        write_mask(tmp_path / "masks" / f"{n}.png")

    def again(*, masked: bool = True, settings: str = "settings") -> tuple[int, ...]:
        found = masks.find(tmp_path / "masks") if masked else None
        return counts(run(tmp_path / "in", tmp_path / "out", masks=found, settings=settings))

    assert again() == (2, 0, 0, 0)
    assert again() == (0, 2, 0, 0)
    white = write_mask(tmp_path / "masks" / "1.png", columns=8)
    os.utime(tmp_path / "masks" / "1.png", ns=(0, 0))
    assert again() == (1, 1, 0, 0)
    assert is_masked(pixels_of(tmp_path / "out" / "1.png"), photos[1], white)
    assert again(masked=False) == (2, 0, 0, 0)
    assert again() == (2, 0, 0, 0)
    assert again(settings="others") == (2, 0, 0, 0)


def test_stopped_command_reports_the_masked_photos_done_so_far(tmp_path: Path) -> None:
    for n in range(2):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
        write_mask(tmp_path / "masks" / f"{n}.png")
    plan = planned(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "masks"))
    settings = Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out"), "settings")
    reported: list[JobResult] = []
    runner.run_plan(plan._replace(todo=plan.todo[:1]), Inverted(), settings, workers=0)
    with pytest.raises(KeyboardInterrupt), runner.unfinished(plan, settings, report=reported.append):
        raise KeyboardInterrupt
    plan.journal.release()
    assert [(outcome.count("translated"), outcome.remaining) for outcome in reported] == [(1, 1)]


def test_masks_inside_the_input_folder_are_not_translated(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_mask(tmp_path / "in" / "masks" / "x.png")
    for mask in (tmp_path / "in" / "masks", tmp_path / "in" / "masks" / "x.png"):
        plan = planned(tmp_path / "in", tmp_path / "out", masks=masks.find(mask))
        plan.journal.release()
        assert [job.source.name for job in plan.jobs] == [Path("x.png")]


def test_mask_is_never_overwritten(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_mask(tmp_path / "masks" / "x.png")
    before = (tmp_path / "masks" / "x.png").read_bytes()
    with pytest.raises(CommandError, match="inputs are never overwritten"):
        run(tmp_path / "in", tmp_path / "masks", masks=masks.find(tmp_path / "masks"), existing="overwrite")
    assert (tmp_path / "masks" / "x.png").read_bytes() == before


def test_ray_actor_uses_the_mask_from_another_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo, white = write_picture(Path("in/x.png")), write_mask(Path("masks/x.png"))
    plan = planned("in", Path("out"), masks=masks.find("masks"))
    plan.journal.release()
    settings = Settings(worker_tasks.Reading(), worker_tasks.Writing(tmp_path / "out"), "settings")
    absolute = ray_engine._absolute(plan)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    actor = pickle.loads(pickle.dumps(ray_engine.Actor(Inverted, settings, absolute.todo)))
    assert actor({"number": 0})["entry"].is_done
    assert is_masked(pixels_of(tmp_path / "out" / "x.png"), photo, white)


def soft_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Write a mask that is black, then white, with a column of each grey between; return its values, (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.concatenate([np.zeros(8), [1, 50, 128, 254], np.full(size[0] - 12, 255)]).astype(np.uint8)
    values = np.tile(row, (size[1], 1))
    Image.fromarray(values).save(path)
    return values


@pytest.mark.parametrize("options", [{}, {"strength": 0.5, "keep": "colour"}, {"strength": [1.2, 0.7]}, {"tile": 8}])
def test_files_of_a_masked_translation_are_photo_and_translation_bit_for_bit(tmp_path: Path, options: dict) -> None:
    """PNG and TIFF, 8 and 16 bits, with alpha: black pixels equal the decoded photo, also where alpha is 0."""
    model = write_model(tmp_path / "model")
    values, photos = soft_mask(tmp_path / "m.png", (40, 30)), {}
    alpha = np.random.default_rng(1).integers(0, 2, (30, 40), np.uint8) * 255
    photos["alpha.png"] = Photo(noise(40, 30, seed=1), alpha)
    photos["x.png"] = photos["x.tif"] = Photo(noise(40, 30, seed=2))
    if writing_16_bits():
        deep = np.random.default_rng(3).integers(0, 2**16, (30, 40, 3), np.uint16)
        photos["deep.png"] = photos["deep.tif"] = Photo(deep)
    (tmp_path / "in").mkdir()
    for name, photo in photos.items():
        writing.write(photo, tmp_path / "in" / name)

    how = {"direction": "a2b", "device": "cpu", "precision": "fp32", "workers": 0, "batch_size": 1, **options}
    assert translate(model, tmp_path / "in", tmp_path / "masked", mask=tmp_path / "m.png", **how) == 0
    assert translate(model, tmp_path / "in", tmp_path / "whole", **how) == 0
    names = sorted(name for name in tree(tmp_path / "masked") if name != "index.html")
    strengths = options.get("strength", 1)
    assert len(names) == len(photos) * (len(strengths) if isinstance(strengths, list) else 1)
    for name in names:
        photo, whole, result = (
            reading.read(tmp_path / path) for path in (f"in/{Path(name).name}", f"whole/{name}", f"masked/{name}")
        )
        assert result.pixels.dtype == photo.pixels.dtype
        assert np.array_equal(result.pixels[values == 0], photo.pixels[values == 0])
        assert np.array_equal(result.pixels[values == 255], whole.pixels[values == 255])
        assert not np.array_equal(result.pixels[values == 128], photo.pixels[values == 128])
        assert not np.array_equal(result.pixels[values == 128], whole.pixels[values == 128])
        assert (result.alpha is None) == (photo.alpha is None)
        assert photo.alpha is None or np.array_equal(result.alpha, photo.alpha)


def writing_16_bits() -> bool:
    try:
        import imagecodecs  # noqa: F401
        import tifffile  # noqa: F401
    except ImportError:
        return False
    return True


def test_feather_and_resize_apply_to_the_size_of_the_translation(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png", size=(80, 60))
    write_mask(tmp_path / "masks" / "x.png", size=(80, 60), columns=20)
    small = reading.read(tmp_path / "in" / "x.png", resize=40).pixels.astype(int)
    run(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "masks"), resize=40, feather=5)
    result = pixels_of(tmp_path / "out" / "x.png")
    assert result.shape == (30, 40, 3)
    assert np.array_equal(result[:, :10], small[:, :10])
    assert np.array_equal(result[:, 15:], 255 - small[:, 15:])
    for column in range(10, 15):
        assert not np.array_equal(result[:, column], 255 - small[:, column])


def test_feather_is_part_of_the_settings_and_of_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    write_picture(tmp_path / "in" / "x.png")
    write_mask(tmp_path / "masks" / "x.png")
    write_mask(tmp_path / "masks" / "old.png")
    how = {"mask": tmp_path / "masks", "direction": "a2b", "device": "cpu", "workers": 0}
    for feather, expected in [(0, "1 ok, "), (3, "1 ok, "), (3, "1 ok (1 up to date)")]:
        assert translate(model, tmp_path / "in", tmp_path / "out", feather=feather, **how) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1] == f"masks without a photo: 1, such as {tmp_path / 'masks' / 'old.png'}"
        assert lines[-1].startswith(expected)
    assert "masked, feather 3 px" in (tmp_path / "out" / "index.html").read_text()


def test_black_mask_is_noted_in_the_report(tmp_path: Path) -> None:
    photo = write_picture(tmp_path / "in" / "x.png")
    write_mask(tmp_path / "m.png", columns=12)
    run(tmp_path / "in", tmp_path / "out", masks=masks.find(tmp_path / "m.png"))
    (row,) = map(json.loads, (tmp_path / "out" / FOLDER / "report.jsonl").read_text().splitlines())
    assert row["notes"] == ["its mask is black everywhere: the photo is unchanged"]
    assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), photo)


@pytest.mark.parametrize(
    ("mask", "feather", "kind", "message"),
    [
        ("missing", 0, DataError, r"mask=.*missing: no such file or folder: "),
        ("empty", 0, DataError, r"mask=.*empty: no pictures .* in this folder, which contains "),
        ("notes.txt", 0, DataError, r"mask=.*notes.txt does not end like a picture"),
        ("others", 0, DataError, r"mask=.*others: .*x.png: it has no mask .*x.png \(or another ending\): add one"),
        ("in", 0, CommandError, r"mask=.*in is the input folder itself: put the masks into a folder of their own"),
        ("masks", -1, CommandError, r"feather=-1: give the width of the soft edges in px, 0 to 1,000"),
        (None, 5, CommandError, r"feather=5 softens the edges of masks: give mask= too"),
    ],
)
def test_wrong_mask_is_an_error_of_one_line_before_the_model_is_loaded(
    tmp_path: Path, mask: str | None, feather: int, kind: type[Exception], message: str
) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_mask(tmp_path / "masks" / "x.png")
    write_mask(tmp_path / "others" / "y.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x.png")
    path = None if mask is None else tmp_path / mask
    with pytest.raises(kind, match=message) as caught:
        translate(tmp_path / "no model", tmp_path / "in", tmp_path / "out", mask=path, feather=feather)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("folder", "code"), [("missing", 3), ("masks", 6), ("in", 2)])
def test_exit_codes_and_lines_of_wrong_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: str, code: int
) -> None:
    write_model(tmp_path / "model")
    for name in ("x.png", "y.png"):
        write_picture(tmp_path / "in" / name)
    write_mask(tmp_path / "masks" / "x.png")
    arguments = [f"checkpoint={tmp_path / 'model'}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"]
    arguments += ["direction=a2b", "device=cpu", "workers=0", f"mask={tmp_path / folder}"]
    monkeypatch.setattr(sys, "argv", ["cyclestyle.translate", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    output = capsys.readouterr()
    if code == 6:
        assert output.out.splitlines()[-1].startswith(f"  {tmp_path / 'in' / 'y.png'}: it has no mask ")
        assert output.err == ""
    else:
        assert len(output.err.splitlines()) == 1
        assert "mask=" in output.err


def test_model_that_changes_the_number_of_channels_refuses_masks(tmp_path: Path) -> None:
    grey = {"name": "resnet", "channels": 4, "blocks": 1, "in_channels": 3, "out_channels": 1}
    model = write_model(tmp_path / "model", architecture=grey, back={**grey, "in_channels": 1, "out_channels": 3})
    write_picture(tmp_path / "in" / "x.png")
    write_mask(tmp_path / "m.png")
    with pytest.raises(CommandError, match="this model turns RGB photos into grey ones, which cannot be blended"):
        translate(model, tmp_path / "in", tmp_path / "out", mask=tmp_path / "m.png", direction="a2b", device="cpu")
