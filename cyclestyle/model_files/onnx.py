"""Export of generators to ONNX files, comparison of their outputs with PyTorch's, and inference with onnxruntime.

The graph in an ONNX file accepts images whose height and width are multiples of `multiple` and at least `minimum` px; a
header in the file states `multiple` and `minimum`. Images of other sizes must be padded before the graph runs, and its
output must be cropped; `OnnxGenerator` does both.
"""

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.model_files.generator_file import GeneratorFile, GeneratorFiles
from cyclestyle.networks import registry
from cyclestyle.networks.padding import pad_to_multiple

if TYPE_CHECKING:
    import onnx
    import onnxruntime

VERSION = 2  # files of RGB generators have version 1, which earlier versions of this program read too
TOLERANCE = 1e-3  # largest accepted difference of values in [-1, 1]: an eighth of an 8-bit step
_SMALL = 16  # px; assumed minimum of a generator without the attribute `minimum`
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


class AnySize(nn.Module):
    """Wrapper that adds the method `unpadded` to a plugin's generator that lacks it.

    The method is the generator's forward pass. `multiple` and `minimum` are copied from the generator. A missing
    `multiple` is set to 1, a missing `minimum` to 16 px, rounded up to a multiple of `multiple`.
    """

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.multiple = int(getattr(generator, "multiple", 1))
        self.minimum = int(getattr(generator, "minimum", -(-_SMALL // self.multiple) * self.multiple))
        self.in_channels, self.out_channels = registry.channels_of(generator)

    def unpadded(self, x: Tensor) -> Tensor:
        translated: Tensor = self.generator(x)
        return translated

    def forward(self, x: Tensor) -> Tensor:
        return self.unpadded(x)


class Difference(NamedTuple):
    """Difference between the outputs of onnxruntime and of PyTorch for images of one shape."""

    shape: tuple[int, ...]  # (N, C, H, W)
    largest: float  # largest absolute difference of output values, which lie in [-1, 1]


class Exported(NamedTuple):
    """Content of an ONNX file, the sizes that it accepts, and the differences of its outputs from PyTorch's."""

    content: bytes
    differences: list[Difference]  # one for each tested image shape
    multiple: int  # px; sides of an image must be multiples of it
    minimum: int  # px; smallest side of an image


def export(generator: nn.Module, source: GeneratorFile) -> Exported:
    """Convert a generator to an ONNX file, and compare the file's outputs with PyTorch's.

    The file accepts any batch size, and all heights and widths that are multiples of `generator.multiple` and at least
    `generator.minimum` px. For a plugin's generator without `unpadded`, see `AnySize`.

    Args:
        generator: network on the CPU.
        source: description of the generator, for the file's header.

    Raises:
        CommandError: the required packages are not installed.
        CheckpointError: the network cannot be exported, or its outputs in onnxruntime and PyTorch differ by more than
            `TOLERANCE`.
    """
    is_own = type(generator) in registry.GENERATORS.values()
    if not isinstance(generator, Unpadded):
        generator = AnySize(generator)
    if 4 * sum(parameter.numel() for parameter in generator.parameters()) > _MAX_BYTES - 2**20:
        raise CheckpointError(f"{source.path}: its generator is too large for an .onnx file, whose limit is 2 GB")
    try:
        graph = _graph(generator)
    except Exception as error:  # torch's exporter raises nearly any type for a network that it does not support
        if is_own or isinstance(error, CommandError | MemoryError):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # the exporter's own message is advice for its developers
            cause = cause.__cause__
        raise CheckpointError(
            f"{source.path}: torch cannot export its generator as onnx ({type(cause).__name__}: "
            f"{_first_line(cause)}): export it as safetensors"
        ) from None
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
    return Exported(content, differences, generator.multiple, generator.minimum)


class OnnxGenerator:
    """Generator that runs in onnxruntime; called with images, it returns their translations.

    Images and translations are CPU tensors (N, C, H, W) in float32 with values in [-1, 1], of any height and width.
    Images have `in_channels` channels, translations `out_channels`.

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
        self.in_channels, self.out_channels = _channels(self._session, path)
        # A graph that cannot run fails here, before any output is written.
        self(torch.zeros(1, self.in_channels, self.minimum, self.minimum))

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
            (output,) = self._session.run(None, {name: padded.float().contiguous().cpu().numpy()})
            translated = torch.from_numpy(output)
        except Exception as error:  # onnxruntime's error types for faulty graphs have no base in common
            if "llocat" in str(error):  # onnxruntime failed to allocate memory
                raise MemoryError(str(error)) from None
            raise CheckpointError(f"{self.path} cannot be run: {_first_line(error)}") from None
        if translated.shape != (len(padded), self.out_channels, *padded.shape[2:]) or translated.dtype != torch.float32:
            raise CheckpointError(f"{self.path} is not a generator: it returns {tuple(translated.shape)}")
        return translated[crop].to(images.device)

    def __str__(self) -> str:
        return f"onnxruntime {_device(self._session).upper()}, fp32"


def _graph(generator: Unpadded) -> "onnx.ModelProto":
    """Export a network to an ONNX model, and remove the metadata that PyTorch adds, since it contains local paths."""
    try:
        import onnxscript  # noqa: F401  required by the exporter, whose own error takes several lines
    except ImportError:
        raise CommandError(f"format=onnx {_MISSING}") from None
    multiple, minimum = generator.multiple, generator.minimum
    count = torch.export.Dim("batch", min=1, max=_LARGEST)
    height, width = (torch.export.Dim(name, min=minimum // multiple, max=_LARGEST) for name in ("height", "width"))
    shapes = {"images": {0: count, 2: multiple * height, 3: multiple * width}}
    example = torch.zeros(2, registry.channels_of(generator).input, 3 * minimum, 2 * minimum)  # type: ignore[arg-type]
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


_LARGEST = 2**16  # largest number of images in a batch, and largest height and width in units of `multiple`


class _Core(nn.Module):
    """Module whose forward pass is `generator.unpadded`, since `torch.onnx.export` exports forward passes only."""

    def __init__(self, generator: Unpadded) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, images: Tensor) -> Tensor:
        return self.generator.unpadded(images)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: silence PyTorch's ONNX exporter, whose warnings, log lines and prints do not concern users."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _header(generator: Unpadded, source: GeneratorFile) -> dict[str, Any]:
    """Build the header of an ONNX file, a JSON object.

    The header describes the graph for other programs, and the generator for this program.
    """
    channels = registry.channels_of(generator)  # type: ignore[arg-type]
    is_rgb = channels == (3, 3)
    kinds = [f"{_COLOURS.get(count, '')} (N, {count}, H, W)".strip() for count in channels]
    return {
        "version": 1 if is_rgb else VERSION,
        "input": f"float32 {kinds[0]} in [-1, 1]; the output is " + ("the same" if is_rgb else f"float32 {kinds[1]}"),
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


_COLOURS = {1: "grey", 3: "RGB"}


def _differences(generator: nn.Module, exported: OnnxGenerator) -> list[Difference]:
    """Compare the outputs of PyTorch and onnxruntime for images of three shapes, none of them used for the export.

    One shape is a batch of two images. The others are single images that are not square and that need padding. If
    `generator` is an `AnySize`, no shape needs padding, since a plugin's generator may pad differently from
    `OnnxGenerator`. No shape is tiny: instance norm over few values magnifies rounding errors, which differ between
    PyTorch and onnxruntime.
    """
    shapes = _test_shapes(generator)
    random = torch.Generator().manual_seed(0)
    differences = []
    for shape in shapes:
        images = torch.rand(shape, generator=random) * 2 - 1
        with torch.inference_mode():
            expected = generator.eval()(images)
        differences.append(Difference(shape, (exported(images) - expected).abs().max().item()))
    return differences


def _test_shapes(generator: nn.Module) -> list[tuple[int, int, int, int]]:
    channels = registry.channels_of(generator).input
    if isinstance(generator, AnySize):
        step = generator.multiple
        side = -(-max(32, generator.minimum) // step) * step
        sizes = [(1, side, side + step), (2, side, side), (1, side + 3 * step, side)]
    else:
        assert isinstance(generator, Unpadded)
        side, step = max(32, generator.minimum), max(48, generator.multiple)
        sizes = [(1, side // 2 + 1, side - 1), (2, side, side + step), (1, side + step - 1, side + 1)]
    return [(count, channels, height, width) for count, height, width in sizes]


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


def _channels(session: "onnxruntime.InferenceSession", path: Path) -> tuple[int, int]:
    """Return the numbers of channels of a graph's input and output, 1 (grey) or 3 (RGB) each."""
    counts = []
    for entry in (*session.get_inputs()[:1], *session.get_outputs()[:1]):
        count = entry.shape[1] if len(entry.shape) == 4 else None
        if count not in _COLOURS:
            raise CheckpointError(f"{path} is not a generator: {entry.name} has the shape {entry.shape}")
        counts.append(int(count))
    return counts[0], counts[1]


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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
