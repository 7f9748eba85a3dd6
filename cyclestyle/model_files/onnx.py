"""Export of generators to ONNX files, comparison of their outputs with PyTorch's, and inference with onnxruntime.

The graph in an ONNX file accepts images whose height and width are multiples of `multiple` and at least `minimum` px; a
header in the file states `multiple` and `minimum`. Images of other sizes must be padded before the graph runs, and its
output must be cropped; `OnnxGenerator` does both.
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
TOLERANCE = 1e-3  # largest accepted difference of values in [-1, 1]: an eighth of an 8-bit step
_KEY = "cyclestyle"  # name of the metadata property that holds our JSON header
_MAX_MINIMUM = 1024  # px; largest accepted `multiple` and `minimum`, enough for a U-Net with ten levels
_MAX_BYTES = 2**31  # size limit of a protobuf
_GARBLED = (ValueError, KeyError, TypeError, RecursionError)  # raised while parsing a damaged header
_MISSING = "needs onnx, onnxscript and onnxruntime: pip install 'cyclestyle[export]'"


@runtime_checkable
class Unpadded(Protocol):
    """Generator whose method `unpadded` is its forward pass for images that need no padding.

    The height and width of such images are multiples of `multiple` and at least `minimum` px.
    """

    multiple: int
    minimum: int

    def unpadded(self, x: Tensor) -> Tensor: ...


class Difference(NamedTuple):
    """Difference between the outputs of onnxruntime and of PyTorch for images of one shape."""

    shape: tuple[int, ...]  # (N, 3, H, W)
    largest: float  # largest absolute difference of output values, which lie in [-1, 1]


class Exported(NamedTuple):
    """Content of an ONNX file, and the differences of its outputs from PyTorch's, one for each tested image shape."""

    content: bytes
    differences: list[Difference]


def export(generator: nn.Module, source: GeneratorFile) -> Exported:
    """Convert a generator, which must be on the CPU, to an ONNX file, and compare its outputs with PyTorch's.

    The file accepts any batch size, and all heights and widths that are multiples of `generator.multiple` and at least
    `generator.minimum` px. `source` describes the generator for the file's header.

    Raises:
        CommandError: the required packages are not installed.
        CheckpointError: the network cannot be exported, or its outputs in onnxruntime and PyTorch differ by more than
            `TOLERANCE`.
    """
    if not isinstance(generator, Unpadded):
        raise CheckpointError(
            f"{source.path}: a {type(generator).__name__} cannot be exported as onnx: it has no unpadded(), multiple "
            "and minimum"
        )
    if 4 * sum(parameter.numel() for parameter in generator.parameters()) > _MAX_BYTES - 2**20:
        raise CheckpointError(f"{source.path}: its generator is too large for an .onnx file, whose limit is 2 GB")
    graph = _graph(generator)
    properties = graph.metadata_props.add()
    properties.key, properties.value = _KEY, json.dumps(_header(generator, source))
    content: bytes = graph.SerializeToString()
    differences = _differences(generator, OnnxGenerator(content, source.path, device="cpu"))
    for shape, largest in differences:
        if not largest <= TOLERANCE:  # NaN fails this comparison too
            raise CheckpointError(
                f"{source.path}: as onnx its images differ by {largest:.1e} from PyTorch's at "
                f"{' x '.join(map(str, shape))}, more than {TOLERANCE}: export it as safetensors"
            )
    return Exported(content, differences)


class OnnxGenerator:
    """Generator that runs in onnxruntime; called with images, it returns their translations.

    Images and translations are CPU tensors (N, 3, H, W) in float32 with values in [-1, 1], of any height and width.

    Args:
        content: content of an ONNX file that `export` has made.
        path: path of the file, for error messages.
        device: `auto` selects a CUDA GPU if onnxruntime can use one, else the CPU.

    Raises:
        CommandError: onnxruntime is not installed, or does not support the device.
        CheckpointError: the file is damaged, or was not made by `export`.
    """

    backend: Literal["torch", "onnx"] = "onnx"
    module = None

    def __init__(self, content: bytes, path: Path, *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto") -> None:
        self.path = path
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.hardware = Hardware("cpu", precision="fp32")  # inputs and outputs stay on the CPU
        self._session = _session(content, path, device)
        header = _read_header(self._session, path)
        self.sources, self.multiple, self.minimum = header
        # A graph that cannot run fails here, before any output is written.
        self(torch.zeros(1, 3, self.minimum, self.minimum))

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        compile: bool = False,  # noqa: A002
    ) -> "OnnxGenerator":
        """Load an ONNX file that `export` has made.

        Args:
            device: see the class.
            precision: `auto` or `fp32`; ONNX files do not support other values.
            compile: False; ONNX files do not support True.

        Raises:
            CommandError: `precision` or `compile` has a value that only PyTorch supports. The class lists
                further reasons.
            CheckpointError: the file is missing or unreadable. The class lists further reasons.
        """
        if precision not in ("auto", "fp32"):
            raise CommandError(f"precision={precision}: {path} computes in fp32: leave precision= out")
        if compile:
            raise CommandError(f"compile=true is for PyTorch, {path} runs through onnxruntime: leave compile= out")
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise CheckpointError(f"{path} cannot be read: it is larger than 2 GB, the limit of an .onnx file")
            content = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointError(f"no checkpoint at {path.absolute()}") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        return cls(content, path, device=device)

    def __call__(self, images: Tensor) -> Tensor:
        padded, crop = pad_to_multiple(images, self.multiple, minimum=self.minimum)
        (name,) = (entry.name for entry in self._session.get_inputs())
        try:
            (output,) = self._session.run(None, {name: padded.float().contiguous().numpy()})
            translated = torch.from_numpy(output)
        except Exception as error:  # onnxruntime's error types for faulty graphs have no base in common
            if "llocat" in str(error):  # onnxruntime failed to allocate memory
                raise MemoryError(str(error)) from None
            raise CheckpointError(f"{self.path} cannot be run: {_first_line(error)}") from None
        if translated.shape != padded.shape or translated.dtype != torch.float32:
            raise CheckpointError(f"{self.path} is not a generator: it returns {tuple(translated.shape)}")
        return translated[crop]

    def __str__(self) -> str:
        return f"onnxruntime {_device(self._session).upper()}, fp32"


def _graph(generator: Unpadded) -> "onnx.ModelProto":
    """Export a network to an ONNX model, and remove the metadata that PyTorch adds, since it contains local paths."""
    try:
        import onnxscript  # noqa: F401  required by the exporter, whose own error takes several lines
    except ImportError:
        raise CommandError(f"format=onnx {_MISSING}") from None
    count, height, width = (torch.export.Dim(name, min=1, max=largest) for name, largest in _DIMENSIONS)
    multiple, minimum = generator.multiple, generator.minimum
    shapes = {"images": {0: count, 2: multiple * height, 3: multiple * width}}
    example = torch.zeros(2, 3, 3 * minimum, 2 * minimum)
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
    for entry in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.ClearField("metadata_props")
        entry.ClearField("doc_string")
    return model


_DIMENSIONS = (("batch", 2**16), ("height", 2**16), ("width", 2**16))  # height and width in units of `multiple`


class _Core(nn.Module):
    """Module whose forward pass is `generator.unpadded`, since `torch.onnx.export` exports forward passes only."""

    def __init__(self, generator: Unpadded) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return self.generator.unpadded(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: silence the warnings and log lines of PyTorch's ONNX exporter, which concern its internals."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _header(generator: Unpadded, source: GeneratorFile) -> dict[str, Any]:
    """Build the header of an ONNX file, a JSON object.

    The header describes the graph for other programs, and the generator for this program.
    """
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
    """Compare the outputs of PyTorch and onnxruntime for images of three shapes, none of them used for the export.

    The shapes include odd sides, a batch of two images, and sides of different lengths. No shape is tiny: instance
    norm over few values magnifies rounding errors, which differ between PyTorch and onnxruntime.
    """
    assert isinstance(generator, Unpadded)
    side, step = max(32, generator.minimum), max(48, generator.multiple)
    shapes = [(1, 3, side // 2 + 1, side - 1), (2, 3, side, side + step), (1, 3, side + step - 1, side + 1)]
    random = torch.Generator().manual_seed(0)
    differences = []
    for shape in shapes:
        images = torch.rand(shape, generator=random) * 2 - 1
        with torch.inference_mode():
            expected = generator.eval()(images)
        differences.append(Difference(shape, (exported(images) - expected).abs().max().item()))
    return differences


def _session(content: bytes, path: Path, device: str) -> "onnxruntime.InferenceSession":
    """Create an onnxruntime session from the content of an ONNX file.

    The session gets no path, so it cannot read other files that the ONNX file refers to. No custom operators are
    registered.
    """
    try:
        import onnxruntime
    except ImportError:
        raise CommandError(f"{path}: backend=onnx {_MISSING}") from None
    has_cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if device == "mps" or (device == "cuda" and not has_cuda):
        raise CommandError(
            f"device={device}: this onnxruntime does not support it, it would run on {'cuda' if has_cuda else 'cpu'}"
        )
    providers = ["CUDAExecutionProvider"] if has_cuda and device != "cpu" else []

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal only; errors are raised below
    try:
        session = onnxruntime.InferenceSession(content, options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's error types have no base in common
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
    """Read and check the header, built by `_header`, of the ONNX file that `session` runs.

    The `GeneratorFile` in the result has no tensors, since the weights stay in the graph.
    """
    text = session.get_modelmeta().custom_metadata_map.get(_KEY)
    if text is None:
        raise CheckpointError(f"{path} was not exported by cyclestyle: the sizes that it accepts are unknown")
    try:
        header = json.loads(text)
        version, multiple, minimum = (_parse_integer(header[key]) for key in ("version", "multiple", "minimum"))
        if version > VERSION:
            raise CheckpointError(f"{path} is of version {version}, this program reads up to {VERSION}: update it")
        if minimum % multiple or minimum > _MAX_MINIMUM:
            raise ValueError(f"minimum {minimum}, multiple {multiple}")
        first, second = (str(name) for name in header["domains"])
        side, weights = _SIDES[header["side"]], _WEIGHTS[header["weights"]]
        step = None if header["step"] is None else _parse_integer(header["step"], minimum=0)
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


def _parse_integer(value: object, *, minimum: int = 1) -> int:
    if type(value) is not int or not minimum <= value < 2**63:
        raise ValueError(f"a number ({str(value)[:40]})")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
