"""One direction of a trained model, ready to translate pictures of any size."""

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
    """A generator and what computes it: float32 (N, 3, H, W) in [-1, 1] both ways, on the CPU, any H and W."""

    backend: Backend
    hardware: Hardware

    @property
    def module(self) -> nn.Module | None: ...
    @property
    def fingerprint(self) -> str: ...
    def __call__(self, pictures: Tensor) -> Tensor: ...


class TorchGenerator:
    """A generator that PyTorch computes.

    Args:
        module: the bare network; it is moved to the hardware and set to evaluation.
        hardware: where it runs, in what precision, compiled or not.
    """

    backend: Backend = "torch"

    def __init__(self, module: nn.Module, hardware: Hardware) -> None:
        self.module, self.hardware = module.eval().requires_grad_(False), hardware
        hardware.to_device(module)
        self._call = hardware.prepare_inference(module)

    @cached_property
    def fingerprint(self) -> str:
        return generator_file.fingerprint(self.module)

    def __call__(self, pictures: Tensor) -> Tensor:
        translated: Tensor = self._call(self.hardware.upload(pictures))
        return translated.cpu()

    def __str__(self) -> str:
        return str(self.hardware)


class Translator:
    """Translates pictures from one domain to the other; every picture keeps its size.

    Args:
        runner: the generator and what computes it.
        direction: what it does, such as `photo2monet`.
        directions: those that its model has.
        weights: which of the model's weights these are.
        path: of the model file.
        step: at which it was saved; None where the file does not say.
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
        """A translator from what training has saved; all that it needs to know is in the model file.

        Args:
            path: a run's folder, a checkpoint's folder, a safetensors file, a generator of the reference implementation
                (`latest_net_G_A.pth`), or an exported `.onnx` file.
            direction: such as `photo2monet`, by the model's own domains; `a2b` and `b2a` work as well. A file of one
                direction needs none.
            weights: `ema` is the moving average where the model has one, else the weights of the last step.
            backend: what computes; `auto` is `onnx` for an `.onnx` file, else `torch`.
            compile: run the network through `torch.compile`.
            world: the processes that share the machine's devices.

        Raises:
            CommandError: no such direction, device or precision, or a backend that cannot run this file.
            CheckpointError: no model there, or one that is damaged or does not translate RGB pictures.
        """
        path = Path(path)
        runner: Generator
        if _backend(path, backend) == "onnx":
            runner = OnnxGenerator.load(path, device=device, precision=precision, compile=compile)
            found = runner.sources
            chosen = found.choose(direction)
        else:
            found = generator_file.read(path, weights=weights)
            chosen = found.choose(direction)
            runner = TorchGenerator(
                generator_file.build(chosen), Hardware(device, precision=precision, compile=compile, world=world)
            )
        return cls(
            runner,
            direction=chosen.direction,
            directions=found.directions,
            weights=chosen.weights,
            path=chosen.path,
            step=chosen.step,
        )

    def in_fp32(self) -> "Translator":
        """The same in full precision; where that is what it computes in, itself."""
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
        """What computes."""
        return self.runner.backend

    @property
    def hardware(self) -> Hardware:
        """Where it computes, and in what precision."""
        return self.runner.hardware

    @property
    def generator(self) -> nn.Module | None:
        """The bare network, in evaluation, on the hardware; None where another program than PyTorch holds it."""
        return self.runner.module

    @property
    def fingerprint(self) -> str:
        """Sha256 in hexadecimal of what decides over translations.

        It is that of architecture and weights, whatever file they come in and whatever they are called there. An
        `.onnx` file, which computes them in its own way, has that of its bytes.
        """
        return self.runner.fingerprint

    def __call__(self, image: Image.Image) -> Image.Image:
        """The translation of one picture of any colour mode, its pixels taken as they stand, as RGB."""
        return tensors.uint8_to_pil(self.batch(tensors.pil_to_uint8(decoding.to_rgb(image))[None])[0])

    def batch(self, pixels: Tensor) -> Tensor:
        """The translations of pictures of one size, uint8 (N, 3, H, W) both ways, on the CPU.

        Instance norm looks at one picture at a time: what else is in the batch changes nothing but the rounding.
        """
        return tensors.to_uint8(self.values(tensors.to_float(pixels)))

    @torch.inference_mode()
    def values(self, pictures: Tensor) -> Tensor:
        """`batch` without rounding: float32 (N, 3, H, W) in [-1, 1] both ways, on the CPU, each picture as a whole."""
        return self.runner(pictures)

    def __str__(self) -> str:
        step = "" if self.step is None else f" (step {self.step})"
        kind = "" if self.step is None else f", {self.weights} weights"
        return f"{self.path}{step}, {self.direction}{kind}, on {self.runner}"


def _backend(path: Path, backend: Literal["auto", "torch", "onnx"]) -> Backend:
    """What computes a file, which must be able to."""
    fitting: Backend = "onnx" if path.suffix.lower() == ".onnx" else "torch"
    if backend == "auto" or backend == fitting:
        return fitting
    if backend == "onnx":
        raise CommandError(
            f"backend=onnx runs .onnx files, {path} is none: first python -m cyclestyle.export checkpoint={path} "
            "format=onnx, then checkpoint= the file that it writes"
        )
    raise CommandError(f"backend=torch: {path} is an .onnx file, which onnxruntime computes: leave backend= out")
