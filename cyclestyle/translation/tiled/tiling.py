"""Pictures that do not fit into memory, computed in strips that share the whole picture's statistics.

The result is that of a whole pass, up to rounding: instance norm looks at the whole picture, so a strip cannot be
translated by itself. See docs/tiling.md.
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
from cyclestyle.translation.tiled.activation_store import ActivationStores
from cyclestyle.translation.tiled.architectures import TILING_PLANS, TilingPlan
from cyclestyle.translation.tiled.layers import NormStatistics, Picture
from cyclestyle.translation.tiled.passes import CostEstimate, Passes

_TALL = 64  # px: of a strip that is not much faster when it is taller
_UNITS = {"": 1} | {
    prefix + unit: size ** (power + 1)
    for power, prefix in enumerate("kmgt")
    for unit, size in (("b", 1000), ("ib", 1024), ("", 1000))
}


def can_tile(generator: nn.Module) -> bool:
    """Whether `run_tiled` knows what a generator is made of."""
    return type(generator) in TILING_PLANS


@torch.inference_mode()
def run_tiled(
    generator: nn.Module,
    picture: Tensor,
    *,
    hardware: Hardware,
    rows: int | None,
    memory: int,
    folder: Path | None = None,
    advance: Callable[[float], object] | None = None,
    observe: Callable[[nn.InstanceNorm2d, NormStatistics], object] | None = None,
) -> Tensor:
    """The translation of a picture by a generator in evaluation, equal to a whole pass up to rounding.

    Args:
        generator: one that `can_tile` knows, on the hardware.
        picture: (1, C, H, W) in [-1, 1] on the CPU, as is the result: float32, or float64 for a generator of that.
        hardware: where strips are computed, and in what precision; what waits does so on the CPU.
        rows: height of a strip in px of the picture; None takes what the memory allows.
        memory: bytes that may be taken besides the process's own, the picture and its translation.
        folder: for a file of what waits, if that does not fit; None is the system's for temporary files.
        advance: is told after every strip what share of the work is done, up to 1.
        observe: is told the statistics for every norm layer.

    Raises:
        CommandError: the memory is too little for a single strip.
        DiskError: the folder cannot take the file.
    """
    dtype = hardware.dtype if picture.dtype == torch.float32 else picture.dtype
    height, width = picture.shape[2:]
    rows, for_stores = _division(generator, height, width, dtype, rows, memory)
    work = _forecast(generator, height, width, dtype, rows).operations
    done = 0.0

    def count(operations: float) -> None:
        nonlocal done
        done += operations
        if advance:
            advance(min(done / work, 1.0))

    def compute() -> Tensor:
        stages = _stages(generator)
        padded = Picture(picture, device=hardware.device, multiple=stages.multiple, minimum=stages.minimum)
        with ActivationStores(for_stores, folder or Path(tempfile.gettempdir())) as stores:
            sweeps = Passes(
                stores,
                device=hardware.device,
                rows=rows,
                height=padded.height,
                advance=count,
                observe=observe or (lambda layer, statistics: None),
            )
            translated = stages.translated(padded, sweeps)
            result = torch.empty((1, translated.channels, height, width), dtype=picture.dtype)
            first = padded.crop_rows.start

            def paste(top: int, strip: Tensor) -> None:
                result[:, :, top - first : top - first + strip.shape[2]] = strip[..., padded.crop_columns]

            sweeps.over(translated, paste, padded.crop_rows)
        return result

    result: Tensor = hardware.autocast(compute)()
    if advance:
        advance(1.0)
    return result


def full_pass_bytes(generator: nn.Module, height: int, width: int, dtype: torch.dtype) -> int:
    """Memory that a whole pass takes besides the process's own: a forecast from what was measured."""
    stages = _stages(generator)
    padded = _padded(stages, height, width)
    values = stages.whole_values.get(dtype, stages.whole_values[torch.float32])
    return int(padded.height * padded.width * stages.channels * values * dtype.itemsize)


def tiled_bytes(generator: nn.Module, height: int, width: int, dtype: torch.dtype, rows: int) -> int:
    """Memory that `run_tiled` takes besides the process's own if all that waits does so in memory: a forecast."""
    return _forecast(generator, height, width, dtype, rows).most


def parse_memory(text: str) -> int:
    """Bytes, from how people write them: `500MB`, `4GB`, `4GiB`, `1.5 gb`, `4000000000`.

    Raises:
        CommandError: it is something else.
    """
    found = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", text.strip().lower())
    size = int(float(found[1]) * _UNITS[found[2]]) if found and found[2] in _UNITS else 0
    if not size:
        raise CommandError(f"memory={text} is no size: expected one such as 4GB, 500MB or 4GiB")
    return size


def _division(
    generator: nn.Module, height: int, width: int, dtype: torch.dtype, rows: int | None, memory: int
) -> tuple[int, int]:
    """The height of strips in px, and the bytes that are left for what waits."""

    def forecast(rows: int) -> CostEstimate:
        return _forecast(generator, height, width, dtype, rows)

    least = rows or 1
    needed = forecast(least).strip_bytes
    if needed > memory:
        raise CommandError(
            f"memory={megabytes(memory)} cannot hold a strip of {least} px of a picture {width} px wide: set memory= "
            f"to {megabytes(needed)} or more"
        )
    if rows is None:
        rows = _tallest(lambda rows: forecast(rows).most <= memory) or _tallest(
            lambda rows: forecast(rows).strip_bytes <= max(memory // 2, needed)
        )
    chosen = forecast(rows)
    return rows, memory if chosen.most <= memory else memory - chosen.strip_bytes


def _tallest(fits: Callable[[int], bool]) -> int:
    """The tallest strip that fits, in px, up to where more would not make it faster; 0 if none does."""
    least, most = 0, _TALL
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def _forecast(generator: nn.Module, height: int, width: int, dtype: torch.dtype, rows: int) -> CostEstimate:
    """What a picture of some size takes in pieces, all that waits being in memory."""
    stages = _stages(generator)
    padded = _padded(stages, height, width)
    with ActivationStores(float("inf"), Path(), device="meta") as stores:
        forecast = CostEstimate(stores, dtype=dtype, rows=rows, height=padded.height)
        forecast.count(stages.translated(padded, forecast), padded.crop_rows)
    return forecast


def _padded(stages: TilingPlan, height: int, width: int) -> Picture:
    picture = torch.empty((1, 3, height, width), device="meta")
    return Picture(picture, device=picture.device, multiple=stages.multiple, minimum=stages.minimum)


def _stages(generator: Any) -> TilingPlan:
    """How a generator is computed in pieces."""
    assert can_tile(generator), f"{type(generator).__name__} has no stages"
    return TILING_PLANS[type(generator)](generator)
