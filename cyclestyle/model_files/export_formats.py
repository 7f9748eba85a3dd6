"""Export formats for the generators of a model, one generator and one file per direction of translation.

The format `reference` is that of the 2017 PyTorch implementation of CycleGAN, called the reference. In this format, the
discriminators are exported too, to further files.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from cyclestyle.checkpoints.model import Model, model_bytes, state_dict_mismatch
from cyclestyle.errors import CheckpointError
from cyclestyle.model_files import onnx
from cyclestyle.model_files.generator_file import GeneratorFile, GeneratorFiles, build
from cyclestyle.model_files.original_weights import discriminator_options, reference_options, to_reference
from cyclestyle.networks import registry


class File(NamedTuple):
    """Name, content and notes of a file for one exported network; the file is not yet written."""

    name: str
    content: bytes
    notes: list[str]  # hints for users of the file, one line each


class Encoded(NamedTuple):
    """Content of an exported file, and hints for users of the file, one line each."""

    content: bytes
    notes: list[str]


class Format(NamedTuple):
    """Export format: naming of files, and encoding of a generator."""

    name: Callable[[GeneratorFile, str], str]  # returns the file name for a source and its file stem (see `_stem`)
    encode: Callable[[nn.Module, GeneratorFile], Encoded]
    has_discriminators: bool = False  # whether the discriminators are exported beside the generators


def files(sources: GeneratorFiles, *, format: str, direction: str | None = None) -> list[File]:  # noqa: A002
    """Encode the generators of all directions of a model, or only the generator of `direction`.

    With format `reference`, the returned list ends with the discriminators that score the outputs of these generators.
    A discriminator is left out if the model file lacks it, or if the 2017 implementation of CycleGAN cannot build it.
    In the second case, the notes of the generator's file contain the reason.

    Args:
        sources: generators of the model.
        format: key of `FORMATS`.
        direction: direction such as `photo2monet`; None selects all directions.

    Raises:
        CommandError: `direction` is unknown.
        CheckpointError: the weights do not fit the network, or the format does not support the network.
    """
    kind = FORMATS[format]
    encoded_files, judges = [], []
    for source in _selected(sources, direction):
        encoded = kind.encode(build(source), source)
        notes = encoded.notes
        if kind.has_discriminators and (judge := _judge_of(source, sources)):
            judges += [judge] if isinstance(judge, File) else []
            notes = notes if isinstance(judge, File) else [*notes, judge]
        encoded_files.append(File(kind.name(source, _stem(source, sources)), encoded.content, notes))
    return encoded_files + judges


def names(sources: GeneratorFiles, *, format: str, direction: str | None = None) -> list[str]:  # noqa: A002
    """Return the names of the files that `files` would return for the same arguments, without encoding them.

    Raises:
        CommandError: `direction` is unknown.
    """
    kind, selected = FORMATS[format], _selected(sources, direction)
    judges = [_judge_of(source, sources) for source in selected] if kind.has_discriminators else []
    return [
        *(kind.name(source, _stem(source, sources)) for source in selected),
        *(judge.name for judge in judges if isinstance(judge, File)),
    ]


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
    model = Model(
        tensors,
        {source.side: source.architecture},
        {},
        source.domains,
        step,
        source.path,
        header,
        source.losses_see,
    )
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


def _judge_of(source: GeneratorFile, sources: GeneratorFiles) -> File | str | None:
    """Encode the discriminator that scores the outputs of the generator `source`, in format `reference`.

    Returns:
        The file; a note with the reason if the 2017 implementation of CycleGAN cannot build the discriminator; None if
        the model file has no such discriminator, or does not state the generator's direction.

    Raises:
        CheckpointError: the weights do not fit the discriminator.
    """
    domain = source.side[1]
    stored = sources.discriminators.get(domain)
    if stored is None or not source.states_direction:
        return None
    try:
        network = registry.build(stored.architecture, kind="discriminator")
        options = discriminator_options(network)
    except CheckpointError as error:
        return f"discriminator {domain} is not written: {error}"
    if differences := state_dict_mismatch(network.state_dict(), stored.tensors):
        fault = f"{source.path}: its weights discriminators.{domain}.* do not fit its header"
        raise CheckpointError("\n  ".join([fault, *differences]))
    network.load_state_dict(stored.tensors)
    stream = io.BytesIO()
    torch.save(OrderedDict(to_reference(network)), stream)
    note = f"it judges the outputs of latest_net_G{_letter(source)}.pth; the reference tools load it with {options}"
    return File(f"latest_net_D{_letter(source)}.pth", stream.getvalue(), [note])


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
    "reference": Format(lambda source, _: f"latest_net_G{_letter(source)}.pth", _reference, has_discriminators=True),
    "onnx": Format(lambda _, stem: f"{stem}.onnx", _onnx),
}


def _letter(source: GeneratorFile) -> str:
    """Return the suffix that names a direction in file names of the 2017 implementation of CycleGAN.

    It is `_A` for translation from the first domain to the second, `_B` for the reverse, and empty if the model file
    does not state the direction.
    """
    if not source.states_direction:
        return ""
    return "_A" if source.side == "ab" else "_B"


def _stem(source: GeneratorFile, sources: GeneratorFiles) -> str:
    """Return the name of the exported file, without extension.

    It consists of the domain names, such as `photo2monet`. Exception: for a model file that does not state its number
    of training steps, such as any `.pth` file, it is the name of the model file, followed by the direction if the file
    has two generators.
    """
    if source.step is None:
        return source.path.stem if len(sources.by_side) == 1 else f"{source.path.stem}_{source.direction}"
    names = [re.sub(r"[^\w.-]+", "_", name).strip(".")[:_MAX_NAME] for name in source.domains]
    ab, ba = "2".join(names), "2".join(reversed(names))
    if ab.casefold() == ba.casefold() or not all(names):  # both directions would get the same file
        ab, ba = "a2b", "b2a"
    return ab if source.side == "ab" else ba


_MAX_NAME = 60  # maximum characters of a domain name in a file name
