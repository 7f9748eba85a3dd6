"""Updates: clipping, learning rates of both sides, moments of changed terms, and an objective of one's own."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError, DivergedError
from cyclestyle.hardware.device import Hardware
from cyclestyle.objectives.cyclegan import CycleGAN
from cyclestyle.objectives.step import Images, PartResult, Scalars, Update
from cyclestyle.objectives.terms import Weighted
from cyclestyle.training.ema import make_ema
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.periodic import Task
from cyclestyle.training.schedule import Cosine
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import Updater
from tests.factories import LayerDistance, adam, fit, random_batch, tiny_terms, tiny_trainer
from tests.training.test_nonfinite import Poisoned


def applied_gradients(trainer: Trainer, *draws: int) -> dict[str, Tensor]:
    """Do one step; return the gradients that each optimizer applied, as one vector for each update."""
    gradients: dict[str, Tensor] = {}
    for name in trainer.updater.optimizers.names:

        def note(*_: Any, name: str = name) -> None:
            parameters = trainer.updater.optimizers.parameters(name)
            gradients[name] = torch.cat([p.grad.flatten() for p in parameters])

        trainer.updater.optimizers[name].register_step_pre_hook(note)
    trainer.train_step(random_batch(list(draws), size=16))
    return {name: gradient.clone() for name, gradient in gradients.items()}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaled", [False, True], ids=["fp32", "gradient scaler"])
def test_gradients_are_scaled_down_to_clip_norm(scaled: bool, accumulate: int) -> None:
    def gradients(clip_norm: float | None, *, scaled: bool = False) -> dict[str, Tensor]:
        settings: dict[str, Any] = {"batch_size": 2, "accumulate": accumulate, **tiny_terms()}
        trainer = tiny_trainer(clip_norm=clip_norm, **settings)
        if scaled:
            trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        return applied_gradients(trainer, 0, 1)

    plain = gradients(None)
    norms = {name: gradient.double().norm().item() for name, gradient in plain.items()}
    assert norms["generators"] != norms["discriminators"]
    for name in norms:  # one update is clipped, the other is not unless its gradient is longer
        limit = 0.5 * norms[name]
        for update, gradient in gradients(limit, scaled=scaled).items():
            factor = min(1, limit / norms[update])
            torch.testing.assert_close(gradient, factor * plain[update], rtol=1e-4, atol=1e-6 * norms[update])
            assert gradient.double().norm().item() == pytest.approx(min(limit, norms[update]), rel=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.inf, math.nan])
def test_bad_clip_norm_is_rejected(clip_norm: float) -> None:
    with pytest.raises(CommandError, match=rf"^trainer\.clip_norm={clip_norm:g}: give a number above 0, or null$"):
        tiny_trainer(clip_norm=clip_norm)


def test_skipped_update_with_clipping_and_gradient_scaler_does_not_stop_the_run() -> None:
    def trained(clip_norm: float | None) -> Trainer:
        trainer = tiny_trainer(on_nonfinite="skip", clip_norm=clip_norm)
        trainer.objective.adversarial = Poisoned(1)
        trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        skipped = [trainer.train_step(random_batch([step], size=16)) == {} for step in range(4)]
        assert skipped == [False, True, False, False]
        return trainer

    clipped, plain = trained(1e9), trained(None)
    for name, value in plain.objective.generators.state_dict().items():
        torch.testing.assert_close(clipped.objective.generators.state_dict()[name], value)


class BadScores:
    """Adversarial loss whose loss of the discriminators is NaN at chosen steps."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.count = steps, 0

    def real(self, scores: Tensor) -> Tensor:
        self.count += 1
        step = (self.count - 1) // 2  # two discriminators per step
        return (scores - 1).square().mean() * (math.nan if step in self.steps else 1.0)

    def fake(self, scores: Tensor) -> Tensor:
        return scores.square().mean()

    def generator(self, scores: Tensor) -> Tensor:
        return (scores - 1).square().mean()


def test_moving_average_is_updated_if_only_discriminator_update_is_skipped() -> None:
    trainer = tiny_trainer(on_nonfinite="skip", ema=0.9)
    trainer.objective.adversarial = BadScores(1)
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    trainer.train_step(random_batch([0], size=16))
    before = copy.deepcopy((trainer.objective.modules, trainer.average.module))
    assert trainer.train_step(random_batch([1], size=16)) == {}
    (modules, average), key = before, "ab.stem.conv.weight"
    generators = trainer.objective.generators.state_dict()
    assert not torch.equal(generators[key], modules["generators"].state_dict()[key])
    expected = average.state_dict()[key].lerp(generators[key], 1 - 2 / 11)  # weight of the old average at step 1
    torch.testing.assert_close(trainer.average.module.state_dict()[key], expected)
    for name, value in modules["discriminators"].state_dict().items():
        assert torch.equal(value, trainer.objective.discriminators.state_dict()[name])
    assert trainer.updater.scaler.get_scale() == 2.0**11  # two steps counted


class Values:
    """Logger that keeps logged values by step."""

    def __init__(self) -> None:
        self.logs: dict[int, dict[str, float]] = {}

    def on_step(self, step: int) -> None:
        """Do nothing."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.logs[step] = dict(values)

    def pictures(self, step: int, a: object, b: object) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize("rate", [2e-4, 8e-4])
def test_both_learning_rates_follow_the_schedule(rate: float) -> None:
    schedule = Cosine(1, 2)
    trainer = tiny_trainer(steps=6, samples_per_epoch=2, schedule=schedule, lr_discriminators=rate)
    used: dict[str, list[float]] = {"generators": [], "discriminators": []}
    for name, rates in used.items():
        trainer.updater.optimizers[name].register_step_pre_hook(
            lambda optimizer, *_, rates=rates: rates.append(optimizer.param_groups[0]["lr"])
        )
    logger = Values()
    fit(trainer, (random_batch([step], size=16) for step in range(6)), loggers=[logger], log_every=1)
    factors = [schedule.factor(step / 2) for step in range(7)]
    assert len(set(factors)) > 3
    assert used["generators"] == pytest.approx([2e-4 * factor for factor in factors[:6]])
    assert used["discriminators"] == pytest.approx([rate * factor for factor in factors[:6]])
    for step in range(1, 7):  # a log has the rates of the next step
        assert logger.logs[step]["lr"] == pytest.approx(2e-4 * factors[step])
        if rate == 2e-4:
            assert "lr_discriminators" not in logger.logs[step]
        else:
            assert logger.logs[step]["lr_discriminators"] == pytest.approx(rate * factors[step])


def moments(trainer: Trainer, name: str) -> list[dict[str, Tensor]]:
    optimizer = trainer.updater.optimizers[name]
    return [optimizer.state.get(parameter, {}) for parameter in trainer.updater.optimizers.parameters(name)]


@pytest.mark.parametrize("saved_has_term", [True, False], ids=["removed", "added"])
def test_optimizer_moments_of_networks_are_kept_if_a_loss_term_is_removed_or_added(saved_has_term: bool) -> None:
    def trainer(*, has_term: bool) -> Trainer:
        return tiny_trainer(terms=[Weighted("distance", LayerDistance())] if has_term else [])

    saved, resumed = trainer(has_term=saved_has_term), trainer(has_term=not saved_has_term)
    for step in range(2):
        saved.train_step(random_batch([step], size=16))
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()), [copy.deepcopy(saved.rank_state_dict())])
    count = len(list(resumed.objective.generators.parameters()))
    for name, shared in (("generators", count), ("discriminators", None)):
        pairs = list(zip(moments(resumed, name)[:shared], moments(saved, name)[:shared], strict=True))
        assert pairs
        for actual, expected in pairs:
            assert actual.keys() == expected.keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(value, expected[key]) for key, value in actual.items())
    assert all(state == {} for state in moments(resumed, "generators")[count:])
    assert resumed.updater.optimizers["generators"].param_groups[0]["lr"] == 2e-4
    resumed.train_step(random_batch([2], size=16))
    assert all(state["step"] == (3 if i < count else 1) for i, state in enumerate(moments(resumed, "generators")))


class Averaging:
    """Objective with a single update, which trains a network to return the mean of both images.

    Its state has a count of steps, and a part of each rank.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.count, self.last = network, 0, torch.zeros(3)
        self.modules: dict[str, nn.Module] = {"network": network}
        self.parameters = {"network": list(network.parameters())}

    def step(self, images: Images, update: Update) -> Scalars:
        losses, outputs = update("network", [self.losses], images.a, images.b)
        self.count += 1
        self.last = 0.1 * outputs["output"].mean(dim=(0, 2, 3))
        return losses

    def losses(self, a: Tensor, b: Tensor) -> PartResult:
        output = self.network(a)
        target = (a + b) / 2 + 0.01 * torch.rand_like(a) + 0.001 * self.count + self.last.view(3, 1, 1)
        return PartResult(
            {"loss/mean": (output - target).square().mean()}, {"score/size": output.abs().mean()}, {"output": output}
        )

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]

    def rank_state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_rank_state_dicts(
        self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int, device: torch.device
    ) -> None:
        self.last = states[rank]["last"].to(device)


def averaging(*, steps: int) -> tuple[Trainer, Averaging]:
    torch.manual_seed(0)
    hardware = Hardware("cpu", precision="fp32")
    objective = Averaging(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1)))
    optimizers = Optimizers(network=adam(objective.network.parameters(), 1e-2))
    trainer = Trainer(
        objective,
        Updater(optimizers, hardware, accumulate=2),
        schedule=Cosine(0, 10),
        samples_per_epoch=4,
        average=make_ema(objective.network, 0.9),
        hardware=hardware,
        seed=0,
        batch_size=2,
        steps=steps,
    )
    return trainer, objective


def test_objective_with_a_single_update_trains_and_resumes_bit_exactly() -> None:
    saved: list[tuple[Any, ...]] = []

    def train(trainer: Trainer, objective: Averaging) -> list[float]:
        losses: list[float] = []

        def snapshot(moment: Any) -> None:
            modules = objective.network.state_dict(), trainer.average.module.state_dict()
            saved.append(copy.deepcopy((trainer.state_dict(), trainer.rank_state_dict(), *modules)))

        def log(moment: Any) -> None:
            losses.append(trainer.running_means.values()["loss/mean"])

        batches = (random_batch([2 * step, 2 * step + 1], size=8) for step in range(trainer.step, trainer.total))
        tasks = [Task(log, 1, at_start=False), Task(snapshot, 100, at_start=False)]
        assert trainer.fit(batches, tasks=tasks)
        return losses

    expected = train(*averaging(steps=8))
    assert expected[-1] < expected[0]
    assert len(expected) == 8

    begun = train(*averaging(steps=3))
    trainer, objective = averaging(steps=8)
    shared, rank, weights, average = saved[1]
    assert (shared["step"], shared["objective"]) == (3, {"count": 3})
    objective.network.load_state_dict(weights)
    trainer.average.module.load_state_dict(average)
    trainer.load_state_dict(shared, [rank])
    assert [*begun, *train(trainer, objective)] == expected
    torch.testing.assert_close(saved[2], saved[0], rtol=0, atol=0)


def test_restored_trainer_with_terms_resumes_bit_exactly() -> None:
    def built() -> Trainer:
        return tiny_trainer(batch_size=2, pool=3, ema=0.9, clip_norm=5.0, **tiny_terms())

    def train(trainer: Trainer, steps: int) -> list[dict[str, Tensor]]:
        steps_left = range(trainer.step, steps)
        return [trainer.train_step(random_batch([2 * step, 2 * step + 1], size=16)) for step in steps_left]

    straight, stopped, resumed = built(), built(), built()
    expected = train(straight, 6)
    train(stopped, 3)
    objective: CycleGAN = resumed.objective
    for name, module in objective.modules.items():
        module.load_state_dict(stopped.objective.modules[name].state_dict())
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()), [copy.deepcopy(stopped.rank_state_dict())])
    exact: Callable[..., None] = torch.testing.assert_close
    exact(train(resumed, 6), expected[3:], rtol=0, atol=0)
    exact(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)


def test_nonfinite_score_does_not_count_as_divergence() -> None:
    trainer, objective = averaging(steps=2)
    losses = objective.losses

    def with_infinite_score(a: Tensor, b: Tensor) -> PartResult:
        result = losses(a, b)
        return result._replace(scores={"score/size": result.images["output"].mean() / 0})

    objective.losses = with_infinite_score  # type: ignore[method-assign]
    values = trainer.train_step(random_batch([0, 1]))
    trainer.updater.check_finite(trainer.step)
    assert not values["score/size"].isfinite()
    assert not values["score/size"].requires_grad


def test_divergence_in_last_step_raises_error_even_without_tasks() -> None:
    trainer, objective = averaging(steps=1)
    with torch.no_grad():
        objective.parameters["network"][0].fill_(torch.nan)
    with pytest.raises(DivergedError, match="diverged at step 1"):
        trainer.fit(iter([random_batch([0, 1])]))
