"""Generators as ONNX files: written with PyTorch, checked against it, and run by onnxruntime.

The graph is the network for sizes that are multiples of `multiple` and at least `minimum` px, both recorded in the
file; whoever runs it pads other pictures and crops the result, as `OnnxGenerator` does.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.model_files.generator_file import GeneratorFile, GeneratorFiles
from cyclestyle.networks.padding import pad_to_multiple

if TYPE_CHECKING:
    import onnx
    import onnxruntime

VERSION = 1
TOLERANCE = 1e-3  # in units of [-1, 1]: an eighth of a step of 8 bits
_KEY = "cyclestyle"  # of our JSON among the file's properties
_LARGEST = 1024  # px, of `multiple` and `minimum`: those of a U-Net with ten levels
_MOST_BYTES = 2**31  # of a protobuf
_GARBLED = (ValueError, KeyError, TypeError, RecursionError)
_MISSING = "needs onnx, onnxscript and onnxruntime: pip install 'cyclestyle[export]'"


@runtime_checkable
class Unpadded(Protocol):
    """A generator that says what it does to sizes which need no padding."""

    multiple: int
    minimum: int

    def unpadded(self, x: Tensor) -> Tensor: ...


class Difference(NamedTuple):
    """How far onnxruntime is from PyTorch."""

    shape: tuple[int, ...]  # (N, 3, H, W)
    largest: float  # of all absolute differences, in units of [-1, 1]


class Exported(NamedTuple):
    """The bytes of an ONNX file, and how it compares."""

    content: bytes
    differences: list[Difference]


def export(generator: nn.Module, source: GeneratorFile) -> Exported:
    """A generator, on the CPU, as an ONNX file of its own with dynamic batch, height and width.

    Raises:
        CommandError: the packages that this takes are not installed.
        CheckpointError: the network cannot be exported, or the file computes something else than PyTorch.
    """
    if not isinstance(generator, Unpadded):
        raise CheckpointError(
            f"{source.path}: a {type(generator).__name__} cannot be exported as onnx: it has no unpadded(), multiple "
            "and minimum"
        )
    if 4 * sum(parameter.numel() for parameter in generator.parameters()) > _MOST_BYTES - 2**20:
        raise CheckpointError(f"{source.path}: its generator is too large for an .onnx file, which ends at 2 GB")
    graph = _graph(generator)
    properties = graph.metadata_props.add()
    properties.key, properties.value = _KEY, json.dumps(_header(generator, source))
    content: bytes = graph.SerializeToString()
    differences = _differences(generator, OnnxGenerator(content, source.path, device="cpu"))
    for shape, largest in differences:
        if not largest <= TOLERANCE:  # nor may it be NaN
            raise CheckpointError(
                f"{source.path}: as onnx its pictures differ by {largest:.1e} from PyTorch's at "
                f"{' x '.join(map(str, shape))}, more than {TOLERANCE}: export it as safetensors"
            )
    return Exported(content, differences)


class OnnxGenerator:
    """A generator that onnxruntime computes: float32 (N, 3, H, W) in [-1, 1] both ways, on the CPU, any H and W.

    Args:
        content: of an ONNX file that `export` made.
        path: where it came from, for messages.
        device: `auto` takes a CUDA GPU where onnxruntime can use one, else the CPU.

    Raises:
        CommandError: onnxruntime is not installed, or has no such device.
        CheckpointError: the file is damaged, or none of ours.
    """

    backend: Literal["torch", "onnx"] = "onnx"
    module = None

    def __init__(self, content: bytes, path: Path, *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> None:
        self.path = path
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.hardware = Hardware("cpu", precision="fp32")  # where pictures are handed over
        self._session = _session(content, path, device)
        header = _read_header(self._session, path)
        self.sources, self.multiple, self.minimum = header
        self(torch.zeros(1, 3, self.minimum, self.minimum))  # what cannot be run is known before anything is written

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        compile: bool = False,  # noqa: A002
    ) -> "OnnxGenerator":
        """What `export` has written; errors as of the class, and a CommandError for what is PyTorch's alone."""
        if precision not in ("auto", "fp32"):
            raise CommandError(f"precision={precision}: {path} computes in fp32: leave precision= out")
        if compile:
            raise CommandError(f"compile=true is for PyTorch, {path} runs through onnxruntime: leave compile= out")
        try:
            if path.stat().st_size > _MOST_BYTES:
                raise CheckpointError(f"{path} cannot be read: an .onnx file has 2 GB at most")
            content = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"no checkpoint at {path.absolute()}") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        return cls(content, path, device=device)

    def __call__(self, pictures: Tensor) -> Tensor:
        padded, crop = pad_to_multiple(pictures, self.multiple, minimum=self.minimum)
        (name,) = (entry.name for entry in self._session.get_inputs())
        try:
            (made,) = self._session.run(None, {name: padded.float().contiguous().numpy()})
            translated = torch.from_numpy(made)
        except Exception as error:  # onnxruntime's own types, which depend on what is wrong with the graph
            if "llocat" in str(error):  # it failed to allocate memory
                raise MemoryError(str(error)) from None
            raise CheckpointError(f"{self.path} cannot be run: {_first_line(error)}") from None
        if translated.shape != padded.shape or translated.dtype != torch.float32:
            raise CheckpointError(f"{self.path} is no generator: pictures come back as {tuple(translated.shape)}")
        return translated[crop]

    def __str__(self) -> str:
        return f"onnxruntime {_device(self._session).upper()}, fp32"


def _graph(generator: Unpadded) -> "onnx.ModelProto":
    """The network, without what the exporter notes about the program that it came from, names of folders among it."""
    try:
        import onnxscript  # noqa: F401  what the exporter needs, and says in several lines
    except ImportError:
        raise CommandError(f"format=onnx {_MISSING}") from None
    count, height, width = (torch.export.Dim(name, min=1, max=most) for name, most in _DIMENSIONS)
    multiple, least = generator.multiple, generator.minimum
    shapes = {"pictures": {0: count, 2: multiple * height, 3: multiple * width}}
    example = torch.zeros(2, 3, 3 * least, 2 * least)
    with _quiet():
        program = torch.onnx.export(
            _Core(generator).eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=["pictures"],
            output_names=["translations"],
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return model


_DIMENSIONS = (("batch", 2**16), ("height", 2**16), ("width", 2**16))  # the latter in units of `multiple`


class _Core(nn.Module):
    """`unpadded` as a module."""

    def __init__(self, generator: Unpadded) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, pictures: Tensor) -> Tensor:
        return self.generator.unpadded(pictures)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice, which is about its own inner works."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _header(generator: Unpadded, source: GeneratorFile) -> dict[str, Any]:
    """What other programs need to know about the graph, and ours about the model."""
    return {
        "version": VERSION,
        "input": "float32 RGB (N, 3, H, W) in [-1, 1]; the output is the same",
        "multiple": generator.multiple,
        "minimum": generator.minimum,
        "padding": "H and W must be multiples of `multiple` and at least `minimum`: reflect the edges, crop the result",
        "generator": source.architecture,
        "domains": list(source.domains),
        "side": source.side,
        "direction": source.direction if source.states_direction else None,
        "weights": source.weights,
        "step": source.step,
        "training": source.training,
    }


def _differences(generator: nn.Module, exported: OnnxGenerator) -> list[Difference]:
    """At three sizes, none of which is the one that was traced: odd sides, two pictures, sides of different lengths.

    None is tiny: over four numbers instance norm magnifies rounding, and every program has its own.
    """
    assert isinstance(generator, Unpadded)
    side, step = max(32, generator.minimum), max(48, generator.multiple)
    shapes = [(1, 3, side // 2 + 1, side - 1), (2, 3, side, side + step), (1, 3, side + step - 1, side + 1)]
    random = torch.Generator().manual_seed(0)
    found = []
    for shape in shapes:
        pictures = torch.rand(shape, generator=random) * 2 - 1
        with torch.inference_mode():
            expected = generator.eval()(pictures)
        found.append(Difference(shape, (exported(pictures) - expected).abs().max().item()))
    return found


def _session(content: bytes, path: Path, device: str) -> "onnxruntime.InferenceSession":
    """From bytes, for which onnxruntime reads no other files; nor is it told of any library of operators."""
    try:
        import onnxruntime
    except ImportError:
        raise CommandError(f"{path}: backend=onnx {_MISSING}") from None
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "mps" or (device == "cuda" and not has_cuda):
        raise CommandError(
            f"device={device}: onnxruntime has none here, it would run on {'cuda' if has_cuda else 'cpu'}"
        )
    providers = ["CUDAExecutionProvider"] if has_cuda and device != "cpu" else []

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # of 4: what is wrong is told below, once
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # its own types, without a base in common
        raise CheckpointError(f"{path} cannot be read as an .onnx file: {_first_line(error)}") from None
    if device == "cuda" and _device(session) != "cuda":
        raise CommandError("device=cuda: onnxruntime could not start it, it would run on cpu")
    return session


def _device(session: "onnxruntime.InferenceSession") -> str:
    return "cuda" if session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"


class _Header(NamedTuple):
    sources: GeneratorFiles
    multiple: int
    minimum: int


def _read_header(session: "onnxruntime.InferenceSession", path: Path) -> _Header:
    """What `_header` wrote; the weights themselves stay in the graph."""
    text = session.get_modelmeta().custom_metadata_map.get(_KEY)
    if text is None:
        raise CheckpointError(f"{path} was not exported by cyclestyle: what sizes it takes is not known")
    try:
        header = json.loads(text)
        version, multiple, minimum = (_whole(header[key]) for key in ("version", "multiple", "minimum"))
        if version > VERSION:
            raise CheckpointError(f"{path} is of version {version}, this program reads up to {VERSION}: update it")
        if minimum % multiple or minimum > _LARGEST:
            raise ValueError(f"minimum {minimum}, multiple {multiple}")
        first, second = (str(name) for name in header["domains"])
        side, weights = _SIDES[header["side"]], _WEIGHTS[header["weights"]]
        step = None if header["step"] is None else _whole(header["step"], least=0)
        source = GeneratorFile(
            dict(header["generator"]),
            {},
            side,
            (first, second),
            weights,
            path,
            step,
            states_direction=header["direction"] is not None,
        )
    except _GARBLED as error:
        raise CheckpointError(
            f"{path} was not exported by cyclestyle: it lacks or garbles {_first_line(error)}"
        ) from None
    return _Header(GeneratorFiles({side: source}, path, source.domains), multiple, minimum)


_SIDES: dict[str, Literal["ab", "ba"]] = {"ab": "ab", "ba": "ba"}
_WEIGHTS: dict[str, Literal["ema", "raw"]] = {"ema": "ema", "raw": "raw"}


def _whole(value: object, *, least: int = 1) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"a number ({str(value)[:40]})")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
