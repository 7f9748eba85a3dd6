"""Computation in full float32, for scores that do not depend on the settings of a training run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Context manager: compute in float32 on a device, without autocast; on CUDA without TF32. Settings are restored.

    TF32 rounds the factors of products to 10 bits. A rounded score would differ between GPUs and CPUs.
    """
    with torch.autocast(device.type, enabled=False), _without_tf32() if device.type == "cuda" else _unchanged():
        yield


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = []
    for backend in backends:
        with contextlib.suppress(RuntimeError):  # unreadable if the caller has set `fp32_precision`, its successor
            before.append((backend, backend.allow_tf32))
            backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, value in before:
            backend.allow_tf32 = value


def _unchanged() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
