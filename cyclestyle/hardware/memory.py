"""Memory: its peak, and errors that say how to need less of it."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from cyclestyle.errors import ResourceError
from cyclestyle.filesystem.atomic import megabytes


class Remedies(NamedTuple):
    """What to do when memory runs out, and when a device is lost."""

    smaller: str
    again: str


TRAINING = Remedies(
    smaller="set trainer.recompute=true, lower data.crop_size, trainer.batch_size or generator.channels, or raise "
    "trainer.accumulate; the last checkpoint is whole",
    again="the same command goes on from the last checkpoint, if need be with trainer.device=cpu",
)
TRANSLATING = Remedies(
    smaller="lower memory= or batch_size=, or shrink the pictures with resize=; the same command does the rest",
    again="the same command does the rest, if need be with device=cpu",
)


def resource_error(error: BaseException, advice: Remedies = TRAINING) -> ResourceError | None:
    """What an exception says of memory or of the device, with the knobs to turn; None if it is about something else."""
    said = str(error)
    if is_out_of_memory(error):
        return ResourceError(f"out of memory (peak {_peak()}): {advice.smaller}")
    lost: tuple[type[BaseException], ...] = (getattr(torch, "AcceleratorError", torch.OutOfMemoryError),)
    if isinstance(error, lost) or (isinstance(error, RuntimeError) and "CUDA error" in said):
        return ResourceError(f"the device failed ({said.partition(chr(10))[0]}): {advice.again}")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    # PyTorch's allocator on the CPU has no type of error of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "t allocate memory" in str(error)


def resident_peak() -> int:
    """Bytes of the machine's memory that this process has held at most; 0 where the system does not tell."""
    # On Linux, what getrusage says begins with what the process held that started this one.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak() -> str:
    """The most memory that this process has held: of the GPU where it uses one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{megabytes(torch.cuda.max_memory_allocated())} on the GPU"
    held = resident_peak()
    return megabytes(held) if held else "unknown"
