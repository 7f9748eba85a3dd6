"""How many threads compute, how they wait for one another, and whether other processes keep them waiting.

Threads that share an operation meet at its end. Where other processes have the cores, one of them waits for another
that is not running: two threads are then many times slower than one.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from cyclestyle.errors import CommandError, warn

SPINS = 10_000  # of a thread that waits, before it sleeps: as fast as libgomp's 300,000 where nothing else runs
LOOK_EVERY_S = 10.0  # for others on the processor
LEAST_S = 0.2  # between two looks that are compared: the system counts in hundredths of a second
WAITED = 0.25  # share of the time from which on waiting for a core is worth a line


class Look(NamedTuple):
    """What the system has counted up to a moment, in seconds."""

    at_s: float
    busy_s: float  # all processes, on the cores that this one may use; 0 where the system does not count it
    own_s: float  # this process and its children
    waited_s: float  # in which the main thread could have run and had no core; 0 likewise


class Choice(NamedTuple):
    """A number of threads, and what the user should know of it."""

    threads: int
    note: str = ""

    def __str__(self) -> str:
        return _threads(self.threads)


def spin_briefly(environment: "os._Environ[str] | dict[str, str]" = os.environ) -> None:
    """Let OpenMP's threads sleep sooner where they wait; before PyTorch is imported, which reads it then."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def check(threads: int | Literal["auto"], *, key: str) -> None:
    """Raise a CommandError for a number that is none."""
    if threads != "auto" and threads < 1:
        raise CommandError(f"{key}={threads}: give a number of threads, 1 or more, or auto")


def choose(threads: int | Literal["auto"], *, key: str, since: Look | None) -> Choice:
    """How many threads a new job computes with, and a suggestion where other processes have the cores.

    The number does not depend on the other processes: two runs from one command would else differ in rounding, and one
    that was started beside a short job would be slow to its end.

    Args:
        since: a look at the start of the command; None where other processes do not matter, as for a GPU.
    """
    if threads != "auto":
        return Choice(threads)
    count = here()
    if since is None or _given() or _ranks() > 1:  # processes of one job would take one another for others
        return Choice(count)
    others, cores = used_by_others(since, look_later(since)), len(cores_allowed())
    better = left_by_others(others, cores)
    if better >= count:
        return Choice(count)
    return Choice(count, f"other processes use {others:.1f} of {cores} cores: {key}={better} is faster beside them")


def here() -> int:
    """The number that `auto` stands for in this process."""
    return resolve(usual_threads(), given=_given(), cores=len(cores_allowed()), quota=quota(), ranks=_ranks())


def left_by_others(others: float, cores: int) -> int:
    """How many threads find a core of their own beside processes that use `others` cores, 1 at least."""
    return max(1, round(cores - others))


def resolve(usual: int, *, given: bool, cores: int, quota: float | None, ranks: int) -> int:
    """The number that `auto` stands for.

    Args:
        usual: PyTorch's own number.
        given: it is the user's, or torchrun's, by the environment.
        cores: that this process may use.
        quota: of the container, in cores; None where there is none.
        ranks: processes of the job on this machine.
    """
    if given:
        return usual
    return max(1, min(usual, within(cores, quota) // ranks))


def within(cores: int, quota: float | None) -> int:
    """How many of some cores a quota lets this process use at a time, 1 at least."""
    return cores if quota is None else max(1, min(cores, int(quota)))


def threads_of_each(processes: int) -> int:
    """Threads of each of several processes that share the cores of this one, 1 at least."""
    return max(1, within(len(cores_allowed()), quota()) // processes)


def resume(threads: int | Literal["auto"], *, saved: int, most: int) -> Choice:
    """How many threads a job continues with that was begun with `saved`, where at most `most` can run."""
    count = min(saved, most) if threads == "auto" else threads
    if count == saved:
        return Choice(count)
    return Choice(
        count,
        f"resumes with {_threads(count)} instead of {saved}: results differ in rounding from an uninterrupted run",
    )


def use(threads: int) -> None:
    """Compute with so many threads from now on."""
    import torch

    usual_threads()  # before it changes
    if torch.get_num_threads() != threads:  # else PyTorch's own settings stay untouched
        torch.set_num_threads(threads)


@cache
def usual_threads() -> int:
    """PyTorch's own number: by the environment, else a thread for each core that this process may use."""
    import torch

    return torch.get_num_threads()


class Watch:
    """Looks now and then whether other processes have the cores, and reports it once.

    Args:
        threads: that compute.
        key: how a user sets them.
        every_s: seconds between two looks, at least.
        tell: is warned.
    """

    def __init__(
        self, threads: int, *, key: str, every_s: float = LOOK_EVERY_S, tell: Callable[[str], None] = warn
    ) -> None:
        self.threads, self.key, self._every_s, self._tell = threads, key, every_s, tell
        self._before = look()
        self._told = threads == 1  # fewer there are not

    def __call__(self) -> None:
        """Look, if that is due."""
        if self._told or time.perf_counter() - self._before.at_s < self._every_s:
            return
        now = look()
        line = crowded(self._before, now, threads=self.threads, cores=len(cores_allowed()), key=self.key)
        self._before = now
        if line is not None:
            self._told = True
            self._tell(line)


def crowded(before: Look, now: Look, *, threads: int, cores: int, key: str) -> str | None:
    """The line for a user whose threads other processes keep from running; None where they do not."""
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
    """What the system has counted up to now."""
    times = os.times()
    own = times.user + times.system + times.children_user + times.children_system
    if (started := sys.modules.get("multiprocessing")) is not None:  # else there are no workers, and it takes time
        own += sum(_used(child.pid) for child in started.active_children())
    return Look(time.perf_counter(), busy_s(_lines("/proc/stat"), cores_allowed()), own, _waited())


def look_later(before: Look) -> Look:
    """A look that is far enough from an earlier one to be compared with it."""
    time.sleep(max(0.0, before.at_s + LEAST_S - time.perf_counter()))
    return look()


def used_by_others(before: Look, now: Look) -> float:
    """How many cores other processes have used between two looks; 0 where the system does not count it."""
    busy = now.busy_s - before.busy_s
    return max(0.0, busy - (now.own_s - before.own_s)) / (now.at_s - before.at_s)


def busy_s(lines: Iterable[str], cores: set[int]) -> float:
    """Seconds that some cores were busy since the start of the machine, by the lines of /proc/stat."""
    ticks = 0
    for line in lines:
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq = map(int, fields[:7])
            ticks += user + nice + system + irq + softirq
    return ticks * _tick_s() if ticks else 0.0


def cores_allowed() -> set[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota(root: Path = Path("/sys/fs/cgroup"), own: str = "/proc/self/cgroup") -> float | None:
    """How many cores' time the system lets this process have, a container's limit say; None where it has none."""
    ours = next((line.removeprefix("0::/") for line in _lines(own) if line.startswith("0::/")), "")
    folder = root / ours
    limits = []
    for place in (folder, *folder.parents):
        if place.is_relative_to(root):
            limits += _limit(" ".join(_lines(place / "cpu.max")))
    older = root / "cpu"  # the first version of control groups
    both = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    limits += _limit(" ".join(line for name in both for line in _lines(older / name)))
    return min(limits, default=None)


def _given() -> bool:
    """Whether the number of threads is the user's, or torchrun's, by the environment."""
    return any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def _ranks() -> int:
    """Processes of this job on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _limit(text: str) -> list[float]:
    """Cores, out of `quota period` in microseconds; `max` and -1 are none."""
    with suppress(ValueError):
        allowed, period = map(int, text.split())
        if allowed > 0 and period > 0:
            return [allowed / period]
    return []


def _waited() -> float:
    """Seconds that the main thread has waited for a core."""
    return next((int(line.split()[1]) / 1e9 for line in _lines("/proc/self/schedstat")), 0.0)


def _used(pid: int | None) -> float:
    """Seconds of processor time of a process that runs."""
    for line in _lines(f"/proc/{pid}/stat"):
        user, system = line.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * _tick_s()
    return 0.0


def _tick_s() -> float:
    return 1 / os.sysconf("SC_CLK_TCK")


def _lines(path: str | Path) -> list[str]:
    """Of a file of the system's; none where it has no such file."""
    with suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
