"""The model file: weights, architecture and domain names in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save as to_bytes
from torch import Tensor

from cyclestyle.filesystem.atomic import _write

VERSION = 1
_HEADER = "cyclestyle"  # the key of our JSON in the header of a safetensors file
_GARBLED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # from JSON that lies


class Model(NamedTuple):
    """The networks of a checkpoint as data: nothing of it is code."""

    tensors: dict[str, Tensor]  # "generators.ab.stem.0.weight" -> weights, on the CPU
    generator: dict[str, Any]  # architecture: a name from the table of networks and plain numbers
    discriminator: dict[str, Any]
    domains: tuple[str, str]
    step: int
    path: Path
    export: dict[str, Any] | None = None  # what an exported file tells of its one direction: all for people, plain data

    def weights_under(self, prefix: str) -> dict[str, Tensor]:
        """The weights below a prefix such as `"ema.ab."`, without it; empty if there are none."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def write_model(model: Model, path: Path) -> None:
    """Networks as one safetensors file that knows its architecture and its domains."""
    _write(path, lambda stream: stream.write(model_bytes(model)))


def model_bytes(model: Model) -> bytes:
    """What `write_model` writes."""
    header = {
        "version": VERSION,
        "step": model.step,
        "domains": list(model.domains),
        "generator": model.generator,
        "discriminator": model.discriminator,
        **({} if model.export is None else {"export": model.export}),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors.items()}
    return to_bytes(tensors, metadata={_HEADER: json.dumps(header)})


def state_dict_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps weights from being loaded, a line for each kind of reason."""
    shapes = {key: (tuple(given[key].shape), tuple(expected[key].shape)) for key in expected if key in given}
    reasons = {
        "missing": [key for key in expected if key not in given],
        "unexpected": [key for key in given if key not in expected],
        "of another shape": [f"{key} {is_} for {wanted}" for key, (is_, wanted) in shapes.items() if is_ != wanted],
    }
    return [
        f"{len(keys)} {reason}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for reason, keys in reasons.items()
        if keys
    ]


def tensor_bytes(state: object) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(tensor_bytes, parts))
