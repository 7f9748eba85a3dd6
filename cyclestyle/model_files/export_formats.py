"""The files that a model is handed on in, one for each direction: named, encoded and described for people."""

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
    """One direction, ready to be written."""

    name: str
    content: bytes
    notes: list[str]  # what whoever uses it needs to know, a line each


class Encoded(NamedTuple):
    """What a format makes of a generator."""

    content: bytes
    notes: list[str]


class Format(NamedTuple):
    """A kind of file."""

    name: Callable[[GeneratorFile, str], str]  # of the source and its direction as part of a file name
    encode: Callable[[nn.Module, GeneratorFile], Encoded]


def files(sources: GeneratorFiles, *, format: str, direction: str | None = None) -> list[File]:  # noqa: A002
    """The directions of a model, or one of them, in one of FORMATS.

    Raises:
        CommandError: no such direction.
        CheckpointError: weights that do not fit, or a network that the format cannot hold.
    """
    kind = FORMATS[format]
    made = []
    for source in _chosen(sources, direction):
        encoded = kind.encode(build(source), source)
        made.append(File(kind.name(source, _stem(source)), encoded.content, encoded.notes))
    return made


def names(sources: GeneratorFiles, *, format: str, direction: str | None = None) -> list[str]:  # noqa: A002
    """What `files` will call them; raises CommandError for a direction that there is not."""
    return [FORMATS[format].name(source, _stem(source)) for source in _chosen(sources, direction)]


def _chosen(sources: GeneratorFiles, direction: str | None) -> list[GeneratorFile]:
    return list(sources.found.values()) if direction is None else [sources.choose(direction)]


def _safetensors(generator: nn.Module, source: GeneratorFile) -> Encoded:
    part = "ema" if source.weights == "ema" else "generators"
    tensors = {f"{part}.{source.side}.{name}": tensor for name, tensor in generator.state_dict().items()}
    about = {
        "direction": source.direction if source.states_direction else None,
        "weights": source.weights,
        "step": source.step,
        "training": source.training,
    }
    step = source.step or 0
    model = Model(tensors, source.architecture, {}, source.domains, step, source.path, about)
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
    content, differences = onnx.export(generator, source)
    shapes = ", ".join(f"{largest:.1e} at {' x '.join(map(str, shape))}" for shape, largest in differences)
    multiple, minimum = generator.multiple, generator.minimum
    return Encoded(
        content,
        [
            f"differs from PyTorch by {shapes} (of [-1, 1]; {onnx.TOLERANCE} would be too much)",
            f"other programs give it sizes that are multiples of {multiple} px, {minimum} px at least",
        ],
    )


FORMATS = {
    "safetensors": Format(lambda _, stem: f"{stem}.safetensors", _safetensors),
    "reference": Format(lambda source, _: f"latest_net_G{_letter(source)}.pth", _reference),
    "onnx": Format(lambda _, stem: f"{stem}.onnx", _onnx),
}


def _letter(source: GeneratorFile) -> str:
    """What stands for a direction in the reference's files; nothing where it is not known."""
    if not source.states_direction:
        return ""
    return "_A" if source.side == "ab" else "_B"


def _stem(source: GeneratorFile) -> str:
    """A direction as part of a file name, whatever the domains are called; a reference file keeps its own."""
    if source.step is None:
        return source.path.stem
    names = [re.sub(r"[^\w.-]+", "_", name).strip(".")[:_LONGEST] for name in source.domains]
    ab, ba = "2".join(names), "2".join(reversed(names))
    if ab.casefold() == ba.casefold() or not all(names):  # the two would be one file
        ab, ba = "a2b", "b2a"
    return ab if source.side == "ab" else ba


_LONGEST = 60  # characters of a domain's name in a file's
