"""The record of each start of a run in starts.json: command, versions, git commits and machine."""

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch

import cyclestyle
from cyclestyle.run.environment import describe_start, git_state, record_start

REPOSITORY = Path(__file__).parents[2]


def starts(folder: Path) -> list[dict[str, Any]]:
    return list(json.loads((folder / "starts.json").read_text(encoding="utf-8")))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one commit and one tracked file."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "file").write_text("one\n")
    git(folder, "init", "-q")
    git(folder, "add", "file")
    git(folder, "-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "-m", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_each_start_and_resume_of_a_run_adds_an_entry(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "API_TOKEN": "do-not-record"}
    keys = ["+experiment=smoke", "name=my run", "trainer.sample_every=100", "logger=default"]
    for steps in (2, 3):
        command = [sys.executable, "-m", "cyclestyle.train", *keys, f"trainer.steps={steps}"]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        last = starts(tmp_path / "runs" / "my run")[-1]
        assert shlex.split(last["command"]) == command
        assert last["folder"] == str(tmp_path)
    entries = starts(tmp_path / "runs" / "my run")
    assert [(entry["step"], entry["processes"]) for entry in entries] == [(0, 1), (2, 1)]
    assert entries[0]["time"] <= entries[1]["time"]
    assert "do-not-record" not in json.dumps(entries)


def test_start_record_has_versions_and_machine() -> None:
    entry = describe_start(step=7, processes=2)
    assert (entry["step"], entry["processes"]) == (7, 2)
    versions, machine = entry["versions"], entry["machine"]
    assert versions["cyclestyle"] == cyclestyle.__version__
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__
    assert versions["cuda"] == torch.version.cuda
    assert versions["pillow"] == PIL.__version__
    assert machine["host"] == socket.gethostname()
    assert 1 <= machine["cores"] <= (os.cpu_count() or 1)
    assert machine["cpu"]
    assert machine["memory_gb"] > 0
    assert json.loads(json.dumps(entry)) == entry


def test_command_of_torchrun_is_recorded_with_its_own_arguments(tmp_path: Path) -> None:
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("the command line of another process is unknown")
    code = "from cyclestyle.run.environment import command_line; print(command_line())"
    (tmp_path / "script.py").write_text(code)
    command = [shutil.which("torchrun", path=Path(sys.executable).parent), "--nproc_per_node", "1", "script.py", "a b"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert shlex.split(done.stdout)[-len(command) :] == command


def test_git_state_has_commit_and_dirty_flag(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "runs").mkdir()
    (checkout / "runs" / "untracked").touch()
    assert git_state(checkout / "runs") == {"commit": commit, "dirty": False}
    (checkout / "file").write_text("two\n")
    assert git_state(checkout) == {"commit": commit, "dirty": True}
    git(checkout, "add", "file")
    assert git_state(checkout) == {"commit": commit, "dirty": True}


def test_git_state_has_no_commit_before_first_commit_and_is_none_outside_checkout(
    tmp_path: Path, checkout: Path
) -> None:
    (tmp_path / "new").mkdir()
    git(tmp_path / "new", "init", "-q")
    assert git_state(tmp_path / "new") == {"commit": None, "dirty": False}
    (tmp_path / "none").mkdir()
    assert git_state(tmp_path / "none") is None
    assert git_state(tmp_path / "absent") is None


def test_git_state_ignores_variables_of_a_git_hook(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(checkout / "elsewhere"))
    assert git_state(checkout) == {"commit": commit, "dirty": False}


@pytest.mark.parametrize("script", [None, "exit 3", "kill -9 $$", "printf '\\377\\n'; exec sleep 60"])
def test_missing_failing_or_hanging_git_gives_no_state(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    commands = tmp_path / "commands"
    commands.mkdir()
    if script is not None:
        (commands / "git").write_text(f"#!/bin/sh\n{script}\n")
        (commands / "git").chmod(0o755)
        (commands / "sleep").symlink_to(shutil.which("sleep"))
    monkeypatch.setenv("PATH", str(commands))
    began = time.monotonic()
    assert git_state(checkout, timeout_s=0.3) is None
    assert time.monotonic() - began < 30


def test_package_untracked_by_surrounding_checkout_has_no_commit(checkout: Path) -> None:
    library = checkout / "venv"
    shutil.copytree(REPOSITORY / "cyclestyle", library / "cyclestyle", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import json, cyclestyle.run.environment as e;"
        "print(json.dumps([e.__file__, e.describe_start(step=0, processes=1)['git']]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(library)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    file, state = json.loads(done.stdout)
    assert file.startswith(str(library))
    assert state == {"package": None, "folder": {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False}}


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2", b"\xff", b"[" * 100_000])
def test_malformed_start_record_is_replaced_with_warning(tmp_path: Path, content: bytes) -> None:
    warnings: list[str] = []
    (tmp_path / "starts.json").write_bytes(content)
    record_start(tmp_path, step=4, warn=warnings.append)
    assert [entry["step"] for entry in starts(tmp_path)] == [4]
    assert warnings == [
        f"{tmp_path}/starts.json is malformed: earlier starts of the run are lost, the file is written again"
    ]
    record_start(tmp_path, step=6, warn=pytest.fail)
    assert [entry["step"] for entry in starts(tmp_path)] == [4, 6]


def test_unwritable_start_record_gives_warning(tmp_path: Path) -> None:
    warnings: list[str] = []
    (tmp_path / "starts.json").mkdir()
    record_start(tmp_path, step=0, warn=warnings.append)
    assert warnings == [f"cannot write {tmp_path}/starts.json: is a directory"]
    record_start(tmp_path / "absent", step=0, warn=warnings.append)
    assert warnings[1:] == [f"cannot write {tmp_path}/absent/starts.json: no such file or directory"]
