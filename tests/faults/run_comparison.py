"""What a run has left in its folder, and whether two of them are the same run."""

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints
from tests.checkpoints.test_directory import equal


def newest(run: Path) -> Checkpoint:
    found = Checkpoints(run / "checkpoints").load()
    assert found is not None
    return found


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def ended(run: Path) -> tuple[str, int | None, str | None]:
    told = status(run)
    return told["state"], told["code"], told["reason"]


def log(run: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what clocks say."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: name -> (step, value)."""
    seen = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = {tag: [(point.step, point.value) for point in seen.Scalars(tag)] for tag in seen.Tags()["scalars"]}
    images = {tag: [(shown.step, 0.0) for shown in seen.Images(tag)] for tag in seen.Tags()["images"]}
    return {**{tag: points for tag, points in scalars.items() if not tag.startswith("speed/")}, **images}


def same_state(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Weights, average, optimizers, pools, sums for the next log and counts, bit for bit."""
    one, other = ({**checkpoint.training, "recipe": None} for checkpoint in (ours, theirs))
    return (
        ours.step == theirs.step
        and equal(ours.model.tensors, theirs.model.tensors)
        and equal(one, other)
        and equal(ours.ranks, theirs.ranks)
    )


def assert_same_run(ours: Path, theirs: Path, *, stops: bool = False) -> None:
    """All that two runs have left: checkpoints, numbers, curves, pictures.

    Args:
        stops: the first has been stopped on its way, and then has saved at other steps too.
    """
    if not stops:
        assert sorted(path.name for path in (ours / "checkpoints").iterdir()) == sorted(
            path.name for path in (theirs / "checkpoints").iterdir()
        )
    assert same_state(newest(ours), newest(theirs))
    assert log(ours) == log(theirs)
    assert [line["step"] for line in log(ours)] == sorted({line["step"] for line in log(ours)})
    assert curves(ours) == curves(theirs)
    assert {path.name: path.read_bytes() for path in (ours / "samples").iterdir()} == {
        path.name: path.read_bytes() for path in (theirs / "samples").iterdir()
    }
