"""Tests that kill runs with SIGKILL: at every file system operation of a save or mark, and at random moments.

`make test-slow` kills at more than fifty random moments; with -s it prints the number of kills, and their seeds.
"""

import itertools
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cyclestyle.checkpoints.directory import Checkpoints
from tests.faults.commands import REPOSITORY, Start, until
from tests.faults.conftest import RUN, SCORES, Starts
from tests.faults.run_comparison import assert_same_run, status

# Moment -> (step of the newest valid checkpoint after the kill, part of the operation in kill_each_operation.py). The
# killed process was saving the checkpoint of step 6; the previous checkpoint is of step 4.
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


def test_save_killed_at_any_operation_leaves_valid_checkpoint(tmp_path: Path) -> None:
    kills = kills_of("save", tmp_path)
    for moment, (step, operation) in MOMENTS.items():
        assert [kill for kill in kills if operation in kill["operation"] and kill["step"] == step], moment
    for kill in kills:
        assert kill["intact"], kill
        assert kill["resumed exactly"], kill
        assert not kill["fallback"], kill  # an incomplete checkpoint never has its final name
        assert kill["files"] == ["latest", f"step_0000000{kill['step']}", "step_00000008"], kill
    assert [kill["step"] for kill in kills] == sorted(kill["step"] for kill in kills)
    print(f"\n{len(kills)} operations of a save, killed at each")


def test_marking_best_checkpoint_killed_at_any_operation_leaves_former_or_new_mark(tmp_path: Path) -> None:
    kills = kills_of("mark", tmp_path)
    former, new = [2, "kid", 1 / 2, "min", [0.0, 1.0], 1], [6, "kid", 1 / 6, "min", [0.0, 1 / 3], 3]
    best = [kill["best"] for kill in kills]
    assert best == sorted(best)
    assert [former, new] == [mark for mark, _ in itertools.groupby(best)]
    for moment, operation in (("before prune", "os.rename step_00000002"), ("mid-prune", "os.remove training.pt")):
        assert [kill for kill in kills if operation in kill["operation"] and kill["best"] == new], moment
    for kill in kills:
        assert kill["intact"], kill
        assert kill["resumed at"] == 6, kill  # the newest checkpoint, whichever is the best one
        best_folder = f"step_0000000{kill['best'][0]}"
        assert kill["files"] == sorted({"best", "latest", best_folder, "step_00000006", "step_00000008"}), kill
    print(f"\n{len(kills)} operations of a mark, killed at each")


def test_scores_killed_at_any_operation_leave_whole_lines_and_are_equal_after_resume(tmp_path: Path) -> None:
    kills = kills_of("scores", tmp_path)
    # Before and after the removal of the last line; no operation follows after the new line is in the file.
    assert [steps for steps, _ in itertools.groupby(kill["steps"] for kill in kills)] == [[2, 4, 8], [2, 4]]
    assert len([kill for kill in kills if "os.rename" in kill["operation"]]) == 2
    for kill in kills:
        assert kill["whole"], kill
        assert kill["resumed exactly"], kill
    print(f"\n{len(kills)} operations of a line of scores, killed at each")


def kills_of(action: str, folder: Path) -> list[dict[str, Any]]:
    """Kill `action` at each of its operations; return the results that kill_each_operation.py prints."""
    command = [sys.executable, "-m", "tests.faults.kill_each_operation", str(folder), action]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    *kills, last = map(json.loads, process.stdout.splitlines())
    assert last == {"completed": len(kills) + 1}
    return kills


def test_run_after_five_random_kills_equals_uninterrupted_run(
    start: Starts, uninterrupted: Callable[..., Path], tmp_path: Path
) -> None:
    expected = uninterrupted(*RUN, *SCORES)
    steps = [json.loads(line)["step"] for line in (expected / "scores.jsonl").read_text().splitlines()]
    assert steps == list(range(4, 41, 4))
    killed_at_random(5, start, expected, tmp_path, always=SCORES, seed=0)


def test_hanging_data_workers_exit_when_their_trainer_is_killed(start: Starts, tmp_path: Path) -> None:
    hangs = ("data._target_=tests.faults.faulty_parts.hanging_scenes", "trainer.steps=1000000")
    process = start(*RUN, *hangs, "data.workers=2")
    until((tmp_path / "reading").exists, "a hanging worker", alive=process)
    workers = [int(child) for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    process.send(signal.SIGKILL)
    until(lambda: not any(alive(worker) for worker in workers), "the exit of the workers", within=10)


def alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("always", [(), ("trainer.accumulate=2",), ("checkpoint.asynchronous=true",), SCORES])
@pytest.mark.parametrize("seed", range(1, 3))
def test_run_after_nine_random_kills_equals_uninterrupted_run(
    start: Starts, uninterrupted: Callable[..., Path], tmp_path: Path, always: tuple[str, ...], seed: int
) -> None:
    expected = uninterrupted(*RUN, *(key for key in always if "asynchronous" not in key))
    killed_at_random(9, start, expected, tmp_path, always=always, seed=seed)


def killed_at_random(
    count: int, start: Starts, expected: Path, folder: Path, *, always: tuple[str, ...] = (), seed: int
) -> None:
    """Kill runs `count` times in all; resume each to its end, and compare it with the uninterrupted run `expected`."""
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
            assert process.poll() == -9, process.printed()
            kills += 1
            checkpoint = Checkpoints(run / "checkpoints").load(warn=pytest.fail)
            print(f"seed {seed}: killed, resumed from step {checkpoint.step if checkpoint else 0}")
        assert_same_run(run, expected)
        assert (status(run)["state"], status(run)["step"]) == ("finished", 40)
        assert not list(run.rglob(".*"))
        print(f"seed {seed}: {kills - before} kills, equal to an uninterrupted run")


def kill_at_random(process: Start, run: Path, chance: random.Random) -> None:
    """Kill a run at a random moment: soon after its start, or after its first, second or third save.

    A run that finishes before the chosen moment is not killed.
    """
    saves = chance.choice([0, 0, 1, 2, 3])
    began, moment_s = newest_step(run), chance.uniform(0, 0.3 if saves else 2)
    while process.poll() is None and newest_step(run) - began < 3 * saves:
        time.sleep(0.002)
    end = time.monotonic() + moment_s
    while process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()


def newest_step(run: Path) -> int:
    checkpoint = Checkpoints(run / "checkpoints").newest()
    return int(checkpoint.name[5:]) if checkpoint else 0
