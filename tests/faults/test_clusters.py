"""Tests of the procedures in docs/clusters.md: the script for SLURM, and a run on two nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cyclestyle.checkpoints.directory import Checkpoints
from tests.faults.ports import free_port

REPOSITORY = Path(__file__).parent.parent.parent
DEADLINE_S = 180  # ample time for work of a few seconds on a busy machine
LONG = ("trainer.steps=1000000", "trainer.save_every=1000000", "trainer.sample_every=1000000", "data.workers=0",
        "logger.tensorboard=null", "trainer.device=cpu")  # fmt: skip
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Function that starts a command; when the test ends, commands that still run are terminated."""
    processes: list[subprocess.Popen[str]] = []

    def popen(*command: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(REPOSITORY), "PYTHON": sys.executable, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        processes.append(process)
        return process

    yield popen
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=DEADLINE_S)


def wait_for_steps(run: Path, steps: int, *processes: "subprocess.Popen[str]") -> None:
    metrics, until = run / "metrics.jsonl", time.monotonic() + DEADLINE_S
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_slurm_script_saves_and_requeues_on_signal(start: Start, scenes: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"  # substitutes for the commands of SLURM
    tools.mkdir()
    for name, body in (
        ("scontrol", 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi'),
        ("srun", 'shift; exec "$@"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    slurm = {
        "PATH": f"{tools}:{os.environ['PATH']}", "PORT": str(free_port()),
        "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "1",
    }  # fmt: skip
    command = ("bash", str(REPOSITORY / "scripts/slurm.sbatch"), "+experiment=smoke", f"data.root={scenes}", *LONG)

    job = start(*command, **slurm)
    wait_for_steps(tmp_path / "runs/smoke", 3, job)
    job.send_signal(signal.SIGUSR1)  # only the script receives it, as with --signal=B:
    output, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 75, output
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    status = json.loads((tmp_path / "runs/smoke/status.json").read_text())
    assert (status["state"], status["code"], status["reason"]) == ("stopped", 75, "SIGTERM")
    assert status["step"] >= 3

    job = start(*command, f"trainer.steps={status['step'] + 2}", **slurm)  # as SLURM starts the requeued job
    output, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 0, output
    assert f"resuming from step {status['step']}" in output
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"


def test_slurm_script_does_not_requeue_run_that_failed(start: Start, tmp_path: Path) -> None:
    job = start("bash", str(REPOSITORY / "scripts/slurm.sbatch"), "data.a=no", "data.b=none", PORT=str(free_port()))
    output, _ = job.communicate(timeout=DEADLINE_S)
    assert job.returncode == 1, output
    assert json.loads((tmp_path / "runs/own/status.json").read_text())["code"] == 3
    assert start("bash", str(REPOSITORY / "scripts/slurm.sbatch")).wait(DEADLINE_S) == 2


def test_two_nodes_stop_together_and_resume(start: Start, scenes: Path, tmp_path: Path) -> None:
    def nodes(*arguments: str) -> list["subprocess.Popen[str]"]:
        port = free_port()
        meet = ("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{port}",
                "--rdzv_id=mine", "--local_addr=localhost")  # fmt: skip
        train = ("-m", "cyclestyle.train", "+experiment=smoke", f"data.root={scenes}", "trainer.batch_size=2", *LONG)
        return [start(sys.executable, "-m", "torch.distributed.run", *meet, *train, *arguments) for _ in range(2)]

    both = nodes()
    wait_for_steps(tmp_path / "runs/smoke", 3, *both)
    both[1].terminate()  # the cluster takes one of the two nodes back
    outputs = [node.communicate(timeout=DEADLINE_S)[0] for node in both]
    status = json.loads((tmp_path / "runs/smoke/status.json").read_text())
    assert (status["state"], status["code"]) == ("stopped", 75), outputs
    saved = Checkpoints(tmp_path / "runs/smoke/checkpoints").load()
    assert saved is not None
    assert saved.step == status["step"] >= 3
    assert len(saved.ranks) == 2

    both = nodes(f"trainer.steps={saved.step + 2}")
    outputs = [node.communicate(timeout=DEADLINE_S)[0] for node in both]
    assert [node.returncode for node in both] == [0, 0], outputs
    assert f"resuming from step {saved.step}" in "".join(outputs)
    assert Checkpoints(tmp_path / "runs/smoke/checkpoints").load().step == saved.step + 2  # type: ignore[union-attr]
