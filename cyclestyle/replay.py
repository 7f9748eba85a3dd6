"""CUDA graphs: the kernels of a function are recorded once, and from then on launched all together.

Launching a kernel takes the processor some microseconds, whatever the kernel does. A step of CycleGAN has more than a
thousand, and at batch 1 many are over sooner than the next is launched, so that a fast GPU waits for its host.
"""

import functools
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from cyclestyle.errors import warn

Tensors = dict[str, Tensor]
Made = TypeVar("Made")

REHEARSALS = 3  # calls before the recording, in which libraries look for their fastest kernels and moments are made


class Recorder(Protocol):
    """Someone who can compute again what a function computed."""

    def rehearse(self, run: Callable[[], Made]) -> Made:
        """Run a function that is to be recorded later, as it is."""

    def record(self, run: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        """Run a function without computing anything: only what it would compute is noted.

        Returns:
            What computes it, each time that it is called, and the tensors that hold the results from then on.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """


class CudaGraphs:
    """Records on an NVIDIA GPU.

    All recordings use the same memory for what they do not return: they are to be replayed in the order in which they
    were made, never two at a time.
    """

    def __init__(self, device: torch.device) -> None:
        # Nothing can be recorded on the stream that is used by default.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def rehearse(self, run: Callable[[], Made]) -> Made:
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            made = run()
        usual.wait_stream(self._stream)
        return made

    def record(self, run: Callable[[], Made]) -> tuple[Callable[[], None], Made]:
        graph = torch.cuda.CUDAGraph()
        # Threads that pin the next batches' memory meanwhile would otherwise spoil the recording.
        with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
            made = run()
        return graph.replay, made


class Replay:
    """A function that is recorded at its fourth call and replayed from then on.

    It may read and change any tensor on the device, as long as that stays in its place: what is to differ from call to
    call has to be an argument or the content of such a tensor, since Python is not asked again after the recording.
    Where it cannot be recorded, a warning says so and it is called as it is.

    Args:
        function: of tensors that have the same shapes at every call, to named tensors, or to None if it did nothing;
            that is for the host to decide, and nothing that a function which is recorded may do.
        recorder: records it.
    """

    def __init__(self, function: Callable[..., Tensors | None], recorder: Recorder) -> None:
        self._function, self._recorder = function, recorder
        self._rehearsals = 0
        self._replay: Callable[[], None] | None = None
        self._can_be_recorded = True
        self._given: tuple[Tensor, ...] = ()
        self._made: Tensors = {}

    def __call__(self, *given: Tensor) -> Tensors | None:
        """What the function makes of these tensors, in tensors of its own."""
        if self._can_be_recorded and self._replay is None:
            if self._rehearsals < REHEARSALS:
                self._rehearsals += 1
                return self._recorder.rehearse(functools.partial(self._function, *given))
            self._record(given)
        if self._replay is None:
            return self._function(*given)
        for held, new in zip(self._given, given, strict=True):
            held.copy_(new)
        self._replay()
        return {name: made.clone() for name, made in self._made.items()}

    def _record(self, given: tuple[Tensor, ...]) -> None:
        self._given = tuple(tensor.clone() for tensor in given)
        try:
            self._replay, made = self._recorder.record(functools.partial(self._function, *self._given))
        except RuntimeError as error:
            self._can_be_recorded, self._given = False, ()
            reason = str(error).partition("\n")[0]
            warn(f"trainer.cuda_graphs: a step cannot be recorded ({reason}); its kernels are launched one by one")
        else:
            assert made is not None
            self._made = made
