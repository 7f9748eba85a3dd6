"""Versions, devices and config folders, for `--version` and `--info`."""

import importlib.metadata
import pkgutil
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cyclestyle

LIBRARIES = ("torchvision", "hydra-core", "omegaconf", "pillow", "safetensors", "numpy")


def version() -> str:
    """Return the name and version of the package."""
    return f"cyclestyle {cyclestyle.__version__}"


def describe(folders: Sequence[Path]) -> str:
    """Describe versions, devices and the config folders, in lines of text."""
    rows = [("cyclestyle", cyclestyle.__version__), ("package", str(Path(cyclestyle.__file__).parent))]
    rows += [("Python", platform.python_version()), ("system", platform.platform())]
    rows += [(name, installed(name)) for name in LIBRARIES]
    rows += devices()
    rows += [("configs" if number == 0 else "", str(folder)) for number, folder in enumerate(folders)]
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def installed(name: str) -> str:
    """Return the installed version of a library, or the text `not installed`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def devices() -> Iterator[tuple[str, str]]:
    """Yield (name, value) rows: the versions of PyTorch and CUDA, and each device that PyTorch can use."""
    torch: Any = pkgutil.resolve_name("torch")  # imported here alone: other parts of the room answer without it
    yield "torch", torch.__version__
    yield "CUDA", torch.version.cuda or "none in this PyTorch"
    for index in range(torch.cuda.device_count()):
        yield "device", f"cuda:{index} {torch.cuda.get_device_name(index)}"
    if torch.backends.mps.is_available():
        yield "device", "mps"
    yield "device", f"cpu, {torch.get_num_threads()} threads"
