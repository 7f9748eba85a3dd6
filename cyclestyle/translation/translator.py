"""Translator, which runs one direction of a trained model on images of any size."""

import copy
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import decoding, tensors
from cyclestyle.model_files import generator_file
from cyclestyle.model_files.onnx import OnnxGenerator

Backend = Literal["torch", "onnx"]


class Generator(Protocol):
    """Interface of a generator network that runs in PyTorch or in ONNX Runtime.

    Its input and output are float32 (N, 3, H, W) in [-1, 1] on the CPU, with any H and W.
    """

    backend: Backend
    hardware: Hardware

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
        hardware.to_device(module)
        self._call = hardware.prepare_inference(module)

    @cached_property
    def fingerprint(self) -> str:
        return generator_file.fingerprint(self.module)

    def __call__(self, images: Tensor) -> Tensor:
        translated: Tensor = self._call(self.hardware.upload(images))
        return translated.cpu()

    def __str__(self) -> str:
        return str(self.hardware)


class Translator:
    """Translates images from one domain to the other without changing their size.

    Args:
        runner: the generator network, in PyTorch or in ONNX Runtime.
        direction: the generator's direction, such as `photo2monet`.
        directions: all directions of the model.
        weights: `ema` for the moving average of the weights, `raw` for the weights of the last step.
        path: path of the model file.
        step: training step of the model; None if the file does not state it.
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
    ) -> None:
        self.runner = runner
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
    ) -> "Translator":
        """Load a translator from a trained model; no config is needed.

        Args:
            path: a run folder, a checkpoint folder, a safetensors file, a generator of the 2017 implementation
                (`latest_net_G_A.pth`), or an exported `.onnx` file.
            direction: two domain names of the model with a 2 between them, such as `photo2monet`; or `a2b` or `b2a`.
                It may be omitted if the file has a single direction.
            weights: `ema` is the moving average if the model has one, else the weights of the last step; `raw` is
                always the weights of the last step.
            backend: library that runs the generator; `auto` means `onnx` for an `.onnx` file, else `torch`.
            compile: run the network through `torch.compile`.
            world: the processes of a distributed run, which share out the devices of a machine; None for one process.

        Raises:
            CommandError: unknown direction, unavailable device or precision, or a backend that cannot run this file.
            CheckpointError: the model is missing, damaged, or does not translate RGB images.
        """
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
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of everything that decides the translations.

        It covers the architecture and the weights, but not the file format or the domain names. For an `.onnx` file,
        it is the SHA-256 of the file.
        """
        return self.runner.fingerprint

    def __call__(self, image: Image.Image) -> Image.Image:
        """Translate one image of any colour mode to RGB, without colour management."""
        return tensors.uint8_to_pil(self.batch(tensors.pil_to_uint8(decoding.to_rgb(image))[None])[0])

    def batch(self, pixels: Tensor) -> Tensor:
        """Translate a batch of images; input and output are uint8 (N, 3, H, W) on the CPU.

        Instance norm treats each image separately, so the other images of the batch affect an image's translation
        only by rounding.
        """
        return tensors.to_uint8(self.values(tensors.to_float(pixels)))

    @torch.inference_mode()
    def values(self, images: Tensor) -> Tensor:
        """Translate a batch without quantization; input and output are float32 (N, 3, H, W) in [-1, 1] on the CPU."""
        return self.runner(images)

    def __str__(self) -> str:
        step = "" if self.step is None else f" (step {self.step})"
        kind = "" if self.step is None else f", {self.weights} weights"
        return f"{self.path}{step}, {self.direction}{kind}, on {self.runner}"


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
