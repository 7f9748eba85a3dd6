"""Exported models: round trips through each format, and their use in other programs."""

import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from cyclestyle.checkpoints.directory import Checkpoints, read_model
from cyclestyle.checkpoints.model import write_model as write
from cyclestyle.distributed.world import World
from cyclestyle.errors import CheckpointError, CommandError, DiskError
from cyclestyle.evaluate import evaluate
from cyclestyle.export import export
from cyclestyle.model_files import initial
from cyclestyle.networks import registry
from cyclestyle.translation import Translator
from tests.reference_networks import ReferencePatch, ReferenceResNet, ReferenceUNet
from tests.translation.models import noise, pixels_of, write_model, write_picture

GOLDEN = Path(__file__).parent / "golden" / "weights"
RESNET6 = {"name": "resnet", "channels": 4, "blocks": 6}
UNET7 = {"name": "unet", "channels": 2, "levels": 7}
TINY = {"name": "resnet", "channels": 4, "blocks": 1}
BOTH = ("photo2monet", "monet2photo")
CODE = "name: !!python/object/apply:builtins.str [executed]"
ODD = [(1, 39), (39, 1), (8, 12), *((height, 5 * height % 41) for height in range(1, 41, 2))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training run with four steps."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["data.root=scenes", "trainer.device=cpu", "logger.tensorboard=null", "generator.blocks=6",
               "ema.decay=0.5", "data.domain_b=monet", "name=mine"]  # fmt: skip
    completed = command("train", "+experiment=smoke", *options, cwd=folder)
    assert completed.returncode == 0, completed.stderr
    return folder / "runs" / "mine"


def command(name: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", f"cyclestyle.{name}", *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, cwd=cwd, env=environment)


def load(path: Path, direction: str | None = None, **options: Any) -> Translator:
    return Translator.load(path, direction=direction, device="cpu", precision="fp32", **options)


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))) * 2 - 1


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="np") as opened:
        return json.loads(opened.metadata()["cyclestyle"])


# Safetensors


def test_safetensors_export_round_trip(trained: Path, tmp_path: Path) -> None:
    assert export(trained, output=tmp_path) == [tmp_path / f"{direction}.safetensors" for direction in BOTH]
    assert names(tmp_path) == {"photo2monet.safetensors", "monet2photo.safetensors"}
    for direction in BOTH:
        alone, whole = load(tmp_path / f"{direction}.safetensors"), load(trained, direction)
        assert (alone.direction, alone.directions, alone.step, alone.weights) == (direction, (direction,), 4, "ema")
        assert alone.fingerprint == whole.fingerprint
        x = images(2, 3, 13, 18)
        assert torch.equal(alone.values(x), whole.values(x))


def test_directions_of_different_architectures_are_exported(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", architecture=TINY, back={"name": "unet", "channels": 4, "levels": 2})
    export(path, output=tmp_path / "out")

    for direction, network in (("photo2monet", "resnet"), ("monet2photo", "unet")):
        alone = load(tmp_path / "out" / f"{direction}.safetensors")
        assert alone.generator.architecture["name"] == network
        assert alone.fingerprint == load(path, direction).fingerprint


def test_header_of_exported_file_describes_model_and_training(trained: Path, tmp_path: Path) -> None:
    export(trained, output=tmp_path, direction="a2b")
    assert names(tmp_path) == {"photo2monet.safetensors"}
    fields = header(tmp_path / "photo2monet.safetensors")
    assert fields["domains"] == ["photo", "monet"]
    assert fields["generators"] == {"ab": registry.build(RESNET6).architecture}
    assert fields["discriminators"] == {}
    exported = fields["export"]
    assert (exported["direction"], exported["weights"], exported["step"]) == ("photo2monet", "ema", 4)

    last = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert exported["training"]["name"] == "mine"
    assert exported["training"]["steps"] == last["step"] == 4
    assert exported["training"]["losses"] == {key[5:]: value for key, value in last.items() if key.startswith("loss/")}
    assert len(exported["training"]["losses"]) == 8
    recipe = {"data.crop_size": 32, "objective.cycle_a": 10.0, "ema.decay": 0.5, "adversarial": "LeastSquares"}
    assert recipe.items() <= exported["training"]["recipe"].items()


def test_export_of_older_checkpoint_has_losses_of_its_own_step(trained: Path, tmp_path: Path) -> None:
    export(trained / "checkpoints" / "step_00000002", output=tmp_path, direction="a2b")
    training = header(tmp_path / "photo2monet.safetensors")["export"]["training"]
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[1])
    assert (line["step"], training["steps"]) == (2, 2)
    assert training["losses"]["cycle_a"] == line["loss/cycle_a"]


def test_training_summary_merges_losses_from_all_log_lines_of_a_step(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    lines = [
        {"step": 2, "loss/gan_ab": 1.0, "loss/cycle_a": 2.0, "speed/images_per_s": 3.0},
        {"step": 2, "kid": 0.04},
        {"step": 2, "loss/validation": 5.0},
        {"step": 3, "kid_loss/x": 0.03},
        {"step": 5, "loss/gan_ab": 9.0},
    ]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    export(tmp_path / "run", output=tmp_path / "out", direction="a2b")
    training = header(tmp_path / "out" / "photo2monet.safetensors")["export"]["training"]
    assert training["losses"] == {"gan_ab": 1.0, "cycle_a": 2.0, "validation": 5.0}


@pytest.mark.parametrize(
    "config",
    ["", "[1, 2", "- a\n- b\n", "a: &a [*a]\n", "a: &a {b: *a}\n", "generator: {_target_: os.putenv}", "\0", CODE,
     "adversarial: {_target_: [a]}", "trainer: {memory: [a]}"],
)  # fmt: skip
def test_damaged_config_and_log_shorten_the_summary_in_exported_file(
    trained: Path, tmp_path: Path, config: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(config)
    (tmp_path / "run" / "metrics.jsonl").write_bytes(
        b'{"step": 4, "loss/x": NaN, "loss/y": 1}\n[]\n{"step": "\xff\n{"loss/'
    )
    export(tmp_path / "run", output=tmp_path / "out", direction="a2b")
    training = header(tmp_path / "out" / "photo2monet.safetensors")["export"]["training"]
    assert training == {"name": "run", "steps": 4, "recipe": {}, "losses": {"y": 1}}


def test_translate_and_evaluate_accept_exported_files(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    completed = command("export", f"checkpoint={trained}", f"output={tmp_path / 'Müller, exported'}")
    assert completed.returncode == 0, completed.stderr
    assert [line.partition(": ")[0] for line in completed.stdout.splitlines()] == [
        str(tmp_path / "Müller, exported" / f"{direction}.safetensors") for direction in BOTH
    ]
    write_picture(tmp_path / "in" / "x.png", size=(15, 11))
    file = tmp_path / "Müller, exported" / "photo2monet.safetensors"
    options = [f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "device=cpu", "precision=fp32"]
    completed = command("translate", f"checkpoint={file}", *options)
    assert completed.returncode == 0, completed.stderr
    with Image.open(tmp_path / "in" / "x.png") as image:
        expected = load(trained, "photo2monet")(image)
    assert np.array_equal(pixels_of(tmp_path / "out" / "x.png"), np.asarray(expected))
    (report,) = evaluate(file, tmp_path / "in", truth=tmp_path / "in", device="cpu").directions
    assert (report.direction, report.find("truth_psnr").n) == ("photo2monet", 1)
    assert "PSNR" in capsys.readouterr().out


def test_direction_or_weights_missing_from_exported_file_are_rejected(tmp_path: Path) -> None:
    export(write_model(tmp_path / "model"), output=tmp_path)
    file = tmp_path / "monet2photo.safetensors"
    assert load(file, "b2a").direction == load(file, "monet2photo").direction == "monet2photo"
    message = f"direction=a2b: {file} holds one direction only, monet2photo: leave direction= out"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        load(file, "a2b")
    with pytest.raises(CommandError, match=r"^weights=raw: .* holds the moving average only, leave weights= out$"):
        load(file, weights="raw")

    export(tmp_path / "model", output=tmp_path / "raw", weights="raw")
    raw = load(tmp_path / "raw" / "monet2photo.safetensors")
    assert raw.weights == "raw"
    assert raw.fingerprint == load(tmp_path / "model", "b2a", weights="raw").fingerprint != load(file).fingerprint


def test_exported_file_can_be_exported_again(trained: Path, tmp_path: Path) -> None:
    export(trained, output=tmp_path, direction="b2a")
    file = tmp_path / "monet2photo.safetensors"
    export(file, output=tmp_path / "again")
    assert header(tmp_path / "again" / file.name) == header(file)
    assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    export(file, output=tmp_path / "reference", format="reference")
    assert names(tmp_path / "reference") == {"latest_net_G_B.pth"}


# Original .pth files (format=reference)


def test_original_pth_export_round_trip(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(trained, output=tmp_path, format="reference")
    assert names(tmp_path) == {f"latest_net_{kind}_{letter}.pth" for kind in "GD" for letter in "AB"}
    note = "the reference tools load it with --netG resnet_6blocks --ngf 4 --norm instance --no_dropout"
    assert capsys.readouterr().out.count(note) == 2
    for letter, direction in zip("AB", BOTH, strict=True):
        back, original = load(tmp_path / f"latest_net_G_{letter}.pth"), load(trained, direction)
        x = images(1, 3, 17, 30)
        assert torch.equal(back.values(x), original.values(x))
        assert back.fingerprint == original.fingerprint


@pytest.mark.parametrize(
    ("architecture", "network", "size"),
    [
        (RESNET6, ReferenceResNet(4, 6), 24),
        (RESNET6 | {"dropout": 0.2}, ReferenceResNet(4, 6, dropout=True), 24),
        (UNET7, ReferenceUNet(2, 7), 128),
    ],
    ids=["resnet", "dropout", "unet"],
)
def test_networks_of_original_implementation_load_exported_pth_files(
    tmp_path: Path, architecture: dict[str, Any], network: nn.Module, size: int
) -> None:
    model = write_model(tmp_path / "model", architecture=architecture)
    export(model, output=tmp_path, format="reference", direction="a2b")
    network.load_state_dict(torch.load(tmp_path / "latest_net_G_A.pth", weights_only=True), strict=True)
    x = images(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), load(model, "a2b").values(x), rtol=0, atol=1e-5)
    back = load(tmp_path / "latest_net_G_A.pth")  # a .pth file does not contain the dropout rate
    assert back.fingerprint == load(model, "a2b").fingerprint


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (RESNET6 | {"upsample": "resize"}, "no resnet with upsample=resize"),
        (UNET7 | {"upsample": "resize"}, "no unet with upsample=resize"),
        (TINY, "9 and 6 blocks, this one has 1"),
        (UNET7 | {"levels": 3}, "8 and 7 levels, this one has 3"),
    ],
)
def test_pth_export_of_unsupported_network_fails_and_writes_nothing(
    tmp_path: Path, architecture: dict[str, Any], reason: str
) -> None:
    model = write_model(tmp_path / "model", architecture=architecture)
    with pytest.raises(CheckpointError, match=f"^{model}: .*{reason}.*$"):
        export(model, output=tmp_path / "out", format="reference")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "direction"), [("latest_net_G_A.pth", "a2b"), ("latest_net_G_B.pth", "b2a"), ("horse2zebra.pth", None)]
)
def test_original_pth_file_exports_to_safetensors(tmp_path: Path, name: str, direction: str | None) -> None:
    shutil.copy(GOLDEN / "resnet9_dataparallel.pth", tmp_path / name)
    export(tmp_path / name)
    file = (tmp_path / name).with_suffix(".safetensors")
    ours = load(file, direction)
    golden = np.load(GOLDEN / "io.npz")
    np.testing.assert_allclose(ours.values(torch.from_numpy(golden["x"])).numpy(), golden["resnet9"], rtol=0, atol=1e-5)
    assert ours.fingerprint == load(tmp_path / name).fingerprint
    assert ours.step is None
    assert header(file)["export"]["direction"] == direction
    if direction is None:
        with pytest.raises(CommandError, match="holds one direction only: leave direction= out"):
            load(file, "a2b")


def test_init_option_reads_discriminators_from_original_pth_export(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = export(trained, output=tmp_path / "both", format="reference")
    assert [file.name for file in files] == [f"latest_net_{kind}_{letter}.pth" for kind in "GD" for letter in "AB"]
    note = (
        "it judges the outputs of latest_net_G_A.pth; the reference tools load it with --netD n_layers --n_layers_D 1"
    )
    assert note in capsys.readouterr().out
    saved, read = read_model(trained), initial.read(tmp_path / "both", ("photo", "monet")).model
    assert read.discriminators == saved.discriminators
    for prefix, original in (("generators.", "ema."), ("discriminators.", "discriminators.")):
        weights, expected = read.weights_under(prefix), saved.weights_under(original)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    theirs = torch.load(tmp_path / "both" / "latest_net_D_A.pth", weights_only=True)  # it judges domain b
    network = ReferencePatch(4, 1)
    network.load_state_dict(theirs, strict=True)
    ours = registry.build(saved.discriminators["b"])
    ours.load_state_dict(saved.weights_under("discriminators.b."))
    with torch.no_grad():
        torch.testing.assert_close(network(images(1, 3, 32, 32)), ours(images(1, 3, 32, 32)), rtol=0, atol=1e-5)

    export(trained, output=tmp_path / "one", format="reference", direction="monet2photo")
    assert names(tmp_path / "one") == {"latest_net_G_B.pth", "latest_net_D_B.pth"}
    with pytest.raises(CommandError, match=r"latest_net_G_B\.pth exists already"):
        export(trained, output=tmp_path / "one", format="reference", direction="monet2photo")
    (tmp_path / "one" / "latest_net_G_B.pth").unlink()
    with pytest.raises(CommandError, match=r"latest_net_D_B\.pth exists already"):
        export(trained, output=tmp_path / "one", format="reference", direction="monet2photo")


def test_discriminator_that_the_original_implementation_lacks_is_reported(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = read_model(trained)
    pixel = registry.build({"name": "pixel", "channels": 4})
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("discriminators.b.")}
    tensors |= {f"discriminators.b.{name}": tensor for name, tensor in pixel.state_dict().items()}
    mixed = model._replace(tensors=tensors, discriminators=model.discriminators | {"b": pixel.architecture})
    write(mixed, tmp_path / "mixed.safetensors")
    export(tmp_path / "mixed.safetensors", output=tmp_path / "out", format="reference")
    assert names(tmp_path / "out") == {"latest_net_G_A.pth", "latest_net_G_B.pth", "latest_net_D_B.pth"}
    assert "discriminator b is not written: no reference file fits PixelDiscriminator: " in capsys.readouterr().out


# ONNX


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export direction a2b of the tiny model in the sibling folder `model`; return the ONNX file."""
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    folder = tmp_path_factory.mktemp("onnx")
    export(write_model(folder / "model", architecture=TINY), format="onnx", output=folder, direction="a2b")
    return folder / "photo2monet.onnx"


@pytest.mark.parametrize(
    "architecture",
    [
        TINY,
        TINY | {"upsample": "resize", "dropout": 0.5},
        UNET7 | {"levels": 3},
        UNET7 | {"upsample": "resize"},
        UNET7 | {"levels": 3, "detail": 3},
    ],
    ids=["resnet", "resized resnet", "unet", "resized unet", "unet with detail"],
)
def test_onnx_file_gives_same_outputs_as_pytorch_at_every_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], architecture: dict[str, Any]
) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    model = write_model(tmp_path / "model", architecture=architecture)
    export(model, format="onnx", output=tmp_path, direction="photo2monet")
    out, err = capfd.readouterr()
    assert err == ""
    first, difference, other = out.splitlines()
    assert first.startswith(f"{tmp_path / 'photo2monet.onnx'}: ")
    assert len(re.findall(r"\d\.\de-0\d at \d x 3 x \d+ x \d+", difference)) == 3
    assert "multiples of" in other
    assert names(tmp_path) == {"model", "photo2monet.onnx"}  # no separate file of weights

    ours, pytorch = load(tmp_path / "photo2monet.onnx"), load(model, "photo2monet")
    assert (ours.backend, ours.direction, ours.generator) == ("onnx", "photo2monet", None)
    for number, (height, width) in enumerate(ODD):
        x = images(1 + number % 3, 3, height, width)
        output, expected = ours.values(x), pytorch.values(x)
        assert output.shape == x.shape
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.01

    # Values at 1 x 1 px are not compared: all pixels of the padded image are equal, so instance norm magnifies
    # rounding errors.
    assert ours.values(images(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_translate_accepts_an_onnx_file_as_checkpoint(tmp_path: Path, onnx_file: Path) -> None:
    for number, size in enumerate([(9, 7), (9, 7), (30, 41)]):
        write_picture(tmp_path / "in" / f"{number}.png", size=size, seed=number)
    completed = command(
        "translate", f"checkpoint={onnx_file}", f"input={tmp_path / 'in'}", f"output={tmp_path / 'out'}"
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == ""
    first = completed.stdout.splitlines()[0]
    assert first == f"{onnx_file} (step 42), photo2monet, ema weights, on onnxruntime CPU, fp32: 3 to translate"
    for number, translator in enumerate([load(onnx_file.parent / "model", "a2b")] * 3):
        with Image.open(tmp_path / "in" / f"{number}.png") as image:
            expected = np.asarray(translator(image)).astype(int)
        assert np.abs(pixels_of(tmp_path / "out" / f"{number}.png") - expected).max() <= 1


def test_onnx_header_has_sizes_and_no_local_paths(onnx_file: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    (fields,) = (json.loads(entry.value) for entry in model.metadata_props if entry.key == "cyclestyle")
    assert (fields["multiple"], fields["minimum"], fields["domains"]) == (4, 8, ["photo", "monet"])
    assert fields["direction"] == "photo2monet"
    assert fields["generator"]["name"] == "resnet"
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    assert [bool(size.dim_param) for size in sizes] == [True, False, True, True]
    assert b"site-packages" not in onnx_file.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in onnx_file.read_bytes()


def test_onnx_fingerprint_depends_on_file_contents_only(tmp_path: Path, onnx_file: Path) -> None:
    moved = shutil.copy(onnx_file, tmp_path / "other.onnx")
    assert load(moved).fingerprint == load(onnx_file).fingerprint
    assert load(moved).fingerprint != load(onnx_file.parent / "model", "a2b").fingerprint


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"precision": "bf16"}, "^precision=bf16: .* computes in fp32"),
        ({"device": "mps"}, "^device=mps: this onnxruntime does not support it, it would run on "),
        ({"compile": True}, "^compile=true is for PyTorch"),
        ({"direction": "monet2photo"}, "holds one direction only, photo2monet: leave direction= out$"),
        ({"backend": "torch"}, "^backend=torch: .* leave backend= out$"),
    ],
)
def test_options_unsupported_by_onnx_are_rejected(onnx_file: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        Translator.load(onnx_file, **options)
    assert Translator.load(onnx_file, device="cpu", backend="onnx", direction="a2b").backend == "onnx"


def test_cuda_is_rejected_without_onnxruntime_cuda(onnx_file: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(CommandError, match=r"^device=cuda: this onnxruntime does not support it, it would run on cpu$"):
        Translator.load(onnx_file, device="cuda")


def test_onnx_file_cannot_be_exported_again(onnx_file: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"photo2monet\.onnx is an ONNX file, .*: give the checkpoint that it came from"
    ):
        export(onnx_file, format="safetensors")


class Drifting(nn.Module):
    """Network whose outputs differ by `by` from those of its exported graph, but only for batches of two images."""

    multiple = minimum = 4

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.scale = by, nn.Parameter(torch.ones(1))

    def unpadded(self, x: Tensor) -> Tensor:
        return x * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.unpadded(x) + self.by * (x.shape[0] == 2)


@pytest.mark.parametrize(("by", "fails"), [(0.0005, False), (0.002, True), (float("nan"), True)])
def test_onnx_export_rejects_graph_with_different_outputs(by: float, fails: bool) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra `export`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    from cyclestyle.model_files import onnx
    from cyclestyle.model_files.generator_file import GeneratorFile

    source = GeneratorFile({"name": "drifting"}, {}, "ab", ("a", "b"), "raw", Path("x.safetensors"), 1)
    if not fails:
        largest = [difference.largest for difference in onnx.export(Drifting(by), source).differences]
        assert largest == pytest.approx([0, by, 0], abs=1e-6)
        return
    with pytest.raises(CheckpointError, match=r"^x\.safetensors: as onnx its images differ by .* at \d x 3 x "):
        onnx.export(Drifting(by), source)


# Output files


def test_default_output_folder_depends_on_kind_of_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_model(tmp_path / "alone")
    run = tmp_path / "run"
    path = Checkpoints(run / "checkpoints").save(read_model(file), {}, {}, world=World())
    (run / "config.yaml").write_text("name: run\n")
    for checkpoint, expected in [
        (file, tmp_path / "alone"),
        (tmp_path / "alone", tmp_path / "alone" / "exported"),
        (run, run / "exported"),
        (path, run / "exported"),
        (path / "networks.safetensors", run / "exported"),
    ]:
        export(checkpoint, existing="overwrite")
        assert (expected / "photo2monet.safetensors").is_file()
        assert names(path) == {"networks.safetensors", "training.pt", "rank0.pt", "manifest.json"}


def test_existing_output_files_are_preserved_by_default(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "monet2photo.safetensors").write_text("mine")
    with pytest.raises(CommandError, match=r"monet2photo\.safetensors exists already: give existing=overwrite or "):
        export(model, output=tmp_path)
    assert names(tmp_path) == {"model", "monet2photo.safetensors"}
    export(model, output=tmp_path, existing="overwrite")
    assert load(tmp_path / "monet2photo.safetensors").step == 42


def test_source_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "latest_net_G_A.pth"
    shutil.copy(GOLDEN / "resnet9_legacy.pth", file)
    before = file.read_bytes()
    with pytest.raises(CommandError, match=r"is the checkpoint itself, which is never overwritten: give output=$"):
        export(file, format="reference", existing="overwrite")
    assert file.read_bytes() == before


def test_output_folder_that_is_a_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CommandError, match=r"^output=.*out is a file: give a folder$"):
        export(write_model(tmp_path / "model"), output=tmp_path / "out")


@pytest.mark.parametrize(
    ("domains", "expected"),
    [
        (("../../x", "/etc/y"), {"_.._x2_etc_y", "_etc_y2_.._x"}),
        (("x", "x2x"), {"a2b", "b2a"}),
        (("A", "a"), {"a2b", "b2a"}),
        (("", "b"), {"a2b", "b2a"}),
        (("Höhe\n", "b" * 999), {f"Höhe_2{'b' * 60}", f"{'b' * 60}2Höhe_"}),
    ],
)
def test_file_names_are_safe_for_any_domain_names(tmp_path: Path, domains: tuple[str, str], expected: set[str]) -> None:
    export(write_model(tmp_path / "model", domains=domains), output=tmp_path / "out")
    assert names(tmp_path / "out") == {f"{name}.safetensors" for name in expected}
    assert names(tmp_path) == {"model", "out"}


def test_export_to_full_disk_leaves_no_files(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(DiskError, match=r"^cannot write photo2monet\.safetensors: file too large \(need 0"):
            export(model, output=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path / "out") == set()


def test_unknown_direction_error_lists_known_directions(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    with pytest.raises(CommandError, match=r"^direction=photo2cezanne is unknown: .* photo2monet or monet2photo$"):
        export(model, output=tmp_path / "out", direction="photo2cezanne")
    assert not (tmp_path / "out").exists()


def test_model_file_with_one_direction_is_exported(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model", ema=False)
    model = read_model(path)
    write(model._replace(tensors={key: value for key, value in model.tensors.items() if ".ba." in key}), path)
    export(path, output=tmp_path / "out")
    assert names(tmp_path / "out") == {"monet2photo.safetensors"}
    assert load(tmp_path / "out" / "monet2photo.safetensors")(Image.fromarray(noise(5, 5))).size == (5, 5)


def test_export_command_starts_without_importing_torch() -> None:
    code = "import sys, cyclestyle.export; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
