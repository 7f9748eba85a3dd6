"""Tests of training, evaluation and export from Python: results, errors, threads, signals, and settings left behind."""

import inspect
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import cyclestyle
from cyclestyle import TrainingResult, load, run_evaluation, run_export, run_training
from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CheckpointError, CommandError, DataError, DivergedError
from cyclestyle.evaluate import evaluate
from cyclestyle.export import export
from cyclestyle.monitor import Console
from cyclestyle.signals import STOP_SIGNALS
from cyclestyle.translation import Translator

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 120
Train = Callable[..., TrainingResult]


@pytest.fixture(autouse=True)
def _interrupts_have_their_usual_effect() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, also if the tests run as a background job, for which shells ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    draw(root, train=8, test=2, size=32)
    return root


@pytest.fixture
def smoke(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Function that calls `run_training("+experiment=smoke", ...)`; the working directory is the test's folder."""
    monkeypatch.chdir(tmp_path)
    settings = {"data.root": scenes, "trainer.device": "cpu", "logger.tensorboard": None}
    return lambda *overrides: run_training("+experiment=smoke", settings, *overrides)


def weights(run: str | Path) -> dict[str, Tensor]:
    checkpoint = Checkpoints(Path(run) / "checkpoints").load()
    assert checkpoint is not None
    return checkpoint.model.tensors


HOOKS: dict[int, Callable[[], object]] = {}


class Hooked(Console):
    """Console that calls a function when it logs the step in `HOOKS`: step -> function."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        super().metrics(step, values)
        if step in HOOKS:
            HOOKS.pop(step)()


def at_step(step: int, action: Callable[[], object]) -> dict[str, object]:
    """Overrides of a run that calls `action` when it logs this step."""
    HOOKS[step] = action
    return {"logger.console._target_": f"{__name__}.Hooked"}


# -------------------------------------------------------------------------------------------------- results, errors


def test_result_has_status_step_folder_and_last_values(smoke: Train, capsys: pytest.CaptureFixture[str]) -> None:
    result = smoke({"name": "mine"})
    assert result[:3] == ("finished", 4, Path("runs/mine"))
    *_, last = [json.loads(line) for line in Path("runs/mine/metrics.jsonl").read_text().splitlines()]
    assert last.pop("step") == 4
    assert result.values == last
    assert "finished at step 4: runs/mine" in capsys.readouterr().out


def test_same_call_resumes_and_equals_uninterrupted_run(smoke: Train) -> None:
    assert smoke({"name": "one", "trainer.steps": 2}).step == 2
    assert smoke({"name": "one", "trainer.steps": 5}).step == 5
    assert smoke({"name": "other", "trainer.steps": 5}).step == 5
    assert equal(weights("runs/one"), weights("runs/other"))
    before = Path("runs/one/status.json").stat().st_mtime_ns
    assert smoke({"name": "one", "trainer.steps": 5})[:2] == ("finished", 5)
    assert Path("runs/one/status.json").stat().st_mtime_ns == before


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_failures_raise_errors_with_exit_code_of_command(smoke: Train, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"did you mean trainer\.steps"):
        smoke({"trainer.step": 3})
    with pytest.raises(DataError, match="no folder"):
        run_training({"data.root": tmp_path / "none", "trainer.device": "cpu"})
    with pytest.raises(DivergedError, match="step 2"):
        smoke({"optimizer.lr": 1e30, "name": "diverged", "trainer.precision": "fp32"})
    assert json.loads(Path("runs/diverged/status.json").read_text())["code"] == 5
    smoke({"name": "small"})
    with pytest.raises(CheckpointError, match="another architecture"):
        smoke({"name": "small", "generator.channels": 8})


def test_run_folder_is_free_again_after_a_failure(smoke: Train) -> None:
    errors = []  # keeps the traceback, and with it the objects of the failed run
    for _ in range(2):
        with pytest.raises(DivergedError) as caught:
            smoke({"optimizer.lr": 1e30, "name": "diverged", "trainer.precision": "fp32"})
        errors.append(caught)
    code = "from pathlib import Path; from cyclestyle.filesystem.lock import Lock; print(Lock(Path('lock')).acquire())"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.run(command, cwd="runs/diverged", env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "True"


def test_evaluation_export_and_load_give_results_of_commands(smoke: Train, scenes: Path, tmp_path: Path) -> None:
    run = smoke().folder
    scores = run_evaluation(run, scenes / "testA", truth=scenes / "testB", direction="a2b", device="cpu")
    assert [direction.direction for direction in scores.directions] == ["photo2painting"]
    truth = scores.find("photo2painting").find("truth_psnr")
    assert (truth.n, truth.value > 0) == (2, True)
    assert scores == evaluate(run, scenes / "testA", truth=scenes / "testB", direction="a2b", device="cpu")
    files = run_export(run, output=tmp_path / "out")
    assert [file.name for file in files] == ["photo2painting.safetensors", "painting2photo.safetensors"]
    assert load(files[0], device="cpu").fingerprint == load(run, "a2b", device="cpu").fingerprint


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: load(run, "a2b", device="gpu"), "device=gpu: expected auto, cpu, cuda or mps"),
        (lambda run: load(run, "a2b", precision="fp8"), "precision=fp8: expected auto, fp32, bf16 or fp16"),
        (lambda run: load(run, "a2c"), "a2c"),
        (lambda run: run_evaluation(run, "photos", batch_size=0.5), "batch_size=0.5: expected a whole number"),
        (lambda run: run_export(run, format="onxx"), "format=onxx: expected safetensors, reference or onnx"),
    ],
)
def test_invalid_argument_is_a_command_error(smoke: Train, call: Callable[[Path], object], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        call(smoke("trainer.steps=1").folder)


@pytest.mark.parametrize(("function", "command"), [(run_evaluation, evaluate), (run_export, export)])
def test_api_function_has_parameters_and_defaults_of_its_command(function: Any, command: Any) -> None:
    signatures = [inspect.signature(one, eval_str=False).parameters for one in (function, command)]
    one, other = ({name: parameter.default for name, parameter in each.items()} for each in signatures)
    assert one == other


def test_load_function_has_parameters_and_defaults_of_translator_load_method() -> None:
    ours, theirs = (dict(inspect.signature(one).parameters) for one in (load, Translator.load))
    del theirs["world"]  # for several processes
    assert {name: one.default for name, one in ours.items()} == {name: one.default for name, one in theirs.items()}


def test_import_of_package_loads_no_libraries() -> None:
    code = "import sys, cyclestyle; dir(cyclestyle); print({'torch', 'hydra', 'typing', 'PIL'} & sys.modules.keys())"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "set()"
    assert set(cyclestyle.__all__) <= set(dir(cyclestyle))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = cyclestyle.trian


# -------------------------------------------------------------------------------------------------- threads


def test_concurrent_trainings_in_threads_equal_a_single_training(smoke: Train) -> None:
    settings = {"trainer.threads": 1, "data.workers": 1}
    smoke(settings, {"name": "alone"})
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda name: smoke(settings, {"name": name}), ("x", "y")))
    assert [result[:2] for result in results] == [("finished", 4)] * 2
    assert equal(weights("runs/x"), weights("runs/alone"))
    assert equal(weights("runs/y"), weights("runs/alone"))


def test_training_in_thread_stops_if_stop_file_is_created(smoke: Train, tmp_path: Path) -> None:
    stop = at_step(3, (tmp_path / "runs/smoke/stop").touch)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(smoke, {"trainer.steps": 1000}, stop).result(DEADLINE_S)
    assert result.status == "stopped"
    assert result.step in (3, 4)  # a run also finishes the step whose batch it has
    assert not (tmp_path / "runs/smoke/stop").exists()
    assert smoke({"trainer.steps": 5})[:2] == ("finished", 5)


def test_folder_in_use_by_another_thread_is_a_command_error(smoke: Train) -> None:
    caught: list[str] = []

    def train_in_same_folder() -> None:
        with pytest.raises(CommandError) as error:
            smoke({"run_dir": "runs/../runs/smoke"})
        caught.append(str(error.value))

    assert smoke(at_step(2, train_in_same_folder)).status == "finished"
    assert caught == ["runs/../runs/smoke is in use by this process: wait for it, or choose another name="]


# -------------------------------------------------------------------------------------------------- signals


def test_interrupt_saves_then_raises_keyboard_interrupt(smoke: Train) -> None:
    with pytest.raises(KeyboardInterrupt):
        smoke({"trainer.steps": 1000}, at_step(3, lambda: signal.raise_signal(signal.SIGINT)))
    status = json.loads(Path("runs/smoke/status.json").read_text())
    assert [status[key] for key in ("state", "code", "reason")] == ["stopped", 75, "SIGINT"]
    assert status["step"] in (3, 4)  # a run also finishes the step whose batch it has
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert smoke({"trainer.steps": 5})[:2] == ("finished", 5)


def test_second_interrupt_raises_at_once_and_control_returns(smoke: Train) -> None:
    def interrupt_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("unreachable")

    with pytest.raises(KeyboardInterrupt):
        smoke({"trainer.steps": 1000}, at_step(3, interrupt_twice))
    status = json.loads(Path("runs/smoke/status.json").read_text())
    assert (status["state"], status["code"]) == ("stopped", 130)
    assert smoke({"trainer.steps": 4})[:2] == ("finished", 4)  # the folder is free


def test_signal_stops_training_and_reaches_custom_handler(smoke: Train) -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        result = smoke({"trainer.steps": 1000}, at_step(2, lambda: signal.raise_signal(signal.SIGUSR1)))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert (result.status, result.step) in (("stopped", 2), ("stopped", 3))
    assert received == [signal.SIGUSR1]


# -------------------------------------------------------------------------------------------------- settings


def settings_of_process() -> dict[str, object]:
    return {
        "threads": torch.get_num_threads(),
        "random numbers": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32),
        "dtype": torch.get_default_dtype(),
        "folder": Path.cwd(),
        "arguments": list(sys.argv),
        "hooks": (sys.excepthook, threading.excepthook),
        "signals": [signal.getsignal(number) for number in STOP_SIGNALS],
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "logging": logging.root.manager.disable,
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@pytest.mark.parametrize("fails", [False, True], ids=["finished", "failed"])
def test_training_restores_settings_of_process(smoke: Train, fails: bool) -> None:
    smoke("trainer.steps=1", "name=first")  # PyTorch's late imports change warning filters and environment once
    torch.set_num_threads(2)
    torch.manual_seed(7)
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = settings_of_process()
    try:
        settings = {"trainer.threads": 1, "trainer.deterministic": True, "trainer.profile": True, "ema.decay": 0.9}
        if fails:
            with pytest.raises(DivergedError):
                smoke(settings, {"optimizer.lr": 1e30, "trainer.precision": "fp32"})
        else:
            smoke(settings)
        assert settings_of_process() == before
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(1)


def test_overlapping_trainings_restore_settings_when_last_ends(smoke: Train) -> None:
    smoke("trainer.steps=1", "name=first")
    torch.set_num_threads(2)
    before = settings_of_process()
    try:
        with ThreadPoolExecutor(1) as pool:
            inner = {"name": "inner", "trainer.threads": 1, "logger.console": None}
            futures = []
            smoke({"trainer.threads": 1}, at_step(2, lambda: futures.append(pool.submit(smoke, inner))))
            assert futures[0].result(DEADLINE_S).status == "finished"
        assert settings_of_process() == before
    finally:
        torch.set_num_threads(1)
