"""The training loop: computes each step, and does periodic tasks after the steps where they are due."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.profiler import record_function

from cyclestyle.data.dataset import Batch
from cyclestyle.errors import CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Phase
from cyclestyle.objectives.step import Images, Objective, Scalars, Update, UpdateSkipped
from cyclestyle.rng import rng_for
from cyclestyle.training.ema import Average
from cyclestyle.training.optimization import check_batch
from cyclestyle.training.periodic import Moment, Task
from cyclestyle.training.running_means import RunningMeans, redistribute
from cyclestyle.training.schedule import Schedule
from cyclestyle.training.updater import Updater


class Trainer:
    """Trains the networks of an objective, step by step.

    Args:
        objective: networks, their losses, and the order of their updates.
        updater: changes the parameters in each update of the objective.
        schedule: factor that multiplies the learning rates.
        samples_per_epoch: number of image pairs per epoch.
        average: moving average of the generators; None trains without an average.
        hardware: device, precision, and the ranks that share the work.
        seed: seed for the random numbers of the networks, such as dropout.
        batch_size: number of image pairs per step, over all ranks and micro-batches.
        steps: length of training in steps; if None, `epochs` sets the length.
        epochs: length of training in epochs, used only if `steps` is None; if both are None, the schedule sets the
            length.
        update: function that the objective calls in place of `updater`, such as one that replays CUDA graphs; None
            calls `updater` itself.

    Raises:
        CommandError: the batch cannot be divided evenly, or a length is below 1.
    """

    def __init__(
        self,
        objective: Objective,
        updater: Updater,
        *,
        schedule: Schedule,
        samples_per_epoch: int,
        average: Average | None,
        hardware: Hardware,
        seed: int,
        batch_size: int = 1,
        steps: int | None = None,
        epochs: int | None = None,
        update: Update | None = None,
    ) -> None:
        check_batch(batch_size, ranks=hardware.world.size, accumulate=updater.accumulate)
        for name, length in (("steps", steps), ("epochs", epochs)):
            if length is not None and length < 1:
                raise CommandError(f"trainer.{name}={length}: give 1 or more")
        self.objective, self.updater, self.average = objective, updater, average
        self.schedule, self.samples_per_epoch = schedule, samples_per_epoch
        self.hardware, self.world, self.seed, self.batch_size = hardware, hardware.world, seed, batch_size
        self.running_means = RunningMeans(hardware)
        self._update: Update = update or updater

        self.step = 0  # steps done
        self.total = steps if steps is not None else self._steps_in(epochs if epochs is not None else schedule.epochs)

    def fit(
        self,
        batches: Iterator[Batch],
        *,
        tasks: Sequence[Task] = (),
        on_step: Callable[[int], object] = lambda step: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the end, or until a stop is requested.

        Args:
            batches: iterator over this rank's share of each batch, from step `self.step` on; may end early once a stop
                is requested.
            tasks: periodic work, equal on all ranks; done in this order.
            on_step: function called with the number of each finished step.
            stop_requested: function called before every step; True on any rank stops all ranks.

        Returns:
            True if the last step was reached, False if a stop was requested before it.

        Raises:
            DivergedError: a loss or gradient was not finite in some step; no task is done after that step.
        """
        start = self.step

        # Each iteration first does what is due, then leaves the loop or trains a step. In this order neither the first
        # nor the last step is a special case.
        while True:
            stopping = self.world.any(stop_requested())
            moment = Moment(self.step, start, finished=self.step >= self.total, stopping=stopping)
            due = [task for task in tasks if task.is_due(moment)]
            if due or moment.leaving:  # before the first task: nothing is saved or logged after training has diverged
                self.updater.check_finite(self.step)
            for task in due:
                with record_function(task.phase):
                    task.action(moment)
            if moment.leaving:
                return moment.finished

            waiting_since = time.perf_counter()
            with record_function(Phase.DATA):
                batch = next(batches, None)
            assert batch is not None or stop_requested(), "the batches ended before the last step"
            # If one rank has no data, no rank begins the step: the others would wait for its gradients forever.
            if self.world.any(batch is None) or batch is None:
                continue
            self.running_means.add_data_wait(time.perf_counter() - waiting_since)
            self.running_means.add(self.train_step(batch), pictures=2 * self.batch_size, replaced=len(batch.replaced))
            on_step(self.step)

    def train_step(self, batch: Batch) -> Scalars:
        """Do all updates of the objective for one batch.

        Args:
            batch: this rank's share of the global batch.

        Returns:
            All losses and scores by name, averaged over this rank's share, as scalars on the device; empty if the step
            was skipped because of a loss or gradient that is not finite.

        Raises:
            DivergedError: `training.updater.SKIPS` consecutive steps, up to this one, were skipped.
        """
        # Random numbers and learning rates are functions of seed, rank and step, so they need not be saved.
        torch.manual_seed(int(rng_for(self.seed, f"networks {self.world.rank}", self.step).integers(2**62)))
        self.updater.begin_step(self.step, factor=self.schedule.factor(self.epoch))
        with record_function(Phase.DATA):
            a, b = (tensors.to_float(self.hardware.upload(images)) for images in (batch.a, batch.b))

        try:
            losses, skipped = self.objective.step(Images(a, b, batch.draws), self._update), False
        except UpdateSkipped:
            losses, skipped = {}, True
        # An update before the skipped one may have changed parameters. A replayed CUDA graph does not set
        # `has_changed`, but never skips either.
        if not skipped or self.updater.has_changed:
            with record_function(Phase.OPTIMIZER):
                self.updater.scaler.update()
                if self.average is not None:
                    self.average.update(self.step)
        self.step += 1
        self.updater.end_step(skipped=skipped)
        return losses

    @property
    def is_graphed(self) -> bool:
        """True if a function, such as one that replays CUDA graphs, is called in place of `updater`."""
        return self._update is not self.updater

    @property
    def epoch(self) -> float:
        """Number of epochs done, including the completed fraction of the current epoch."""
        return self.step * self.batch_size / self.samples_per_epoch

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates of the next step by optimizer name; they depend only on the settings and `self.step`."""
        return self.updater.optimizers.rates(self.schedule.factor(self.epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is the same on all ranks, without the weights of the networks."""
        objective = self.objective.state_dict()
        return {
            "step": self.step,
            "draws": self.step * self.batch_size,
            "batch_size": self.batch_size,
            **self.updater.state_dict(),
            **({"objective": objective} if objective else {}),
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """Return the state of this rank alone: its running means, and the objective's state of this rank."""
        return {**self.objective.rank_state_dict(), "record": self.running_means.state_dict()}

    def load_state_dict(self, shared: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        """Restore the state of a saved run; this run may have another number of ranks.

        Args:
            shared: `state_dict` of any rank of the saved run.
            ranks: `rank_state_dict` of all ranks of the saved run.

        Raises:
            CommandError: the saved run had another batch size, so its steps used other image pairs.
        """
        if shared["batch_size"] != self.batch_size:
            raise CommandError(
                f"trainer.batch_size={self.batch_size}: the run was started with {shared['batch_size']}, which its "
                f"steps and image pools depend on; choose another name= and init= to train on with other batches"
            )
        assert not (self.is_graphed and self.step)  # captured graphs would use the tensors that are replaced here
        self.step = shared["step"]
        self.updater.load_state_dict(shared)
        self.objective.load_state_dict(shared.get("objective", {}))
        self.objective.load_rank_state_dicts(
            ranks, rank=self.world.rank, ranks=self.world.size, device=self.hardware.device
        )
        means = [rank["record"] for rank in ranks]
        self.running_means.load_state_dict(
            means[self.world.rank] if len(means) == self.world.size else redistribute(means, self.world.rank)
        )

    def _steps_in(self, epochs: int) -> int:
        return -(-epochs * self.samples_per_epoch // self.batch_size)
