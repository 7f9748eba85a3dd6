"""Where translations go, and what is done already: nothing of anybody's is ever overwritten by surprise."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.images import file_formats
from cyclestyle.photoset import plan as planning
from cyclestyle.photoset import runner
from cyclestyle.photoset.journal import FOLDER, Journal
from cyclestyle.photoset.runner import Settings
from cyclestyle.photoset.worker_tasks import Reading, Writing
from tests.translation.models import Inverted, noise, pixels_of, write_picture
from tests.translation.sets import counts, planned, run, tree


def names(*wanted: str, format: str = "keep") -> list[str]:  # noqa: A002
    return [str(name) for name, _ in planning.target_names([Path(one) for one in wanted], format)]


def test_names_stay_where_formats_do() -> None:
    assert names("a.jpg", "sub/a.jpg", "a.png", "a.JPEG") == ["a.jpg", "sub/a.jpg", "a.png", "a.JPEG"]


def test_a_format_changes_endings_and_who_has_the_name_keeps_it() -> None:
    assert names("a.jpg", "a.png", "b.tif", format="png") == ["a.jpg.png", "a.png", "b.png"]
    assert names("a.jpg", "a.tif", format="webp") == ["a.webp", "a.tif.webp"]
    assert names("a.gif", "a.png") == ["a.gif.png", "a.png"]


def test_heic_becomes_jpeg_beside_pictures_of_the_same_name() -> None:
    """A telephone that saves both gives IMG_1.HEIC and IMG_1.JPG."""
    assert names("a.HEIC", "b.heif", "c.hif") == ["a.jpg", "b.jpg", "c.jpg"]
    assert names("IMG_1.HEIC", "IMG_1.JPG") == ["IMG_1.HEIC.jpg", "IMG_1.JPG"]
    assert names("x.heic", "x.heif", "x.jpg", "x.jpeg") == ["x.heic.jpg", "x.heif.jpg", "x.jpg", "x.jpeg"]
    assert names("x.heic", "x.heif") == ["x.jpg", "x.heif.jpg"]
    assert names("x.heic", "x.heic.jpg", "x.jpg") == ["x-2.jpg", "x.heic.jpg", "x.jpg"]
    assert names("x.HEIC", "x.jpg", format="heic") == ["x.HEIC", "x.jpg.heic"]


def test_names_that_some_file_system_takes_for_one_become_two() -> None:
    assert names("A.png", "a.png", "a.PNG") == ["A.png", "a-2.png", "a-3.PNG"]
    assert names("o\u0308.png", "\u00f6.png") == ["o\u0308.png", "\u00f6-2.png"]
    assert names("a.png", "A.png", "a-2.png") == ["a.png", "A-3.png", "a-2.png"]  # whose own name it is keeps it


def test_no_file_gets_the_name_of_a_folder() -> None:
    assert names("x.gif", "x.png/y.jpg", "X.PNG/z.jpg") == ["x.gif.png", "x.png/y.jpg", "X.PNG/z.jpg"]


def test_no_two_names_are_ever_alike() -> None:
    stems = ["a", "A", "a.jpg", "a-2", "A-2", "a.JPG"]
    wanted = [f"{stem}{ending}" for stem in stems for ending in (".png", ".jpg", ".jpg.png", ".gif", ".tif", ".heic")]
    for format in ("keep", "png", "jpeg", "webp", "heic"):  # noqa: A001
        made = names(*wanted, format=format)
        assert len({name.casefold() for name in made}) == len(wanted)


def test_a_clash_loses_nothing_and_is_told(tmp_path: Path) -> None:
    first, second = (write_picture(tmp_path / "in" / name, seed=seed) for seed, name in enumerate(["a.bmp", "a.png"]))
    outcome = run(tmp_path / "in", tmp_path / "out", format="png")
    assert tree(tmp_path / "out") == {"a.bmp.png", "a.png"}
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.bmp.png"), 255 - first)
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.png"), 255 - second)
    assert outcome.lines[0].notes == ("named a.bmp.png: another has its name",)


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


def test_heic_is_written_as_jpeg_and_that_is_in_the_report(tmp_path: Path) -> None:
    write_heic(tmp_path / "in" / "x.HEIC")
    write_heic(tmp_path / "in" / "y.heic")
    write_picture(tmp_path / "in" / "y.jpg")
    outcome = run(tmp_path / "in", tmp_path / "out")
    assert tree(tmp_path / "out") == {"x.jpg", "y.heic.jpg", "y.jpg"}
    assert opened(tmp_path / "out" / "x.jpg") == ("JPEG", (40, 30))
    assert [line.notes for line in outcome.lines] == [
        (HEIC,),
        (HEIC, "named y.heic.jpg: another has its name"),
        (),
    ]
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 3, 0, 0)


def test_heic_is_kept_where_that_was_asked_for(tmp_path: Path) -> None:
    write_heic(tmp_path / "in" / "x.HEIC")
    outcome = run(tmp_path / "in", tmp_path / "out", format="heic")
    assert opened(tmp_path / "out" / "x.HEIC") == ("HEIF", (40, 30))
    assert outcome.lines[0].notes == ()
    assert counts(run(tmp_path / "in" / "x.HEIC", tmp_path / "one.heic")) == (1, 0, 0, 0)
    assert opened(tmp_path / "one.heic") == ("HEIF", (40, 30))
    with pytest.raises(CommandError, match=r"one\.heic is not what format=jpeg says"):
        run(tmp_path / "in" / "x.HEIC", tmp_path / "one.heic", format="jpeg")


def test_heic_translations_of_before_stay_and_are_continued_by_asking_for_heic(tmp_path: Path) -> None:
    write_heic(tmp_path / "in" / "x.heic")
    run(tmp_path / "in", tmp_path / "out", format="heic")  # what earlier versions did by themselves
    before = (tmp_path / "out" / "x.heic").read_bytes()
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)
    assert tree(tmp_path / "out") == {"x.heic", "x.jpg"}
    assert (tmp_path / "out" / "x.heic").read_bytes() == before
    assert counts(run(tmp_path / "in", tmp_path / "out", format="heic")) == (0, 1, 0, 0)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 0)


def test_heic_without_its_library_is_refused_before_anything_is_read(
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
def test_inputs_are_never_overwritten(tmp_path: Path, case: str, existing: planning.Existing) -> None:
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


def test_an_output_above_the_input_may_not_hit_it(tmp_path: Path) -> None:
    # photos/a/a/x.png goes to photos/a/x.png, which is an input too.
    write_picture(tmp_path / "a" / "x.png")
    write_picture(tmp_path / "a" / "a" / "x.png")
    with pytest.raises(CommandError, match="never overwritten"):
        planned(tmp_path / "a", tmp_path)


def test_an_output_inside_the_input_is_not_read_again(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    for expected in ((1, 0, 0, 0), (0, 1, 0, 0)):
        assert counts(run(tmp_path, tmp_path / "out")) == expected
    assert counts(run(tmp_path, tmp_path / "other")) == (1, 0, 0, 0)
    assert tree(tmp_path) == {"x.png", "out/x.png", "other/x.png"}


def test_the_same_command_does_only_what_is_missing(tmp_path: Path) -> None:
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


def test_other_settings_make_all_anew_and_the_first_ones_again(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    for settings, expected in [("a", (1, 0, 0, 0)), ("a", (0, 1, 0, 0)), ("b", (1, 0, 0, 0)), ("a", (1, 0, 0, 0))]:
        assert counts(run(tmp_path / "in", tmp_path / "out", settings=settings)) == expected


def test_a_sweep_beside_a_single_strength_leaves_it_alone(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    assert counts(run(tmp_path / "in", tmp_path / "out", count=3)) == (1, 0, 0, 0)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 0)
    assert counts(run(tmp_path / "in", tmp_path / "out", count=3)) == (0, 1, 0, 0)
    assert tree(tmp_path / "out") == {"x.png", "0/x.png", "1/x.png", "2/x.png"}


@pytest.mark.parametrize("whose", ["a stranger's", "retouched", "of another picture"])
def test_what_is_not_ours_is_kept_unless_asked(tmp_path: Path, whose: str) -> None:
    pixels = write_picture(tmp_path / "in" / "x.png")
    if whose == "a stranger's":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "x.png").write_bytes(b"mine")
    elif whose == "retouched":
        run(tmp_path / "in", tmp_path / "out")
        (tmp_path / "out" / "x.png").write_bytes(b"mine")
    else:
        write_picture(tmp_path / "elsewhere" / "x.png", seed=9)
        run(tmp_path / "elsewhere", tmp_path / "out")
    before = (tmp_path / "out" / "x.png").read_bytes()

    outcome = run(tmp_path / "in", tmp_path / "out", settings="others")
    assert counts(outcome) == (0, 0, 1, 0)
    assert "existing=overwrite replaces it" in outcome.lines[0].reason
    assert ("was made from" in outcome.lines[0].reason) == (whose == "of another picture")
    assert (tmp_path / "out" / "x.png").read_bytes() == before

    assert counts(run(tmp_path / "in", tmp_path / "out", existing="overwrite")) == (1, 0, 0, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), 255 - pixels)


def test_a_failure_forgets_nothing_of_what_was_made_and_owns_nothing_that_was_not(tmp_path: Path) -> None:
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
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)  # ours still, for nobody has changed it


def test_other_sweeps_of_the_same_strengths_are_ours_too(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    jobs = {order: planning.jobs(str(tmp_path / "in"), tmp_path / "out", folders=order) for order in ("ab", "ba", "bc")}
    for order in ("ab", "ba", "bc", "ab"):
        how = Settings(Reading(), Writing(tmp_path / "out"), order)
        plan = planning.plan(jobs[order], existing="skip", settings=order, world=World())
        assert counts(runner.run_plan(plan, Inverted(2), how)) == (1, 0, 0, 0)
        plan.journal.release()


def test_a_folder_that_was_renamed_is_the_same_set(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in").rename(tmp_path / "photos")
    assert counts(run(tmp_path / "photos", tmp_path / "out")) == (0, 1, 0, 0)
    assert counts(run(tmp_path / "photos", tmp_path / "out", settings="others")) == (1, 0, 0, 0)


def test_a_picture_that_comes_to_own_a_name_gets_it(tmp_path: Path) -> None:
    first = write_picture(tmp_path / "in" / "a.bmp", seed=1)
    run(tmp_path / "in", tmp_path / "out", format="png")
    assert tree(tmp_path / "out") == {"a.png"}
    second = write_picture(tmp_path / "in" / "a.png", seed=2)
    assert counts(run(tmp_path / "in", tmp_path / "out", format="png")) == (2, 0, 0, 0)
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.bmp.png"), 255 - first)
    assert np.array_equal(pixels_of(tmp_path / "out" / "a.png"), 255 - second)


def test_a_journal_among_originals_does_not_hide_them(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.bmp"):
        write_picture(tmp_path / "photos" / name)
    run(f"{tmp_path}/photos/*.jpg", tmp_path / "photos", format="png")
    assert tree(tmp_path) == {f"photos/{name}" for name in ("a.jpg", "b.jpg", "c.bmp", "a.png", "b.png")}
    jobs = planning.jobs(str(tmp_path), tmp_path / "out")
    assert [str(job.source.name) for job in jobs.jobs] == ["photos/a.jpg", "photos/b.jpg", "photos/c.bmp"]
    assert jobs.skipped_own_outputs == 2


@pytest.mark.parametrize("case", ["a folder in the way", "a file for a folder", "a name too long"])
def test_a_name_that_cannot_be_written_fails_alone(tmp_path: Path, case: str) -> None:
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


def test_error_refuses_to_begin_where_anything_is_in_the_way(tmp_path: Path) -> None:
    for n in range(3):
        write_picture(tmp_path / "in" / f"{n}.png", seed=n)
    run(tmp_path / "in", tmp_path / "out")
    assert counts(run(tmp_path / "in", tmp_path / "out", existing="error")) == (0, 3, 0, 0)
    with pytest.raises(CommandError, match=r"out/0\.png and 2 more are there already: existing=skip or overwrite"):
        run(tmp_path / "in", tmp_path / "out", existing="error", settings="others")


def test_what_was_being_written_when_a_command_was_killed_is_done_again(tmp_path: Path) -> None:
    pixels = write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    journal = tmp_path / "out" / FOLDER / "journal.jsonl"
    begun, done = journal.read_bytes().splitlines(keepends=True)
    (tmp_path / "out" / "x.png").write_bytes(b"half, if writing were not atomic")
    for left in (begun, begun + done[: len(done) // 2]):
        journal.write_bytes(left)
        assert counts(run(tmp_path / "in", tmp_path / "out")) == (1, 0, 0, 0)
        assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), 255 - pixels)
        assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 1, 0, 0)


@pytest.mark.parametrize(
    "nonsense",
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
def test_a_journal_of_nonsense_is_no_reason_to_fail_or_to_overwrite(tmp_path: Path, nonsense: bytes) -> None:
    write_picture(tmp_path / "in" / "x.png")
    run(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out" / FOLDER / "journal.jsonl").write_bytes(nonsense)
    assert counts(run(tmp_path / "in", tmp_path / "out")) == (0, 0, 1, 0)


def test_the_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    for _ in range(20):
        run(tmp_path / "in", tmp_path / "out", existing="overwrite")
    lines = (tmp_path / "out" / FOLDER / "journal.jsonl").read_bytes().splitlines()
    assert len(lines) <= 8


def test_two_commands_do_not_share_an_output(tmp_path: Path) -> None:
    """The lock is a process's own, so the other command is a process."""
    write_picture(tmp_path / "in" / "x.png")
    holder = planned(tmp_path / "in", tmp_path / "out").journal
    assert holder is not None
    child = os.fork()
    if child == 0:  # pragma: no cover
        try:
            planned(tmp_path / "in", tmp_path / "out")
        except CommandError as error:
            os._exit(0 if f"is in use by pid {os.getppid()}: wait for it" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    holder.release()


def test_an_entry_comes_back_as_it_was_written(tmp_path: Path) -> None:
    odd = os.fsdecode(b"latin \xff\n.png")
    write_picture(tmp_path / "in" / odd)
    run(tmp_path / "in", tmp_path / "out")
    journal = Journal(tmp_path / "out")
    journal.read()
    (entry,) = [journal.entries[odd]]
    status = (tmp_path / "out" / odd).stat()
    assert entry.targets == {odd: (status.st_size, status.st_mtime_ns)}
    assert (entry.size, entry.source) == ((12, 9), str(tmp_path / "in" / odd))


def test_a_file_cannot_be_the_output_of_a_folder(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    write_picture(tmp_path / "out.png")
    with pytest.raises(CommandError, match=r"out\.png is a name for one picture, but input= is not one"):
        planned(tmp_path / "in", tmp_path / "out.png")


@pytest.mark.parametrize(
    ("output", "expected"),
    [("out", "out/x.png"), ("new/name.png", "new/name.png"), ("name.jpg", "name.jpg"), ("is.png", "is.png/x.png")],
)
def test_one_picture_goes_into_a_folder_or_under_a_name(tmp_path: Path, output: str, expected: str) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "is.png").mkdir()
    assert counts(run(tmp_path / "in" / "x.png", tmp_path / output)) == (1, 0, 0, 0)
    assert (tmp_path / expected).is_file()
    beside = {path.name for path in (tmp_path / expected).parent.iterdir()}
    assert (FOLDER in beside) == (not output.endswith(expected))  # a name of its own gets no company


def test_one_picture_under_a_name_that_is_taken(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(b"mine")
    assert counts(run(tmp_path / "x.png", tmp_path / "y.png")) == (0, 0, 1, 0)
    with pytest.raises(CommandError, match=r"y\.png is there already"):
        run(tmp_path / "x.png", tmp_path / "y.png", existing="error")
    assert counts(run(tmp_path / "x.png", tmp_path / "y.png", existing="overwrite")) == (1, 0, 0, 0)


def test_a_name_whose_format_cannot_be_written_is_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "x.png")
    with pytest.raises(CommandError, match=r"y\.gif: this format cannot be written, choose \.png"):
        planned(tmp_path / "x.png", tmp_path / "y.gif")
    with pytest.raises(CommandError, match=r"y\.png is not what format=webp says"):
        planned(tmp_path / "x.png", tmp_path / "y.png", format="webp")


def test_a_name_for_one_picture_is_none_for_many(tmp_path: Path) -> None:
    write_picture(tmp_path / "in" / "x.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/in/x.png\n")
    for several in (tmp_path / "in", tmp_path / "list.txt", f"{tmp_path}/in/*.png"):
        with pytest.raises(CommandError, match=r"y\.png is a name for one picture, but input= is not one"):
            planned(several, tmp_path / "y.png")
