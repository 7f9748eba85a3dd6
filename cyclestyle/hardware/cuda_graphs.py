"""CUDA graphs: the kernels of a function are captured once and then launched together.

Each launch of a kernel takes the CPU some microseconds. A step of CycleGAN launches more than a thousand kernels. At
batch size 1 many kernels finish before the next is launched, so a fast GPU waits for the CPU.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cyclestyle.errors import CommandError, warn

Tensors = dict[str, Tensor]
Output = TypeVar("Output")

REHEARSALS = 3  # warm-up calls before the capture: libraries choose kernels, the optimizer allocates its moments


class GraphCapture(Protocol):
    """Captures the operations that functions run on the device, so that the operations can be replayed."""

    def rehearse(self, run: Callable[[], Output]) -> Output:
        """Run a function eagerly, as a warm-up before its capture; return its result."""

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        """Capture the operations of a function without executing them.

        Returns:
            (function that replays the operations, result of `run`). Each replay writes to the tensors in this result;
            the next replay of any captured function may overwrite them.

        Raises:
            RuntimeError: an operation cannot be captured.
        """


class CudaGraphCapture:
    """Captures CUDA graphs on an NVIDIA GPU.

    All graphs share a memory pool, which nothing else uses while graphs exist. Replay the graphs in the order in which
    they were captured, never two concurrently.
    """

    def __init__(self, device: torch.device) -> None:
        # CUDA cannot capture on the default stream.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory = torch.cuda.graph_pool_handle()

    def rehearse(self, run: Callable[[], Output]) -> Output:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = run()
        current.wait_stream(self._stream)
        return outputs

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(self._stream),  # restores the current stream even if the capture fails to begin
            # thread_local: other threads pin memory for the next batches meanwhile, which must not abort the capture.
            torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"),
        ):
            outputs = run()
        return graph.replay, outputs


class CapturedGraph(NamedTuple):
    """Replay of a captured function, and the tensors that hold the function's arguments and results."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]  # read by each replay
    outputs: Tensors  # written by each replay


class GraphedCalls:
    """Calls each function eagerly three times; captures it as a CUDA graph at the fourth call, then replays the graph.

    A function may read and change device tensors whose addresses do not change. A value that differs between calls must
    be an argument of the function or the content of such a tensor, since a replay runs no Python code. If a capture
    fails, the user is warned, and from then on all functions are called eagerly.
    """

    def __init__(self, capture: GraphCapture) -> None:
        self._capture = capture
        self._gave_up = False
        self._rehearsals: dict[str, int] = {}
        self._graphs: dict[str, CapturedGraph] = {}

    def __call__(self, name: str, function: Callable[..., Tensors | None], *inputs: Tensor) -> Tensors | None:
        """Return the result of `function(*inputs)`, in tensors that later calls do not overwrite.

        Args:
            name: name of the function, the same at every call.
            function: function that returns a dict of tensors, or None if it skipped an update. It must not return
                None while it is captured.
            inputs: tensors of the same shapes at every call.
        """
        if self._gave_up:
            return function(*inputs)
        if self._rehearsals.get(name, 0) < REHEARSALS:
            self._rehearsals[name] = self._rehearsals.get(name, 0) + 1
            return self._capture.rehearse(functools.partial(function, *inputs))
        graph = self._graphs.get(name) or self._record(name, function, inputs)
        if graph is None:
            return function(*inputs)
        for static, new in zip(graph.inputs, inputs, strict=True):
            assert static.shape == new.shape
            static.copy_(new)
        graph.replay()
        return {key: output.clone() for key, output in graph.outputs.items()}  # the next replay may overwrite outputs

    def forget(self) -> None:
        """Drop all graphs and start again with warm-up calls; needed if tensors that the graphs use are replaced."""
        self._graphs.clear()
        self._rehearsals.clear()

    def _record(
        self, name: str, function: Callable[..., Tensors | None], inputs: tuple[Tensor, ...]
    ) -> CapturedGraph | None:
        static = tuple(tensor.clone() for tensor in inputs)
        try:
            replay, outputs = self._capture.record(functools.partial(function, *static))
        except RuntimeError as error:
            self._gave_up = True
            self.forget()
            reason = _root_cause(error)
            warn(f"trainer.cuda_graphs: a step cannot be recorded ({reason}); its kernels are launched one by one")
            return None
        assert outputs is not None
        self._graphs[name] = CapturedGraph(replay, static, outputs)
        return self._graphs[name]


def call_directly(name: str, function: Callable[..., Tensors | None], *inputs: Tensor) -> Tensors | None:
    """Return the result of `function(*inputs)`; used instead of `GraphedCalls` if nothing is captured."""
    return function(*inputs)


def choose_capture(
    requested: Literal[True, "auto"],
    capture: GraphCapture | None,
    obstacles: Mapping[str, bool],
    *,
    pays: bool,
) -> GraphCapture | None:
    """Choose whether training steps are captured; return the `GraphCapture` to use, or None to run steps eagerly.

    Args:
        requested: value of `trainer.cuda_graphs`; `auto` captures steps if no obstacle applies and `pays` is True.
        capture: object that captures on this device; None if the device does not support capture.
        obstacles: keys are reasons against capture, worded for the error text; values are whether the reason applies.
        pays: whether replaying captured steps is faster than running them eagerly.

    Raises:
        CommandError: `requested` is True, but an obstacle applies.
    """
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if reasons and requested is True:
        raise CommandError(f"trainer.cuda_graphs=true {reasons[0]}: leave it out")
    return capture if (pays or requested is True) and not reasons else None


def _root_cause(error: BaseException) -> str:
    """Return the first line of the message of the error that came first; cleaning up after it may raise others."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
