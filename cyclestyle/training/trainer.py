"""The training loop: what happens in a step, and when to log, to look and to save."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.profiler import record_function

from cyclestyle.data.dataset import Batch
from cyclestyle.errors import CommandError, DivergedError
from cyclestyle.hardware.cuda_graphs import GraphCapture, GraphedCalls, call_directly, choose_capture
from cyclestyle.hardware.device import Hardware
from cyclestyle.images import tensors
from cyclestyle.monitor.logger import Logger, Phase, Samples
from cyclestyle.objectives.cyclegan import CycleGAN, Generators, Losses
from cyclestyle.objectives.image_pool import ImagePool
from cyclestyle.rng import rng_for
from cyclestyle.training.ema import GeneratorAverage
from cyclestyle.training.nonfinite import NonFiniteDetector, NotFinite
from cyclestyle.training.optimization import Optimizers, check_batch
from cyclestyle.training.running_means import RunningMeans, redistribute
from cyclestyle.training.samples import translate_probes
from cyclestyle.training.schedule import LinearDecay


class Save(Protocol):
    """Writes a checkpoint of the trainer; `last` if nothing comes after it."""

    def __call__(self, *, last: bool) -> object: ...


class Pools(NamedTuple):
    """The image pools of the two domains."""

    a: ImagePool
    b: ImagePool


class Guards(NamedTuple):
    """Watches over the updates of the generators and over those of the discriminators."""

    generators: NonFiniteDetector
    discriminators: NonFiniteDetector


SKIPS = 10  # steps in a row that may be skipped before training counts as diverged
LARGE = 2**16  # pixels of a picture from which on freed memory is worth the time that giving it back takes


class Trainer:
    """Trains a CycleGAN, step by step.

    Args:
        objective: the networks and their losses.
        optimizers: of the generators and of the discriminators.
        schedule: gives each epoch's factor on the learning rates.
        samples_per_epoch: draws in an epoch.
        pools: past translations for the discriminators.
        average: the moving average of the generators, or None.
        hardware: where all this runs, and the processes that share the work.
        seed: of every random decision.
        batch_size: draws in a step, over all processes and accumulation.
        accumulate: parts that a process's share is computed in, one after the other; saves memory.
        steps: when to stop, in steps; `epochs` otherwise, and the schedule's length if neither is given.
        epochs: when to stop, in epochs.
        log_every: steps between two entries of the losses.
        sample_every: steps between two grids of probe pictures.
        save_every: steps between two checkpoints.
        on_nonfinite: what a loss or gradient that is not finite does. `stop` ends training at the next log or save,
            before anything is written. `skip` leaves the update out, which costs a wait for the device at every step.
        backward: `split` back-propagates the identities and the two cycles one after the other, `joint` all at once.
            The gradients are the same.
        cuda_graphs: on an NVIDIA GPU, launch the kernels of a step together, in memory of their own; `auto` where that
            pays and can be done.

    Raises:
        CommandError: a batch that cannot be divided evenly, an interval or length below 1, or CUDA graphs with what
            they do not go with.
    """

    def __init__(
        self,
        objective: CycleGAN,
        optimizers: Optimizers,
        *,
        schedule: LinearDecay,
        samples_per_epoch: int,
        pools: Pools,
        average: GeneratorAverage[Generators] | None,
        hardware: Hardware,
        seed: int,
        batch_size: int = 1,
        accumulate: int = 1,
        steps: int | None = None,
        epochs: int | None = None,
        log_every: int = 50,
        sample_every: int = 500,
        save_every: int = 1000,
        on_nonfinite: Literal["stop", "skip"] = "stop",
        backward: Literal["joint", "split"] = "split",
        cuda_graphs: bool | Literal["auto"] = False,
    ) -> None:
        check_batch(batch_size, ranks=hardware.world.size, accumulate=accumulate)
        for name, value in (("log_every", log_every), ("sample_every", sample_every), ("save_every", save_every)):
            if value < 1:
                raise CommandError(f"trainer.{name}={value}: give a number of steps, 1 or more")
        for name, length in (("steps", steps), ("epochs", epochs)):
            if length is not None and length < 1:
                raise CommandError(f"trainer.{name}={length}: give 1 or more")
        self.objective, self.optimizers, self.pools, self.average = objective, optimizers, pools, average
        self.schedule, self.samples_per_epoch = schedule, samples_per_epoch
        self.hardware, self.world, self.scaler = hardware, hardware.world, hardware.scaler()
        self.seed, self.batch_size, self.accumulate = seed, batch_size, accumulate
        self.log_every, self.sample_every, self.save_every = log_every, sample_every, save_every
        self._generator_losses = objective.generator_parts if backward == "split" else (objective.generator_losses,)
        self.skips_nonfinite, self._skipped_in_a_row = on_nonfinite == "skip", 0
        self.guards = Guards(NonFiniteDetector(hardware.device), NonFiniteDetector(hardware.device))
        self.record = RunningMeans(hardware)

        self.base_rate = float(optimizers.generators.param_groups[0]["lr"])
        self.step = 0  # steps done
        self._step_here = torch.zeros((), dtype=torch.int64, device=hardware.device)  # the same, for the device
        self.total = steps if steps is not None else self._steps_in(epochs if epochs is not None else schedule.epochs)

        capture = self._choose_capture(cuda_graphs)
        self._replays = GraphedCalls(capture) if capture is not None else None
        if self._replays is not None:
            optimizers.make_capturable(hardware.device)

    def fit(
        self,
        batches: Iterator[Batch],
        *,
        save: Save,
        loggers: Sequence[Logger] = (),
        probes: tuple[Tensor, Tensor] | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until the end, or until someone asks to stop; the last step is always saved.

        Args:
            batches: this process's share of each step from `self.step` on; ends early where a stop is requested while
                it waits for data.
            save: called by all processes.
            loggers: of rank 0.
            probes: fixed pictures of a and b, uint8 (N, 3, H, W).
            stop_requested: asked before every step; any process that says yes stops all.

        Returns:
            Whether the end was reached.

        Raises:
            DivergedError: a loss or a gradient was not finite; nothing of it has been saved or logged.
        """
        saved = self.step

        # What is due comes first, then leaving, then a step: the first and the last need no special case.
        while True:
            stopping = self.world.any(stop_requested())
            finished = self.step >= self.total
            leaving = stopping or finished
            if self.step > saved and (self.step % self.save_every == 0 or leaving):
                with record_function(Phase.SAVING):
                    self.check_finite()
                    save(last=leaving)  # first: what comes below may take its time, or fail
                saved = self.step
            if self.record.steps and (self.step % self.log_every == 0 or leaving):
                with record_function(Phase.LOGGING):
                    self.check_finite()
                    values = self.record.values() | {
                        "lr": self.learning_rate,
                        "epoch": self.step * self.batch_size / self.samples_per_epoch,
                    }
                    for logger in loggers:
                        logger.metrics(self.step, values)
            sampling = finished or (self.step % self.sample_every == 0 and not stopping)
            if sampling:
                with record_function(Phase.LOGGING):
                    self.check_finite()
                    if probes is not None and loggers:
                        made = self.sample(*probes)
                        for logger in loggers:
                            logger.pictures(self.step, *made)
            if leaving:
                return finished

            asked = time.perf_counter()
            with record_function(Phase.DATA):
                batch = next(batches, None)
            assert batch is not None or stop_requested()
            # Nobody begins a step that a process has no data for, as its gradients would be waited for in vain.
            if self.world.any(batch is None) or batch is None:
                continue
            self.record.add_data_wait(time.perf_counter() - asked)
            self.record.add(self.train_step(batch), pictures=2 * self.batch_size, replaced=len(batch.replaced))
            for logger in loggers:
                logger.on_step(self.step)

    def train_step(self, batch: Batch) -> Losses:
        """One update of both generators, then one of both discriminators (Zhu et al. 2017, 4).

        Args:
            batch: this process's share of the global batch.

        Returns:
            The means of all losses and scores over the share, still on the device; none of a step that was skipped.

        Raises:
            DivergedError: too many steps in a row had to be skipped.
        """
        torch.manual_seed(int(rng_for(self.seed, f"networks {self.world.rank}", self.step).integers(2**62)))
        self._step_here.fill_(self.step)
        self.optimizers.set_rate(self.learning_rate)
        with record_function(Phase.DATA):
            a, b = (tensors.to_float(self.hardware.upload(pictures)) for pictures in (batch.a, batch.b))

        run = self._replays or call_directly
        told = run("generators", self._update_generators, a, b)
        if told is None:
            return self._skip()
        fake_a = self.pools.a.exchange(told.pop("fake_a"), batch.draws)
        fake_b = self.pools.b.exchange(told.pop("fake_b"), batch.draws)
        judged = run("discriminators", self._update_discriminators, a, b, fake_a, fake_b)

        with record_function(Phase.OPTIMIZER):
            self.scaler.update()
            if self.average is not None:
                self.average.update(self.step)
        if judged is None:
            return self._skip()
        self.step += 1
        self._skipped_in_a_row = 0
        return told | judged

    def check_finite(self) -> None:
        """Wait for the device and look whether all went well so far; all processes look together.

        Raises:
            DivergedError: it did not.
        """
        if not self.skips_nonfinite and (first := self._first_bad()) is not None:  # else train_step has looked
            raise DivergedError(_divergence_message(first), step=first.step)
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise DivergedError(
                f"the gradients overflow in fp16 whatever they are scaled by, last at step {self.step}: take "
                f"trainer.precision=bf16 or fp32, or a smaller optimizer.lr"
            )

    def sample(self, a: Tensor, b: Tensor) -> tuple[Samples, Samples]:
        """What the generators (their average, where there is one) make of probe pictures, both ways.

        Args:
            a, b: uint8 (N, 3, H, W).
        """
        generators = self.objective.generators if self.average is None else self.average.module
        generators.eval()
        samples = translate_probes(generators, self.hardware, a, b)
        self.objective.generators.train()
        return samples

    @property
    def replays(self) -> bool:
        """Whether steps are recorded and replayed."""
        return self._replays is not None

    @property
    def learning_rate(self) -> float:
        """Of the step that comes next: a function of the draws done and nothing else."""
        return self.base_rate * self.schedule.factor(self.step * self.batch_size // self.samples_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What all processes share, besides the networks."""
        return {
            "step": self.step,
            "draws": self.step * self.batch_size,
            "batch_size": self.batch_size,
            "optimizers": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """What only this process holds."""
        return {
            "pools": {"a": self.pools.a.state_dict(), "b": self.pools.b.state_dict()},
            "record": self.record.state_dict(),
        }

    def load_state_dict(self, shared: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        """Go on where a run of any number of processes stood.

        Args:
            shared: `state_dict` of any of its processes.
            ranks: `own_state_dict` of all of its processes.

        Raises:
            CommandError: it was a run of another batch size, whose steps are not ours.
        """
        if shared["batch_size"] != self.batch_size:
            raise CommandError(
                f"trainer.batch_size={self.batch_size}: the run was started with {shared['batch_size']}, by which its "
                f"steps count and its pools are split; choose another name= and init= to train on with other batches"
            )
        self.step, self._skipped_in_a_row = shared["step"], shared["skipped_in_a_row"]
        self.optimizers.load_state_dict(shared["optimizers"])
        if self._replays is not None:
            self._replays.forget()
        if shared["scaler"]:  # empty where the run had no use for one
            self.scaler.load_state_dict(shared["scaler"])
        for pool, side in ((self.pools.a, "a"), (self.pools.b, "b")):
            pool.load_state_dict(
                {
                    position: pictures.to(self.hardware.device)
                    for rank in ranks
                    for position, pictures in rank["pools"][side].items()
                    if position % self.world.size == self.world.rank
                }
            )
        records = [rank["record"] for rank in ranks]
        self.record.load_state_dict(
            records[self.world.rank] if len(records) == self.world.size else redistribute(records, self.world.rank)
        )

    def _update_generators(self, a: Tensor, b: Tensor) -> dict[str, Tensor] | None:
        """Change the generators, against discriminators that stand still.

        Args:
            a, b: real pictures, (N, 3, H, W) in [-1, 1].

        Returns:
            The means of their losses, and `fake_a` and `fake_b`, the translations; None if the update was left out.
        """
        self.optimizers.generators.zero_grad()  # a recording that failed leaves some
        told: list[Losses] = []
        fakes_of_a: list[Tensor] = []
        fakes_of_b: list[Tensor] = []
        parts = list(zip(a.chunk(self.accumulate), b.chunk(self.accumulate), strict=True))
        for index, (a, b) in enumerate(parts):
            for losses_of in self._generator_losses:
                last = index + 1 == len(parts) and losses_of is self._generator_losses[-1]
                with self.world.accumulating(more_to_come=not last):
                    with record_function(Phase.FORWARD):
                        losses, made = losses_of(a, b)
                    self._backward(losses)
                fakes_of_a += [] if made.fake_a is None else [made.fake_a.detach()]
                fakes_of_b += [] if made.fake_b is None else [made.fake_b.detach()]
                told.append(losses)
                del made
                if losses_of is not self._generator_losses[-1] and a.shape[-2] * a.shape[-1] >= LARGE:
                    self.hardware.trim_memory()  # whose holes are of the wrong size for the next part
        means = _means(told)
        if not self._update(self.optimizers.generators, self.guards.generators, means):
            return None
        return means | {"fake_a": torch.cat(fakes_of_a), "fake_b": torch.cat(fakes_of_b)}

    def _update_discriminators(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> Losses | None:
        """Change the discriminators.

        Args:
            a, b: real pictures, (N, 3, H, W) in [-1, 1].
            fake_a, fake_b: translations of now and of earlier steps, likewise.

        Returns:
            The means of their losses and scores; None if the update was left out.
        """
        self.optimizers.discriminators.zero_grad()
        told: list[Losses] = []
        parts = list(zip(*(pictures.chunk(self.accumulate) for pictures in (a, b, fake_a, fake_b)), strict=True))
        for index, pictures in enumerate(parts):
            with self.world.accumulating(more_to_come=index + 1 < len(parts)):
                with record_function(Phase.FORWARD):
                    losses, scores = self.objective.discriminator_losses(*pictures)
                self._backward(losses)
            told.append(losses | scores)
        means = _means(told)
        return means if self._update(self.optimizers.discriminators, self.guards.discriminators, means) else None

    def _backward(self, losses: Losses) -> None:
        with record_function(Phase.BACKWARD):
            total = torch.stack(list(losses.values())).sum() / self.accumulate
            torch.autograd.backward(self.scaler.scale(total))

    def _update(self, optimizer: Optimizer, guard: NonFiniteDetector, means: Losses) -> bool:
        """Change the networks, unless the update is not finite and such ones are skipped; whether it was sound."""
        with record_function(Phase.OPTIMIZER):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            bad = guard.watch(self._step_here, means, [] if self.scaler.is_enabled() else gradients)
            sound = not (self.skips_nonfinite and self.world.any(bool(bad.item())))
            if sound:
                self.scaler.step(optimizer)
            optimizer.zero_grad()
            return sound

    def _choose_capture(self, requested: bool | Literal["auto"]) -> GraphCapture | None:
        """The capture that steps are recorded with, if that is requested and possible."""
        capture = self.hardware.graph_capture()
        obstacles = {
            f"needs one of NVIDIA's GPUs, and this is {self.hardware}": capture is None,
            "is for a run of one process": self.world.size > 1,
            "does not go with trainer.compile=true": self.hardware.compile,
            "does not go with trainer.precision=fp16, whose scaling asks the device for numbers": (
                self.scaler.is_enabled()
            ),
            "does not go with trainer.on_nonfinite=skip, which asks the device for numbers": self.skips_nonfinite,
            "does not go with trainer.recompute=true": getattr(self.objective.generators.ab, "recompute", False),
            "needs an optimizer that is capturable": not self.optimizers.are_capturable,
        }
        # With more images at a time a GPU is busy anyway.
        return choose_capture(requested, capture, obstacles, pays=self.batch_size == self.accumulate)

    def _skip(self) -> Losses:
        """The step is over without its update: it counts, as its draws are gone, and tells nothing."""
        self.step += 1
        self._skipped_in_a_row += 1
        bad = self._first_bad()
        if self._skipped_in_a_row == SKIPS and bad is not None:
            raise DivergedError(
                f"{_divergence_message(bad)}; it is the last of {SKIPS} in a row that were skipped", step=bad.step
            )
        for guard in self.guards:
            guard.clear()
        return {}

    def _first_bad(self) -> NotFinite | None:
        """The first update that was not finite since the guards were cleared; all processes ask together."""
        found = [bad for bad in (guard.first(self.world) for guard in self.guards) if bad is not None]
        return min(found, key=lambda bad: bad.step, default=None)

    def _steps_in(self, epochs: int) -> int:
        return -(-epochs * self.samples_per_epoch // self.batch_size)


def _means(told: list[Losses]) -> Losses:
    """The mean of each name over the parts of a step that tell it."""
    names = dict.fromkeys(name for losses in told for name in losses)
    return {name: torch.stack([losses[name].detach() for losses in told if name in losses]).mean() for name in names}


def _divergence_message(first: NotFinite) -> str:
    values = ", ".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in first.values.items())
    return f"training diverged at step {first.step + 1}: not finite ({values})"
