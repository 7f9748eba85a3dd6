"""The names that weights have in files of the reference PyTorch implementation of CycleGAN."""

from collections.abc import Mapping

from torch import Tensor, nn

from cyclestyle.errors import CheckpointError
from cyclestyle.networks.patch import PatchDiscriminator
from cyclestyle.networks.resnet import ResNetGenerator


def from_reference(state_dict: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a reference file under the names of `network`, ready for its `load_state_dict`.

    Raises CheckpointError where the file has other names than `network` has in the reference; shapes are not compared.
    """
    names = reference_names(network)
    missing = [name for name in names.values() if name not in state_dict]
    unknown = sorted(set(state_dict) - set(names.values()))
    if missing or unknown:
        raise CheckpointError(
            f"not a reference file of this network: missing {_some(missing)}; unknown {_some(unknown)}"
        )

    return {ours: state_dict[theirs] for ours, theirs in names.items()}


def reference_names(network: nn.Module) -> dict[str, str]:
    """The names of all weights of `network`, each with the name that it has in the reference's files.

    The reference numbers the layers of a whole network in one sequence, and those of a residual block in another, where
    dropout shifts the second convolution. Raises CheckpointError for a network that the reference does not have or
    that it saves with other layers: resized upsampling, U-Nets (with batch norm there) and the pixel discriminator.
    """
    if isinstance(network, ResNetGenerator) and network.architecture["upsample"] == "transposed":
        layers = _resnet_layers(len(network.trunk), has_dropout=network.architecture["dropout"] != 0)
    elif isinstance(network, PatchDiscriminator):
        layers = _patch_layers(len(network.body))
    else:
        raise CheckpointError(
            f"no reference file fits {type(network).__name__}: expected a transposed resnet or a patch"
        )

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


def _patch_layers(layers: int) -> dict[str, str]:
    body = {f"body.{i}.conv": f"model.{2 + 3 * i}" for i in range(layers)}
    return {"stem.conv": "model.0", **body, "head": f"model.{2 + 3 * layers}"}


def _some(names: list[str]) -> str:
    if not names:
        return "nothing"
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
