"""The run folder: which commands may resume its run, errors for other commands, the lock and the status."""

import copy
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cyclestyle.checkpoints.model import Model
from cyclestyle.cli import compose
from cyclestyle.distributed.world import World
from cyclestyle.errors import CheckpointError, CommandError, DiskError
from cyclestyle.run.folder import ResumePoint, RunFolder

FILES = {"a": {"1.png": 10, "2.png": 20, "3.png": 30}, "b": {"x.png": 40, "y.png": 50}}


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return compose.to_plain(compose.compose("train", ["+experiment=smoke"]))


@pytest.fixture
def folder(tmp_path: Path, recipe: dict[str, Any]) -> RunFolder:
    """Folder of a run that was stopped at step 4."""
    run = RunFolder(tmp_path / "run")
    run.acquire()
    model = Model({"generators.w": torch.zeros(1)}, {}, {}, ("a", "b"), 4, Path())
    run.checkpoints.save(model, {"recipe": recipe, "files": FILES}, {}, world=World())
    return run


def resume(run: RunFolder, recipe: dict[str, Any], files: Any = FILES, bad: Any = None) -> ResumePoint:
    point = run.resume_point(recipe, files, bad=bad or {"a": {}, "b": {}})
    assert point is not None
    return point


def changed(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    recipe = copy.deepcopy(recipe)
    for key, value in changes.items():
        *path, last = key.split(".")
        node = recipe
        for name in path:
            node = node[name]
        node[last] = value
    return recipe


def test_new_folder_has_nothing_to_resume(tmp_path: Path, recipe: dict[str, Any]) -> None:
    run = RunFolder(tmp_path / "new" / "run")
    assert run.resume_point(recipe, FILES, bad={}) is None
    assert not run.path.exists()
    run.acquire()
    assert run.path.is_dir()


def test_run_with_same_recipe_and_files_resumes(folder: RunFolder, recipe: dict[str, Any]) -> None:
    assert resume(folder, recipe).checkpoint.step == 4


@pytest.mark.parametrize(
    "key",
    [
        "name", "run_dir", "init", "logger", "resume.mode", "resume.allow_changed", "checkpoint.keep", "data.root",
        "data.workers", "trainer.steps", "trainer.epochs", "trainer.log_every", "trainer.sample_every",
        "trainer.save_every", "trainer.device", "trainer.devices", "trainer.compile", "trainer.deterministic",
        "trainer.accumulate", "trainer.backward", "trainer.recompute", "trainer.profile", "trainer.cuda_graphs",
    ],
)  # fmt: skip
def test_run_resumes_after_change_of_permitted_key(folder: RunFolder, recipe: dict[str, Any], key: str) -> None:
    other = changed(recipe, {key: "something else"})
    assert other != recipe
    assert resume(folder, other).checkpoint.step == 4
    assert {line.partition(":")[0].partition("._")[0] for line in resume(folder, other).changes} >= {key}


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("seed", 0, 1),
        ("optimizer.lr", 0.0002, 0.001),
        ("optimizer.betas", [0.5, 0.999], [0.9, 0.999]),
        (
            "adversarial._target_",
            "cyclestyle.objectives.adversarial.LeastSquares",
            "cyclestyle.objectives.adversarial.Hinge",
        ),
        ("pool.size", 50, 0),
        ("ema.decay", 0.0, 0.9),
        ("objective.identity", 0.5, 0.0),
        ("schedule.decay_epochs", 100, 10),
        ("trainer.batch_size", 1, 2),
        ("trainer.precision", "auto", "fp32"),
        ("data.crop_size", 32, 16),
        ("data.domain_a", "photo", "picture"),
    ],
)
def test_changed_recipe_gives_error_with_differences(
    folder: RunFolder, recipe: dict[str, Any], key: str, old: object, new: object
) -> None:
    with pytest.raises(CommandError) as caught:
        resume(folder, changed(recipe, {key: new}))
    first, *rest = str(caught.value).splitlines()
    assert str(folder.path) in first
    assert "name=" in first
    assert "resume.allow_changed=true" in first
    assert rest == [f"  {key}: {old} -> {new}"]


def test_error_for_changed_recipe_lists_at_most_five_lines(folder: RunFolder, recipe: dict[str, Any]) -> None:
    keys = ["data.crop_size", "data.flip", "data.load_size", "data.resize", "ema.decay", "pool.size", "seed"]
    for count, lines in ((4, 4), (5, 5), (6, 5), (7, 5)):
        with pytest.raises(CommandError) as caught:
            resume(folder, changed(recipe, dict.fromkeys(keys[:count], 77)))
        rest = str(caught.value).splitlines()[1:]
        assert len(rest) == lines
    assert rest[-1] == "  and 3 more"


def test_changed_or_reordered_files_give_error_that_describes_changes(
    folder: RunFolder, recipe: dict[str, Any]
) -> None:
    a = {"2.png": 20, "3.png": 31, "4.png": 40, "5.png": 50}
    with pytest.raises(CommandError, match=r"data set.*\n  files of a: 2 added, 1 removed, 1 of another size$"):
        resume(folder, recipe, {"a": a, "b": FILES["b"]})
    with pytest.raises(CommandError, match=r"\n  files of b: in another order$"):
        resume(folder, recipe, {"a": FILES["a"], "b": {"y.png": 50, "x.png": 40}})


def test_run_resumes_if_only_an_unreadable_file_has_another_size(folder: RunFolder, recipe: dict[str, Any]) -> None:
    shorter = {"a": {**FILES["a"], "2.png": 7}, "b": FILES["b"]}
    assert resume(folder, recipe, shorter, bad={"a": {"2.png": "truncated"}}).checkpoint.step == 4
    with pytest.raises(CommandError, match="1 of another size"):
        resume(folder, recipe, shorter, bad={"b": {"2.png": "truncated"}})


def test_run_resumes_if_data_set_was_moved(folder: RunFolder, recipe: dict[str, Any]) -> None:
    moved = changed(recipe, {"data.root": "/elsewhere"})
    assert resume(folder, moved, {side: dict(files) for side, files in FILES.items()}).checkpoint.step == 4


@pytest.mark.parametrize(
    "key", ["generator.channels", "generator.blocks", "generator.upsample", "discriminator.layers"]
)
def test_changed_architecture_is_rejected_even_with_allow_changed(
    folder: RunFolder, recipe: dict[str, Any], key: str
) -> None:
    other = changed(recipe, {key: 9, "optimizer.lr": 1})
    for allow_changed in (False, True):
        run = RunFolder(folder.path, allow_changed=allow_changed)
        with pytest.raises(CheckpointError, match="another architecture") as caught:
            resume(run, other)
        (line,) = str(caught.value).splitlines()[1:]
        assert line.startswith(f"  {key}: ")
        assert line.endswith("-> 9")


def test_run_resumes_if_auto_is_replaced_by_the_automatically_chosen_value(
    folder: RunFolder, recipe: dict[str, Any]
) -> None:
    assert recipe["trainer"]["precision"] == "auto"
    folder.write_config("trainer:\n  precision: bf16\n  batch_size: 7\n")
    assert resume(folder, changed(recipe, {"trainer.precision": "bf16"})).changes == []
    for other in ({"trainer.precision": "fp32"}, {"trainer.batch_size": 7}):
        with pytest.raises(CommandError, match="another recipe"):
            resume(folder, changed(recipe, other))
    folder.write_config("trainer: [")
    assert resume(folder, recipe).changes == []


def test_option_allow_changed_resumes_run_with_changed_recipe_and_files(
    folder: RunFolder, recipe: dict[str, Any]
) -> None:
    run = RunFolder(folder.path, allow_changed=True)
    other = changed(recipe, {"optimizer.lr": 1.0, "pool.size": 3})
    assert resume(run, other, {"a": {"new.png": 1}, "b": {"other.png": 1}}).checkpoint.step == 4


def test_existing_run_is_rejected_with_resume_mode_never(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"not empty and resume\.mode=never: choose another name="):
        RunFolder(folder.path, mode="never")
    (tmp_path / "empty").mkdir()
    failed = RunFolder(tmp_path / "empty", mode="never")
    failed.acquire()
    failed.write_status("failed", code=3, reason="no pictures")
    RunFolder(tmp_path / "empty", mode="never")  # a command that failed before training left no run
    RunFolder(tmp_path / "absent", mode="never").acquire()


def test_folder_that_cannot_be_created_gives_disk_error_with_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DiskError, match=f"cannot write to {tmp_path}/runs/mine: "):
        RunFolder(Path("runs/mine")).acquire()


def test_status_file_holds_state_and_process(folder: RunFolder) -> None:
    folder.read_step_from(lambda: 7)
    folder.write_status("stopped", code=75, reason="SIGTERM")
    assert json.loads((folder.path / "status.json").read_text()) == {
        "state": "stopped", "code": 75, "reason": "SIGTERM", "step": 7, "checkpoint": "step_00000004",
        "host": socket.gethostname(), "pid": os.getpid(),
    }  # fmt: skip


def test_folder_on_file_system_without_locks_is_used_with_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lockf(*_: object) -> None:  # error on a file system without locks
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    RunFolder(tmp_path / "run").acquire()
    assert "cannot be locked (function not implemented): see that nothing else writes there" in capsys.readouterr().err


def test_folder_is_locked_until_locking_process_dies(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    hold = (
        "import sys, pathlib; from cyclestyle.run.folder import RunFolder; run = RunFolder(pathlib.Path(sys.argv[1]));"
        "run.acquire(); run.write_status('running'); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CommandError, match=rf"in use by pid {other.pid} on host .*: wait for it"):
            RunFolder(folder).acquire()
        other.kill()  # without any clean-up, as in a power cut
    RunFolder(folder).acquire()
