"""Updates of parameters: micro-batches, backward passes, a check for values that are not finite, and the optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from cyclestyle.errors import CommandError, DivergedError
from cyclestyle.hardware.device import Hardware
from cyclestyle.monitor.logger import Phase
from cyclestyle.objectives.step import Part, PartResult, Scalars, UpdateResult, UpdateSkipped
from cyclestyle.training.nonfinite import NonFiniteDetector, NotFinite
from cyclestyle.training.optimization import Optimizers

SKIPS = 10  # number of consecutive skipped steps at which training counts as diverged
LARGE = 2**16  # fewest pixels per image for which memory is trimmed; below this, trimming costs too much time


class Updater:
    """Trains network weights: computes gradients and calls optimizers; implements the protocol `Update`.

    Args:
        optimizers: one optimizer for each update of the objective.
        hardware: device, precision, and the ranks that share the work.
        accumulate: number of micro-batches into which each rank splits its share of a batch. Micro-batches are computed
            one after the other, which saves memory.
        on_nonfinite: response to a loss or gradient that is not finite. `stop` ends training before the next periodic
            task, so that nothing is saved or logged. `skip` leaves out this update and the rest of the step; it has to
            wait for the device at every update.
        clip_norm: largest total norm of the gradients of an update; larger gradients are scaled down to it. None leaves
            gradients unchanged.

    Raises:
        CommandError: `clip_norm` is not a positive number.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        hardware: Hardware,
        *,
        accumulate: int = 1,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        clip_norm: float | None = None,
    ) -> None:
        if clip_norm is not None and not 0 < clip_norm < float("inf"):
            raise CommandError(f"trainer.clip_norm={clip_norm:g}: give a number above 0, or null")
        self.optimizers, self.accumulate, self.clip_norm = optimizers, accumulate, clip_norm
        self.hardware, self.world, self.scaler = hardware, hardware.world, hardware.scaler()
        self.skips_nonfinite, self._skipped_in_a_row = on_nonfinite == "skip", 0
        self.detectors = {name: NonFiniteDetector(hardware.device) for name in optimizers.names}
        self.has_changed = False  # whether an update of the present step has changed parameters; unset by graphs
        # Number of steps done, on the device, where a captured graph can read it.
        self._step = torch.zeros((), dtype=torch.int64, device=hardware.device)

    def __call__(self, name: str, parts: Sequence[Part], *tensors: Tensor) -> UpdateResult:
        """Compute the losses of an update, back-propagate them, and change the parameters.

        Args:
            name: name of the update and of its optimizer.
            parts: functions that compute the losses; each is called once for each micro-batch.
            tensors: arguments of every function in `parts`; they are split along the first dimension into
                micro-batches.

        Returns:
            Losses and scores by name, averaged over the micro-batches, and the images that the parts returned, by name,
            for the whole of `tensors`.

        Raises:
            UpdateSkipped: a loss or gradient was not finite on any rank, and `on_nonfinite` is `skip`.
        """
        self.optimizers[name].zero_grad()  # a failed graph capture leaves gradients behind
        micro_batches = list(zip(*(tensor.chunk(self.accumulate) for tensor in tensors), strict=True))
        calls = [(part, micro_batch) for micro_batch in micro_batches for part in parts]
        results: list[PartResult] = []
        for count, (part, micro_batch) in enumerate(calls, start=1):
            with self.world.accumulating(more_to_come=count < len(calls)):
                results.append(self._compute(part, micro_batch))
            if count % len(parts):  # another part of the same micro-batch follows
                self._trim_memory(micro_batch)
        losses = _means([result.losses for result in results])
        if not self._change_parameters(name, losses):
            raise UpdateSkipped
        scores = _means([result.scores for result in results])
        return UpdateResult(losses | scores, _joined([result.images for result in results]))

    def begin_step(self, step: int, *, factor: float) -> None:
        """Prepare the updates of one step.

        Args:
            step: number of steps done.
            factor: factor of the schedule for the learning rates.
        """
        self.optimizers.set_rates(factor)
        self._step.fill_(step)
        self.has_changed = False

    def end_step(self, *, skipped: bool) -> None:
        """Update the number of consecutive skipped steps at the end of a step.

        Raises:
            DivergedError: `SKIPS` consecutive steps, up to this one, were skipped.
        """
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if not skipped:
            return
        if self._skipped_in_a_row == SKIPS and (bad := self._first_bad()) is not None:
            raise DivergedError(
                f"{_divergence_message(bad)}; it is the last of {SKIPS} in a row that were skipped", step=bad.step
            )
        for detector in self.detectors.values():
            detector.clear()

    def check_finite(self, step: int) -> None:
        """Wait for the device and check that training has not diverged; all ranks must call this together.

        Args:
            step: number of steps done, for the error message.

        Raises:
            DivergedError: a loss or gradient of an update that was not skipped was not finite, or gradients overflow in
                fp16 even at the lowest gradient scale.
        """
        if not self.skips_nonfinite and (first := self._first_bad()) is not None:  # `end_step` checks skipped steps
            raise DivergedError(_divergence_message(first), step=first.step)
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise DivergedError(
                f"the gradients overflow in fp16 at any scale, last at step {step}: set "
                f"trainer.precision=bf16 or fp32, or a smaller optimizer.lr"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizers, the gradient scale and the number of consecutive skipped steps."""
        return {
            "optimizers": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; further keys in `state` are ignored."""
        self.optimizers.load_state_dict(state["optimizers"])
        if state["scaler"]:  # empty for a run without a gradient scaler
            self.scaler.load_state_dict(state["scaler"])
        self._skipped_in_a_row = state["skipped_in_a_row"]

    def _compute(self, part: Part, micro_batch: Sequence[Tensor]) -> PartResult:
        """Call `part`, which computes losses of an update, for one micro-batch, and back-propagate these losses.

        Return the results of `part`, detached.
        """
        with record_function(Phase.FORWARD):
            losses, scores, images = part(*micro_batch)
        with record_function(Phase.BACKWARD):
            total = torch.stack(list(losses.values())).sum() / self.accumulate
            torch.autograd.backward(self.scaler.scale(total))
        return PartResult(
            {name: loss.detach() for name, loss in losses.items()},
            {name: score.detach() for name, score in scores.items()},
            {name: image.detach() for name, image in images.items()},
        )

    def _trim_memory(self, micro_batch: Sequence[Tensor]) -> None:
        """If the images of the micro-batch are large, return freed memory to the system.

        Without this, the freed blocks would stay allocated in sizes that the next computation of losses cannot use.
        """
        if micro_batch[0].dim() == 4 and micro_batch[0].shape[-2] * micro_batch[0].shape[-1] >= LARGE:
            self.hardware.trim_memory()

    def _change_parameters(self, name: str, losses: Scalars) -> bool:
        """Let the optimizer of update `name` change its parameters.

        The change is left out if `on_nonfinite` is `skip` and a loss or gradient is not finite on any rank. In fp16,
        the gradient scaler checks the gradients instead: for each value of `on_nonfinite`, it leaves out the change if
        they overflow.

        Args:
            losses: losses averaged over the micro-batches of this update.

        Returns:
            False if the change was left out because of `on_nonfinite`.
        """
        optimizer, parameters = self.optimizers[name], self.optimizers.parameters(name)
        with record_function(Phase.OPTIMIZER):
            self.world.average_gradients(parameters)
            gradients = [p.grad for p in parameters if p.grad is not None]
            # In fp16, the scaler itself leaves out updates whose gradients overflow, and then lowers its scale.
            checked = [] if self.scaler.is_enabled() else gradients
            bad = self.detectors[name].watch(self._step, losses, checked)
            applied = not (self.skips_nonfinite and self.world.any(bool(bad.item())))
            if applied:
                if self.clip_norm is not None:
                    self.scaler.unscale_(optimizer)  # not for a skipped update: the scaler allows one call per step
                    nn.utils.clip_grad_norm_(parameters, self.clip_norm)
                self.scaler.step(optimizer)
                self.has_changed = True
            optimizer.zero_grad()
            return applied

    def _first_bad(self) -> NotFinite | None:
        """Return the first update with a loss or gradient that is not finite, on any rank; None if there is none.

        The search covers the updates since the last skipped step. All ranks must call this together.
        """
        firsts = [first for detector in self.detectors.values() if (first := detector.first(self.world)) is not None]
        return min(firsts, key=lambda bad: bad.step, default=None)


def _means(results: Sequence[Mapping[str, Tensor]]) -> Scalars:
    """Average each value over the results that contain it; there is one result for each part and micro-batch."""
    names = dict.fromkeys(name for result in results for name in result)
    return {name: torch.stack([each[name] for each in results if name in each]).mean() for name in names}


def _joined(results: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate, for each name, the images of all results along the batch dimension.

    Args:
        results: one mapping from names to images (N, ...) for each part and micro-batch.
    """
    names = dict.fromkeys(name for result in results for name in result)
    return {name: torch.cat([each[name] for each in results if name in each]) for name in names}


def _divergence_message(first: NotFinite) -> str:
    values = ", ".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in first.values.items())
    return f"training diverged at step {first.step + 1}: not finite ({values})"
