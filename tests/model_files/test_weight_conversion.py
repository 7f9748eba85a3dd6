"""Published files of pretrained networks: conversion of names, and files that are damaged or of another network."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.model_files.weight_conversion import convert
from cyclestyle.networks.pretrained import PRETRAINED
from tests.networks import published

h5py = pytest.importorskip("h5py")


def save_h5(weights: published.Weights, file: Path) -> Path:
    with h5py.File(file, "w") as content:
        for name, values in weights.items():
            content[name] = values.astype(np.float32)
    return file


def vgg19_weights() -> published.Weights:
    """Weights under torchvision's names: convolutions at 0, 2, 5, 7, 10, 12, 14, 16, ... and a classifier."""
    weights, channels = published.Weights(), 3
    stages = ([0, 2], [5, 7], [10, 12, 14, 16], [19, 21, 23, 25], [28, 30, 32, 34])
    for indices, width in zip(stages, published.VGG_CHANNELS, strict=True):
        for index in indices:
            weights[f"features.{index}.weight"] = np.full((width, channels, 3, 3), index, dtype=np.float32)
            weights[f"features.{index}.bias"] = np.full(width, index, dtype=np.float32)
            channels = width
    weights["classifier.0.weight"] = np.zeros((4, 4), dtype=np.float32)
    return weights


WRITERS: dict[str, Callable[[Path], Path]] = {
    "efficientnet_lite0": lambda file: published.save_pth(published.efficientnet_lite0(), file),
    "vgg16_hed": lambda file: save_h5(published.keras_hed(), file),
    "vgg19": lambda file: published.save_pth(vgg19_weights(), file),
    "lpips_alex": lambda file: published.save_pth(published.stlpips_alex(), file),
    "lpips_vgg": lambda file: published.save_pth(published.stlpips_vgg(), file),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("published")
    return {name: write(folder / name) for name, write in WRITERS.items()}


@pytest.mark.parametrize("name", sorted(PRETRAINED))
def test_converted_weights_fit_the_network(name: str, files: dict[str, Path]) -> None:
    weights = convert(name, files[name])
    network = PRETRAINED[name].build()
    assert weights.keys() == network.state_dict().keys()
    network.load_state_dict(weights)
    assert all(tensor.is_contiguous() for tensor in weights.values())
    pointers = [tensor.data_ptr() for tensor in weights.values()]
    assert len(set(pointers)) == len(pointers)


def test_vgg19_convolutions_keep_their_order(files: dict[str, Path]) -> None:
    weights = convert("vgg19", files["vgg19"])
    order = [int(tensor.flatten()[0]) for key, tensor in weights.items() if key.endswith("weight")]
    assert order == [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34]
    assert [key for key in weights if key.endswith("bias")][-1] == "steps.relu5_4.conv.bias"


def test_weights_do_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    file = WRITERS["lpips_alex"](tmp_path / "alex.pth")
    weights = convert("lpips_alex", file)
    before = {key: tensor.clone() for key, tensor in weights.items()}
    with file.open("r+b") as stream:
        stream.write(bytes(file.stat().st_size))
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights.items())


@pytest.mark.parametrize("name", [name for name in sorted(PRETRAINED) if name != "vgg16_hed"])
def test_weights_of_another_network_are_an_error(name: str, files: dict[str, Path]) -> None:
    for other in sorted(set(PRETRAINED) - {name, "vgg16_hed"}):
        with pytest.raises(CheckpointError, match=f"is not the published file of {name}: ") as raised:
            convert(name, files[other])
        assert "\n" not in str(raised.value)
        assert raised.value.code == 4


def test_h5_file_of_another_network_is_an_error(tmp_path: Path) -> None:
    file = save_h5({"block1/layers/conv2d/vars/0": np.zeros((3, 3, 3, 8))}, tmp_path / "other.h5")
    with pytest.raises(CheckpointError, match=r"relu1_1.conv.weight has the shape \(8, 3, 3, 3\), expected \(64, 3"):
        convert("vgg16_hed", file)


def test_weights_that_the_network_lacks_are_an_error(tmp_path: Path) -> None:
    weights = published.stlpips_alex()
    weights["net.slice5.16.weight"] = np.zeros((256, 256, 3, 3))  # a sixth convolution
    with pytest.raises(CheckpointError, match=r"it has other weights, steps\.net\.slice5\.16"):
        convert("lpips_alex", published.save_pth(weights, tmp_path / "alex.pth"))


def test_whole_numbers_instead_of_weights_are_an_error(tmp_path: Path) -> None:
    weights = published.stlpips_alex()
    weights["net.slice1.0.bias"] = weights["net.slice1.0.bias"].astype(np.int64)
    with pytest.raises(CheckpointError, match=r"steps\.relu1\.conv\.bias has the dtype torch\.int64"):
        convert("lpips_alex", published.save_pth(weights, tmp_path / "alex.pth"))


@pytest.mark.parametrize("name", sorted(PRETRAINED))
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_damaged_file_is_an_error_of_one_line(name: str, kept: float, files: dict[str, Path], tmp_path: Path) -> None:
    content = files[name].read_bytes()
    (tmp_path / "damaged").write_bytes(content[: int(kept * len(content))])
    with pytest.raises(CheckpointError, match=r"damaged cannot be read: ") as raised:
        convert(name, tmp_path / "damaged")
    assert "\n" not in str(raised.value)


def test_h5_file_with_more_numbers_than_bytes_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "bomb.h5", "w") as file:
        file.create_dataset("block1/layers/conv2d/vars/0", (10_000, 10_000, 10_000), chunks=True, dtype="f4")
    with pytest.raises(CheckpointError, match="its arrays have more numbers than the file"):
        convert("vgg16_hed", tmp_path / "bomb.h5")


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.pth does not exist or is no file"):
        convert("vgg19", tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="does not exist or is no file"):
        convert("vgg19", tmp_path)


def test_unknown_network_is_an_error(files: dict[str, Path]) -> None:
    with pytest.raises(CommandError, match="resnet50 is no pretrained network: choose one of efficientnet_lite0, "):
        convert("resnet50", files["vgg19"])


def test_h5_file_without_h5py_is_an_error(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CommandError, match=r"h5py is needed to read \.h5 files: pip install h5py"):
        convert("vgg16_hed", files["vgg16_hed"])
