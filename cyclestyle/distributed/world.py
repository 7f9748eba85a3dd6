"""The processes of a run: their set-up, collective operations, agreement on failures, and shutdown."""

import contextlib
import datetime
import functools
import itertools
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cyclestyle.errors import CommandError, LostProcessError

SETUP_TIMEOUT_S = 24 * 3600.0  # one rank may inspect or draw images for hours while the others wait
FAILURE_WAIT_S = 2.0  # longest wait for the other ranks to report a failure or timeout as well, in seconds

_sessions = itertools.count()  # numbers of this process's sessions, which are the same on all ranks


class FailedElsewhereError(Exception):
    """Error on a rank that has not failed itself, raised when another rank fails; the other rank reports the reason."""


class World:
    """The processes of a run, seen from one process. Ranks are numbered from 0; `is_main` is true on rank 0.

    Args:
        rank: number of this process in the run.
        size: number of processes.
        local_rank: number of this process on its host.
        store: key-value store that all ranks share; None for a single rank, and in the result of `duplicate`.
        timeout_s: longest wait for another rank during training, in seconds.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, local_rank: int = 0, store: Any = None, timeout_s: float = 600.0
    ) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self.timeout_s = timeout_s
        self._store, self._collectives = store, 0
        self._wrapped: list[DistributedDataParallel] = []
        self._totals: dict[str, int] = {}
        # Flags are exchanged over the CPU (gloo), so that agreement never waits for a GPU.
        self._control = self._group(timeout_s)
        self._setup = self._group(SETUP_TIMEOUT_S)

    def duplicate(self) -> "World":
        """Return a world of the same processes with process groups of its own, for use in a second thread.

        All ranks must call this together.
        """
        return World(self.rank, self.size, local_rank=self.local_rank, timeout_s=self.timeout_s)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Wrap `module` so that each backward pass averages the gradients of the module over all ranks.

        In a world of one rank, return `module` itself.
        """
        if self.size == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        # Gradients are views of the buckets that are sent between ranks, which saves the time and memory of a copy.
        # static_graph stays off: with it, a backward pass without averaging before one with averaging fails an
        # assertion (issue 143580 of PyTorch). It would only save a search for unused parameters, which is off anyway.
        with warnings.catch_warnings():  # torch 2.15 renames the flag, torch 2.10 has only this name
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        self._wrapped.append(wrapped)
        return wrapped

    @contextmanager
    def accumulating(self, *, more_to_come: bool) -> Iterator[None]:
        """Context manager for one of several backward passes whose gradients are summed.

        Args:
            more_to_come: whether another backward pass follows. If true, the gradients are added to those of earlier
                passes, on this rank only. If false, this is the last pass, and the sums are averaged over all ranks.
        """
        self._heartbeat()
        for wrapped in self._wrapped:
            wrapped.require_backward_grad_sync = not more_to_come
        try:
            yield
        finally:
            for wrapped in self._wrapped:
                wrapped.require_backward_grad_sync = True

    def mean(self, values: Tensor) -> Tensor:
        """Replace each value by its mean over all ranks, in place; return `values`."""
        if self.size > 1:
            self._heartbeat()
            dist.all_reduce(values)
            values /= self.size
        return values

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of `parameters` over all ranks, in place; all ranks must call this together.

        Parameters of modules that `synchronize` has wrapped are skipped: the backward pass has averaged their
        gradients. A missing gradient counts as zero. With one rank, do nothing.
        """
        if self.size == 1:
            return
        wrapped = {id(p) for module in self._wrapped for p in module.parameters()}
        own = [p for p in parameters if id(p) not in wrapped]
        if not own:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        averaged = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for parameter, values in zip(own, torch.split(averaged, [p.numel() for p in own]), strict=True):
            parameter.grad = values.view_as(parameter).clone()

    def min(self, values: Tensor) -> Tensor:
        """Replace each value by its minimum over all ranks, in place; return `values`."""
        if self.size > 1:
            self._heartbeat()
            dist.all_reduce(values, op=dist.ReduceOp.MIN)
        return values

    def any(self, flag: bool, *, no_timeout: bool = False) -> bool:
        """Return whether `flag` is true on any rank; all ranks get the same result and must call this together.

        Args:
            no_timeout: wait up to a day for the other ranks instead of `timeout_s`; for set-up, which can take hours.

        Raises:
            LostProcessError: another rank has ended or does not respond in time.
        """
        if self._control is None:
            return flag
        self._heartbeat()
        flags = torch.tensor([int(flag)])
        try:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._setup if no_timeout else self._control)
        except RuntimeError as error:
            raise self.lost_process_error(error) from None
        return bool(flags.item())

    def gather(self, own: Any) -> list[Any]:
        """Return the objects `own` of all ranks, in the order of the ranks; all ranks must call this together.

        Args:
            own: any picklable object, with tensors on the CPU only.

        Raises:
            LostProcessError: another rank has ended or does not respond within a day.
        """
        if self._setup is None:
            return [own]
        gathered: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(gathered, own, group=self._setup)
        except RuntimeError as error:
            raise self.lost_process_error(error) from None
        return gathered

    def all_equal(self, number: int) -> bool:
        """Return whether `number` is equal on all ranks; all ranks get the same result and must call this together.

        Raises:
            LostProcessError: another rank has ended or does not respond within a day.
        """
        if self._setup is None:
            return True
        bounds = torch.tensor([number, -number])
        try:
            dist.all_reduce(bounds, op=dist.ReduceOp.MIN, group=self._setup)
        except RuntimeError as error:
            raise self.lost_process_error(error) from None
        minimum, negated_maximum = bounds.tolist()
        return bool(minimum == -negated_maximum)

    def total(self, name: str, amount: int) -> int:
        """Add `amount` to the counter `name`, which all ranks share; return the new total without waiting for others.

        In the result of `duplicate`, each rank has a counter of its own.
        """
        if self._store is not None:
            return int(self._store.add(f"total {name}", amount))
        self._totals[name] = self._totals.get(name, 0) + amount
        return self._totals[name]

    @contextmanager
    def all_or_none(self, *, no_timeout: bool = False) -> Iterator[None]:
        """Context manager: if the `with` block fails on any rank, raise an error on all ranks.

        A rank whose own block fails raises the error of the block.

        Args:
            no_timeout: see `any`.

        Raises:
            FailedElsewhereError: the block succeeded on this rank, but failed on another rank.
            LostProcessError: another rank has ended or does not respond in time.
        """
        failed = True
        try:
            yield
            failed = False
        finally:
            failed_anywhere = self.any(failed, no_timeout=no_timeout)
        if failed_anywhere:
            raise FailedElsewhereError

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Context manager: run the `with` block on rank 0, then on the other ranks, which can reuse rank 0's results.

        Raises:
            FailedElsewhereError: the block failed on rank 0; the other ranks raise this error and skip the block. Rank
                0 raises the error of the block.
            LostProcessError: another rank has ended or does not respond within a day.
        """
        if not self.is_main and self.any(False, no_timeout=True):
            raise FailedElsewhereError
        failed = True
        try:
            yield
            failed = False
        finally:
            if self.is_main:
                self.any(failed, no_timeout=True)

    def lost_process_error(self, error: RuntimeError) -> LostProcessError:
        """Convert the error of a failed collective operation to an error with a message for the user.

        If `error` is a timeout, the message names the ranks that do not respond.
        """
        self._post(f"gave up {self.rank}")
        if "tim" not in str(error).lower():  # torch's texts for a timeout: "Timed out waiting", "timeout"
            return LostProcessError("another process of this run has ended, and this one with it")
        behind = self._behind()
        who = f"process {', '.join(map(str, behind))} does" if len(behind) == 1 else f"processes {behind} do"
        return LostProcessError(
            f"{who if behind else 'the processes do'} not answer for {self.timeout_s:g} s (trainer.timeout_s): "
            f"stuck, or slower than that"
        )

    def first_to_fail(self, code: int, reason: str) -> bool:
        """Record that this rank fails; return whether it is the first rank to fail.

        If so, post the exit code `code` and the `reason`, which the other ranks read by `first_failure`. If the store
        cannot be reached, return True.
        """
        if self._store is None:
            return True
        try:
            if self._store.add("failures", 1) > 1:
                return False
            self._store.set("failure", f"{code} {reason}")
        except (RuntimeError, ValueError):  # the store ended with its host
            pass
        return True

    def first_failure(self) -> tuple[int, str] | None:
        """Return exit code and reason posted by the first rank that failed; None if nothing is posted within 10 s."""
        if self._store is None:
            return None
        try:
            self._store.wait(["failure"], datetime.timedelta(seconds=10))
            code, _, reason = self._store.get("failure").decode(errors="replace").partition(" ")
            return int(code), reason
        except (RuntimeError, ValueError):
            return None

    def announce_exit(self) -> None:
        """Inform the other ranks, through the shared store, that this rank will print nothing more."""
        self._post(f"left {self.rank}")

    def wait_for_others_to_exit(self) -> None:
        """Wait up to 2 s for the other ranks to exit, so that this rank's error is printed last."""
        if self._store is None:
            return
        others = [f"left {rank}" for rank in range(self.size) if rank != self.rank]
        with contextlib.suppress(RuntimeError, ValueError):  # a rank was lost, or the store ended with its host
            self._store.wait(others, datetime.timedelta(seconds=FAILURE_WAIT_S))

    def _group(self, timeout_s: float) -> Any:
        if self.size == 1:
            return None
        return dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_s))

    def _heartbeat(self) -> None:
        """Count the collective operation that this rank is about to begin, and post the new count to the store."""
        if self._store is None:
            return
        self._collectives += 1
        self._post(f"met {self.rank}", str(self._collectives))

    def _post(self, key: str, value: str = "") -> None:
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # the store ended with its host; the next operation reports it
                self._store.set(key, value)

    def _behind(self) -> list[int]:
        """Return the ranks that do not respond: those that have begun fewer collective operations than others.

        If all ranks have begun the same number of operations, return the ranks that have not reported a timeout.
        """
        try:
            counts = [int(self._store.get(f"met {rank}")) for rank in range(self.size)]
            if behind := [rank for rank, count in enumerate(counts) if count < max(counts)]:
                return behind
            until = time.monotonic() + FAILURE_WAIT_S
            while True:
                silent = [rank for rank in range(self.size) if not self._store.check([f"gave up {rank}"])]
                if len(silent) <= 1 or time.monotonic() > until:
                    return silent
                time.sleep(0.05)
        except (RuntimeError, ValueError, AttributeError):
            return []


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "LOCAL_RANK" in os.environ


@contextmanager
def session(device_type: str, *, timeout_s: float = 600.0) -> Iterator[World]:
    """Context manager: yield a World of all processes that torchrun started, or of this process alone without torchrun.

    Args:
        device_type: `cpu`, `cuda` or `mps`.
        timeout_s: longest wait for another rank during training, in seconds.

    Raises:
        CommandError: this host has fewer GPUs than processes, or `timeout_s` is not positive.
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
    # NCCL kills the process at its timeout without a message. The gloo groups time out first; their error names ranks.
    more_s = 120.0 if backend == "nccl" else 0.0
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=timeout_s + more_s)
    )
    messages = dist.PrefixStore("cyclestyle", store)  # type: ignore[attr-defined]
    world = World(rank, size, local_rank=local_rank, store=messages, timeout_s=timeout_s)
    try:
        yield world
    except BaseException as error:
        if backend == "gloo":  # NCCL would wait here for ranks that wait for this one
            dist.destroy_process_group()
        # A rank with an Exception prints it, after all others; a rank that exits by SystemExit prints nothing more.
        if isinstance(error, Exception):
            world.wait_for_others_to_exit()
        else:
            world.announce_exit()
        raise
    dist.destroy_process_group()


def _store() -> Any:
    """Return the key-value store that all ranks share, with a prefix for the keys of one call of `session`.

    The prefix changes with each call, and when `torchrun --max-restarts` restarts the processes. So no rank reads
    values posted during an earlier call or before the restart.
    """
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"restart {restart} session {next(_sessions)}", _connection())  # type: ignore[attr-defined]


@functools.cache
def _connection() -> Any:
    """Connect to the key-value store that all ranks share; further calls return the same connection.

    torchrun or rank 0 hosts the store. If rank 0 hosts it, the store lives until the process of rank 0 exits.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        int(os.environ["WORLD_SIZE"]),
        is_master=not hosted and os.environ["RANK"] == "0",
        timeout=datetime.timedelta(minutes=5),
    )
