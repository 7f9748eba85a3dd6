"""Tests of programs of a user's own that train on two devices: they start again, with the user's classes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.commands import until

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 120
PROGRAM = "from cyclestyle.distributed.launch import program\nprint(program(2))\n"
TWO = ("trainer.devices=2", "trainer.batch_size=2")

TWO_TRAININGS = """
import os, sys
import torch
from cyclestyle import errors, run_training

class Mine(torch.optim.SGD):
    def __init__(self, params, lr, **settings):
        super().__init__(params, lr)
        with open(f"made by {os.environ.get('RANK')}", "a") as stream:
            stream.write("x")

print("before the trainings")
first = run_training(*sys.argv[1:], {"name": "first", "optimizer._target_": "__main__.Mine", "trainer.devices": 1})
try:
    huge = {"name": "diverged", "optimizer.lr": 1e30, "trainer.precision": "fp32", "trainer.devices": 1}
    run_training(*sys.argv[1:], huge)
except errors.DivergedError:
    print("one has diverged")
second = run_training(*sys.argv[1:], {"name": "second", "optimizer._target_": "__main__.Mine"})
print("after the trainings", first.step, second.step, second.status)
"""


def run(folder: Path, *command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command of Python; start its name with the path of a file or -m."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def test_script_is_relaunched_as_file_with_same_arguments(tmp_path: Path) -> None:
    (tmp_path / "my script.py").write_text(PROGRAM)
    process = run(tmp_path, "my script.py", "name=a b", "--flag")
    assert process.stdout == f"{[str(tmp_path / 'my script.py'), 'name=a b', '--flag']}\n"


@pytest.mark.parametrize(("name", "file"), [("mine.training", "training.py"), ("mine", "__main__.py")])
def test_module_is_relaunched_as_module(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__init__.py").touch()
    (tmp_path / "mine" / file).write_text(PROGRAM)
    assert run(tmp_path, "-m", name, "x=1").stdout == f"{['-m', name, 'x=1']}\n"


def test_folder_with_main_file_is_relaunched_as_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/__main__.py").write_text(PROGRAM)
    assert run(tmp_path, "mine").stdout == f"{[str(tmp_path / 'mine/__main__.py')]}\n"


def test_console_script_is_relaunched_as_file(tmp_path: Path) -> None:
    (tmp_path / "cyclestyle-train").write_text(f"#!{sys.executable}\n{PROGRAM}")
    (tmp_path / "cyclestyle-train").chmod(0o755)
    process = subprocess.run(
        [str(tmp_path / "cyclestyle-train"), "x=1"], env=environment(), capture_output=True, text=True, check=True
    )
    assert process.stdout == f"{[str(tmp_path / 'cyclestyle-train'), 'x=1']}\n"


@pytest.mark.parametrize("source", ["-c", "-"])
def test_program_without_file_is_an_error_of_one_line(tmp_path: Path, source: str) -> None:
    code = "from cyclestyle import train; train.main()"
    command = [source, *([code] if source == "-c" else []), "+experiment=smoke", "trainer.device=cpu", *TWO]
    process = run(tmp_path, *command, stdin=code)
    assert process.returncode == 2
    assert process.stderr.splitlines() == [
        "cyclestyle train: a notebook, python -c or standard input cannot be started again as 2 processes: set "
        "trainer.devices=1, or train from a script or with python -m cyclestyle.train"
    ]
    assert list(tmp_path.iterdir()) == []


def test_multiprocessing_child_is_not_relaunched(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "from cyclestyle.distributed.launch import program\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.get_context('spawn').Process(target=program, args=(2,)).start()\n"
    )
    assert "CommandError: a child process cannot start 2 training processes" in run(tmp_path, "script.py").stderr


@pytest.mark.slow
def test_script_on_two_devices_trains_with_own_classes_and_continues_in_one_process(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TWO_TRAININGS)
    process = run(tmp_path, "script.py", "+experiment=smoke", "trainer.device=cpu", "logger.tensorboard=null", *TWO)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("before the trainings") == 3  # here, and in two processes
    assert process.stdout.count("one has diverged") == 3
    assert process.stdout.count("after the trainings 4 4 finished") == 1
    assert "global batch 2 = 2 processes x 1 x 1" in process.stdout
    assert {file.name: len(file.read_text()) for file in tmp_path.glob("made by *")} == {
        "made by None": 2,  # an optimizer for the generators, and one for the discriminators
        "made by 0": 2,
        "made by 1": 2,
    }
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", "diverged", "second"}


def test_script_that_calls_train_main_uses_own_classes_on_two_devices(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import torch\n"
        "from cyclestyle import train\n"
        "class Mine(torch.optim.SGD):\n"
        "    def __init__(self, params, lr, **settings):\n"
        "        super().__init__(params, lr)\n"
        "if __name__ == '__main__':\n"
        "    train.main()\n"
    )
    arguments = ("+experiment=smoke", "optimizer._target_=__main__.Mine", "trainer.device=cpu", *TWO)
    process = run(tmp_path, "script.py", *arguments)
    assert process.returncode == 0, process.stderr
    assert "_target_: __main__.Mine" in (tmp_path / "runs/smoke/config.yaml").read_text()


@pytest.mark.slow
def test_script_that_does_not_train_in_relaunched_processes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from cyclestyle import run_training\n"
        "if 'RANK' not in os.environ:\n"
        "    run_training(*sys.argv[1:])\n"
    )
    process = run(tmp_path, "script.py", "+experiment=smoke", "trainer.device=cpu", *TWO)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(
        "cyclestyle.errors.CommandError: 2 of 2 processes ended without training"
    )


@pytest.mark.slow
def test_script_with_different_values_in_each_process_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import os, sys\n"
        "from cyclestyle import run_training\n"
        "run_training(*sys.argv[1:], {'optimizer.lr': 1e-4 / (1 + os.getpid()), 'name': str(os.getpid())})\n"
    )
    process = run(tmp_path, "script.py", "+experiment=smoke", "trainer.device=cpu", *TWO)
    assert process.returncode == 1
    assert "a script must start the same trainings, with the same values" in process.stderr


@pytest.mark.slow
def test_interrupted_script_saves_and_ends_by_keyboard_interrupt(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\nfrom cyclestyle import run_training\nrun_training(*sys.argv[1:])\nprint('not reached')\n"
    )
    arguments = ["+experiment=smoke", "trainer.device=cpu", "trainer.steps=1000000", "logger.tensorboard=null"]
    process = subprocess.Popen(
        [sys.executable, "script.py", *arguments, *TWO],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        metrics = tmp_path / "runs/smoke/metrics.jsonl"
        until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 3, "three steps")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert output.splitlines()[-1] == "KeyboardInterrupt"
    assert "not reached" not in output
    assert (status(tmp_path / "runs/smoke")["state"], status(tmp_path / "runs/smoke")["code"]) == ("stopped", 75)
