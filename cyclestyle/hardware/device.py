"""Where networks run and in what precision: decided here and nowhere else."""

import copy
import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.hardware.cuda_graphs import CudaGraphCapture, GraphCapture
from cyclestyle.hardware.winograd import use_winograd

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Hardware:
    """A device, a precision, and how modules are called on them.

    Args:
        device: `auto` takes a CUDA GPU, else Apple's, else the CPU.
        precision: of the networks' arithmetic; weights and losses are always float32. `auto` is bf16 where the
            hardware has it (CUDA from Ampere on, CPUs with native bf16), fp16 on older GPUs, else fp32.
        deterministic: the same bits from the same seed on a GPU too, at some cost.
        compile: run the networks through `torch.compile`.
        one_size: all batches have one size, so that a GPU's search for the fastest convolutions pays.
        world: the processes that train together.

    Raises:
        CommandError: this machine has no such device, or the device no such precision.
    """

    def __init__(
        self,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        *,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        deterministic: bool = False,
        compile: bool = False,  # noqa: A002
        one_size: bool = False,
        world: World | None = None,
    ) -> None:
        self.world, self.name = world or World(), device
        self.device = _device(device, self.world)
        self.dtype = _dtype(precision, self.device)
        self.compile = compile
        if compile and self.device.type == "cpu" and not any(map(shutil.which, _compilers())):
            raise CommandError("compile=true needs a C++ compiler, such as g++, and there is none: leave it out")
        # Convolutions, norms and padding are faster when pictures have their channels last. In fp32 on CPUs, where it
        # brings little, sums keep the order that they had. Weights on CPUs stay as they are: convolutions copy them
        # more, Adam and the casts of gradients less, which comes to the same.
        last = self.device.type == "cuda" or (self.device.type == "cpu" and self.dtype != torch.float32)
        self.layout = torch.channels_last if last else torch.contiguous_format
        self._weights = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        # Fewer multiplications pay where they cost much: not where whole tiles are multiplied at once (AMX).
        self._winograd = last and self.device.type == "cpu" and _native_bf16() == {"avx512_bf16"}
        if deterministic:
            torch.use_deterministic_algorithms(True)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = one_size and not deterministic
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic

    @property
    def precision(self) -> str:
        """What `auto` came to."""
        return _NAMES[self.dtype]

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()
        return f"{name}, {self.precision}{', compiled' if self.compile else ''}"

    def to_device(self, module: nn.Module, *, training: bool = False) -> None:
        """Move a module to the device, in place.

        Args:
            training: compute its gradients in the way that is fastest on this device.
        """
        module.to(device=self.device, memory_format=self._weights)  # type: ignore[call-overload]
        if training and self._winograd:
            use_winograd(module)

    def upload(self, batch: Tensor) -> Tensor:
        """A batch (N, C, H, W) here, without waiting for it."""
        return batch.to(self.device, non_blocking=True, memory_format=self.layout)

    def trim_memory(self) -> None:
        """Let the system have what this process holds of its memory and does not use: on Linux, for the CPU's tensors.

        The C library keeps freed memory, in holes into which what comes next does not always fit.
        """
        if self.device.type == "cpu" and sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others have none and need none
            if trim is not None:
                trim(0)

    def graph_capture(self) -> GraphCapture | None:
        """Who records kernels to launch them together; None where nobody does."""
        return CudaGraphCapture(self.device) if self.device.type == "cuda" else None

    def wrap(self, module: nn.Module, *, synchronized: bool = False) -> Callable[..., Any]:
        """How a module is to be called: compiled, across processes, under autocast, with float32 results.

        The module itself stays as it is, so that what is saved never carries a wrapper's names.
        """
        call: Any = torch.compile(module) if self.compile else module
        if synchronized:
            call = self.world.synchronize(call, self.device)
        return self.autocast(call)

    def prepare_inference(self, module: nn.Module) -> Callable[..., Any]:
        """How a module that is trained no more is to be called: as `prepare` does it, but weights are cast once.

        What is called is a copy with weights in this precision and layout; the module itself stays as it is.
        """
        low = copy.deepcopy(module)
        low.to(dtype=self.dtype, memory_format=self.layout)  # type: ignore[call-overload]
        call: Any = torch.compile(low) if self.compile else low

        def cast(pictures: Tensor) -> Tensor:
            made: Tensor = call(pictures.to(self.dtype, memory_format=self.layout))
            return made.float()

        return cast

    def autocast(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call in this precision; what comes out, a tensor or a named tuple of tensors, is float32 again."""
        if self.dtype == torch.float32:
            return call

        def cast(*pictures: Tensor, **flags: bool) -> Any:
            with torch.autocast(self.device.type, self.dtype):
                made = call(*pictures, **flags)
            return made.float() if isinstance(made, Tensor) else made._make(_float(value) for value in made)

        return cast

    def scaler(self) -> torch.amp.GradScaler:
        """Keeps fp16 gradients from vanishing; does nothing in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def device_type(device: str) -> str:
    """What `auto` means on this machine."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_count(device: str) -> int:
    """How many devices of a type this machine has; a CPU counts as one."""
    return torch.cuda.device_count() if device_type(device) == "cuda" else 1


def _device(name: str, world: World) -> torch.device:
    kind = device_type(name)
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise CommandError(
            f"device={name}: this machine has none that PyTorch can use; it would run on {device_type('auto')}"
        )
    return torch.device("cuda", world.local_rank) if kind == "cuda" else torch.device(kind)


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return _fastest(device)
    if precision == "fp16" and device.type == "cpu":
        raise CommandError("precision=fp16 is for GPUs: take bf16 or fp32 on the CPU")
    return {name: dtype for dtype, name in _NAMES.items()}[precision]


def _fastest(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and _native_bf16():
        return torch.bfloat16
    return torch.float32


def _compilers() -> list[str]:
    """The names of C++ compilers that PyTorch looks for."""
    return [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++", "cl"]


def _native_bf16() -> set[str]:
    """By which means the CPU multiplies bf16 in hardware; emulated it is slower than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.11
        older = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
        return {name for name, has in older.items() if has}
    capabilities = torch.cpu.get_capabilities()
    return {name for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16") if capabilities.get(name, False)}


def _float(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()


def process_count(devices: int | Literal["auto"], device: Literal["auto", "cpu", "cuda", "mps"]) -> int:
    """How many processes `trainer.devices` asks for.

    Raises:
        CommandError: more than there are devices.
    """

    available = device_count(device)
    if devices == "auto":
        return available
    if devices < 1 or (device_type(device) != "cpu" and devices > available):
        raise CommandError(f"trainer.devices={devices}: this machine has {available} {device_type(device)} device(s)")
    return devices
