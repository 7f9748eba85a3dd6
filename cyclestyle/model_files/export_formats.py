"""Export formats for generators; each direction of a model is exported to a file of its own."""

import io
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cyclestyle.checkpoints.model import Model, model_bytes
from cyclestyle.errors import CheckpointError
from cyclestyle.model_files import onnx
from cyclestyle.model_files.generator_file import GeneratorFile, GeneratorFiles, build
from cyclestyle.model_files.original_weights import reference_options, to_reference


class File(NamedTuple):
    """Name, content and notes of the file for one exported generator; the file is not yet written."""

    name: str
    content: bytes
    notes: list[str]  # hints for users of the file, one line each


class Encoded(NamedTuple):
    """Content of an exported file, and hints for users of the file, one line each."""

    content: bytes
    notes: list[str]


class Format(NamedTuple):
    """Format of exported files: how a file is named, and how a generator is encoded."""

    name: Callable[[GeneratorFile, str], str]  # returns the file name for a source and its file stem (see `_stem`)
    encode: Callable[[nn.Module, GeneratorFile], Encoded]


def files(sources: GeneratorFiles, *, format: str, direction: str | None = None) -> list[File]:  # noqa: A002
    """Encode the generators of all directions of a model, or only the generator of `direction`.

    Args:
        sources: generators of the model.
        format: key of `FORMATS`.
        direction: direction such as `photo2monet`; None selects all directions.

    Raises:
        CommandError: `direction` is unknown.
        CheckpointError: the weights do not fit the network, or the format does not support the network.
    """
    kind = FORMATS[format]
    encoded_files = []
    for source in _selected(sources, direction):
        encoded = kind.encode(build(source), source)
        encoded_files.append(File(kind.name(source, _stem(source)), encoded.content, encoded.notes))
    return encoded_files


def names(sources: GeneratorFiles, *, format: str, direction: str | None = None) -> list[str]:  # noqa: A002
    """Return the names of the files that `files` would return for the same arguments, without encoding them.

    Raises:
        CommandError: `direction` is unknown.
    """
    return [FORMATS[format].name(source, _stem(source)) for source in _selected(sources, direction)]


def _selected(sources: GeneratorFiles, direction: str | None) -> list[GeneratorFile]:
    return list(sources.by_side.values()) if direction is None else [sources.select(direction)]


def _safetensors(generator: nn.Module, source: GeneratorFile) -> Encoded:
    group = "ema" if source.weights == "ema" else "generators"
    tensors = {f"{group}.{source.side}.{name}": tensor for name, tensor in generator.state_dict().items()}
    header = {
        "direction": source.direction if source.states_direction else None,
        "weights": source.weights,
        "step": source.step,
        "training": source.training,
    }
    step = source.step or 0
    model = Model(tensors, {source.side: source.architecture}, {}, source.domains, step, source.path, header)
    return Encoded(model_bytes(model), [])


def _reference(generator: nn.Module, source: GeneratorFile) -> Encoded:
    try:
        options = reference_options(generator)
        weights = to_reference(generator)
    except CheckpointError as error:
        raise CheckpointError(f"{source.path}: {error}") from None
    stream = io.BytesIO()
    torch.save(OrderedDict(weights), stream)
    return Encoded(stream.getvalue(), [f"the reference tools load it with {options}"])


def _onnx(generator: nn.Module, source: GeneratorFile) -> Encoded:
    content, differences, multiple, minimum = onnx.export(generator, source)
    shapes = ", ".join(f"{largest:.1e} at {' x '.join(map(str, shape))}" for shape, largest in differences)
    return Encoded(
        content,
        [
            f"largest difference from PyTorch: {shapes} (values in [-1, 1]; at most {onnx.TOLERANCE} is accepted)",
            f"other programs must pass images with sides that are multiples of {multiple} px and at least {minimum} px",
        ],
    )


FORMATS = {
    "safetensors": Format(lambda _, stem: f"{stem}.safetensors", _safetensors),
    "reference": Format(lambda source, _: f"latest_net_G{_letter(source)}.pth", _reference),
    "onnx": Format(lambda _, stem: f"{stem}.onnx", _onnx),
}


def _letter(source: GeneratorFile) -> str:
    """Return the suffix for the direction in file names of the 2017 implementation: `_A` or `_B`.

    The suffix is empty if the direction is unknown.
    """
    if not source.states_direction:
        return ""
    return "_A" if source.side == "ab" else "_B"


def _stem(source: GeneratorFile) -> str:
    """Return the name of the exported file without extension, made of the domain names, such as `photo2monet`.

    If the source does not state its step (a `.pth` file never does), return the source's file name without extension.
    """
    if source.step is None:
        return source.path.stem
    names = [re.sub(r"[^\w.-]+", "_", name).strip(".")[:_MAX_NAME] for name in source.domains]
    ab, ba = "2".join(names), "2".join(reversed(names))
    if ab.casefold() == ba.casefold() or not all(names):  # both directions would get the same file
        ab, ba = "a2b", "b2a"
    return ab if source.side == "ab" else ba


_MAX_NAME = 60  # maximum characters of a domain name in a file name
