"""Conversion of weights between our networks and the reference, the 2017 PyTorch implementation of CycleGAN.

Reference files are files of weights that the reference has saved or can load.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from cyclestyle.errors import CheckpointError
from cyclestyle.model_files import other_programs
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
    """Detected architecture of a network, and its weights under the parameter names of our networks."""

    architecture: Architecture
    weights: dict[str, Tensor]  # unchanged tensors, under the parameter names of our networks


def detect_architecture(state_dict: Mapping[str, Tensor]) -> DetectedArchitecture:
    """Detect the architecture of a generator from its tensors in a reference file, and rename the tensors.

    The new names are the parameter names of our network with this architecture.

    The architecture follows from the names and shapes of the tensors. A prefix that DataParallel or torch.compile has
    added to all names is removed. Running statistics of instance norms, found in old files, are ignored. Dropout in a
    ResNet is detected from the index of a convolution, which dropout shifts; the dropout rate is assumed to be 0.5, as
    in the reference. Dropout in a U-Net cannot be detected, so the dropout rate is set to 0.

    Raises:
        CheckpointError: the tensors do not belong to a generator, the generator lacks layers, or it has another
            architecture, such as one with batch norm.
    """
    if reason := other_programs.foreign_reason(state_dict):
        raise CheckpointError(reason)
    tensors = _without_unused(state_dict)
    for network, matches, describe in _FAMILIES:
        if matches(tensors):
            try:
                architecture = describe(tensors)
            except (KeyError, IndexError):
                raise CheckpointError(f"it looks like a {network.__name__} with missing layers") from None
            names = _names(network, architecture)
            return DetectedArchitecture(architecture, _renamed(tensors, names))
    kind = "a discriminator" if "model.0.weight" in tensors else "not a generator of the reference"
    first = f" (its first layer is {next(iter(tensors))[:80]})" if tensors and kind != "a discriminator" else ""
    raise CheckpointError(f"it is {kind}{first}: expected a ResNet or a U-Net, such as latest_net_G_A.pth")


def find_generators(state_dict: Mapping[str, Tensor]) -> dict[str, DetectedArchitecture]:
    """Detect all generators in a file, and rename their tensors to the parameter names of our networks.

    The generators may be the reference's or our own ResNets, under any prefixes: in a checkpoint of PyTorch Lightning,
    for example, the names of a generator's tensors may begin with `state_dict.netG_A.`.

    Returns:
        Dict from the prefix of a generator's tensors to the generator. The prefix is empty for a file that holds one
        generator and nothing else.

    Raises:
        CheckpointError: the file holds no generator, or one that `detect_architecture` rejects.
    """
    tensors = _without_wrapper(state_dict)
    prefixes = other_programs.generator_prefixes(tensors)
    if prefixes in ([], [""]):
        return {"": _detect_any(other_programs.under(tensors, "") if prefixes else tensors)}
    return {prefix: _detect_any(other_programs.under(tensors, prefix)) for prefix in prefixes}


def detect_discriminator(state_dict: Mapping[str, Tensor]) -> DetectedArchitecture:
    """Detect the architecture of the reference's PatchGAN discriminator from its tensors, and rename the tensors.

    Raises:
        CheckpointError: the tensors are not those of a patch discriminator with instance norm.
    """
    if reason := other_programs.foreign_reason(state_dict):
        raise CheckpointError(reason.replace("generators here", "discriminators here"))
    tensors = _without_unused(state_dict)
    layers = _count(tensors, lambda i: f"model.{2 + 3 * i}.weight") - 1  # the last one is the head
    if "model.0.weight" not in tensors or layers < 1:
        raise CheckpointError("it is not a patch discriminator of the reference, such as latest_net_D_A.pth")
    stem = tensors["model.0.weight"]
    architecture: Architecture = {
        "name": "patch",
        "channels": stem.shape[0],
        "layers": layers,
        "norm": True,
        "in_channels": stem.shape[1],
    }
    return DetectedArchitecture(architecture, _renamed(tensors, _weights_and_biases(_patch_layers(layers))))


def discriminator_options(network: nn.Module) -> str:
    """Return command-line options with which the reference builds a discriminator that can load `network`'s weights.

    Raises:
        CheckpointError: the reference has no such discriminator, see `reference_names`.
    """
    reference_names(network)
    assert isinstance(network, PatchDiscriminator), "generators have other options"
    layers = network.architecture["layers"]
    kind = "--netD basic" if layers == 3 else f"--netD n_layers --n_layers_D {layers}"
    return f"{kind} --ndf {network.architecture['channels']}"


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
        CheckpointError: the reference lacks this network, or has it with other layers. This concerns networks with
            `upsample="resize"`, U-Nets with `detail`, patch discriminators without norm, the pixel and texture
            discriminators, and networks of plugins.
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


def _detect_any(tensors: Mapping[str, Tensor]) -> DetectedArchitecture:
    """Detect the architecture of a generator whose tensors have the reference's names or those of our ResNet.

    Raises:
        CheckpointError: the generator has an architecture that this program cannot build.
    """
    if not other_programs.is_own(tensors):
        return detect_architecture(tensors)
    if reason := other_programs.foreign_reason(tensors):
        raise CheckpointError(reason)
    return DetectedArchitecture(other_programs.describe_own(tensors), dict(tensors))


def _without_unused(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove unused buffers of instance norms, and the prefixes that `_without_wrapper` removes."""
    tensors = _without_wrapper(state_dict)
    return {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[2] not in _UNUSED}


def _without_wrapper(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes `module.` (DataParallel) and `_orig_mod.` (torch.compile) from names if all have them."""
    tensors = dict(state_dict)
    for wrapper in ("module.", "_orig_mod."):
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


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
