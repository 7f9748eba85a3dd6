"""Reading and writing beside the model, in processes of their own."""

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

THREADS = min(4, os.cpu_count() or 1)  # Pillow's codecs let go of the interpreter
MAX_WORKERS = 4  # processes by themselves: a model on two or sixteen cores does not need more
FEW_PHOTOS = 8  # pictures, below which processes take longer to start than they save

_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")


class Task(NamedTuple, Generic[_Result]):
    """A call that has been handed out."""

    future: "Future[_Result]"
    function: Callable[..., _Result]
    arguments: tuple[Any, ...]


class Workers:
    """Processes, or threads of this one, that calls are handed out to. A context: they end with it.

    Args:
        count: of processes; 0 is threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.most_ahead = 2 * (count or THREADS)  # calls that wait, or whose results do
        self._executor = self._start()

    @classmethod
    def suited(cls, wanted: int | Literal["auto"], pictures: int) -> "Workers":
        """As many as were asked for; by themselves none for a few pictures."""
        if wanted == "auto":
            return cls(min(MAX_WORKERS, os.cpu_count() or 1) if pictures >= FEW_PHOTOS else 0)
        return cls(wanted)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def start(self, function: Callable[..., _Result], *arguments: Any) -> Task[_Result]:
        """Hand out a call."""
        try:
            future = _submit(self._executor, function, *arguments)
        except BrokenExecutor:
            self._renew()
            future = _submit(self._executor, function, *arguments)
        return Task(future, function, arguments)

    def finish(self, task: Task[_Result]) -> _Result:
        """What came of a call; where its worker was killed, it gets another worker to itself.

        Raises:
            DataError: that one was killed too.
        """
        try:
            return task.future.result()
        except BrokenExecutor:
            pass
        # One picture that its decoder, or the system's lack of memory, kills a worker with takes all calls of the
        # others along. Each of them gets a second chance, where it can harm nobody else.
        with self._processes(1) as alone:
            try:
                return _submit(alone, task.function, *task.arguments).result()
            except BrokenExecutor:
                raise DataError("its worker process was killed twice: is it too large for the memory?") from None

    def ahead(
        self,
        function: Callable[[_Argument], _Result],
        arguments: Iterable[_Argument],
        *,
        most: Callable[[], int] | None = None,
    ) -> Iterator[tuple[_Argument, Task[_Result]]]:
        """Each argument with its call, in order, while the workers are at the next few.

        Args:
            most: how many those may be just now, if not `most_ahead`.
        """
        running: deque[tuple[_Argument, Task[_Result]]] = deque()
        for argument in arguments:
            running.append((argument, self.start(function, argument)))
            while len(running) > (most() if most else self.most_ahead):
                yield running.popleft()
        while running:
            yield running.popleft()

    def _renew(self) -> None:
        self._executor.shutdown(wait=False)
        self._executor = self._start()

    def _start(self) -> Executor:
        return self._processes(self.count) if self.count else ThreadPoolExecutor(THREADS)

    @staticmethod
    def _processes(count: int) -> ProcessPoolExecutor:
        # Not forked: a copy of a process that has PyTorch's threads may hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(count, mp_context=context, initializer=worker_tasks.begin)


def _submit(executor: Executor, function: Callable[..., _Result], *arguments: Any) -> "Future[_Result]":
    """Hand out a call, for which the executor may start a process."""
    with _starting_processes():
        return executor.submit(function, *arguments)


@contextmanager
def _starting_processes() -> Iterator[None]:
    """What processes that are started within take over from this one.

    They do not run the main module again, as spawned ones otherwise do. They need nothing of it, and it may be what
    cannot be run twice: a script without `if __name__ == "__main__"`, a pipe, a notebook. And from their first moment
    on Ctrl-C, which a terminal tells them of as well, is none of their business.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    before = _without_interrupts()
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _without_interrupts() -> set[signal.Signals | int] | None:
    """Have Ctrl-C wait; returns what waited before, None where the system knows nothing of the kind."""
    if sys.platform == "win32":
        return None
    resource_tracker.ensure_running()  # it is a process too, and ends the waiting once it has been started
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}))
