"""What goes wrong in one process, or before it has begun: one line, an exit code, and nothing lost."""

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


def told(process: Start, code: int) -> str:
    """The one line that a run says as it fails."""
    assert process.wait() == code, process.said()
    assert "Traceback" not in process.said()
    (line,) = [line for line in process.said().splitlines() if line.startswith("cyclestyle train: ")]
    return line.removeprefix("cyclestyle train: ")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# -------------------------------------------------------------------------------------------------- on the way


def test_a_killed_data_worker_is_exit_3_and_the_newest_checkpoint_stays(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    process = start(*RUN, "trainer.steps=1000000", "trainer.log_every=1", "data.workers=2")
    until(lambda: len(log(run)) >= 4, "four steps", alive=process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    line = told(process, 3)
    assert "data worker" in line
    assert "killed by SIGKILL" in line
    assert "data.workers=0" in line
    assert ended(run) == ("failed", 3, line)
    assert newest(run).step >= 3


def test_a_data_worker_that_leaves_early_is_exit_3_and_the_newest_checkpoint_stays(
    start: Starts, tmp_path: Path
) -> None:
    run = tmp_path / "runs/smoke"
    line = told(start(*RUN, "data._target_=tests.faults.faulty_parts.scenes_that_leave", "data.workers=2"), 3)
    assert line.startswith("data worker")
    assert "ended with code 0: find the reason with data.workers=0" in line
    assert ended(run) == ("failed", 3, line)
    assert newest(run).step == 9  # five steps of each worker, and a save every three


def test_training_needs_no_shared_memory(scenes: Path, tmp_path: Path) -> None:
    apart = ["unshare", "--mount", "sh", "-c"]
    mount = "mount -t tmpfs -o ro tmpfs /dev/shm"  # of which Docker gives 64 MB
    if not shutil.which("unshare") or subprocess.run([*apart, mount], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs of its own")
    train = [sys.executable, "-m", "cyclestyle.train", "+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu"]
    large = ["data.load_size=256", "data.crop_size=256", "data.resize=stretch", "trainer.batch_size=4"]
    short = ["trainer.steps=3", "trainer.sample_every=100", "logger.tensorboard=null", "data.workers=2"]
    done = subprocess.run(
        [*apart, f'{mount} && exec "$@"', "sh", *train, *large, *short],
        cwd=tmp_path, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ended(tmp_path / "runs/smoke")[0] == "finished"


def test_too_little_memory_is_exit_7_with_the_peak_and_the_knobs(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    line = told(start(*RUN, "adversarial._target_=tests.faults.faulty_parts.Devours", "adversarial.rank=0"), 7)
    for words in ("out of memory (peak ", " MB", "data.crop_size", "trainer.batch_size", "trainer.accumulate"):
        assert words in line
    assert ended(run) == ("failed", 7, line)
    assert (newest(run).step, status(run)["step"]) == (3, 3)


def test_a_loss_that_is_no_number_is_exit_5_with_step_losses_and_pictures_and_is_not_saved(
    start: Starts, scenes: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/smoke"
    bad = ("adversarial._target_=tests.faults.faulty_parts.IsNoNumber", "adversarial.step=4")
    process = start(*RUN, *bad, "trainer.log_every=1000")
    line = told(process, 5)
    assert "training diverged at step 4: not finite (" in line  # seen at the save after step 6
    assert "gan_ab nan" in line
    assert "cycle_a nan" not in line
    pictures = [file for file in process.said().splitlines() if file.startswith("  ")]
    assert len(pictures) == 4
    assert all(Path(file.strip()).is_file() and str(scenes) in file for file in pictures)
    assert ended(run) == ("failed", 5, line)
    assert newest(run).step == 3
    assert not any(weights.isnan().any() for weights in newest(run).model.tensors.values())

    told(start(*RUN, *bad, "trainer.log_every=4", "trainer.save_every=1000", "name=logged"), 5)
    assert not log(tmp_path / "runs/logged")  # by the log, if that comes first
    assert not (tmp_path / "runs/logged/checkpoints").exists()


def test_two_processes_of_which_one_has_no_number_agree_on_the_step(
    start_two: Callable[..., list[Start]], tmp_path: Path
) -> None:
    first, second = start_two(*RUN, "adversarial._target_=tests.faults.faulty_parts.IsNoNumber", "adversarial.rank=1")
    assert (first.wait(), second.wait()) == (5, 5)
    said = first.said() + second.said()
    assert said.count("training diverged at step 4") == 1
    assert "Traceback" not in said
    assert ended(tmp_path / "runs/smoke")[:2] == ("failed", 5)
    assert newest(tmp_path / "runs/smoke").step == 3


def test_updates_that_are_no_numbers_can_be_left_out_but_not_ten_in_a_row(start: Starts, tmp_path: Path) -> None:
    bad = ("adversarial._target_=tests.faults.faulty_parts.IsNoNumber", "trainer.on_nonfinite=skip")
    some = start(*RUN, *bad, "adversarial.step=2", "adversarial.last=9", "trainer.steps=12")
    assert some.wait() == 0, some.said()
    assert [line.get("skipped_steps", 0) for line in log(tmp_path / "runs/smoke")] == [4, 4, 0]
    assert not any(weights.isnan().any() for weights in newest(tmp_path / "runs/smoke").model.tensors.values())

    line = told(start(*RUN, *bad, "adversarial.step=2", "adversarial.last=99", "name=all"), 5)
    assert "the last of 10 in a row that were skipped" in line
    assert ended(tmp_path / "runs/all")[:2] == ("failed", 5)


# -------------------------------------------------------------------------------------------------- before it begins


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the test misses")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trainer.device=cuda",), "cuda"),
        (("trainer.device=cuda", "trainer.devices=2", "trainer.batch_size=2"), "this machine has 0 cuda device(s)"),
    ],
)
def test_a_device_that_is_not_there_is_exit_2(start: Starts, arguments: tuple[str, ...], words: str) -> None:
    assert words in told(start(*arguments), 2)


def test_a_folder_in_use_is_exit_2_with_who_has_it_from_the_first_moment_on(start: Starts, tmp_path: Path) -> None:
    run = tmp_path / "runs/smoke"
    assert start("trainer.steps=1", "trainer.log_every=1").wait() == 0  # whose id is still in the status

    first = start(f"data.root={tmp_path}/drawn", "data.train=100000", "trainer.steps=2")
    until(lambda: locked(run), "its lock", alive=first)
    before = status(run)
    second = start("trainer.steps=2")
    assert second.wait() == 2
    assert f"runs/smoke is in use by pid {first.pid} on host {os.uname().nodename}: wait for it" in second.said()
    assert status(run) == before
    assert first.poll() is None


def locked(run: Path) -> bool:
    with (run / "lock").open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def test_a_checkpoint_of_a_newer_version_is_exit_4_with_both_versions(start: Starts, tmp_path: Path) -> None:
    assert start("trainer.steps=2").wait() == 0
    manifest = tmp_path / "runs/smoke/checkpoints/step_00000002/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": VERSION + 1}))
    line = told(start("trainer.steps=4"), 4)
    assert f"is of version {VERSION + 1}, this program reads up to {VERSION}: update it" in line
    assert ended(tmp_path / "runs/smoke") == ("failed", 4, line)
