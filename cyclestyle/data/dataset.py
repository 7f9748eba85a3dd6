"""Training examples as a pure function of the draw number, and the loader that fetches them in time.

Draw n is the n-th pair that a run trains on, counted from 0 over all its steps and processes. Which files, crops and
flips it takes follows from the seed and n alone, so that workers, processes and restarts cannot change it.
"""

import functools
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cyclestyle.data.crop import Crop
from cyclestyle.data.inspection import named, what_is_wrong
from cyclestyle.errors import DataError
from cyclestyle.filesystem.listing import one_line
from cyclestyle.images import decoding
from cyclestyle.images.decoding import ImageError
from cyclestyle.rng import rng_for
from cyclestyle.signals import STOP_SIGNALS

MOST_TRIES = 100  # files in a row that cannot be read, until the disk must be at fault
AHEAD = 2  # batches of each worker that wait in this process; one more is on its way, and one is being made
LISTEN_S = 0.2  # between two looks for a request to stop, while a batch is waited for
PATIENCE_S = 5.0  # for the end of a process that is killed
REMEDY = "lower data.workers, or set data.workers=0 to read in the training process"


class Pair(NamedTuple):
    """One draw: two pictures, uint8 (3, H, W), that have nothing to do with each other."""

    a: Tensor
    b: Tensor
    draw: int
    replaced: Sequence[str] = ()


class Batch(NamedTuple):
    """Several draws: uint8 (N, 3, H, W) each, and the draws' numbers."""

    a: Tensor
    b: Tensor
    draws: list[int]
    replaced: Sequence[str] = ()  # `path: reason` of files that could not be read, whose places others took


class UnpairedDataset:
    """The training examples of two lists of files.

    Each of a's files comes once before any comes twice, in an order shuffled anew every time around; b's come
    uniformly at random (the reference's order). Where a file cannot be read, the draw takes another of its domain,
    chosen at random from the seed and the draw's number; no other draw changes.

    Args:
        a, b: picture files of the two domains.
        crop: what is cut from a picture.
        seed: the run's seed.
        bad_a, bad_b: places in `a` and `b` of files that are not to be read.
        replacing: False makes a file that cannot be read an error.
        background, max_pixels: see `images.read`.
    """

    def __init__(
        self,
        a: list[Path],
        b: list[Path],
        *,
        crop: Crop,
        seed: int,
        bad_a: frozenset[int] = frozenset(),
        bad_b: frozenset[int] = frozenset(),
        replacing: bool = True,
        transparent_as: str = "white",
        max_pixels: int = decoding.MAX_PIXELS,
    ) -> None:
        assert len(bad_a) < len(a)
        assert len(bad_b) < len(b)
        self.a, self.b, self.bad_a, self.bad_b = a, b, bad_a, bad_b
        self.crop, self.seed, self.replacing = crop, seed, replacing
        self.transparent_as, self.max_pixels = transparent_as, max_pixels

    def __len__(self) -> int:
        """Draws in an epoch: one look at every file of the larger domain, on average."""
        return max(len(self.a), len(self.b))

    def files(self, draw: int) -> tuple[Path, Path]:
        """The files that a draw takes, if they can be read."""
        return next(self._tries_a(draw)), next(self._tries_b(draw))

    def __getitem__(self, draw: int) -> Pair:
        a, replaced_a = self._first_readable(self._tries_a(draw), "crop a", draw)
        b, replaced_b = self._first_readable(self._tries_b(draw), "crop b", draw)
        return Pair(a, b, draw, [*replaced_a, *replaced_b])

    def _tries_a(self, draw: int) -> Iterator[Path]:
        epoch, position = divmod(draw, len(self.a))
        slot = int(_shuffled(len(self.a), self.seed, epoch)[position])
        return self._candidates(self.a, slot, bad=self.bad_a, purpose="instead of a", draw=draw)

    def _tries_b(self, draw: int) -> Iterator[Path]:
        slot = int(rng_for(self.seed, "b", draw).integers(len(self.b)))
        return self._candidates(self.b, slot, bad=self.bad_b, purpose="instead of b", draw=draw)

    def _candidates(
        self, files: list[Path], slot: int, *, bad: frozenset[int], purpose: str, draw: int
    ) -> Iterator[Path]:
        """The file in a slot, then those that may take its place: the same whether it is bad before or found bad."""
        if slot not in bad:
            yield files[slot]
        random = rng_for(self.seed, purpose, draw)
        while True:
            slot = int(random.integers(len(files)))
            if slot not in bad:
                yield files[slot]

    def _first_readable(self, tries: Iterator[Path], purpose: str, draw: int) -> tuple[Tensor, list[str]]:
        """The crop of the first picture that can be read, and what is wrong with the files before it."""
        wrong: dict[Path, str] = {}
        for file in itertools.islice(tries, MOST_TRIES):
            try:
                return self._crop_of(file, rng_for(self.seed, purpose, draw)), list(wrong.values())
            except Exception as error:  # of a decoder, or of this package: it costs the picture and not the run
                if not self.replacing:
                    raise what_is_wrong(file, error) from None
                wrong[file] = str(what_is_wrong(file, error))
        reason = list(wrong.values())[-1]
        raise DataError(f"{MOST_TRIES} tries at random found no picture that can be read; the last: {reason}")

    def _crop_of(self, file: Path, random: np.random.Generator) -> Tensor:
        image: object = decoding.read(file, background=self.transparent_as, max_pixels=self.max_pixels)
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            raise ImageError(file, f"decoded to {getattr(image, 'mode', type(image).__name__)}, not RGB", False)
        pixels = self.crop.random(image, random)
        shape = (3, self.crop.crop_size, self.crop.crop_size)
        if pixels.dtype != torch.uint8 or pixels.shape != shape:
            found = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ImageError(file, f"decoded to {found}, not {torch.uint8} {shape}", False)
        return pixels


@functools.lru_cache(maxsize=2)  # consecutive draws ask for the same order; across its end for two
def _shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    return rng_for(seed, "a", epoch).permutation(count)


def batches(
    draws: UnpairedDataset,
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
    """This process's share of every step's global batch, from step `start` up to but not including `stop`.

    Step t is made of draws t * batch_size and the batch_size - 1 that follow; position s of them belongs to rank
    s mod ranks.

    Args:
        workers: processes that read ahead; 0 reads in this one. They end with the generator.
        pin: page-lock the memory, which makes copies to a GPU faster.
        stopping: asked while a batch is waited for; if it returns True, there is none, and no other.

    Raises:
        DataError: pictures that cannot be read, when their batch is asked for, or a worker that was killed.
    """
    share = _Share(draws, batch_size, rank, ranks)
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


class _Share(NamedTuple):
    """The draws of one process."""

    draws: UnpairedDataset
    batch_size: int
    rank: int
    ranks: int

    def batch(self, step: int) -> Batch:
        first = step * self.batch_size
        pairs = [self.draws[draw] for draw in range(first + self.rank, first + self.batch_size, self.ranks)]
        return Batch(
            torch.stack([pair.a for pair in pairs]),
            torch.stack([pair.b for pair in pairs]),
            [pair.draw for pair in pairs],
            [line for pair in pairs for line in pair.replaced],
        )


class _Head(NamedTuple):
    """The part of a batch that a worker sends before the pixels."""

    shapes: tuple[torch.Size, torch.Size]
    draws: list[int]
    replaced: Sequence[str]


class _Workers:
    """Processes that read batches ahead, each its own steps: step i of n workers is that of worker i mod n.

    Each sends what it has read through a pipe of its own, in order, and a thread takes it out. So a worker that ends
    in whatever way is the end of its pipe, and nothing is kept in shared memory, of which containers have little. A
    context, at whose end the workers are killed: they hold nothing that could be lost.
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
            failed = DataError(
                f"cannot start data worker {len(self._workers) + 1}: {error.strerror or error}: {REMEDY}"
            )
        else:
            for worker in self._workers:  # not before: a process that has threads of its own is not to be forked
                worker.receive()
            return self
        raise failed

    def __exit__(self, *_: object) -> None:
        self._end()

    def batch(self, index: int, stopping: Callable[[], bool]) -> Batch | None:
        """The batch of the step of this index; None if a stop was requested before it came."""
        worker = self._workers[index % self._count]
        while True:
            for one in self._workers:
                if one.process.exitcode:
                    raise DataError(_how_it_ended(one.process.pid, one.process.exitcode))
            try:
                received = worker.received.get(timeout=LISTEN_S)
            except queue.Empty:
                if stopping():
                    return None
                continue
            if received is None:
                worker.process.join(PATIENCE_S)  # it takes a moment where it is still dying
                raise DataError(_how_it_ended(worker.process.pid, worker.process.exitcode))
            if isinstance(received, Exception):
                raise received
            return received

    def _end(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.end()


class _Worker:
    """One process that reads, and the thread that receives from it.

    Attributes:
        received: its batches in order; an error, or None at the end of its pipe, is the last entry.
    """

    def __init__(self, share: _Share, steps: range, *, pin: bool) -> None:
        context = multiprocessing.get_context()
        self._pin = pin
        self._pipe, sending = context.Pipe(duplex=False)
        self._thread: threading.Thread | None = None
        self.received: queue.Queue[Batch | Exception | None] = queue.Queue(AHEAD)
        self.process = context.Process(target=_work, args=(share, steps, sending, os.getpid()), daemon=True)
        try:
            with _signals_held():
                self.process.start()
        except OSError:
            self._pipe.close()
            raise
        finally:
            sending.close()  # the worker alone has it now, so that its end is the end of the pipe

    def receive(self) -> None:
        """Begin to take batches out of the pipe."""
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Let go of everything, once the process has been killed."""
        self.process.join(PATIENCE_S)
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
        except (EOFError, OSError):  # the latter amid a batch
            self.received.put(None)
        except Exception as error:  # such as no memory for the batch
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
    """The whole life of a worker; errors are sent as text, which always arrives."""
    _leave_signals_to_the_trainer(trainer)
    torch.set_num_threads(1)
    with pipe:
        try:
            for step in steps:
                batch = share.batch(step)
                pipe.send(_Head((batch.a.shape, batch.b.shape), batch.draws, batch.replaced))
                for pixels in (batch.a, batch.b):
                    pipe.send_bytes(pixels.view(-1).numpy().data)
        except BrokenPipeError:  # the trainer has gone
            return
        except DataError as error:
            pipe.send(str(error))
        except Exception as error:
            text = f"data worker {os.getpid()} failed at step {step + 1} ({named(error)}): data.workers=0 shows where"
            pipe.send(one_line(text))


def _how_it_ended(pid: int | None, code: int | None) -> str:
    """The message for a worker that did not end by itself; multiprocessing gives signals as negative codes."""
    if code is None:
        return f"data worker {pid} sends nothing more: {REMEDY}"
    if code >= 0:
        return f"data worker {pid} ended with code {code}: find the reason with data.workers=0"
    name = signal.Signals(-code).name
    cause = "out of memory? " if name == "SIGKILL" else ""
    return f"data worker {pid} was killed by {name}: {cause}{REMEDY}"


@contextmanager
def _signals_held() -> Iterator[None]:
    """Have requests to stop wait while a process is started, which takes this over: its own rules come in time."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave_signals_to_the_trainer(trainer: int) -> None:
    """Ctrl-C, `timeout` and schedulers reach a whole group of processes; the trainer still needs data for its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere there is no telling who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_leave_when_told, args=(trainer,), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with_the_trainer, daemon=True).start()


def _leave_when_told(trainer: int) -> None:
    """The trainer, by its process id, ends workers that it could not end otherwise by SIGTERM."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def _leave_with_the_trainer() -> None:
    """Leave when the trainer has been killed, whatever is being read or waited for."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(0)
