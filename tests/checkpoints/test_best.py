"""The best checkpoint: its pointer file, the rule for a better value, pruning, and paths that end in best or latest."""

import json
import math
import threading
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cyclestyle import export
from cyclestyle.checkpoints.best import Best, BestCheckpoint
from cyclestyle.checkpoints.directory import Checkpoints, read_model
from cyclestyle.checkpoints.writer import CheckpointWriter
from cyclestyle.distributed.world import World
from cyclestyle.errors import CheckpointError
from tests.checkpoints.test_directory import damage, save, steps
from tests.checkpoints.test_writer import full, snapshot


def saved(folder: Path, *at: int, keep: int = 3) -> Checkpoints:
    for step in at:
        save(folder, step, keep=keep)
    return Checkpoints(folder, keep=keep)


def test_file_named_best_has_folder_in_first_line_and_number_in_second(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    assert checkpoints.best() is None
    checkpoints.mark_best(2, name="größe", value=0.25, mode="max")
    first, second = (tmp_path / "best").read_text(encoding="utf-8").splitlines()
    assert first == "step_00000002"
    assert json.loads(second) == {"name": "größe", "mode": "max", "value": 0.25, "step": 2}
    assert Checkpoints(tmp_path).best() == Best(tmp_path / "step_00000002", 2, "größe", 0.25, "max")


def test_best_mark_keeps_interval_and_number_of_evaluations(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2)
    BestCheckpoint(checkpoints, best="kid").record(2, 0.25, interval=(0.125, 0.5), evaluations=7)
    record = json.loads((tmp_path / "best").read_text().splitlines()[1])
    assert (record["low"], record["high"], record["evaluations"]) == (0.125, 0.5, 7)
    assert Checkpoints(tmp_path).best() == Best(
        tmp_path / "step_00000002", 2, "kid", 0.25, "min", interval=(0.125, 0.5), evaluations=7
    )


def test_best_mark_of_an_earlier_version_is_read_without_interval(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2)
    (tmp_path / "best").write_text('step_00000002\n{"name": "kid", "mode": "min", "value": 0.25, "step": 2}\n')
    assert checkpoints.best() == Best(tmp_path / "step_00000002", 2, "kid", 0.25, "min", None, None)
    assert not BestCheckpoint(checkpoints, best="kid").improves(0.3)


def test_best_checkpoint_is_never_pruned_until_another_is_best(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, keep=2)
    checkpoints.mark_best(2, name="kid", value=0.5)
    saved(tmp_path, 4, 6, 8, keep=2)
    assert steps(tmp_path) == ["step_00000002", "step_00000006", "step_00000008"]
    checkpoints.mark_best(8, name="kid", value=0.4)
    assert steps(tmp_path) == ["step_00000006", "step_00000008"]


def test_best_checkpoint_is_not_resumed_if_a_newer_one_exists(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    checkpoints.mark_best(2, name="kid", value=0.5)
    assert checkpoints.newest() == tmp_path / "step_00000004"
    assert checkpoints.load().step == 4


def test_marking_missing_checkpoint_as_best_warns_and_keeps_former_mark(tmp_path: Path) -> None:
    checkpoints, warnings = saved(tmp_path, 2), []
    checkpoints.mark_best(2, name="kid", value=0.5)
    checkpoints.mark_best(4, name="kid", value=0.25, warn=warnings.append)
    assert warnings == [f"no checkpoint of step 4 in {tmp_path}: it cannot be marked as best by kid=0.25"]
    assert checkpoints.best().step == 2


def test_unwritable_best_mark_gives_warning_and_run_continues(tmp_path: Path) -> None:
    checkpoints, warnings = saved(tmp_path, 2, keep=2), []
    (tmp_path / "best").mkdir()  # a folder where the pointer file would be
    checkpoints.mark_best(2, name="kid", value=0.5, warn=warnings.append)
    assert warnings == [f"cannot write {tmp_path}/best: is a directory; the former mark remains"]
    assert checkpoints.best() is None
    saved(tmp_path, 4, 6, keep=2)
    assert steps(tmp_path) == ["step_00000004", "step_00000006"]


def test_unreadable_best_mark_prevents_pruning_of_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, keep=2).mark_best(2, name="kid", value=0.5)
    aside = (tmp_path / "best").rename(tmp_path / "aside")
    (tmp_path / "best").symlink_to("best")  # reading fails with an OSError: too many levels of symbolic links
    saved(tmp_path, 6, keep=2)
    assert steps(tmp_path) == ["step_00000002", "step_00000004", "step_00000006"]
    aside.replace(tmp_path / "best")
    saved(tmp_path, 8, keep=2)
    assert steps(tmp_path) == ["step_00000002", "step_00000006", "step_00000008"]


@given(st.binary(max_size=60) | st.text(max_size=30).map(lambda text: f"step_00000002\n{text}".encode()))
@example(b"step_00000002")
@example(b"step_00000002\n{}")
@example(b'step_00000002\n{"name": "kid", "mode": "best", "value": 1, "step": 2}')
@example(b'step_00000002\n{"name": "kid", "mode": [], "value": 1, "step": 2}')
@example(b'step_00000002\n{"name": "kid", "mode": "min", "value": "low", "step": 2}')
@example(b'step_00000002\n{"name": "kid", "mode": "min", "value": 1, "step": Infinity}')
@example(b'step_00000002\n{"name": "kid", "mode": "min", "value": 1, "step": 2, "low": 0, "high": "x"}')
@example(b'step_00000002\n{"name": "kid", "mode": "min", "value": 1, "step": 2, "low": 0}')
@example(b'step_00000003\n{"name": "kid", "mode": "min", "value": 1, "step": 3}')
@example(b'../step_00000002\n{"name": "kid", "mode": "min", "value": 1, "step": 2}')
@example(b"step_00000002\n" + b"[" * 100_000)
def test_malformed_best_mark_or_missing_folder_gives_no_best_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    folder = tmp_path_factory.mktemp("run")
    (folder / "step_00000002").mkdir()
    (folder / "step_00000002" / "manifest.json").touch()
    (folder / "best").write_bytes(text)
    assert Checkpoints(folder).best() is None


def test_damaged_best_checkpoint_is_set_aside_and_any_next_value_is_an_improvement(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2, 4)
    checkpoints.mark_best(4, name="kid", value=0.5)
    damage(tmp_path / "step_00000004" / "training.pt")
    assert checkpoints.load(repair=True, warn=lambda _: None).step == 2
    assert checkpoints.best() is None
    assert BestCheckpoint(checkpoints, best="kid").improves(0.9)
    saved(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "latest", "step_00000002", "step_00000006"]


@pytest.mark.parametrize(
    ("mode", "better", "worse"), [("min", [0.4, -math.inf], [0.5, 0.6, math.inf]), ("max", [0.6], [0.5, 0.4])]
)
def test_improvement_requires_strictly_better_value(
    tmp_path: Path, mode: str, better: list[float], worse: list[float]
) -> None:
    best = BestCheckpoint(saved(tmp_path, 2), best="kid", mode=mode)
    assert not best.improves(math.nan)
    assert best.improves(0.5)
    best.record(2, 0.5)
    again = BestCheckpoint(Checkpoints(tmp_path), best="kid", mode=mode)  # as after a resume
    for decision in (best, again):
        assert all(map(decision.improves, better))
        assert not any(map(decision.improves, [*worse, math.nan]))


def test_first_value_of_other_name_or_mode_is_an_improvement(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 2)
    BestCheckpoint(checkpoints, best="kid").record(2, 0.5)
    assert not BestCheckpoint(checkpoints, best="kid").improves(0.9)
    assert BestCheckpoint(checkpoints, best="fid").improves(0.9)
    assert BestCheckpoint(checkpoints, best="kid", mode="max").improves(0.1)
    assert not BestCheckpoint(checkpoints, best="fid").improves(math.nan)
    assert not BestCheckpoint(checkpoints, best=None).improves(0.1)


def test_best_mark_is_written_after_asynchronous_save_completes(tmp_path: Path) -> None:
    entered, gate = threading.Event(), threading.Event()

    class Slow(World):
        """World whose `any` waits until the test opens the gate."""

        def duplicate(self) -> World:
            return self

        def any(self, flag: bool, *, no_timeout: bool = False) -> bool:
            entered.set()
            assert gate.wait(60)
            return flag

    checkpoints = Checkpoints(tmp_path)
    writer = CheckpointWriter(checkpoints, world=Slow(), asynchronous=True, warn=pytest.fail)
    best = BestCheckpoint(writer, best="kid")
    writer.save(lambda: snapshot(1))
    assert entered.wait(60)
    # Returns although the checkpoint is not yet on the disk.
    best.record(1, 0.5, interval=(0.25, 0.75), evaluations=1)
    assert checkpoints.newest() is None
    assert checkpoints.best() is None
    assert not best.improves(0.6)
    assert writer.best().interval == (0.25, 0.75)
    gate.set()
    writer.save(lambda: snapshot(2), last=True)
    assert checkpoints.best() == Best(tmp_path / "step_00000001", 1, "kid", 0.5, "min", (0.25, 0.75), 1)
    assert not best.improves(0.6)
    assert best.improves(0.4)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_failed_save_is_not_marked_and_next_value_is_compared_with_former_mark(
    tmp_path: Path, asynchronous: bool
) -> None:
    folder, warnings = tmp_path / "checkpoints", []
    full(folder)
    writer = CheckpointWriter(Checkpoints(folder), world=World(), asynchronous=asynchronous, warn=warnings.append)
    best = BestCheckpoint(writer, best="kid")
    writer.save(lambda: snapshot(1))
    best.record(1, 0.5)
    writer.finish()
    assert [line for line in warnings if "cannot be marked" in line]
    folder.unlink()
    writer.save(lambda: snapshot(2))
    assert best.improves(0.6)
    best.record(2, 0.6)
    writer.finish()
    assert writer.best().value == 0.6


def test_model_is_read_from_path_that_ends_in_best_or_latest(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    saved(run / "checkpoints", 2, 4).mark_best(2, name="kid", value=0.5)
    for name, step in (("best", 2), ("latest", 4)):
        for path in (run / name, run / "checkpoints" / name):
            assert read_model(path).step == step
            assert read_model(path).path.parent.name == f"step_0000000{step}"
    (run / "checkpoints" / "best").write_text("step_00000004")  # written by hand
    assert read_model(run / "best").step == 4


def test_run_folder_named_best_is_read_as_a_run(tmp_path: Path) -> None:
    saved(tmp_path / "best" / "checkpoints", 2, 4)
    assert read_model(tmp_path / "best").step == 4


def test_error_for_run_without_best_checkpoint_names_remedy(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    checkpoints = saved(run / "checkpoints", 2, 4)
    remedy = f"train with checkpoint.best=NAME of a logged number, or give {run} for the newest checkpoint"
    with pytest.raises(CheckpointError, match=rf"^{run} has no best checkpoint, none was marked: {remedy}$"):
        read_model(run / "best")
    checkpoints.mark_best(4, name="kid", value=0.5)
    (run / "checkpoints" / "step_00000004").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="has no best checkpoint, its pointer names no complete checkpoint: "):
        read_model(run / "best")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_model(tmp_path / "best")


def test_damaged_best_or_latest_model_is_reported(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints", 2, 4).mark_best(4, name="kid", value=0.5)
    damage(tmp_path / "checkpoints" / "step_00000004" / "networks.safetensors")
    with pytest.raises(CheckpointError, match="checksum mismatch"):
        read_model(tmp_path / "best")
    warnings: list[str] = []
    assert read_model(tmp_path / "latest", warn=warnings.append).step == 2
    assert len(warnings) == 1


def test_best_checkpoint_is_exported_to_folder_exported_of_its_run(tmp_path: Path) -> None:
    run = tmp_path / "mine"
    saved(run / "checkpoints", 2).mark_best(2, name="kid", value=0.5)
    model = run / "checkpoints" / "step_00000002" / "networks.safetensors"
    assert export.destination(run / "best", model) == run / "exported"  # no config.yaml: not known to be a run
    (run / "config.yaml").touch()
    for path in (run, run / "best", run / "checkpoints" / "best"):
        assert export.destination(path, model) == run / "exported"
