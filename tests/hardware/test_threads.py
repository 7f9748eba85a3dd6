"""Tests of the number of threads, and of the warning for a run that waits for the processor."""

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
SPIN = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"  # ends without a kill too
needs_proc = pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's counters")


@contextmanager
def spinning(processes: int, *, core: int) -> Iterator[None]:
    """Context manager: run other processes that keep a core busy."""
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
    """Compute for `seconds` of wall-clock time, to keep a core busy."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


# ------------------------------------------------------------------------------------------------- number of threads


@pytest.mark.parametrize(
    ("usual", "fixed", "cores", "quota", "ranks", "expected"),
    [
        (2, False, 2, None, 1, 2),
        (1, False, 1, None, 4, 1),  # each rank gets at least one thread
        (64, False, 64, 2.0, 1, 2),  # a container limited to 2 cores of 64
        (64, False, 64, 0.5, 1, 1),
        (64, False, 64, 2.5, 1, 2),
        (32, False, 64, None, 1, 32),  # two hardware threads on each core: PyTorch takes the cores
        (8, False, 8, None, 4, 2),
        (8, False, 8, 4.0, 2, 2),
        (1, True, 8, None, 4, 1),  # torchrun's own OMP_NUM_THREADS=1
        (16, True, 8, 2.0, 1, 16),  # the user's OMP_NUM_THREADS
    ],
)
def test_auto_threads_use_available_cores(
    usual: int, fixed: bool, cores: int, quota: float | None, ranks: int, expected: int
) -> None:
    assert threads.resolve(usual, fixed=fixed, cores=cores, quota=quota, ranks=ranks) == expected


@pytest.mark.parametrize(
    ("others", "expected"),
    [(0.1, ""), (0.4, ""), (1.0, "other processes use 1.0 of 2 cores: threads=1 is faster beside them"),
     (2.0, "other processes use 2.0 of 2 cores: threads=1 is faster beside them")],
)  # fmt: skip
def test_busy_machine_adds_a_note_and_keeps_the_thread_count(others: float, expected: str) -> None:
    assert threads.with_suggestion(2, others=others, cores=2, key="threads") == Choice(2, expected)


@needs_proc
def test_thread_count_of_new_run_is_the_same_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    quiet = threads.choose("auto", key="threads", since=None)
    start = threads.look()
    with spinning(3, core=min(os.sched_getaffinity(0))):
        busy = threads.choose("auto", key="threads", since=start)
    assert busy.threads == quiet.threads == threads.usable_threads()


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
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
def test_cpu_quota_of_a_container_is_read_from_cgroup_files(
    files: dict[str, str], membership: str, expected: float | None, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    (tmp_path / "membership").write_text(f"{membership}\n")
    assert threads.quota(tmp_path / "groups", str(tmp_path / "membership")) == expected


@pytest.mark.parametrize(
    ("requested", "saved", "available", "expected"),
    [
        ("auto", 2, 2, Choice(2)),
        ("auto", 1, 2, Choice(1)),  # more cores now, but equal rounding matters more
        (2, 2, 1, Choice(2)),  # an explicit number is used as it is
        ("auto", 4, 2, "resumes with 2 threads instead of 4: results differ in rounding from an uninterrupted run"),
        (1, 2, 2, "resumes with 1 thread instead of 2: results differ in rounding from an uninterrupted run"),
    ],
)
def test_resumed_run_keeps_thread_count_or_reports_change(
    requested: int, saved: int, available: int, expected: Choice | str
) -> None:
    choice = threads.resume(requested, saved=saved, available=available)
    assert (choice if isinstance(expected, Choice) else choice.note) == expected


@pytest.mark.parametrize("number", [0, -1])
def test_fewer_than_one_thread_is_rejected(number: int) -> None:
    with pytest.raises(CommandError, match=f"trainer.threads={number}: give a number of threads, 1 or more, or auto"):
        threads.check(number, key="trainer.threads")


# --------------------------------------------------------------------------------------------- spinning and warnings


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, str(threads.SPINS)),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "passive"}, None),
    ],
)
def test_openmp_spin_count_is_set_unless_user_set_it_or_a_wait_policy(
    variables: dict[str, str], expected: str | None
) -> None:
    threads.spin_briefly(variables)
    assert variables.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("command", ["train", "translate", "evaluate"])
def test_commands_set_spin_count_before_importing_torch(command: str) -> None:
    """PyTorch's OpenMP library reads GOMP_SPINCOUNT only once, when PyTorch is imported."""
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
        (Look(10, 20, 19.9, 0.5), 2, None),  # no other process runs
        (Look(10, 20, 10, 5), 2, "other processes use 1.0 of 2 cores, and this one waited for a core 50% of the time"),
        (Look(10, 20, 10, 1), 2, None),  # other processes run without delaying this one
        (Look(10, 20, 19.9, 5), 2, None),  # delayed by its own workers
        (Look(10, 10, 1, 0.1), 2, None),  # waits for data or a disk, not for a core
        (Look(10, 20, 10, 5), 1, None),  # one thread is the minimum, so there is no advice
    ],
)
def test_warning_appears_only_if_other_processes_delay_this_one(now: Look, using: int, expected: str | None) -> None:
    warning = threads.crowded(QUIET, now, threads=using, cores=2, key="trainer.threads")
    if expected is None:
        assert warning is None
    else:
        assert warning is not None
        assert warning.startswith(expected)
        assert "trainer.threads=1" in warning


def test_busy_time_counts_allowed_cores_only() -> None:
    lines = ["cpu 9 9 9 9 9 9 9", "cpu0 100 20 3 5000 600 7 8 40 0 0", "cpu1 1000 0 0 0 0 0 0 0 0 0", "intr 5"]
    assert threads.busy_s(lines, {0}) == pytest.approx((100 + 20 + 3 + 7 + 8) / os.sysconf("SC_CLK_TCK"))
    assert threads.busy_s([], {0}) == 0


@needs_proc
def test_time_used_by_other_process_on_same_core_is_counted() -> None:
    core = min(os.sched_getaffinity(0))
    with on_core(core), spinning(3, core=core):
        before = threads.look()
        work(1.5)
        now = threads.look()
        line = threads.crowded(before, now, threads=2, cores=1, key="trainer.threads")
    assert line is not None
    assert threads.used_by_others(before, now) > 0.4


@needs_proc
def test_processor_time_of_running_children_counts_as_own_time() -> None:
    """The processor time of a running data worker counts as time of this process."""
    import multiprocessing

    core = min(os.sched_getaffinity(0))
    with on_core(core):
        child = multiprocessing.get_context("spawn").Process(target=work, args=(20.0,), daemon=True)
        child.start()
        try:
            wait_for_use(child.pid, 0.1)
            before, child_before = threads.look(), threads._used(child.pid)
            wait_for_use(child.pid, 0.2)
            child_after, after = threads._used(child.pid), threads.look()
        finally:
            child.kill()
            child.join()
    assert child_after - child_before >= 0.2
    assert after.own_s - before.own_s > child_after - child_before


def wait_for_use(pid: int | None, seconds: float) -> None:
    """Keep the core busy until process `pid` has used `seconds` more processor time; fail after 20 s."""
    deadline, target = time.perf_counter() + 20, threads._used(pid) + seconds
    while threads._used(pid) < target and time.perf_counter() < deadline:
        pass


@needs_proc
def test_busy_cores_are_reported_only_once_after_the_check_interval() -> None:
    core = min(os.sched_getaffinity(0))
    warnings: list[str] = []
    early: list[str] = []
    with on_core(core), spinning(3, core=core):
        watch = threads.Watch(2, key="threads", every_s=0.5, warn=warnings.append)
        seldom = threads.Watch(2, key="threads", warn=early.append)
        for _ in range(2):
            work(1.0)
            watch()
            seldom()
    assert len(warnings) == 1
    assert "threads=1 is faster beside them" in warnings[0]
    assert not early


def test_busy_cores_are_checked_after_each_translated_batch() -> None:
    looks: list[int] = []
    pipeline = Watched(Inverted(), lambda: looks.append(1))
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    for _ in range(2):
        assert torch.equal(pipeline(pixels)[0], Inverted()(pixels)[0])
    assert len(looks) == 2
    assert pipeline.max_batch(4, 4) == Inverted().max_batch(4, 4)


@pytest.mark.parametrize("number", ["0", "-1", "many"])
@pytest.mark.parametrize(("entry", "key"), [(train, "trainer.threads"), (translate, "threads")])
def test_invalid_thread_count_exits_2_with_one_line(
    entry: ModuleType,
    key: str,
    number: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["experiment=smoke"] if entry is train else ["checkpoint=x", "input=x", "output=y"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cyclestyle", *arguments, f"{key}={number}"])
    with pytest.raises(SystemExit) as exit_info:
        entry.main()
    printed = capsys.readouterr()
    assert exit_info.value.code == 2
    assert len(printed.err.splitlines()) == 1
    assert f"{key}={number}: " in printed.err
    assert printed.out == ""
    assert not any(tmp_path.iterdir())
