"""Scores while training: logged numbers, scores.jsonl, the best checkpoint, resume, rulers that losses see, errors."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.nn.functional import l1_loss

from cyclestyle.cli import compose
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CommandError
from cyclestyle.evaluate import evaluate
from cyclestyle.objectives.terms import Direction
from tests.evaluation.random_weights import write_random_weights
from tests.test_train import events, log, newest, run, same

REPOSITORY = Path(__file__).parent.parent
RULERS = ["efficientnet_lite0", "lpips_alex"]
PIXELS = ("scores.every=2", "scores.names=[colours,content_ssim]")  # these scores need no pretrained network
FOLDERS = (
    "+experiment=smoke", "data=folders", "data.resize=none", "data.load_size=32", "data.crop_size=32", "data.workers=0",
    "trainer.device=cpu",
)  # fmt: skip
Command = Callable[..., int]


class Follows:
    """Term that declares a pretrained network, although it uses none."""

    sees = ("efficientnet_lite0",)

    def __call__(self, direction: Direction) -> Tensor:
        return l1_loss(direction.fake, direction.source)


FOLLOWS = "objective.terms.content._target_=tests.test_train_scores.Follows"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with random weights of two networks."""
    return write_random_weights(tmp_path_factory.mktemp("weights"), *RULERS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set of drawn scenes with 8 training images and 4 test images in each domain."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    draw(root, train=8, test=4, size=32)
    return root


@pytest.fixture
def smoke(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Function that runs `cyclestyle.train +experiment=smoke ...` in this process and returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> int:
        settings = (f"data.root={scenes}", "data.test=4", "trainer.device=cpu", "ema.decay=0.9")
        return run("+experiment=smoke", *settings, *arguments)

    return command


@pytest.fixture
def by_rulers(weights: Path) -> tuple[str, ...]:
    """Arguments that score every two steps by two networks with random weights."""
    return ("scores.every=2", f"scores.rulers=[{','.join(RULERS)}]", f"scores.path={weights}", "scores.size=32")


def evaluations(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "scores.jsonl").read_text().splitlines()]


def best(folder: str | Path) -> dict[str, Any]:
    return json.loads((Path(folder) / "checkpoints" / "best").read_text().splitlines()[1])


def without_speeds(folder: str | Path) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if not key.startswith("speed/")} for line in log(folder)]


# -------------------------------------------------------------------------------------------- numbers and files


def test_scores_are_logged_and_the_best_checkpoint_is_kept(
    smoke: Command, by_rulers: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(*by_rulers, "checkpoint.best=kid", "trainer.steps=6") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "scores every 2 steps on 4 and 4 images: kid, style, structure by efficientnet_lite0, 32 px, bicubic; " in (
        captured.out
    )
    lines = {line["step"]: line for line in log("runs/smoke") if "kid" in line}
    assert list(lines) == [2, 4, 6]  # not at step 0
    details = [f"{name}/{side}/{ruler}" for name in ("kid", "structure") for side in ("ab", "ba") for ruler in RULERS]
    details += [f"style/{side}/lpips_alex" for side in ("ab", "ba")]  # the other ruler has no Gram matrices
    bounds = [f"{name}{bound}" for name in ("kid", "style", "structure") for bound in ("", "/low", "/high")]
    for step, line in lines.items():
        assert line.keys() == {"step", *bounds, *details}
        assert line["kid"] == pytest.approx((line["kid/ab/efficientnet_lite0"] + line["kid/ba/efficientnet_lite0"]) / 2)
        assert line["kid/low"] <= line["kid"] <= line["kid/high"]
        assert re.search(rf"^step {step}/6  kid [^ ]+ \[.+\]  style .+  structure ", captured.out, re.MULTILINE)

    curve = [(point.step, point.value) for point in events("runs/smoke").Scalars("style/ab/lpips_alex")]
    assert curve == [(step, pytest.approx(line["style/ab/lpips_alex"], rel=1e-6)) for step, line in lines.items()]

    records = evaluations("runs/smoke")
    assert [record["step"] for record in records] == [2, 4, 6]
    assert [{"step": record["step"], **record["values"]} for record in records] == [*lines.values()]
    least = min(records, key=lambda record: record["values"]["kid"])
    assert best("runs/smoke") == {
        "name": "kid", "mode": "min", "step": least["step"], "value": least["values"]["kid"],
        "low": least["values"]["kid/low"], "high": least["values"]["kid/high"], "evaluations": least["step"] // 2,
    }  # fmt: skip
    assert re.search(r"^  scores:     best of 3 evaluations: .*step \d, kid [^ ]+ \[", captured.out, re.MULTILINE)


def test_scores_equal_those_of_evaluate_on_the_same_checkpoint(
    smoke: Command, by_rulers: tuple[str, ...], scenes: Path, weights: Path
) -> None:
    names = ["kid", "fid", "style", "structure", "copying", "colours", "reconstruction_psnr"]
    assert smoke(*by_rulers, f"scores.names=[{','.join(names)}]") == 0
    for record in evaluations("runs/smoke"):
        report = evaluate(
            f"runs/smoke/checkpoints/step_{record['step']:08d}",
            data={"root": str(scenes)},
            names=names,
            rulers=RULERS,
            features={"path": str(weights)},
            size=32,
            device="cpu",
            output="evaluation",
        )
        assert report.weights == record["weights"] == "ema"
        assert [direction.direction for direction in report.directions] == [*record["directions"]]
        for direction in report.directions:
            ours = [score for score in record["directions"][direction.direction] if score["row"] == "translated"]
            assert len(ours) == 3 * 2 + 1 + 1 + 2  # kid, fid and structure by both rulers; style; copying; of pixels
            theirs = [score._asdict() for score in direction.scores]
            assert [score for score in ours if score not in theirs] == []


def test_images_are_resized_like_training_images(
    smoke: Command, scenes: Path, weights: Path, by_rulers: tuple[str, ...]
) -> None:
    stretched = ("data.resize=stretch", "data.load_size=40", "scores.names=[kid,colours]")
    assert smoke(*by_rulers, *stretched, "trainer.steps=2") == 0
    assert smoke(*by_rulers, *stretched, "trainer.steps=2", "scores.photo_size=null", "name=stored") == 0
    (record,), (stored,) = evaluations("runs/smoke"), evaluations("runs/stored")
    assert (record["photo_size"], stored["photo_size"]) == (40, None)
    report = evaluate(
        "runs/smoke",
        data={"root": str(scenes)},
        photo_size=40,
        names=["colours"],
        device="cpu",
        output="evaluation",
    )
    values = [direction.find("colours").value for direction in report.directions]
    assert [record["values"]["colours/ab"], record["values"]["colours/ba"]] == values
    assert stored["values"]["colours/ab"] != values[0]


def test_number_of_images_is_limited_and_damaged_test_images_are_left_out(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("data")
    for split in ("trainA", "trainB", "testA", "testB"):
        (root / split).mkdir(parents=True)
        for file in (scenes / split).iterdir():
            (root / split / file.name).write_bytes(file.read_bytes())
    damaged = sorted((root / "testA").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert run(*FOLDERS, *PIXELS, f"data.root={root}", "scores.images=3") == 0
    assert run(*FOLDERS, *PIXELS, f"data.root={root}", "scores.images=2", "name=two") == 0
    for name, count in (("smoke", 3), ("two", 2)):
        for scores in evaluations(f"runs/{name}")[0]["directions"].values():
            assert {score["n"] for score in scores} == {count}


def test_training_images_are_scored_without_test_images(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*FOLDERS, *PIXELS, f"data.a={scenes / 'trainA'}", f"data.b={scenes / 'trainB'}") == 0
    for scores in evaluations("runs/smoke")[0]["directions"].values():
        assert {score["n"] for score in scores} == {8}


def test_training_is_bit_exact_with_and_without_scores(smoke: Command, by_rulers: tuple[str, ...]) -> None:
    assert smoke("generator.dropout=0.5") == 0
    assert smoke("generator.dropout=0.5", *by_rulers, "name=scored") == 0
    assert same(newest("runs/smoke"), newest("runs/scored"))
    assert without_speeds("runs/smoke") == [line for line in without_speeds("runs/scored") if "kid" not in line]


def test_run_without_scores_imports_no_evaluation(scenes: Path, tmp_path: Path) -> None:
    program = """
import sys
from cyclestyle import train
try:
    train.main()
except SystemExit as ended:
    rooms = ("cyclestyle.evaluation", "cyclestyle.translation", "cyclestyle.photoset", "cyclestyle.metrics")
    print(ended.code, [name for name in sys.modules if name.startswith((*rooms, "torchmetrics"))])
"""
    words = ["+experiment=smoke", f"data.root={scenes}", "data.test=4", "trainer.device=cpu", "trainer.steps=1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    printed = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.splitlines()[-1] == "0 []"
    assert not (tmp_path / "runs/smoke/scores.jsonl").exists()


# ------------------------------------------------------------------------------------------------------- resume


STOPPING = "logger.console._target_=tests.custom_parts.StopAt"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_stopped_and_resumed_run_has_the_scores_of_an_uninterrupted_run(smoke: Command, step: int) -> None:
    settings = (*PIXELS, "checkpoint.best=colours", "trainer.steps=5", "trainer.save_every=1")
    assert smoke(*settings, "name=straight") == 0
    assert smoke(*settings, STOPPING, f"logger.console.step={step}") == 75
    assert smoke(*settings) == 0
    assert [record["step"] for record in evaluations("runs/smoke")] == [2, 4, 5]
    for file in ("scores.jsonl", "checkpoints/best"):
        assert (Path("runs/smoke") / file).read_bytes() == (Path("runs/straight") / file).read_bytes()
    assert without_speeds("runs/smoke") == without_speeds("runs/straight")


def test_extended_run_keeps_the_scores_of_its_former_last_step(smoke: Command) -> None:
    assert smoke(*PIXELS, "trainer.steps=3") == 0
    first = (Path("runs/smoke") / "scores.jsonl").read_bytes()
    assert smoke(*PIXELS, "trainer.steps=5") == 0
    assert (Path("runs/smoke") / "scores.jsonl").read_bytes().startswith(first)
    assert [record["step"] for record in evaluations("runs/smoke")] == [2, 3, 4, 5]


def test_resume_without_scores_removes_lines_of_steps_that_are_trained_again(smoke: Command) -> None:
    assert smoke(*PIXELS) == 0
    lines = (Path("runs/smoke") / "scores.jsonl").read_text()
    (Path("runs/smoke") / "scores.jsonl").write_text(lines + '{"step": 5, "values": {}}\n')
    assert smoke("trainer.steps=6") == 0
    assert (Path("runs/smoke") / "scores.jsonl").read_text() == lines


def test_scores_may_be_switched_on_by_a_resume_of_a_run_of_an_earlier_version(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    assert smoke() == 0
    (state,) = Path("runs/smoke/checkpoints/step_00000004").glob("training.pt")
    content = torch.load(state, weights_only=True)
    del content["recipe"]["scores"]  # earlier versions lack the node
    resave(state, content)
    capsys.readouterr()
    assert smoke("trainer.steps=5") == 0
    assert "scores" not in capsys.readouterr().out
    assert smoke(*PIXELS, "trainer.steps=6") == 0
    assert "changed since the last start: scores.every: None -> 2" in capsys.readouterr().out
    assert [record["step"] for record in evaluations("runs/smoke")] == [6]


def resave(file: Path, content: dict[str, Any]) -> None:
    """Replace a file of a checkpoint, and its entry in the manifest."""
    import torch

    from cyclestyle.checkpoints.manifest import fingerprint

    torch.save(content, file)
    path = file.parent / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][file.name] = fingerprint(file)
    path.write_text(json.dumps(manifest))


# ------------------------------------------------------------------------------------------- rulers and mistakes


def test_ruler_that_a_loss_sees_is_refused_before_the_first_step(
    smoke: Command, by_rulers: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(*by_rulers, FOLLOWS) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "scores.rulers: efficientnet_lite0 would rate this run too well, since objective.terms.content sees it: take "
        "vgg16_hed instead"
    )
    assert not Path("runs/smoke/checkpoints").exists()


def test_default_ruler_that_a_loss_sees_is_replaced(
    smoke: Command, tmp_path: Path, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_random_weights(tmp_path / "weights", "vgg16_hed", "lpips_alex")
    scoring = ("scores.every=2", f"scores.path={weights}", "scores.size=32", "scores.missing=error", "trainer.steps=2")
    assert smoke(*scoring, FOLLOWS) == 0
    assert (
        "scores.rulers: vgg16_hed, lpips_alex; without efficientnet_lite0, which would rate this run too well, since "
        "objective.terms.content sees it"
    ) in capsys.readouterr().out
    (record,) = evaluations("runs/smoke")
    assert {"kid/ab/vgg16_hed", "kid/ab/lpips_alex"} <= record["values"].keys()
    settings = {"data": {"root": str(scenes)}, "features": {"path": str(weights)}, "device": "cpu", "size": 32}
    report = evaluate("runs/smoke", names=["kid"], output="evaluation", **settings)
    assert {score.ruler for score in report.directions[0].scores} == {"vgg16_hed", "lpips_alex"}
    with pytest.raises(CommandError, match="rulers: efficientnet_lite0 cannot judge this model"):
        evaluate("runs/smoke", names=["kid"], rulers=["efficientnet_lite0"], output="evaluation", **settings)


def test_missing_weights_are_named_in_one_line_and_training_continues(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke("scores.every=2", "scores.missing=skip", "checkpoint.best=kid") == 0
    captured = capsys.readouterr()
    assert (
        "no weights of efficientnet_lite0, vgg16_hed: their scores are left out; to have them, run "
        "python -m cyclestyle.download features=[efficientnet_lite0,vgg16_hed]\n"
    ) in captured.out
    assert "checkpoint.best=kid: no number of this name has been logged so far" in captured.err
    assert not Path("runs/smoke/scores.jsonl").exists()


def test_checkpoint_best_kid_gives_no_warning_before_the_first_evaluation(
    smoke: Command, by_rulers: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(*by_rulers, "scores.every=3", "checkpoint.best=kid/ab/lpips_alex") == 0
    assert capsys.readouterr().err == ""
    assert best("runs/smoke")["name"] == "kid/ab/lpips_alex"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scores.every=0"], "scores.every=0: give a number of steps, 1 or more"),
        (["scores.every=2", "scores.images=1"], "scores.images=1: give the maximum number of images of a set, 2 or"),
        (["scores.every=2", "scores.size=16"], "scores.size=16: give 32 px or more"),
        (["scores.every=2", "scores.photo_size=8"], "scores.photo_size=8: give 32 px or more"),
        (["scores.every=2", "scores.names=[]"], "scores.names=[]: give at least one of kid, fid, style"),
        (["scores.every=2", "scores.names=[lpips]"], "scores.names: lpips is no score that training computes: there"),
        (["scores.every=2", "scores.missing=no"], "scores.missing=no: expected fetch, error or skip"),
        (["scores.every=2", "scores.missing=error"], "no weights of efficientnet_lite0 on this machine: run python -m"),
        (["scores.every=2", "scores.path=none"], "scores.path=none does not exist"),
        (["scores.every=2", "scores.rulers=[vgg15]"], "no pretrained network vgg15: there are efficientnet_lite0"),
        (["scores.evry=2"], "scores.evry"),
        ([*PIXELS, "data.channels_a=1", "objective.identity=0"], "scores.every needs RGB images, and data.channels_a"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_invalid_setting_of_scores_is_rejected_before_the_first_step(
    smoke: Command, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert smoke(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not Path("runs/smoke/checkpoints").exists()


def test_demo_without_weights_names_them_and_downloads_nothing(
    smoke: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = compose.to_plain(compose.compose("train", ["experiment=demo"]))["scores"]
    settings = [f"scores.{key}={value if value is not None else 'null'}" for key, value in demo.items()]
    assert smoke(*(setting.replace("'", "").replace(" ", "") for setting in settings)) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    (line,) = [line for line in captured.out.splitlines() if "weights" in line]
    assert line.endswith("run python -m cyclestyle.download features=efficientnet_lite0")
    assert not Path("runs/smoke/scores.jsonl").exists()
