"""Read the results in a run folder, and compare the results of two runs."""

import json
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints
from tests.checkpoints.test_directory import equal


def newest(run: Path) -> Checkpoint:
    checkpoint = Checkpoints(run / "checkpoints").load()
    assert checkpoint is not None
    return checkpoint


def status(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "status.json").read_text()))


def ended(run: Path) -> tuple[str, int | None, str | None]:
    fields = status(run)
    return fields["state"], fields["code"], fields["reason"]


def log(run: Path) -> list[dict[str, float]]:
    """Lines of the run's metrics.jsonl, without measured times and speeds."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in lines]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard events of a run: tag of a curve or image -> (step, value); the value of an image is 0."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()
    scalars = {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    images = {tag: [(image.step, 0.0) for image in events.Images(tag)] for tag in events.Tags()["images"]}
    return {**{tag: points for tag, points in scalars.items() if not tag.startswith("speed/")}, **images}


def same_state(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Return whether weights, moving averages, optimizers, image pools, running means and counts are bitwise equal."""
    one, other = ({**checkpoint.training, "recipe": None} for checkpoint in (ours, theirs))
    return (
        ours.step == theirs.step
        and equal(ours.model.tensors, theirs.model.tensors)
        and equal(one, other)
        and equal(ours.ranks, theirs.ranks)
    )


def assert_same_run(ours: Path, theirs: Path, *, stops: bool = False) -> None:
    """Assert that two runs have equal checkpoints, metrics, curves, samples, scores and marks of the best checkpoint.

    Args:
        stops: whether the first run was stopped and resumed, and has therefore saved at more steps.
    """
    if not stops:
        assert sorted(path.name for path in (ours / "checkpoints").iterdir()) == sorted(
            path.name for path in (theirs / "checkpoints").iterdir()
        )
    assert same_state(newest(ours), newest(theirs))
    assert log(ours) == log(theirs)
    for name in ("scores.jsonl", "checkpoints/best"):
        assert (ours / name).exists() == (theirs / name).exists(), name
        assert not (ours / name).exists() or (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    names = [(line["step"], *sorted(line)) for line in log(ours)]
    assert len(names) == len(set(names))  # a step may have lines of tasks, but none twice
    assert [step for step, *_ in names] == sorted(step for step, *_ in names)
    assert curves(ours) == curves(theirs)
    assert {path.name: path.read_bytes() for path in (ours / "samples").iterdir()} == {
        path.name: path.read_bytes() for path in (theirs / "samples").iterdir()
    }
