"""Peak memory, and errors with advice for users when memory runs out or a device fails."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch

from cyclestyle.errors import ResourceError
from cyclestyle.filesystem.atomic import megabytes

# Bytes per pixel of a photo of 8 bits that translation needs beside the network: photo and translation as float32 (24),
# and as integers while they are decoded, batched or encoded (8). 16 bits take up to 16 more.
PHOTO_BYTES = 32
LIBRARY_BYTES = 300_000_000  # for buffers of the libraries, and freed memory that they keep for later


class Remedies(NamedTuple):
    """Advice for users, to be appended to an error text."""

    smaller: str  # advice when memory runs out
    again: str  # advice when a device fails


TRAINING = Remedies(
    smaller="set trainer.recompute=true, lower data.crop_size, trainer.batch_size or generator.channels, or raise "
    "trainer.accumulate; the last checkpoint is complete",
    again="the same command resumes from the last checkpoint, if need be with trainer.device=cpu",
)
TRANSLATING = Remedies(
    smaller="lower memory= or batch_size=, or shrink the pictures with resize=; the same command does the rest",
    again="the same command does the rest, if need be with device=cpu",
)

EVALUATING = Remedies(
    smaller="lower batch_size= or images=, shrink the pictures with photo_size=, or leave out style with names=",
    again="repeat the command, if need be with device=cpu",
)


def resource_error(error: BaseException, advice: Remedies = TRAINING) -> ResourceError | None:
    """Convert an error that means exhausted memory or a failed device; return None for any other error.

    The text of the result ends with the part of `advice` that suits the failure.
    """
    message = str(error)
    if is_out_of_memory(error):
        return ResourceError(f"out of memory (peak {_peak()}): {advice.smaller}")
    device_errors: tuple[type[BaseException], ...] = (getattr(torch, "AcceleratorError", torch.OutOfMemoryError),)
    if isinstance(error, device_errors) or (isinstance(error, RuntimeError) and "CUDA error" in message):
        return ResourceError(f"the device failed ({message.partition(chr(10))[0]}): {advice.again}")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out."""
    # PyTorch's CPU allocator raises a plain RuntimeError: only its text shows that memory ran out.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "t allocate memory" in str(error)


def above_limit(limit: int, *, program: int) -> str:
    """Return a line that explains why the process's peak memory exceeds `limit`; empty if it does not.

    The option `memory=` limits only the memory of the network's computation. The line lists the other uses of memory:
    the program itself, the photos and buffers of libraries.

    Args:
        limit: value of the option `memory=`, in bytes.
        program: memory of the program itself in bytes, measured before the first photo.
    """
    peak = resident_peak()
    if peak <= limit:
        return ""
    return (
        f"peak memory {megabytes(peak)}: {megabytes(program)} for the program, up to memory={megabytes(limit)} for the "
        f"network, and the rest for photos (up to {PHOTO_BYTES} bytes per pixel) and for buffers of libraries"
    )


def resident_peak() -> int:
    """Peak of this process's resident memory in bytes; 0 if the system does not report it."""
    # On Linux, the peak reported by getrusage would include the peak of the parent process.
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _peak() -> str:
    """Peak memory as text: GPU memory if this process uses a GPU, else the process's resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return f"{megabytes(torch.cuda.max_memory_allocated())} on the GPU"
    peak = resident_peak()
    return megabytes(peak) if peak else "unknown"
