"""Tests of the train command: the files that it writes, resume, errors, exit codes, threads."""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclestyle import assembly, train
from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints, read_model
from cyclestyle.checkpoints.model import write_model
from cyclestyle.data import UnpairedFolders
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.hardware import threads
from cyclestyle.run.folder import Done, RunFolder
from tests.checkpoints.test_directory import equal
from tests.factories import tiny_trainer
from tests.pictures import two_domains

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 120  # limit for work that takes seconds on an idle machine
Command = Callable[..., int]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the images for `+experiment=smoke`, which are generated once."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    draw(root, train=8, test=2, size=32)
    return root


@pytest.fixture
def smoke(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Function that runs `cyclestyle.train +experiment=smoke ...` in this process and returns the exit code.

    The working directory is an empty folder at the start of the test.
    """
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> int:
        return run("+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu", *arguments)

    return command


def run(*arguments: str) -> int:
    """Run `cyclestyle.train` in this process; return the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as exiting:
            train.main()
    assert isinstance(exiting.value.code, int)
    return exiting.value.code


def run_program(*arguments: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `python -m cyclestyle.train` in another process, which can start itself again for several devices."""
    command = [sys.executable, "-m", "cyclestyle.train", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)


def newest(folder: str | Path) -> Checkpoint:
    checkpoint = Checkpoints(Path(folder) / "checkpoints").load()
    assert checkpoint is not None
    return checkpoint


def same(first: Checkpoint, second: Checkpoint) -> bool:
    """Return whether weights, optimizer states, image pools and counts are bitwise equal in two checkpoints."""
    states = [{**checkpoint.training, "recipe": None} for checkpoint in (first, second)]
    return (
        first.step == second.step
        and equal(first.model.tensors, second.model.tensors)
        and equal(*states)
        and equal(first.ranks, second.ranks)
    )


def status(folder: str | Path) -> dict[str, Any]:
    return dict(json.loads((Path(folder) / "status.json").read_text()))


def log(folder: str | Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def events(folder: str | Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()


def snapshot(folder: Path, *, but: str = "") -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != but]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


# -------------------------------------------------------------------------------------------------- files


def test_run_writes_only_its_folder_and_repeated_command_writes_nothing(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("ema.decay=0.9") == 0
    folder = tmp_path / "runs" / "smoke"
    output = capsys.readouterr().out
    assert "8 photo, 8 painting" in output
    assert "global batch 1, CPU" in output
    assert "direction=photo2painting" in output

    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_dir()] != []
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {
        "config", "status", "starts", "metrics", "events", "samples", "checkpoints", "lock",
    }  # fmt: skip
    config = OmegaConf.load(folder / "config.yaml")
    assert config.trainer.device == "cpu"
    assert config.trainer.precision in ("fp32", "bf16")  # value that auto was resolved to
    assert config.run_dir == "runs/smoke"
    assert "${" not in (folder / "config.yaml").read_text()
    assert {key: status(folder)[key] for key in ("state", "code", "step")} == {
        "state": "finished",
        "code": 0,
        "step": 4,
    }
    assert [line["step"] for line in log(folder)] == [1, 2, 3, 4]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        f"step_0000000{step}_{direction}.jpg"
        for step in (0, 2, 4)
        for direction in ("painting2photo", "photo2painting")
    ]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "latest",
        "step_00000002",
        "step_00000004",
    ]
    model = read_model(folder)
    assert model.domains == ("photo", "painting")
    assert model.generators["ab"]["name"] == model.generators["ba"]["name"] == "resnet"
    assert {key.split(".")[0] for key in model.tensors} == {"generators", "discriminators", "ema"}

    written = events(folder)
    terms = ["gan_ab", "gan_ba", "cycle_a", "cycle_b", "identity_a", "identity_b", "discriminator_a", "discriminator_b"]
    scores = ["real_a", "fake_a", "real_b", "fake_b"]
    expected = {*(f"loss/{term}" for term in terms), *(f"score/{score}" for score in scores), "lr"}
    expected |= {"speed/images_per_s", "speed/waiting_for_data"}
    assert expected <= set(written.Tags()["scalars"])
    assert [point.step for point in written.Scalars("loss/gan_ab")] == [1, 2, 3, 4]
    assert written.Scalars("lr")[0].value == pytest.approx(0.0002)
    assert set(written.Tags()["images"]) == {"photo2painting", "painting2photo"}

    before = snapshot(tmp_path)
    assert smoke("ema.decay=0.9") == 0
    assert "finished at step 4; set trainer.epochs or trainer.steps higher" in capsys.readouterr().out
    assert snapshot(tmp_path) == before


def test_epochs_are_converted_to_steps(smoke: Command, tmp_path: Path) -> None:
    assert smoke("trainer.steps=null", "trainer.epochs=2", "trainer.batch_size=4", "logger.tensorboard=null") == 0
    assert newest("runs/smoke").training["draws"] == 16  # 2 epochs of 8 images
    assert log("runs/smoke")[-1]["epoch"] == 2.0
    assert not list((tmp_path / "runs/smoke").glob("events*"))


# -------------------------------------------------------------------------------------------------- resume

RESUMED = ("trainer.batch_size=2", "pool.size=3", "ema.decay=0.9", "logger.tensorboard=null")


def test_resume_is_bit_exact_with_any_number_of_workers(smoke: Command) -> None:
    assert smoke(*RESUMED, "name=straight", "trainer.steps=8") == 0
    assert smoke(*RESUMED, "name=twice", "trainer.steps=4", "data.workers=0") == 0
    assert smoke(*RESUMED, "name=twice", "trainer.steps=8", "data.workers=1") == 0

    straight, twice = newest("runs/straight"), newest("runs/twice")
    assert straight.step == 8
    assert same(twice, straight)
    assert len(twice.ranks[0]["pools"]["a"]) == 2
    assert any(key.startswith("ema.") for key in twice.model.tensors)
    speeds = {"speed/images_per_s", "speed/waiting_for_data"}
    for resumed, expected in zip(log("runs/twice"), log("runs/straight"), strict=True):
        keys = resumed.keys() - speeds
        assert {key: resumed[key] for key in keys} == {key: expected[key] for key in keys}


@pytest.mark.parametrize("last", [4, 0])
def test_resume_from_older_checkpoint_logs_each_step_once(smoke: Command, last: int) -> None:
    assert smoke("trainer.steps=6") == 0
    checkpoints = Path("runs/smoke/checkpoints")
    for folder in checkpoints.glob("step_*"):  # simulates a kill before these checkpoints were written
        if int(folder.name[5:]) > last:
            folder.rename(checkpoints / f"gone {folder.name}")
    assert smoke("trainer.steps=8") == 0

    assert [line["step"] for line in log("runs/smoke")] == [1, 2, 3, 4, 5, 6, 7, 8]
    written = events("runs/smoke")
    for tag in written.Tags()["scalars"]:
        assert [point.step for point in written.Scalars(tag)] == [1, 2, 3, 4, 5, 6, 7, 8], tag
    for tag in written.Tags()["images"]:
        assert [image.step for image in written.Images(tag)] == [0, 2, 4, 6, 8], tag
    for line, point in zip(log("runs/smoke"), written.Scalars("loss/cycle_a"), strict=True):
        assert line["loss/cycle_a"] == pytest.approx(point.value)


def test_extended_run_keeps_log_line_and_samples_of_former_last_step(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke() == 0
    lines, files = log("runs/smoke"), snapshot(tmp_path / "runs/smoke/samples")
    speed = events("runs/smoke").Scalars("speed/images_per_s")
    assert smoke("trainer.steps=6", "pool.size=7") == 2  # a rejected command changes nothing
    capsys.readouterr()
    assert smoke("trainer.steps=6") == 0
    output = capsys.readouterr().out
    assert "step 4/6" not in output
    assert "step 5/6" in output

    assert log("runs/smoke")[:4] == lines
    assert [line["step"] for line in log("runs/smoke")] == [1, 2, 3, 4, 5, 6]
    assert snapshot(tmp_path / "runs/smoke/samples").items() >= files.items()
    written = events("runs/smoke")
    assert [point.value for point in written.Scalars("speed/images_per_s")[:4]] == [point.value for point in speed]
    for tag in written.Tags()["images"]:
        assert [image.step for image in written.Images(tag)] == [0, 2, 4, 6], tag


def test_extended_run_has_the_losses_of_an_uninterrupted_one(smoke: Command) -> None:
    """The run ends at a step between two regular logs: its line stays, and the next regular one covers both parts."""
    quick = ("logger.tensorboard=null", "trainer.log_every=3", "trainer.sample_every=3")
    assert smoke(*quick, "trainer.steps=4") == 0
    assert smoke(*quick, "trainer.steps=6") == 0
    assert smoke(*quick, "name=straight", "trainer.steps=6") == 0
    extended = {line["step"]: line["loss/cycle_a"] for line in log("runs/smoke")}
    straight = {line["step"]: line["loss/cycle_a"] for line in log("runs/straight")}
    assert list(extended) == [3, 4, 6]
    assert {step: extended[step] for step in (3, 6)} == straight


@pytest.mark.parametrize("every", [1, 3])
def test_run_stopped_on_request_logs_each_step_once(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], every: int
) -> None:
    """The log of a stop stays only where a log is due; elsewhere the next regular one replaces it."""
    often = (f"trainer.log_every={every}", "trainer.steps=6", "logger.tensorboard=null")
    stopping = "logger.console._target_=tests.custom_parts.StopAt"
    assert smoke(*often, stopping, "logger.console.step=3") == 75
    stopped = log("runs/smoke")[-1]
    assert stopped["step"] == 3
    capsys.readouterr()
    assert smoke(*often) == 0
    assert "step 3/6" not in capsys.readouterr().out
    assert [line for line in log("runs/smoke") if line["step"] == 3] == [stopped]
    assert [line["step"] for line in log("runs/smoke")] == list(range(every, 7, every))


@pytest.mark.parametrize("is_lost", [False, True])
def test_speed_logged_at_resumed_step_is_kept_unless_metrics_file_is_lost(smoke: Command, is_lost: bool) -> None:
    assert smoke("logger.tensorboard=null") == 0
    *_, earlier = log("runs/smoke")
    if is_lost:
        Path("runs/smoke/metrics.jsonl").unlink()
    (Path("runs/smoke/status.json")).write_text('{"state": "running", "step": 4}')  # killed after its last save
    assert smoke("trainer.steps=5", "logger.tensorboard=null") == 0
    lines = {line["step"]: line for line in log("runs/smoke")}
    assert lines[4] == {key: value for key, value in earlier.items() if not (is_lost and key.startswith("speed/"))}
    assert lines[5]["speed/images_per_s"] > 0


def test_forecast_of_disk_space_is_close_to_the_size_of_the_files(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    long = ("trainer.steps=60", "trainer.save_every=20", "trainer.sample_every=10", "generator.channels=16")
    assert smoke(*long, "checkpoint.keep=2", "pool.size=20", "trainer.precision=fp32") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("disk: ")]
    written = {kind: float(megabytes) for kind, megabytes in re.findall(r"(\w+) ([\d.]+) MB", line)}
    folder = Path("runs/smoke")

    def size_mb(*files: Path) -> float:
        return sum(file.stat().st_size for file in files) / 1e6

    checkpoint_mb = size_mb(*(folder / "checkpoints/step_00000060").iterdir())
    assert written["checkpoints"] == pytest.approx(3 * checkpoint_mb, rel=0.1)  # two, and one that is being written
    assert written["samples"] == pytest.approx(size_mb(*(folder / "samples").iterdir()), rel=0.5)
    assert written["TensorBoard"] == pytest.approx(size_mb(*folder.glob("events*")), rel=0.5)

    assert smoke(*long, "checkpoint.keep=2", "pool.size=20", "trainer.precision=fp32", "trainer.epochs=1") == 0


def test_disk_that_is_too_small_is_reported_at_the_start(
    smoke: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert smoke("logger.tensorboard=null") == 0
    captured = capsys.readouterr()
    assert ", 0.1 MB free" in captured.out
    assert "the disk of runs/smoke may become full: 0.1 MB are free, and the run will write" in captured.err
    assert "checkpoint.keep" in captured.err


def test_divergence_with_finite_losses_is_reported(smoke: Command, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ("optimizer.lr=1", "discriminator.layers=2", "logger.tensorboard=null", "trainer.save_every=3")
    assert smoke(*wild, "trainer.steps=8") == 0
    captured = capsys.readouterr()
    (warning,) = [line for line in captured.err.splitlines() if "diverged" in line]
    assert "trainer.on_explosion=stop" in warning
    (note,) = status("runs/smoke")["notes"]
    assert note["text"].startswith(f"training has diverged with finite losses by step {note['step']}: loss/")
    assert f"  note:       {note['text']}" in captured.out.splitlines()

    assert smoke(*wild, "trainer.steps=10") == 0
    assert status("runs/smoke")["notes"] == [note]  # kept on resume, and not repeated
    assert note["text"] in capsys.readouterr().out

    assert smoke(*wild, "trainer.steps=10", "name=stopped", "trainer.on_explosion=stop") == 5
    assert "trainer.on_explosion=warn continues" in capsys.readouterr().err
    ended = status("runs/stopped")
    assert (ended["state"], ended["code"], ended["step"]) == ("failed", 5, note["step"])

    assert smoke("name=healthy", "logger.tensorboard=null", "trainer.on_explosion=stop", "trainer.steps=20") == 0
    assert "notes" not in status("runs/healthy")


def test_changed_recipe_is_rejected_unless_allowed(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("logger.tensorboard=null") == 0
    before = snapshot(tmp_path, but="status.json")
    capsys.readouterr()

    assert smoke("optimizer.lr=0.001", "pool.size=7", "trainer.steps=6") == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert "runs/smoke was started with another recipe" in first
    assert rest == ["  optimizer.lr: 0.0002 -> 0.001", "  pool.size: 50 -> 7"]
    failed = status("runs/smoke")
    assert (failed["state"], failed["code"], failed["reason"]) == (
        "failed",
        2,
        first.removeprefix("cyclestyle train: "),
    )
    assert (failed["step"], failed["checkpoint"]) == (4, "step_00000004")

    assert smoke("generator.channels=8", "trainer.steps=6") == 4
    assert "  generator.channels: 4 -> 8" in capsys.readouterr().err.splitlines()

    assert smoke("trainer.steps=6", "resume.mode=never") == 2
    assert smoke("resume.mode=never") == 2  # rejected although the run has finished
    assert "not empty" in capsys.readouterr().err
    assert snapshot(tmp_path, but="status.json") == before

    capsys.readouterr()
    assert smoke("optimizer.lr=0.001", "trainer.steps=6", "resume.allow_changed=true", "logger.tensorboard=null") == 0
    output = capsys.readouterr().out
    assert "changed since the last start: optimizer.lr: 0.0002 -> 0.001" in output
    assert "changed since the last start: trainer.steps: 4 -> 6" in output
    assert log("runs/smoke")[-1]["lr"] == 0.001
    assert newest("runs/smoke").step == 6


def test_run_with_init_option_starts_at_step_0_with_weights_of_another_run(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ("logger.tensorboard=null", "trainer.sample_every=100")
    assert smoke("name=first", *quick) == 0
    assert smoke("name=second", "init=runs/first", "trainer.steps=1", "optimizer.lr=0", "ema.decay=0.5", *quick) == 0
    second = newest("runs/second")
    assert second.step == 1
    for key, value in newest("runs/first").model.tensors.items():
        assert torch.equal(second.model.tensors[key], value)
        if key.startswith("generators."):  # the moving average starts from the same weights
            torch.testing.assert_close(second.model.tensors[key.replace("generators", "ema", 1)], value)
    loaded = "starts with its generator ab, generator ba, discriminator a, discriminator b"
    assert f"init=runs/first: {loaded}\n" in capsys.readouterr().out
    assert smoke("name=second", "init=gone", "trainer.steps=1", "optimizer.lr=0", "ema.decay=0.5", *quick) == 0
    assert "finished" in capsys.readouterr().out  # a resumed run ignores init

    model = read_model(Path("runs/first"))
    older = {
        side: {key: value for key, value in architecture.items() if key != "norm"}
        for side, architecture in model.discriminators.items()
    }  # header of a file that was written before the argument existed
    write_model(model._replace(discriminators=older), Path("older.safetensors"))
    assert smoke("name=old", "init=older.safetensors", "trainer.steps=1", *quick) == 0
    capsys.readouterr()

    assert smoke("name=third", "init=runs/first", "generator.channels=8") == 4
    reason = "its generator is channels=4 where the config has 8: set generator.channels to its values, or choose"
    assert f"init=runs/first: {reason}" in capsys.readouterr().err
    one_only = {"ab": model.generators["ab"], "ba": model.generators["ba"] | {"blocks": 2}}
    write_model(model._replace(generators=one_only), Path("unequal.safetensors"))
    assert smoke("name=third", "init=unequal.safetensors") == 4
    assert "init=unequal.safetensors: its generator ba is blocks=2 where the config has 1" in capsys.readouterr().err
    assert smoke("name=third", "init=runs/gone") == 4
    assert "runs/gone" in capsys.readouterr().err
    assert not Path("runs/third/checkpoints").exists()
    assert smoke("name=third", "init=runs/first", "data.domain_a=painting", "data.domain_b=photo") == 4
    assert "the other way round: swap data.domain_a and data.domain_b" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["data.crop_size=5"], 2, "crop 5 is too small for the 16x16 discriminator: set data.crop_size to 6 or more"),
        (["generator._target_=tests.custom_parts.OwnGenerator"], 2, "generator: OwnGenerator is not in the table of"),
        (["trainer.batch_size=3", "trainer.accumulate=2"], 2, "make it a multiple of 2"),
        (["trainer.precision=fp16"], 2, "precision=fp16 is for GPUs"),
        (["trainer.save_every=0"], 2, "trainer.save_every=0: give a number of steps, 1 or more"),
        (["ema.decay=1.5"], 2, "ema.decay=1.5"),
        (["trainer.devices=0"], 2, "trainer.devices=0: this machine has 1 cpu device(s)"),
        (["checkpoint.keep=0"], 2, "checkpoint.keep=0"),
        (["generator.blocks=-1"], 2, "generator.blocks"),
    ],
)
def test_bad_settings_give_one_line_error_before_training(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert smoke(*arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cyclestyle train: ")
    assert words in line
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} <= {"lock", "status.json"}
    if files:
        failed = status("runs/smoke")
        assert (failed["state"], failed["code"]) == ("failed", code)
        assert line.endswith(failed["reason"])


def test_missing_data_gives_one_line_error_and_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("+experiment=monet") == 3
    (line,) = capsys.readouterr().err.splitlines()
    for part in (f"{tmp_path}/data/monet2photo/trainA", "monet2photo.zip", "+experiment=demo"):
        assert part in line
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"lock", "status.json"}
    assert (status("runs/monet")["state"], status("runs/monet")["code"]) == ("failed", 3)


def test_failure_is_recorded_in_status_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = two_domains(tmp_path / "data", width=32, height=32)
    for file in (root / "trainB").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    sizes = ["data.load_size=32", "data.crop_size=32", "generator.channels=4", "discriminator.channels=4"]
    assert run(f"data.root={root}", "trainer.device=cpu", *sizes, "data.workers=0") == 3
    first, *rest = capsys.readouterr().err.splitlines()
    assert f"{root}/trainB" in first
    assert len(rest) == min(5, len(list((root / "trainB").iterdir())))
    assert all("trainB" in line for line in rest[:4])
    failed = status("runs/own")
    assert (failed["state"], failed["code"], failed["step"]) == ("failed", 3, 0)
    assert failed["reason"] == first.removeprefix("cyclestyle train: ")
    listed = Path("runs/own/bad_files.txt").read_text().splitlines()
    assert [line.split()[:2] for line in listed] == [
        ["b", f"{file.name}:"] for file in sorted((root / "trainB").iterdir())
    ]


def test_divergence_ends_run_with_exit_5_and_image_list_unless_on_nonfinite_is_skip(
    smoke: Command, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = ("adversarial._target_=tests.custom_parts.NotANumber", "+adversarial.step=5", "trainer.batch_size=2")
    length = ("trainer.steps=12", "trainer.save_every=3", "trainer.log_every=4", "trainer.sample_every=100")
    assert smoke(*bad, *length) == 5
    first, *rest = capsys.readouterr().err.splitlines()
    assert "training diverged at step 5: not finite (gan_ab nan" in first
    assert "trainer.on_nonfinite=skip" in first
    draws = UnpairedFolders(str(scenes), resize="none", crop_size=32, load_size=32).draws(0)
    assert rest == [f"  {file}" for draw in (8, 9) for file in draws.files(draw)]
    failed = status("runs/smoke")
    assert (failed["state"], failed["code"], failed["checkpoint"]) == ("failed", 5, "step_00000003")
    assert [line["step"] for line in log("runs/smoke")] == [4]
    assert newest("runs/smoke").step == 3  # the diverged state was not saved at step 6

    assert smoke(*bad, *length, "trainer.on_nonfinite=skip", "name=skipping") == 0
    assert [line.get("skipped_steps") for line in log("runs/skipping")] == [None, 1, None]
    assert newest("runs/skipping").step == 12


def test_image_damaged_during_training_is_replaced_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = two_domains(tmp_path / "own", a=4, b=4, width=32, height=32)
    victim = root / "trainA/002.png"
    vandal = (
        "logger.console._target_=tests.custom_parts.Vandal",
        f"+logger.console.picture={victim}",
        "+logger.console.step=5",
    )
    length = ("trainer.steps=16", "trainer.save_every=4", "trainer.log_every=4", "trainer.sample_every=100")
    sizes = ("data.resize=none", "data.crop_size=32", "generator.channels=4", "generator.blocks=1",
             "discriminator.channels=4", "discriminator.layers=2")  # fmt: skip
    quiet = ("trainer.device=cpu", "data.workers=0", "logger.tensorboard=null")
    assert run(f"data.root={root}", *sizes, *quiet, *length, *vandal) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "002.png" in line]
    assert warning.startswith(f"cyclestyle: {victim}: ")
    assert warning.endswith("another picture takes its place")

    draws = UnpairedFolders(str(root), resize="none", crop_size=32, load_size=32).draws(0)
    after = [draw for draw in range(5, 16) if draws.files(draw)[0] == victim]
    assert len(after) > 1
    counted = {line["step"]: line.get("replaced_pictures", 0) for line in log("runs/own")}
    assert counted == {last: sum(last - 4 <= draw < last for draw in after) for last in (4, 8, 12, 16)}


# -------------------------------------------------------------------------------------------------- exit


@pytest.fixture
def started(scenes: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Function that starts a long run in its own process group; it returns once the run has logged three more steps."""
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        metrics = tmp_path / "runs/smoke/metrics.jsonl"
        before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
        command = ["+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu", "trainer.steps=1000000"]
        process = subprocess.Popen(
            [sys.executable, "-m", "cyclestyle.train", *command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
        deadline = time.monotonic() + DEADLINE_S
        while not metrics.exists() or len(metrics.read_text().splitlines()) < before + 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.terminate()
            process.wait(DEADLINE_S)
        assert process.stdout is not None
        process.stdout.close()


LONG = ("trainer.batch_size=2", "pool.size=3", "trainer.sample_every=1000000", "trainer.save_every=1000000",
        "logger.tensorboard=null")  # fmt: skip


def test_run_stopped_by_signals_saves_and_resumes_bit_exactly(
    smoke: Command, started: Callable[..., subprocess.Popen[str]]
) -> None:
    stops = []
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C on a terminal and `timeout` signal the whole group
        process = started(*LONG, "data.workers=1")
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 75, output
        assert "Traceback" not in output
        stopped = status("runs/smoke")
        assert (stopped["state"], stopped["code"], stopped["reason"]) == ("stopped", 75, number.name)
        assert newest("runs/smoke").step == stopped["step"] == log("runs/smoke")[-1]["step"]
        assert f"stopped at step {stopped['step']}, saved" in output
        stops.append(int(stopped["step"]))
    assert stops[0] + 3 <= stops[1]

    total = f"trainer.steps={stops[1] + 2}"
    assert smoke(*LONG, total) == 0
    assert smoke(*LONG, total, "name=straight") == 0
    assert same(newest("runs/smoke"), newest("runs/straight"))
    assert [line["step"] for line in log("runs/smoke")] == list(range(1, stops[1] + 3))


def test_stopped_run_exits_0_if_torchrun_would_restart_it(smoke: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/smoke").mkdir(parents=True)
    for restarts, code in ((0, 0), (1, 75)):
        Path("runs/smoke/stop").touch()
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
        assert smoke() == code
        assert (status("runs/smoke")["state"], status("runs/smoke")["code"]) == ("stopped", 75)


def test_stopped_and_resumed_two_rank_run_equals_one_process_run(
    smoke: Command, started: Callable[..., subprocess.Popen[str]], scenes: Path, tmp_path: Path
) -> None:
    # At the default learning rate, such small networks amplify rounding errors tenfold at every step.
    exact = (*LONG, "trainer.precision=fp32", "optimizer.lr=0.000001", "ema.decay=0.9")
    process = started(*exact, "trainer.devices=2")
    process.terminate()
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75, output
    assert "global batch 2 = 2 processes x 1 x 1" in output
    assert (
        output.splitlines()[-1]
        == f"stopped at step {status('runs/smoke')['step']}, saved: the same command continues from here"
    )
    assert len(newest("runs/smoke").ranks) == 2

    total = status("runs/smoke")["step"] + 3
    command = ("+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu", *exact, "trainer.devices=2")
    resumed = run_program(*command, f"trainer.steps={total}", folder=tmp_path)  # in other processes than before
    assert resumed.returncode == 0, resumed.stderr
    assert smoke(*exact, f"trainer.steps={total}", "name=one") == 0

    two, one = newest("runs/smoke"), newest("runs/one")
    assert two.step == one.step == total
    for key, value in one.model.tensors.items():
        # The gradient of a bias before an instance norm is pure rounding, from which Adam still makes full steps.
        rounding = 1e-6 * total if key.endswith(".bias") else 1e-7
        torch.testing.assert_close(two.model.tensors[key], value, rtol=1e-4, atol=2 * rounding)
    for networks, states in one.training["optimizers"].items():
        for index, state in states.items():
            moment, expected = two.training["optimizers"][networks][index]["exp_avg"], state["exp_avg"]
            assert (moment - expected).norm() < 1e-3 * expected.norm() + 1e-4, (networks, index)
    for side in "ab":
        halves = {position: stored for rank in two.ranks for position, stored in rank["pools"][side].items()}
        for position, stored in one.ranks[0]["pools"][side].items():
            torch.testing.assert_close(halves[position], stored, rtol=1e-3, atol=1e-4)
    speeds = {"speed/images_per_s", "speed/waiting_for_data"}
    for values, expected in zip(log("runs/smoke"), log("runs/one"), strict=True):
        for key in expected.keys() - speeds:
            assert values[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-4), (expected["step"], key)


def test_two_process_run_keeps_exit_code_and_one_line_error(tmp_path: Path) -> None:
    arguments = [f"data.root={tmp_path}/none", "trainer.device=cpu", "trainer.devices=2", "trainer.batch_size=2"]
    failed = run_program(*arguments, folder=tmp_path)
    assert failed.returncode == 3
    (line,) = failed.stderr.splitlines()
    assert f"no folder {tmp_path}/none/trainA" in line


def test_recompute_option_is_rejected_for_network_without_residual_blocks(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("data=scenes", f"data.root={scenes}", "data.train=8", "data.test=2", "data.size=32", "data.crop_size=32")
    assert run(*data, "generator=unet_small", "trainer.recompute=true", "trainer.device=cpu") == 2
    assert "trainer.recompute=true: UNetGenerator has no residual blocks: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("trainer.profile=false", "needs one of NVIDIA's GPUs, and this is CPU, fp32: leave it out"),
        ("trainer.profile=true", "does not go with trainer.profile=true: leave it out"),
    ],
)
def test_cuda_graphs_on_cpu_or_with_profiler_give_one_line_error(
    smoke: Command, setting: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("trainer.device=cpu", "trainer.precision=fp32", "trainer.cuda_graphs=true", setting)
    assert smoke(*settings) == 2
    assert capsys.readouterr().err.splitlines() == [f"cyclestyle train: trainer.cuda_graphs=true {reason}"]
    assert smoke("trainer.steps=1", *settings[:2], "trainer.cuda_graphs=auto", setting) == 0


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_split_and_joint_backward_passes_have_equal_losses(smoke: Command, recompute: str) -> None:
    assert_equal_losses(smoke, "trainer.backward=split", "trainer.backward=joint", f"trainer.recompute={recompute}")


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
@pytest.mark.parametrize("recompute", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_compiled_and_uncompiled_runs_have_equal_losses(smoke: Command, recompute: str) -> None:
    assert_equal_losses(smoke, "trainer.compile=true", "trainer.compile=false", f"trainer.recompute={recompute}")


def assert_equal_losses(smoke: Command, one: str, other: str, *settings: str) -> None:
    losses = {}
    for name, setting in (("one", one), ("other", other)):
        common = (f"name={name}", "trainer.steps=4", "trainer.log_every=2", "trainer.precision=fp32")
        assert smoke(*common, setting, *settings) == 0
        losses[name] = [
            {key: value for key, value in json.loads(line).items() if key.startswith(("loss/", "score/"))}
            for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
        ]
    assert len(losses["one"]) == len(losses["other"]) > 0
    for logged, expected in zip(losses["one"], losses["other"], strict=True):
        assert logged == pytest.approx(expected, rel=1e-3)


def test_profiler_leaves_run_unchanged_and_counts_steps_from_each_start(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("name=plain", "trainer.steps=20", "trainer.precision=fp32") == 0
    assert not (tmp_path / "runs/plain/profile").exists()

    profiled = ("name=profiled", "trainer.precision=fp32", "trainer.profile=true")
    assert smoke(*profiled, "trainer.steps=6") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "0 of 5 steps recorded: they are steps 9 to 13 of this start, and training ended after 6" in line
    assert not (tmp_path / "runs/profiled/profile").exists()

    assert smoke(*profiled, "trainer.steps=20") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Where the time goes: means of steps 15 to 19\n" in printed.out
    files = [path.name for path in sorted((tmp_path / "runs/profiled/profile").iterdir())]
    assert files == ["table.md", "trace.json.gz"]
    trace = json.loads(gzip.decompress((tmp_path / "runs/profiled/profile/trace.json.gz").read_bytes()))
    assert {"data", "forward", "backward", "optimizer", "logging", "saving"} <= {
        event.get("name") for event in trace["traceEvents"]
    }
    assert same(newest("runs/profiled"), newest("runs/plain"))


def test_run_resumes_with_changed_backward_and_recompute_options(smoke: Command) -> None:
    settings = ("trainer.steps=2", "trainer.precision=fp32", "name=one")
    assert smoke(*settings, "trainer.backward=joint") == 0
    assert smoke("trainer.steps=4", *settings[1:], "trainer.backward=split", "trainer.recompute=true") == 0
    assert smoke("trainer.steps=4", "trainer.precision=fp32", "name=other", "trainer.backward=joint") == 0
    resumed, expected = newest("runs/one").model.tensors, newest("runs/other").model.tensors
    for name, value in expected.items():
        # Adam makes steps of 2e-4 for gradients of any size, even for pure rounding.
        bound = 4 * 2e-4 * 1.01 if name.endswith(".bias") else 1e-4
        assert (resumed[name] - value).abs().max() < bound, name


# -------------------------------------------------------------------------------------------------------- threads


@pytest.fixture
def _own_threads() -> Iterator[None]:
    """Restore the number of threads of this process after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    threads.usual_threads.cache_clear()


def rewrite(run_folder: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Apply `change` to the contents of training.pt in the newest checkpoint; update its checksum in the manifest."""
    checkpoints = Path(run_folder) / "checkpoints"
    folder = checkpoints / (checkpoints / "latest").read_text().strip()
    training = torch.load(folder / "training.pt", weights_only=True)
    change(training)
    torch.save(training, folder / "training.pt")
    content = (folder / "training.pt").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("_own_threads")
def test_number_of_threads_is_fixed_at_step_0_and_kept_on_resume(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("trainer.steps=1") == 0
    assert ", 1 thread, " in capsys.readouterr().out
    assert newest("runs/smoke").training["threads"] == 1
    assert OmegaConf.load("runs/smoke/config.yaml").trainer.threads == 1  # value that auto was resolved to

    torch.set_num_threads(2)  # default of PyTorch without OMP_NUM_THREADS
    threads.usual_threads.cache_clear()
    assert smoke("trainer.steps=2") == 0
    assert torch.get_num_threads() == 1
    assert "instead of" not in capsys.readouterr().out
    assert newest("runs/smoke").training["threads"] == 1


@pytest.mark.usefixtures("_own_threads")
def test_changed_number_of_threads_on_resume_is_reported(smoke: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke("trainer.steps=1") == 0
    rewrite("runs/smoke", lambda training: training.update(threads=2))
    capsys.readouterr()
    assert smoke("trainer.steps=2") == 0  # threads=auto; the environment allows one thread
    report = "resumes with 1 thread instead of 2: results differ in rounding from an uninterrupted run"
    assert capsys.readouterr().out.splitlines().count(report) == 1
    assert newest("runs/smoke").training["threads"] == 1


def test_run_resumes_from_checkpoint_without_number_of_threads(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("trainer.steps=1") == 0

    def older(training: dict[str, Any]) -> None:
        del training["threads"], training["recipe"]["trainer"]["threads"]

    rewrite("runs/smoke", older)
    capsys.readouterr()
    assert smoke("trainer.steps=2") == 0
    output = capsys.readouterr().out
    assert "resuming from step 1" in output
    assert "instead of" not in output
    assert newest("runs/smoke").training["threads"] == torch.get_num_threads() == 1


def test_cpu_run_checks_for_busy_cores_after_each_step(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"logger": {}, "trainer": {"profile": False}})
    trainer = tiny_trainer(steps=2)
    checks: list[int] = []
    settings: Any = {"recipe": {}, "watch": lambda: checks.append(1), "done": Done()}
    with assembly.opened_loggers(cfg, trainer, RunFolder(tmp_path), ("a", "b"), **settings) as loggers:
        for step in (1, 2):
            for logger in loggers:
                logger.on_step(step)
    assert len(checks) == 2


@pytest.mark.usefixtures("double_precision")
def test_run_of_earlier_version_resumes_with_equal_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parent / "golden" / "run_of_an_earlier_version"
    shutil.copytree(golden / "step_00000010", tmp_path / "runs" / "earlier" / "checkpoints" / "step_00000010")
    monkeypatch.chdir(tmp_path)
    settings = ("pool.size=2", "ema.decay=0.9", "trainer.device=cpu", "trainer.precision=fp32", "trainer.steps=40")
    assert run("+experiment=smoke", "name=earlier", f"data.root={golden / 'scenes'}", *settings) == 0
    resumed, expected = newest("runs/earlier").model.tensors, load_file(golden / "step_40.safetensors")
    assert resumed.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(resumed[name].float(), tensor, rtol=1e-6, atol=1e-6, msg=name)
