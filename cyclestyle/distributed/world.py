"""Several processes that train as one, and the one process that needs none of it."""

import contextlib
import datetime
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclestyle.errors import CommandError, LostProcessError

PATIENCE_S = 24 * 3600.0  # while setting up: one process may draw or look through pictures, the others wait for it
PATIENCE_WITH_THE_LOST_S = 2.0  # between one that gave up waiting, or has failed, and the next


class FailedElsewhereError(Exception):
    """Another process of the run has failed, and says why."""


class World:
    """The processes of a run as one of them sees it; `rank` counts from 0, and rank 0 `is_main`.

    Args:
        store: where processes leave word for one another; None for a world of one.
        timeout_s: how long they wait for one another while training.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, local_rank: int = 0, store: Any = None, timeout_s: float = 600.0
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.timeout_s = timeout_s
        self._store, self._met = store, 0
        self._wrapped: list[DistributedDataParallel] = []
        self._totals: dict[str, int] = {}
        # Agreement between hosts' flags goes over the CPU, so that asking never waits for a GPU.
        self._control = self._group(timeout_s)
        self._patient = self._group(PATIENCE_S)

    def duplicate(self) -> "World":
        """The same processes over channels of their own, for a second thread; all processes call it together."""
        return World(self.rank, self.size, local_rank=self.local_rank, timeout_s=self.timeout_s)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module as a callable whose gradients are the mean over all processes after each backward pass."""
        if self.size == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        # Gradients stay where they were sent from: one copy of them less in time and memory. Not static_graph: parts
        # that are back-propagated before the one that is averaged end in an assertion within torch (its issue 143580),
        # and all it saves is a search for unused parameters, which is not made here.
        with warnings.catch_warnings():  # torch 2.15 has a new name for the flag, 2.10 only this one
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._wrapped.append(wrapped)
        return wrapped

    @contextmanager
    def accumulating(self, *, more_to_come: bool) -> Iterator[None]:
        """Backward passes within add up locally while there are more to come; the last one also averages."""
        self._heartbeat()
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
            self._heartbeat()
            dist.all_reduce(values)
            values /= self.size
        return values

    def min(self, values: Tensor) -> Tensor:
        """The least of each value over all processes, in place."""
        if self.size > 1:
            self._heartbeat()
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def any(self, flag: bool, *, patient: bool = False) -> bool:
        """Whether the flag is set in any process; every process gets the same answer.

        Args:
            patient: wait for as long as it takes, as a set-up may need.

        Raises:
            LostProcessError: a process has ended or does not answer.
        """
        if self._control is None:
            return flag
        self._heartbeat()
        agreed = torch.tensor([int(flag)])
        try:
            dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=self._patient if patient else self._control)
        except RuntimeError as error:
            raise self.lost_process_error(error) from None
        return bool(agreed.item())

    def all_equal(self, number: int) -> bool:
        """Whether all processes have the same number; every process gets the same answer."""
        if self._patient is None:
            return True
        both = torch.tensor([number, -number])
        try:
            dist.all_reduce(both, op=dist.ReduceOp.MIN, group=self._patient)
        except RuntimeError as error:
            raise self.lost_process_error(error) from None
        least, most = both.tolist()
        return bool(least == -most)

    def total(self, name: str, amount: int) -> int:
        """Add to a count that all processes share; returns where it stands."""
        if self._store is not None:
            return int(self._store.add(f"total {name}", amount))
        self._totals[name] = self._totals.get(name, 0) + amount
        return self._totals[name]

    @contextmanager
    def all_or_none(self, *, patient: bool = False) -> Iterator[None]:
        """All processes leave the block well or none does.

        Raises:
            FailedElsewhereError: all went well here, but not in another process.
        """
        failed = True
        try:
            yield
            failed = False
        finally:
            anywhere = self.any(failed, patient=patient)
        if anywhere:
            raise FailedElsewhereError

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block, then the others do and find its work done; if it fails, they do not begin.

        Raises:
            FailedElsewhereError: in them.
        """
        if not self.is_main and self.any(False, patient=True):
            raise FailedElsewhereError
        failed = True
        try:
            yield
            failed = False
        finally:
            if self.is_main:
                self.any(failed, patient=True)

    def lost_process_error(self, error: RuntimeError) -> LostProcessError:
        """What it means that processes cannot reach one another, after what torch says of it."""
        self._post(f"gave up {self.rank}")
        if "tim" not in str(error).lower():  # "Timed out waiting", "timeout"
            return LostProcessError("another process of this run has ended, and this one with it")
        behind = self._behind()
        who = f"process {', '.join(map(str, behind))} does" if len(behind) == 1 else f"processes {behind} do"
        return LostProcessError(
            f"{who if behind else 'the processes do'} not answer for {self.timeout_s:g} s (trainer.timeout_s): "
            f"stuck, or slower than that"
        )

    def first_to_fail(self, code: int, reason: str) -> bool:
        """Whether no other process has failed before; the first one leaves its exit code and reason for the others."""
        if self._store is None:
            return True
        try:
            if self._store.add("failures", 1) > 1:
                return False
            self._store.set("failure", f"{code} {reason}")
        except (RuntimeError, ValueError):  # the store has gone with its host
            pass
        return True

    def first_failure(self) -> tuple[int, str] | None:
        """Exit code and reason of the first process that failed, if it gets to say so."""
        if self._store is None:
            return None
        try:
            self._store.wait(["failure"], datetime.timedelta(seconds=10))
            code, _, reason = self._store.get("failure").decode(errors="replace").partition(" ")
            return int(code), reason
        except (RuntimeError, ValueError):
            return None

    def announce_exit(self) -> None:
        """Leave word that this process has said all that it had to say."""
        self._post(f"left {self.rank}")

    def wait_for_others_to_exit(self) -> None:
        """Wait until the other processes have left, for those that are able to: what is said then is said last."""
        if self._store is None:
            return
        others = [f"left {rank}" for rank in range(self.size) if rank != self.rank]
        with contextlib.suppress(RuntimeError, ValueError):  # one of them is lost, or the store has gone with its host
            self._store.wait(others, datetime.timedelta(seconds=PATIENCE_WITH_THE_LOST_S))

    def _group(self, timeout_s: float) -> Any:
        if self.size == 1:
            return None
        return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def _heartbeat(self) -> None:
        """Leave word of how often this process has met, or is about to meet, the others."""
        if self._store is None:
            return
        self._met += 1
        self._post(f"met {self.rank}", str(self._met))

    def _post(self, key: str, word: str = "") -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the store has gone with its host, as the next meeting will show
                self._store.set(key, word)

    def _behind(self) -> list[int]:
        """The processes that have not come to where this one waits, or do not even notice that they wait in vain."""
        try:
            met = [int(self._store.get(f"met {rank}")) for rank in range(self.size)]
            if behind := [rank for rank, count in enumerate(met) if count < max(met)]:
                return behind
            until = time.monotonic() + PATIENCE_WITH_THE_LOST_S
            while True:
                silent = [rank for rank in range(self.size) if not self._store.check([f"gave up {rank}"])]
                if len(silent) <= 1 or time.monotonic() > until:
                    return silent
                time.sleep(0.05)
        except (RuntimeError, ValueError, AttributeError):
            return []


def launched() -> bool:
    """Whether this process was started by torchrun."""
    return "LOCAL_RANK" in os.environ


@contextmanager
def session(device_type: str, *, timeout_s: float = 600.0) -> Iterator[World]:
    """Join the processes that torchrun started, or be a world of one.

    Args:
        timeout_s: how long processes wait for one another while training.

    Raises:
        CommandError: more processes on this host than it has devices, or a time that is none.
    """
    if timeout_s <= 0:
        raise CommandError(f"trainer.timeout_s={timeout_s:g}: give a number of seconds above 0")
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
    store = _store()
    backend = "nccl" if device_type == "cuda" else "gloo"
    # NCCL ends the process without a word when its time is up: the control group, which knows names, is to come first.
    more_s = 120.0 if backend == "nccl" else 0.0
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout_s + more_s)
    )
    words = dist.PrefixStore("cyclestyle", store)  # type: ignore[attr-defined]
    world = World(rank, size, local_rank=local_rank, store=words, timeout_s=timeout_s)
    try:
        yield world
    except BaseException as error:
        if backend == "gloo":  # NCCL would wait here for processes that wait for this one
            dist.destroy_process_group()
        # The first to fail has something to say; the others notice, and leave without a word.
        if isinstance(error, Exception):
            world.wait_for_others_to_exit()
        else:
            world.announce_exit()
        raise
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
