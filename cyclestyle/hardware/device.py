"""Choice of device and precision, and wrappers that run networks on the chosen device in the chosen precision."""

import copy
import ctypes
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.hardware.cuda_graphs import CudaGraphCapture, GraphCapture
from cyclestyle.hardware.winograd import use_winograd

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Hardware:
    """Device and precision of a command, with methods that move modules to the device and wrap their calls.

    Args:
        device: `auto` takes a CUDA GPU, else an Apple GPU (`mps`), else the CPU.
        precision: precision of the networks' arithmetic; weights and losses are always float32. `auto` is bf16 on
            hardware that supports it (CUDA from Ampere on, CPUs with native bf16), fp16 on older GPUs, else fp32.
        deterministic: whether equal seeds give bit-identical results on GPUs too, which costs some speed.
        compile: compile the networks with `torch.compile`; on a CPU this needs a C++ compiler.
        one_size: whether all batches have the same size; cuDNN then searches for the fastest convolutions.
        world: processes that train together; this process alone by default.

    Raises:
        CommandError: this machine has no such device, the device does not support the precision, or `compile` is true
            and the C++ compiler is missing.
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
        # Convolutions, norms and padding are faster on channels-last images. In fp32 on CPUs the gain is small, and the
        # default layout preserves the order of sums. Weights on CPUs stay contiguous: convolutions then spend
        # more time on copies, Adam and the casts of gradients spend less, and the total time is the same.
        channels_last = self.device.type == "cuda" or (self.device.type == "cpu" and self.dtype != torch.float32)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self._weights = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
        # Winograd saves multiplications. This does not pay on processors with AMX, which multiplies whole matrix tiles.
        self._winograd = channels_last and self.device.type == "cpu" and _native_bf16() == {"avx512_bf16"}
        if deterministic:
            torch.use_deterministic_algorithms(True)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = one_size and not deterministic
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not deterministic

    @property
    def precision(self) -> str:
        """Precision in use: `fp32`, `bf16` or `fp16`, never `auto`."""
        return _NAMES[self.dtype]

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type.upper()
        return f"{name}, {self.precision}{', compiled' if self.compile else ''}"

    def to_device(self, module: nn.Module, *, training: bool = False) -> None:
        """Move a module to the device, in place.

        Args:
            training: whether the module will be trained. If true, convolutions of the module may be replaced by ones
                with a faster backward pass on this device, see `use_winograd`.
        """
        module.to(device=self.device, memory_format=self._weights)  # type: ignore[call-overload]
        if training and self._winograd:
            use_winograd(module)

    def upload(self, batch: Tensor) -> Tensor:
        """Copy a batch (N, C, H, W) to the device, without waiting for the copy."""
        return batch.to(self.device, non_blocking=True, memory_format=self.layout)

    def trim_memory(self) -> None:
        """Return the memory of freed CPU tensors to the operating system; works only on Linux.

        The C library would keep this memory as gaps, into which later allocations do not always fit.
        """
        if self.device.type == "cpu" and sys.platform == "linux":
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only; other C libraries do not need it
            if trim is not None:
                trim(0)

    def graph_capture(self) -> GraphCapture | None:
        """Create the object that captures CUDA graphs on this device; None if this is not a CUDA device."""
        return CudaGraphCapture(self.device) if self.device.type == "cuda" else None

    def wrap(self, module: nn.Module, *, synchronized: bool = False) -> Callable[..., Any]:
        """Return a function that calls the module in this precision, compiled if requested, and returns float32.

        The module itself is unchanged, so that names of saved weights never contain a wrapper's prefix.

        Args:
            synchronized: whether each backward pass averages the module's gradients over all ranks.
        """
        call: Any = torch.compile(module) if self.compile else module
        if synchronized:
            call = self.world.synchronize(call, self.device)
        return self.autocast(call)

    def prepare_inference(self, module: nn.Module) -> Callable[..., Any]:
        """Return a function that calls a trained module for inference in this precision, and returns float32.

        The function calls a copy of the module, compiled if requested. The weights of the copy are cast here, once,
        whereas the function that `wrap` returns casts the weights in every call. The module itself is unchanged.
        """
        low = copy.deepcopy(module)
        low.to(dtype=self.dtype, memory_format=self.layout)  # type: ignore[call-overload]
        call: Any = torch.compile(low) if self.compile else low

        def cast(images: Tensor) -> Tensor:
            output: Tensor = call(images.to(self.dtype, memory_format=self.layout))
            return output.float()

        return cast

    def autocast(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs `call` in this precision and casts its result to float32.

        Args:
            call: function of image batches that returns a tensor, or tensors in nested tuples and mappings.
        """
        if self.dtype == torch.float32:
            return call

        def cast(*images: Tensor, **options: Any) -> Any:
            with torch.autocast(self.device.type, self.dtype):
                output = call(*images, **options)
            return _to_float32(output)

        return cast

    def scaler(self) -> torch.amp.GradScaler:
        """Gradient scaler that keeps fp16 gradients from vanishing; disabled in the other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)


def device_type(device: str) -> str:
    """Return the device type for config value `device`; `auto` gives the first available of `cuda`, `mps`, `cpu`."""
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_count(device: str) -> int:
    """Number of devices of type `device` on this machine; 1 for types other than CUDA."""
    return torch.cuda.device_count() if device_type(device) == "cuda" else 1


def check_device(name: str, *, key: str = "device") -> str:
    """Return the device type for config value `name`; raise a CommandError if this machine has no such device.

    Args:
        key: config key of the value, for the error message.
    """
    kind = device_type(name)
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise CommandError(
            f"{key}={name}: this machine has none that PyTorch can use; it would run on {device_type('auto')}"
        )
    return kind


def _device(name: str, world: World) -> torch.device:
    kind = check_device(name)
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
    """Names of the C++ compilers that PyTorch looks for."""
    return [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++", "cl"]


def _native_bf16() -> set[str]:
    """Names of the instruction sets of this CPU that multiply bf16; without them, bf16 is slower than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.11
        older = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
        return {name for name, supported in older.items() if supported}
    capabilities = torch.cpu.get_capabilities()
    return {name for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16") if capabilities.get(name, False)}


def _to_float32(value: Any) -> Any:
    """Convert all tensors in nested tuples and mappings to float32; leave other values as they are."""
    if isinstance(value, Tensor):
        return value.float()
    if isinstance(value, tuple):
        items = [_to_float32(item) for item in value]
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    if isinstance(value, Mapping):
        return {key: _to_float32(item) for key, item in value.items()}
    return value


def process_count(devices: int | Literal["auto"], device: Literal["auto", "cpu", "cuda", "mps"]) -> int:
    """Number of training processes, one per device.

    Args:
        devices: value of `trainer.devices`; `auto` uses all devices.
        device: value of `trainer.device`.

    Raises:
        CommandError: this machine has no such device, `devices` is below 1, or `devices` exceeds the number of GPUs
            when training on GPUs.
    """
    check_device(device, key="trainer.device")
    available = device_count(device)
    if devices == "auto":
        return available
    if devices < 1 or (device_type(device) != "cpu" and devices > available):
        raise CommandError(f"trainer.devices={devices}: this machine has {available} {device_type(device)} device(s)")
    return devices
