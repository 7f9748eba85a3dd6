"""One direction of a model as data, whichever file it comes in: what translators and exported files are made of."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cyclestyle.checkpoints import directory, model
from cyclestyle.checkpoints.model import Model
from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.model_files import original_weights, pth
from cyclestyle.networks import registry

Side = Literal["ab", "ba"]
Weights = Literal["ema", "raw"]

REFERENCE = (".pth", ".pt")  # how files of the reference implementation end
_PARTS: dict[Weights, str] = {"ema": "ema", "raw": "generators"}  # what they are called in a model file
_NAMED = re.compile(r"_G_([AB])\.(pth|pt)", re.IGNORECASE)  # in latest_net_G_A.pth, which maps A to B


class GeneratorFile(NamedTuple):
    """A generator of one direction."""

    architecture: dict[str, Any]  # as its file describes it: to be trusted in nothing before `build`
    tensors: dict[str, Tensor]
    side: Side
    domains: tuple[str, str]
    weights: Weights
    path: Path
    step: int | None = None  # None where the file does not say
    training: dict[str, Any] | None = None  # what an exported file tells of how it came to be
    prefix: str = ""  # of its tensors in a file that has a header
    states_direction: bool = True  # whether the file says which direction it is

    @property
    def direction(self) -> str:
        return directions(self.domains)[self.side == "ba"]


class GeneratorFiles(NamedTuple):
    """The directions that a model has: two after training, one in a file that was exported or comes from elsewhere."""

    found: dict[Side, GeneratorFile]
    path: Path
    domains: tuple[str, str]

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(source.direction for source in self.found.values())

    def choose(self, direction: str | None) -> GeneratorFile:
        """The one that a direction means; the domains' own names come before `a2b` and `b2a`.

        Raises:
            CommandError: there are two and `direction` is neither, or one and it is another.
        """
        if len(self.found) == 1:
            return self._only(direction)
        ab, ba = _unambiguous_names(self.domains)
        side = _side_of(direction, self.domains)
        if side is None:
            wrong = "direction= is missing" if direction is None else f"direction={direction} is unknown"
            raise CommandError(f"{wrong}: this model translates {ab} or {ba}")
        return self.found[side]

    def _only(self, direction: str | None) -> GeneratorFile:
        (source,) = self.found.values()
        if direction is None or (source.states_direction and _side_of(direction, self.domains) == source.side):
            return source
        which = f", {source.direction}" if source.states_direction else ""
        raise CommandError(f"direction={direction}: {self.path} holds one direction only{which}: leave direction= out")


def read(path: Path, *, weights: Weights = "ema") -> GeneratorFiles:
    """The directions of a run's folder, a checkpoint's folder, a safetensors file or a reference file.

    Args:
        weights: `ema` is the moving average where the model has one, else the weights of the last step.

    Raises:
        CheckpointError: there is none, it is damaged, or no file of a generator.
        CommandError: the last step's weights of a file that was exported without them.
    """
    if path.suffix.lower() == ".onnx" and path.is_file():
        raise CheckpointError(f"{path} is an .onnx file, which only onnxruntime runs: give what it was exported from")
    if path.suffix.lower() in REFERENCE and path.is_file():
        return _from_reference(path)
    return _from_model(directory.read_model(path), weights)


def directions(domains: tuple[str, str]) -> tuple[str, str]:
    """The names of a to b and of b to a."""
    a, b = domains
    return f"{a}2{b}", f"{b}2{a}"


def build(source: GeneratorFile) -> nn.Module:
    """The network that a source describes, with its weights, on the CPU.

    Raises:
        CheckpointError: no such network, one that does not translate RGB pictures, or weights that do not fit it.
    """
    architecture, path = source.architecture, source.path
    name = architecture.get("name")
    if name not in registry.GENERATORS:
        known = " or ".join(registry.GENERATORS)
        raise CheckpointError(f"{path}: its generator is called {str(name)[:40]!r}, expected {known}")
    if any(architecture.get(key, 3) != 3 for key in ("in_channels", "out_channels")):
        raise CheckpointError(f"{path}: its generator does not translate RGB pictures, the only kind there is here")
    generator = registry.build(architecture)

    differences = model.state_dict_mismatch(generator.state_dict(), source.tensors)
    if differences:
        part, teller = (f" {source.prefix}*", "header describes") if source.prefix else ("", "names describe")
        fault = f"{path}: its weights{part} do not fit the {name} generator that its {teller}"
        raise CheckpointError("\n  ".join([fault, *differences]))
    generator.load_state_dict(source.tensors)
    return generator


def fingerprint(generator: nn.Module) -> str:
    """Sha256, in hexadecimal, of what decides over translations: architecture and weights, in float32.

    Dropout is left out: it does nothing in evaluation, and not every file says how much there was.
    """
    architecture: Mapping[str, object] = generator.architecture  # type: ignore[assignment]
    digest = hashlib.sha256()
    digest.update(json.dumps({**architecture, "dropout": 0}, sort_keys=True).encode())
    for name, tensor in sorted(generator.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"\n{name} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def _from_model(model: Model, weights: Weights) -> GeneratorFiles:
    found: dict[Side, GeneratorFile] = {}
    for side in ("ab", "ba"):
        averaged, last = model.weights_under(f"ema.{side}."), model.weights_under(f"generators.{side}.")
        if weights == "raw" and averaged and not last:
            raise CommandError(f"weights=raw: {model.path} holds the moving average only, leave weights= out")
        kind: Weights = "ema" if weights == "ema" and averaged else "raw"
        if tensors := averaged if kind == "ema" else last:
            found[side] = GeneratorFile(
                model.generator,
                tensors,
                side,
                model.domains,
                kind,
                model.path,
                None if model.export is not None and model.export.get("step", 0) is None else model.step,
                _training(model),
                prefix=f"{_PARTS[kind]}.{side}.",
                states_direction=model.export is None or model.export.get("direction") is not None,
            )
    if not found:
        raise CheckpointError(f"{model.path} holds no generator: expected generators.ab.* or ema.ab.* in it")
    return GeneratorFiles(found, model.path, model.domains)


def _training(model: Model) -> dict[str, Any] | None:
    training = (model.export or {}).get("training")
    return training if isinstance(training, dict) else None


def _from_reference(path: Path) -> GeneratorFiles:
    tensors = pth.read_tensors(path)
    try:
        architecture, weights = original_weights.detect_architecture(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not all(tensor.is_floating_point() for tensor in weights.values()):
        raise CheckpointError(f"{path}: its weights are no floating-point numbers")
    named = _NAMED.search(path.name)
    side: Side = "ba" if named and named[1].upper() == "B" else "ab"
    source = GeneratorFile(
        dict(architecture),
        {name: tensor.float() for name, tensor in weights.items()},
        side,
        ("a", "b"),
        "raw",
        path,
        states_direction=named is not None,
    )
    return GeneratorFiles({side: source}, path, source.domains)


def _unambiguous_names(domains: tuple[str, str]) -> tuple[str, str]:
    ab, ba = directions(domains)
    return ("a2b", "b2a") if ab == ba else (ab, ba)  # domains x and x2x, for one: only the letters tell the two apart


def _side_of(direction: str | None, domains: tuple[str, str]) -> Side | None:
    ab, ba = _unambiguous_names(domains)
    names: dict[str | None, Side] = {"a2b": "ab", "b2a": "ba"}
    names |= {ab: "ab", ba: "ba"}
    return names.get(direction)
