"""The loop: what makes a step, and that it is the same step however it is divided and whenever it is interrupted."""

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
from tests.factories import random_batch, tiny_trainer
from tests.textbook import NAMES, Textbook
from tests.two_ranks import train_together

STEPS, BATCH = 40, 4
pytestmark = pytest.mark.usefixtures("double_precision")


def trained(trainer: Trainer, steps: int = STEPS, batch_size: int = BATCH) -> list[dict[str, float]]:
    """Train on pictures that follow from the draw; the losses and scores of every step."""
    told = []
    for step in range(trainer.step, steps):
        draws = list(range(step * batch_size, (step + 1) * batch_size))
        told.append({name: value.item() for name, value in trainer.train_step(random_batch(draws)).items()})
    return told


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        **{f"generators.{name}": value for name, value in trainer.objective.generators.state_dict().items()},
        **{f"discriminators.{name}": value for name, value in trainer.objective.discriminators.state_dict().items()},
    }


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    # In float64 a different order of additions shows in the 16th digit. A GAN multiplies such differences from step
    # to step, and Adam makes steps of 1e-12 of the rounding that is the gradient of a bias before an instance norm.
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_step_of_the_trainer_is_the_textbook_s() -> None:
    trainer = tiny_trainer(batch_size=2)
    generators, discriminators = copy.deepcopy((trainer.objective.generators, trainer.objective.discriminators))
    textbook = Textbook(generators.ab, generators.ba, discriminators.b, discriminators.a)
    for step in range(4):
        batch = random_batch([2 * step, 2 * step + 1])
        ours = trainer.train_step(batch)
        theirs = textbook.step(to_float(batch.a), to_float(batch.b))
        for name, reference in NAMES.items():
            assert ours[name].item() == pytest.approx(theirs[reference], rel=1e-9), (step, name)


class Waits(TorchDispatchMode):
    """Counts what a GPU would be waited for: numbers that Python reads, and shapes that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"):
            self.seen.append(func.name())
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_reads_no_number_from_the_device_before_a_log_asks(precision: str) -> None:
    torch.set_default_dtype(torch.float32)
    trainer = tiny_trainer(batch_size=2, accumulate=2, pool=3, ema=0.9, precision=precision)
    with Waits() as waits:
        for step in range(4):
            told = trainer.train_step(random_batch([2 * step, 2 * step + 1]))
            trainer.record.add(told, pictures=4)
        assert waits.seen == []
        trainer.check_finite()
        trainer.record.values()
        assert waits.seen  # that it would have seen them


def test_accumulated_parts_equal_one_batch_at_every_step() -> None:
    whole = tiny_trainer(batch_size=BATCH, pool=9)
    halves = tiny_trainer(batch_size=BATCH, pool=9, accumulate=2)
    for ours, theirs in zip(trained(whole), trained(halves), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-10)
    close(weights(whole), weights(halves))


def test_one_part_after_the_other_equals_all_at_once_at_every_step() -> None:
    split, joint = (
        tiny_trainer(batch_size=BATCH, pool=9, accumulate=2, backward=backward) for backward in ("split", "joint")
    )
    for ours, theirs in zip(trained(split), trained(joint), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-8, abs=1e-10)
    close(weights(split), weights(joint))


@pytest.mark.parametrize(
    ("backward", "size", "times"), [("split", 256, 2), ("split", 128, 0), ("joint", 256, 0)], ids=str
)
def test_memory_goes_back_between_the_parts_of_a_step_with_large_pictures(backward: str, size: int, times: int) -> None:
    class Counted(Hardware):
        given_back = 0

        def trim_memory(self) -> None:
            super().trim_memory()
            self.given_back += 1

    trainer = tiny_trainer(batch_size=2, accumulate=2, backward=backward)
    trainer.hardware = Counted("cpu", precision="fp32")
    trainer.train_step(random_batch([0, 1], size=size))
    assert trainer.hardware.given_back == times  # once in each of the accumulated parts


@pytest.mark.parametrize(("backward", "accumulate"), [("split", 1), ("joint", 1), ("split", 2)])
def test_two_processes_equal_one_at_every_step(backward: str, accumulate: int, tmp_path: Path) -> None:
    ranks = train_together(tmp_path, steps=STEPS, batch_size=BATCH, backward=backward, accumulate=accumulate)

    whole = tiny_trainer(batch_size=BATCH, pool=9, ema=0.9, backward="joint")
    told = trained(whole)
    shares = [rank.told for rank in ranks]
    states = [rank.state for rank in ranks]
    for step in range(STEPS):  # a process tells the mean over its share, the run the mean over processes
        both = {name: (shares[0][step][name] + shares[1][step][name]) / 2 for name in told[step]}
        assert both == pytest.approx(told[step], rel=1e-8, abs=1e-10), step
    for state in states:
        close(weights(whole), state["weights"])
        close(whole.average.module.state_dict(), state["average"])
    for name, value in states[0]["weights"].items():
        assert torch.equal(value, states[1]["weights"][name]), name

    for side in "ab":  # the pools of the two are, together, the pool of the one
        pool = getattr(whole.pools, side).state_dict()
        split = {position: images for state in states for position, images in state["own"]["pools"][side].items()}
        assert sorted(split) == sorted(pool) == list(range(BATCH))
        close(pool, split)


def test_a_restored_trainer_goes_on_bit_exactly() -> None:
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


def test_moments_from_other_hardware_take_the_layout_of_their_parameters() -> None:
    stopped = tiny_trainer()
    trained(stopped, 3, 1)
    shared = copy.deepcopy(stopped.state_dict())
    for moments in shared["optimizers"].values():
        for state in moments.values():
            for name, value in state.items():
                if value.dim() == 4:  # as a run on a GPU saves them
                    state[name] = value.contiguous(memory_format=torch.channels_last)
    resumed = tiny_trainer()
    resumed.objective.generators.load_state_dict(stopped.objective.generators.state_dict())
    resumed.objective.discriminators.load_state_dict(stopped.objective.discriminators.state_dict())
    resumed.load_state_dict(shared, [stopped.rank_state_dict()])
    assert trained(resumed, 5, 1) == trained(stopped, 5, 1)
    for name, value in weights(stopped).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_the_scale_of_fp16_gradients_goes_on_where_it_stood() -> None:
    def scaled() -> Trainer:
        trainer = tiny_trainer()
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)
        return trainer

    stopped, resumed = scaled(), scaled()
    trained(stopped, 4, 1)
    resumed.objective.generators.load_state_dict(stopped.objective.generators.state_dict())
    resumed.objective.discriminators.load_state_dict(stopped.objective.discriminators.state_dict())
    resumed.load_state_dict(*copy.deepcopy((stopped.state_dict(), [stopped.rank_state_dict()])))
    assert resumed.scaler.state_dict() == stopped.scaler.state_dict()
    assert resumed.scaler.get_scale() == 2.0**21  # grown once, after three steps
    assert trained(resumed, 7, 1) == trained(stopped, 7, 1)
    assert resumed.scaler.get_scale() == stopped.scaler.get_scale() == 2.0**22
    for name, value in weights(stopped).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_run_of_another_batch_size_is_refused() -> None:
    stopped = tiny_trainer(batch_size=2)
    trained(stopped, 1, 2)
    with pytest.raises(CommandError, match=r"trainer\.batch_size=4: the run was started with 2"):
        tiny_trainer(batch_size=4).load_state_dict(stopped.state_dict(), [stopped.rank_state_dict()])


def test_the_average_follows_the_paper_s_formula() -> None:
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
def test_a_batch_that_cannot_be_divided_is_refused_with_the_numbers(
    batch_size: int, ranks: int, accumulate: int, words: str
) -> None:
    with pytest.raises(CommandError, match=words):
        check_batch(batch_size, ranks=ranks, accumulate=accumulate)


class Diary:
    """A logger that remembers what it was told."""

    def __init__(self) -> None:
        self.logs: dict[int, dict[str, float]] = {}
        self.grids: list[int] = []
        self.steps: list[int] = []

    def on_step(self, step: int) -> None:
        self.steps.append(step)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.logs[step] = values

    def pictures(self, step: int, a: object, b: object) -> None:
        self.grids.append(step)

    def close(self) -> None:
        """Nothing to close."""


def fitted(trainer: Trainer, *, stop_at: int | None = None) -> tuple[Diary, list[int], bool]:
    diary, saves = Diary(), []
    batches = (random_batch([step]) for step in range(trainer.step, trainer.total))
    probe = random_batch([0, 1])
    finished = trainer.fit(
        batches,
        save=lambda *, last: saves.append(trainer.step),
        loggers=[diary],
        probes=(probe.a, probe.b),
        stop_requested=lambda: stop_at is not None and trainer.step >= stop_at,
    )
    return diary, saves, finished


def test_intervals_and_the_last_step_are_logged_sampled_and_saved_once() -> None:
    diary, saves, finished = fitted(tiny_trainer(steps=11, log_every=3, sample_every=4, save_every=5))
    assert finished
    assert list(diary.logs) == [3, 6, 9, 11]
    assert diary.grids == [0, 4, 8, 11]
    assert saves == [5, 10, 11]
    assert diary.steps == list(range(1, 12))


def test_a_request_to_stop_finishes_the_step_and_saves() -> None:
    trainer = tiny_trainer(steps=100, save_every=50)
    diary, saves, finished = fitted(trainer, stop_at=7)
    assert not finished
    assert saves == [7]
    assert diary.grids == [0]  # whoever asks to stop may not wait for pictures


def test_a_logger_that_fails_does_not_cost_the_checkpoint() -> None:
    class Full(Diary):
        def metrics(self, step: int, values: dict[str, float]) -> None:
            raise OSError("no space left")

    trainer, saves = tiny_trainer(steps=6, log_every=3, save_every=3), []
    with pytest.raises(OSError, match="no space left"):
        trainer.fit(
            (random_batch([step]) for step in range(6)),
            save=lambda *, last: saves.append(trainer.step),
            loggers=[Full()],
        )
    assert saves == [3]


def test_a_log_is_the_mean_since_the_last_one_and_names_rates_and_speed() -> None:
    each, _, _ = fitted(tiny_trainer(steps=4, log_every=1))
    twice, _, _ = fitted(tiny_trainer(steps=4, log_every=2))
    for name in ("loss/cycle_a", "loss/gan_ab", "score/real_b"):
        assert twice.logs[4][name] == pytest.approx((each.logs[3][name] + each.logs[4][name]) / 2)
    assert {"lr", "speed/images_per_s", "speed/waiting_for_data"} <= twice.logs[4].keys()
