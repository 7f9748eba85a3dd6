"""kill -9: at every operation of a save, and at random moments of whole runs.

`make test-slow` does the latter fifty times and more; with -s it prints how many kills it were, and their seeds.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cyclestyle.checkpoints.directory import Checkpoints
from tests.faults.commands import REPOSITORY, Start, until
from tests.faults.conftest import RUN, Starts
from tests.faults.run_comparison import assert_same_run, status

# What is about to happen when the process dies, in the words of the module `saves`; at step 4 the older checkpoint is
# the newest that verifies, at step 6 the new one.
MOMENTS = {
    "before temp": (4, "os.mkdir .step_00000006.tmp"),
    "mid-write of the networks": (4, "write networks.safetensors"),
    "mid-write of the optimizers": (4, "write training.pt"),
    "mid-write of a rank": (4, "write rank0.pt"),
    "before manifest": (4, ".tmp manifest.json"),
    "before rename": (4, "os.rename .step_00000006.tmp step_00000006"),
    "before pointer": (6, ".tmp latest"),
    "before prune": (6, "os.rename step_00000002 .step_00000002.old"),
    "mid-prune": (6, "os.remove training.pt"),
}


def test_a_save_killed_at_any_operation_leaves_a_whole_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.kill_each_operation", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *kills, last = map(json.loads, done.stdout.splitlines())
    assert last == {"completed": len(kills) + 1}
    for moment, (step, words) in MOMENTS.items():
        assert [kill for kill in kills if words in kill["where"] and kill["step"] == step], moment
    for kill in kills:
        assert kill["whole"], kill
        assert kill["goes on"], kill
        assert not kill["warned"], kill  # nothing half-written ever has the name of a checkpoint
        assert kill["left"] == ["latest", f"step_0000000{kill['step']}", "step_00000008"], kill
    assert [kill["step"] for kill in kills] == sorted(kill["step"] for kill in kills)
    print(f"\n{len(kills)} operations of a save, killed at each")


def test_five_kills_at_random_moments_change_nothing(
    start: Starts, undisturbed: Callable[..., Path], tmp_path: Path
) -> None:
    killed_at_random(5, start, undisturbed(*RUN), tmp_path, seed=0)


def test_a_data_worker_that_hangs_leaves_with_a_killed_trainer(start: Starts, tmp_path: Path) -> None:
    hangs = ("data._target_=tests.faults.faulty_parts.scenes_that_hang", "trainer.steps=1000000")
    process = start(*RUN, *hangs, "data.workers=2")
    until((tmp_path / "reading").exists, "a worker that hangs", alive=process)
    workers = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    process.send(signal.SIGKILL)
    until(lambda: not any(alive(worker) for worker in workers), "the end of its workers", within=10)


def alive(pid: int) -> bool:
    """Whether a process is there, and is more than an entry that nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("always", [(), ("trainer.accumulate=2",), ("checkpoint.asynchronous=true",)])
@pytest.mark.parametrize("seed", range(1, 3))
def test_kills_at_random_moments_change_nothing(
    start: Starts, undisturbed: Callable[..., Path], tmp_path: Path, always: tuple[str, ...], seed: int
) -> None:
    straight = undisturbed(*RUN, *(key for key in always if "accumulate" in key))
    killed_at_random(9, start, straight, tmp_path, always=always, seed=seed)


def killed_at_random(
    count: int, start: Starts, straight: Path, folder: Path, *, always: tuple[str, ...] = (), seed: int
) -> None:
    """Kill runs so often, let each get to its end all the same, and compare it with one that nothing happened to."""
    chance = random.Random(seed)
    kills = runs = 0
    while kills < count:
        runs += 1
        run, before = folder / "runs" / str(runs), kills
        while True:
            varied = [
                f"name={runs}",
                f"data.workers={chance.choice([0, 1, 3])}",
                f"checkpoint.asynchronous={chance.choice(['true', 'false'])}",
            ]
            process = start(*RUN, *varied, *always)
            if kills < count:
                kill_at_random(process, run, chance)
            if process.wait() == 0:
                break
            assert process.poll() == -9, process.said()
            kills += 1
            found = Checkpoints(run / "checkpoints").load(tell=pytest.fail)
            print(f"seed {seed}: killed, goes on from step {found.step if found else 0}")
        assert_same_run(run, straight)
        assert (status(run)["state"], status(run)["step"]) == ("finished", 40)
        assert not list(run.rglob(".*"))
        print(f"seed {seed}: {kills - before} kills, and the run is the same")


def kill_at_random(process: Start, run: Path, chance: random.Random) -> None:
    """At any moment from the start on, or soon after the first, second or third save; not if it gets to its end."""
    saves = chance.choice([0, 0, 1, 2, 3])
    began, moment_s = newest_step(run), chance.uniform(0, 0.3 if saves else 2)
    while process.poll() is None and newest_step(run) - began < 3 * saves:
        time.sleep(0.002)
    end = time.monotonic() + moment_s
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()


def newest_step(run: Path) -> int:
    found = Checkpoints(run / "checkpoints").newest()
    return int(found.name[5:]) if found else 0
