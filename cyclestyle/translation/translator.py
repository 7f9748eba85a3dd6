"""Translator, which runs one direction of a trained model on images of any size."""

import copy
from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError, ImageTypeError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import decoding, metadata, tensors
from cyclestyle.model_files import generator_file
from cyclestyle.model_files.onnx import OnnxGenerator
from cyclestyle.networks import registry

Backend = Literal["torch", "onnx"]


class Generator(Protocol):
    """Interface of a generator network that runs in PyTorch or in ONNX Runtime.

    Its input is float32 (N, in_channels, H, W) in [-1, 1], with any H and W; its output has `out_channels` channels and
    is on the same device.
    """

    backend: Backend
    hardware: Hardware
    in_channels: int
    out_channels: int

    @property
    def module(self) -> nn.Module | None: ...
    @property
    def fingerprint(self) -> str: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class TorchGenerator:
    """A generator that PyTorch runs.

    Args:
        module: the network, not compiled; it is moved to the hardware and set to evaluation mode.
        hardware: device and precision, and whether to compile the network.
    """

    backend: Backend = "torch"

    def __init__(self, module: nn.Module, hardware: Hardware) -> None:
        self.module, self.hardware = module.eval().requires_grad_(False), hardware
        self.in_channels, self.out_channels = registry.channels_of(module)
        hardware.to_device(module)
        self._call = hardware.prepare_inference(module)

    @cached_property
    def fingerprint(self) -> str:
        return generator_file.fingerprint(self.module)

    def __call__(self, images: Tensor) -> Tensor:
        # `upload` does not wait for its copy, which the CPU must not read before it is complete.
        on_device = images if self.hardware.device.type == "cuda" else images.to(self.hardware.device)
        translated: Tensor = self._call(self.hardware.upload(on_device))
        return translated.to(images.device)

    def __str__(self) -> str:
        return str(self.hardware)


class Translator:
    """Translates images from one domain to the other without changing their size.

    A model has 1 (grey) or 3 (RGB) channels, which may differ between its input and its output. Images are converted to
    the channels of the input, see `images.tensors.with_channels`.

    Example:
        >>> translate = Translator.load("runs/mine", direction="photo2painting")
        >>> translate(Image.open("photo.jpg")).size  # a PIL image, and its translation
        (48, 32)
        >>> pixels = np.zeros((32, 48, 3), np.uint8)
        >>> translate(pixels).shape, translate(pixels).dtype
        ((32, 48, 3), dtype('uint8'))
        >>> batch = torch.zeros((2, 3, 32, 48), dtype=torch.uint8)
        >>> translate(batch).shape  # on the device of `batch`
        torch.Size([2, 3, 32, 48])

    Args:
        runner: the generator network, in PyTorch or in ONNX Runtime.
        direction: the generator's direction, such as `photo2monet`.
        directions: all directions of the model.
        weights: `ema` for the moving average of the weights, `raw` for the weights of the last step.
        path: path of the model file.
        step: training step of the model; None if the file does not state it.
        domains: names of the model's first and second domain.
        side: `ab` if the generator translates from the first domain to the second, `ba` if it translates back.
    """

    def __init__(
        self,
        runner: Generator,
        *,
        direction: str,
        directions: tuple[str, ...],
        weights: Literal["ema", "raw"],
        path: Path,
        step: int | None,
        domains: tuple[str, str] = ("a", "b"),
        side: generator_file.Side = "ab",
    ) -> None:
        self.runner, self.domains, self.side = runner, domains, side
        self.direction, self.directions, self.weights = direction, directions, weights
        self.path, self.step = path, step

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        direction: str | None = None,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        weights: Literal["ema", "raw"] = "ema",
        backend: Literal["auto", "torch", "onnx"] = "auto",
        compile: bool = False,  # noqa: A002
        world: World | None = None,
        plugins: Sequence[str] = (),
    ) -> "Translator":
        """Load a translator from a trained model; no config is needed.

        Args:
            path: a run folder, a checkpoint folder, a safetensors file, a generator of the 2017 implementation
                (`latest_net_G_A.pth`), or an exported `.onnx` file.
            direction: two domain names of the model with a 2 between them, such as `photo2monet`; or `a2b` or `b2a`.
                None selects the only direction of a file that has one.
            device: `auto` takes a CUDA GPU, else an Apple GPU (`mps`), else the CPU. For an `.onnx` file, see
                `OnnxGenerator`.
            precision: precision of the network's arithmetic; `auto` takes the fastest that the device supports.
            weights: `ema` is the moving average if the model has one, else the weights of the last step; `raw` is
                always the weights of the last step.
            backend: library that runs the generator; `auto` means `onnx` for an `.onnx` file, else `torch`.
            compile: run the network through `torch.compile`.
            world: the processes of a distributed run, in which each process uses its own GPU; None for one process.
            plugins: names of modules with networks of your own, see `networks.registry.load_plugins`.

        Raises:
            CommandError: unknown direction, unavailable device or precision, a backend that cannot run this file, or a
                module in `plugins` that cannot be loaded.
            CheckpointError: the model is missing or damaged, or its images are neither grey nor RGB.
        """
        registry.load_plugins(plugins)
        path = Path(path)
        runner: Generator
        if _backend(path, backend) == "onnx":
            runner = OnnxGenerator.load(path, device=device, precision=precision, compile=compile)
            sources = runner.sources
            chosen = sources.select(direction)
        else:
            sources = generator_file.read(path, weights=weights)
            chosen = sources.select(direction)
            runner = TorchGenerator(
                generator_file.build(chosen), Hardware(device, precision=precision, compile=compile, world=world)
            )
        return cls(
            runner,
            direction=chosen.direction,
            directions=sources.directions,
            weights=chosen.weights,
            path=chosen.path,
            step=chosen.step,
            domains=chosen.domains,
            side=chosen.side,
        )

    def in_fp32(self) -> "Translator":
        """Return a copy that computes in fp32.

        If this translator already computes in fp32, or PyTorch does not run its generator, return the translator
        itself.
        """
        if self.generator is None or self.hardware.precision == "fp32":
            return self
        exact = copy.copy(self)
        hardware = Hardware(
            self.hardware.name, precision="fp32", compile=self.hardware.compile, world=self.hardware.world
        )
        exact.runner = TorchGenerator(self.generator, hardware)
        return exact

    @property
    def backend(self) -> Backend:
        """Library that runs the generator: `torch` or `onnx`."""
        return self.runner.backend

    @property
    def hardware(self) -> Hardware:
        """Device and precision with which the generator runs."""
        return self.runner.hardware

    @property
    def generator(self) -> nn.Module | None:
        """The uncompiled network, in evaluation mode on the device of `hardware`; None if PyTorch does not run it."""
        return self.runner.module

    @property
    def in_channels(self) -> int:
        """Number of channels of the images that the generator receives: 1 (grey) or 3 (RGB)."""
        return self.runner.in_channels

    @property
    def out_channels(self) -> int:
        """Number of channels of translations: 1 (grey) or 3 (RGB)."""
        return self.runner.out_channels

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of everything that decides the translations.

        It covers the architecture and the weights, but not the file format or the domain names. For an `.onnx` file,
        it is the SHA-256 of the file.
        """
        return self.runner.fingerprint

    @overload
    def __call__(self, image: Image.Image) -> Image.Image: ...
    @overload
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]: ...
    @overload
    def __call__(self, image: Tensor) -> Tensor: ...
    def __call__(self, image: Image.Image | NDArray[np.uint8] | Tensor) -> Image.Image | NDArray[np.uint8] | Tensor:
        """Translate an image, or a batch of images of one size.

        Args:
            image: one of three types. A PIL image may have any colour mode; it is turned upright by its EXIF
                orientation, and converted to RGB or grey without colour management. A NumPy array is uint8 (H, W, 3)
                or (N, H, W, 3). A tensor is uint8 (3, H, W) or (N, 3, H, W), on any device. A grey array or tensor has
                1 channel in place of 3. For tensors of floats, use `values`.

        Returns:
            The translation: an object of the same type as `image`, of the same size, dtype and device, with
            `out_channels` channels.

        Raises:
            ImageTypeError: `image` is of another type, such as a path, or has another shape or dtype; it is a
                `TypeError` too.
        """
        if isinstance(image, Image.Image):
            return tensors.uint8_to_pil(self.batch(tensors.pil_to_uint8(_upright_rgb(image))[None])[0])
        if isinstance(image, np.ndarray):
            _check(image, np.dtype(np.uint8), axis=-1, shapes="(H, W, 3) or (N, H, W, 3)")
            pixels = torch.from_numpy(np.array(image)).movedim(-1, -3)
            translated: NDArray[np.uint8] = self(pixels).movedim(-3, -1).contiguous().numpy()
            return translated
        if not isinstance(image, Tensor):
            raise ImageTypeError(_no_image(image))
        _check(image, torch.uint8, axis=-3, shapes="(3, H, W) or (N, 3, H, W)")
        return self.batch(image) if image.ndim == 4 else self.batch(image[None])[0]

    def batch(self, pixels: Tensor) -> Tensor:
        """Translate a batch of images; input and output are uint8 (N, 1 or 3, H, W) on the same device.

        Instance norm treats each image separately, so the other images of the batch affect an image's translation
        only by rounding.

        Raises:
            ImageTypeError: `pixels` is of another type, or has another shape or dtype.
        """
        if not isinstance(pixels, Tensor):
            raise ImageTypeError(_no_image(pixels))
        _check(pixels, torch.uint8, axis=-3, shapes="(N, 3, H, W)", axes=(4,))
        return tensors.to_uint8(self.values(tensors.to_float(pixels)))

    @torch.inference_mode()
    def values(self, images: Tensor) -> Tensor:
        """Translate a batch of images without rounding to 8 bits; input and output are (N, 1 or 3, H, W) in [-1, 1].

        The input is floating point. The output is float32, has `out_channels` channels, and is on the device of the
        input.

        Raises:
            ImageTypeError: `images` is of another type, or has another shape or dtype.
        """
        if not isinstance(images, Tensor):
            raise ImageTypeError(_no_image(images))
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
            raise ImageTypeError(
                f"the images are {images.dtype} {tuple(images.shape)}: `values` takes floats (N, 3, H, W) in [-1, 1]"
            )
        return self.runner(tensors.with_channels(images, self.in_channels))

    def __str__(self) -> str:
        step = "" if self.step is None else f" (step {self.step})"
        kind = "" if self.step is None else f", {self.weights} weights"
        return f"{self.path}{step}, {self.direction}{kind}, on {self.runner}"


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation, and convert it to RGB; raise an ImageTypeError if this is impossible."""
    if 0 in image.size:
        raise ImageTypeError(f"the image has {image.width} x {image.height} pixels: give one with pixels")
    try:
        return decoding.to_rgb(metadata.upright(image))
    except ValueError as error:
        raise ImageTypeError(f"the image has the mode {image.mode}: {error}: convert it to RGB first") from None


def _no_image(given: object) -> str:
    """Return the error message for an object that is neither an image nor an array nor a tensor."""
    if isinstance(given, str | bytes | PathLike):
        return f"{given!r} is a path, not an image: give PIL.Image.open({given!r})"
    if isinstance(given, list | tuple):
        return f"a {type(given).__name__} is no image: give its images one by one, or a uint8 tensor (N, 3, H, W)"
    return f"a {type(given).__name__} is no image: give a PIL image, a NumPy array or a tensor"


def _check(
    image: NDArray[np.uint8] | Tensor, dtype: object, *, axis: int, shapes: str, axes: tuple[int, ...] = (3, 4)
) -> None:
    """Raise an ImageTypeError if `image` is empty, or has a wrong dtype, number of axes or number of channels.

    The number of channels must be 1 or 3.

    Args:
        dtype: required dtype.
        axis: index of the channel axis, negative.
        shapes: accepted shapes, as text for the error message.
        axes: accepted numbers of axes.
    """
    if image.dtype == dtype and image.ndim in axes and image.shape[axis] in (1, 3) and 0 not in image.shape:
        return
    shape = tuple(image.shape)
    raise ImageTypeError(f"the images are {image.dtype} {shape}: give uint8 {shapes}{_hint(image, dtype, axis)}")


def _hint(image: NDArray[np.uint8] | Tensor, dtype: object, axis: int) -> str:
    """Return a hint on how to correct `image`, as the end of an error message; empty if the remedy is not obvious.

    `dtype` is the required dtype, and `axis` the negative index of the channel axis.
    """
    is_array, shape = isinstance(image, np.ndarray), tuple(image.shape)
    if image.dtype != dtype:
        name = str(image.dtype).removeprefix("torch.")
        if name.startswith(("float", "bfloat")):
            convert = "astype('uint8')" if is_array else "to(torch.uint8)"
            values = "" if is_array else "; `values` takes floats in [-1, 1]"
            return f", of values in [0, 1] made by (image * 255).round().{convert}{values}"
        return ", made by image // 257 of 16 bits" if name == "uint16" and is_array else ""
    if len(shape) == 2:
        return ", of grey made by image[..., None]" if is_array else ", of grey made by image[None]"
    if len(shape) == 3 and shape[axis] == 4:
        return ", without alpha"
    if len(shape) == 3 and shape[0 if axis == -1 else -1] in (1, 3):
        return ", made by image.transpose(1, 2, 0)" if is_array else ", made by image.permute(2, 0, 1)"
    return ""


def _backend(path: Path, backend: Literal["auto", "torch", "onnx"]) -> Backend:
    """Choose the backend for a model file; raise a CommandError if the requested `backend` cannot run the file."""
    matching: Backend = "onnx" if path.suffix.lower() == ".onnx" else "torch"
    if backend == "auto" or backend == matching:
        return matching
    if backend == "onnx":
        raise CommandError(
            f"backend=onnx runs .onnx files only, and {path} is not one: first python -m cyclestyle.export "
            f"checkpoint={path} format=onnx, then set checkpoint= to the file that it writes"
        )
    raise CommandError(f"backend=torch: {path} is an .onnx file, which onnxruntime computes: leave backend= out")
