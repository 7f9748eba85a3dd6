"""Extensions from a user's own folder: each trains in one process and in two, and resumes bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints, read
from tests.extending.training import EXTENSIONS, HALF, STEPS

PROGRAM = Path(__file__).parent / "training.py"
PROCESSES = [1, 2]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs with all extensions: number of processes -> folder of the runs."""
    folders = {}
    for processes in PROCESSES:
        root = tmp_path_factory.mktemp(f"extensions-{processes}")
        random = np.random.default_rng(0)
        for side in "AB":
            (root / f"train{side}").mkdir()
            for index in range(6):
                pixels = random.integers(0, 256, (36, 36, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"train{side}" / f"{index}.png")
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*(start if processes > 1 else [sys.executable]), str(PROGRAM), str(root)]
        environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-3000:]
        folders[processes] = root / "runs"
    return folders


def newest(run: Path) -> Checkpoint:
    path = Checkpoints(run / "checkpoints").newest()
    assert path is not None
    return read(path)


def assert_equal(actual: object, expected: object, where: str) -> None:
    """Compare two nested states bit for bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_equal(actual[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for index, value in enumerate(expected):
            assert_equal(actual[index], value, f"{where}[{index}]")
    else:
        assert actual == expected, where


@pytest.mark.parametrize("processes", PROCESSES)
def test_run_with_extension_resumes_bit_exactly(runs: dict[int, Path], processes: int) -> None:
    for name in EXTENSIONS:
        straight, resumed = (newest(runs[processes] / run) for run in (name, f"{name}-resumed"))
        assert len(straight.ranks) == processes
        assert_equal(resumed.model.tensors, straight.model.tensors, name)
        for state in (straight.training, resumed.training):
            del state["recipe"]  # holds the run's folder
        assert_equal(resumed.training, straight.training, name)
        assert_equal(resumed.ranks, straight.ranks, name)


@pytest.mark.parametrize("processes", PROCESSES)
def test_only_extensions_that_act_on_training_change_the_weights(runs: dict[int, Path], processes: int) -> None:
    weights = {name: newest(runs[processes] / name).model.tensors for name in EXTENSIONS}
    key = "generators.ab.stem.conv.weight"
    same = {"kid", "service", "late-average", "plain"}  # these only watch
    plain = weights["plain"][key]
    assert {name for name, tensors in weights.items() if torch.equal(tensors[key], plain)} == same


@pytest.mark.parametrize("processes", PROCESSES)
def test_extra_losses_and_both_learning_rates_are_logged(runs: dict[int, Path], processes: int) -> None:
    expected = {
        "patchnce": {"loss/nce_ab", "loss/nce_ba"},
        "r1": {"loss/r1_a", "loss/r1_b"},
        "perceptual": {"loss/content_ab", "loss/content_ba"},
        "two-rates": {"lr", "lr_discriminators"},
    }
    for name, keys in expected.items():
        assert keys <= logged(runs[processes] / name)[-1].keys(), name
    rates = logged(runs[processes] / "two-rates")[-1]
    assert (rates["lr"], rates["lr_discriminators"]) == pytest.approx((1e-4, 4e-4))


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", PROCESSES)
def test_head_networks_of_a_loss_term_are_trained_and_saved(runs: dict[int, Path], processes: int) -> None:
    halves = Checkpoints(runs[processes] / "patchnce-resumed" / "checkpoints")
    before, after = (read(halves.path_of(step)).training["objective"]["terms"]["nce"] for step in (HALF, STEPS))
    assert set(after) == {f"heads.{i}.{j}.{kind}" for i in (0, 1) for j in (0, 2) for kind in ("weight", "bias")}
    assert not torch.equal(before["heads.0.0.weight"], after["heads.0.0.weight"])


@pytest.mark.parametrize("processes", PROCESSES)
def test_best_checkpoint_has_lowest_logged_kid(runs: dict[int, Path], processes: int) -> None:
    for run in ("kid", "kid-resumed"):
        values = {int(line["step"]): line["kid"] for line in logged(runs[processes] / run) if "kid" in line}
        assert sorted(values) == list(range(STEPS + 1))
        trained = {step: value for step, value in values.items() if step}
        best = Checkpoints(runs[processes] / run / "checkpoints").best()
        assert (best.step, best.value) == min(trained.items(), key=lambda item: item[1])
        assert best.path.is_dir()


@pytest.mark.parametrize("processes", PROCESSES)
def test_user_logger_gets_config_values_and_pictures(runs: dict[int, Path], processes: int) -> None:
    folder = runs[processes] / "service" / "service" / "mine"
    assert json.loads((folder / "config.json").read_text())["trainer"]["batch_size"] == 2
    assert len((folder / "scalars.jsonl").read_text().splitlines()) == STEPS
    assert {path.name for path in folder.glob("*.png")} == {"0.png", f"{STEPS}.png"}


def test_example_modules_have_at_most_40_lines() -> None:
    for path in (PROGRAM.parent / "user").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 40, path.name
