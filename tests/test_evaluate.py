"""The evaluate command: forms of the command line, printed tables, files, several models, several processes, errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cyclestyle import evaluate, export
from cyclestyle.checkpoints.directory import read_model
from cyclestyle.checkpoints.model import write_model as write_networks
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CommandError, CyclestyleError, DataError
from cyclestyle.evaluate import evaluate as run
from cyclestyle.evaluation.comparison import Comparison
from cyclestyle.evaluation.report import Report
from tests.evaluation.random_weights import write_random_weights
from tests.translation.models import RESNET, write_model, write_picture

REPOSITORY = Path(__file__).parent.parent
RULERS = ["efficientnet_lite0", "lpips_alex"]
SETTINGS = ["device=cpu", "precision=fp32", "size=32"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with random weights of two networks."""
    return write_random_weights(tmp_path_factory.mktemp("weights"), *RULERS)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data set of drawn scenes with 6 training images and 4 test images in each domain."""
    root = tmp_path_factory.mktemp("data") / "scenes"
    draw(root, train=6, test=4, size=48)
    return root


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Path of a run folder with a tiny model of the directions photo2painting and painting2photo."""
    monkeypatch.chdir(tmp_path)
    return write_run(Path("runs/mine"))


def write_run(folder: Path, *, domains: tuple[str, str] = ("photo", "painting")) -> str:
    """Write a run folder whose only checkpoint is a file of networks."""
    (folder / "checkpoints").mkdir(parents=True)
    write_model(folder, domains=domains)
    return str(folder)


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    return int(ended.value.code or 0)


def with_networks(weights: Path) -> list[str]:
    return [*SETTINGS, f"features.path={weights}", f"rulers=[{','.join(RULERS)}]"]


def saved(folder: str | Path) -> dict:
    return json.loads((Path(folder) / "evaluate.json").read_text())


def blocks(text: str) -> list[list[str]]:
    """Lines of each paragraph of the output."""
    return [block.splitlines() for block in text.split("\n\n")]


# ------------------------------------------------------------------------------------------- forms of the command


def test_data_set_is_scored_in_both_directions(
    model: str, scenes: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(monkeypatch, f"checkpoint={model}", f"data.root={scenes}", *with_networks(weights))
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    content = saved("runs/mine/evaluation")
    assert [direction["direction"] for direction in content["directions"]] == ["photo2painting", "painting2photo"]
    for direction in content["directions"]:
        found = {(score["name"], score["ruler"], score["row"]) for score in direction["scores"]}
        for name in ("kid", "fid"):
            assert {(name, ruler, row) for ruler in RULERS for row in ("translated", "untouched", "floor")} <= found
        pixels = ("colours", "content_ssim", "reconstruction_psnr", "reconstruction_ssim")
        assert {("lpips", "lpips_alex", "translated"), *((name, None, "translated") for name in pixels)} <= found
        kid = next(score for score in direction["scores"] if (score["name"], score["row"]) == ("kid", "translated"))
        assert (kid["n"], kid["reference"], kid["size"], kid["resize"]) == (4, 4, 32, "bicubic")
        assert kid["low"] <= kid["value"] <= kid["high"]
    files = ["evaluate.json", "plane.json", "plane.png", "plane.svg"]
    assert f"written to runs/mine/evaluation: {', '.join(files)}" in out
    assert sorted(path.name for path in Path("runs/mine/evaluation").iterdir()) == files


def test_two_folders_are_scored_in_the_direction_that_their_names_show(
    model: str, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("photos", "paintings"):
        for seed in range(3):
            write_picture(Path(folder) / f"{seed}.png", size=(40, 40), seed=seed)
    words = [f"checkpoint={model}", "input=photos/", "target=paintings/", *with_networks(weights)]
    assert command(monkeypatch, *words) == 0
    assert [direction["direction"] for direction in saved("runs/mine/evaluation")["directions"]] == ["photo2painting"]
    out = capsys.readouterr().out
    assert "photo2painting" in out
    assert "\npainting2photo\n" not in out
    assert command(monkeypatch, f"checkpoint={model}", "input=paintings", *SETTINGS) == 0
    assert [direction["direction"] for direction in saved("runs/mine/evaluation")["directions"]] == ["painting2photo"]


def test_strengths_give_a_curve(model: str, scenes: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["strength=[0,0.5,1]", "direction=photo2painting", "output=scores", "names=[kid,structure,style]"]
    assert command(monkeypatch, f"checkpoint={model}", f"data.root={scenes}", *with_networks(weights), *words) == 0
    (direction,) = saved("scores")["directions"]
    assert [point["strength"] for point in direction["curve"]] == [0, 0.5, 1]
    structure = [
        point["scores"][-1]["value"] for point in direction["curve"] if point["scores"][-1]["name"] == "structure"
    ]
    assert structure[0] == 0 < structure[1]
    (plane,) = json.loads(Path("scores/plane.json").read_text())["directions"]
    assert [point["strength"] for point in plane["points"]] == [0, 0.5, 1]


def test_robustness_is_measured_in_each_direction(
    model: str, scenes: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["robustness=true", "names=[lpips]", "images=2", *with_networks(weights)]
    assert command(monkeypatch, f"checkpoint={model}", f"data.root={scenes}", *words) == 0
    out = capsys.readouterr().out
    for direction in ("photo2painting", "painting2photo"):
        content = json.loads(Path(f"runs/mine/evaluation/robustness_{direction}.json").read_text())
        assert (content["n"], {movement["measure"] for movement in content["movements"]}) == (
            2, {"lpips_alex", "RMS in 1/255"}
        )  # fmt: skip
        assert f"{direction}, robustness, lpips_alex, images resized to 32 px, photos as stored, n = 2" in out


def test_aligned_data_set_gives_scores_of_truth_in_both_directions(model: str, scenes: Path) -> None:
    report = run(model, data={"root": str(scenes), "aligned": True}, device="cpu")
    assert isinstance(report, Report)
    for direction in report.directions:
        assert direction.find("truth_psnr", row="translated").n == 4
        assert direction.find("truth_ssim", row="mapped") is not None


@pytest.mark.parametrize("kept", ["truth", "target"])
def test_command_lines_of_earlier_versions_keep_their_scores(
    model: str, scenes: Path, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"checkpoint={model}", f"input={scenes}/testA", f"{kept}={scenes}/testB", "direction=photo2painting"]
    assert command(monkeypatch, *words, "device=cpu") == 0
    out = capsys.readouterr().out
    expected = {"truth": ["PSNR", "best global colour map"], "target": ["colour distance"]}[kept]
    assert [word for word in [*expected, "photo unchanged", "this model", "content kept"] if word not in out] == []


def test_folders_of_domains_may_be_given_one_by_one(model: str, scenes: Path) -> None:
    data = {"a": f"{scenes}/trainA", "b": f"{scenes}/trainB", "test_b": f"{scenes}/testB"}
    report = run(model, data=data, device="cpu", names=["colours"])
    assert [direction.find("colours").n for direction in report.directions] == [6, 4]


# ---------------------------------------------------------------------------------------------------------- output


def test_numbers_of_different_protocols_are_in_different_tables(
    model: str, scenes: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["direction=photo2painting", f"truth={scenes}/testB"]
    assert command(monkeypatch, f"checkpoint={model}", f"data.root={scenes}", *with_networks(weights), *words) == 0
    tables = {
        block[0]: block[2:] for block in blocks(capsys.readouterr().out) if len(block) > 2 and "n" in block[1].split()
    }
    assert [title for title in tables if title.startswith("features, ")] == [
        f"features, {ruler}, images resized to 32 px, bicubic" for ruler in RULERS
    ]
    for title, rows in tables.items():
        names = [re.split(r"\s{2,}", row.strip())[0] for row in rows]
        has_pixels = any(name.startswith(("PSNR", "SSIM", "L1", "colour")) for name in names)
        has_features = any(name.startswith(("KID", "FID", "style", "structure", "distance")) for name in names)
        assert (has_pixels, has_features) == (title.startswith("pixels"), title.startswith("features"))
        assert all(re.search(r"\d$", row) for row in rows)  # each line ends with the numbers of images
    assert "pixels, images as stored" in tables


def test_models_are_compared(model: str, scenes: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(Path("runs/other"))
    options = {"device": "cpu", "size": 32, "rulers": RULERS, "features": {"path": str(weights)}}
    compared = run([model, other], data={"root": str(scenes)}, names=["kid", "content_ssim"], output="both", **options)
    assert isinstance(compared, Comparison)
    assert compared.labels == (model, other)
    assert [report.checkpoint for report in compared.reports] == [model, other]
    assert compared.reports[0].directions == compared.reports[1].directions  # equal weights
    assert compared.disagreements == ()
    out = capsys.readouterr().out
    assert "*: best of the line" in out
    assert {path.relative_to("both").as_posix() for path in Path("both").rglob("*") if path.is_file()} == {
        "model_1/evaluate.json", "model_2/evaluate.json", "comparison.json"
    }  # fmt: skip


def test_model_file_writes_nothing_without_output(model: str, scenes: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    file = f"{model}/networks.safetensors"
    report = run(file, f"{scenes}/testA", direction="photo2painting", device="cpu", names=["content_ssim"])
    assert report.step == 42
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    run(file, f"{scenes}/testA", direction="photo2painting", device="cpu", names=["content_ssim"], output="out")
    assert saved("out")["checkpoint"] == file


def test_scores_are_printed_if_run_folder_cannot_be_written(
    model: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(model, "evaluation").touch()  # in place of the folder
    report = run(model, f"{scenes}/testA", direction="a2b", device="cpu", names=["content_ssim"])
    out, err = capsys.readouterr()
    assert report.directions[0].find("content_ssim") is not None
    assert "content kept" in out
    assert err == ("cyclestyle: runs/mine/evaluation cannot be written (file exists): output= gives another folder\n")


def test_file_has_everything_that_decides_the_scores(model: str, scenes: Path, weights: Path) -> None:
    networks = {"features": {"path": str(weights)}, "rulers": ["lpips_alex"], "size": 32}
    run(
        model,
        data={"root": str(scenes)},
        images=2,
        photo_size=32,
        seed=5,
        device="cpu",
        names=["kid", "lpips"],
        **networks,
    )
    settings = saved("runs/mine/evaluation")["settings"]
    assert settings["images"]["data"] == {"root": str(scenes)}
    assert (settings["images"]["limit"], settings["photo_size"], settings["seed"]) == (2, 32, 5)
    assert settings["networks"].keys() == {"lpips_alex, 32 px, bicubic"}
    assert all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in settings["networks"].values())
    assert [*settings["lpips"].values()] == [*settings["networks"].values()]


def test_infinite_scores_are_valid_json(model: str, scenes: Path) -> None:
    run(model, f"{scenes}/testA", truth=f"{scenes}/testA", device="cpu", direction="a2b", output="out")
    truth = [score for score in saved("out")["directions"][0]["scores"] if score["name"] == "truth_psnr"]
    assert [score["value"] for score in truth if score["row"] == "untouched"] == ["infinite"]


# ------------------------------------------------------------------------------------------------- pretrained weights


def test_missing_weights_are_named_in_one_line_and_pixels_are_scored(
    model: str, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, f"checkpoint={model}", f"data.root={scenes}", "device=cpu") == 0
    out, err = capsys.readouterr()
    (line,) = [line for line in out.splitlines() if "no weights" in line]
    names = "[efficientnet_lite0,vgg16_hed,lpips_alex]"
    assert line.endswith(f"python -m cyclestyle.download features={names}")
    assert err == ""
    assert "left out:" not in out
    assert saved("runs/mine/evaluation")["missing"] == ["efficientnet_lite0", "vgg16_hed", "lpips_alex"]
    assert "colour distance" in out


def test_missing_weights_are_an_error_on_request(model: str, scenes: Path) -> None:
    with pytest.raises(CommandError, match="no weights of efficientnet_lite0"):
        run(model, data={"root": str(scenes)}, missing="error", device="cpu")


def test_no_weights_are_needed_for_scores_of_pixels(
    model: str, scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["names=[colours,content_ssim]", "missing=error", "device=cpu"]
    assert command(monkeypatch, f"checkpoint={model}", f"data.root={scenes}", *words) == 0
    assert "weights of" not in capsys.readouterr().out


def trained_with(networks: tuple[str, ...], run_folder: str) -> None:
    """Record in the run's model that a loss used pretrained networks."""
    file = Path(run_folder) / "networks.safetensors"
    write_networks(read_model(file)._replace(losses_see=networks), file)


def test_ruler_that_a_loss_used_is_refused_or_replaced(
    model: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_random_weights(tmp_path / "weights", "efficientnet_lite0", "lpips_alex")
    settings = {"data": {"root": str(scenes)}, "features": {"path": str(folder)}, "device": "cpu", "size": 32}
    trained_with(("efficientnet_lite0", "vgg16_hed"), model)
    with pytest.raises(CommandError, match="rulers: vgg16_hed cannot judge this model, since a loss of its training"):
        run(model, rulers=["lpips_alex", "vgg16_hed"], **settings)
    report = run(model, names=["kid"], **settings)
    assert {score.ruler for direction in report.directions for score in direction.scores} == {"lpips_alex"}
    line = "rulers: lpips_alex, without efficientnet_lite0, vgg16_hed, which a loss of this model was computed with"
    assert line in capsys.readouterr().out

    other = write_run(Path("runs/other"))  # its own losses saw no network
    compared = run([other, model], names=["kid"], **settings)
    assert {score.ruler for report in compared.reports for score in report.directions[0].scores} == {"lpips_alex"}

    trained_with(("lpips_alex",), model)
    with pytest.raises(CommandError, match="lpips: lpips_alex cannot judge"):
        run(model, lpips=["lpips_alex"], names=["lpips"], **settings)
    (file,) = export.export(model, output="exported", direction="photo2painting")
    with pytest.raises(CommandError, match="lpips: lpips_alex cannot judge"):
        run(file, lpips=["lpips_alex"], names=["lpips"], **settings)


def test_style_is_measured_by_two_networks_by_default(model: str, scenes: Path, tmp_path: Path) -> None:
    folder = write_random_weights(tmp_path / "weights", "vgg16_hed", "lpips_alex")
    settings = {"features": {"path": str(folder)}, "device": "cpu", "size": 32, "images": 2}
    report = run(model, data={"root": str(scenes)}, names=["style", "kid"], direction="a2b", **settings)
    found = {(score.name, score.ruler) for score in report.directions[0].scores if score.row == "translated"}
    assert found == {("style", "vgg16_hed"), ("style", "lpips_alex"), ("kid", "vgg16_hed")}
    report = run(model, data={"root": str(scenes)}, names=["style"], direction="a2b", rulers=["vgg16_hed"], **settings)
    assert {score.ruler for score in report.directions[0].scores} == {"vgg16_hed"}


# -------------------------------------------------------------------------------------------------- kinds of models


def test_export_of_one_direction_is_scored_without_reconstruction(
    model: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file,) = export.export(model, output="exported", direction="painting2photo")
    report = run(file, data={"root": str(scenes)}, device="cpu")
    assert [direction.direction for direction in report.directions] == ["painting2photo"]
    (direction,) = report.directions
    assert direction.find("reconstruction_psnr") is None
    assert direction.find("colours").n == 4
    reason = (
        "left out: reconstruction_psnr, reconstruction_ssim (the model has no generator for the opposite direction)"
    )
    assert reason in capsys.readouterr().out


def test_onnx_file_has_scores_of_its_checkpoint(model: str, scenes: Path) -> None:
    pytest.importorskip("onnxruntime")
    (file,) = export.export(model, output="exported", direction="photo2painting", format="onnx")
    settings = {"target": f"{scenes}/testB", "device": "cpu", "precision": "auto", "names": ["colours", "content_ssim"]}
    onnx = run(file, f"{scenes}/testA", **settings)
    torch = run(model, f"{scenes}/testA", direction="photo2painting", **{**settings, "precision": "fp32"})
    for one, two in zip(onnx.directions[0].scores, torch.directions[0].scores, strict=True):
        assert one.value == pytest.approx(two.value, rel=1e-3)


def test_grey_model_is_scored_by_pixels_alone(
    scenes: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = write_model(tmp_path / "grey", architecture=RESNET | {"out_channels": 1}, back=RESNET | {"in_channels": 1})
    words = [f"checkpoint={grey}", f"data.root={scenes}", *with_networks(weights)]
    assert command(monkeypatch, *words, f"output={tmp_path / 'out'}") == 0
    assert {score["ruler"] for direction in saved(tmp_path / "out")["directions"] for score in direction["scores"]} == {
        None
    }
    out = capsys.readouterr().out
    assert out.count("left out: scores of pretrained networks (they need RGB images") == 2
    rgb = write_model(tmp_path / "rgb")
    compared = run([rgb, grey], data={"root": str(scenes)}, device="cpu", size=32, rulers=RULERS[:1], lpips=[],
                   names=["kid", "colours"], features={"path": str(weights)})  # fmt: skip
    assert [{score.name for score in report.directions[0].scores} for report in compared.reports] == [
        {"kid", "colours"}, {"colours"}
    ]  # fmt: skip
    with pytest.raises(CommandError, match="strength= needs a model that translates RGB"):
        run(grey, data={"root": str(scenes)}, strength=0.5, device="cpu")


# --------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, CommandError, r"evaluate needs photos: give input=photos/, .*data\.root="),
        ({"input": "photos", "data": {"root": "x"}}, CommandError, "leave one of them out"),
        ({"data": {"root": "SCENES"}, "target": "x"}, CommandError, "target= belongs to input="),
        ({"data": {"root": "SCENES"}, "truth": "x"}, CommandError, "truth= belongs to one direction"),
        ({"data": {"root": "SCENES"}, "direction": "a2c"}, CommandError, "direction=a2c is unknown"),
        ({"input": "SCENES/other"}, DataError, "no folder"),
        ({"data": {"root": "none"}}, DataError, "no folder .*none/trainA"),
        ({"data": {"root": "SCENES"}, "names": ["fidd"]}, CommandError, "no score fidd: did you mean fid"),
        ({"data": {"root": "SCENES"}, "rulers": ["vgg17"]}, CommandError, "vgg17"),
        ({"data": {"root": "SCENES"}, "lpips": ["vgg19"]}, CommandError, "lpips=vgg19: there are lpips_alex"),
        ({"data": {"root": "SCENES"}, "strength": 2}, CommandError, "strength=2 is out of range"),
        ({"data": {"root": "SCENES"}, "photo_size": 8}, CommandError, "photo_size=8: "),
        ({"data": {"root": "SCENES"}, "images": 0}, CommandError, "images=0: "),
        ({"data": {"root": "SCENES"}, "workers": -1}, CommandError, "workers=-1: "),
        ({"data": {"root": "SCENES"}, "output": "file"}, CommandError, "output=file is a file: give a folder"),
    ],
)  # fmt: skip
def test_invalid_choice_is_one_line(
    model: str, scenes: Path, settings: dict, error: type[CyclestyleError], message: str
) -> None:
    Path("file").touch()
    replaced = json.loads(json.dumps(settings).replace("SCENES", str(scenes)))
    with pytest.raises(error, match=message) as caught:
        run(model, **replaced, device="cpu")
    assert "\n" not in str(caught.value)


def test_direction_is_needed_if_folders_do_not_show_it(model: str, scenes: Path) -> None:
    write_picture(Path("mine/x.png"))
    with pytest.raises(
        CommandError, match="direction= is missing: this model translates photo2painting or painting2photo"
    ):
        run(model, "mine", device="cpu")
    assert run(model, f"{scenes}/testB", device="cpu").directions[0].direction == "painting2photo"


def test_empty_list_of_models_is_a_command_error(scenes: Path) -> None:
    with pytest.raises(CommandError, match=r"checkpoint=\[\]"):
        run([], data={"root": str(scenes)})


# ------------------------------------------------------------------------------------------------ several processes


def on_two_ranks(*words: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*launcher, "cyclestyle.evaluate", *words], env=environment, capture_output=True, text=True, check=False
    )


def test_two_ranks_give_scores_of_one_process(
    model: str, scenes: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = "[kid,style,structure,copying,lpips,colours,truth_psnr]"
    words = [
        f"checkpoint={model}", f"data.root={scenes}", *with_networks(weights), "rulers=[lpips_alex]", "batch_size=1",
        "data.aligned=true", "cache=false", "strength=[0.5,1]", "direction=photo2painting", f"names={names}",
    ]  # fmt: skip
    process = on_two_ranks(*words, f"output={tmp_path}/two")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("\nphoto2painting\n") == 1
    assert command(monkeypatch, *words, f"output={tmp_path}/one") == 0
    (one,), (two,) = (saved(tmp_path / name)["directions"] for name in ("one", "two"))
    for report, other in ((one, two), *zip(one["curve"], two["curve"], strict=True)):
        assert len(report["scores"]) == len(other["scores"]) >= 3
        for score, same in zip(report["scores"], other["scores"], strict=True):
            assert same == {key: pytest.approx(number, rel=1e-6) if isinstance(number, float) else number
                            for key, number in score.items()}  # fmt: skip


def test_error_of_two_ranks_is_one_line(model: str, scenes: Path) -> None:
    process = on_two_ranks(f"checkpoint={model}", f"input={scenes}/none", "direction=a2b", "device=cpu")
    assert process.returncode != 0
    assert sum("cyclestyle evaluate:" in line for line in process.stderr.splitlines()) == 1
