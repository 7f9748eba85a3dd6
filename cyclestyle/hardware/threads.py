"""Number of compute threads, their busy-waiting, and detection of other processes on the same cores.

Threads that share an operation synchronise at its end. If other processes occupy the cores, one thread waits for
another that is not running: two threads are then many times slower than one.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from cyclestyle.errors import CommandError, warn

SPINS = 10_000  # spins of a waiting thread before it sleeps; on an idle machine as fast as libgomp's default 300,000
LOOK_EVERY_S = 10.0  # seconds between two checks for other processes
LEAST_S = 0.2  # shortest interval between two compared samples, in seconds: counters have steps of 0.01 s
WAITED = 0.25  # smallest share of time spent waiting for a core that causes a warning


class Look(NamedTuple):
    """Sample of the system's counters of processor time, in seconds."""

    at_s: float  # time of the sample, from time.perf_counter
    busy_s: float  # processor time of all processes on the cores that this process may use; 0 if not counted
    own_s: float  # processor time of this process and its children
    waited_s: float  # time in which the main thread was ready to run but had no core; 0 if not counted


class Choice(NamedTuple):
    """Number of threads, and a note for the user."""

    threads: int
    note: str = ""  # empty if there is nothing to report

    def __str__(self) -> str:
        return _threads(self.threads)


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let waiting OpenMP threads sleep sooner, by setting GOMP_SPINCOUNT; call this before PyTorch is imported.

    Does nothing if the user has set GOMP_SPINCOUNT or OMP_WAIT_POLICY.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def check(threads: int | Literal["auto"], *, key: str) -> None:
    """Raise a CommandError, which names config key `key`, if `threads` is below 1."""
    if threads != "auto" and threads < 1:
        raise CommandError(f"{key}={threads}: give a number of threads, 1 or more, or auto")


def choose(threads: int | Literal["auto"], *, key: str, since: Look | None) -> Choice:
    """Choose the number of threads for a new training run or translation.

    If `threads` is `auto` and other processes use the cores, a note suggests fewer threads. There is no note if
    environment variables set the number, or if torchrun started several processes on this machine.

    The number does not depend on other processes. If it did, two runs of one command could differ in rounding, and a
    run started beside a short-lived process would keep too few threads after the end of that process.

    Args:
        threads: requested number; `auto` takes `usable_threads()`.
        key: config key that sets the number of threads; the note names this key.
        since: sample taken at the start of the command; the note covers the time from then on. None, as on a GPU, gives
            no note.
    """
    if threads != "auto":
        return Choice(threads)
    count = usable_threads()
    if since is None or _set_by_environment() or _ranks() > 1:  # ranks would mistake one another for other processes
        return Choice(count)
    return with_suggestion(count, others=used_by_others(since, look_later(since)), cores=len(cores_allowed()), key=key)


def with_suggestion(count: int, *, others: float, cores: int, key: str) -> Choice:
    """Return a `Choice` of `count` threads; if fewer than `count` cores are free, its note suggests fewer threads.

    Args:
        others: number of cores that other processes use.
        cores: number of cores that this process may use.
        key: config key that sets the number of threads.
    """
    better = left_by_others(others, cores)
    if better >= count:
        return Choice(count)
    return Choice(count, f"other processes use {others:.1f} of {cores} cores: {key}={better} is faster beside them")


def usable_threads() -> int:
    """Number of threads that `threads=auto` gives this process."""
    fixed = _set_by_environment()
    return resolve(usual_threads(), fixed=fixed, cores=len(cores_allowed()), quota=quota(), ranks=_ranks())


def left_by_others(others: float, cores: int) -> int:
    """Number of free cores while other processes use `others` of the `cores` cores; at least 1."""
    return max(1, round(cores - others))


def resolve(usual: int, *, fixed: bool, cores: int, quota: float | None, ranks: int) -> int:
    """Number of threads that `threads=auto` gives, computed from the settings and limits of the process.

    Args:
        usual: PyTorch's default number of threads.
        fixed: whether the user or torchrun set this default by environment variables.
        cores: number of cores that this process may use.
        quota: the container's limit of processor time, in cores; None without a limit.
        ranks: number of processes that this command runs on this machine under torchrun; 1 without torchrun.
    """
    if fixed:
        return usual
    return max(1, min(usual, within(cores, quota) // ranks))


def within(cores: int, quota: float | None) -> int:
    """Number of cores that this process may use at once; at least 1.

    Args:
        cores: number of cores on which this process may run.
        quota: limit on the processor time of this process, in cores; None without a limit.
    """
    return cores if quota is None else max(1, min(cores, int(quota)))


def threads_of_each(processes: int) -> int:
    """Number of threads for each of `processes` processes that share the cores of this process; at least 1."""
    return max(1, within(len(cores_allowed()), quota()) // processes)


def resume(threads: int | Literal["auto"], *, saved: int, available: int) -> Choice:
    """Number of threads for a resumed training run, with a note if it differs from `saved`.

    Args:
        threads: requested number; `auto` takes the smaller one of `saved` and `available`.
        saved: number in the checkpoint.
        available: number that `auto` would give a new run.
    """
    count = min(saved, available) if threads == "auto" else threads
    if count == saved:
        return Choice(count)
    return Choice(
        count,
        f"resumes with {_threads(count)} instead of {saved}: results differ in rounding from an uninterrupted run",
    )


def use(threads: int) -> None:
    """Set PyTorch's number of threads."""
    import torch

    usual_threads()  # caches the default before it changes
    if torch.get_num_threads() != threads:  # an equal number leaves PyTorch's settings untouched
        torch.set_num_threads(threads)


@cache
def usual_threads() -> int:
    """PyTorch's default number of threads: from environment variables, else one per core that this process may use."""
    import torch

    return torch.get_num_threads()


class Watch:
    """Checks at intervals whether other processes occupy the cores, and warns once.

    Args:
        threads: number of compute threads.
        key: config key that sets this number.
        every_s: shortest interval between two checks, in seconds.
        warn: function that receives the text of the warning.
    """

    def __init__(
        self, threads: int, *, key: str, every_s: float = LOOK_EVERY_S, warn: Callable[[str], None] = warn
    ) -> None:
        self.threads, self.key, self._every_s, self._warn = threads, key, every_s, warn
        self._before = look()
        self._done = threads == 1  # the only advice is fewer threads

    def __call__(self) -> None:
        """Check whether other processes occupy the cores, if the interval since the last check has passed."""
        if self._done or time.perf_counter() - self._before.at_s < self._every_s:
            return
        now = look()
        line = crowded(self._before, now, threads=self.threads, cores=len(cores_allowed()), key=self.key)
        self._before = now
        if line is not None:
            self._done = True
            self._warn(line)


def crowded(before: Look, now: Look, *, threads: int, cores: int, key: str) -> str | None:
    """Return a warning if other processes kept this process's threads from running between two samples.

    Return None if they did not, or if this process would not run faster with fewer threads.

    Args:
        before, now: the two samples.
        threads: number of compute threads of this process.
        cores: number of cores that this process may use.
        key: config key that sets the number of threads.
    """
    waited = (now.waited_s - before.waited_s) / (now.at_s - before.at_s)
    others = used_by_others(before, now)
    better = left_by_others(others, cores)
    if waited < WAITED or better >= threads:
        return None
    return (
        f"other processes use {others:.1f} of {cores} cores, and this one waited for a core {waited:.0%} of the time: "
        f"{key}={better} is faster beside them"
    )


def look() -> Look:
    """Sample the system's counters of processor time."""
    times = os.times()
    own_s = times.user + times.system + times.children_user + times.children_system
    # Data workers exist only if multiprocessing has been imported; importing it here would take time.
    if (multiprocessing := sys.modules.get("multiprocessing")) is not None:
        own_s += sum(_used(child.pid) for child in multiprocessing.active_children())
    return Look(time.perf_counter(), busy_s(_lines("/proc/stat"), cores_allowed()), own_s, _waited())


def look_later(before: Look) -> Look:
    """Wait until `LEAST_S` seconds have passed since the sample `before`, then return a new sample."""
    time.sleep(max(0.0, before.at_s + LEAST_S - time.perf_counter()))
    return look()


def used_by_others(before: Look, now: Look) -> float:
    """Mean number of cores that other processes used between two samples; 0 if the system does not report it."""
    busy = now.busy_s - before.busy_s
    return max(0.0, busy - (now.own_s - before.own_s)) / (now.at_s - before.at_s)


def busy_s(lines: Iterable[str], cores: set[int]) -> float:
    """Total busy time of `cores` since the machine started, in seconds, read from the `lines` of /proc/stat."""
    ticks = 0
    for line in lines:
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq = map(int, fields[:7])
            ticks += user + nice + system + irq + softirq
    return ticks * _tick_s() if ticks else 0.0


def cores_allowed() -> set[int]:
    """Numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota(root: Path = Path("/sys/fs/cgroup"), membership: str = "/proc/self/cgroup") -> float | None:
    """Limit on this process's processor time, as in a container, as a number of cores; None without a limit.

    Args:
        root: folder where the system mounts the control groups (cgroups).
        membership: file that names this process's control group.
    """
    group = next((line.removeprefix("0::/") for line in _lines(membership) if line.startswith("0::/")), "")
    folder = root / group
    limits = []
    for ancestor in (folder, *folder.parents):
        if ancestor.is_relative_to(root):
            limits += _limit(" ".join(_lines(ancestor / "cpu.max")))
    version_1 = root / "cpu"  # control groups of version 1
    files = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    limits += _limit(" ".join(line for name in files for line in _lines(version_1 / name)))
    return min(limits, default=None)


def _set_by_environment() -> bool:
    """Return whether the user or torchrun set the number of threads by environment variables."""
    return any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def _ranks() -> int:
    """Number of processes that torchrun started on this machine for this command; 1 without torchrun."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _limit(text: str) -> list[float]:
    """Parse the text "quota period", two numbers of microseconds.

    Returns:
        List that holds the limit in cores; empty if the quota is `max` or -1, which means no limit.
    """
    with suppress(ValueError):
        allowed, period = map(int, text.split())
        if allowed > 0 and period > 0:
            return [allowed / period]
    return []


def _waited() -> float:
    """Time in seconds that the main thread has waited for a core so far; 0 if the system does not report it."""
    return next((int(line.split()[1]) / 1e9 for line in _lines("/proc/self/schedstat")), 0.0)


def _used(pid: int | None) -> float:
    """Processor time of the running process `pid`, in seconds; 0 if `pid` is None or the time is not reported."""
    for line in _lines(f"/proc/{pid}/stat"):
        user, system = line.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * _tick_s()
    return 0.0


def _tick_s() -> float:
    return 1 / os.sysconf("SC_CLK_TCK")


def _lines(path: str | Path) -> list[str]:
    """Lines of a system file; empty if there is no such file."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
