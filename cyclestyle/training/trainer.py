"""The training loop: computes each step, and logs, samples and saves after the steps where this is due."""

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
    """Function that saves a checkpoint of the trainer; `last` is true for the final checkpoint of this process."""

    def __call__(self, *, last: bool) -> object: ...


class Pools(NamedTuple):
    """Image pools of the two domains; each pool holds past translations."""

    a: ImagePool
    b: ImagePool


class Detectors(NamedTuple):
    """Detectors of non-finite updates: one for both generators and one for both discriminators."""

    generators: NonFiniteDetector
    discriminators: NonFiniteDetector


SKIPS = 10  # number of consecutive skipped steps at which training counts as diverged
LARGE = 2**16  # fewest pixels per image for which memory is trimmed; below this, trimming costs too much time


class Trainer:
    """Trains a CycleGAN, step by step.

    Args:
        objective: networks and their losses.
        optimizers: optimizers of the generators and of the discriminators.
        schedule: factor that multiplies the learning rates in each epoch.
        samples_per_epoch: number of image pairs per epoch.
        pools: buffers of past translations, on which the discriminators train.
        average: moving average of the generators; None trains without an average.
        hardware: device, precision, and the ranks that share the work.
        seed: seed for the random numbers of the networks, such as dropout.
        batch_size: number of image pairs per step, over all ranks and micro-batches.
        accumulate: number of micro-batches into which each rank splits its share of a batch. Micro-batches are computed
            one after the other, which saves memory.
        steps: length of training in steps; if None, `epochs` sets the length.
        epochs: length of training in epochs, used only if `steps` is None; if both are None, the schedule sets the
            length.
        log_every: number of steps between two logs.
        sample_every: number of steps between two logs of samples, which are translations of the probe images.
        save_every: number of steps between two checkpoints.
        on_nonfinite: response to a loss or gradient that is not finite. `stop` ends training at the next log or save,
            before anything is written. `skip` leaves the update out, which costs a wait for the device at every step.
        backward: `split` back-propagates the losses of the two translation directions one after the other; `joint`
            back-propagates them in one pass. Both settings give equal gradients.
        cuda_graphs: True launches the kernels of a step together as CUDA graphs, which reserve memory and need an
            NVIDIA GPU; `auto` does so if graphs are possible and faster.

    Raises:
        CommandError: the batch cannot be divided evenly, an interval or a length is below 1, or `cuda_graphs` is True
            although the device or another option does not allow CUDA graphs.
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
        self.detectors = Detectors(NonFiniteDetector(hardware.device), NonFiniteDetector(hardware.device))
        self.running_means = RunningMeans(hardware)

        self.base_rate = float(optimizers.generators.param_groups[0]["lr"])
        self.step = 0  # steps done
        self._device_step = torch.zeros(
            (), dtype=torch.int64, device=hardware.device
        )  # copy of `step` for captured graphs
        self.total = steps if steps is not None else self._steps_in(epochs if epochs is not None else schedule.epochs)

        capture = self._choose_capture(cuda_graphs)
        self._graphed_calls = GraphedCalls(capture) if capture is not None else None
        if self._graphed_calls is not None:
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
        """Train to the end, or until a stop is requested; the last step is always saved.

        Args:
            batches: iterator over this rank's share of each batch, from step `self.step` on; may end early once a stop
                is requested.
            save: function that saves a checkpoint; called on all ranks.
            loggers: loggers on rank 0; empty on other ranks.
            probes: probe images of domains a and b, each uint8 (N, 3, H, W); None logs no samples.
            stop_requested: function called before every step; True on any rank stops all ranks.

        Returns:
            True if the last step was reached, False if a stop was requested before it.

        Raises:
            DivergedError: a loss or gradient was not finite in some step; nothing from then on was saved or logged.
        """
        saved = self.step

        # Each iteration first saves, logs and samples where due, then leaves the loop or trains a step. In this order
        # neither the first nor the last step is a special case.
        while True:
            stopping = self.world.any(stop_requested())
            finished = self.step >= self.total
            leaving = stopping or finished
            if self.step > saved and (self.step % self.save_every == 0 or leaving):
                with record_function(Phase.SAVING):
                    self.check_finite()
                    save(last=leaving)  # saves before it logs and samples, which may be slow or fail
                saved = self.step
            if self.running_means.steps and (self.step % self.log_every == 0 or leaving):
                with record_function(Phase.LOGGING):
                    self.check_finite()
                    values = self.running_means.values() | {
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
                        samples = self.sample(*probes)
                        for logger in loggers:
                            logger.pictures(self.step, *samples)
            if leaving:
                return finished

            waiting_since = time.perf_counter()
            with record_function(Phase.DATA):
                batch = next(batches, None)
            assert batch is not None or stop_requested()
            # If one rank has no data, no rank begins the step: the others would wait for its gradients forever.
            if self.world.any(batch is None) or batch is None:
                continue
            self.running_means.add_data_wait(time.perf_counter() - waiting_since)
            self.running_means.add(self.train_step(batch), pictures=2 * self.batch_size, replaced=len(batch.replaced))
            for logger in loggers:
                logger.on_step(self.step)

    def train_step(self, batch: Batch) -> Losses:
        """Update both generators, then both discriminators (Zhu et al. 2017, section 4).

        Args:
            batch: this rank's share of the global batch.

        Returns:
            All losses and scores by name, averaged over this rank's share, as scalars on the device; empty if the step
            was skipped.

        Raises:
            DivergedError: `SKIPS` consecutive steps were skipped.
        """
        torch.manual_seed(int(rng_for(self.seed, f"networks {self.world.rank}", self.step).integers(2**62)))
        self._device_step.fill_(self.step)
        self.optimizers.set_rate(self.learning_rate)
        with record_function(Phase.DATA):
            a, b = (tensors.to_float(self.hardware.upload(images)) for images in (batch.a, batch.b))

        call = self._graphed_calls or call_directly
        generator_values = call("generators", self._update_generators, a, b)
        if generator_values is None:
            return self._count_skip()
        fake_a = self.pools.a.exchange(generator_values.pop("fake_a"), batch.draws)
        fake_b = self.pools.b.exchange(generator_values.pop("fake_b"), batch.draws)
        discriminator_values = call("discriminators", self._update_discriminators, a, b, fake_a, fake_b)

        with record_function(Phase.OPTIMIZER):
            self.scaler.update()
            if self.average is not None:
                self.average.update(self.step)
        if discriminator_values is None:
            return self._count_skip()
        self.step += 1
        self._skipped_in_a_row = 0
        return generator_values | discriminator_values

    def check_finite(self) -> None:
        """Wait for the device and check that training has not diverged; all ranks must call this together.

        Raises:
            DivergedError: an update was not finite and was not skipped, or gradients overflow in fp16 at every gradient
                scale.
        """
        if not self.skips_nonfinite and (first := self._first_bad()) is not None:  # train_step checks `skip`
            raise DivergedError(_divergence_message(first), step=first.step)
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise DivergedError(
                f"the gradients overflow in fp16 at any scale, last at step {self.step}: set "
                f"trainer.precision=bf16 or fp32, or a smaller optimizer.lr"
            )

    def sample(self, a: Tensor, b: Tensor) -> tuple[Samples, Samples]:
        """Return samples for probe images of both domains, computed with the averaged generators if there are any.

        Args:
            a, b: probe images, uint8 (N, 3, H, W).
        """
        generators = self.objective.generators if self.average is None else self.average.module
        generators.eval()
        samples = translate_probes(generators, self.hardware, a, b)
        self.objective.generators.train()
        return samples

    @property
    def replays(self) -> bool:
        """True if steps run as CUDA graphs."""
        return self._graphed_calls is not None

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step; apart from settings, it depends on `self.step` alone."""
        return self.base_rate * self.schedule.factor(self.step * self.batch_size // self.samples_per_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that is the same on all ranks, without the weights of the networks."""
        return {
            "step": self.step,
            "draws": self.step * self.batch_size,
            "batch_size": self.batch_size,
            "optimizers": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped_in_a_row": self._skipped_in_a_row,
        }

    def rank_state_dict(self) -> dict[str, Any]:
        """Return the state of this rank alone: its share of the image pools, and its running means."""
        return {
            "pools": {"a": self.pools.a.state_dict(), "b": self.pools.b.state_dict()},
            "record": self.running_means.state_dict(),
        }

    def load_state_dict(self, shared: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
        """Restore the state of a saved run; this run may have another number of ranks.

        Args:
            shared: `state_dict` of any rank of the saved run.
            ranks: `rank_state_dict` of all ranks of the saved run.

        Raises:
            CommandError: the saved run had another batch size, so its steps used other sample indices.
        """
        if shared["batch_size"] != self.batch_size:
            raise CommandError(
                f"trainer.batch_size={self.batch_size}: the run was started with {shared['batch_size']}, which its "
                f"steps and image pools depend on; choose another name= and init= to train on with other batches"
            )
        self.step, self._skipped_in_a_row = shared["step"], shared["skipped_in_a_row"]
        self.optimizers.load_state_dict(shared["optimizers"])
        if self._graphed_calls is not None:
            self._graphed_calls.forget()
        if shared["scaler"]:  # empty for a run without a gradient scaler
            self.scaler.load_state_dict(shared["scaler"])
        for pool, side in ((self.pools.a, "a"), (self.pools.b, "b")):
            pool.load_state_dict(
                {
                    position: images.to(self.hardware.device)
                    for rank in ranks
                    for position, images in rank["pools"][side].items()
                    if position % self.world.size == self.world.rank
                }
            )
        means = [rank["record"] for rank in ranks]
        self.running_means.load_state_dict(
            means[self.world.rank] if len(means) == self.world.size else redistribute(means, self.world.rank)
        )

    def _update_generators(self, a: Tensor, b: Tensor) -> dict[str, Tensor] | None:
        """Update the generators against fixed discriminators.

        Args:
            a, b: real images, (N, 3, H, W) in [-1, 1].

        Returns:
            Means of the generators' losses by name, and the translations under the names `fake_a` and `fake_b`; None if
            the update was skipped.
        """
        self.optimizers.generators.zero_grad()  # a failed graph capture leaves gradients behind
        losses: list[Losses] = []
        fakes_of_a: list[Tensor] = []
        fakes_of_b: list[Tensor] = []
        micro_batches = list(zip(a.chunk(self.accumulate), b.chunk(self.accumulate), strict=True))
        for index, (a, b) in enumerate(micro_batches):
            for direction_losses in self._generator_losses:
                is_last_direction = direction_losses is self._generator_losses[-1]
                is_last = index + 1 == len(micro_batches) and is_last_direction
                with self.world.accumulating(more_to_come=not is_last):
                    with record_function(Phase.FORWARD):
                        part, translations = direction_losses(a, b)
                    self._backward(part)
                fakes_of_a += [] if translations.fake_a is None else [translations.fake_a.detach()]
                fakes_of_b += [] if translations.fake_b is None else [translations.fake_b.detach()]
                losses.append(part)
                del translations
                if not is_last_direction and a.shape[-2] * a.shape[-1] >= LARGE:
                    self.hardware.trim_memory()  # freed blocks do not fit the sizes that the next direction needs
        means = _means(losses)
        if not self._apply_update(self.optimizers.generators, self.detectors.generators, means):
            return None
        return means | {"fake_a": torch.cat(fakes_of_a), "fake_b": torch.cat(fakes_of_b)}

    def _update_discriminators(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> Losses | None:
        """Update the discriminators.

        Args:
            a, b: real images, (N, 3, H, W) in [-1, 1].
            fake_a, fake_b: translations from this step and earlier ones, with the shape and range of `a` and `b`.

        Returns:
            Means of the discriminators' losses and scores; None if the update was skipped.
        """
        self.optimizers.discriminators.zero_grad()
        values: list[Losses] = []
        micro_batches = list(zip(*(images.chunk(self.accumulate) for images in (a, b, fake_a, fake_b)), strict=True))
        for index, images in enumerate(micro_batches):
            with self.world.accumulating(more_to_come=index + 1 < len(micro_batches)):
                with record_function(Phase.FORWARD):
                    losses, scores = self.objective.discriminator_losses(*images)
                self._backward(losses)
            values.append(losses | scores)
        means = _means(values)
        return (
            means if self._apply_update(self.optimizers.discriminators, self.detectors.discriminators, means) else None
        )

    def _backward(self, losses: Losses) -> None:
        with record_function(Phase.BACKWARD):
            total = torch.stack(list(losses.values())).sum() / self.accumulate
            torch.autograd.backward(self.scaler.scale(total))

    def _apply_update(self, optimizer: Optimizer, detector: NonFiniteDetector, means: Losses) -> bool:
        """Update the parameters of one optimizer; skip an update that is not finite if `self.skips_nonfinite`.

        Args:
            detector: detector that checks the losses and gradients of this optimizer.
            means: losses (and scores, which some updates have) averaged over the micro-batches of this update.

        Returns:
            False if the update was skipped.
        """
        with record_function(Phase.OPTIMIZER):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            bad = detector.watch(self._device_step, means, [] if self.scaler.is_enabled() else gradients)
            applied = not (self.skips_nonfinite and self.world.any(bool(bad.item())))
            if applied:
                self.scaler.step(optimizer)
            optimizer.zero_grad()
            return applied

    def _choose_capture(self, requested: bool | Literal["auto"]) -> GraphCapture | None:
        """Return the CUDA graph capture for training steps; None to run steps eagerly.

        Args:
            requested: value of `trainer.cuda_graphs`.

        Raises:
            CommandError: `requested` is True, but steps cannot be captured.
        """
        if requested is False:
            return None
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
        # With more than one image per micro-batch, kernels take longer than their launches, so graphs save no time.
        return choose_capture(requested, capture, obstacles, pays=self.batch_size == self.accumulate)

    def _count_skip(self) -> Losses:
        """Count a skipped step; return an empty dict of losses. The sample indices of the step are not used again.

        Raises:
            DivergedError: this is the last of `SKIPS` consecutive skipped steps.
        """
        self.step += 1
        self._skipped_in_a_row += 1
        bad = self._first_bad()
        if self._skipped_in_a_row == SKIPS and bad is not None:
            raise DivergedError(
                f"{_divergence_message(bad)}; it is the last of {SKIPS} in a row that were skipped", step=bad.step
            )
        for detector in self.detectors:
            detector.clear()
        return {}

    def _first_bad(self) -> NotFinite | None:
        """Return the first non-finite update since detectors were last cleared; all ranks must call this together."""
        firsts = [first for detector in self.detectors if (first := detector.first(self.world)) is not None]
        return min(firsts, key=lambda bad: bad.step, default=None)

    def _steps_in(self, epochs: int) -> int:
        return -(-epochs * self.samples_per_epoch // self.batch_size)


def _means(parts: list[Losses]) -> Losses:
    """Average each loss and score over the `parts` that contain it; a part is a micro-batch or one direction of it."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: torch.stack([part[name].detach() for part in parts if name in part]).mean() for name in names}


def _divergence_message(first: NotFinite) -> str:
    values = ", ".join(f"{name.removeprefix('loss/')} {value:.4g}" for name, value in first.values.items())
    return f"training diverged at step {first.step + 1}: not finite ({values})"
