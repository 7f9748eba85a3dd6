"""Tests that damaged or malicious model files and run folders give exit code 4, execute no code, use little memory."""

import io
import json
import os
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from cyclestyle import train, translate
from cyclestyle.checkpoints.directory import read_model
from cyclestyle.checkpoints.manifest import sha256_of
from cyclestyle.checkpoints.model import write_model as write_networks
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CheckpointError
from cyclestyle.hardware.memory import resident_peak
from cyclestyle.model_files import pth
from tests.translation.models import pixels_of, write_model, write_picture

GOLDEN = Path(__file__).parents[1] / "golden" / "weights"
HUGE = 2**60
MARKER = "CYCLESTYLE_TEST_RAN"


class Evil:
    """Object that sets an environment variable when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, (f"import os; os.environ[{MARKER!r}] = '1'",)  # os.putenv would not show in os.environ


def reset_peak() -> int:
    """Lower the peak of this process's resident memory to the memory in use, on Linux; return the peak in bytes.

    Without it, the peak of one test would hide that of the next.
    """
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets the peak, see proc(5)
    return resident_peak()


def test_memory_peak_is_reset_between_tests() -> None:
    before = reset_peak()
    block = bytearray(96 * 2**20)
    assert resident_peak() - before > 64 * 2**20
    del block
    if sys.platform == "linux":
        assert reset_peak() - before < 64 * 2**20


def exit_code(command: object, *arguments: str) -> int:
    """Run the main function of a command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(SystemExit) as exit_info:
            command.main()  # type: ignore[attr-defined]
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def safetensors(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(begin: int, end: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def described(**changes: object) -> bytes:
    """Safetensors file with two tensors; `changes` replace fields of the network description in its header."""
    fields = {"version": 1, "step": 1, "domains": ["photo", "monet"], "discriminator": {"name": "patch"},
              "generator": {"name": "resnet", "channels": 4, "blocks": 1}}  # fmt: skip
    metadata = {"cyclestyle": json.dumps(fields | changes)}
    tensors = {"generators.ab.x": tensor(0, 4, [1]), "generators.ba.x": tensor(4, 8, [1])}
    return safetensors(json.dumps({"__metadata__": metadata, **tensors}).encode(), b"\0" * 8)


HARMFUL = {
    "a header of an exabyte": safetensors(b"{}", length=HUGE),
    "a header longer than the file": safetensors(b"{}", length=10**7),
    "overlapping tensors": safetensors(
        json.dumps({"x": tensor(0, 8, [2]), "y": tensor(4, 12, [2])}).encode(), b"\0" * 12
    ),
    "a tensor beyond the end": safetensors(json.dumps({"x": tensor(0, HUGE, [HUGE // 4])}).encode(), b"\0" * 8),
    "a shape of terabytes": safetensors(json.dumps({"x": tensor(0, 8, [HUGE, HUGE])}).encode(), b"\0" * 8),
    "a million channels": described(generator={"name": "resnet", "channels": 10**6, "blocks": 9}),
    "a million blocks": described(generator={"name": "resnet", "channels": 64, "blocks": 10**6}),
    "a _target_": described(generator={"_target_": "os.putenv", "name": "resnet", "_args_": [MARKER, "1"]}),
    "a _target_ for a name": described(generator={"name": "os.putenv", "channels": 4}),
    "an interpolation": described(generator={"name": "${oc.env:HOME}", "channels": 4}),
    "an interpolated number": described(generator={"name": "resnet", "channels": "${oc.env:HOME}"}),
    "an export that is not a mapping": described(export=7),
    "an exported million of channels": described(
        export={"direction": None, "training": [[[]]]}, generator={"name": "resnet", "channels": 10**6}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_model_file_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(HARMFUL[name])
    write_picture(tmp_path / "photos/x.png")
    before = reset_peak()
    assert (
        exit_code(
            translate, f"checkpoint={file}", f"input={tmp_path}/photos", f"output={tmp_path}/out", "direction=a2b"
        )
        == 4
    )
    assert resident_peak() - before < 64 * 2**20
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"cyclestyle translate: {file}") or "architecture" in first or "argument" in first
    assert len(rest) <= 5
    assert MARKER not in os.environ
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "latest_net_G_A.pth", "model.pt"])
def test_code_in_pickle_is_rejected_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    torch.save({"weights": Evil()}, tmp_path / name)
    write_picture(tmp_path / "photos/x.png")
    place = (f"input={tmp_path}/photos", f"output={tmp_path}/out", "direction=a2b")
    assert exit_code(translate, f"checkpoint={tmp_path / name}", *place) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert MARKER not in os.environ


def saved(content: object, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def repacked(content: bytes, method: int) -> bytes:
    """Copy of a ZIP archive, with its members compressed by `method`."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    return stream.getvalue()


def resnet(**changes: object) -> dict[str, object]:
    return {**torch.load(GOLDEN / "resnet6_zip.pth", weights_only=True), **changes}


PTH = {
    "a damaged end": (GOLDEN / "resnet9_truncated.pth").read_bytes(),
    "a damaged end in the old format": (GOLDEN / "resnet9_legacy.pth").read_bytes()[:-100],
    "nothing": b"",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "code": saved(resnet(more=Evil())),
    "code in the old format": saved(resnet(more=Evil()), legacy=True),
    "a whole network": saved(torch.nn.Conv2d(3, 3, 1)),
    "a list": saved([torch.zeros(3)]),
    "numbers for names": saved({1: torch.zeros(3)}),
    "numbers for tensors": saved(resnet(more=1.5)),
    "sparse tensors": saved(resnet(more=torch.eye(3).to_sparse())),
    "a megabyte in a few kilobytes": repacked(saved({"model.1.weight": torch.zeros(2**18)}), zipfile.ZIP_DEFLATED),
    "a compressed archive": repacked((GOLDEN / "resnet6_zip.pth").read_bytes(), zipfile.ZIP_DEFLATED),
    "a view of terabytes": saved({"model.1.weight": torch.zeros(1).expand(2**40)}),
    "a million channels": saved(
        resnet(**{"model.1.weight": torch.zeros(1, 3, 1, 1).expand(2**20, -1, -1, -1)})
    ),
    "whole numbers": saved({name: tensor.int() for name, tensor in resnet().items()}),  # type: ignore[attr-defined]
    "weights of another shape": saved(resnet(**{"model.4.weight": torch.zeros(2, 2)})),
    "nothing but buffers": saved({"model.1.running_mean": torch.zeros(3)}),
}  # fmt: skip


@pytest.mark.parametrize("name", PTH)
def test_harmful_pth_file_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    file = tmp_path / "latest_net_G_A.pth"
    file.write_bytes(PTH[name])
    write_picture(tmp_path / "photos/x.png")
    before = reset_peak()
    assert exit_code(translate, f"checkpoint={file}", f"input={tmp_path}/photos", f"output={tmp_path}/out") == 4
    assert resident_peak() - before < 64 * 2**20
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.startswith(f"cyclestyle translate: {file}")
    assert len(rest) == (name == "weights of another shape")
    assert MARKER not in os.environ
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a compressed archive", "a megabyte in a few kilobytes"])
def test_compressed_archive_is_rejected_before_unpacking(tmp_path: Path, name: str) -> None:
    (tmp_path / "bomb.pth").write_bytes(PTH[name])
    with pytest.raises(CheckpointError, match=r"bomb\.pth cannot be read: it is compressed, which torch\.save never"):
        pth.read_tensors(tmp_path / "bomb.pth")


def onnx_model(
    *,
    operator: str = "Identity",
    domain: str = "",
    external: bool = False,
    metadata: str | None = "",
    **changes: object,
) -> bytes:
    """ONNX file with a graph of one node and with valid metadata, in which `changes` replace some fields.

    Args:
        metadata: text that replaces the JSON metadata; None for a file without metadata.
    """
    from onnx import TensorProto, helper

    sizes = ["n", 3, "h", "w"]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name in ("x", "y"))
    weights = []
    if external:
        weights = [helper.make_tensor("x2", TensorProto.FLOAT, [1], [0.0])]
        weights[0].ClearField("float_data")
        weights[0].data_location = TensorProto.EXTERNAL
        for key, value in (("location", "secret.bin"), ("offset", "0"), ("length", "4")):
            entry = weights[0].external_data.add()
            entry.key, entry.value = key, value
    inputs = ["x", "x2"] if external else ["x"]
    node = helper.make_node("Add" if external else operator, inputs, ["y"], domain=domain)
    graph = helper.make_graph([node], "graph", [x], [y], weights)
    operators = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=operators, ir_version=10)
    valid = {"version": 1, "multiple": 4, "minimum": 8, "domains": ["a", "b"], "side": "ab", "direction": "a2b",
             "weights": "ema", "step": 1, "generator": {"name": "resnet"}}  # fmt: skip
    if metadata is not None:
        helper.set_model_props(model, {"cyclestyle": metadata or json.dumps(valid | changes)})
    content: bytes = model.SerializeToString()
    return content


ONNX = {
    "nothing": lambda: b"",
    "text": lambda: b"version https://git-lfs.github.com/spec/v1\n",
    "a damaged end": lambda: onnx_model()[:-30],
    "a custom operator": lambda: onnx_model(operator="Evil", domain="evil"),
    "weights in another file": lambda: onnx_model(external=True),
    "no description": lambda: onnx_model(metadata=None),
    "a description that is not JSON": lambda: onnx_model(metadata="[" * 100_000),
    "a description that is a list": lambda: onnx_model(metadata="[1]"),
    "a newer version": lambda: onnx_model(version=3),
    "a multiple of zero": lambda: onnx_model(multiple=0),
    "a multiple of terabytes": lambda: onnx_model(multiple=HUGE, minimum=HUGE),
    "a minimum that is text": lambda: onnx_model(minimum="8"),
    "an unknown side": lambda: onnx_model(side="os.putenv"),
    "three domains": lambda: onnx_model(domains=["a", "b", "c"]),
    "images of another size": lambda: onnx_model(operator="GlobalAveragePool"),
    "integers for images": lambda: onnx_model(operator="Shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX)
def test_harmful_onnx_file_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    pytest.importorskip("onnx", reason="needs the extra `export`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "photo2monet.onnx"
    file.write_bytes(ONNX[name]())
    Path("secret.bin").write_bytes(b"\0" * 4)
    write_picture(tmp_path / "photos/x.png")
    before = reset_peak()
    assert exit_code(translate, f"checkpoint={file}", f"input={tmp_path}/photos", f"output={tmp_path}/out") == 4
    assert resident_peak() - before < 128 * 2**20  # including onnxruntime
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"cyclestyle translate: {file} ")
    assert not (tmp_path / "out").exists()


def test_valid_onnx_file_is_accepted(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs the extra `export`")
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    (tmp_path / "x.onnx").write_bytes(onnx_model())
    picture = write_picture(tmp_path / "x.png", size=(7, 5))
    assert (
        exit_code(translate, f"checkpoint={tmp_path}/x.onnx", f"input={tmp_path}/x.png", f"output={tmp_path}/y.png")
        == 0
    )
    assert (pixels_of(tmp_path / "y.png") == picture).all()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Train a few steps in runs/smoke; return the arguments that resume this run."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "scenes", train=8, test=2, size=32)
    command = ("+experiment=smoke", "data.root=scenes", "trainer.device=cpu", "data.workers=0",
               "logger.tensorboard=null", "trainer.sample_every=1000")  # fmt: skip
    assert exit_code(train, *command, "trainer.steps=4") == 0
    return (*command, "trainer.steps=6")


def seal(folder: Path) -> None:
    """Write the checksums of changed files into the manifest, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = sha256_of(folder / name)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", ["training.pt", "rank0.pt"])
def test_code_in_checkpoint_files_is_not_run(
    run: tuple[str, ...], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    newest = Path("runs/smoke/checkpoints/step_00000004")
    torch.save({"step": Evil()}, newest / name)
    seal(newest)
    capsys.readouterr()
    assert exit_code(train, *run) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{newest}/{name} cannot be read" in line
    assert MARKER not in os.environ
    assert json.loads(Path("runs/smoke/status.json").read_text())["code"] == 4


def test_config_in_run_folder_is_never_executed(run: tuple[str, ...]) -> None:
    evil = "generator:\n  _target_: os.putenv\n  _args_: [" + MARKER + ", '1']\nname: ${oc.env:HOME}\n"
    Path("runs/smoke/config.yaml").write_text(evil)
    assert exit_code(train, *run) == 0
    assert MARKER not in os.environ
    assert "os.putenv" not in Path("runs/smoke/config.yaml").read_text()


def test_weight_mismatch_gives_short_error(
    run: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = Path("runs/smoke/checkpoints/step_00000004")
    model = read_model(newest)
    tensors = {key: value for key, value in model.tensors.items() if ".trunk." not in key}
    tensors |= {f"generators.ab.strange.{n}": torch.zeros(1) for n in range(20)}
    tensors["generators.ab.stem.conv.weight"] = torch.zeros(2, 2)
    write_networks(model._replace(tensors=tensors), newest / "networks.safetensors")
    seal(newest)
    capsys.readouterr()
    for arguments in (run, (*run, "name=other", "init=runs/smoke")):
        assert exit_code(train, *arguments) == 4
        first, *rest = capsys.readouterr().err.splitlines()
        assert "its weights generators.* do not fit the architecture that it names" in first
        assert [line.split(":")[0].split(" ", 3)[3] for line in rest] == ["missing", "unexpected", "of another shape"]
        assert "20 unexpected: ab.strange.0, " in rest[1]
        assert "ab.stem.conv.weight (2, 2) for (4, 3, 7, 7)" in rest[2]


def test_missing_weights_give_short_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path / "model", without="generators.ab.trunk", ema=False)
    write_picture(tmp_path / "photos/x.png")
    place = (f"input={tmp_path}/photos", f"output={tmp_path}/out", "direction=a2b")
    code = exit_code(translate, f"checkpoint={tmp_path}/model", *place)
    lines = capsys.readouterr().err.splitlines()
    assert code == 4, lines
    assert len(lines) <= 6
    assert "do not fit the resnet generator that its header describes" in lines[0]
