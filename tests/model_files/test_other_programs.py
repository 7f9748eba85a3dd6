"""Files of other programs: generators of the supported architectures load, all others are rejected with the reason."""

import io
import os
import tarfile
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cyclestyle.errors import CheckpointError
from cyclestyle.export import export
from cyclestyle.model_files import generator_file, initial, pth
from cyclestyle.model_files.other_programs import side_in
from cyclestyle.networks import ResNetGenerator
from tests.reference_networks import BATCH, ReferenceResNet, ReferenceUNet, randomized
from tests.translation.models import write_model

Weights = dict[str, Tensor]


def renamed(weights: Mapping[str, Tensor], old: str, new: str) -> Weights:
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


def under(prefix: str, weights: Mapping[str, Tensor]) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


REFERENCE = randomized(ReferenceResNet(4, 2))
OTHER = randomized(ReferenceResNet(4, 2), seed=1)
AB, BA = dict(REFERENCE.state_dict()), dict(OTHER.state_dict())
JUDGE = under("netD_A.", {"model.0.weight": torch.zeros(4, 3, 4, 4), "model.2.weight": torch.zeros(8, 4, 4, 4)})
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 2e-4}]}
LIGHTNING = {
    "epoch": 3,
    "global_step": 900,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": {**under("netG_A.", AB), **under("netG_B.", BA), **JUDGE},
    "optimizer_states": [OPTIMIZER],
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5), "last": "last.ckpt"}},
    "hyper_parameters": {"lr": 2e-4, "names": ["horse", "zebra"]},
}
FILES: dict[str, tuple[str, object, list[str]]] = {  # case -> name, content, prefix of each direction in order
    "Lightning": ("last.ckpt", LIGHTNING, ["ab", "ba"]),
    "Lightning with compiled generators": (
        "last.ckpt",
        {"state_dict": {**under("gen_AB._orig_mod.", AB), **under("gen_BA._orig_mod.", BA)}},
        ["ab", "ba"],
    ),
    "one mapping for each network": ("1000.pt", {"epoch": 1, "G_A2B": AB, "G_B2A": BA, "opt": OPTIMIZER}, ["ab", "ba"]),
    "one generator": ("netG_A2B.pth", AB, ["ab"]),
    "PyTorch-GAN before it resized": ("G_AB_199.pth", renamed(AB, ".conv_block.", ".block."), ["ab"]),
    "compiled": ("G_AB.pth", under("_orig_mod.", AB), ["ab"]),
    "DataParallel in a mapping": ("x.ckpt", {"model": under("netG_A.module.", AB)}, ["ab"]),
    "a bare sequence": ("x.ckpt", {"state_dict": renamed(under("G_AB.", AB), "model.", "")}, ["ab"]),
    "a parameter": ("G_AB.pth", {name: nn.Parameter(tensor) for name, tensor in AB.items()}, ["ab"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_reference_generators_saved_by_other_programs_are_loaded(tmp_path: Path, case: str) -> None:
    name, content, sides = FILES[case]
    torch.save(content, tmp_path / name)
    sources = generator_file.read(tmp_path / name)
    assert list(sources.by_side) == sides
    x = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for side, source in sources.by_side.items():
        assert source.states_direction
        with torch.no_grad():
            expected = (REFERENCE if side == "ab" else OTHER)(x)
            torch.testing.assert_close(generator_file.build(source).eval()(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("network", [ResNetGenerator(4, 2), ResNetGenerator(3, 1, upsample="resize")])
@pytest.mark.parametrize("prefix", ["", "G_AB."])
def test_weights_of_our_resnet_load_without_architecture(tmp_path: Path, network: nn.Module, prefix: str) -> None:
    weights = under(prefix, randomized(network).state_dict())
    torch.save({"state_dict": weights}, tmp_path / "G_AB.ckpt")
    save_file(weights, tmp_path / "G_AB.safetensors")
    for name in ("G_AB.ckpt", "G_AB.safetensors"):
        source = generator_file.read(tmp_path / name).by_side["ab"]
        assert source.architecture == network.architecture
        assert generator_file.fingerprint(generator_file.build(source)) == generator_file.fingerprint(network)


def test_suffix_of_a_model_file_does_not_matter(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", architecture={"name": "resnet", "channels": 4, "blocks": 6})
    (tmp_path / "model.ckpt").write_bytes(model.read_bytes())
    assert generator_file.read(tmp_path / "model.ckpt").directions == ("photo2monet", "monet2photo")
    export(model, output=tmp_path, format="reference", direction="a2b")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes((tmp_path / "latest_net_G_A.pth").read_bytes())
    assert generator_file.read(weights).by_side["ab"].architecture["blocks"] == 6


def test_both_generators_of_a_file_are_exported(tmp_path: Path) -> None:
    torch.save(LIGHTNING, tmp_path / "last.ckpt")
    files = export(tmp_path / "last.ckpt", output=tmp_path / "out")
    assert [file.name for file in files] == ["last_a2b.safetensors", "last_b2a.safetensors"]
    for file, side, weights in zip(files, ("ab", "ba"), (AB, BA), strict=True):
        source = generator_file.read(file).by_side[side]
        assert torch.equal(source.tensors["stem.conv.weight"], weights["model.1.weight"])


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("latest_net_G_A", "ab"),
        ("5_net_G_B", "ba"),
        ("netG_A2B", "ab"),
        ("G_BA_199", "ba"),
        ("state_dict.genA2B.", "ab"),
        ("state_dict.gen_ba.module.", "ba"),
        ("generators.ab.", "ab"),
        ("horse2zebra", None),
        ("data2bag", None),
        ("G_ABC", None),
        ("alphabet", None),
        ("G_AB_and_G_BA", None),
        ("netD_A", None),
    ],
)
def test_direction_is_inferred_from_unambiguous_names_only(name: str, side: str | None) -> None:
    assert side_in(name) == side


def layers(**shapes: tuple[int, ...]) -> Weights:
    """Weights of zeros; `__` in a name means a dot."""
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


CUT = AB | layers(model__7__filt=(4, 1, 3, 3))
RESIZED = layers(
    model__1__weight=(4, 3, 7, 7), model__4__weight=(8, 4, 3, 3), model__7__weight=(16, 8, 3, 3),
    model__10__block__1__weight=(16, 16, 3, 3), model__10__block__5__weight=(16, 16, 3, 3),
    model__12__weight=(8, 16, 3, 3), model__16__weight=(4, 8, 3, 3), model__20__weight=(3, 4, 7, 7),
)  # fmt: skip
FAST_STYLE = layers(conv1__conv2d__weight=(32, 3, 9, 9), in1__weight=(32,), in1__bias=(32,))
UGATIT = layers(DownBlock__1__weight=(64, 3, 7, 7), gap_fc__weight=(1, 256))
MUNIT = {"a": layers(enc_content__model__0__conv__weight=(64, 3, 7, 7)), "b": layers(dec__x__weight=(1, 1))}
SPECTRAL = layers(model__1__weight_orig=(4, 3, 7, 7))
VGG = layers(features__0__weight=(64, 3, 3, 3), classifier__0__weight=(10, 10))
AFFINE = AB | layers(model__2__weight=(4,), model__2__bias=(4,))
BATCHED = ReferenceUNet(norm=BATCH).state_dict()
WEIGHTS: dict[str, tuple[object, str]] = {
    "CUT": (CUT, "it has the anti-aliased layers of CUT (model.7.filt), which generators here lack: train it"),
    "PyTorch-GAN": (RESIZED, "its generator is PyTorch-GAN's, which pads with zeros after resizing"),
    "fast-neural-style": (FAST_STYLE, "it is a network of fast-neural-style (conv1.conv2d.weight), which transfers"),
    "U-GAT-IT": ({"genA2B": UGATIT}, "it is a generator of U-GAT-IT (genA2B.DownBlock.1.weight), which has attention"),
    "MUNIT": (MUNIT, "it is a generator of MUNIT (a.enc_content.model.0.conv.weight), which has two encoders"),
    "spectral norm": (SPECTRAL, "it has spectral norm (model.1.weight_orig), which generators here lack"),
    "a classifier": (VGG, "it is a network that classifies images (features.0.weight)"),
    "learned scale": (AFFINE, "it has norms with a learned scale (model.2 has weights of its own), and"),
    "batch norm": (BATCHED, "it has batch norm (model.model.1.model.2 has weights of its own), and"),
    "unknown layers": (layers(foo__weight=(3, 3, 3, 3)), "it is not a generator of the reference (its first layer"),
    "twins": ({"G": AB, "G_ema": BA}, "the names of its generators, G, G_ema, do not state one direction each"),
    "a network and more": (AB | {"more": {}}, "none of its entries holds names and tensors"),
    "an optimizer alone": ({"optimizer": OPTIMIZER}, "none of its entries holds names and tensors"),
    "objects": ({"state_dict": AB, "hyper_parameters": Namespace()}, "an object of argparse.Namespace, and"),
    "a module": (nn.Conv2d(3, 3, 1), "an object of torch.nn.modules.conv.Conv2d, and reading that could execute code"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["weights.pth", "weights.ckpt"])
@pytest.mark.parametrize("case", WEIGHTS)
def test_other_architectures_are_rejected_with_the_reason(tmp_path: Path, case: str, name: str) -> None:
    content, reason = WEIGHTS[case]
    torch.save(content, tmp_path / name)
    assert_rejected(tmp_path / name, reason)


def assert_rejected(path: Path, reason: str) -> None:
    """Check that `checkpoint=` and `init=` reject the file in one line, which names the file and the reason."""
    for read in (generator_file.read, lambda path: initial.read(path, ("photo", "monet"))):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(str(path)), message
        assert reason in message
        assert "\n" not in message


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pth"))
    return stream.getvalue()


CONTENTS: dict[str, tuple[bytes, str]] = {
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(90), "is an HDF5 file, as Keras writes them"),
    "Lua Torch": (b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1" + bytes(90), "is a file of Lua Torch"),
    "Lua Torch as text": (b"4\n1\n3\nV 1\n13\nnn.Sequential\n", "is a file of Lua Torch"),
    "a table of TensorFlow": (bytes(90) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb", "is a file of TensorFlow"),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3" + bytes(90), "is a file of TensorFlow"),
    "Keras": (zipped("config.json", "model.weights.h5"), "is a file of Keras"),
    "TorchScript": (zipped("m/data.pkl", "m/constants.pkl", "m/code/x.py"), "is a program of TorchScript"),
    "NumPy": (zipped("a.npy"), "is an archive of NumPy arrays"),
    "a zip archive": (zipped("checkpoints/latest_net_G_A.pth"), "is an archive: unpack it"),
    "a tar archive": (tarred(), "is an archive: unpack it"),
    "a pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix", "is a pickle of Python objects"),
    "a web page": (b"\n<!DOCTYPE html><html>Sign in", "is a web page, not a model: download the file itself"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "nothing": (b"", "is empty"),
    "ONNX": (b"\x08\x0a\x12\x07pytorch" + bytes(90), "is an ONNX file"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ""])
@pytest.mark.parametrize("case", CONTENTS)
def test_files_of_other_programs_are_recognised_by_content(tmp_path: Path, case: str, suffix: str) -> None:
    content, reason = CONTENTS[case]
    (tmp_path / f"model{suffix}").write_bytes(content)
    assert_rejected(tmp_path / f"model{suffix}", reason)


def test_unknown_content_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0" + bytes(90))
    assert_rejected(tmp_path / "photo.jpg", "is no model file: expected a run folder, a .safetensors file, or weights")


def test_tensorflow_checkpoints_are_recognised_by_file_names(tmp_path: Path) -> None:
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001", "model.ckpt.meta"):
        (tmp_path / name).write_bytes(bytes(90))
        assert_rejected(tmp_path / name, "is a file of TensorFlow")
    assert_rejected(tmp_path / "model.ckpt", "is a file of TensorFlow")
    assert_rejected(tmp_path, "holds model.ckpt.index, a file of TensorFlow")


@pytest.mark.parametrize("name", ["training.pt", "rank0.pt"])
def test_error_for_a_training_state_file_names_its_checkpoint_folder(tmp_path: Path, name: str) -> None:
    torch.save({"step": 3}, tmp_path / name)
    assert_rejected(tmp_path / name, f"not its networks: give the checkpoint folder {tmp_path}")


def bomb(depth: int) -> dict[str, object]:
    """Nested mappings; each contains the next one a hundred times."""
    content: dict[str, object] = {"x": torch.zeros(1)}
    for _ in range(depth):
        content = {str(number): content for number in range(100)}
    return content


@pytest.mark.parametrize(
    "content", [bomb(50), {"x": {"y": torch.zeros(1).expand(2**40)}}, {"a": {"b": {1: AB}}}],
    ids=["nested mappings", "a view of terabytes", "numbers for names"],
)  # fmt: skip
def test_hostile_nested_mappings_are_rejected_quickly(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    assert_rejected(tmp_path / "x.ckpt", "is not a file of weights")


def test_huge_file_of_the_legacy_format_is_not_read(tmp_path: Path) -> None:
    torch.save(AB, tmp_path / "G_AB.pth", _use_new_zipfile_serialization=False)
    os.truncate(tmp_path / "G_AB.pth", 5 * 2**30)  # a sparse file
    assert_rejected(tmp_path / "G_AB.pth", "has 5 GB: expected at most 4 GB")


def anonymous_kb() -> int:
    """Return this process's memory that maps no file."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1])


def test_large_file_is_memory_mapped(tmp_path: Path) -> None:
    torch.save({"G_AB": AB, "others": {"x": torch.zeros(2**25)}}, tmp_path / "x.ckpt")  # 128 MB
    before = anonymous_kb()
    tensors = pth.read_tensors(tmp_path / "x.ckpt")
    assert anonymous_kb() - before < 2**16
    assert tensors["others.x"].shape == (2**25,)


def test_loaded_weights_do_not_change_with_their_file(tmp_path: Path) -> None:
    path = tmp_path / "G_AB.ckpt"
    torch.save({"state_dict": AB}, path)
    source = generator_file.read(path).by_side["ab"]
    path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(source.tensors["stem.conv.weight"], AB["model.1.weight"])
