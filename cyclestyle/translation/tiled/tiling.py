"""Tiling: images that are too large for memory are translated in strips, with statistics of the whole image.

The result equals that of a full pass, which computes the whole image at once, up to rounding. A strip cannot be
translated by itself, since instance norm depends on the whole image. See docs/tiling.md.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.filesystem.atomic import megabytes
from cyclestyle.hardware.device import Hardware
from cyclestyle.networks import registry
from cyclestyle.translation.tiled.activation_store import ActivationStores
from cyclestyle.translation.tiled.architectures import TILING_PLANS, TilingPlan
from cyclestyle.translation.tiled.layers import NormStatistics, PaddedImage
from cyclestyle.translation.tiled.passes import CostEstimate, Passes

_MAX_ROWS = 64  # height of strips in px; taller ones are hardly faster
_UNITS = {"": 1} | {
    prefix + unit: size ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for unit, size in (("b", 1000), ("ib", 1024), ("", 1000))
}


def can_tile(generator: nn.Module) -> bool:
    """Return whether `run_tiled` supports the architecture of a generator."""
    return type(generator) in TILING_PLANS


@torch.inference_mode()
def run_tiled(
    generator: nn.Module,
    image: Tensor,
    *,
    hardware: Hardware,
    rows: int | None,
    memory: int,
    folder: Path | None = None,
    advance: Callable[[float], object] | None = None,
    observe: Callable[[nn.InstanceNorm2d, NormStatistics], object] | None = None,
) -> Tensor:
    """Translate an image strip by strip in evaluation mode.

    Up to rounding, the result equals that of a forward pass over the whole image.

    Args:
        generator: a generator that `can_tile` accepts, on the device of `hardware`.
        image: (1, C, H, W) in [-1, 1] on the CPU, float32, or float64 for a float64 generator; the result has the same
            range, device and dtype.
        hardware: device and precision with which strips are computed; stored activations stay on the CPU.
        rows: height of a strip in px of the image; None means a height that `memory` allows.
        memory: bytes available for strips and stored activations, in addition to the image, its translation, and the
            memory that the process already uses.
        folder: folder for temporary files with the stored activations that do not fit into `memory`; None means the
            system's temporary folder.
        advance: called after every strip with the completed share of the work, up to 1.
        observe: called with every norm layer and the statistics of its input.

    Raises:
        CommandError: `memory` is too small for a single strip.
        DiskError: `folder` has no room for the stored activations or cannot be written.
    """
    dtype = hardware.dtype if image.dtype == torch.float32 else image.dtype
    height, width = image.shape[2:]
    rows, store_bytes = _divide_memory(generator, height, width, dtype, rows, memory)
    work = _estimate(generator, height, width, dtype, rows).operations
    completed = 0.0

    def count(operations: float) -> None:
        nonlocal completed
        completed += operations
        if advance:
            advance(min(completed / work, 1.0))

    def compute() -> Tensor:
        plan = _plan_for(generator)
        padded = PaddedImage(image, device=hardware.device, multiple=plan.multiple, minimum=plan.minimum)
        with ActivationStores(store_bytes, folder or Path(tempfile.gettempdir())) as stores:
            passes = Passes(
                stores,
                device=hardware.device,
                rows=rows,
                height=padded.height,
                advance=count,
                observe=observe or (lambda layer, statistics: None),
            )
            translated = plan.translate(padded, passes)
            result = torch.empty((1, translated.channels, height, width), dtype=image.dtype)
            first = padded.crop_rows.start

            def paste(top: int, strip: Tensor) -> None:
                result[:, :, top - first : top - first + strip.shape[2]] = strip[..., padded.crop_columns]

            passes.for_each_strip(translated, paste, padded.crop_rows)
        return result

    result: Tensor = hardware.autocast(compute)()
    if advance:
        advance(1.0)
    return result


def full_pass_bytes(generator: nn.Module, height: int, width: int, dtype: torch.dtype) -> int:
    """Estimate the bytes that a forward pass over the whole image adds to the memory of the process.

    The estimate is based on measured peaks.
    """
    plan = _plan_for(generator)
    padded = _padded(plan, generator, height, width)
    values = plan.full_pass_values.get(dtype, plan.full_pass_values[torch.float32])
    return int(padded.height * padded.width * plan.channels * values * dtype.itemsize)


def tiled_bytes(generator: nn.Module, height: int, width: int, dtype: torch.dtype, rows: int) -> int:
    """Estimate the bytes that `run_tiled`, with strips of `rows` px, adds to the memory of the process.

    The estimate assumes that all stored activations are in memory, not in temporary files.
    """
    return _estimate(generator, height, width, dtype, rows).peak_bytes


def parse_memory(text: str) -> int:
    """Convert the text of a memory size, such as `500MB`, `4GiB`, `1.5 gb` or `4000000000`, to bytes.

    A number below 100 without a unit is a number of GB.

    Raises:
        CommandError: the text is not a size above 0.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", text.strip().lower())
    unit = "gb" if match and not match[2] and float(match[1]) < 100 else match[2] if match else ""
    size = int(float(match[1]) * _UNITS[unit]) if match and unit in _UNITS else 0
    if not size:
        raise CommandError(f"memory={text} is not a size: expected one such as 4GB, 500MB or 4GiB")
    return size


def _divide_memory(
    generator: nn.Module, height: int, width: int, dtype: torch.dtype, rows: int | None, memory: int
) -> tuple[int, int]:
    """Return the height of strips in px, and the maximum total size, in bytes, of activations stored in memory.

    The height is `rows`; if `rows` is None, the height is chosen to fit `memory`.

    Raises:
        CommandError: `memory` is too small for a single strip.
    """

    def estimate(rows: int) -> CostEstimate:
        return _estimate(generator, height, width, dtype, rows)

    min_rows = rows or 1
    needed = estimate(min_rows).strip_bytes
    if needed > memory:
        raise CommandError(
            f"memory={megabytes(memory)} cannot hold a strip of {min_rows} px of a photo {width} px wide: set memory= "
            f"to {megabytes(needed)} or more"
        )
    if rows is None:
        rows = _tallest(lambda rows: estimate(rows).peak_bytes <= memory) or _tallest(
            lambda rows: estimate(rows).strip_bytes <= max(memory // 2, needed)
        )
    chosen = estimate(rows)
    return rows, memory if chosen.peak_bytes <= memory else memory - chosen.strip_bytes


def _tallest(fits: Callable[[int], bool]) -> int:
    """Return the largest height in px, at most `_MAX_ROWS`, for which `fits` returns true; 0 if there is none."""
    low, high = 0, _MAX_ROWS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _estimate(generator: nn.Module, height: int, width: int, dtype: torch.dtype, rows: int) -> CostEstimate:
    """Estimate the work and memory of translating an image in strips of `rows` px.

    The estimate assumes that all stored activations are in memory, not in temporary files.
    """
    plan = _plan_for(generator)
    padded = _padded(plan, generator, height, width)
    with ActivationStores(float("inf"), Path(), device="meta") as stores:
        estimate = CostEstimate(stores, dtype=dtype, rows=rows, height=padded.height)
        estimate.count(plan.translate(padded, estimate), padded.crop_rows)
    return estimate


def _padded(plan: TilingPlan, generator: nn.Module, height: int, width: int) -> PaddedImage:
    image = torch.empty((1, registry.channels_of(generator).input, height, width), device="meta")
    return PaddedImage(image, device=image.device, multiple=plan.multiple, minimum=plan.minimum)


def _plan_for(generator: Any) -> TilingPlan:
    """Create the tiling plan for a generator that `can_tile` accepts."""
    assert can_tile(generator), f"{type(generator).__name__} has no tiling plan"
    return TILING_PLANS[type(generator)](generator)
