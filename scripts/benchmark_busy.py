"""Time training and translating on a machine that does other things, beside a load that this command makes itself.

    python scripts/benchmark_busy.py                              # print: about two minutes
    python scripts/benchmark_busy.py --write docs/benchmarks.md   # and keep (part of `make bench-full`)

The demo's training step, and a few photos, from JPEG to JPEG, through the paper's generator. Each way computes in a
process of its own, which waits while another one's turn is timed; quiet turns and turns beside two processes that never
rest alternate. Exits with 1 when a goal is missed by more than 10 %.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

BUSY = 2  # processes beside which the goals hold
QUIET_SHARE = 0.97  # of the speed with PyTorch's own settings
SLOWER, FLOOR = 3.0, 4.0  # times slower beside the load, at most: the goal, and what must not be exceeded
LONGEST_S = 300  # in which a process that makes load ends by itself, whatever becomes of this command
SPIN = f"import time\nend = time.monotonic() + {LONGEST_S}\nprint(flush=True)\nwhile time.monotonic() < end: pass"
TURN_S = 1.5  # a turn ends with the first piece of work after that
WORKS = {"training": "the demo's step, images/s", "translate": "256 px photos, photos/s"}


class Way(NamedTuple):
    """Settings that work is timed with."""

    name: str
    threads: str  # as a user sets it: auto, a number; PyTorch's own number where it is empty
    variables: dict[str, str]  # of the environment


TORCH, DEFAULT, ONE = "PyTorch's own settings", "cyclestyle, threads=auto", "cyclestyle, threads=1"
WAYS = (Way(TORCH, "", {"GOMP_SPINCOUNT": "300000"}), Way(DEFAULT, "auto", {}), Way(ONE, "1", {}))


class Timed(NamedTuple):
    """The speeds of one way, turn by turn."""

    work: str
    way: str
    busy: int
    threads: int
    speeds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)


def main() -> int:
    """Measure, print, perhaps write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="turns of each way and load (default 3)")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table into")
    parser.add_argument("--worker", nargs=2, metavar=("WORK", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)

    from measuring import write_section

    others: list[float] = []
    found = [one for work in WORKS for one in measured(work, arguments.turns, others)]
    text, missed = page(found, arguments.turns, others=statistics.median(others))
    print(f"\n{text}")
    if arguments.write:
        write_section(arguments.write, "Beside other processes", text)
    return 1 if missed else 0


def measured(work: str, turns: int, others: list[float]) -> list[Timed]:
    """All ways in turn, quiet and beside the load.

    Args:
        others: takes down how many cores processes used in quiet turns that are none of this command's.
    """
    from rich.progress import track

    found: dict[tuple[str, int], Timed] = {}
    with contextlib.ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="busy-"))
        children = {way.name: opened.enter_context(started(work, way, folder)) for way in WAYS}
        for busy in (0, BUSY):
            for name, child in children.items():
                found[name, busy] = Timed(work, name, busy, child.threads, [])
        for _ in track(range(turns), description=work):
            for busy in (0, BUSY):
                with load(busy):
                    for way in WAYS:
                        speed, beside = children[way.name].turn()
                        found[way.name, busy].speeds.append(speed)
                        others += [] if busy else [beside]
    return list(found.values())


class Child:
    """A process that computes when it is asked to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.threads = int(self._answer())

    def turn(self) -> tuple[float, float]:
        """The speed of one turn, and how many cores others used meanwhile."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{TURN_S}\n")
        self._process.stdin.flush()
        speed, beside = map(float, self._answer().split())
        return speed, beside

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "a process that was to compute has ended"
        return line


@contextlib.contextmanager
def started(work: str, way: Way, folder: str) -> Iterator[Child]:
    """A process that is ready to compute, in a folder, having warmed up; ended at the end."""
    unset = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {key: value for key, value in os.environ.items() if key not in unset} | way.variables
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", work, way.threads]
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield Child(process)
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def load(processes: int) -> Iterator[None]:
    """So many processes that never rest; ended in any case, by themselves if need be."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):  # one by one: those that have begun are ended if the next one cannot be
            running += [subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield
    finally:
        for process in running:
            process.kill()
            process.communicate()


def worker(work: str, wanted: str) -> int:
    """Compute for as long as each line of standard input wants, and answer with the speed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the work itself prints is no answer
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    from cyclestyle.hardware import threads

    threads.spin_briefly()
    since = threads.look()
    unit, images = {"training": training, "translate": translating}[work]()
    if wanted:
        chosen = threads.choose("auto" if wanted == "auto" else int(wanted), key="threads", since=since)
        threads.use(chosen.threads)
    count = threads.usual_threads() if not wanted else chosen.threads
    unit()
    print(count, file=answers, flush=True)
    for line in sys.stdin:
        before, began, done = threads.look(), time.perf_counter(), 0
        while time.perf_counter() - began < float(line):
            unit()
            done += images
        elapsed_s = time.perf_counter() - began
        print(done / elapsed_s, threads.used_by_others(before, threads.look()), file=answers, flush=True)
    return 0


def training() -> tuple[Callable[[], object], int]:
    """The demo's step, and the pictures that it takes."""
    import torch

    from cyclestyle import train
    from cyclestyle.cli import compose
    from cyclestyle.data.dataset import Batch
    from cyclestyle.hardware.device import Hardware

    cfg = compose.compose("train", ["experiment=demo", "trainer.device=cpu"])
    hardware = Hardware("cpu", one_size=True)
    objective = train.build_objective(cfg, hardware)
    trainer = train.build_trainer(cfg, objective, Set(), hardware)  # type: ignore[arg-type]
    size, crop = int(cfg.trainer.batch_size), int(cfg.data.crop_size)
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (size, 3, crop, crop), dtype=torch.uint8, generator=random) for _ in "ab")

    def step() -> None:
        losses = trainer.train_step(Batch(a, b, [size * trainer.step + place for place in range(size)]))
        torch.stack(list(losses.values())).tolist()

    return step, 2 * size


class Set:
    """As many training pictures as the demo has; none is read."""

    def draws(self, seed: int) -> Sequence[int]:
        return range(300)


def translating() -> tuple[Callable[[], object], int]:
    """A set of photos as the command translates it, and how many they are; files go to the working directory."""
    from benchmark_translate import Kind, ours, photos, write_model

    folder = Path(tempfile.mkdtemp(dir="."))
    kind = Kind("few", 256, 256, 4)
    write_model(folder / "model.safetensors", channels=64, blocks=9)
    source = photos(folder / "photos", kind, seed=0)
    translate = ours(folder / "model.safetensors", compile=False)
    outputs = itertools.count()
    return lambda: translate(source, folder / f"out {next(outputs)}"), kind.photos


def page(found: Sequence[Timed], turns: int, *, others: float) -> tuple[str, bool]:
    """What docs/benchmarks.md has of it, and whether a goal is missed widely."""
    from measuring import Goal, circumstances, filled, table

    rows: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    floors: list[Goal] = []
    for work, what in WORKS.items():
        of_work = {(one.way, one.busy): one for one in found if one.work == work}
        quiet = of_work[TORCH, 0]
        for (way, busy), one in of_work.items():
            spread = f"{min(one.speeds):.2f} to {max(one.speeds):.2f}"
            numbers = (f"{one.median:.2f}", spread, f"{one.median / quiet.median:.2f}")
            rows.append((what, busy or "none", way, one.threads, *numbers))
        share = of_work[DEFAULT, 0].median / quiet.median
        suggested = quiet.median / of_work[ONE, BUSY].median
        goals.append(Goal(f"{work}, quiet, times the speed of PyTorch's settings", share, QUIET_SHARE, at_least=True))
        beside = f"with the threads=1 that it suggests beside {BUSY} busy processes, times slower than quiet"
        goals.append(Goal(f"{work}, {beside}", suggested, SLOWER, unit="x"))
        floors.append(Goal(f"{work}, the same, what must hold", suggested, FLOOR, unit="x"))
    about = filled(
        f"""The demo's step (64 px, batch 2, no reading of pictures) and sets of 4 photos of 256 px through ResNet-9
        with 64 channels, from JPEG to JPEG. {turns} turns of {TURN_S:g} s or one piece of work, whichever is longer,
        for each way, quiet and beside {BUSY} Python processes that never rest, alternating. PyTorch's own settings are
        a thread a core that spins 300,000 times where it waits, as libgomp has it; the other rows spin 10,000 times.
        The last column compares with PyTorch's own settings on the quiet machine."""
    )
    how = circumstances("python scripts/benchmark_busy.py")
    lines = table("work | busy processes | how | threads | median | min to max | times quiet", rows)
    verdicts = "\n".join(f"* {goal}" for goal in (*goals, *floors))
    missed = any(goal.is_missed_widely for goal in goals) or not all(goal.is_met for goal in floors)
    spare = f"* cores that processes of others used in quiet turns: {others:.1f}"
    return "\n\n".join([about, f"{how}\n{spare}", lines, verdicts]), missed


if __name__ == "__main__":
    sys.exit(main())
