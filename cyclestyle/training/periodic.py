"""Work that a run does every N steps: saving, logging, samples, and tasks of the user's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.monitor.logger import Logger, Phase, Samples
from cyclestyle.run.folder import Done
from cyclestyle.training.samples import translate_probes

if TYPE_CHECKING:
    from cyclestyle.training.trainer import Trainer


class Save(Protocol):
    """Function that saves a checkpoint of the trainer; `last` is true for the final checkpoint of this process."""

    def __call__(self, *, last: bool) -> object: ...


class Moment(NamedTuple):
    """A point between two steps of training."""

    step: int  # number of steps done
    start: int  # number of steps that were done when this process began to train
    finished: bool  # whether the last step is done
    stopping: bool  # whether a stop was requested

    @property
    def leaving(self) -> bool:
        """True if no further step follows in this process."""
        return self.finished or self.stopping


class Task(NamedTuple):
    """Work that is done after every `every` steps and after the last step, on all ranks together."""

    action: Callable[[Moment], object]
    every: int
    at_start: bool = True  # whether it is done, if it is due, also before this process trains its first step
    at_stop: bool = False  # whether it is also done when a stop was requested, which delays the stop
    phase: Phase = Phase.LOGGING

    def is_due(self, moment: Moment) -> bool:
        """Return whether the work is due at this moment."""
        if moment.step == moment.start and not self.at_start:
            return False
        if moment.finished:
            return True
        return self.at_stop if moment.stopping else moment.step % self.every == 0


class Networks(NamedTuple):
    """Networks that tasks and loggers may use, but not change; a task gets them in evaluation mode."""

    raw: nn.Module  # both generators at the current step, as `.ab` and `.ba`
    averaged: nn.Module  # moving average of the generators; the same object as `raw` if there is no average
    discriminators: nn.Module  # both discriminators, as `.a` and `.b`


class OwnTask(Protocol):
    """Task that is called with the number of steps done; it may return numbers to log, by name."""

    def __call__(self, step: int, networks: Networks, /) -> Mapping[str, float] | None: ...


def check_every(key: str, every: int) -> None:
    """Raise a CommandError unless `every`, the value of config key `key`, is 1 or more."""
    if every < 1:
        raise CommandError(f"{key}={every}: give a number of steps, 1 or more")


def check_intervals(*, log_every: int, sample_every: int, save_every: int) -> None:
    """Raise a CommandError unless each number of steps is 1 or more."""
    check_every("trainer.log_every", log_every)
    check_every("trainer.sample_every", sample_every)
    check_every("trainer.save_every", save_every)


def usual_tasks(
    trainer: "Trainer",
    *,
    save: Save,
    loggers: Sequence[Logger] = (),
    probes: tuple[Tensor, Tensor] | None = None,
    on_log: Callable[[int, Mapping[str, float]], Any] = lambda step, values: None,
    log_every: int = 50,
    sample_every: int = 500,
    save_every: int = 1000,
    done: Done | None = None,
) -> list[Task]:
    """Return the tasks that every run has, in the order in which they are done: save, log, sample.

    Saving comes first, since loggers and samples may be slow or fail.

    Args:
        save: function that saves a checkpoint; called on all ranks.
        loggers: loggers on rank 0; empty on other ranks.
        probes: fixed images of domains a and b that show progress, each uint8 (N, C, H, W); None logs no samples.
        on_log: function that is called on all ranks with the step and the logged numbers.
        log_every: number of steps between two logs.
        sample_every: number of steps between two logs of samples, which are translations of `probes`.
        save_every: number of steps between two checkpoints.
        done: tasks that an earlier process did at the step from which this process resumes; they are not repeated.
            None if there are none.

    Raises:
        CommandError: a number of steps is below 1.
    """
    done = done or Done()
    check_intervals(log_every=log_every, sample_every=sample_every, save_every=save_every)

    def log(moment: Moment) -> None:
        if moment.step == moment.start and done.log:
            trainer.running_means.clear()  # the restored sums are those of the earlier log
        if trainer.running_means.steps:  # a resumed run may have steps to log at its start
            values = trainer.running_means.values() | _rates(trainer) | {"epoch": trainer.epoch}
            for logger in loggers:
                logger.metrics(moment.step, values)
            on_log(moment.step, values)

    def log_samples(moment: Moment) -> None:
        if probes is not None and loggers:
            samples = sample(trainer, *probes)
            for logger in loggers:
                logger.pictures(moment.step, *samples)

    return [
        Task(lambda moment: save(last=moment.leaving), save_every, at_start=False, at_stop=True, phase=Phase.SAVING),
        Task(log, log_every, at_stop=True),
        Task(log_samples, sample_every, at_start=not done.tasks),
    ]


def sample(trainer: "Trainer", a: Tensor, b: Tensor) -> tuple[Samples, Samples]:
    """Translate fixed images of both domains that show progress, with the averaged generators if there are any.

    Args:
        a, b: probe images of domains a and b, uint8 (N, C, H, W).

    Returns:
        Translations, reconstructions and identity outputs for `a`, and the same for `b`.
    """
    with evaluating(trainer) as networks:
        return translate_probes(networks.averaged, trainer.hardware, a, b)


def own_task(
    trainer: "Trainer",
    task: OwnTask,
    *,
    name: str,
    every: int,
    loggers: Sequence[Logger],
    on_values: Callable[[int, Mapping[str, float]], Any] = lambda step, values: None,
    at_start: bool = True,
) -> Task:
    """Return a periodic task that calls the function `task` on rank 0, and logs the numbers that `task` returns.

    The other ranks wait without a time limit, since an evaluation may take hours.

    Args:
        name: name of the task in the config, for error messages.
        every: number of steps between two calls.
        loggers: loggers that receive the numbers; used only on rank 0.
        on_values: function that is called on all ranks with the step and the numbers. On ranks other than 0, the
            mapping of numbers is empty.
        at_start: whether `task` is also called before this process trains its first step, if a call is due then.
    """
    key = f"tasks.{name}"
    check_every(f"{key}.every", every)

    def action(moment: Moment) -> None:
        values = _log_task(trainer, task, moment.step, key, loggers) if trainer.world.is_main else {}
        trainer.world.any(False, no_timeout=True)  # all ranks wait here for rank 0
        on_values(moment.step, values)

    return Task(action, every, at_start=at_start)


def shared_task(
    trainer: "Trainer",
    task: OwnTask,
    *,
    key: str,
    every: int,
    loggers: Sequence[Logger],
    on_values: Callable[[int, Mapping[str, float]], Any] = lambda step, values: None,
    at_start: bool = True,
) -> Task:
    """Return a periodic task that calls the function `task` on all ranks, which share its work.

    `task` is not called at step 0, when the networks are untrained. The numbers that it returns on rank 0 are logged;
    those of other ranks are ignored.

    Args:
        key: config key of the task, for error messages.
        every: number of steps between two calls.
        loggers, on_values, at_start: see `own_task`.
    """
    check_every(f"{key}.every", every)

    def action(moment: Moment) -> None:
        if moment.step == 0:
            return
        values = _log_task(trainer, task, moment.step, key, loggers)
        trainer.world.any(False, no_timeout=True)  # a rank may have had more work than the others
        on_values(moment.step, values if trainer.world.is_main else {})

    return Task(action, every, at_start=at_start)


def _log_task(trainer: "Trainer", task: OwnTask, step: int, key: str, loggers: Sequence[Logger]) -> Mapping[str, float]:
    """Call `task` with the networks in evaluation mode; log the numbers that it returns, and return them as floats."""
    with evaluating(trainer) as networks, unchanged(networks, key):
        values = _checked(task(step, networks), key)
    for logger in loggers if values else ():
        logger.metrics(step, dict(values))
    return values


def networks_of(trainer: "Trainer") -> Networks:
    """Return the networks of a trainer, without a change of their training or evaluation mode."""
    raw, discriminators = (trainer.objective.modules[name] for name in ("generators", "discriminators"))
    return Networks(raw, raw if trainer.average is None else trainer.average.module, discriminators)


@contextmanager
def evaluating(trainer: "Trainer") -> Iterator[Networks]:
    """Context manager: yield the networks in evaluation mode and without gradients; restore the mode afterwards.

    Random numbers that a task draws do not change training, since each step seeds the global random state.
    """
    networks = networks_of(trainer)
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        with torch.no_grad():
            for network in networks:
                network.eval()
            yield networks
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def unchanged(networks: Networks, name: str) -> Iterator[None]:
    """Context manager: raise an error if the `with` block changes a parameter or buffer of the networks.

    Changes through `tensor.data`, which PyTorch does not count, are not detected.

    Args:
        name: config key of the task that runs in the block, for the error message.

    Raises:
        CommandError: a tensor was changed in place.
    """
    tensors = {
        f"{role}.{key}": tensor
        for role, module in networks._asdict().items()
        for key, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    versions = {key: tensor._version for key, tensor in tensors.items()}
    yield
    for key, tensor in tensors.items():
        if tensor._version != versions[key]:
            raise CommandError(
                f"{name} changed the network weights {key}: tasks may only read networks, copy them first"
            )


def _rates(trainer: "Trainer") -> dict[str, float]:
    """Return the learning rates to log, by log key.

    The first optimizer's rate has the key `lr`. Every other optimizer's rate has the key `lr_NAME`, but is left out if
    its initial value equals that of the first optimizer.
    """
    rates, initial = trainer.learning_rates, trainer.updater.optimizers.base_rates
    first, *others = rates
    return {"lr": rates[first], **{f"lr_{name}": rates[name] for name in others if initial[name] != initial[first]}}


def _checked(values: Mapping[str, float] | None, name: str) -> dict[str, float]:
    """Check the numbers that a task returned, and convert them to floats; return an empty dict for None.

    Args:
        values: what the task returned, by the names under which the numbers will be logged.
        name: name of the task, for error messages.

    Raises:
        CommandError: `values` is no mapping from names to numbers, or uses a name that training logs itself.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise CommandError(
            f"{name} returned {type(values).__name__}: a task returns a mapping from names to numbers, or None"
        )
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if str(key) in ("lr", "epoch") or str(key).startswith(("lr_", "loss/", "score/", "speed/")):
            raise CommandError(f"{name} returned the name {key}, which belongs to the log of training: choose another")
        try:
            numbers[str(key)] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise CommandError(f"{name} returned {key}={value!r:.60}: expected a number") from None
    return numbers
