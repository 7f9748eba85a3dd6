"""CUDA graphs: the kernels of a function are captured once and then launched together.

Each launch of a kernel takes the CPU some microseconds. A step of CycleGAN launches more than a thousand kernels. At
batch size 1 many kernels finish before the next is launched, so a fast GPU waits for the CPU.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from cyclestyle.errors import CommandError, warn

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
    """Captured call of a function: its replay, and the tensors that every replay reads and writes."""

    replay: Callable[[], None]
    inputs: tuple[Tensor, ...]  # read by each replay
    outputs: Any  # result of the call; its tensors are written by each replay


class GraphedCalls:
    """Wraps a function: after a warm-up, calls replay CUDA graphs of the function instead of running its Python code.

    Calls have the arguments `name, parts, *tensors`; `parts` are Python objects that the function needs, such as loss
    functions. Each name has a graph of its own: the first three calls with a name run eagerly, the fourth is captured,
    and this and all later calls replay the graph. If a capture fails, the user is warned, and from then on all calls
    run eagerly.

    A replay ignores `parts` and reads only the contents of tensors. So calls with the same name must pass the same
    `parts`, and tensors of the same shapes. The function may also read and change other device tensors, but their
    addresses must stay the same.

    Args:
        capture: captures the operations of a call.
        function: function to wrap, called as `function(name, parts, *tensors)`. It returns tensors in nested tuples and
            dicts, and must not raise an error in normal operation.
    """

    def __init__(self, capture: GraphCapture, function: Callable[..., Output]) -> None:
        self._capture, self._function = capture, function
        self._gave_up = False
        self._rehearsals: dict[str, int] = {}
        self._graphs: dict[str, CapturedGraph] = {}

    def __call__(self, name: str, parts: Any, *tensors: Tensor) -> Any:
        """Return the result of `function(name, parts, *tensors)`; later calls do not overwrite its tensors.

        For the arguments, see the class.
        """
        call = functools.partial(self._function, name, parts)
        if self._gave_up:
            return call(*tensors)
        if self._rehearsals.get(name, 0) < REHEARSALS:
            self._rehearsals[name] = self._rehearsals.get(name, 0) + 1
            return self._capture.rehearse(functools.partial(call, *tensors))
        graph = self._graphs.get(name) or self._record(name, call, tensors)
        if graph is None:
            return call(*tensors)
        for static, new in zip(graph.inputs, tensors, strict=True):
            assert static.shape == new.shape
            static.copy_(new)
        graph.replay()
        return _cloned(graph.outputs)  # the next replay may overwrite outputs

    def _record(self, name: str, call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> CapturedGraph | None:
        static = tuple(tensor.clone() for tensor in inputs)
        try:
            replay, outputs = self._capture.record(functools.partial(call, *static))
        except RuntimeError as error:
            self._gave_up = True
            self._graphs.clear()
            reason = _root_cause(error)
            warn(f"trainer.cuda_graphs: a step cannot be recorded ({reason}); its kernels are launched one by one")
            return None
        self._graphs[name] = CapturedGraph(replay, static, outputs)
        return self._graphs[name]


def _cloned(value: Any) -> Any:
    """Copy nested tuples and dicts with clones of their tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        items = [_cloned(item) for item in value]
        return value._make(items) if hasattr(value, "_make") else tuple(items)
    return {key: _cloned(item) for key, item in value.items()}


def choose_capture(
    requested: Literal[True, "auto"],
    capture: GraphCapture | None,
    obstacles: Mapping[str, bool],
    *,
    pays: bool,
) -> GraphCapture | None:
    """Choose whether training steps are captured; return the `GraphCapture` to use, or None to run steps eagerly.

    Args:
        requested: value of `trainer.cuda_graphs`. `auto` captures steps if no obstacle applies and `pays` is True; True
            captures them even if `pays` is False.
        capture: object that captures on this device; None if the device cannot capture. If None, the caller must list
            this among the `obstacles`, as one that applies.
        obstacles: reason against capture, as text for an error message -> whether the reason applies to this run.
        pays: whether replaying captured steps is faster than running them eagerly.

    Raises:
        CommandError: `requested` is True, but an obstacle applies.
    """
    reasons = [reason for reason, applies in obstacles.items() if applies]
    if reasons and requested is True:
        raise CommandError(f"trainer.cuda_graphs=true {reasons[0]}: leave it out")
    return capture if (pays or requested is True) and not reasons else None


def _root_cause(error: BaseException) -> str:
    """Return the first line of the message of the earliest error in a chain of exceptions.

    Cleaning up after a failed capture may raise further errors, which hide the earliest one.
    """
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0]
