"""CUDA graphs: the kernels of a function are recorded once, and from then on launched all together.

Launching a kernel takes the processor some microseconds, whatever the kernel does. A step of CycleGAN has more than a
thousand, and at batch 1 many are over sooner than the next is launched, so that a fast GPU waits for its host.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cyclestyle.errors import CommandError, warn

Tensors = dict[str, Tensor]
Output = TypeVar("Output")

REHEARSALS = 3  # calls before the recording, in which libraries look for their fastest kernels and moments are made


class GraphCapture(Protocol):
    """Someone who can compute again what a function computed."""

    def rehearse(self, run: Callable[[], Output]) -> Output:
        """Run a function that is to be recorded later, as it is."""

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        """Run a function without computing anything: only what it would compute is noted.

        Returns:
            What computes it, each time that it is called, and the tensors that then hold the results, until the next
            replay of any recording.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """


class CudaGraphCapture:
    """Records on an NVIDIA GPU.

    All recordings use the same memory, which is theirs alone as long as they live: they are to be replayed in the order
    in which they were made, never two at a time.
    """

    def __init__(self, device: torch.device) -> None:
        # Nothing can be recorded on the stream that is used by default.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def rehearse(self, run: Callable[[], Output]) -> Output:
        usual = torch.cuda.current_stream()
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            made = run()
        usual.wait_stream(self._stream)
        return made

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self._stream),  # which is left again even where a recording fails to begin
            # Threads that pin the next batches' memory meanwhile would otherwise spoil the recording.
            torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"),
        ):
            made = run()
        return graph.replay, made


class CapturedGraph(NamedTuple):
    """A function that is replayed."""

    replay: Callable[[], None]
    given: tuple[Tensor, ...]  # where it reads its arguments
    made: Tensors  # where its results stand after a replay


class GraphedCalls:
    """Calls functions: the fourth call of each is recorded and replayed from then on.

    They may read and change any tensor on the device, as long as that stays in its place: what is to differ from call
    to call has to be an argument or the content of such a tensor, since Python is not asked again after the recording.
    Where one cannot be recorded, a warning says so and all are called as they are.
    """

    def __init__(self, recorder: GraphCapture) -> None:
        self._recorder = recorder
        self._gave_up = False
        self._rehearsals: dict[str, int] = {}
        self._recorded: dict[str, CapturedGraph] = {}

    def __call__(self, name: str, function: Callable[..., Tensors | None], *given: Tensor) -> Tensors | None:
        """What a function makes of these tensors, in tensors of its own.

        Args:
            name: of the function, by which it is known again.
            function: gives named tensors; None, if anything was left out, from functions that are not to be recorded.
            given: of the same shapes at every call.
        """
        if self._gave_up:
            return function(*given)
        if self._rehearsals.get(name, 0) < REHEARSALS:
            self._rehearsals[name] = self._rehearsals.get(name, 0) + 1
            return self._recorder.rehearse(functools.partial(function, *given))
        recorded = self._recorded.get(name) or self._record(name, function, given)
        if recorded is None:
            return function(*given)
        for held, new in zip(recorded.given, given, strict=True):
            assert held.shape == new.shape
            held.copy_(new)
        recorded.replay()
        return {key: made.clone() for key, made in recorded.made.items()}  # the next replay may overwrite them

    def forget(self) -> None:
        """Begin anew, with rehearsals: tensors have been replaced that recordings read or change."""
        self._recorded.clear()
        self._rehearsals.clear()

    def _record(
        self, name: str, function: Callable[..., Tensors | None], given: tuple[Tensor, ...]
    ) -> CapturedGraph | None:
        held = tuple(tensor.clone() for tensor in given)
        try:
            replay, made = self._recorder.record(functools.partial(function, *held))
        except RuntimeError as error:
            self._gave_up = True
            self.forget()
            reason = _first_line(error)
            warn(f"trainer.cuda_graphs: a step cannot be recorded ({reason}); its kernels are launched one by one")
            return None
        assert made is not None
        self._recorded[name] = CapturedGraph(replay, held, made)
        return self._recorded[name]


def call_directly(name: str, function: Callable[..., Tensors | None], *given: Tensor) -> Tensors | None:
    """What `GraphedCalls` does, without any recording."""
    return function(*given)


def choose_capture(
    requested: bool | Literal["auto"],
    capture: GraphCapture | None,
    obstacles: Mapping[str, bool],
    *,
    pays: bool,
) -> GraphCapture | None:
    """The capture to record steps with; None where they are not recorded.

    Args:
        requested: the value of `trainer.cuda_graphs`; with `auto` steps are recorded where that is possible and `pays`.
        capture: of this device; None where it has none.
        obstacles: reasons against recording, and whether they apply.

    Raises:
        CommandError: it is requested and something is in the way.
    """
    if requested is False:
        return None
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if reasons and requested is True:
        raise CommandError(f"trainer.cuda_graphs=true {reasons[0]}: leave it out")
    return capture if (pays or requested is True) and not reasons else None


def _first_line(error: BaseException) -> str:
    """Of the error that came first: what is left open by it fails again when it is closed."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
