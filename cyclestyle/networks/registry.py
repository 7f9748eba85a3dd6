"""Registry of the networks that a model file can name."""

import inspect
from collections.abc import Mapping

import torch
from torch import nn

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.networks.patchgan import PatchDiscriminator
from cyclestyle.networks.pixelgan import PixelDiscriminator
from cyclestyle.networks.resnet import ResNetGenerator
from cyclestyle.networks.texture import TextureDiscriminator
from cyclestyle.networks.unet import UNetGenerator

GENERATORS: dict[str, type[nn.Module]] = {"resnet": ResNetGenerator, "unet": UNetGenerator}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "patch": PatchDiscriminator,
    "pixel": PixelDiscriminator,
    "texture": TextureDiscriminator,
}

MAX_PARAMETERS = 2**29  # 2 GiB in float32, 47 times the default generator


def build(architecture: Mapping[str, object]) -> nn.Module:
    """Build the network that `architecture` describes: its `name` in the registry, and constructor arguments.

    Arguments missing from `architecture` take their defaults. `architecture` may come from a damaged or hostile model
    file: a CheckpointError, and no other exception, is raised if it is invalid. A network with more than
    `MAX_PARAMETERS` parameters is rejected before memory is allocated for it.
    """
    table = GENERATORS | DISCRIMINATORS
    name = architecture.get("name")
    if not isinstance(name, str) or name not in table:
        raise CheckpointError(f"unknown architecture {_shown(name)}: expected one of {', '.join(table)}")
    network = table[name]

    arguments = {key: value for key, value in architecture.items() if key != "name"}
    known = inspect.signature(network).parameters
    for key, value in arguments.items():
        if key not in known:
            raise CheckpointError(f"unknown argument {_shown(key)} of {name}: expected some of {', '.join(known)}")
        if not _is_plain(value):
            raise CheckpointError(f"argument {key} of {name} is {_shown(value)}: expected a number or a word")

    try:
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in network(**arguments).parameters())
    except CommandError as error:
        raise CheckpointError(f"impossible architecture {name}: {error}") from None
    if size > MAX_PARAMETERS:
        raise CheckpointError(
            f"architecture {name} would have {size:,} parameters: expected at most {MAX_PARAMETERS:,}"
        )

    return network(**arguments)


def with_defaults(architecture: Mapping[str, object]) -> dict[str, str | int | float | bool]:
    """Return `architecture` with the default of each missing argument added.

    Old model files lack arguments that were introduced later. Raises CheckpointError under the same conditions as
    `build`.
    """
    with torch.device("meta"):
        network = build(architecture)
    assert isinstance(network.architecture, dict)
    return network.architecture


def _is_plain(value: object) -> bool:
    """Return whether `value` is a text of at most 40 characters, a float, or an integer of at most 30 digits.

    Longer integers are excluded because `repr` fails on very long ones.
    """
    if isinstance(value, str):
        return len(value) <= 40
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**30)


def _shown(value: object) -> str:
    return repr(value) if value is None or _is_plain(value) else f"({type(value).__name__})"
