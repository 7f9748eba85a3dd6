"""Reading of the weights from which a new run starts (`init=`), for some or all of the run's networks."""

import re
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cyclestyle.checkpoints import directory
from cyclestyle.checkpoints.model import Model
from cyclestyle.errors import CheckpointError
from cyclestyle.model_files import file_kinds, generator_file, original_weights, pth
from cyclestyle.model_files.generator_file import GeneratorFile

_REFERENCE = re.compile(r"(\w+)_net_([GD])_([AB])\.(?:pth|pt)$")  # latest_net_G_A.pth, 200_net_D_B.pth
_JUDGED = {"A": "b", "B": "a"}  # the reference's discriminator A judges the translations of generator A


class InitialModel(NamedTuple):
    """Networks from which a new run starts: some or all of the two generators and two discriminators."""

    model: Model  # with tensors generators.*, discriminators.* and those of other modules; without a moving average
    states_domains: bool  # whether the file states the names of its domains
    states_dropout: bool  # whether the architectures state the dropout rate; weights of other programs do not
    notes: list[str]  # remarks for the user, without the names of networks


def read(path: Path, domains: tuple[str, str]) -> InitialModel:
    """Read all networks at `path` that a new run can start from.

    Args:
        path: a run folder, a checkpoint folder, a safetensors file, a file of `torch.save` with generators or with a
            discriminator of the reference, or a folder with exported files: `.safetensors` of one direction each, or
            `latest_net_G_A.pth`, `latest_net_D_A.pth` and so on.
        domains: names of the run's domains a and b. A file that states no direction, but is called `photo2monet`,
            holds the generator from `photo` to `monet`.

    Raises:
        CheckpointError: there is no model at `path`, it is damaged, or it is an ONNX file.
    """
    if path.is_dir() and (files := _exported(path)):
        return _combined([_read_file(file, domains) for file in files], path)
    if path.is_file() and path.name not in directory.POINTERS:
        return _read_file(path, domains)
    if reason := file_kinds.tensorflow_reason(path):
        raise CheckpointError(f"{path} {reason}")
    return _from_checkpoint(directory.read_model(path))


def _exported(folder: Path) -> list[Path]:
    """Return the files of exported networks in a folder; empty for a run folder or a checkpoint folder.

    If the folder has files named as in the 2017 implementation, such as `200_net_G_A.pth`, only those of one epoch are
    returned: the epoch `latest` if there is one, else the one with the largest number. In other folders, all
    `.safetensors` files are returned.
    """
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    if (folder / "checkpoints").is_dir() or any(
        path.name in ("networks.safetensors", "manifest.json") for path in paths
    ):
        return []
    epochs: dict[str, list[Path]] = {}
    for path in paths:
        if match := _REFERENCE.match(path.name):
            epochs.setdefault(match[1], []).append(path)
    if epochs:
        newest = max(epochs, key=lambda name: (name == "latest", int(name) if name.isdecimal() else -1))
        return epochs[newest]
    return [path for path in paths if path.suffix.lower() == ".safetensors"]


def _read_file(path: Path, domains: tuple[str, str]) -> InitialModel:
    kind = file_kinds.kind_of(path)
    if kind == "onnx":
        raise CheckpointError(
            f"{path} is an ONNX file, whose weights cannot be trained: give the run folder, the .safetensors or the "
            f".pth file that it was exported from"
        )
    if kind == "safetensors" and directory.read_foreign_tensors(path) is None:
        return _from_checkpoint(directory.read_model(path), domains)
    match = _REFERENCE.match(path.name)
    if match and match[2] == "D":
        return _from_discriminator(path, _JUDGED[match[3]])
    sources = generator_file.read(path)
    tensors: dict[str, Tensor] = {}
    generators, notes = {}, []
    for source in sources.by_side.values():
        side: str = source.side
        if not source.states_direction:
            side, note = _assumed_side(source, domains)
            notes.append(note)
        generators[side] = source.architecture
        tensors |= {f"generators.{side}.{name}": tensor for name, tensor in source.tensors.items()}
    model = Model(tensors, generators, {}, domains, 0, path)
    return InitialModel(model, states_domains=False, states_dropout=False, notes=notes)


def _from_checkpoint(model: Model, domains: tuple[str, str] | None = None) -> InitialModel:
    """Return the networks in a model file that this program wrote.

    The generators have the weights of the last step. If the file lacks these, they have the moving average instead.

    Args:
        model: content of the file.
        domains: names of the domains of the new run. They show the direction of an exported file that does not name
            its direction. None if the file is a checkpoint, since a checkpoint names both directions.
    """
    last = model.weights_under("generators.")
    averaged = {} if last else model.weights_under("ema.")
    tensors = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("ema.")}
    tensors |= {f"generators.{name}": tensor for name, tensor in averaged.items()}
    notes = []
    if averaged or (model.export or {}).get("weights") == "ema":
        notes.append("moving average of the weights")
    elif model.weights_under("ema."):
        notes.append("weights of the last step, not their moving average")
    model = model._replace(tensors=tensors)
    states_direction = model.export is None or model.export.get("direction") is not None
    if states_direction or domains is None:
        return InitialModel(model, states_domains=True, states_dropout=True, notes=notes)
    (source,) = generator_file.read(model.path).by_side.values()
    side, note = _assumed_side(source, domains)
    named = {f"generators.{side}.{name}": tensor for name, tensor in source.tensors.items()}
    model = model._replace(tensors=named, generators={side: source.architecture}, domains=domains)
    return InitialModel(model, states_domains=False, states_dropout=False, notes=[*notes, note])


def _assumed_side(source: GeneratorFile, domains: tuple[str, str]) -> tuple[str, str]:
    """Choose a direction, "ab" or "ba", for a generator whose file states none; return it with a note for the user.

    The direction follows from the file's name, such as `photo2monet`; by default it is "ab".
    """
    for side, name in zip(("ab", "ba"), generator_file.directions(domains), strict=True):
        if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", source.path.stem):
            return side, f"direction {name} by the name of {source.path.name}"
    return "ab", f"{source.path.name} states no direction: used for {generator_file.directions(domains)[0]}"


def _from_discriminator(path: Path, side: str) -> InitialModel:
    tensors = pth.read_tensors(path) if file_kinds.kind_of(path) == "torch" else directory.read_foreign_tensors(path)
    try:
        architecture, weights = original_weights.detect_discriminator(tensors or {})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    named = {f"discriminators.{side}.{name}": tensor.detach().float().clone() for name, tensor in weights.items()}
    model = Model(named, {}, {side: dict(architecture)}, ("a", "b"), 0, path)
    return InitialModel(model, states_domains=False, states_dropout=False, notes=[])


def _combined(parts: list[InitialModel], folder: Path) -> InitialModel:
    """Join the networks of several files; raise a CheckpointError if two of them hold the same network."""
    first = next((part.model for part in parts if part.states_domains), parts[0].model)
    whole = Model({}, {}, {}, first.domains, first.step, folder)
    for part in parts:
        for present, added in (
            (whole.generators, part.model.generators),
            (whole.discriminators, part.model.discriminators),
        ):
            if twice := present.keys() & added.keys():
                raise CheckpointError(f"{folder} holds several files of network {min(twice)}: give one of the files")
            present.update(added)
        whole.tensors.update(part.model.tensors)
        if part.states_domains and part.model.domains != first.domains:
            raise CheckpointError(f"{folder} holds models of other domains beside each other: give one of the files")
    return InitialModel(
        whole,
        states_domains=any(part.states_domains for part in parts),
        states_dropout=all(part.states_dropout for part in parts),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
    )
