"""Several processes that train as one, and the one process that needs none of it."""

import datetime
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclestyle.errors import CommandError


class World:
    """The processes of a run as one of them sees it; `rank` counts from 0, and rank 0 `is_main`."""

    def __init__(self, rank: int = 0, size: int = 1, *, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._wrapped: list[DistributedDataParallel] = []
        # Agreement between hosts' flags goes over the CPU, so that asking never waits for a GPU.
        self._control: Any = dist.new_group(backend="gloo") if size > 1 else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module as a callable whose gradients are the mean over all processes after each backward pass."""
        if self.size == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.15 has a new name for the flag, 2.10 only this one
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)
        self._wrapped.append(wrapped)
        return wrapped

    @contextmanager
    def accumulating(self, *, more_to_come: bool) -> Iterator[None]:
        """Backward passes within add up locally while there are more to come; the last one also averages."""
        for wrapped in self._wrapped:
            wrapped.require_backward_grad_sync = not more_to_come
        try:
            yield
        finally:
            for wrapped in self._wrapped:
                wrapped.require_backward_grad_sync = True

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process gets the same answer."""
        if self._control is None:
            return flag
        agreed = torch.tensor([int(flag)])
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self._control)
        return bool(agreed.item())

    def barrier(self) -> None:
        """Wait until all processes have come here."""
        if self._control is not None:
            dist.barrier(group=self._control)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block, then the others do and find its work done; if it fails, they leave quietly."""
        if not self.is_main and self.any(False):
            raise SystemExit(0)  # rank 0 says why
        failed = True
        try:
            yield
            failed = False
        finally:
            if self.is_main:
                self.any(failed)


def launched() -> bool:
    """Whether this process was started by torchrun."""
    return "LOCAL_RANK" in os.environ


@contextmanager
def session(device_type: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be a world of one.

    Raises:
        CommandError: more processes on this host than it has devices.
    """
    if not launched():
        yield World()
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    if device_type == "cuda":
        available = torch.cuda.device_count()
        if local_rank >= available:
            raise CommandError(
                f"process {local_rank + 1} of this host has no GPU, {available} are visible: "
                f"start torchrun with --nproc_per_node {available} or fewer"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", store=_store(), rank=rank, world_size=size)
    try:
        yield World(rank, size, local_rank=local_rank)
    finally:
        dist.destroy_process_group()


def _store() -> Any:
    """The meeting point of the processes, with a name of its own for every restart of the job.

    After `torchrun --max-restarts` the new processes would otherwise read what the dead ones left behind.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=not hosted and os.environ["RANK"] == "0",
        timeout=datetime.timedelta(minutes=5),
    )
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart {restart}", store)  # type: ignore[attr-defined]
