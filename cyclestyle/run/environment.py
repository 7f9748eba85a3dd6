"""Record of each start of a run: command line, versions, source code and machine, in starts.json of the run folder."""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cyclestyle
from cyclestyle.errors import warn
from cyclestyle.filesystem.atomic import write_text
from cyclestyle.hardware.threads import cores_allowed

FILE = "starts.json"
_NVIDIA = Path("/proc/driver/nvidia")  # files of NVIDIA's driver on Linux


def record_start(folder: Path, *, step: int, processes: int = 1, warn: Callable[[str], None] = warn) -> None:
    """Append an entry for this start of the run to starts.json; print a warning if the file cannot be written.

    The file is a JSON list with an entry for the first start and for each resume, see `describe_start`.

    Args:
        folder: run folder, which this process has locked.
        step: number of steps done before this start; 0 for a new run.
        processes: number of processes of the run.
    """
    path = folder / FILE
    try:
        entries = _entries(path, warn)
        write_text(path, json.dumps([*entries, describe_start(step=step, processes=processes)], indent=1) + "\n")
    except OSError as error:
        warn(f"cannot write {path}: {(error.strerror or '').lower()}")


def describe_start(*, step: int, processes: int) -> dict[str, Any]:
    """Describe the start of a run in this process, as values that JSON can represent; unknown values are None.

    The description has the command line, quoted for a shell; the working folder; the git commits of the package and of
    the working folder; versions of Python, libraries and drivers; and the machine. It has no environment variables,
    since these may hold passwords.
    """
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": command_line(),
        "folder": str(Path.cwd()),
        "processes": processes,
        "git": {"package": _package_state(), "folder": git_state(Path.cwd())},
        "versions": {
            "cyclestyle": cyclestyle.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with the build, such as +cpu
            **{name: _version(name) for name in ("torchvision", "numpy", "pillow")},
            "cuda": torch.version.cuda,
            "cudnn": _cudnn_version(),
            "driver": _driver_version(),
        },
        "machine": {
            "host": socket.gethostname(),
            "os": platform.platform(),
            "cpu": _cpu_model(),
            "cores": len(cores_allowed()),  # without the cores that this process may not use
            "memory_gb": _memory_gb(),
            "gpus": _gpu_names(),
        },
    }


def command_line() -> str:
    """Return the command that the user ran, quoted for a shell, as far as this process knows it.

    This is the command line of torchrun if the user started torchrun, else that of this process. With several
    `trainer.devices`, the user's command starts this process with the arguments that the user gave.
    """
    arguments = sys.orig_argv
    if "LOCAL_RANK" in os.environ:
        try:
            parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:  # a system without /proc
            parent = []
        if any(Path(argument).name in ("torchrun", "torch.distributed.run") for argument in parent[:3]):
            arguments = parent
    return shlex.join(arguments)


def git_state(folder: Path, *, timeout_s: float = 5.0) -> dict[str, Any] | None:
    """Return the commit of the git checkout that contains `folder`, and whether tracked files differ from it.

    Args:
        timeout_s: seconds after which git is killed.

    Returns:
        `{"commit": ..., "dirty": ...}`; the commit is None if there are no commits yet. None if `folder` is in no
        checkout, or git is missing, fails or takes too long.
    """
    output = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no", timeout_s=timeout_s)
    if output is None:
        return None
    lines = output.splitlines()
    commits = [line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")]
    return {
        "commit": next((commit for commit in commits if commit != "(initial)"), None),
        "dirty": any(not line.startswith("#") for line in lines),
    }


def _package_state() -> dict[str, Any] | None:
    """Return the `git_state` of the package's source folder; None if git does not track the source.

    An installed package is not tracked, even if its virtual environment lies inside a git checkout.
    """
    folder = Path(cyclestyle.__file__).parent
    tracked = _git(folder, "ls-files", "--error-unmatch", "__init__.py")
    return None if tracked is None else git_state(folder)


def _git(folder: Path, *arguments: str, timeout_s: float = 5.0) -> str | None:
    """Return the output of a git command that only reads; None if it fails or takes too long."""
    places = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")  # set while git runs a hook: they name another checkout
    environment = {name: value for name, value in os.environ.items() if name not in places}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _entries(path: Path, warn: Callable[[str], None]) -> list[Any]:
    """Return the entries of earlier starts; warn if the file exists but is malformed."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(entries, list):
            return entries
    except (ValueError, RecursionError):
        pass
    warn(f"{path} is malformed: earlier starts of the run are lost, the file is written again")
    return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    """Return the model name of the processor; else the name of its architecture, or None if that is unknown too."""
    for line in _lines(Path("/proc/cpuinfo")):
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine() or None


def _memory_gb() -> float | None:
    """Size of the machine's memory in GB (1e9 bytes), None if unknown; a container may be limited to less."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None


def _driver_version() -> str | None:
    """Return the version of NVIDIA's driver on Linux, such as 550.54.15; None if it is unknown.

    It is read from a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  ...`.
    """
    for line in _lines(_NVIDIA / "version"):
        if line.startswith("NVRM version:"):
            return next((word for word in line.split() if word[0].isdigit() and "." in word), None)
    return None


def _gpu_names() -> list[str]:
    """Return the names of the GPUs visible to CUDA, or of all NVIDIA GPUs if this run does not use CUDA."""
    if _uses_cuda():
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    # Without a run on CUDA, the names are read from files: PyTorch would take memory on each GPU for them.
    files = sorted(_NVIDIA.glob("gpus/*/information"))
    lines = (line for file in files for line in _lines(file))
    return [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]


def _cudnn_version() -> int | None:
    """Return cuDNN's version, such as 92400; None if this run does not use CUDA, since cuDNN is then not loaded."""
    return torch.backends.cudnn.version() if _uses_cuda() else None  # type: ignore[no-untyped-call]


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
