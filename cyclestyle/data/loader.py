"""Data loader: worker processes prefetch the batches of one rank and send them to the trainer through pipes."""

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from cyclestyle.data.dataset import Batch, UnpairedDataset
from cyclestyle.data.inspection import with_type_name
from cyclestyle.errors import DataError, warn
from cyclestyle.filesystem.listing import one_line
from cyclestyle.signals import STOP_SIGNALS

AHEAD = 2  # maximum number of batches queued here per worker; one more is in the pipe, another is being read
POLL_S = 0.2  # seconds between two checks for a stop request while waiting for a batch
JOIN_TIMEOUT_S = 5.0  # maximum seconds to wait for a killed process to exit
REMEDY = "lower data.workers, or set data.workers=0 to read in the training process"


def batches(
    dataset: UnpairedDataset,
    *,
    batch_size: int,
    start: int,
    stop: int,
    rank: int,
    ranks: int,
    workers: int,
    pin: bool,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[Batch, None, None]:
    """Yield the pairs of the rank `rank`, one batch for each step from `start` (inclusive) to `stop` (exclusive).

    All ranks together get the global batch of the step. The global batch of step t has `batch_size` pairs, with sample
    indices from t * batch_size to (t + 1) * batch_size - 1. Its pair number s, counted from 0, belongs to the rank
    s mod `ranks`.

    Args:
        workers: number of processes that prefetch batches until the generator is closed; with 0, the calling process
            reads the images.
        pin: yield batches in page-locked memory, for faster copies to a GPU.
        stopping: function that is polled during the wait for a batch; if it returns True, no further batch is yielded.

    Raises:
        DataError: an image of the requested batch is unreadable and was not replaced, or a worker failed or was killed.
    """
    share = _Share(dataset, batch_size, rank, ranks)
    steps = range(start, stop)
    if not workers:
        for step in steps:
            batch = share.batch(step)
            yield batch._replace(a=batch.a.pin_memory(), b=batch.b.pin_memory()) if pin else batch
        return
    with _Workers(share, steps, workers, pin=pin) as reading:
        for index in range(len(steps)):
            fetched = reading.batch(index, stopping)
            if fetched is None:
                return
            yield fetched


def warn_once(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield `batches` unchanged; warn once about each unreadable file that was replaced by another."""
    warned: set[str] = set()
    for batch in batches:
        for line in batch.replaced:
            if line not in warned:
                warn(f"{line}; another picture takes its place")
        warned.update(batch.replaced)
        yield batch


class _Share(NamedTuple):
    """Reader of one rank's batches; `batch_size` counts the pairs of all ranks in one step."""

    dataset: UnpairedDataset
    batch_size: int
    rank: int
    ranks: int

    def batch(self, step: int) -> Batch:
        first = step * self.batch_size
        pairs = [self.dataset[draw] for draw in range(first + self.rank, first + self.batch_size, self.ranks)]
        return Batch(
            torch.stack([pair.a for pair in pairs]),
            torch.stack([pair.b for pair in pairs]),
            [pair.draw for pair in pairs],
            [line for pair in pairs for line in pair.replaced],
        )


class _Head(NamedTuple):
    """Header that a worker sends before the pixels of a `Batch`: the shapes of `a` and `b`, and the other fields."""

    shapes: tuple[torch.Size, torch.Size]
    draws: list[int]
    replaced: Sequence[str]


class _Workers:
    """Context manager that runs `count` worker processes, which prefetch the batches of `steps`.

    Worker i, counted from 0, reads the batches of the steps `steps[i::count]`.

    Each worker sends its batches in order through its own pipe, and one thread per worker receives them in the parent
    process. The pipe closes when its worker exits for any reason. Shared memory is not used, as it is scarce in
    containers. On exit from the `with` block, the workers are killed; they hold no data that could be lost.
    """

    def __init__(self, share: _Share, steps: range, count: int, *, pin: bool) -> None:
        self._share, self._steps, self._count, self._pin = share, steps, count, pin
        self._workers: list[_Worker] = []

    def __enter__(self) -> "_Workers":
        try:
            for index in range(self._count):
                self._workers.append(_Worker(self._share, self._steps[index :: self._count], pin=self._pin))
        except OSError as error:
            self._end()
            start_error = DataError(
                f"cannot start data worker {len(self._workers) + 1}: {error.strerror or error}: {REMEDY}"
            )
        else:
            for worker in self._workers:  # threads start after all forks: a process with threads must not be forked
                worker.receive()
            return self
        raise start_error

    def __exit__(self, *_: object) -> None:
        self._end()

    def batch(self, index: int, stopping: Callable[[], bool]) -> Batch | None:
        """Return the batch of step `steps[index]`; None if `stopping` returned True before the batch arrived."""
        worker = self._workers[index % self._count]
        while True:
            for each in self._workers:
                if each.process.exitcode:
                    raise DataError(_exit_message(each.process.pid, each.process.exitcode))
            try:
                received = worker.received.get(timeout=POLL_S)
            except queue.Empty:
                if stopping():
                    return None
                continue
            if received is None:
                worker.process.join(JOIN_TIMEOUT_S)  # the pipe closes shortly before the process has exited
                raise DataError(_exit_message(worker.process.pid, worker.process.exitcode))
            if isinstance(received, Exception):
                raise received
            return received

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()


class _Worker:
    """One worker process, and the thread that receives its batches.

    Attributes:
        received: queue of batches in order. An exception in the queue reports a failure; None reports a closed pipe.
    """

    def __init__(self, share: _Share, steps: range, *, pin: bool) -> None:
        context = multiprocessing.get_context()
        self._pin = pin
        self._pipe, sending = context.Pipe(duplex=False)
        self._thread: threading.Thread | None = None
        self.received: queue.Queue[Batch | Exception | None] = queue.Queue(AHEAD)
        self.process = context.Process(target=_work, args=(share, steps, sending, os.getpid()), daemon=True)
        try:
            with _stop_signals_blocked():
                self.process.start()
        except OSError:
            self._pipe.close()
            raise
        finally:
            sending.close()  # now only the worker has the sending end open: the pipe closes when it exits

    def receive(self) -> None:
        """Start the thread that moves batches from the pipe to `received`."""
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Release the thread, the pipe and the process; call this after the process has been killed."""
        self.process.join(JOIN_TIMEOUT_S)
        while self._thread is not None and self._thread.is_alive() and self.process.exitcode is not None:
            with suppress(queue.Empty):
                self.received.get_nowait()
            self._thread.join(0.01)
        if self._thread is None or not self._thread.is_alive():
            self._pipe.close()
        if self.process.exitcode is not None:
            self.process.close()

    def _receive(self) -> None:
        try:
            while True:
                self.received.put(self._next())
        except (EOFError, OSError):  # the pipe was closed between two batches or within a batch
            self.received.put(None)
        except Exception as error:  # for example, too little memory for the batch
            self.received.put(error)

    def _next(self) -> Batch | DataError:
        head = self._pipe.recv()
        if isinstance(head, str):
            return DataError(head)
        a, b = (torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin) for shape in head.shapes)
        for pixels in (a, b):
            self._pipe.recv_bytes_into(pixels.view(-1).numpy())
        return Batch(a, b, head.draws, head.replaced)


def _work(share: _Share, steps: range, pipe: "Connection[object, object]", trainer: int) -> None:
    """Main function of a worker: read the batches of `steps` and send them, or the text of an error, through `pipe`.

    Args:
        share: reader of the batches of this worker's rank.
        trainer: process id of the training process.
    """
    _ignore_stop_signals(trainer)
    torch.set_num_threads(1)
    with pipe:
        try:
            for step in steps:
                batch = share.batch(step)
                pipe.send(_Head((batch.a.shape, batch.b.shape), batch.draws, batch.replaced))
                for pixels in (batch.a, batch.b):
                    pipe.send_bytes(pixels.view(-1).numpy().data)
        except BrokenPipeError:  # the trainer has exited
            pass
        except DataError as error:
            pipe.send(str(error))
        except Exception as error:
            reason = with_type_name(error)
            text = f"data worker {os.getpid()} failed at step {step + 1} ({reason}): data.workers=0 shows where"
            pipe.send(one_line(text))
    # Python's shutdown fails in a process that was forked in a thread of a pool: it joins all threads of the pool.
    os._exit(0)


def _exit_message(pid: int | None, code: int | None) -> str:
    """Return the error text for the worker with process id `pid`, which stopped sending batches too early.

    `code` is its exit code: -n if signal n killed it, None if it has not exited.
    """
    if code is None:
        return f"data worker {pid} sends no more data: {REMEDY}"
    if code >= 0:
        return f"data worker {pid} ended with code {code}: find the reason with data.workers=0"
    name = signal.Signals(-code).name
    cause = "out of memory? " if name == "SIGKILL" else ""
    return f"data worker {pid} was killed by {name}: {cause}{REMEDY}"


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Context manager that blocks `STOP_SIGNALS`; they are also blocked in a worker started in the `with` block."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_stop_signals(trainer: int) -> None:
    """Make this worker process ignore `STOP_SIGNALS`, except that a SIGTERM from the process `trainer` ends it.

    `trainer` is the process id of the training process. Stop signals can reach the whole process group, but the trainer
    still needs batches to finish its step. On systems that do not report the sender of a signal, any SIGTERM ends the
    worker. The worker also ends when the trainer exits.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # systems without it cannot report the sender of a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=(trainer,), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_with_trainer, daemon=True).start()


def _exit_on_sigterm_from(trainer: int) -> None:
    """Exit on a SIGTERM from the process with id `trainer`; ignore a SIGTERM from any other process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def _exit_with_trainer() -> None:
    """Wait until the trainer (the parent process) exits; then end this worker, even if its other threads are busy."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(0)
