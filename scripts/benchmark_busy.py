"""Time training and translation while other processes, which this command starts itself, keep the processors busy.

    python scripts/benchmark_busy.py                              # print: about two minutes
    python scripts/benchmark_busy.py --write docs/benchmarks.md   # also write the table (part of `make bench-full`)

The command times the demo's training step, and the translation of a few photos from JPEG to JPEG by the paper's
generator. Each variant runs in its own process, which sleeps while other variants are timed. Turns without load
alternate with turns during which two other processes are busy. Exits with 1 when a goal is missed by more than 10 %.
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

BUSY = 2  # number of busy processes during turns with load
QUIET_SHARE = 0.97  # goal without load: smallest ratio to the speed with PyTorch's own settings
SLOWER, FLOOR = 3.0, 4.0  # largest slowdown factor with load: the goal, and the bound above which the command fails
LONGEST_S = 300  # time after which a busy process ends by itself, even if this command was killed
SPIN = f"import time\nend = time.monotonic() + {LONGEST_S}\nprint(flush=True)\nwhile time.monotonic() < end: pass"
TURN_S = 1.5  # shortest duration of a turn; a turn ends when the work in progress is finished
WORKS = {"training": "the demo's step, images/s", "translate": "256 px photos, photos/s"}


class Way(NamedTuple):
    """Settings of a timed variant: the number of threads, and environment variables."""

    name: str
    threads: str  # value of the key: auto or a number; empty for PyTorch's own number
    variables: dict[str, str]  # environment variables


TORCH, DEFAULT, ONE = "PyTorch's own settings", "cyclestyle, threads=auto", "cyclestyle, threads=1"
WAYS = (Way(TORCH, "", {"GOMP_SPINCOUNT": "300000"}), Way(DEFAULT, "auto", {}), Way(ONE, "1", {}))


class Timed(NamedTuple):
    """Speeds of one variant, one per turn."""

    work: str
    way: str
    busy: int  # number of busy processes at the same time
    threads: int
    speeds: list[float]  # images/s or photos/s

    @property
    def median(self) -> float:
        return statistics.median(self.speeds)


def main() -> int:
    """Measure and print the table, write it if --write is given; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="turns of each variant and load (default 3)")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the table into")
    parser.add_argument("--worker", nargs=2, metavar=("WORK", "THREADS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(*arguments.worker)

    from measuring import write_section

    others: list[float] = []
    results = [timed for work in WORKS for timed in measured(work, arguments.turns, others)]
    text, missed = page(results, arguments.turns, others=statistics.median(others))
    print(f"\n{text}")
    if arguments.write:
        write_section(arguments.write, "Beside other processes", text)
    return 1 if missed else 0


def measured(work: str, turns: int, others: list[float]) -> list[Timed]:
    """Time all variants of `work` (training or translating) in turn, without and with load.

    Args:
        others: list to which each turn without load appends the number of cores that other processes used.
    """
    from rich.progress import track

    results: dict[tuple[str, int], Timed] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="busy-"))
        children = {way.name: stack.enter_context(started(work, way, folder)) for way in WAYS}
        for busy in (0, BUSY):
            for name, child in children.items():
                results[name, busy] = Timed(work, name, busy, child.threads, [])
        for _ in track(range(turns), description=work):
            for busy in (0, BUSY):
                with load(busy):
                    for way in WAYS:
                        speed, cores = children[way.name].turn()
                        results[way.name, busy].speeds.append(speed)
                        others += [] if busy else [cores]
    return list(results.values())


class Child:
    """A child process that computes for one turn whenever it is asked to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.threads = int(self._answer())

    def turn(self) -> tuple[float, float]:
        """Let the child compute for one turn; return its speed, and the number of cores that other processes used."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{TURN_S}\n")
        self._process.stdin.flush()
        speed, cores = map(float, self._answer().split())
        return speed, cores

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the computing process has ended"
        return line


@contextlib.contextmanager
def started(work: str, way: Way, folder: str) -> Iterator[Child]:
    """Context manager: start a computing process in `folder` and wait for the end of its warm-up; end it on exit."""
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
    """Context manager: keep `processes` busy processes running during the `with` block."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):  # one by one: if one fails to start, the earlier ones are ended
            running += [subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE)]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()  # wait until it is running
        yield
    finally:
        for process in running:
            process.kill()
            process.communicate()


def worker(work: str, setting: str) -> int:
    """For each number read from stdin, compute for this many seconds; print the speed and the cores others used."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of the timed work must not mix with the printed results
    root = Path(__file__).resolve().parent.parent
    sys.path.insert(0, str(root))
    from cyclestyle.hardware import threads

    threads.spin_briefly()
    since = threads.look()
    unit, images = {"training": training, "translate": translating}[work]()
    if setting:
        chosen = threads.choose("auto" if setting == "auto" else int(setting), key="threads", since=since)
        threads.use(chosen.threads)
    count = threads.usual_threads() if not setting else chosen.threads
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
    """Return a function that runs the demo's training step, and the number of images in a step."""
    import torch

    from cyclestyle import assembly
    from cyclestyle.cli import compose
    from cyclestyle.data.dataset import Batch
    from cyclestyle.hardware.device import Hardware

    cfg = compose.compose("train", ["experiment=demo", "trainer.device=cpu"])
    hardware = Hardware("cpu", one_size=True)
    objective = assembly.build_objective(cfg, hardware)
    trainer = assembly.build_trainer(cfg, objective, hardware, samples_per_epoch=300)  # as many as the demo has
    size, crop = int(cfg.trainer.batch_size), int(cfg.data.crop_size)
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (size, 3, crop, crop), dtype=torch.uint8, generator=random) for _ in "ab")

    def step() -> None:
        losses = trainer.train_step(Batch(a, b, [size * trainer.step + place for place in range(size)]))
        torch.stack(list(losses.values())).tolist()

    return step, 2 * size


def translating() -> tuple[Callable[[], object], int]:
    """Return a function that translates a photo set in the working directory, and the number of photos."""
    from benchmark_translate import Kind, ours, photos, write_model

    folder = Path(tempfile.mkdtemp(dir="."))
    kind = Kind("few", 256, 256, 4)
    write_model(folder / "model.safetensors", channels=64, blocks=9)
    source = photos(folder / "photos", kind, seed=0)
    translate = ours(folder / "model.safetensors", compile=False)
    outputs = itertools.count()
    return lambda: translate(source, folder / f"out {next(outputs)}"), kind.photos


def page(results: Sequence[Timed], turns: int, *, others: float) -> tuple[str, bool]:
    """Return the section of docs/benchmarks.md, and whether a bound is exceeded or a goal missed by more than 10 %."""
    from measuring import Goal, circumstances, filled, table

    rows: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    floors: list[Goal] = []
    for work, description in WORKS.items():
        by_way = {(timed.way, timed.busy): timed for timed in results if timed.work == work}
        quiet = by_way[TORCH, 0]
        for (way, busy), timed in by_way.items():
            spread = f"{min(timed.speeds):.2f} to {max(timed.speeds):.2f}"
            numbers = (f"{timed.median:.2f}", spread, f"{timed.median / quiet.median:.2f}")
            rows.append((description, busy or "none", way, timed.threads, *numbers))
        share = by_way[DEFAULT, 0].median / quiet.median
        suggested = quiet.median / by_way[ONE, BUSY].median
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
