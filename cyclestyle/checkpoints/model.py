"""The model file: weights, architecture and domain names in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save as to_bytes
from torch import Tensor

from cyclestyle.filesystem.atomic import write_and_sync

VERSION = 2  # version 1 had one architecture for both generators, and one for both discriminators
HEADER = "cyclestyle"  # metadata key in the safetensors header; its value is JSON text with the architectures
# Exceptions raised when malformed JSON is parsed or its entries are read.
GARBLED_JSON = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


class Model(NamedTuple):
    """Networks of a checkpoint as plain data: weights, architectures, domain names and the step."""

    tensors: dict[str, Tensor]  # name such as "generators.ab.stem.0.weight" -> weights; on the CPU if read from a file
    generators: dict[str, dict[str, Any]]  # "ab", "ba" -> architecture: name in the registry of networks, and arguments
    discriminators: dict[str, dict[str, Any]]  # "a", "b" -> architecture; empty in an exported file
    domains: tuple[str, str]  # names of domains a and b
    step: int
    path: Path  # file that the model was read from; `Path()` for a model in memory
    export: dict[str, Any] | None = None  # description of an exported direction, for people; None in a checkpoint
    losses_see: tuple[str, ...] = ()  # pretrained networks whose features a loss of the training used, sorted

    def weights_under(self, prefix: str) -> dict[str, Tensor]:
        """Return the weights whose names start with `prefix`, such as `"ema.ab."`; the keys omit the prefix."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def architectures(header: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Read the architectures of the networks from the header of a model file.

    A header of version 1 has one architecture for both generators, and one for both discriminators. A missing or
    malformed entry raises one of the exceptions in `GARBLED_JSON`, such as KeyError.

    Returns:
        Architectures of the generators, keyed by `ab` and `ba`; architectures of the discriminators, keyed by `a` and
        `b`, or an empty dict for an exported file. An architecture is a dict with the registered name of the network
        and its arguments.
    """
    if header["version"] < 2:
        generator, discriminator = dict(header["generator"]), dict(header["discriminator"])
        discriminators = {side: dict(discriminator) for side in ("a", "b")} if discriminator else {}
        return {side: dict(generator) for side in ("ab", "ba")}, discriminators
    generators, discriminators = (
        {str(side): dict(architecture) for side, architecture in header[group].items()}
        for group in ("generators", "discriminators")
    )
    return generators, discriminators


def write_model(model: Model, path: Path) -> None:
    """Write the networks to the safetensors file `path`, whose header holds architectures and domain names."""
    write_and_sync(path, lambda stream: stream.write(model_bytes(model)))


def model_bytes(model: Model) -> bytes:
    """Return the content of a model file for `model`, in safetensors format."""
    header = {
        "version": VERSION,
        "step": model.step,
        "domains": list(model.domains),
        "generators": model.generators,
        "discriminators": model.discriminators,
        **({} if model.export is None else {"export": model.export}),
        **({"losses_see": model.losses_see} if model.losses_see else {}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    return to_bytes(tensors, metadata={HEADER: json.dumps(header)})


def state_dict_mismatch(expected: Mapping[str, Tensor], loaded: Mapping[str, Tensor]) -> list[str]:
    """Describe how the names and shapes of the `loaded` weights differ from those of the `expected` weights.

    Returns:
        Up to three lines: missing names, unexpected names, and names with another shape; empty if all weights fit.
    """
    shapes = {key: (tuple(loaded[key].shape), tuple(expected[key].shape)) for key in expected if key in loaded}
    reasons = {
        "missing": [key for key in expected if key not in loaded],
        "unexpected": [key for key in loaded if key not in expected],
        "of another shape": [f"{key} {shape} for {right}" for key, (shape, right) in shapes.items() if shape != right],
    }
    return [
        f"{len(keys)} {reason}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for reason, keys in reasons.items()
        if keys
    ]


def tensor_bytes(state: object) -> int:
    """Return the total size in bytes of all tensors in `state`, which nests mappings, lists and tuples."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    items = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(tensor_bytes, items))
