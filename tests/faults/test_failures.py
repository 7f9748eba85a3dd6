"""Tests of failures before and during training: a one-line error, an exit code, and no lost checkpoint."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cyclestyle.checkpoints.model import VERSION
from tests.faults.commands import DEADLINE_S, ENVIRONMENT, Start, until
from tests.faults.conftest import RUN, Starts
from tests.faults.run_comparison import ended, log, newest, status


def error_line(process: Start, code: int) -> str:
    """Wait for a run to fail with this exit code; return its error line."""
    assert process.wait() == code, process.printed()
    assert "Traceback" not in process.printed()
    (line,) = [line for line in process.printed().splitlines() if line.startswith("cyclestyle train: ")]
    return line.removeprefix("cyclestyle train: ")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# -------------------------------------------------------------------------------------------------- during training


def test_training_with_killed_data_worker_exits_3_and_keeps_checkpoint(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    process = start(*RUN, "trainer.steps=1000000", "trainer.log_every=1", "data.workers=2")
    until(lambda: len(log(run)) >= 4, "four steps", alive=process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    line = error_line(process, 3)
    assert "data worker" in line
    assert "killed by SIGKILL" in line
    assert "data.workers=0" in line
    assert ended(run) == ("failed", 3, line)
    assert newest(run).step >= 3


def test_training_with_exited_data_worker_exits_3_and_keeps_checkpoint(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    line = error_line(start(*RUN, "data._target_=tests.faults.faulty_parts.exiting_scenes", "data.workers=2"), 3)
    assert line.startswith("data worker")
    assert "ended with code 0: find the reason with data.workers=0" in line
    assert ended(run) == ("failed", 3, line)
    assert newest(run).step == 9  # each worker loads five steps; every third step is saved


def test_training_needs_no_shared_memory(scenes: Path, tmp_path: Path) -> None:
    unshared = ["unshare", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o ro tmpfs /dev/shm"  # stricter than Docker, where /dev/shm has 64 MB
    if not shutil.which("unshare") or subprocess.run([*unshared, mount], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs of its own")
    train = [sys.executable, "-m", "cyclestyle.train", "+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu"]
    large = ["data.load_size=256", "data.crop_size=256", "data.resize=stretch", "trainer.batch_size=4"]
    short = ["trainer.steps=3", "trainer.sample_every=100", "logger.tensorboard=null", "data.workers=2"]
    process = subprocess.run(
        [*unshared, f'{mount} && exec "$@"', "sh", *train, *large, *short],
        cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert ended(tmp_path / "runs/smoke")[0] == "finished"


def test_out_of_memory_exits_7_with_peak_and_remedies(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    line = error_line(
        start(*RUN, "adversarial._target_=tests.faults.faulty_parts.ExhaustsMemory", "adversarial.rank=0"), 7
    )
    for words in ("out of memory (peak ", " MB", "data.crop_size", "trainer.batch_size", "trainer.accumulate"):
        assert words in line
    assert ended(run) == ("failed", 7, line)
    assert (newest(run).step, status(run)["step"]) == (3, 3)


def test_training_with_nan_loss_exits_5_without_saving_that_step(start: Starts, scenes: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    bad = ("adversarial._target_=tests.faults.faulty_parts.NaNLoss", "adversarial.step=4")
    process = start(*RUN, *bad, "trainer.log_every=1000")
    line = error_line(process, 5)
    assert "training diverged at step 4: not finite (" in line  # detected at the save after step 6
    assert "gan_ab nan" in line
    assert "cycle_a nan" not in line
    images = [file for file in process.printed().splitlines() if file.startswith("  ")]
    assert len(images) == 4
    assert all(Path(file.strip()).is_file() and str(scenes) in file for file in images)
    assert ended(run) == ("failed", 5, line)
    assert newest(run).step == 3
    assert not any(weights.isnan().any() for weights in newest(run).model.tensors.values())

    error_line(start(*RUN, *bad, "trainer.log_every=4", "trainer.save_every=1000", "name=logged"), 5)
    assert not log(tmp_path / "runs/logged")  # detected at the log, which is due before the save
    assert not (tmp_path / "runs/logged/checkpoints").exists()


def test_nan_on_one_rank_stops_both_ranks_at_same_step(start_two: Callable[..., list[Start]], tmp_path: Path) -> None:
    first, second = start_two(*RUN, "adversarial._target_=tests.faults.faulty_parts.NaNLoss", "adversarial.rank=1")
    assert (first.wait(), second.wait()) == (5, 5)
    output = first.printed() + second.printed()
    assert output.count("training diverged at step 4") == 1
    assert "Traceback" not in output
    assert ended(tmp_path / "runs/smoke")[:2] == ("failed", 5)
    assert newest(tmp_path / "runs/smoke").step == 3


def test_nan_updates_are_skipped_but_ten_in_a_row_end_the_run(start: Starts, tmp_path: Path) -> None:
    bad = ("adversarial._target_=tests.faults.faulty_parts.NaNLoss", "trainer.on_nonfinite=skip")
    process = start(*RUN, *bad, "adversarial.step=2", "adversarial.last=9", "trainer.steps=12")
    assert process.wait() == 0, process.printed()
    assert [line.get("skipped_steps", 0) for line in log(tmp_path / "runs/smoke")] == [4, 4, 0]
    assert not any(weights.isnan().any() for weights in newest(tmp_path / "runs/smoke").model.tensors.values())

    line = error_line(start(*RUN, *bad, "adversarial.step=2", "adversarial.last=99", "name=all"), 5)
    assert "the last of 10 in a row that were skipped" in line
    assert ended(tmp_path / "runs/all")[:2] == ("failed", 5)


# -------------------------------------------------------------------------------------------------- before training


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trainer.device=cuda",), "cuda"),
        (
            ("trainer.device=cuda", "trainer.devices=2", "trainer.batch_size=2"),
            "trainer.device=cuda: this machine has none",
        ),
    ],
)
def test_training_on_missing_device_exits_2(start: Starts, arguments: tuple[str, ...], words: str) -> None:
    assert words in error_line(start(*arguments), 2)


def test_run_folder_in_use_exits_2_and_names_owner(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    assert start("trainer.steps=1", "trainer.log_every=1").wait() == 0  # its process id remains in the status

    first = start(f"data.root={tmp_path}/drawn", "data.train=100000", "trainer.steps=2")
    until(lambda: locked(run), "the lock of the run folder", alive=first)
    before = status(run)
    second = start("trainer.steps=2")
    assert second.wait() == 2
    assert f"runs/smoke is in use by pid {first.pid} on host {os.uname().nodename}: wait for it" in second.printed()
    assert status(run) == before
    assert first.poll() is None


def locked(run: Path) -> bool:
    """Return whether another process holds the lock of the run folder `run`."""
    with (run / "lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_resume_from_checkpoint_of_newer_version_exits_4(start: Starts, tmp_path: Path) -> None:
    assert start("trainer.steps=2").wait() == 0
    manifest = tmp_path / "runs/smoke/checkpoints/step_00000002/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": VERSION + 1}))
    line = error_line(start("trainer.steps=4"), 4)
    assert f"is of version {VERSION + 1}, this program reads up to {VERSION}: update it" in line
    assert ended(tmp_path / "runs/smoke") == ("failed", 4, line)
