"""Tests of training on full or small disks, and in folders of another user: messages, exit codes, checkpoints."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.checkpoints.writer import CheckpointWriter, Snapshot
from cyclestyle.distributed.world import World
from cyclestyle.errors import DiskError
from cyclestyle.run.folder import RunFolder
from tests.checkpoints.test_directory import model

REPOSITORY = Path(__file__).parent.parent.parent
DEADLINE_S = 120  # ample time for work of a few seconds on a busy machine
NOBODY = 65534
Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run(scenes: Path, tmp_path: Path) -> Iterator[Run]:
    """Function that starts `cyclestyle.train +experiment=smoke` in its own process."""
    processes = []

    def start(*arguments: str, **options: object) -> "subprocess.Popen[str]":
        command = ["+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu", "data.workers=0", *arguments]
        process = subprocess.Popen(
            [sys.executable, "-m", "cyclestyle.train", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},  # type: ignore[call-overload]
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def limit_files(process: "subprocess.Popen[str]", size: int | None) -> None:
    """Limit each file that a process writes to `size` bytes, to simulate a small disk; None removes the limit."""
    hard = resource.RLIM_INFINITY
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def test_full_disk_ends_run_after_three_failed_saves(run: Run, tmp_path: Path) -> None:
    endless = (
        "trainer.steps=1000000",
        "trainer.save_every=20",
        "trainer.sample_every=1000000",
        "logger.tensorboard=null",
    )
    process = run(*endless)
    first = tmp_path / "runs/smoke/checkpoints/step_00000020"
    wait_for(first, process)
    limit_files(process, 4096)
    output, _ = process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 74, output
    warnings = [line for line in output.splitlines() if "cannot write checkpoint" in line]
    assert len(warnings) == 3
    steps = [int(line.partition("at step ")[2].partition(":")[0]) for line in warnings]
    assert steps[1] - steps[0] == steps[2] - steps[1] == 20  # the save is retried after trainer.save_every steps
    for line in warnings:
        assert "file too large (need " in line
        assert " MB free in " in line
    assert all("training continues and tries again at the next save" in line for line in warnings[:2])
    assert "3 times in a row; make room" in warnings[2]
    assert "Traceback" not in output

    names = sorted(path.name for path in first.parent.iterdir())
    assert not [name for name in names if "tmp" in name]
    status = json.loads((tmp_path / "runs/smoke/status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 74)
    assert status["checkpoint"] == names[-1] == f"step_{steps[0] - 20:08d}"
    assert "3 times in a row" in status["reason"]

    checkpoint = Checkpoints(first.parent).load()  # verifies all checksums
    assert checkpoint is not None
    assert checkpoint.step == steps[0] - 20
    again = run(*endless[1:], f"trainer.steps={checkpoint.step + 5}")  # the new process has no file size limit
    output, _ = again.communicate(timeout=DEADLINE_S)
    assert again.returncode == 0, output
    assert f"resuming from step {checkpoint.step}" in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Folder in which a file system of 600 kB is mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_failed_save_keeps_checkpoint_and_warns_of_needed_space(small_disk: Path, asynchronous: bool) -> None:
    def snapshot(step: int, floats: int) -> Snapshot:
        return Snapshot(model(step, x=torch.arange(floats, dtype=torch.float32)), {"step": step}, {"pools": {}})

    warnings: list[str] = []
    checkpoints = Checkpoints(small_disk / "checkpoints")
    writer = CheckpointWriter(checkpoints, world=World(), asynchronous=asynchronous, warn=warnings.append)
    writer.save(lambda: snapshot(1, 50_000))  # 0.2 MB
    writer.finish()
    before = contents(checkpoints.folder / "step_00000001")
    writer.save(lambda: snapshot(2, 12_000_000))
    writer.save(lambda: snapshot(3, 10_000))
    writer.finish()

    (line,) = warnings
    assert "cannot write checkpoint at step 2: no space left on device (need 48 MB, 0.4 MB free" in line
    assert contents(checkpoints.folder / "step_00000001") == before
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["latest", "step_00000001", "step_00000003"]
    with pytest.raises(DiskError, match="no space left"):
        writer.save(lambda: snapshot(4, 12_000_000), last=True)
    assert Checkpoints(checkpoints.folder).load().step == 3  # type: ignore[union-attr]


def test_loggers_with_full_disk_do_not_stop_training(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs/smoke/metrics.jsonl").mkdir(parents=True)  # a folder blocks the path of the metrics file
    process = run("trainer.steps=20", "trainer.sample_every=1", "trainer.log_every=1", "pool.size=0")
    wait_for(tmp_path / "runs/smoke/checkpoints/step_00000002", process)
    limit_files(process, 200_000)  # enough for each file of a checkpoint, not for TensorBoard's images
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    warnings = [line for line in output.splitlines() if "training continues without it" in line]
    assert [line.partition(" cannot")[0] for line in warnings] == [
        "cyclestyle: logger.metrics", "cyclestyle: logger.tensorboard",
    ]  # fmt: skip
    assert Checkpoints(tmp_path / "runs/smoke/checkpoints").load().step == 20  # type: ignore[union-attr]


def test_unwritable_console_does_not_stop_training(run: Run, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = run("trainer.steps=6", "logger.tensorboard=null", stdout=full, stderr=full)
        assert process.wait(DEADLINE_S) == 0
    assert json.loads((tmp_path / "runs/smoke/status.json").read_text())["state"] == "finished"


def test_run_with_closed_output_pipe_stops_on_request(run: Run, tmp_path: Path) -> None:
    process = run("trainer.steps=1000000", "trainer.save_every=1000000", "logger.tensorboard=null")
    wait_for(tmp_path / "runs/smoke/metrics.jsonl", process)
    assert process.stdout is not None
    process.stdout.close()  # like `| tee log`, which Ctrl-C ends too
    process.send_signal(signal.SIGINT)
    assert process.wait(DEADLINE_S) == 75
    status = json.loads((tmp_path / "runs/smoke/status.json").read_text())
    assert (status["state"], status["code"]) == ("stopped", 75)


def test_unwritable_run_folder_is_reported_before_images_are_inspected(run: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    process = run("data.root=nowhere")
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 74, output
    (line,) = output.splitlines()
    assert f"cannot write to {tmp_path}/runs/smoke: " in line
    assert "choose another run_dir= or name=" in line


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user")
@pytest.mark.parametrize("mode", [0o755, 0o555])
def test_run_folder_owned_by_another_user_gives_disk_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("theirs", "theirs/run", "theirs/run/checkpoints"):
        (tmp_path / name).mkdir()
    (tmp_path / "theirs/run").chmod(mode)
    tmp_path.chmod(0o755)
    child = os.fork()  # a fork, since a new interpreter may be readable by root only
    if not child:
        with (tmp_path / "errors").open("w") as errors:
            os.setuid(NOBODY)
            for name in ("theirs/run", "theirs/new"):
                try:
                    RunFolder(Path(name)).acquire()
                except DiskError as error:
                    errors.write(f"{error}\n")
        os._exit(0)
    os.waitpid(child, 0)
    lines = (tmp_path / "errors").read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        f"cannot write to {tmp_path}/theirs/{name}" for name in ("run", "new")
    ]
    assert all(": permission denied; choose another run_dir= or name=" in line for line in lines)


def test_checkpoints_respect_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = Checkpoints(tmp_path / "checkpoints").save(model(1), {}, {}, world=World())
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {"0o640"}
    assert oct((tmp_path / "checkpoints/latest").stat().st_mode & 0o777) == "0o640"
    assert oct(path.stat().st_mode & 0o777) == "0o750"
