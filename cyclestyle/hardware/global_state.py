"""Restoration of global settings of PyTorch and Python after training, for the caller's later code in this process."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping

from cyclestyle.hardware.threads import spin_briefly, usual_threads

VARIABLES = ("GOMP_SPINCOUNT", "KINETO_LOG_LEVEL")  # environment variables that this package sets

_lock = threading.Lock()
_inside = 0  # number of `with` blocks of `restored` that are running, in all threads
_threads: int | None = None  # number of threads before the first of these blocks
_undo: list[Callable[[], object]] = []


@contextlib.contextmanager
def restored(environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Context manager: after the `with` block, restore the settings that training changes in the whole process.

    The settings are PyTorch's number of threads, its random number generators, deterministic algorithms, cuDNN's
    search for algorithms and TF32; `threading.excepthook`; and the environment variables in `VARIABLES`.

    `with` blocks in several Python threads may overlap. Each block then restores PyTorch's number of threads at its
    end, and the block that ends last restores the other settings.

    Args:
        environment: mapping whose variables are restored.
    """
    global _inside, _threads
    with _lock:
        if not _inside:
            _undo.extend(_restore_environment(name, environment.get(name), environment) for name in VARIABLES)
            if "torch" not in sys.modules:  # later, PyTorch would not read the variable
                spin_briefly(environment)
            import torch

            _threads = torch.get_num_threads()
            _undo.extend(_settings())
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            assert _threads is not None
            _set_threads(_threads)
            if not _inside:
                while _undo:
                    _undo.pop()()
                usual_threads.cache_clear()


def _settings() -> Iterator[Callable[[], object]]:
    """Read the present settings of PyTorch and `threading.excepthook`.

    Yield one function for each setting; a call of the function restores the value that was read.
    """
    import torch

    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    yield lambda: torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    for backend, name in (
        (torch.backends.cudnn, "benchmark"),
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_tf32"),
    ):
        with contextlib.suppress(RuntimeError):  # unreadable if the caller has set `fp32_precision`, its successor
            yield _restore_attribute(backend, name)
    yield _restore_attribute(threading, "excepthook")

    cpu = torch.get_rng_state()
    yield lambda: torch.set_rng_state(cpu)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all()
        yield lambda: torch.cuda.set_rng_state_all(cuda)
    if torch.backends.mps.is_available():
        mps = torch.mps.get_rng_state()
        yield lambda: torch.mps.set_rng_state(mps)


def _restore_attribute(owner: object, name: str) -> Callable[[], object]:
    value = getattr(owner, name)
    return lambda: setattr(owner, name, value)


def _restore_environment(name: str, value: str | None, environment: MutableMapping[str, str]) -> Callable[[], object]:
    if value is None:
        return lambda: environment.pop(name, None)
    return lambda: environment.update({name: value})


def _set_threads(threads: int) -> None:
    import torch

    if torch.get_num_threads() != threads:  # an equal number leaves PyTorch's settings untouched
        torch.set_num_threads(threads)
