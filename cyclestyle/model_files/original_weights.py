"""Conversion of weights between our networks and the reference, the 2017 PyTorch implementation of CycleGAN.

Reference files are files of weights that the reference has saved or can load.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from cyclestyle.errors import CheckpointError
from cyclestyle.networks.patchgan import PatchDiscriminator
from cyclestyle.networks.resnet import ResNetGenerator
from cyclestyle.networks.unet import UNetGenerator

Architecture = dict[str, str | int | float | bool]

# Buffers of instance norms in old files; the reference never uses their values.
_UNUSED = ("running_mean", "running_var", "num_batches_tracked")

# (network name here, number of blocks or levels) -> value of the reference's option --netG
_NETG_OPTIONS = {
    ("resnet", 9): "resnet_9blocks",
    ("resnet", 6): "resnet_6blocks",
    ("unet", 8): "unet_256",
    ("unet", 7): "unet_128",
}
_DEPTHS = {"resnet": "blocks", "unet": "levels"}


class DetectedArchitecture(NamedTuple):
    """Architecture and weights of a generator from a reference file, as `detect_architecture` returns them."""

    architecture: Architecture
    weights: dict[str, Tensor]  # unchanged tensors, under the parameter names of our networks


def detect_architecture(state_dict: Mapping[str, Tensor]) -> DetectedArchitecture:
    """Detect the architecture of a generator from its tensors in a reference file, and rename the tensors.

    The new names are the parameter names of our network with this architecture.

    The architecture follows from the names and shapes of the tensors. The prefix `module.` is removed if all names have
    it. Running statistics of instance norms, found in old files, are ignored. Dropout in a ResNet is detected from the
    index of a convolution, which dropout shifts; the dropout rate is assumed to be 0.5, as in the reference. Dropout in
    a U-Net cannot be detected, so the dropout rate is set to 0.

    Raises:
        CheckpointError: the tensors do not belong to a generator, or the generator has batch norm or lacks layers.
    """
    tensors = _without_unused(state_dict)
    if norm := next((name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.ndim == 1), None):
        raise CheckpointError(
            f"it has batch norm ({norm.removesuffix('.weight')} has weights of its own), and generators here have "
            "instance norm: train it with --norm instance"
        )
    for network, matches, describe in _FAMILIES:
        if matches(tensors):
            try:
                architecture = describe(tensors)
            except (KeyError, IndexError):
                raise CheckpointError(f"it looks like a {network.__name__} with missing layers") from None
            names = _names(network, architecture)
            return DetectedArchitecture(architecture, _renamed(tensors, names))
    kind = "a discriminator" if "model.0.weight" in tensors else "not a generator of the reference"
    raise CheckpointError(f"it is {kind}: expected a ResNet or a U-Net, such as latest_net_G_A.pth")


def from_reference(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename tensors from a reference file to the parameter names of `network`, so that `network` can load them.

    Raises:
        CheckpointError: the names in `state_dict` are not the reference's names for `network`. Shapes are not compared.
    """
    return _renamed(state_dict, reference_names(network))


def to_reference(network: nn.Module) -> dict[str, Tensor]:
    """Copy the weights of `network` to the CPU under the names of the reference, so that the reference can load them.

    Raises:
        CheckpointError: the reference has no network with these weights, see `reference_names`.
    """
    ours = network.state_dict()
    return {theirs: ours[name].detach().cpu().clone() for name, theirs in reference_names(network).items()}


def reference_options(network: nn.Module) -> str:
    """Return command-line options with which the reference builds a generator that can load the weights of `network`.

    Raises:
        CheckpointError: the reference cannot build such a generator. Its ResNets have 9 or 6 blocks, its U-Nets have 8
            or 7 levels, and none of them has `upsample="resize"` or `detail`.
    """
    reference_names(network)
    assert isinstance(network, ResNetGenerator | UNetGenerator), "discriminators have other options"
    architecture = network.architecture
    depth = _DEPTHS[str(architecture["name"])]
    option = _NETG_OPTIONS.get((str(architecture["name"]), int(architecture[depth])))
    if option is None:
        supported = " and ".join(str(number) for name, number in _NETG_OPTIONS if name == architecture["name"])
        raise CheckpointError(
            f"the reference tools build a {architecture['name']} with {supported} {depth}, this one has "
            f"{architecture[depth]}: export it as safetensors or onnx"
        )
    dropout = "" if architecture["dropout"] else " --no_dropout"
    colours = "".join(
        f" {option} {architecture[key]}"
        for key, option in (("in_channels", "--input_nc"), ("out_channels", "--output_nc"))
        if architecture[key] != 3
    )
    return f"--netG {option} --ngf {architecture['channels']} --norm instance{dropout}{colours}"


def reference_names(network: nn.Module) -> dict[str, str]:
    """Return a mapping from the name of each weight in `network` to its name in reference files.

    The reference numbers the layers of a network consecutively, and the layers inside each residual block separately.
    Dropout in a block shifts the index of the second convolution in that block by 1. In the reference, the
    levels of a U-Net are nested modules.

    Raises:
        CheckpointError: the reference does not have this network or saves it with other layers. This concerns networks
            with `upsample="resize"`, U-Nets with `detail`, patch discriminators without norm, and the pixel and texture
            discriminators.
    """
    if isinstance(network, PatchDiscriminator) and network.architecture["norm"]:
        return _weights_and_biases(_patch_layers(len(network.body)))
    if not isinstance(network, ResNetGenerator | UNetGenerator):
        raise CheckpointError(
            f"no reference file fits {type(network).__name__}: expected a resnet, a unet or a patch with norm"
        )
    return _names(type(network), network.architecture)


def _names(network: type[nn.Module], architecture: Architecture) -> dict[str, str]:
    if architecture["upsample"] != "transposed":
        raise CheckpointError(
            f"the reference has no {architecture['name']} with upsample={architecture['upsample']}, only transposed "
            "convolutions: export it as safetensors or onnx"
        )
    if architecture.get("detail"):
        raise CheckpointError(
            f"the reference has no unet with detail={architecture['detail']}, only without: export it as safetensors "
            "or onnx"
        )
    if network is UNetGenerator:
        return _weights_and_biases(_unet_layers(int(architecture["levels"])))
    return _weights_and_biases(_resnet_layers(int(architecture["blocks"]), has_dropout=architecture["dropout"] != 0))


def _weights_and_biases(layers: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in layers.items() for kind in ("weight", "bias")}


def _resnet_layers(blocks: int, *, has_dropout: bool) -> dict[str, str]:
    layers = {"stem.conv": "model.1", "down.0.conv": "model.4", "down.1.conv": "model.7"}
    for i in range(blocks):
        layers[f"trunk.{i}.first.conv"] = f"model.{10 + i}.conv_block.1"
        layers[f"trunk.{i}.second.conv"] = f"model.{10 + i}.conv_block.{6 if has_dropout else 5}"
    behind = 10 + blocks
    return layers | {
        "up.0.conv": f"model.{behind}",
        "up.1.conv": f"model.{behind + 3}",
        "head.conv": f"model.{behind + 7}",
    }


def _unet_layers(levels: int) -> dict[str, str]:
    """Return a mapping from our name of each convolution in a U-Net to its name in the reference.

    In the reference, each level is a module that contains the next inner level between its own two convolutions. The
    outermost level has no activation before its first convolution, so the index of that convolution is 0, not 1.
    """
    layers = {"down.0.conv": "model.model.0", "head.conv": "model.model.3"}
    prefix = "model.model.1.model"
    for i in range(1, levels):
        is_innermost = i == levels - 1
        layers[f"down.{i}.conv"] = f"{prefix}.1"
        layers[f"up.{levels - 1 - i}.conv"] = f"{prefix}.{3 if is_innermost else 5}"
        prefix += ".3.model"
    return layers


def _patch_layers(layers: int) -> dict[str, str]:
    body = {f"body.{i}.conv": f"model.{2 + 3 * i}" for i in range(layers)}
    return {"stem.conv": "model.0", **body, "head": f"model.{2 + 3 * layers}"}


def _without_unused(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove unused buffers of instance norms, and the prefix `module.` if DataParallel has added it to all names."""
    wrapped = all(name.startswith("module.") for name in state_dict)
    tensors = {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in _UNUSED}


def _is_resnet(tensors: Mapping[str, Tensor]) -> bool:
    return "model.1.weight" in tensors and "model.4.weight" in tensors


def _describe_resnet(tensors: Mapping[str, Tensor]) -> Architecture:
    blocks = _count(tensors, lambda i: f"model.{10 + i}.conv_block.1.weight")
    stem, head = tensors["model.1.weight"], tensors[f"model.{17 + blocks}.weight"]
    return {
        "name": "resnet",
        "channels": stem.shape[0],
        "blocks": blocks,
        "dropout": 0.5 if "model.10.conv_block.6.weight" in tensors else 0.0,
        "upsample": "transposed",
        "in_channels": stem.shape[1],
        "out_channels": head.shape[0],
    }


def _is_unet(tensors: Mapping[str, Tensor]) -> bool:
    return "model.model.0.weight" in tensors


def _describe_unet(tensors: Mapping[str, Tensor]) -> Architecture:
    inner = _count(tensors, lambda i: f"model.model.1.model.{'3.model.' * i}1.weight")
    outermost, head = tensors["model.model.0.weight"], tensors["model.model.3.weight"]
    return {
        "name": "unet",
        "channels": outermost.shape[0],
        "levels": 1 + inner,
        "dropout": 0.0,
        "upsample": "transposed",
        "in_channels": outermost.shape[1],
        "out_channels": head.shape[1],  # weights of a transposed convolution: (in, out, height, width)
    }


def _count(tensors: Mapping[str, Tensor], name: Callable[[int], str]) -> int:
    """Return how many of the names `name(0)`, `name(1)`, ... are in `tensors` before the first that is missing."""
    return next(i for i in itertools.count() if name(i) not in tensors)


def _renamed(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    missing = [name for name in names.values() if name not in state_dict]
    unknown = sorted(set(state_dict) - set(names.values()))
    if missing or unknown:
        raise CheckpointError(
            f"not a reference file of this network: missing {_first_name(missing)}; unknown {_first_name(unknown)}"
        )
    return {ours: state_dict[theirs] for ours, theirs in names.items()}


def _first_name(names: list[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


_FAMILIES = (  # network class, test for its tensor names, function that describes its architecture
    (UNetGenerator, _is_unet, _describe_unet),
    (ResNetGenerator, _is_resnet, _describe_resnet),
)
