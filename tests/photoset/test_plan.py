"""Planning of a set's translation: target names, photos already done, and files that are never overwritten."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.images import file_formats
from cyclestyle.photoset import runner
from cyclestyle.photoset.journal import FOLDER, Journal
from cyclestyle.photoset.plan import Existing, make_jobs, make_plan, target_names
from cyclestyle.photoset.runner import Settings
from cyclestyle.photoset.worker_tasks import Reading, Writing
from tests.translation.models import Inverted, noise, pixels_of, write_picture
from tests.translation.sets import counts, planned, run, tree


def names(*photos: str, format: str = "keep") -> list[str]:  # noqa: A002
    return [str(name) for name, _ in target_names([Path(photo) for photo in photos], format)]


def test_translations_have_names_of_photos_if_format_is_kept() -> None:
    assert names("a.jpg", "sub/a.jpg", "a.png", "a.JPEG") == ["a.jpg", "sub/a.jpg", "a.png", "a.JPEG"]


def test_converted_translations_get_new_endings_without_name_clashes() -> None:
    assert names("a.jpg", "a.png", "b.tif", format="png") == ["a.jpg.png", "a.png", "b.png"]
    assert names("a.jpg", "a.tif", format="webp") == ["a.webp", "a.tif.webp"]
    assert names("a.gif", "a.png") == ["a.gif.png", "a.png"]


def test_jpeg_translations_of_heic_photos_avoid_names_of_other_photos() -> None:
    """Some phones save both IMG_1.HEIC and IMG_1.JPG."""
    assert names("a.HEIC", "b.heif", "c.hif") == ["a.jpg", "b.jpg", "c.jpg"]
    assert names("IMG_1.HEIC", "IMG_1.JPG") == ["IMG_1.HEIC.jpg", "IMG_1.JPG"]
    assert names("x.heic", "x.heif", "x.jpg", "x.jpeg") == ["x.heic.jpg", "x.heif.jpg", "x.jpg", "x.jpeg"]
    assert names("x.heic", "x.heif") == ["x.jpg", "x.heif.jpg"]
    assert names("x.heic", "x.heic.jpg", "x.jpg") == ["x-2.jpg", "x.heic.jpg", "x.jpg"]
    assert names("x.HEIC", "x.jpg", format="heic") == ["x.HEIC", "x.jpg.heic"]


def test_target_names_differ_in_more_than_case_and_normalization() -> None:
    assert names("A.png", "a.png", "a.PNG") == ["A.png", "a-2.png", "a-3.PNG"]
    assert names("o\u0308.png", "\u00f6.png") == ["o\u0308.png", "\u00f6-2.png"]
    assert names("a.png", "A.png", "a-2.png") == ["a.png", "A-3.png", "a-2.png"]  # a-2.png keeps its name


def test_no_target_has_the_name_of_a_needed_folder() -> None:
    assert names("x.gif", "x.png/y.jpg", "X.PNG/z.jpg") == ["x.gif.png", "x.png/y.jpg", "X.PNG/z.jpg"]


def test_target_names_are_unique() -> None:
    stems = ["a", "A", "a.jpg", "a-2", "A-2", "a.JPG"]
    photos = [f"{stem}{ending}" for stem in stems for ending in (".png", ".jpg", ".jpg.png", ".gif", ".tif", ".heic")]
    for format in ("keep", "png", "jpeg", "webp", "heic"):  # noqa: A001
        targets = names(*photos, format=format)
        assert len({name.casefold() for name in targets}) == len(photos)


def test_name_clash_adds_a_note(tmp_path: Path) -> None:
    first, second = (write_picture(tmp_path / "in" / name, seed=seed) for seed, name in enumerate(["a.bmp", "a.png"]))
    outcome = run(tmp_path / "in", tmp_path / "out", format="png")
    assert tree(tmp_path / "out") == {"a.bmp.png", "a.png"}
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.bmp.png"), 255 - first)
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.png"), 255 - second)
    assert outcome.lines[0].notes == ("named a.bmp.png: the name a.png is taken",)


HEIC = "HEIC is written as JPEG: format=heic keeps it"


def write_heic(path: Path, *, seed: int = 0) -> None:
    heif = pytest.importorskip("pillow_heif", reason="HEIC needs the extra `heic`")
    heif.register_heif_opener()
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(noise(40, 30, seed=seed)).save(path, "HEIF", quality=95)


def opened(path: Path) -> tuple[str | None, tuple[int, int]]:
    with Image.open(path) as image:
        image.load()
        return image.format, image.size


def test_report_has_a_note_on_each_heic_photo_that_becomes_jpeg(tmp_path: Path) -> None:
    write_heic(tmp_path / "in" / "x.HEIC")
    write_heic(tmp_path / "in" / "y.heic")
    write_picture(tmp_path / "in" / "y.jpg")
    outcome = run(tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out") == {"x.jpg", "y.heic.jpg", "y.jpg"}
    assert opened(tmp_path / "out" / "x.jpg") == ("JPEG", (40, 30))
    assert [row.notes for row in outcome.lines] == [
        (HEIC,),
        (HEIC, "named y.heic.jpg: the name y.jpg is taken"),
        (),
    ]
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 3, 0, 0)


def test_heic_photos_stay_heic_if_option_format_is_heic(tmp_path: Path) -> None:
    write_heic(tmp_path / "in" / "x.HEIC")
    outcome = run(tmp_path / "in", tmp_path / "out", format="heic")
    assert opened(tmp_path / "out" / "x.HEIC") == ("HEIF", (40, 30))
    assert outcome.lines[0].notes == ()
    assert counts(run(tmp_path / "in" / "x.HEIC", tmp_path / "one.heic")) == (1, 0, 0, 0)
    assert opened(tmp_path / "one.heic") == ("HEIF", (40, 30))
    with pytest.raises(CommandError, match=r"one\.heic does not end like format=jpeg"):
        run(tmp_path / "in" / "x.HEIC", tmp_path / "one.heic", format="jpeg")


def test_heic_translations_of_earlier_versions_are_kept(tmp_path: Path) -> None:
    write_heic(tmp_path / "in" / "x.heic")
    run(tmp_path / "in", tmp_path / "out", format="heic")  # the default of earlier versions
    before = (tmp_path / "out" / "x.heic").read_bytes()
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)
    assert tree(tmp_path / "out") == {"x.heic", "x.jpg"}
    assert (tmp_path / "out" / "x.heic").read_bytes() == before
    assert counts(run(tmp_path / "in", tmp_path / "out", format="heic")) == (0, 1, 0, 0)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 0)


def test_format_heic_without_library_is_rejected_before_output_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "in" / "x.png")
    monkeypatch.setattr(file_formats, "_NOT_WRITTEN", {"GIF", "HEIC"})
    with pytest.raises(CommandError, match=r"format=heic needs another library: pip install 'cyclestyle\[heic\]'"):
        run(tmp_path / "in", tmp_path / "out", format="heic")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("existing", ["skip", "overwrite"])
@pytest.mark.parametrize(
    "case", ["same folder", "linked folder", "linked file", "hard link", "folder of its own", "itself"]
)
def test_inputs_are_never_overwritten(tmp_path: Path, case: str, existing: Existing) -> None:
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
        planned(source, output, existing=existing)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_input_is_not_overwritten_if_output_folder_contains_it(tmp_path: Path) -> None:
    # The target of a/a/x.png is a/x.png, which is an input too.
    write_picture(tmp_path / "a" / "x.png")
    write_picture(tmp_path / "a" / "a" / "x.png")
    with pytest.raises(CommandError, match="never overwritten"):
        planned(tmp_path / "a", tmp_path)


def test_output_folder_inside_the_input_is_not_translated(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    for expected in ((1, 0, 0, 0), (0, 1, 0, 0)):
        assert counts(run(tmp_path, tmp_path / "out")) == expected
    assert counts(run(tmp_path, tmp_path / "other")) == (1, 0, 0, 0)
    assert tree(tmp_path) == {"x.png", "out/x.png", "other/x.png"}


def test_repeated_command_translates_only_missing_photos(tmp_path: Path) -> None:
    for n in range(5):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (5, 0, 0, 0)
    before = {path: path.stat() for path in (tmp_path / "out").glob("*.png")}
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 5, 0, 0)
    assert {path: path.stat() for path in (tmp_path / "out").glob("*.png")} == before

    (tmp_path / "out" / "2.png").unlink()
    changed = write_picture(tmp_path / "in" / "3.png", seed=33)
    write_picture(tmp_path / "in" / "5.png", seed=5)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (3, 3, 0, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / "3.png"), 255 - changed)


def test_changed_settings_cause_new_translations(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    for settings, expected in [("a", (1, 0, 0, 0)), ("a", (0, 1, 0, 0)), ("b", (1, 0, 0, 0)), ("a", (1, 0, 0, 0))]:
        assert counts(run(tmp_path / "in", tmp_path / "out", settings=settings)) == expected


def test_translations_at_one_and_at_three_strengths_coexist_in_an_output_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    assert counts(run(tmp_path / "in", tmp_path / "out", count=3)) == (1, 0, 0, 0)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 0)
    assert counts(run(tmp_path / "in", tmp_path / "out", count=3)) == (0, 1, 0, 0)
    assert tree(tmp_path / "out") == {"x.png", "0/x.png", "1/x.png", "2/x.png"}


@pytest.mark.parametrize("origin", ["a stranger's", "retouched", "of another picture"])
def test_foreign_or_edited_target_files_are_kept(tmp_path: Path, origin: str) -> None:
    pixels = write_picture(tmp_path / "in" / "x.png")
    if origin == "a stranger's":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x.png").write_bytes(b"mine")
    elif origin == "retouched":
        run(tmp_path / "in", tmp_path / "out")
        (tmp_path / "out" / "x.png").write_bytes(b"mine")
    else:
        write_picture(tmp_path / "elsewhere" / "x.png", seed=9)
        run(tmp_path / "elsewhere", tmp_path / "out")
    before = (tmp_path / "out" / "x.png").read_bytes()

    outcome = run(tmp_path / "in", tmp_path / "out", settings="others")
    assert counts(outcome) == (0, 0, 1, 0)
    assert "existing=overwrite replaces it" in outcome.lines[0].reason
    assert ("was made from" in outcome.lines[0].reason) == (origin == "of another picture")
    assert (tmp_path / "out" / "x.png").read_bytes() == before

    assert counts(run(tmp_path / "in", tmp_path / "out", existing="overwrite")) == (1, 0, 0, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), 255 - pixels)


def test_retry_of_failed_photo_replaces_its_earlier_translation_but_no_user_file(tmp_path: Path) -> None:
    source, output = tmp_path / "in" / "x.png", tmp_path / "out" / "x.png"
    for first in ("nothing made", "made"):
        if first == "made":
            output.unlink()
            write_picture(source)
            assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)
        source.parent.mkdir(exist_ok=True)
        source.write_bytes(b"damaged")
        assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 0, 0, 1)
        output.write_bytes(b"mine")
        write_picture(source, seed=3)
        assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 0, 1, 0)
        assert output.read_bytes() == b"mine"

    run(tmp_path / "in", tmp_path / "out", existing="overwrite")
    source.write_bytes(b"damaged")
    run(tmp_path / "in", tmp_path / "out")
    write_picture(source, seed=4)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)  # the file is unchanged since its translation


def test_command_with_other_strengths_replaces_shared_target_files(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    jobs = {order: make_jobs(str(tmp_path / "in"), tmp_path / "out", folders=order) for order in ("ab", "ba", "bc")}
    for order in ("ab", "ba", "bc", "ab"):
        how = Settings(Reading(), Writing(tmp_path / "out"), order)
        plan = make_plan(jobs[order], existing="skip", settings=order, world=World())
        assert counts(runner.run_plan(plan, Inverted(2), how)) == (1, 0, 0, 0)
        plan.journal.release()


def test_translations_stay_up_to_date_if_input_folder_is_renamed(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in").rename(tmp_path / "photos")
    assert counts(run(tmp_path / "photos", tmp_path / "out")) == (0, 1, 0, 0)
    assert counts(run(tmp_path / "photos", tmp_path / "out", settings="others")) == (1, 0, 0, 0)


def test_translation_of_added_photo_replaces_earlier_translation_of_same_name(tmp_path: Path) -> None:
    first = write_picture(tmp_path / "in" / "a.bmp", seed=1)
    run(tmp_path / "in", tmp_path / "out", format="png")
    assert tree(tmp_path / "out") == {"a.png"}
    second = write_picture(tmp_path / "in" / "a.png", seed=2)
    assert counts(run(tmp_path / "in", tmp_path / "out", format="png")) == (2, 0, 0, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.bmp.png"), 255 - first)
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.png"), 255 - second)


def test_search_of_earlier_output_folder_finds_photos_but_not_translations(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.bmp"):
        write_picture(tmp_path / "photos" / name)
    run(f"{tmp_path}/photos/*.jpg", tmp_path / "photos", format="png")
    assert tree(tmp_path) == {f"photos/{name}" for name in ("a.jpg", "b.jpg", "c.bmp", "a.png", "b.png")}
    jobs = make_jobs(str(tmp_path), tmp_path / "out")
    assert [str(job.source.name) for job in jobs.jobs] == ["photos/a.jpg", "photos/b.jpg", "photos/c.bmp"]
    assert jobs.skipped_own_outputs == 2


@pytest.mark.parametrize("case", ["a folder in the way", "a file for a folder", "a name too long"])
def test_unwritable_target_does_not_stop_other_photos(tmp_path: Path, case: str) -> None:
    write_picture(tmp_path / "in" / "good.png")
    name = {"a folder in the way": "x.png", "a file for a folder": "s/x.png", "a name too long": f"{251 * 'n'}.tif"}[
        case
    ]
    write_picture(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    if case == "a folder in the way":
        (tmp_path / "out" / "x.png").mkdir()
    elif case == "a file for a folder":
        (tmp_path / "out" / "s").touch()
    outcome = run(tmp_path / "in", tmp_path / "out", existing="overwrite", format="webp" if "long" in case else "keep")
    assert counts(outcome) == (1, 0, 0, 1)
    assert outcome.failures[0].reason.startswith(f"cannot write {tmp_path / 'out'}")


def test_outdated_target_files_are_rejected_if_option_existing_is_error(tmp_path: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    run(tmp_path / "in", tmp_path / "out")
    assert counts(run(tmp_path / "in", tmp_path / "out", existing="error")) == (0, 3, 0, 0)
    with pytest.raises(CommandError, match=r"out/0\.png and 2 more are there already: existing=skip or overwrite"):
        run(tmp_path / "in", tmp_path / "out", existing="error", settings="others")


def test_translation_interrupted_while_writing_is_repeated(tmp_path: Path) -> None:
    pixels = write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    journal = tmp_path / "out" / FOLDER / "journal.jsonl"
    pending, done = journal.read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "x.png").write_bytes(b"half, if writing were not atomic")
    for remaining in (pending, pending + done[: len(done) // 2]):
        journal.write_bytes(remaining)
        assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)
        assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), 255 - pixels)
        assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"[]\n",
        b'{"v": 1}\n',
        b'{"v": 1, "name": "x.png", "source": "x", "elapsed_s": Infinity, "stamp": [1e999, 0]}\n',
        b'{"v": 99, "name": "x.png"}\n',
        b"\xff\n",
    ],
)
def test_damaged_journal_causes_no_error_and_no_overwriting(tmp_path: Path, content: bytes) -> None:
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / FOLDER / "journal.jsonl").write_bytes(content)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 0, 1, 0)


def test_journal_size_is_bounded(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    for _ in range(20):
        run(tmp_path / "in", tmp_path / "out", existing="overwrite")
    lines = (tmp_path / "out" / FOLDER / "journal.jsonl").read_bytes().splitlines()
    assert len(lines) <= 8


def test_second_command_for_the_same_output_is_rejected(tmp_path: Path) -> None:
    """The second command runs in a child process, since a process can acquire a lock that it already holds."""
    write_picture(tmp_path / "in" / "x.png")
    holder = planned(tmp_path / "in", tmp_path / "out").journal
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            planned(tmp_path / "in", tmp_path / "out")
        except CommandError as error:
            os._exit(0 if f"is in use by pid {os.getppid()}: wait for it" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    holder.release()


def test_journal_entry_with_non_utf8_file_name_round_trips(tmp_path: Path) -> None:
    odd = os.fsdecode(b"latin \xff\n.png")
    write_picture(tmp_path / "in" / odd)
    run(tmp_path / "in", tmp_path / "out")
    journal = Journal(tmp_path / "out")
    journal.read()
    entry = journal.entries[odd]
    status = (tmp_path / "out" / odd).stat()
    assert entry.targets == {odd: (status.st_size, status.st_mtime_ns)}
    assert (entry.size, entry.source) == ((12, 9), str(tmp_path / "in" / odd))


def test_file_output_for_a_folder_is_rejected(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_picture(tmp_path / "out.png")
    with pytest.raises(CommandError, match=r"out\.png is a name for one picture, but input= is not one picture"):
        planned(tmp_path / "in", tmp_path / "out.png")


@pytest.mark.parametrize(
    ("output", "expected"),
    [("out", "out/x.png"), ("new/name.png", "new/name.png"), ("name.jpg", "name.jpg"), ("is.png", "is.png/x.png")],
)
def test_single_photo_output_is_a_folder_or_a_file(tmp_path: Path, output: str, expected: str) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "is.png").mkdir()
    assert counts(run(tmp_path / "in" / "x.png", tmp_path / output)) == (1, 0, 0, 0)
    assert (tmp_path / expected).is_file()
    hidden = (tmp_path / expected).parent / FOLDER
    assert (hidden / "journal.jsonl").is_file()
    assert (hidden / "report.jsonl").exists() == (not output.endswith(expected))  # the report of a set is not replaced


def test_foreign_target_of_single_photo_is_replaced_only_on_request(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"mine")
    assert counts(run(tmp_path / "x.png", tmp_path / "y.png")) == (0, 0, 1, 0)
    with pytest.raises(CommandError, match=r"y\.png is there already"):
        run(tmp_path / "x.png", tmp_path / "y.png", existing="error")
    assert counts(run(tmp_path / "x.png", tmp_path / "y.png", existing="overwrite")) == (1, 0, 0, 0)


def test_output_file_is_replaced_only_if_settings_or_photo_changed(tmp_path: Path) -> None:
    photo, output = tmp_path / "x.png", tmp_path / "out" / "y.png"
    write_picture(photo)
    assert counts(run(photo, output)) == (1, 0, 0, 0)
    assert counts(run(photo, output)) == (0, 1, 0, 0)
    assert counts(run(photo, output, settings="other")) == (1, 0, 0, 0)
    pixels = write_picture(photo, seed=1, size=(14, 9))
    assert counts(run(photo, output, settings="other")) == (1, 0, 0, 0)
    assert np.array_equal(pixels_of(output), 255 - pixels)
    output.write_bytes(b"edited by its owner")
    assert counts(run(photo, output)) == (0, 0, 1, 0)


def test_output_file_of_one_photo_is_not_replaced_by_another_photo(tmp_path: Path) -> None:
    for seed, name in enumerate(("x.png", "z.png")):
        write_picture(tmp_path / name, seed=seed)
    assert counts(run(tmp_path / "x.png", tmp_path / "y.png")) == (1, 0, 0, 0)
    outcome = run(tmp_path / "z.png", tmp_path / "y.png")
    assert counts(outcome) == (0, 0, 1, 0)
    assert "y.png was made from" in outcome.lines[0].reason
    assert counts(run(tmp_path / "x.png", tmp_path / "y.png")) == (0, 1, 0, 0)


def test_single_photo_is_translated_while_another_command_locks_the_folder(tmp_path: Path) -> None:
    for name in ("in/x.png", "one.png"):
        write_picture(tmp_path / name)
    plan = planned(tmp_path / "in", tmp_path / "out")
    child = os.fork()
    if child == 0:  # pragma: no cover
        os._exit(0 if counts(run(tmp_path / "one.png", tmp_path / "out" / "one.png")) == (1, 0, 0, 0) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    plan.journal.release()
    assert counts(run(tmp_path / "one.png", tmp_path / "out" / "one.png")) == (0, 1, 0, 0)


@pytest.mark.parametrize("output", ["x.jfif", "x.jpe", "x.JPG"])
def test_output_with_any_jpeg_extension_is_a_file(tmp_path: Path, output: str) -> None:
    write_picture(tmp_path / "x.png")
    assert counts(run(tmp_path / "x.png", tmp_path / output)) == (1, 0, 0, 0)
    with Image.open(tmp_path / output) as image:
        assert image.format == "JPEG"


def test_every_ending_of_jpeg_and_heic_is_read(tmp_path: Path) -> None:
    for name in ("a.jpe", "b.JFIF", "c.mpo", "d.HIF"):
        write_picture(tmp_path / "source.jpg")
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "source.jpg").rename(tmp_path / "in" / name)
    plan = planned(tmp_path / "in", tmp_path / "out")
    plan.journal.release()
    assert [job.targets[0].name for job in plan.jobs] == ["a.jpe", "b.JFIF", "c.jpg", "d.jpg"]
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (4, 0, 0, 0)
    assert tree(tmp_path / "out") == {"a.jpe", "b.JFIF", "c.jpg", "d.jpg"}


def test_ending_of_output_name_must_be_writable_and_match_option_format(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    with pytest.raises(CommandError, match=r"y\.gif: this format cannot be written, choose \.png"):
        planned(tmp_path / "x.png", tmp_path / "y.gif")
    with pytest.raises(CommandError, match=r"y\.png does not end like format=webp"):
        planned(tmp_path / "x.png", tmp_path / "y.png", format="webp")


def test_file_output_for_many_photos_is_rejected(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/in/x.png\n")
    for several in (tmp_path / "in", tmp_path / "list.txt", f"{tmp_path}/in/*.png"):
        with pytest.raises(CommandError, match=r"y\.png is a name for one picture, but input= is not one picture"):
            planned(several, tmp_path / "y.png")
