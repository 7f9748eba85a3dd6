"""One set for several processes, of torchrun or of Ray, some of which are killed; and for commands that may not."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from cyclestyle.errors import CommandError
from cyclestyle.translate import translate
from tests.faults.commands import Command, until
from tests.faults.translate_server import Place, Translations, at_place, done_in, files, identities, temporaries
from tests.tiffs import Layout, encoded
from tests.translation.models import write_model, write_picture


@pytest.fixture(scope="module")
def server() -> Iterator[Translations]:
    server = Translations()
    yield server
    server.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def place(server: Translations, tmp_path: Path, model: Path, photos: Path) -> Iterator[Place]:
    for place in at_place(server, tmp_path, model):
        place.photos = photos
        yield place


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty photos of three sizes in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(30):
        write_picture(folder / f"sub {n % 2}" / f"{n:02}.png", size=(48 + n % 3, 40), seed=n)
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes of them."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    given = {"direction": "a2b", "device": "cpu", "precision": "fp32", "workers": 0, "sheet": False, "batch_size": 1}
    assert translate(model, photos, output, **given) == 0  # type: ignore[arg-type]
    return files(output)


def assert_goes_on(place: Place, count: int, undisturbed: dict[str, bytes]) -> None:
    """The same command, by `count` processes, makes what is missing and nothing else."""
    done = done_in(place.journal())
    before = {name: identity for name, identity in identities(place.output).items() if name in done}
    assert 0 < len(done) < len(undisturbed)
    ranks = place.together(count) if count > 1 else [place.start()]
    assert [rank.wait() for rank in ranks] == [0] * count, [rank.said() for rank in ranks]
    assert f"{len(undisturbed) - len(done)} to translate" in ranks[0].said()
    after = identities(place.output)
    assert {name: after[name] for name in before} == before
    assert files(place.output) == undisturbed
    assert not temporaries(place.output)
    assert len(place.report()) == len(undisturbed)


def test_two_processes_make_each_file_once_and_the_same_as_one_does(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    ranks = place.together(2, "sheet=true")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.said() for rank in ranks]
    made = files(place.output)
    assert b"30 photos" in made.pop("index.html")
    assert made == undisturbed
    assert Counter(line["name"] for line in place.journal()) == dict.fromkeys(undisturbed, 2)  # begun, and done
    assert sorted(line["targets"][0] for line in place.report()) == sorted(undisturbed)
    assert "30 ok, 0 failed" in ranks[0].said()
    assert ranks[1].said() == ""
    assert not temporaries(place.output)


def test_two_processes_report_failures_once_and_both_end_with_6(place: Place) -> None:
    place.photos = place.folder / "in"
    for n in range(4):
        write_picture(place.photos / f"{n}.png", seed=n)
        (place.photos / f"{n} bad.png").write_bytes(b"x")
    ranks = place.together(2)
    assert [rank.wait() for rank in ranks] == [6, 6], [rank.said() for rank in ranks]
    assert "4 ok, 4 failed" in ranks[0].said()
    assert Counter(line["status"] for line in place.report()) == {"translated": 4, "failed": 4}


@pytest.mark.parametrize(("killed", "again"), [(0, 1), (1, 2), (1, 3)])
def test_one_of_two_killed_any_number_of_processes_does_the_rest(
    place: Place, undisturbed: dict[str, bytes], killed: int, again: int
) -> None:
    ranks = place.together(2)
    until(lambda: place.noted() >= 5, "five photos", alive=ranks[0])
    ranks[killed].send(signal.SIGKILL)
    other = ranks[1 - killed]
    assert other.wait() == 1, other.said()
    assert "another process of this run has ended" in other.said()
    assert "Traceback" not in other.said()
    assert_goes_on(place, again, undisturbed)


def test_two_processes_that_are_asked_to_stop_say_so_once_and_two_do_the_rest(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    ranks = place.together(2)
    until(lambda: place.noted() >= 5, "five photos", alive=ranks[0])
    for rank in ranks:
        rank.send(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [75, 75], [rank.said() for rank in ranks]
    assert ranks[0].said().splitlines()[-1].startswith("cyclestyle translate: stopped by SIGTERM: ")
    assert ranks[1].said() == ""
    assert_goes_on(place, 2, undisturbed)


def test_torchrun_ends_with_one_of_its_processes_and_another_start_does_the_rest(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    line = [f"checkpoint={place.model}", f"input={place.photos}", f"output={place.output}", "direction=a2b",
            "device=cpu", "precision=fp32", "workers=0", "sheet=false", "batch_size=1"]  # fmt: skip
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "cyclestyle.translate"]
    job = Command([*torchrun, *line], folder=place.folder, run=place.output, output=place.folder / "job")
    try:
        until(lambda: place.noted() >= 3, "three photos", alive=job)
        os.kill(job.rank(1), signal.SIGKILL)
        assert job.wait() == 1, job.said()
        until(lambda: not job.processes(), "the end of all", within=30)
    finally:
        job.end()
    assert_goes_on(place, 1, undisturbed)


def test_a_second_command_on_an_output_is_refused_and_harms_nothing(
    place: Place, undisturbed: dict[str, bytes]
) -> None:
    first = place.start()
    until(lambda: place.noted() >= 1, "a photo", alive=first)
    first.send(signal.SIGSTOP)
    who = f"{place.output} is in use by pid {first.pid}"
    assert place.run(code=2) == f"cyclestyle translate: {who}: wait for it, or choose another output=\n"
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.said()
    assert files(place.output) == undisturbed


# ------------------------------------------------------------------------------------------- Ray


def actors(folder: Path) -> list[int]:
    """The processes in which Ray holds models, of those that have a folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_one = b"ray::MapWorker" in (entry / "cmdline").read_bytes()
            if is_one and f"RAY_TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow  # twenty seconds for each start of Ray
def test_ray_makes_what_one_process_does_though_an_actor_is_killed_and_then_only_what_is_missing(
    place: Place, photos: Path, undisturbed: dict[str, bytes]
) -> None:
    pytest.importorskip("ray", reason="engine=ray needs Ray")
    place.photos = place.folder / "in"
    shutil.copytree(photos, place.photos)
    (place.photos / "bad.png").write_bytes(b"x")
    (place.photos / "odd.tif").write_bytes(encoded(Layout(16, samples=1, photometric=2)))
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # short, for the names of sockets
        own = {"RAY_TMPDIR": name}
        process = place.start("engine=ray", environment=own)
        until(lambda: place.noted() >= 3, "three photos", alive=process)
        (actor,) = actors(Path(name))
        os.kill(actor, signal.SIGKILL)
        assert process.wait() == 6, process.said()
        *_, summary, failure, odd = process.said().splitlines()  # above it Ray tells of the actor
        assert summary.startswith("30 ok, 2 failed")
        assert odd.startswith(f"  {place.photos / 'odd.tif'}: ")
        assert failure == f"  {place.photos / 'bad.png'}: not a picture that can be read"
        assert files(place.output) == undisturbed
        assert not temporaries(place.output)

        (place.photos / "bad.png").unlink()
        (place.photos / "odd.tif").unlink()
        missing = ["sub 0/00.png", "sub 1/15.png"]
        before = {name: one for name, one in identities(place.output).items() if name not in missing}
        for name in missing:
            (place.output / name).unlink()
        process = place.start("engine=ray", environment=own)
        assert process.wait() == 0, process.said()
        _, *progress, summary = process.said().splitlines()
        assert summary.startswith("30 ok (2 translated, 28 up to date), 0 failed")
        assert all(line.startswith("translating ") for line in progress)  # and nothing of Ray's own
        assert before.items() <= identities(place.output).items()
        assert files(place.output) == undisturbed


def test_without_ray_it_says_what_to_install(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write_picture(tmp_path / "in" / "x.png")
    with pytest.raises(CommandError, match=r"engine=ray needs Ray: pip install 'cyclestyle\[ray\]'"):
        translate(model, tmp_path / "in", tmp_path / "out", direction="a2b", device="cpu", engine="ray")
    assert files(tmp_path / "out") == {}
