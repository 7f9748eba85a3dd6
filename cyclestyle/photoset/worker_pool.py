"""Pool of processes or threads that read and write photos while the model translates other photos."""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import ModuleType, TracebackType
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from cyclestyle.errors import DataError
from cyclestyle.photoset import worker_tasks

THREADS = min(4, os.cpu_count() or 1)  # threads suffice here: Pillow's codecs release the interpreter's lock
MAX_WORKERS = 4  # limit of `auto`: a model on two or sixteen cores does not need more
FEW_PHOTOS = 8  # for fewer photos, processes take longer to start than they save

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class Task(NamedTuple, Generic[_Result]):
    """A call submitted to a pool; its function and arguments are kept so that the call can be repeated."""

    future: "Future[_Result]"
    function: Callable[..., _Result]
    arguments: tuple[Any, ...]


class Workers:
    """Context manager: pool of processes or threads that run calls, and that stop at the end of the `with` block.

    Args:
        count: number of processes; 0 means `THREADS` threads instead of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.max_ahead = 2 * (count or THREADS)  # maximum number of calls that run or wait, and of unused results
        self._executor = self._start_executor()

    @classmethod
    def suited(cls, count: int | Literal["auto"], photos: int) -> "Workers":
        """Create a pool of `count` processes, or of threads if `count` is 0.

        `auto` means threads if the number `photos` is below `FEW_PHOTOS`, and up to `MAX_WORKERS` processes otherwise.
        """
        if count == "auto":
            return cls(min(MAX_WORKERS, os.cpu_count() or 1) if photos >= FEW_PHOTOS else 0)
        return cls(count)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def start(self, function: Callable[..., _Result], *arguments: Any) -> Task[_Result]:
        """Submit a call; if a worker has been killed, replace all workers first."""
        try:
            future = _submit(self._executor, function, *arguments)
        except BrokenExecutor:
            self._replace_executor()
            future = _submit(self._executor, function, *arguments)
        return Task(future, function, arguments)

    def finish(self, task: Task[_Result]) -> _Result:
        """Wait for a call and return its result; if its worker was killed, run the call again in a separate process.

        Raises:
            DataError: the separate process was killed too.
        """
        try:
            return task.future.result()
        except BrokenExecutor:
            pass
        # One photo can kill a worker, by a crash of the decoder or for lack of memory, and all calls of the pool fail
        # with it. Each call is repeated once in a separate process, where it cannot harm the others.
        with self._processes(1) as executor:
            try:
                return _submit(executor, task.function, *task.arguments).result()
            except BrokenExecutor:
                raise DataError("its worker process was killed twice: is it too large for the memory?") from None

    def ahead(
        self,
        function: Callable[[_Argument], _Result],
        arguments: Iterable[_Argument],
        *,
        max_ahead: Callable[[], int] | None = None,
    ) -> Iterator[tuple[_Argument, Task[_Result]]]:
        """Yield each argument with the task of its call, in order, while the workers run the next few calls.

        Args:
            function: function that the workers call.
            arguments: one argument for each call.
            max_ahead: returns the maximum number of calls that are submitted ahead; by default, `self.max_ahead` is the
                maximum.
        """
        running: deque[tuple[_Argument, Task[_Result]]] = deque()
        for argument in arguments:
            running.append((argument, self.start(function, argument)))
            while len(running) > (max_ahead() if max_ahead else self.max_ahead):
                yield running.popleft()
        while running:
            yield running.popleft()

    def _replace_executor(self) -> None:
        self._executor.shutdown(wait=False)
        self._executor = self._start_executor()

    def _start_executor(self) -> Executor:
        return self._processes(self.count) if self.count else ThreadPoolExecutor(THREADS)

    @staticmethod
    def _processes(count: int) -> ProcessPoolExecutor:
        # Processes are spawned: a fork of a process with PyTorch's threads may hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, mp_context=context, initializer=worker_tasks.initialize_worker)


def _submit(executor: Executor, function: Callable[..., _Result], *arguments: Any) -> "Future[_Result]":
    """Submit a call to `executor`, which may start a process for the call."""
    with _starting_processes():
        return executor.submit(function, *arguments)


@contextmanager
def _starting_processes() -> Iterator[None]:
    """Context manager: processes started in the `with` block load no main module, and begin with Ctrl-C blocked.

    Spawned processes would run the main module again. Workers do not need that module, and a second run may fail if the
    module is a script without `if __name__ == "__main__"`, comes from a pipe, or is a notebook. A terminal sends Ctrl-C
    to workers too; Ctrl-C is blocked until the workers ignore it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    previous_mask = _block_interrupts()
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if previous_mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _block_interrupts() -> set[signal.Signals | int] | None:
    """Block Ctrl-C in this thread; return the previous signal mask, or None on Windows, which has no signal masks."""
    if sys.platform == "win32":
        return None
    resource_tracker.ensure_running()  # start this helper process first, since its start unblocks signals
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}))
