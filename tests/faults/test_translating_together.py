"""Tests of ranks or Ray actors that share a photo set while some of them are killed, and of a second command."""

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
from tests.faults.translate_server import Place, Translations, at_place, done_in, files, identities, temporary_files
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
def uninterrupted(photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Translations of `photos` by one process: name -> contents of the file."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    options = {"direction": "a2b", "device": "cpu", "precision": "fp32", "workers": 0, "sheet": False, "batch_size": 1}
    assert translate(model, photos, output, **options) == 0  # type: ignore[arg-type]
    return files(output)


def assert_resumes(place: Place, count: int, uninterrupted: dict[str, bytes]) -> None:
    """Assert that the same command, run by `count` ranks, translates exactly the remaining photos."""
    done = done_in(place.journal())
    before = {name: identity for name, identity in identities(place.output).items() if name in done}
    assert 0 < len(done) < len(uninterrupted)
    ranks = place.start_ranks(count) if count > 1 else [place.start()]
    assert [rank.wait() for rank in ranks] == [0] * count, [rank.printed() for rank in ranks]
    assert f"{len(uninterrupted) - len(done)} to translate" in ranks[0].printed()
    after = identities(place.output)
    assert {name: after[name] for name in before} == before
    assert files(place.output) == uninterrupted
    assert not temporary_files(place.output)
    assert len(place.report()) == len(uninterrupted)


def test_translations_of_two_ranks_equal_translations_of_one_process(
    place: Place, uninterrupted: dict[str, bytes]
) -> None:
    ranks = place.start_ranks(2, "sheet=true")
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.printed() for rank in ranks]
    translated = files(place.output)
    assert b"30 photos" in translated.pop("index.html")
    assert translated == uninterrupted
    assert Counter(line["name"] for line in place.journal()) == dict.fromkeys(
        uninterrupted, 2
    )  # each photo has one entry for its start and one for its end
    assert sorted(line["targets"][0] for line in place.report()) == sorted(uninterrupted)
    assert "30 ok, 0 failed" in ranks[0].printed()
    assert ranks[1].printed() == ""
    assert not temporary_files(place.output)


def test_two_ranks_report_failures_once_and_exit_6(place: Place) -> None:
    place.photos = place.folder / "in"
    for n in range(4):
        write_picture(place.photos / f"{n}.png", seed=n)
        (place.photos / f"{n} bad.png").write_bytes(b"x")
    ranks = place.start_ranks(2)
    assert [rank.wait() for rank in ranks] == [6, 6], [rank.printed() for rank in ranks]
    assert "4 ok, 4 failed" in ranks[0].printed()
    assert Counter(line["status"] for line in place.report()) == {"translated": 4, "failed": 4}


@pytest.mark.parametrize(("killed", "again"), [(0, 1), (1, 2), (1, 3)])
def test_translation_with_killed_rank_is_resumed_by_any_number_of_ranks(
    place: Place, uninterrupted: dict[str, bytes], killed: int, again: int
) -> None:
    ranks = place.start_ranks(2)
    until(lambda: place.done_count() >= 5, "five photos", alive=ranks[0])
    ranks[killed].send(signal.SIGKILL)
    other = ranks[1 - killed]
    assert other.wait() == 1, other.printed()
    assert "another process of this run has ended" in other.printed()
    assert "Traceback" not in other.printed()
    assert_resumes(place, again, uninterrupted)


def test_stopped_ranks_print_one_message_and_are_resumed(place: Place, uninterrupted: dict[str, bytes]) -> None:
    ranks = place.start_ranks(2)
    until(lambda: place.done_count() >= 5, "five photos", alive=ranks[0])
    for rank in ranks:
        rank.send(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [75, 75], [rank.printed() for rank in ranks]
    assert ranks[0].printed().splitlines()[-1].startswith("cyclestyle translate: stopped by SIGTERM: ")
    assert ranks[1].printed() == ""
    assert_resumes(place, 2, uninterrupted)


def test_translation_by_torchrun_ends_if_rank_is_killed_and_can_be_resumed(
    place: Place, uninterrupted: dict[str, bytes]
) -> None:
    line = [f"checkpoint={place.model}", f"input={place.photos}", f"output={place.output}", "direction=a2b",
            "device=cpu", "precision=fp32", "workers=0", "sheet=false", "batch_size=1"]  # fmt: skip
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "cyclestyle.translate"]
    job = Command([*torchrun, *line], folder=place.folder, run=place.output, output=place.folder / "job")
    try:
        until(lambda: place.done_count() >= 3, "three photos", alive=job)
        os.kill(job.rank(1), signal.SIGKILL)
        assert job.wait() == 1, job.printed()
        until(lambda: not job.processes(), "the exit of all processes", within=30)
    finally:
        job.end()
    assert_resumes(place, 1, uninterrupted)


def test_second_command_with_same_output_folder_is_rejected(place: Place, uninterrupted: dict[str, bytes]) -> None:
    first = place.start()
    until(lambda: place.done_count() >= 1, "a photo", alive=first)
    first.send(signal.SIGSTOP)
    owner = f"{place.output} is in use by pid {first.pid}"
    assert place.run(code=2) == f"cyclestyle translate: {owner}: wait for it, or choose another output=\n"
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.printed()
    assert files(place.output) == uninterrupted


# ------------------------------------------------------------------------------------------- Ray


def actors(folder: Path) -> list[int]:
    """Process ids of the Ray actors whose environment variable RAY_TMPDIR is `folder`."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_actor = b"ray::MapWorker" in (entry / "cmdline").read_bytes()
            if is_actor and f"RAY_TMPDIR={folder}".encode() in (entry / "environ").read_bytes():
                pids.append(int(entry.name))
    return pids


@pytest.mark.slow  # Ray takes twenty seconds to start
def test_translation_by_ray_survives_killed_actor_and_can_be_resumed(
    place: Place, photos: Path, uninterrupted: dict[str, bytes]
) -> None:
    pytest.importorskip("ray", reason="engine=ray needs Ray")
    place.photos = place.folder / "in"
    shutil.copytree(photos, place.photos)
    (place.photos / "bad.png").write_bytes(b"x")
    (place.photos / "odd.tif").write_bytes(encoded(Layout(16, samples=1, photometric=2)))
    with tempfile.TemporaryDirectory(prefix="ray") as name:  # short, as socket paths are limited
        environment = {"RAY_TMPDIR": name}
        process = place.start("engine=ray", environment=environment)
        until(lambda: place.done_count() >= 3, "three photos", alive=process)
        (actor,) = actors(Path(name))
        os.kill(actor, signal.SIGKILL)
        assert process.wait() == 6, process.printed()
        *_, summary, failure, odd = (
            process.printed().splitlines()
        )  # before these lines comes Ray's message about the actor
        assert summary.startswith("30 ok, 2 failed")
        assert odd.startswith(f"  {place.photos / 'odd.tif'}: ")
        assert failure == f"  {place.photos / 'bad.png'}: not a picture that can be read"
        assert files(place.output) == uninterrupted
        assert not temporary_files(place.output)

        (place.photos / "bad.png").unlink()
        (place.photos / "odd.tif").unlink()
        missing = ["sub 0/00.png", "sub 1/15.png"]
        before = {name: identity for name, identity in identities(place.output).items() if name not in missing}
        for name in missing:
            (place.output / name).unlink()
        process = place.start("engine=ray", environment=environment)
        assert process.wait() == 0, process.printed()
        _, *progress, summary = process.printed().splitlines()
        assert summary.startswith("30 ok (2 translated, 28 up to date), 0 failed")
        assert all(line.startswith("translating ") for line in progress)  # Ray itself prints no line
        assert before.items() <= identities(place.output).items()
        assert files(place.output) == uninterrupted


def test_error_for_missing_ray_names_pip_extra(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    write_picture(tmp_path / "in" / "x.png")
    with pytest.raises(CommandError, match=r"engine=ray needs Ray: pip install 'cyclestyle\[ray\]'"):
        translate(model, tmp_path / "in", tmp_path / "out", direction="a2b", device="cpu", engine="ray")
    assert files(tmp_path / "out") == {}
