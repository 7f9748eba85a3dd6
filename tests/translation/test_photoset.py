"""A folder of pictures goes in, the same folder comes out, and nothing that was there is harmed."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle import images
from cyclestyle.errors import CommandError, DataError, DiskError
from cyclestyle.translation import photoset, stream
from tests.translation.models import invert, noise, pixels_of, write_picture

FORMATS = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF"}
NAMES = [
    "Müller öß.png",
    "🎨 👩‍🎨.png",
    "two  words (2019), it's #1 = ~good~.png",
    "line\nbreak\ttab.png",
    "-dash.png",
    "[bold]rich[/bold].png",
    os.fsdecode(b"latin \xff\xfe.png"),
]


def run(source: Path, output: Path, **options) -> photoset.Outcome:
    planned = photoset.plan(source, output, **{key: options.pop(key) for key in ["existing"] if key in options})
    return photoset.translate(planned, invert, **options)


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_tree_names_sizes_and_formats_are_kept(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "deep" / "out"
    sizes = {}
    for number, ending in enumerate(FORMATS):
        name = f"{'sub/' * (number % 3)}picture{number}.{ending}"
        sizes[name] = (10 + number, 30 - number)
        write_picture(source / name, size=sizes[name])
    (source / "notes.txt").write_text("not a picture")

    outcome = run(source, output)

    assert (outcome.translated, outcome.kept, outcome.failures) == (7, 0, [])
    assert tree(output) == set(sizes)
    for name, size in sizes.items():
        with Image.open(output / name) as made:
            assert (made.size, made.format) == (size, FORMATS[name.rpartition(".")[2]])


def test_each_picture_gets_its_own_translation(tmp_path: Path) -> None:
    # Two sizes taking turns in batches of three, so that batches end up out of order.
    made = {f"{n}.png": write_picture(tmp_path / "in" / f"{n}.png", size=(9 + n % 2, 8), seed=n) for n in range(17)}
    assert run(tmp_path / "in", tmp_path / "out", batch_size=3).translated == 17
    for name, pixels in made.items():
        assert np.array_equal(pixels_of(tmp_path / "out" / name), 255 - pixels)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_works(tmp_path: Path, name: str) -> None:
    pixels = write_picture(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out").translated == 1
    assert np.array_equal(pixels_of(tmp_path / "out" / name), 255 - pixels)
    (tmp_path / "in" / name).write_bytes(b"damaged")
    outcome = run(tmp_path / "in", tmp_path / "out", existing="overwrite")
    told = str(outcome.failures[0])
    assert "\n" not in told
    assert "\t" not in told
    told.encode()  # fails on what cannot be printed


def test_existing_translations_are_kept_and_counted(tmp_path: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").write_bytes(b"mine")

    first, second = run(tmp_path / "in", tmp_path / "out"), run(tmp_path / "in", tmp_path / "out")
    assert (first.translated, first.kept) == (2, 1)
    assert (second.translated, second.kept) == (0, 3)
    assert (tmp_path / "out" / "1.png").read_bytes() == b"mine"


def test_existing_translations_are_overwritten_if_asked(tmp_path: Path) -> None:
    pixels = write_picture(tmp_path / "in" / "1.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.png").write_bytes(b"old")
    outcome = run(tmp_path / "in", tmp_path / "out", existing="overwrite")
    assert (outcome.translated, outcome.kept) == (1, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / "1.png"), 255 - pixels)


@pytest.mark.parametrize("existing", ["keep", "overwrite"])
@pytest.mark.parametrize(
    "case", ["same folder", "linked folder", "linked file", "hard link", "folder of its own", "itself"]
)
def test_inputs_are_never_overwritten(tmp_path: Path, case: str, existing: photoset.Existing) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_picture(source / "x.png")
    if case == "same folder":
        output = tmp_path / "in" / ".." / "in"
    elif case == "linked folder":
        output.symlink_to(source)
    elif case == "linked file":
        output.mkdir()
        (output / "x.png").symlink_to(source / "x.png")
    elif case == "hard link":
        output.mkdir()
        (output / "x.png").hardlink_to(source / "x.png")
    elif case == "folder of its own":
        source, output = source / "x.png", source
    elif case == "itself":
        source, output = source / "x.png", source / "x.png"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    with pytest.raises(CommandError, match="never overwritten"):
        photoset.plan(source, output, existing=existing)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_above_the_input_may_not_hit_it(tmp_path: Path) -> None:
    # photos/a/a/x.png goes to photos/a/x.png, which is an input too.
    write_picture(tmp_path / "a" / "x.png")
    write_picture(tmp_path / "a" / "a" / "x.png")
    with pytest.raises(CommandError, match="never overwritten"):
        photoset.plan(tmp_path / "a", tmp_path)


def test_an_output_above_the_input_is_no_reason_to_skip_pictures(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    assert run(tmp_path / "in", tmp_path).translated == 1
    assert (tmp_path / "x.png").is_file()


def test_an_output_inside_the_input_is_not_read_again(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    write_picture(tmp_path / "out" / "earlier.png")
    for existing, counts in [("keep", (1, 0)), ("keep", (0, 1)), ("overwrite", (1, 0))]:
        outcome = run(tmp_path, tmp_path / "out", existing=existing)
        assert (outcome.translated, outcome.kept) == counts
    assert tree(tmp_path) == {"x.png", "out/x.png", "out/earlier.png"}


def test_links_in_circles_end(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "sub" / "x.png")
    (tmp_path / "in" / "sub" / "again").symlink_to(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out").translated == 1


def test_damaged_pictures_do_not_keep_the_rest_from_being_done(tmp_path: Path) -> None:
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

    assert outcome.translated == 16
    assert [failure.source.name for failure in outcome.failures] == sorted(bad)
    assert tree(tmp_path / "out") == {f"{n:02}.png" for n in range(20) if f"{n:02}.png" not in bad} | {"failed.txt"}
    assert "not a picture that can be read" in outcome.failures[0].reason
    assert str(tmp_path) not in outcome.failures[0].reason


def test_failures_are_listed_five_on_screen_and_all_in_a_file(tmp_path: Path) -> None:
    for n in range(8):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{n}.png").write_bytes(b"damaged")
    write_picture(tmp_path / "in" / "good.png")
    planned = photoset.plan(tmp_path / "in", tmp_path / "out")
    outcome = photoset.translate(planned, invert)

    lines = photoset.summary(outcome, planned).splitlines()
    assert lines[0].startswith("1 translated, 0 kept, 8 failed in ")
    assert lines[0].endswith(f": {tmp_path / 'out'}")
    assert [Path(line.strip().partition(":")[0]).name for line in lines[1:6]] == [f"{n}.png" for n in range(5)]
    assert lines[6:] == [f"  and 3 more, all listed in {tmp_path / 'out' / 'failed.txt'}"]
    listed = (tmp_path / "out" / "failed.txt").read_text().splitlines()[1:]
    assert listed == [str(failure) for failure in outcome.failures]
    assert len(listed) == 8


def test_the_list_of_failures_goes_once_nothing_fails_but_only_ours(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.png").write_bytes(b"damaged")
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "failed.txt").is_file()
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "failed.txt").exists()
    (tmp_path / "out" / "failed.txt").write_text("my own notes")
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "failed.txt").read_text() == "my own notes"


@pytest.mark.parametrize(
    ("output", "expected"),
    [("out", "out/x.png"), ("new/name.png", "new/name.png"), ("name.jpg", "name.jpg"), ("is.png", "is.png/x.png")],
)
def test_one_picture_goes_into_a_folder_or_under_a_name(tmp_path: Path, output: str, expected: str) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "is.png").mkdir()
    assert run(tmp_path / "in" / "x.png", tmp_path / output).translated == 1
    with Image.open(tmp_path / expected) as made:
        assert made.format == ("JPEG" if expected.endswith("jpg") else "PNG")


def test_a_missing_input_names_where_it_looked_and_what_is_there(tmp_path: Path) -> None:
    write_picture(tmp_path / "photos" / "x.png")
    with pytest.raises(DataError, match=rf"no picture or folder {tmp_path}/fotos/a: {tmp_path} contains photos$"):
        photoset.plan(tmp_path / "fotos" / "a", tmp_path / "out")


def test_a_folder_without_pictures_names_what_it_has(tmp_path: Path) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.txt").touch()
    with pytest.raises(DataError, match=rf"in {tmp_path}, which contains a.txt, b.txt, c.txt, d.txt and 2 more$"):
        photoset.plan(tmp_path, tmp_path / "out")


def test_a_file_that_is_no_picture_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.pdf").touch()
    with pytest.raises(DataError, match=r"x\.pdf does not end like a picture"):
        photoset.plan(tmp_path / "x.pdf", tmp_path / "out")


def test_a_file_cannot_be_the_output_of_a_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_picture(tmp_path / "out.png")
    with pytest.raises(CommandError, match=r"out\.png is a file, but input=.* is a folder"):
        photoset.plan(tmp_path / "in", tmp_path / "out.png")


def test_a_batch_of_no_pictures_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    with pytest.raises(CommandError, match="batch_size=0"):
        run(tmp_path / "in", tmp_path / "out", batch_size=0)


def test_an_output_below_a_file_is_a_disk_error(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=rf"cannot write {tmp_path}/file/out/x\.png: Not a directory"):
        run(tmp_path / "in", tmp_path / "file" / "out")


def test_a_full_disk_ends_the_job_with_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        write_picture(tmp_path / "in" / f"{n:02}.png", seed=n)
    fsync, calls = os.fsync, itertools.count(1)

    def full_after_ten(descriptor: int) -> None:
        if next(calls) > 10:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_ten)
    with pytest.raises(DiskError, match=r"cannot write .*\.png: No space left on device"):
        run(tmp_path / "in", tmp_path / "out", batch_size=4)
    monkeypatch.undo()

    written = list((tmp_path / "out").iterdir())
    assert len(written) == 10
    assert all(np.array_equal(pixels_of(file), 255 - pixels_of(tmp_path / "in" / file.name)) for file in written)
    assert run(tmp_path / "in", tmp_path / "out").translated == 30


@pytest.mark.parametrize(("ending", "width"), [("webp", 16_384), ("jpg", 65_501)])
def test_a_picture_that_its_format_cannot_hold_fails_alone(tmp_path: Path, ending: str, width: int) -> None:
    write_picture(tmp_path / "in" / f"x.{ending}")
    Image.new("RGB", (width, 1)).save(tmp_path / "in" / f"long.{ending}", format="PNG")
    (tmp_path / "in" / f"other.{ending}").write_bytes(b"damaged")
    outcome = run(tmp_path / "in", tmp_path / "out")
    assert outcome.translated == 1
    assert [failure.source.stem for failure in outcome.failures] == ["long", "other"]
    assert outcome.failures[0].reason.startswith("its translation cannot be written: ")


def test_pictures_are_turned_upright_by_their_exif(tmp_path: Path) -> None:
    pixels = noise(12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "x.png", exif=exif)
    run(tmp_path / "in", tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), 255 - np.rot90(pixels, -1))
    with Image.open(tmp_path / "out" / "x.png") as made:
        assert 0x0112 not in made.getexif()  # else viewers would turn it once more


def photo(width: int, height: int) -> stream.Photo:
    return stream.Photo(Path("x.png"), torch.zeros(3, height, width, dtype=torch.uint8))


def test_batches_are_of_one_size_and_lose_nothing() -> None:
    widths = [8, 9, 8, 8, 10, 9, 8, 8, 8, 9]
    made = list(stream.batches((photo(width, 8) for width in widths), 3))
    assert all(len({one.pixels.shape for one in batch}) == 1 and len(batch) <= 3 for batch in made)
    assert sorted(one.pixels.shape[-1] for batch in made for one in batch) == sorted(widths)
    assert [len(batch) for batch in made if batch[0].pixels.shape[-1] == 8] == [3, 3]


def test_large_pictures_go_in_smaller_batches() -> None:
    made = list(stream.batches([photo(1024, 1024)] * 4 + [photo(2000, 1500)] * 2, 8))
    assert [len(batch) for batch in made] == [2, 2, 1, 1]


@pytest.mark.parametrize(("side", "batch_size", "most"), [(16, 8, 32), (1000, 64, 34)])
def test_sets_where_all_sizes_differ_are_not_held_back(side: int, batch_size: int, most: int) -> None:
    held = highest = 0

    def coming() -> Iterator[stream.Photo]:
        nonlocal held, highest
        for n in range(60):
            held += 1
            highest = max(highest, held)
            yield photo(side + n % 40, side + n // 40)

    for batch in stream.batches(coming(), batch_size):
        held -= len(batch)
    assert held == 0
    assert highest <= most


def test_memory_does_not_grow_with_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures alive at any moment: those read ahead, in two batches, and waiting to be written; not all 150."""
    for n in range(150):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_picture(tmp_path / "in" / f"{n}.png", size=(4, 4), seed=n)
    started, written, most = [], [], 0
    read, save = images.read, images.save

    def reading(path: Path) -> Image.Image:
        nonlocal most
        started.append(path)
        most = max(most, len(started) - len(written))
        return read(path)

    def saving(image: Image.Image, path: Path) -> None:
        save(image, path)
        written.append(path)

    monkeypatch.setattr(images, "read", reading)
    monkeypatch.setattr(images, "save", saving)
    assert run(tmp_path / "in", tmp_path / "out", batch_size=4).translated == 150
    assert most <= 2 * stream.MOST_AHEAD + 3 * 4 + stream.THREADS
