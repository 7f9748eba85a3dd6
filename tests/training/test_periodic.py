"""Periodic tasks: when they are due, their order, what they may do with networks, and the numbers that they return."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclestyle.distributed.world import World
from cyclestyle.errors import CommandError
from cyclestyle.training.periodic import (
    Moment,
    Networks,
    Task,
    evaluating,
    networks_of,
    own_task,
    shared_task,
    usual_tasks,
)
from cyclestyle.training.trainer import Trainer
from tests.factories import random_batch, tiny_trainer


def batches(trainer: Trainer) -> Iterator[Any]:
    return (random_batch([step], size=16) for step in range(trainer.step, trainer.total))


def steps_done(*, start: int = 0, steps: int = 10, stop_at: int | None = None, **settings: Any) -> list[int]:
    """Return the steps after which a task is done in a run that trains from `start`."""
    trainer, done = tiny_trainer(steps=steps), []
    trainer.step = start
    task = Task(lambda moment: done.append(moment.step), **settings)
    trainer.fit(batches(trainer), tasks=[task], stop_requested=lambda: trainer.step == stop_at)
    return done


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"every": 4}, [0, 4, 8, 10]),
        ({"every": 5}, [0, 5, 10]),
        ({"every": 100}, [0, 10]),
        ({"every": 4, "at_start": False}, [4, 8, 10]),
        ({"every": 4, "start": 4}, [4, 8, 10]),
        ({"every": 4, "start": 4, "at_start": False}, [8, 10]),
        ({"every": 4, "start": 7}, [8, 10]),
        ({"every": 4, "start": 10}, [10]),  # a finished run is started again
        ({"every": 4, "start": 10, "at_start": False}, []),
        ({"every": 4, "stop_at": 6}, [0, 4]),
        ({"every": 4, "stop_at": 4}, [0]),  # due, but a stop does not wait for it
        ({"every": 4, "stop_at": 6, "at_stop": True}, [0, 4, 6]),
        ({"every": 4, "stop_at": 0, "at_stop": True}, [0]),
        ({"every": 4, "stop_at": 0, "at_stop": True, "at_start": False}, []),
        ({"every": 4, "stop_at": 10}, [0, 4, 8, 10]),  # the last step is done, so nothing is stopped
    ],
    ids=str,
)
def test_task_is_done_at_due_steps_alone(settings: dict[str, Any], expected: list[int]) -> None:
    assert steps_done(**settings) == expected


def test_run_ends_after_last_step_or_stop_request() -> None:
    assert Moment(10, 0, finished=True, stopping=False).leaving
    assert Moment(5, 0, finished=False, stopping=True).leaving
    assert not Moment(5, 0, finished=False, stopping=False).leaving


class Recorder:
    """Logger that notes each call in a list that it shares with other work."""

    def __init__(self, events: list[str]) -> None:
        self.events, self.values = events, {}

    def on_step(self, step: int) -> None:
        """Do nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.events.append(f"metrics {step}")
        self.values.setdefault(step, {}).update(values)

    def pictures(self, step: int, a: object, b: object) -> None:
        self.events.append(f"pictures {step}")

    def close(self) -> None:
        """Do nothing."""


def test_each_step_saves_then_logs_then_samples_then_runs_tasks_of_the_user() -> None:
    trainer, events = tiny_trainer(steps=2), []
    logger, probe = Recorder(events), random_batch([0], size=16)

    def score(step: int, networks: Networks) -> dict[str, float]:
        events.append(f"own {step}")
        return {"score": step}

    usual = usual_tasks(
        trainer,
        save=lambda *, last: events.append(f"save {trainer.step}{' last' if last else ''}"),
        loggers=[logger],
        probes=(probe.a, probe.b),
        log_every=1,
        sample_every=1,
        save_every=1,
    )
    own = own_task(trainer, score, name="score", every=1, loggers=[logger])
    trainer.fit(batches(trainer), tasks=[*usual, own])
    assert events == [
        *("pictures 0", "own 0", "metrics 0"),  # nothing to save or log yet
        *("save 1", "metrics 1", "pictures 1", "own 1", "metrics 1"),
        *("save 2 last", "metrics 2", "pictures 2", "own 2", "metrics 2"),
    ]
    assert logger.values[2]["score"] == 2.0
    assert "loss/gan_ab" in logger.values[2]


def run_once(task: Any, *, trainer: Trainer | None = None, name: str = "mine", **settings: Any) -> list[Any]:
    """Do a task of the user's own once, at step 0; return what was logged and what `on_values` received."""
    trainer, events = trainer or tiny_trainer(ema=0.9), []
    logger = Recorder([])
    own = own_task(
        trainer, task, name=name, every=1, loggers=[logger], on_values=lambda *given: events.append(given), **settings
    )
    own.action(Moment(0, 0, finished=False, stopping=False))
    return [logger.values, *events]


def first(module: nn.Module) -> nn.Parameter:
    return next(module.parameters())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda networks: first(networks.raw).add_(1), "raw.ab.stem.conv.weight"),
        (lambda networks: first(networks.averaged.ba).zero_(), "averaged.ba.stem.conv.weight"),
        (lambda networks: first(networks.discriminators.b).mul_(2), "discriminators.b.stem.conv.weight"),
        (lambda networks: networks.raw.load_state_dict(networks.raw.state_dict()), "raw.ab.stem.conv.weight"),
        (lambda networks: networks.averaged.counter.add_(1), "averaged.counter"),
    ],
    ids=["generator", "average", "discriminator", "load", "buffer"],
)
def test_task_that_changes_a_network_is_rejected(change: Any, name: str) -> None:
    trainer = tiny_trainer(ema=0.9)
    trainer.average.module.register_buffer("counter", torch.zeros(()))

    def task(step: int, networks: Networks) -> None:
        change(networks)

    with pytest.raises(CommandError) as caught:
        run_once(task, trainer=trainer)
    assert str(caught.value).startswith(f"tasks.mine changed the network weights {name}: tasks may only read networks")


def test_task_may_change_copies_of_network_weights() -> None:
    def task(step: int, networks: Networks) -> None:
        with torch.no_grad():
            first(networks.raw).clone().zero_()
        networks.raw.ab(torch.rand(1, 3, 16, 16))

    assert run_once(task) == [{}, (0, {})]


def test_networks_are_in_evaluation_mode_inside_a_task_and_restored_after() -> None:
    trainer = tiny_trainer(ema=0.9)
    frozen = trainer.objective.generators.ab.trunk[0]
    frozen.eval()  # a part of a training network can be in evaluation mode on purpose
    before = {name: module.training for name, module in trainer.objective.generators.named_modules()}
    seen: list[bool] = []

    def task(step: int, networks: Networks) -> None:
        assert networks == networks_of(trainer)
        assert networks.averaged is trainer.average.module
        seen.extend(module.training for network in networks for module in network.modules())
        assert not torch.is_grad_enabled()

    run_once(task, trainer=trainer)
    assert seen
    assert not any(seen)
    assert {name: module.training for name, module in trainer.objective.generators.named_modules()} == before
    assert trainer.objective.discriminators.training
    assert not trainer.average.module.training

    with pytest.raises(ZeroDivisionError):
        run_once(lambda step, networks: 1 / 0, trainer=trainer)
    assert {name: module.training for name, module in trainer.objective.generators.named_modules()} == before
    assert trainer.objective.discriminators.training
    assert torch.is_grad_enabled()
    with evaluating(trainer), torch.enable_grad():  # a task may compute gradients, of its inputs for example
        assert torch.is_grad_enabled()


def test_averaged_generators_are_the_trained_ones_if_moving_average_is_off() -> None:
    trainer = tiny_trainer()
    assert networks_of(trainer).averaged is networks_of(trainer).raw is trainer.objective.generators


def test_random_numbers_of_a_task_do_not_change_training() -> None:
    def weights(task: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        np.random.seed(0)
        trainer = tiny_trainer(steps=3, pool=2, ema=0.9)
        for generator in (trainer.objective.generators.ab, trainer.objective.generators.ba):
            generator.trunk[0].dropout.p = 0.5  # a step draws random numbers
        tasks = [] if task is None else [own_task(trainer, task, name="mine", every=1, loggers=[])]
        trainer.fit(batches(trainer), tasks=tasks)
        return trainer.objective.generators.state_dict()

    def draw(step: int, networks: Networks) -> None:
        torch.manual_seed(7 * step)
        torch.rand(10)
        np.random.rand(10)
        networks.raw.ab(torch.rand(1, 3, 16, 16))

    plain, drawn = weights(None), weights(draw)
    assert all(torch.equal(value, drawn[name]) for name, value in plain.items())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (None, {}),
        ({}, {}),
        ({"kid": 1}, {"kid": 1.0}),
        ({"kid": torch.tensor(0.5), "fid": np.float32(0.25)}, {"kid": 0.5, "fid": 0.25}),
    ],
)
def test_numbers_of_a_task_are_logged_as_floats(values: Any, expected: dict[str, float]) -> None:
    logged, (step, given) = run_once(lambda *_: values)
    assert logged == ({0: expected} if expected else {})
    assert (step, given) == (0, expected)
    assert all(type(value) is float for value in given.values())


@pytest.mark.parametrize("values", [0.5, 0.0, False, [], [1.0], "kid", torch.zeros(3)], ids=str)
def test_task_result_that_is_no_mapping_is_rejected(values: Any) -> None:
    message = f"^tasks.mine returned {type(values).__name__}: a task returns a mapping from names to numbers, or None$"
    with pytest.raises(CommandError, match=message):
        run_once(lambda *_: values)


@pytest.mark.parametrize("value", [None, "low", torch.zeros(2), 10**400], ids=["none", "text", "tensor", "huge"])
def test_task_value_that_is_no_number_is_rejected(value: Any) -> None:
    with pytest.raises(CommandError, match=r"^tasks\.mine returned kid=.*: expected a number$"):
        run_once(lambda *_: {"kid": value})


@pytest.mark.parametrize("name", ["lr", "lr_discriminators", "epoch", "loss/cycle_a", "score/real_a", "speed/x"])
def test_task_value_with_name_from_the_training_log_is_rejected(name: str) -> None:
    with pytest.raises(CommandError, match=rf"^tasks\.mine returned the name {name}, which belongs to the log"):
        run_once(lambda *_: {name: 1.0})


def test_shared_task_is_called_at_due_steps_except_step_0_and_its_numbers_are_logged() -> None:
    trainer, calls, given = tiny_trainer(steps=5, ema=0.9), [], []
    logger = Recorder([])

    def score(step: int, networks: Networks) -> dict[str, float]:
        calls.append((step, networks.averaged is trainer.average.module, networks.averaged.training))
        return {"kid": step / 2}

    task = shared_task(
        trainer, score, key="scores", every=2, loggers=[logger], on_values=lambda *values: given.append(values)
    )
    trainer.fit(batches(trainer), tasks=[task])
    assert calls == [(2, True, False), (4, True, False), (5, True, False)]
    assert logger.values == {2: {"kid": 1.0}, 4: {"kid": 2.0}, 5: {"kid": 2.5}}
    assert given == [(2, {"kid": 1.0}), (4, {"kid": 2.0}), (5, {"kid": 2.5})]


def test_shared_task_is_called_on_all_ranks_and_only_the_numbers_of_rank_0_count() -> None:
    class Second(World):
        """The second of two ranks; the other rank is not simulated."""

        def __init__(self) -> None:
            super().__init__()
            self.rank = 1

    trainer, calls, given = tiny_trainer(world=Second()), [], []
    moment = Moment(2, 0, finished=False, stopping=False)

    def score(step: int, networks: Networks) -> dict[str, float]:
        calls.append(step)
        return {"kid": 0.5}

    for task in (
        shared_task(trainer, score, key="scores", every=2, loggers=[], on_values=lambda *values: given.append(values)),
        own_task(trainer, score, name="mine", every=2, loggers=[], on_values=lambda *values: given.append(values)),
    ):
        task.action(moment)
    assert calls == [2]  # the task of the user's own runs on rank 0 alone
    assert given == [(2, {}), (2, {})]


def test_errors_of_a_shared_task_name_its_config_key() -> None:
    trainer, moment = tiny_trainer(), Moment(2, 0, finished=False, stopping=False)

    def change(step: int, networks: Networks) -> None:
        first(networks.raw).zero_()

    with pytest.raises(CommandError, match=r"^scores returned kid='x': expected a number$"):
        shared_task(trainer, lambda *_: {"kid": "x"}, key="scores", every=1, loggers=[]).action(moment)
    changing = shared_task(trainer, change, key="scores", every=1, loggers=[])
    with pytest.raises(CommandError, match=r"^scores changed the network weights raw"):
        changing.action(moment)
    with pytest.raises(CommandError, match=r"^scores\.every=0: give a number of steps, 1 or more$"):
        shared_task(trainer, lambda *_: None, key="scores", every=0, loggers=[])


@pytest.mark.parametrize("every", [0, -5])
def test_task_interval_below_one_step_is_rejected(every: int) -> None:
    trainer = tiny_trainer()
    with pytest.raises(CommandError, match=rf"^tasks\.mine\.every={every}: give a number of steps, 1 or more$"):
        own_task(trainer, lambda *_: None, name="mine", every=every, loggers=[])
    for key in ("log_every", "sample_every", "save_every"):
        with pytest.raises(CommandError, match=rf"^trainer\.{key}={every}: give a number of steps, 1 or more$"):
            usual_tasks(trainer, save=lambda *, last: None, **{key: every})
