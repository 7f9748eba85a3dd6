"""The names that weights have in files of the reference PyTorch implementation of CycleGAN."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from cyclestyle.errors import CheckpointError
from cyclestyle.networks.patchgan import PatchDiscriminator
from cyclestyle.networks.resnet import ResNetGenerator
from cyclestyle.networks.unet import UNetGenerator

Architecture = dict[str, str | int | float | bool]

# Buffers that old files have at instance norms; what they hold was never used.
_UNUSED = ("running_mean", "running_var", "num_batches_tracked")

# What the reference's command line calls a network of our name and so many blocks or levels.
_OPTIONS = {
    ("resnet", 9): "resnet_9blocks",
    ("resnet", 6): "resnet_6blocks",
    ("unet", 8): "unet_256",
    ("unet", 7): "unet_128",
}
_DEPTHS = {"resnet": "blocks", "unet": "levels"}


class DetectedArchitecture(NamedTuple):
    """A generator that was found in a reference file."""

    architecture: Architecture
    weights: dict[str, Tensor]  # under our names, as they were stored


def detect_architecture(state_dict: Mapping[str, Tensor]) -> DetectedArchitecture:
    """Which generator a reference file holds, by its names and shapes alone, and its weights under our names.

    A `module.` before all names and the statistics that old instance norms kept are left out. A dropout in a ResNet,
    which moves a convolution by one place, is taken for the reference's 0.5; in a U-Net it leaves no trace.

    Raises:
        CheckpointError: it is no generator of RGB pictures that there is here, batch norm among the reasons.
    """
    found = _bare(state_dict)
    if norm := next((name for name, tensor in found.items() if name.endswith(".weight") and tensor.ndim == 1), None):
        raise CheckpointError(
            f"it has batch norm ({norm.removesuffix('.weight')} has weights of its own), and generators here have "
            "instance norm: train it with --norm instance"
        )
    for network, is_it, describe in _FAMILIES:
        if is_it(found):
            try:
                architecture = describe(found)
            except (KeyError, IndexError):
                raise CheckpointError(f"it looks like a {network.__name__} of which layers are missing") from None
            _check_colours(architecture)
            names = _names(network, architecture)
            return DetectedArchitecture(architecture, _renamed(found, names))
    kind = "a discriminator" if "model.0.weight" in found else "not a generator of the reference"
    raise CheckpointError(f"it is {kind}: expected a ResNet or a U-Net, latest_net_G_A.pth for one")


def from_reference(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a reference file under the names of `network`, ready for its `load_state_dict`.

    Raises CheckpointError where the file has other names than `network` has in the reference; shapes are not compared.
    """
    return _renamed(state_dict, reference_names(network))


def to_reference(network: nn.Module) -> dict[str, Tensor]:
    """The weights of `network` under the names of the reference, ready for its `load_state_dict`; on the CPU, copied.

    Raises CheckpointError for a network that the reference does not have.
    """
    ours = network.state_dict()
    return {theirs: ours[name].detach().cpu().clone() for name, theirs in reference_names(network).items()}


def reference_options(network: nn.Module) -> str:
    """What the reference's command line must say to build a generator that loads the weights of `network`.

    Raises CheckpointError where it has no word for it: a ResNet of other than 9 or 6 blocks, a U-Net of other than 8 or
    7 levels, resized upsampling.
    """
    reference_names(network)
    assert isinstance(network, ResNetGenerator | UNetGenerator), "discriminators have other options"
    architecture = network.architecture
    depth = _DEPTHS[str(architecture["name"])]
    option = _OPTIONS.get((str(architecture["name"]), int(architecture[depth])))
    if option is None:
        there_are = " and ".join(str(number) for name, number in _OPTIONS if name == architecture["name"])
        raise CheckpointError(
            f"the reference tools build a {architecture['name']} with {there_are} {depth}, this one has "
            f"{architecture[depth]}: export it as safetensors or onnx"
        )
    dropout = "" if architecture["dropout"] else " --no_dropout"
    return f"--netG {option} --ngf {architecture['channels']} --norm instance{dropout}"


def reference_names(network: nn.Module) -> dict[str, str]:
    """The names of all weights of `network`, each with the name that it has in the reference's files.

    The reference numbers the layers of a whole network in one sequence, and those of a residual block in another, where
    dropout shifts the second convolution; its U-Nets are nested. Raises CheckpointError for a network that the
    reference does not have or that it saves with other layers: resized upsampling, a U-Net with detail, a patch
    discriminator without norm, and the pixel and texture discriminators.
    """
    if isinstance(network, PatchDiscriminator) and network.architecture["norm"]:
        return _parts(_patch_layers(len(network.body)))
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
        return _parts(_unet_layers(int(architecture["levels"])))
    return _parts(_resnet_layers(int(architecture["blocks"]), has_dropout=architecture["dropout"] != 0))


def _parts(layers: dict[str, str]) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in layers.items() for part in ("weight", "bias")}


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
    """Each level holds all that is inside it between its two convolutions; the outermost has no activation before."""
    layers = {"down.0.conv": "model.model.0", "head.conv": "model.model.3"}
    place = "model.model.1.model"
    for i in range(1, levels):
        is_innermost = i == levels - 1
        layers[f"down.{i}.conv"] = f"{place}.1"
        layers[f"up.{levels - 1 - i}.conv"] = f"{place}.{3 if is_innermost else 5}"
        place += ".3.model"
    return layers


def _patch_layers(layers: int) -> dict[str, str]:
    body = {f"body.{i}.conv": f"model.{2 + 3 * i}" for i in range(layers)}
    return {"stem.conv": "model.0", **body, "head": f"model.{2 + 3 * layers}"}


def _bare(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of a DataParallel and what instance norms do not use."""
    wrapped = all(name.startswith("module.") for name in state_dict)
    bare = {name.removeprefix("module.") if wrapped else name: tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in bare.items() if name.rpartition(".")[2] not in _UNUSED}


def _is_resnet(found: Mapping[str, Tensor]) -> bool:
    return "model.1.weight" in found and "model.4.weight" in found


def _describe_resnet(found: Mapping[str, Tensor]) -> Architecture:
    blocks = _count(found, lambda i: f"model.{10 + i}.conv_block.1.weight")
    stem, head = found["model.1.weight"], found[f"model.{17 + blocks}.weight"]
    return {
        "name": "resnet",
        "channels": stem.shape[0],
        "blocks": blocks,
        "dropout": 0.5 if "model.10.conv_block.6.weight" in found else 0.0,
        "upsample": "transposed",
        "in_channels": stem.shape[1],
        "out_channels": head.shape[0],
    }


def _is_unet(found: Mapping[str, Tensor]) -> bool:
    return "model.model.0.weight" in found


def _describe_unet(found: Mapping[str, Tensor]) -> Architecture:
    inner = _count(found, lambda i: f"model.model.1.model.{'3.model.' * i}1.weight")
    outermost, head = found["model.model.0.weight"], found["model.model.3.weight"]
    return {
        "name": "unet",
        "channels": outermost.shape[0],
        "levels": 1 + inner,
        "dropout": 0.0,
        "upsample": "transposed",
        "in_channels": outermost.shape[1],
        "out_channels": head.shape[1],  # a transposed convolution has its inputs first
    }


def _count(found: Mapping[str, Tensor], name: Callable[[int], str]) -> int:
    """How many of `name(0)`, `name(1)`, ... there are in a row."""
    return next(i for i in itertools.count() if name(i) not in found)


def _check_colours(architecture: Architecture) -> None:
    for key, what in (("in_channels", "input_nc"), ("out_channels", "output_nc")):
        if architecture[key] != 3:
            raise CheckpointError(
                f"it has {what}={architecture[key]}: expected 3, since RGB pictures are the only kind there is here"
            )


def _renamed(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    missing = [name for name in names.values() if name not in state_dict]
    unknown = sorted(set(state_dict) - set(names.values()))
    if missing or unknown:
        raise CheckpointError(
            f"not a reference file of this network: missing {_some(missing)}; unknown {_some(unknown)}"
        )
    return {ours: state_dict[theirs] for ours, theirs in names.items()}


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


_FAMILIES = (  # how each is told from the other, and described
    (UNetGenerator, _is_unet, _describe_unet),
    (ResNetGenerator, _is_resnet, _describe_resnet),
)
