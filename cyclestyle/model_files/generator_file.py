"""Reading of generators, one per direction, from checkpoints, exported safetensors files and `.pth` files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cyclestyle.checkpoints import directory, model
from cyclestyle.checkpoints.model import Model
from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.model_files import file_kinds, original_weights, other_programs, pth
from cyclestyle.networks import registry

Side = Literal["ab", "ba"]
Weights = Literal["ema", "raw"]

_GROUPS: dict[Weights, str] = {"ema": "ema", "raw": "generators"}  # first part of tensor names in a model file


class GeneratorFile(NamedTuple):
    """Generator of one direction, as read from a file: architecture, weights and origin."""

    architecture: dict[str, Any]  # from the file's header; not validated before `build`
    tensors: dict[str, Tensor]
    side: Side
    domains: tuple[str, str]
    weights: Weights
    path: Path
    step: int | None = None  # None if the file does not state its step
    training: dict[str, Any] | None = None  # summary of the training, see `provenance.training_summary`
    prefix: str = ""  # prefix of the tensor names in a safetensors file; empty for other files
    states_direction: bool = True  # whether the file states its direction
    losses_see: tuple[str, ...] = ()  # pretrained networks whose features a loss of the training used, if it is known

    @property
    def direction(self) -> str:
        return directions(self.domains)[self.side == "ba"]


class DiscriminatorFile(NamedTuple):
    """Discriminator of one domain, as read from a checkpoint: architecture and weights of the last step."""

    architecture: dict[str, Any]  # from the file's header; not validated
    tensors: dict[str, Tensor]


class GeneratorFiles(NamedTuple):
    """Generators of all directions of a model: two from a checkpoint, one from an exported file or a `.pth` file."""

    by_side: dict[Side, GeneratorFile]
    path: Path
    domains: tuple[str, str]
    discriminators: Mapping[str, DiscriminatorFile] = {}  # "a", "b" -> discriminator; empty if the file has none

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(source.direction for source in self.by_side.values())

    def select(self, direction: str | None) -> GeneratorFile:
        """Return the generator for `direction`, such as `photo2monet`, `a2b` or `b2a`.

        `a2b` translates from the first domain to the second, and `b2a` back. Names made of the domain names take
        precedence: if the first domain is called b and the second a, `b2a` translates from the first to the second.

        Args:
            direction: None selects the only generator of a model that has one direction.

        Raises:
            CommandError: `direction` is not a direction of the model; or it is None, but the model has two directions;
                or it is given, but the model has one direction and its file does not state which.
        """
        if len(self.by_side) == 1:
            return self._only(direction)
        ab, ba = _unambiguous_names(self.domains)
        side = _side_of(direction, self.domains)
        if side is None:
            wrong = "direction= is missing" if direction is None else f"direction={direction} is unknown"
            raise CommandError(f"{wrong}: this model translates {ab} or {ba}")
        return self.by_side[side]

    def _only(self, direction: str | None) -> GeneratorFile:
        (source,) = self.by_side.values()
        if direction is None or (source.states_direction and _side_of(direction, self.domains) == source.side):
            return source
        which = f", {source.direction}" if source.states_direction else ""
        raise CommandError(f"direction={direction}: {self.path} holds one direction only{which}: leave direction= out")


def read(path: Path, *, weights: Weights = "ema") -> GeneratorFiles:
    """Read the generators of a model.

    Args:
        path: a run folder, a checkpoint folder, a safetensors file, or a file of `torch.save` with generators of this
            program or of the 2017 implementation, such as `latest_net_G_A.pth`.
        weights: `ema` selects the moving average of the weights if the model has one, else the weights of the last
            step; `raw` always selects the weights of the last step.

    Raises:
        CheckpointError: the file is missing, damaged, or does not hold a generator.
        CommandError: `weights` is `raw`, but the file holds only the moving average.
    """
    if path.name in directory.POINTERS or not path.is_file():
        if reason := file_kinds.tensorflow_reason(path):
            raise CheckpointError(f"{path} {reason}")
        return from_model(directory.read_model(path), weights)
    kind = file_kinds.kind_of(path)
    if kind == "onnx":
        remedy = "" if path.suffix.lower() == ".onnx" else "rename it to .onnx to translate with it, or "
        raise CheckpointError(
            f"{path} is an ONNX file, which only onnxruntime runs: {remedy}give the checkpoint that it came from"
        )
    if kind == "torch":
        return _from_tensors(path, pth.read_tensors(path))
    if (foreign := directory.read_foreign_tensors(path)) is not None:
        return _from_tensors(path, foreign)
    return from_model(directory.read_model(path), weights)


def from_model(model: Model, weights: Weights) -> GeneratorFiles:
    """Return the generators of a model; see `read` for `weights`.

    Raises:
        CheckpointError: the model holds no generator.
        CommandError: `weights` is `raw`, but the model holds only the moving average.
    """
    by_side: dict[Side, GeneratorFile] = {}
    for side in ("ab", "ba"):
        averaged, last = model.weights_under(f"ema.{side}."), model.weights_under(f"generators.{side}.")
        if weights == "raw" and averaged and not last:
            raise CommandError(f"weights=raw: {model.path} holds the moving average only, leave weights= out")
        kind: Weights = "ema" if weights == "ema" and averaged else "raw"
        if tensors := averaged if kind == "ema" else last:
            if side not in model.generators:
                raise CheckpointError(f"{model.path}: its header has no architecture of the generator {side}")
            by_side[side] = GeneratorFile(
                model.generators[side],
                tensors,
                side,
                model.domains,
                kind,
                model.path,
                None if model.export is not None and model.export.get("step", 0) is None else model.step,
                _training(model),
                prefix=f"{_GROUPS[kind]}.{side}.",
                states_direction=model.export is None or model.export.get("direction") is not None,
                losses_see=model.losses_see,
            )
    if not by_side:
        raise CheckpointError(f"{model.path} holds no generator: expected generators.ab.* or ema.ab.* in it")
    discriminators = {
        side: DiscriminatorFile(architecture, tensors)
        for side, architecture in model.discriminators.items()
        if (tensors := model.weights_under(f"discriminators.{side}."))
    }
    return GeneratorFiles(by_side, model.path, model.domains, discriminators)


def directions(domains: tuple[str, str]) -> tuple[str, str]:
    """Return the names of both directions: from the first domain to the second, such as `photo2monet`, and back."""
    a, b = domains
    return f"{a}2{b}", f"{b}2{a}"


def build(source: GeneratorFile) -> nn.Module:
    """Build the network that a `GeneratorFile` describes, on the CPU, and load its weights.

    Raises:
        CheckpointError: the network is unknown, its images are neither grey nor RGB, or it does not fit the weights.
    """
    path, name = source.path, source.architecture.get("name")
    try:
        generator = registry.build(source.architecture, kind="generator")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    for key, count in zip(("in_channels", "out_channels"), registry.channels_of(generator), strict=True):
        if count not in (1, 3):
            raise CheckpointError(f"{path}: its generator has {key}={count}: expected 1 (grey) or 3 (RGB)")

    differences = model.state_dict_mismatch(generator.state_dict(), source.tensors)
    if differences:
        group, description = (f" {source.prefix}*", "header describes") if source.prefix else ("", "names describe")
        fault = f"{path}: its weights{group} do not fit the {name} generator that its {description}"
        raise CheckpointError("\n  ".join([fault, *differences]))
    generator.load_state_dict(source.tensors)
    return generator


def fingerprint(generator: nn.Module) -> str:
    """Return a hexadecimal SHA-256 of a generator; equal values mean equal translations.

    The hash is computed from the architecture and from the weights, converted to float32. The dropout rate is left out:
    dropout does nothing in evaluation mode, and `.pth` files do not state the rate.
    """
    architecture: Mapping[str, object] = generator.architecture  # type: ignore[assignment]
    digest = hashlib.sha256()
    digest.update(json.dumps({**architecture, "dropout": 0}, sort_keys=True).encode())
    for name, tensor in sorted(generator.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _training(model: Model) -> dict[str, Any] | None:
    training = (model.export or {}).get("training")
    return training if isinstance(training, dict) else None


def _from_tensors(path: Path, tensors: Mapping[str, Tensor]) -> GeneratorFiles:
    """Return the generators in a file of another program, which contains named tensors but no architecture.

    The architecture is detected from the tensors. The direction of each generator follows from the prefix of its
    tensors, else from the name of the file.

    Raises:
        CheckpointError: the tensors are not those of supported generators, or the direction of a generator is unclear.
    """
    try:
        found = original_weights.find_generators(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    by_side: dict[Side, GeneratorFile] = {}
    for prefix, (architecture, weights) in found.items():
        if not all(tensor.is_floating_point() for tensor in weights.values()):
            raise CheckpointError(f"{path}: its weights are not floating-point numbers")
        stated = other_programs.side_in(prefix) or (other_programs.side_in(path.stem) if len(found) == 1 else None)
        side: Side = stated or "ab"
        if (stated is None and len(found) > 1) or side in by_side:
            names = ", ".join(other[:80].rstrip(".") for other in found)
            raise CheckpointError(
                f"{path}: the names of its generators, {names}, do not state one direction each, as G_AB and G_BA do: "
                f"save one of them alone"
            )
        # Copied, as the tensors may map the file.
        copies = {name: tensor.detach().to(torch.float32, copy=True) for name, tensor in weights.items()}
        by_side[side] = GeneratorFile(
            dict(architecture), copies, side, ("a", "b"), "raw", path, states_direction=stated is not None
        )
    return GeneratorFiles(dict(sorted(by_side.items())), path, ("a", "b"))


def _unambiguous_names(domains: tuple[str, str]) -> tuple[str, str]:
    ab, ba = directions(domains)
    return ("a2b", "b2a") if ab == ba else (ab, ba)  # equal for domains such as x and x2x


def _side_of(direction: str | None, domains: tuple[str, str]) -> Side | None:
    ab, ba = _unambiguous_names(domains)
    names: dict[str | None, Side] = {"a2b": "ab", "b2a": "ba"}
    names |= {ab: "ab", ba: "ba"}
    return names.get(direction)
