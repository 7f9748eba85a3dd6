"""Losses and gradients that are not finite: detection, errors that name the first such step, skipping of such steps."""

import math

import pytest
import torch

from cyclestyle.data.dataset import Batch
from cyclestyle.distributed.world import World
from cyclestyle.errors import DivergedError
from cyclestyle.training.nonfinite import NonFiniteDetector
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import SKIPS
from tests.factories import fit, random_batch, tiny_trainer

CPU = torch.device("cpu")


def watched(*steps: tuple[float, float]) -> NonFiniteDetector:
    """Return a detector that has checked one update per pair; a pair is a loss and the first entry of its gradient."""
    detector = NonFiniteDetector(CPU)
    for step, (loss, gradient) in enumerate(steps):
        detector.watch(torch.tensor(step), {"loss": torch.tensor(loss)}, [torch.tensor([gradient, 3.0])])
    return detector


def test_finite_updates_are_not_reported_as_bad() -> None:
    assert watched((1.0, 2.0), (1e30, -1e15)).first(World()) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_step_and_values_of_first_bad_update_are_recorded(bad: float) -> None:
    first = watched((1.0, 2.0), (5.0, 4.0), (6.0, bad), (bad, 1.0), (7.0, 2.0)).first(World())
    assert first is not None
    assert first.step == 2
    assert first.values["loss"] == 6.0
    assert not math.isfinite(first.values["gradient norm"])
    first = watched((1.0, 2.0), (bad, 4.0), (6.0, bad)).first(World())
    assert first is not None
    assert first.step == 1
    assert first.values["gradient norm"] == 5.0  # norm of the gradient (4, 3)


def test_finite_loss_without_gradients_is_not_reported_as_bad() -> None:
    detector = NonFiniteDetector(CPU)
    detector.watch(torch.tensor(0), {"loss": torch.tensor(1.0)}, [])
    assert detector.first(World()) is None


class Poisoned:
    """Custom adversarial loss that is NaN at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.count = set(steps), 0

    def real(self, scores: torch.Tensor) -> torch.Tensor:
        return (scores - 1).square().mean()

    def fake(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.square().mean()

    def generator(self, scores: torch.Tensor) -> torch.Tensor:
        self.count += 1
        step = (self.count - 1) // 2  # two calls per step, one for each generator
        return (scores - 1).square().mean() * (math.nan if step in self.steps else 1.0)


def poisoned(*steps: int, **settings: object) -> Trainer:
    trainer = tiny_trainer(pool=3, ema=0.9, **settings)
    trainer.objective.adversarial = Poisoned(*steps)
    return trainer


def fitted(trainer: Trainer, steps: int, **every: int) -> tuple[list[int], dict[int, dict[str, float]]]:
    saves: list[int] = []
    logs: dict[int, dict[str, float]] = {}

    class Log:
        def on_step(self, step: int) -> None: ...
        def pictures(self, step: int, a: object, b: object) -> None: ...
        def close(self) -> None: ...
        def metrics(self, step: int, values: dict[str, float]) -> None:
            logs[step] = values

    trainer.total = steps
    batches = (random_batch([step]) for step in range(trainer.step, steps))
    fit(trainer, batches, save=lambda *, last: saves.append(trainer.step), loggers=[Log()], **every)
    return saves, logs


def test_divergence_error_raised_at_next_log_has_step_and_losses() -> None:
    trainer = poisoned(4)
    with pytest.raises(
        DivergedError, match=r"diverged at step 5: not finite \(.*gan_ab nan.*gradient norm nan"
    ) as error:
        fitted(trainer, 100, log_every=3, save_every=100)
    assert error.value.step == 4  # steps done before the diverged one
    assert error.value.code == 5
    assert trainer.step == 6


def test_diverged_step_raises_error_before_checkpoint_is_saved() -> None:
    trainer, saves = poisoned(4), []

    def save(*, last: bool) -> None:
        saves.append(trainer.step)

    with pytest.raises(DivergedError):
        fit(trainer, (random_batch([n]) for n in range(100)), save=save, log_every=100, save_every=3)
    assert saves == [3]
    trainer, saves = poisoned(4), []
    with pytest.raises(DivergedError):
        fit(
            trainer,
            (random_batch([n]) for n in range(100)),
            save=save,
            stop_requested=lambda: trainer.step == 8,
            log_every=100,
            save_every=100,
        )
    assert saves == []


def test_diverged_discriminators_are_detected() -> None:
    trainer = tiny_trainer()
    with torch.no_grad():
        trainer.updater.optimizers["discriminators"].param_groups[0]["params"][0][0, 0, 0, 0] = math.inf
    with pytest.raises(DivergedError, match="diverged at step 1"):
        fitted(trainer, 10, log_every=2)


def test_skipped_step_changes_only_the_step_count() -> None:
    trainer = poisoned(2, on_nonfinite="skip")
    for step in range(2):
        trainer.train_step(random_batch([step]))
    before = state(trainer)
    assert trainer.train_step(random_batch([2])) == {}
    assert trainer.step == 3
    assert all(torch.equal(value, before[name]) for name, value in state(trainer).items())
    trainer.train_step(random_batch([3]))
    assert not all(torch.equal(value, before[name]) for name, value in state(trainer).items())


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, module in (
        ("g", trainer.objective.generators), ("d", trainer.objective.discriminators), ("ema", trainer.average.module),
    ):  # fmt: skip
        tensors |= {f"{name} {key}": value.clone() for key, value in module.state_dict().items()}
    for name, optimizer in (
        ("g", trainer.updater.optimizers["generators"]),
        ("d", trainer.updater.optimizers["discriminators"]),
    ):
        for index, values in optimizer.state_dict()["state"].items():
            tensors |= {f"{name} {index} {key}": value.clone() for key, value in values.items()}
    for side, pool in (("a", trainer.objective.pools.a), ("b", trainer.objective.pools.b)):
        tensors |= {f"pool {side} {position}": images for position, images in pool.state_dict().items()}
    return tensors


def test_skipped_steps_are_counted_but_left_out_of_logged_means() -> None:
    _, logs = fitted(poisoned(1, 3, on_nonfinite="skip"), 5, log_every=5, save_every=100)
    assert logs[5]["skipped_steps"] == 2
    assert math.isfinite(logs[5]["loss/gan_ab"])
    _, alone = fitted(poisoned(on_nonfinite="skip"), 5, log_every=5, save_every=100)
    assert "skipped_steps" not in alone[5]


def test_too_many_consecutive_skips_raise_diverged_error() -> None:
    trainer = poisoned(*range(3, 100), on_nonfinite="skip")
    last = 3 + SKIPS
    with pytest.raises(DivergedError, match=f"diverged at step {last}:.*last of {SKIPS} in a row that were skipped"):
        fitted(trainer, 100, log_every=100, save_every=100)
    assert trainer.step == 3 + SKIPS


def test_isolated_skip_does_not_count_as_consecutive(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = poisoned(1, *range(20, 100), on_nonfinite="skip")
    with pytest.raises(DivergedError) as caught:
        fitted(trainer, 100, log_every=100, save_every=100)
    assert caught.value.step == 20 + SKIPS - 1


def test_consecutive_skips_are_counted_across_resume() -> None:
    stopped, resumed = (poisoned(*range(3, 100), on_nonfinite="skip") for _ in range(2))
    for step in range(8):
        stopped.train_step(random_batch([step]))
    resumed.load_state_dict(stopped.state_dict(), [stopped.rank_state_dict()])
    resumed.objective.adversarial.count = 16
    with pytest.raises(DivergedError, match=f"diverged at step {3 + SKIPS}:"):
        fitted(resumed, 20, log_every=100)


def test_diverged_step_raises_error_before_samples_are_logged() -> None:
    trainer, sampled = poisoned(2), []

    class SampleSteps:
        def on_step(self, step: int) -> None: ...
        def metrics(self, step: int, values: dict[str, float]) -> None: ...
        def close(self) -> None: ...
        def pictures(self, step: int, a: object, b: object) -> None:
            sampled.append(step)

    probe = random_batch([0])
    with pytest.raises(DivergedError):
        fit(
            trainer,
            (random_batch([n]) for n in range(100)),
            loggers=[SampleSteps()],
            probes=(probe.a, probe.b),
            log_every=40,
            save_every=40,
            sample_every=7,
        )
    assert sampled == [0]


@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_fp16_overflow_raises_diverged_error_only_at_lowest_scale(on_nonfinite: str) -> None:
    trainer = poisoned(on_nonfinite=on_nonfinite)
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # gradients overflow in float32
    fitted(trainer, 3, log_every=1)
    trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)
    with pytest.raises(DivergedError, match="overflow in fp16 at any scale"):
        fitted(trainer, 6, log_every=1)


def test_skip_and_stop_modes_train_identically_on_finite_losses() -> None:
    skipping, stopping = tiny_trainer(on_nonfinite="skip", ema=0.9), tiny_trainer(on_nonfinite="stop", ema=0.9)
    for step in range(4):
        batch: Batch = random_batch([step])
        skipping.train_step(batch)
        stopping.train_step(batch)
    expected = state(stopping)
    assert all(torch.equal(value, expected[name]) for name, value in state(skipping).items())
