"""The command that trains: what it writes, how it goes on, and how it leaves."""

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cyclestyle import train
from cyclestyle.checkpoints.directory import Checkpoint, Checkpoints, read_model
from cyclestyle.checkpoints.model import write_model
from cyclestyle.data import UnpairedFolders
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.distributed.world import World
from cyclestyle.hardware import threads
from cyclestyle.hardware.device import Hardware
from cyclestyle.run.folder import RunFolder
from tests.checkpoints.test_directory import equal
from tests.pictures import two_domains

REPOSITORY = Path(__file__).parent.parent
DEADLINE_S = 120  # for what takes seconds on a quiet machine
Command = Callable[..., int]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures of +experiment=smoke, drawn once."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    draw(root, train=8, test=2, size=32)
    return root


@pytest.fixture
def smoke(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `cyclestyle.train +experiment=smoke ...` in this process, from an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> int:
        return leave("+experiment=smoke", f"data.root={scenes}", "trainer.device=cpu", *arguments)

    return command


def leave(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as leaving:
            train.main()
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def newest(run: str | Path) -> Checkpoint:
    found = Checkpoints(Path(run) / "checkpoints").load()
    assert found is not None
    return found


def same(ours: Checkpoint, theirs: Checkpoint) -> bool:
    """Whether two checkpoints hold the same weights, optimizers, pools and counts, bit for bit."""
    one, other = ({**checkpoint.training, "recipe": None} for checkpoint in (ours, theirs))
    return (
        ours.step == theirs.step
        and equal(ours.model.tensors, theirs.model.tensors)
        and equal(one, other)
        and equal(ours.ranks, theirs.ranks)
    )


def status(run: str | Path) -> dict[str, Any]:
    return dict(json.loads((Path(run) / "status.json").read_text()))


def log(run: str | Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def events(run: str | Path) -> EventAccumulator:
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0}).Reload()


def everything(folder: Path, *, but: str = "") -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != but]
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


# -------------------------------------------------------------------------------------------------- what it writes


def test_a_run_writes_its_folder_and_nothing_else_and_the_same_command_touches_nothing(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("ema.decay=0.9") == 0
    run = tmp_path / "runs" / "smoke"
    said = capsys.readouterr().out
    assert "8 photo, 8 painting" in said
    assert "global batch 1, CPU" in said
    assert "direction=photo2painting" in said

    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_dir()] != []
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    assert {path.name.partition(".")[0] for path in run.iterdir()} == {
        "config", "status", "metrics", "events", "samples", "checkpoints", "lock",
    }  # fmt: skip
    config = OmegaConf.load(run / "config.yaml")
    assert config.trainer.device == "cpu"
    assert config.trainer.precision in ("fp32", "bf16")  # what auto came to
    assert config.run_dir == "runs/smoke"
    assert "${" not in (run / "config.yaml").read_text()
    assert {key: status(run)[key] for key in ("state", "code", "step")} == {"state": "finished", "code": 0, "step": 4}
    assert [line["step"] for line in log(run)] == [1, 2, 3, 4]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [
        f"step_0000000{step}_{direction}.png"
        for step in (0, 2, 4)
        for direction in ("painting2photo", "photo2painting")
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", "step_00000002", "step_00000004"]
    model = read_model(run)
    assert model.domains == ("photo", "painting")
    assert model.generator["name"] == "resnet"
    assert {key.split(".")[0] for key in model.tensors} == {"generators", "discriminators", "ema"}

    seen = events(run)
    terms = ["gan_ab", "gan_ba", "cycle_a", "cycle_b", "identity_a", "identity_b", "discriminator_a", "discriminator_b"]
    scores = ["real_a", "fake_a", "real_b", "fake_b"]
    wanted = {*(f"loss/{term}" for term in terms), *(f"score/{score}" for score in scores), "lr"}
    wanted |= {"speed/images_per_s", "speed/waiting_for_data"}
    assert wanted <= set(seen.Tags()["scalars"])
    assert [point.step for point in seen.Scalars("loss/gan_ab")] == [1, 2, 3, 4]
    assert seen.Scalars("lr")[0].value == pytest.approx(0.0002)
    assert set(seen.Tags()["images"]) == {"photo2painting", "painting2photo"}

    before = everything(tmp_path)
    assert smoke("ema.decay=0.9") == 0
    assert "finished at step 4; set trainer.epochs or trainer.steps higher" in capsys.readouterr().out
    assert everything(tmp_path) == before


def test_steps_are_the_first_n_draws_and_epochs_convert_once(smoke: Command, tmp_path: Path) -> None:
    assert smoke("trainer.steps=null", "trainer.epochs=2", "trainer.batch_size=4", "logger.tensorboard=null") == 0
    assert newest("runs/smoke").training["draws"] == 16  # 8 pictures a domain, twice
    assert log("runs/smoke")[-1]["epoch"] == 2.0
    assert not list((tmp_path / "runs/smoke").glob("events*"))


# -------------------------------------------------------------------------------------------------- going on

RESUMED = ("trainer.batch_size=2", "pool.size=3", "ema.decay=0.9", "logger.tensorboard=null")


def test_going_on_equals_going_straight_bit_for_bit_whatever_the_workers(smoke: Command) -> None:
    assert smoke(*RESUMED, "name=straight", "trainer.steps=8") == 0
    assert smoke(*RESUMED, "name=twice", "trainer.steps=4", "data.workers=0") == 0
    assert smoke(*RESUMED, "name=twice", "trainer.steps=8", "data.workers=1") == 0

    straight, twice = newest("runs/straight"), newest("runs/twice")
    assert straight.step == 8
    assert same(twice, straight)
    assert len(twice.ranks[0]["pools"]["a"]) == 2
    assert any(key.startswith("ema.") for key in twice.model.tensors)
    speeds = {"speed/images_per_s", "speed/waiting_for_data"}
    for ours, theirs in zip(log("runs/twice"), log("runs/straight"), strict=True):
        assert {key: ours[key] for key in ours.keys() - speeds} == {key: theirs[key] for key in ours.keys() - speeds}


@pytest.mark.parametrize("left", [4, 0])
def test_a_run_set_back_to_an_older_checkpoint_or_none_tells_no_step_twice(smoke: Command, left: int) -> None:
    assert smoke("trainer.steps=6") == 0
    checkpoints = Path("runs/smoke/checkpoints")
    for folder in checkpoints.glob("step_*"):  # as if it had been killed before it wrote them
        if int(folder.name[5:]) > left:
            folder.rename(checkpoints / f"gone {folder.name}")
    assert smoke("trainer.steps=8") == 0

    assert [line["step"] for line in log("runs/smoke")] == [1, 2, 3, 4, 5, 6, 7, 8]
    seen = events("runs/smoke")
    for tag in seen.Tags()["scalars"]:
        assert [point.step for point in seen.Scalars(tag)] == [1, 2, 3, 4, 5, 6, 7, 8], tag
    for tag in seen.Tags()["images"]:
        assert [picture.step for picture in seen.Images(tag)] == [0, 2, 4, 6, 8], tag
    for line, point in zip(log("runs/smoke"), seen.Scalars("loss/cycle_a"), strict=True):
        assert line["loss/cycle_a"] == pytest.approx(point.value)


def test_another_recipe_in_the_same_folder_is_refused_and_can_be_insisted_on(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("logger.tensorboard=null") == 0
    before = everything(tmp_path, but="status.json")
    capsys.readouterr()

    assert smoke("optimizer.lr=0.001", "pool.size=7", "trainer.steps=6") == 2
    first, *rest = capsys.readouterr().err.splitlines()
    assert "runs/smoke was started with another recipe" in first
    assert rest == ["  optimizer.lr: 0.0002 -> 0.001", "  pool.size: 50 -> 7"]
    refused = status("runs/smoke")
    assert (refused["state"], refused["code"], refused["reason"]) == (
        "failed",
        2,
        first.removeprefix("cyclestyle train: "),
    )
    assert (refused["step"], refused["checkpoint"]) == (4, "step_00000004")

    assert smoke("generator.channels=8", "trainer.steps=6") == 4
    assert "  generator.channels: 4 -> 8" in capsys.readouterr().err.splitlines()

    assert smoke("trainer.steps=6", "resume.mode=never") == 2
    assert smoke("resume.mode=never") == 2  # though it has finished
    assert "not empty" in capsys.readouterr().err
    assert everything(tmp_path, but="status.json") == before

    capsys.readouterr()
    assert smoke("optimizer.lr=0.001", "trainer.steps=6", "resume.allow_changed=true", "logger.tensorboard=null") == 0
    said = capsys.readouterr().out
    assert "changed since the last start: optimizer.lr: 0.0002 -> 0.001" in said
    assert "changed since the last start: trainer.steps: 4 -> 6" in said
    assert log("runs/smoke")[-1]["lr"] == 0.001
    assert newest("runs/smoke").step == 6


def test_init_starts_at_step_0_from_another_run_s_weights(smoke: Command, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("logger.tensorboard=null", "trainer.sample_every=100")
    assert smoke("name=first", *quick) == 0
    assert smoke("name=second", "init=runs/first", "trainer.steps=1", "optimizer.lr=0", "ema.decay=0.5", *quick) == 0
    second = newest("runs/second")
    assert second.step == 1
    for key, value in newest("runs/first").model.tensors.items():
        assert torch.equal(second.model.tensors[key], value)
        if key.startswith("generators."):  # and so does the average
            torch.testing.assert_close(second.model.tensors[key.replace("generators", "ema", 1)], value)
    assert smoke("name=second", "init=gone", "trainer.steps=1", "optimizer.lr=0", "ema.decay=0.5", *quick) == 0
    assert "finished" in capsys.readouterr().out  # what is there counts, and init no longer

    model = read_model(Path("runs/first"))
    older = {key: value for key, value in model.discriminator.items() if key != "norm"}  # from before the argument
    write_model(model._replace(discriminator=older), Path("older.safetensors"))
    assert smoke("name=old", "init=older.safetensors", "trainer.steps=1", *quick) == 0
    capsys.readouterr()

    assert smoke("name=third", "init=runs/first", "generator.channels=8") == 4
    assert "init=runs/first: its generator is channels=4 where the config says 8" in capsys.readouterr().err
    assert smoke("name=third", "init=runs/gone") == 4
    assert "runs/gone" in capsys.readouterr().err
    assert not Path("runs/third/checkpoints").exists()
    assert smoke("name=third", "init=runs/first", "data.domain_a=painting", "data.domain_b=photo") == 4
    assert "the other way round: swap data.domain_a and data.domain_b" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- what it refuses


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
def test_what_cannot_work_is_told_in_one_line_before_anything_begins(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert smoke(*arguments) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cyclestyle train: ")
    assert words in line
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in left} <= {"lock", "status.json"}
    if left:
        told = status("runs/smoke")
        assert (told["state"], told["code"]) == ("failed", code)
        assert line.endswith(told["reason"])


def test_missing_data_is_exit_3_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert leave("+experiment=monet") == 3
    (line,) = capsys.readouterr().err.splitlines()
    for part in (f"{tmp_path}/data/monet2photo/trainA", "monet2photo.zip", "+experiment=demo"):
        assert part in line
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"lock", "status.json"}
    assert (status("runs/monet")["state"], status("runs/monet")["code"]) == ("failed", 3)


def test_a_failure_on_the_way_is_in_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = two_domains(tmp_path / "data", width=32, height=32)
    for file in (root / "trainB").iterdir():
        file.write_bytes(file.read_bytes()[:-30])
    sizes = ["data.load_size=32", "data.crop_size=32", "generator.channels=4", "discriminator.channels=4"]
    assert leave(f"data.root={root}", "trainer.device=cpu", *sizes, "data.workers=0") == 3
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


def test_divergence_is_exit_5_with_the_files_of_the_step_and_can_be_skipped(
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
    ended = status("runs/smoke")
    assert (ended["state"], ended["code"], ended["checkpoint"]) == ("failed", 5, "step_00000003")
    assert [line["step"] for line in log("runs/smoke")] == [4]
    assert newest("runs/smoke").step == 3  # nothing bad was saved at step 6

    assert smoke(*bad, *length, "trainer.on_nonfinite=skip", "name=skipping") == 0
    assert [line.get("skipped_steps") for line in log("runs/skipping")] == [None, 1, None]
    assert newest("runs/skipping").step == 12


def test_a_picture_that_goes_bad_on_the_way_is_replaced_counted_and_told_once(
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
    assert leave(f"data.root={root}", *sizes, *quiet, *length, *vandal) == 0
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "002.png" in line]
    assert told.startswith(f"cyclestyle: {victim}: ")
    assert told.endswith("another picture takes its place")

    draws = UnpairedFolders(str(root), resize="none", crop_size=32, load_size=32).draws(0)
    after = [draw for draw in range(5, 16) if draws.files(draw)[0] == victim]
    assert len(after) > 1
    counted = {line["step"]: line.get("replaced_pictures", 0) for line in log("runs/own")}
    assert counted == {last: sum(last - 4 <= draw < last for draw in after) for last in (4, 8, 12, 16)}


# -------------------------------------------------------------------------------------------------- how it leaves


@pytest.fixture
def started(scenes: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a long run in a process and a group of its own; returns once it has trained three steps more."""
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
        until = time.monotonic() + DEADLINE_S
        while not metrics.exists() or len(metrics.read_text().splitlines()) < before + 3:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
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


def test_signals_to_a_run_and_its_workers_finish_the_step_and_save_and_it_goes_on_bit_exactly(
    smoke: Command, started: Callable[..., subprocess.Popen[str]]
) -> None:
    stops = []
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal's Ctrl-C and `timeout` reach the whole group
        process = started(*LONG, "data.workers=1")
        os.killpg(process.pid, number)
        said, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 75, said
        assert "Traceback" not in said
        stopped = status("runs/smoke")
        assert (stopped["state"], stopped["code"], stopped["reason"]) == ("stopped", 75, number.name)
        assert newest("runs/smoke").step == stopped["step"] == log("runs/smoke")[-1]["step"]
        assert f"stopped at step {stopped['step']}, saved" in said
        stops.append(int(stopped["step"]))
    assert stops[0] + 3 <= stops[1]

    total = f"trainer.steps={stops[1] + 2}"
    assert smoke(*LONG, total) == 0
    assert smoke(*LONG, total, "name=straight") == 0
    assert same(newest("runs/smoke"), newest("runs/straight"))
    assert [line["step"] for line in log("runs/smoke")] == list(range(1, stops[1] + 3))


def test_where_torchrun_would_start_it_again_a_stopped_run_leaves_with_0(
    smoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("runs/smoke").mkdir(parents=True)
    for restarts, code in ((0, 0), (1, 75)):
        Path("runs/smoke/stop").touch()
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))
        monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
        assert smoke() == code
        assert (status("runs/smoke")["state"], status("runs/smoke")["code"]) == ("stopped", 75)


def test_two_processes_relaunched_stop_on_request_go_on_and_equal_one(
    smoke: Command, started: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # At a usual rate, networks as small as these multiply rounding by ten with every step.
    exact = (*LONG, "trainer.precision=fp32", "optimizer.lr=0.000001", "ema.decay=0.9")
    process = started(*exact, "trainer.devices=2")
    process.terminate()
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75, said
    assert "global batch 2 = 2 processes x 1 x 1" in said
    assert (
        said.splitlines()[-1]
        == f"stopped at step {status('runs/smoke')['step']}, saved: the same command goes on from here"
    )
    assert len(newest("runs/smoke").ranks) == 2

    total = status("runs/smoke")["step"] + 3
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert smoke(*exact, "trainer.devices=2", f"trainer.steps={total}") == 0  # the processes are others
    assert smoke(*exact, f"trainer.steps={total}", "name=one") == 0

    two, one = newest("runs/smoke"), newest("runs/one")
    assert two.step == one.step == total
    for key, value in one.model.tensors.items():
        # The gradient of a bias before an instance norm is rounding and nothing else, of which Adam makes whole steps.
        rounding = 1e-6 * total if key.endswith(".bias") else 1e-7
        torch.testing.assert_close(two.model.tensors[key], value, rtol=1e-4, atol=2 * rounding)
    for networks, states in one.training["optimizers"].items():
        for index, state in states.items():
            ours, theirs = two.training["optimizers"][networks][index]["exp_avg"], state["exp_avg"]
            assert (ours - theirs).norm() < 1e-3 * theirs.norm() + 1e-4, (networks, index)
    for side in "ab":
        halves = {position: stored for rank in two.ranks for position, stored in rank["pools"][side].items()}
        for position, stored in one.ranks[0]["pools"][side].items():
            torch.testing.assert_close(halves[position], stored, rtol=1e-3, atol=1e-4)
    speeds = {"speed/images_per_s", "speed/waiting_for_data"}
    for ours, theirs in zip(log("runs/smoke"), log("runs/one"), strict=True):
        for key in theirs.keys() - speeds:
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), (theirs["step"], key)


def test_the_exit_code_of_a_relaunched_run_is_its_own_and_its_error_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    arguments = [f"data.root={tmp_path}/none", "trainer.device=cpu", "trainer.devices=2", "trainer.batch_size=2"]
    assert leave(*arguments) == 3
    (line,) = capfd.readouterr().err.splitlines()
    assert f"no folder {tmp_path}/none/trainA" in line


def test_recomputing_residual_blocks_is_refused_where_there_are_none(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("data=scenes", f"data.root={scenes}", "data.train=8", "data.test=2", "data.size=32", "data.crop_size=32")
    assert leave(*data, "generator=unet_small", "trainer.recompute=true", "trainer.device=cpu") == 2
    assert "trainer.recompute=true: UNetGenerator has no residual blocks: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("with_it", "reason"),
    [
        ("trainer.profile=false", "needs one of NVIDIA's GPUs, and this is CPU, fp32: leave it out"),
        ("trainer.profile=true", "does not go with trainer.profile=true: leave one of them out"),
    ],
)
def test_cuda_graphs_where_there_can_be_none_are_refused_in_a_line(
    smoke: Command, with_it: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("trainer.device=cpu", "trainer.precision=fp32", "trainer.cuda_graphs=true", with_it)
    assert smoke(*settings) == 2
    assert capsys.readouterr().err.splitlines() == [f"cyclestyle train: trainer.cuda_graphs=true {reason}"]
    assert smoke("trainer.steps=1", *settings[:2], "trainer.cuda_graphs=auto", with_it) == 0


@pytest.mark.parametrize("recompute", ["false", "true"])
def test_lean_and_joint_runs_tell_the_same_losses(smoke: Command, recompute: str) -> None:
    assert_losses_alike(smoke, "trainer.backward=split", "trainer.backward=joint", f"trainer.recompute={recompute}")


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs g++")
@pytest.mark.parametrize("recompute", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_a_compiled_run_tells_the_losses_of_one_that_is_not(smoke: Command, recompute: str) -> None:
    assert_losses_alike(smoke, "trainer.compile=true", "trainer.compile=false", f"trainer.recompute={recompute}")


def assert_losses_alike(smoke: Command, one: str, other: str, *settings: str) -> None:
    told = {}
    for name, setting in (("one", one), ("other", other)):
        run = (f"name={name}", "trainer.steps=4", "trainer.log_every=2", "trainer.precision=fp32")
        assert smoke(*run, setting, *settings) == 0
        told[name] = [
            {key: value for key, value in json.loads(line).items() if key.startswith(("loss/", "score/"))}
            for line in Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
        ]
    assert len(told["one"]) == len(told["other"]) > 0
    for ours, theirs in zip(told["one"], told["other"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_a_profile_changes_nothing_of_the_run_and_counts_from_each_start(
    smoke: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("name=plain", "trainer.steps=20", "trainer.precision=fp32") == 0
    assert not (tmp_path / "runs/plain/profile").exists()

    look = ("name=looked", "trainer.precision=fp32", "trainer.profile=true")
    assert smoke(*look, "trainer.steps=6") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "0 of 5 steps recorded: they are steps 9 to 13 of this start, and training ended after 6" in line
    assert not (tmp_path / "runs/looked/profile").exists()

    assert smoke(*look, "trainer.steps=20") == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "Where the time goes: means of steps 15 to 19\n" in told.out
    files = [path.name for path in sorted((tmp_path / "runs/looked/profile").iterdir())]
    assert files == ["table.md", "trace.json.gz"]
    trace = json.loads(gzip.decompress((tmp_path / "runs/looked/profile/trace.json.gz").read_bytes()))
    assert {"data", "forward", "backward", "optimizer", "logging", "saving"} <= {
        event.get("name") for event in trace["traceEvents"]
    }
    assert same(newest("runs/looked"), newest("runs/plain"))


def test_a_run_goes_on_with_another_use_of_memory(smoke: Command) -> None:
    settings = ("trainer.steps=2", "trainer.precision=fp32", "name=one")
    assert smoke(*settings, "trainer.backward=joint") == 0
    assert smoke("trainer.steps=4", *settings[1:], "trainer.backward=split", "trainer.recompute=true") == 0
    assert smoke("trainer.steps=4", "trainer.precision=fp32", "name=other", "trainer.backward=joint") == 0
    ours, theirs = newest("runs/one").model.tensors, newest("runs/other").model.tensors
    for name, value in theirs.items():
        # Adam makes steps of 2e-4 whatever the size of a gradient, also of one that is nothing but rounding.
        bound = 4 * 2e-4 * 1.01 if name.endswith(".bias") else 1e-4
        assert (ours[name] - value).abs().max() < bound, name


# -------------------------------------------------------------------------------------------------------- its threads


@pytest.fixture
def _own_threads() -> Iterator[None]:
    """The number of threads of this process stays what it is."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    threads.usual_threads.cache_clear()


def rewrite(run: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what the newest checkpoint holds for all processes."""
    folder = Path(run) / "checkpoints" / (Path(run) / "checkpoints" / "latest").read_text().strip()
    training = torch.load(folder / "training.pt", weights_only=True)
    change(training)
    torch.save(training, folder / "training.pt")
    content = (folder / "training.pt").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["training.pt"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("_own_threads")
def test_threads_are_fixed_at_step_0_and_used_again_on_resume(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("trainer.steps=1") == 0
    assert ", 1 thread, " in capsys.readouterr().out
    assert newest("runs/smoke").training["threads"] == 1
    assert OmegaConf.load("runs/smoke/config.yaml").trainer.threads == 1  # what auto came to

    torch.set_num_threads(2)  # as many as PyTorch would take by itself in a start without OMP_NUM_THREADS
    threads.usual_threads.cache_clear()
    assert smoke("trainer.steps=2") == 0
    assert torch.get_num_threads() == 1
    assert "instead of" not in capsys.readouterr().out
    assert newest("runs/smoke").training["threads"] == 1


@pytest.mark.usefixtures("_own_threads")
def test_threads_that_a_resumed_run_cannot_have_are_reported(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("trainer.steps=1") == 0
    rewrite("runs/smoke", lambda training: training.update(threads=2))
    capsys.readouterr()
    assert smoke("trainer.steps=2") == 0  # auto, where the environment allows one
    report = "resumes with 1 thread instead of 2: results differ in rounding from an uninterrupted run"
    assert capsys.readouterr().out.splitlines().count(report) == 1
    assert newest("runs/smoke").training["threads"] == 1


def test_a_checkpoint_from_before_threads_were_saved_resumes_as_it_did(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("trainer.steps=1") == 0

    def older(training: dict[str, Any]) -> None:
        del training["threads"], training["recipe"]["trainer"]["threads"]

    rewrite("runs/smoke", older)
    capsys.readouterr()
    assert smoke("trainer.steps=2") == 0
    said = capsys.readouterr().out
    assert "going on from step 1" in said
    assert "instead of" not in said
    assert newest("runs/smoke").training["threads"] == torch.get_num_threads() == 1


def test_a_run_on_a_cpu_looks_at_the_processor_after_each_step(tmp_path: Path) -> None:
    cfg = OmegaConf.create({"logger": {}, "trainer": {"profile": False}})
    trainer: Any = SimpleNamespace(world=World(), hardware=Hardware("cpu"), step=0, total=2)
    looks: list[int] = []
    with train.opened_loggers(cfg, RunFolder(tmp_path), trainer, ("a", "b"), watch=lambda: looks.append(1)) as loggers:
        for step in (1, 2):
            for logger in loggers:
                logger.on_step(step)
    assert len(looks) == 2


@pytest.mark.usefixtures("double_precision")
def test_run_of_an_earlier_version_resumes_as_that_version_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Path(__file__).parent / "golden" / "run_of_an_earlier_version"
    shutil.copytree(golden / "step_00000010", tmp_path / "runs" / "earlier" / "checkpoints" / "step_00000010")
    monkeypatch.chdir(tmp_path)
    settings = ("pool.size=2", "ema.decay=0.9", "trainer.device=cpu", "trainer.precision=fp32", "trainer.steps=40")
    assert leave("+experiment=smoke", "name=earlier", f"data.root={golden / 'scenes'}", *settings) == 0
    ours, theirs = newest("runs/earlier").model.tensors, load_file(golden / "step_40.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].float(), tensor, rtol=1e-6, atol=1e-6, msg=name)
