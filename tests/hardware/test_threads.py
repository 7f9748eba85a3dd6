"""The number of threads, where it comes from, and the line for a run that waits for the processor."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cyclestyle import train, translate
from cyclestyle.errors import CommandError
from cyclestyle.hardware import threads
from cyclestyle.hardware.threads import Choice, Look
from cyclestyle.translate import Watched
from tests.translation.sets import Inverted

REPOSITORY = Path(__file__).parents[2]
SPIN = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"  # ends by itself in any case
needs_proc = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="counts of Linux")


@contextmanager
def spinning(processes: int, *, core: int) -> Iterator[None]:
    """Other processes that keep a core busy."""
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nprint(flush=True)\n{SPIN}"
    children = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(processes)]
    try:
        for child in children:
            assert child.stdout is not None
            child.stdout.readline()
        yield
    finally:
        for child in children:
            child.kill()
            child.communicate()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def work(seconds: float) -> None:
    """Need a core for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


# ------------------------------------------------------------------------------------------------------- the number


@pytest.mark.parametrize(
    ("usual", "given", "cores", "quota", "ranks", "expected"),
    [
        (2, False, 2, None, 1, 2),
        (1, False, 1, None, 4, 1),  # never none
        (64, False, 64, 2.0, 1, 2),  # a container limited to 2 cores of 64
        (64, False, 64, 0.5, 1, 1),
        (64, False, 64, 2.5, 1, 2),
        (32, False, 64, None, 1, 32),  # two hardware threads on each core: PyTorch takes the cores
        (8, False, 8, None, 4, 2),
        (8, False, 8, 4.0, 2, 2),
        (1, True, 8, None, 4, 1),  # torchrun's own OMP_NUM_THREADS=1
        (16, True, 8, 2.0, 1, 16),  # the user's wish
    ],
)
def test_auto_takes_the_cores_that_are_there(
    usual: int, given: bool, cores: int, quota: float | None, ranks: int, expected: int
) -> None:
    assert threads.resolve(usual, given=given, cores=cores, quota=quota, ranks=ranks) == expected


@pytest.mark.parametrize(
    ("others", "expected"),
    [(0.1, ""), (0.4, ""), (1.0, "other processes use 1.0 of 2 cores: threads=1 is faster beside them"),
     (2.0, "other processes use 2.0 of 2 cores: threads=1 is faster beside them")],
)  # fmt: skip
def test_a_busy_machine_changes_the_note_and_not_the_number(
    others: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cores_allowed", lambda: {0, 1})
    monkeypatch.setattr(threads, "quota", lambda: None)
    monkeypatch.setattr(threads, "usual_threads", lambda: 2)
    start = Look(at_s=time.perf_counter() - 10, busy_s=0, own_s=0, waited_s=0)
    now = Look(at_s=start.at_s + 10, busy_s=10 * others + 5, own_s=5, waited_s=0)
    monkeypatch.setattr(threads, "look", lambda: now)
    assert threads.choose("auto", key="threads", since=start) == Choice(2, expected)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "200000 100000"}, "0::/", 2.0),
        ({"cpu.max": "max 100000"}, "0::/", None),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, "0::/a/b", 1.5),
        ({"a/b/cpu.max": "100000 100000", "a/cpu.max": "400000 100000"}, "0::/a/b", 1.0),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", None),
        ({"cpu.max": "nonsense"}, "0::/", None),
        ({}, "", None),
    ],
)
def test_the_quota_of_a_container_is_read(
    files: dict[str, str], own: str, expected: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    assert threads.quota(tmp_path / "groups", str(tmp_path / "own")) == expected


@pytest.mark.parametrize(
    ("wanted", "saved", "most", "expected"),
    [
        ("auto", 2, 2, Choice(2)),
        ("auto", 1, 2, Choice(1)),  # more cores now: the numbers count
        (2, 2, 1, Choice(2)),  # asked for
        ("auto", 4, 2, "resumes with 2 threads instead of 4: results differ in rounding from an uninterrupted run"),
        (1, 2, 2, "resumes with 1 thread instead of 2: results differ in rounding from an uninterrupted run"),
    ],
)
def test_a_resumed_run_keeps_its_threads_or_reports_it(
    wanted: int, saved: int, most: int, expected: Choice | str
) -> None:
    found = threads.resume(wanted, saved=saved, most=most)
    assert (found if isinstance(expected, Choice) else found.note) == expected


@pytest.mark.parametrize("wanted", [0, -1])
def test_a_number_below_one_is_refused(wanted: int) -> None:
    with pytest.raises(CommandError, match=f"trainer.threads={wanted}: give a number of threads, 1 or more, or auto"):
        threads.check(wanted, key="trainer.threads")


# -------------------------------------------------------------------------------------------------------- the waiting


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, str(threads.SPINS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, None),
    ],
)
def test_threads_spin_briefly_unless_the_user_set_it(variables: dict[str, str], expected: str | None) -> None:
    threads.spin_briefly(variables)
    assert variables.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("command", ["train", "translate", "evaluate"])
def test_the_entries_set_it_before_pytorch_is_imported(command: str) -> None:
    """PyTorch's OpenMP reads it then and never again."""
    arguments = {
        "train": ["experiment=smoke", "data.root=/nowhere", "data.photos=0"],
        "translate": ["checkpoint=/nowhere", "input=/nowhere", "output=/nowhere/out"],
        "evaluate": ["checkpoint=/nowhere", "input=/nowhere", "truth=/nowhere"],
    }[command]
    code = f"""
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("spins", os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Finder())
sys.argv = {[command, *arguments]!r}
from cyclestyle import {command}
{command}.main()
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == f"spins {threads.SPINS}", done.stderr


QUIET = Look(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("now", "using", "expected"),
    [
        (Look(10, 20, 19.9, 0.5), 2, None),  # alone
        (Look(10, 20, 10, 5), 2, "other processes use 1.0 of 2 cores, and this one waited for a core 50% of the time"),
        (Look(10, 20, 10, 1), 2, None),  # others are there and in nobody's way
        (Look(10, 20, 19.9, 5), 2, None),  # its own workers are in its way
        (Look(10, 10, 1, 0.1), 2, None),  # waits for data or a disk: it wants no core
        (Look(10, 20, 10, 5), 1, None),  # there is nothing to set
    ],
)
def test_a_line_is_due_where_others_keep_threads_from_running(now: Look, using: int, expected: str | None) -> None:
    found = threads.crowded(QUIET, now, threads=using, cores=2, key="trainer.threads")
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(expected)
        assert "trainer.threads=1" in found


def test_busy_time_is_of_the_cores_that_may_be_used() -> None:
    lines = ["cpu 9 9 9 9 9 9 9", "cpu0 100 20 3 5000 600 7 8 40 0 0", "cpu1 1000 0 0 0 0 0 0 0 0 0", "intr 5"]
    assert threads.busy_s(lines, {0}) == pytest.approx((100 + 20 + 3 + 7 + 8) / os.sysconf("SC_CLK_TCK"))
    assert threads.busy_s([], {0}) == 0


@needs_proc
def test_the_counters_see_a_process_that_shares_the_core() -> None:
    core = min(os.sched_getaffinity(0))
    with on_core(core), spinning(3, core=core):
        before = threads.look()
        work(1.5)
        now = threads.look()
        line = threads.crowded(before, now, threads=2, cores=1, key="trainer.threads")
    assert line is not None
    assert threads.used_by_others(before, now) > 0.4


@needs_proc
def test_the_counters_take_own_children_for_this_process() -> None:
    """A data worker's time is no other's: it is subtracted although nobody has waited for it yet."""
    import multiprocessing

    core = min(os.sched_getaffinity(0))
    with on_core(core):
        child = multiprocessing.get_context("spawn").Process(target=work, args=(20.0,), daemon=True)
        child.start()
        try:
            until = time.perf_counter() + 20
            first = threads._used(child.pid)
            while threads._used(child.pid) < first + 0.1 and time.perf_counter() < until:
                pass
            before, of_child = threads.look(), threads._used(child.pid)
            work(1.0)
            now, later = threads.look(), threads._used(child.pid)
        finally:
            child.kill()
            child.join()
    own = now.own_s - before.own_s
    assert later - of_child > 0.1
    assert own > later - of_child


@needs_proc
def test_a_watch_looks_rarely_and_speaks_once() -> None:
    core = min(os.sched_getaffinity(0))
    said: list[str] = []
    rarely: list[str] = []
    with on_core(core), spinning(3, core=core):
        watch = threads.Watch(2, key="threads", every_s=0.5, tell=said.append)
        seldom = threads.Watch(2, key="threads", tell=rarely.append)
        for _ in range(2):
            work(1.0)
            watch()
            seldom()
    assert len(said) == 1
    assert "threads=1 is faster beside them" in said[0]
    assert not rarely


def test_a_translation_is_looked_at_after_each_batch() -> None:
    looks: list[int] = []
    treat = Watched(Inverted(), lambda: looks.append(1))
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for _ in range(2):
        assert torch.equal(treat(pixels)[0], Inverted()(pixels)[0])
    assert len(looks) == 2
    assert treat.max_batch(4, 4) == Inverted().max_batch(4, 4)


@pytest.mark.parametrize("wanted", ["0", "-1", "many"])
@pytest.mark.parametrize(("entry", "key"), [(train, "trainer.threads"), (translate, "threads")])
def test_an_impossible_number_ends_with_2_and_one_line(
    entry: ModuleType,
    key: str,
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["experiment=smoke"] if entry is train else ["checkpoint=x", "input=x", "output=y"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cyclestyle", *arguments, f"{key}={wanted}"])
    with pytest.raises(SystemExit) as leaving:
        entry.main()
    said = capsys.readouterr()
    assert leaving.value.code == 2
    assert len(said.err.splitlines()) == 1
    assert f"{key}={wanted}: " in said.err
    assert said.out == ""
    assert not any(tmp_path.iterdir())
