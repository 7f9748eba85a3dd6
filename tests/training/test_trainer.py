"""The trainer: one step, its division over micro-batches and ranks, resume, and when to log, sample and save."""

import copy
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cyclestyle.errors import CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.images.tensors import to_float
from cyclestyle.training.optimization import check_batch
from cyclestyle.training.trainer import Trainer
from tests.factories import fit, random_batch, tiny_trainer
from tests.textbook import NAMES, Textbook
from tests.two_ranks import train_together

STEPS, BATCH = 40, 4
pytestmark = pytest.mark.usefixtures("double_precision")


def trained(trainer: Trainer, steps: int = STEPS, batch_size: int = BATCH) -> list[dict[str, float]]:
    """Train on images that depend on the sample index alone; return the losses and scores of every step."""
    losses = []
    for step in range(trainer.step, steps):
        draws = list(range(step * batch_size, (step + 1) * batch_size))
        losses.append({name: value.item() for name, value in trainer.train_step(random_batch(draws)).items()})
    return losses


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        **{f"generators.{name}": value for name, value in trainer.objective.generators.state_dict().items()},
        **{f"discriminators.{name}": value for name, value in trainer.objective.discriminators.state_dict().items()},
    }


def assert_close(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    # In float64 another order of additions changes the 16th digit, and a GAN amplifies such differences from step to
    # step. The gradient of a bias before an instance norm is pure rounding, from which Adam makes steps of 1e-12.
    for name, value in actual.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_train_step_losses_match_textbook_implementation() -> None:
    trainer = tiny_trainer(batch_size=2)
    generators, discriminators = copy.deepcopy((trainer.objective.generators, trainer.objective.discriminators))
    textbook = Textbook(generators.ab, generators.ba, discriminators.b, discriminators.a)
    for step in range(4):
        batch = random_batch([2 * step, 2 * step + 1])
        losses = trainer.train_step(batch)
        expected = textbook.step(to_float(batch.a), to_float(batch.b))
        for name, textbook_name in NAMES.items():
            assert losses[name].item() == pytest.approx(expected[textbook_name], rel=1e-9), (step, name)


class Waits(TorchDispatchMode):
    """Records operations that wait for a GPU: Python reads a tensor's value, or an output's shape depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"):
            self.operations.append(func.name())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_train_step_never_waits_for_the_device(precision: str) -> None:
    torch.set_default_dtype(torch.float32)
    trainer = tiny_trainer(batch_size=2, accumulate=2, pool=3, ema=0.9, precision=precision)
    with Waits() as waits:
        for step in range(4):
            losses = trainer.train_step(random_batch([2 * step, 2 * step + 1]))
            trainer.running_means.add(losses, pictures=4)
        assert waits.operations == []
        trainer.updater.check_finite(trainer.step)
        trainer.running_means.values()
        assert waits.operations  # shows that `Waits` records such operations


def test_micro_batches_and_whole_batch_give_equal_losses() -> None:
    whole = tiny_trainer(batch_size=BATCH, pool=9)
    halves = tiny_trainer(batch_size=BATCH, pool=9, accumulate=2)
    for losses, expected in zip(trained(whole), trained(halves), strict=True):
        assert losses == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert_close(weights(whole), weights(halves))


def test_split_and_joint_backward_passes_give_equal_losses_and_weights() -> None:
    split, joint = (
        tiny_trainer(batch_size=BATCH, pool=9, accumulate=2, backward=backward) for backward in ("split", "joint")
    )
    for losses, expected in zip(trained(split), trained(joint), strict=True):
        assert losses == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert_close(weights(split), weights(joint))


@pytest.mark.parametrize(
    ("backward", "size", "times"), [("split", 256, 2), ("split", 128, 0), ("joint", 256, 0)], ids=str
)
def test_memory_is_trimmed_between_directions_for_large_images(backward: str, size: int, times: int) -> None:
    class Counted(Hardware):
        trims = 0

        def trim_memory(self) -> None:
            super().trim_memory()
            self.trims += 1

    trainer = tiny_trainer(batch_size=2, accumulate=2, backward=backward, hardware=Counted("cpu", precision="fp32"))
    trainer.train_step(random_batch([0, 1], size=size))
    assert trainer.hardware.trims == times  # one trim for each micro-batch


@pytest.mark.parametrize(("backward", "accumulate"), [("split", 1), ("joint", 1), ("split", 2)])
def test_two_ranks_match_one_rank_at_every_step(backward: str, accumulate: int, tmp_path: Path) -> None:
    ranks = train_together(tmp_path, steps=STEPS, batch_size=BATCH, backward=backward, accumulate=accumulate)

    whole = tiny_trainer(batch_size=BATCH, pool=9, ema=0.9, backward="joint")
    expected = trained(whole)
    shares = [rank.losses for rank in ranks]
    states = [rank.state for rank in ranks]
    for step in range(STEPS):  # a rank returns means over its share; the mean over ranks is the mean of the batch
        both = {name: (shares[0][step][name] + shares[1][step][name]) / 2 for name in expected[step]}
        assert both == pytest.approx(expected[step], rel=1e-8, abs=1e-10), step
    for state in states:
        assert_close(weights(whole), state["weights"])
        assert_close(whole.average.module.state_dict(), state["average"])
    for name, value in states[0]["weights"].items():
        assert torch.equal(value, states[1]["weights"][name]), name

    for side in "ab":  # the pools of both ranks together equal the pool of the single process
        pool = getattr(whole.objective.pools, side).state_dict()
        split = {
            position: images for state in states for position, images in state["rank_state"]["pools"][side].items()
        }
        assert sorted(split) == sorted(pool) == list(range(BATCH))
        assert_close(pool, split)


def test_restored_trainer_resumes_bit_exactly() -> None:
    straight = tiny_trainer(batch_size=2, pool=6, ema=0.9)
    expected = trained(straight, 20, 2)

    stopped = tiny_trainer(batch_size=2, pool=6, ema=0.9)
    trained(stopped, 9, 2)
    resumed = tiny_trainer(batch_size=2, pool=6, ema=0.9, seed=0)
    resumed.objective.generators.load_state_dict(stopped.objective.generators.state_dict())
    resumed.objective.discriminators.load_state_dict(stopped.objective.discriminators.state_dict())
    resumed.average.module.load_state_dict(stopped.average.module.state_dict())
    resumed.load_state_dict(stopped.state_dict(), [stopped.rank_state_dict()])

    assert trained(resumed, 20, 2) == expected[9:]
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_loaded_optimizer_moments_take_memory_layout_of_parameters() -> None:
    stopped = tiny_trainer()
    trained(stopped, 3, 1)
    shared = copy.deepcopy(stopped.state_dict())
    for moments in shared["optimizers"].values():
        for state in moments.values():
            for name, value in state.items():
                if value.dim() == 4:  # layout of moments saved on a GPU
                    state[name] = value.contiguous(memory_format=torch.channels_last)
    resumed = tiny_trainer()
    resumed.objective.generators.load_state_dict(stopped.objective.generators.state_dict())
    resumed.objective.discriminators.load_state_dict(stopped.objective.discriminators.state_dict())
    resumed.load_state_dict(shared, [stopped.rank_state_dict()])
    assert trained(resumed, 5, 1) == trained(stopped, 5, 1)
    for name, value in weights(stopped).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_fp16_gradient_scale_is_restored_on_resume() -> None:
    def scaled() -> Trainer:
        trainer = tiny_trainer()
        trainer.updater.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        return trainer

    stopped, resumed = scaled(), scaled()
    trained(stopped, 4, 1)
    resumed.objective.generators.load_state_dict(stopped.objective.generators.state_dict())
    resumed.objective.discriminators.load_state_dict(stopped.objective.discriminators.state_dict())
    resumed.load_state_dict(*copy.deepcopy((stopped.state_dict(), [stopped.rank_state_dict()])))
    assert resumed.updater.scaler.state_dict() == stopped.updater.scaler.state_dict()
    assert resumed.updater.scaler.get_scale() == 2.0**21  # doubled once, after three steps
    assert trained(resumed, 7, 1) == trained(stopped, 7, 1)
    assert resumed.updater.scaler.get_scale() == stopped.updater.scaler.get_scale() == 2.0**22
    for name, value in weights(stopped).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_resume_with_changed_batch_size_is_rejected() -> None:
    stopped = tiny_trainer(batch_size=2)
    trained(stopped, 1, 2)
    with pytest.raises(CommandError, match=r"trainer\.batch_size=4: the run was started with 2"):
        tiny_trainer(batch_size=4).load_state_dict(stopped.state_dict(), [stopped.rank_state_dict()])


def test_moving_average_matches_formula() -> None:
    trainer = tiny_trainer(ema=0.9)
    name = "ab.stem.conv.weight"
    expected = trainer.objective.generators.state_dict()[name].clone()
    for step in range(30):
        trainer.train_step(random_batch([step]))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trainer.objective.generators.state_dict()[name]
    torch.testing.assert_close(trainer.average.module.state_dict()[name], expected)


@pytest.mark.parametrize(
    ("batch_size", "ranks", "accumulate", "words"),
    [(3, 1, 2, "multiple of 2"), (4, 2, 3, "2 process.* 3 accumulated.* multiple of 6"), (0, 1, 1, "1 or more")],
)
def test_batch_size_not_divisible_by_ranks_is_rejected(
    batch_size: int, ranks: int, accumulate: int, words: str
) -> None:
    with pytest.raises(CommandError, match=words):
        check_batch(batch_size, ranks=ranks, accumulate=accumulate)


class MemoryLogger:
    """Logger that records metrics, steps with samples, and all steps in memory."""

    def __init__(self) -> None:
        self.logs: dict[int, dict[str, float]] = {}
        self.sampled: list[int] = []
        self.steps: list[int] = []

    def on_step(self, step: int) -> None:
        self.steps.append(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.logs[step] = values

    def pictures(self, step: int, a: object, b: object) -> None:
        self.sampled.append(step)

    def close(self) -> None:
        """Do nothing."""


def fitted(trainer: Trainer, *, stop_at: int | None = None, **every: int) -> tuple[MemoryLogger, list[int], bool]:
    logger, saves = MemoryLogger(), []
    batches = (random_batch([step]) for step in range(trainer.step, trainer.total))
    probe = random_batch([0, 1])
    finished = fit(
        trainer,
        batches,
        save=lambda *, last: saves.append(trainer.step),
        loggers=[logger],
        probes=(probe.a, probe.b),
        stop_requested=lambda: stop_at is not None and trainer.step >= stop_at,
        **every,
    )
    return logger, saves, finished


def test_due_steps_and_last_step_are_logged_sampled_and_saved_once() -> None:
    logger, saves, finished = fitted(tiny_trainer(steps=11), log_every=3, sample_every=4, save_every=5)
    assert finished
    assert list(logger.logs) == [3, 6, 9, 11]
    assert logger.sampled == [0, 4, 8, 11]
    assert saves == [5, 10, 11]
    assert logger.steps == list(range(1, 12))


def test_stop_request_ends_training_with_save_and_without_samples() -> None:
    trainer = tiny_trainer(steps=100)
    logger, saves, finished = fitted(trainer, stop_at=7, save_every=50)
    assert not finished
    assert saves == [7]
    assert logger.sampled == [0]  # a stop does not wait for samples


def test_checkpoint_is_saved_before_a_logger_fails() -> None:
    class FullDisk(MemoryLogger):
        def metrics(self, step: int, values: dict[str, float]) -> None:
            raise OSError("no space left")

    trainer, saves = tiny_trainer(steps=6), []
    with pytest.raises(OSError, match="no space left"):
        fit(
            trainer,
            (random_batch([step]) for step in range(6)),
            save=lambda *, last: saves.append(trainer.step),
            loggers=[FullDisk()],
            log_every=3,
            save_every=3,
        )
    assert saves == [3]


def test_log_has_learning_rate_and_speed_and_means_since_last_log() -> None:
    each, _, _ = fitted(tiny_trainer(steps=4), log_every=1)
    twice, _, _ = fitted(tiny_trainer(steps=4), log_every=2)
    for name in ("loss/cycle_a", "loss/gan_ab", "score/real_b"):
        assert twice.logs[4][name] == pytest.approx((each.logs[3][name] + each.logs[4][name]) / 2)
    assert {"lr", "speed/images_per_s", "speed/waiting_for_data"} <= twice.logs[4].keys()
