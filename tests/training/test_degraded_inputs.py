"""Degraded inputs of the generators (`augment.robust`): clean losses, ranks, micro-batches, resume, and the config."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import l1_loss

from cyclestyle.assembly.objective import build_degrade
from cyclestyle.objectives.degradations import RandomDegradations
from cyclestyle.objectives.step import Images, UpdateResult
from cyclestyle.objectives.terms import Direction, Weighted
from cyclestyle.training.trainer import Trainer
from tests.checkpoints.test_directory import equal
from tests.factories import random_batch, tiny_objective, tiny_trainer
from tests.test_train import Command, newest, rewrite, run, same, smoke  # noqa: F401 - a fixture
from tests.test_train import scenes as scenes  # a fixture
from tests.training.test_trainer import Waits, assert_close, weights
from tests.two_ranks import train_together

STEPS, BATCH = 6, 4


def negative(images: Tensor, draws: list[int], *, domain: str) -> Tensor:
    """A degradation that is easy to recognise: the negative image."""
    return -images


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("backward", ["split", "joint"])
def test_generators_get_degraded_images_and_losses_compare_clean_ones(backward: str) -> None:
    seen: dict[str, Direction] = {}

    def look(direction: Direction) -> Tensor:
        seen[direction.name] = direction
        return direction.fake.mean()

    look.needs = ("reconstructed", "identity")
    look.layers = ("down",)
    objective = tiny_objective(double=True, backward=backward, degrade=negative, terms=[Weighted("look", look)], pool=0)
    batch = random_batch([0, 1])
    a, b = (images.double() / 127.5 - 1 for images in (batch.a, batch.b))
    losses: dict[str, Tensor] = {}
    discriminated: list[Tensor] = []

    def update(name: str, parts: Any, *tensors: Tensor) -> UpdateResult:
        results = [part(*tensors) for part in parts]
        for result in results:
            losses.update(result.losses)
        if name == "discriminators":
            discriminated.extend(tensors)
        return UpdateResult({}, {key: image for result in results for key, image in result.images.items()})

    objective.step(Images(a, b, [0, 1]), update)
    ab, ba = objective.generators.ab, objective.generators.ba
    torch.testing.assert_close(losses["loss/cycle_a"], 10 * l1_loss(ba(ab(-a)), a))
    torch.testing.assert_close(losses["loss/cycle_b"], 10 * l1_loss(ab(ba(-b)), b))
    torch.testing.assert_close(losses["loss/identity_a"], 5 * l1_loss(ba(-a), a))
    torch.testing.assert_close(losses["loss/identity_b"], 5 * l1_loss(ab(-b), b))
    for found, expected in zip(discriminated, (a, b, ba(-b), ab(-a)), strict=True):
        torch.testing.assert_close(found, expected)
    assert torch.equal(seen["ab"].source, a)
    assert torch.equal(seen["ab"].target, b)
    assert torch.equal(seen["ba"].source, b)
    torch.testing.assert_close(seen["ba"].source_features["down"], ba.down(ba.stem(-b)))


def trained(trainer: Trainer, steps: int = STEPS) -> list[dict[str, float]]:
    """Train on random images from the step of the trainer on; return the losses of every step."""
    losses = []
    for step in range(trainer.step, steps):
        batch = random_batch(list(range(step * BATCH, (step + 1) * BATCH)))
        losses.append({name: value.item() for name, value in trainer.train_step(batch).items()})
    return losses


def degraded_trainer(**settings: Any) -> Trainer:
    degrade = RandomDegradations(0.8, seed=0)
    return tiny_trainer(batch_size=BATCH, pool=9, ema=0.9, degrade=degrade, **settings)


@pytest.mark.usefixtures("double_precision")
def test_degraded_micro_batches_equal_whole_batch() -> None:
    whole, halves = degraded_trainer(backward="joint"), degraded_trainer(accumulate=2)
    for losses, expected in zip(trained(halves), trained(whole), strict=True):
        assert losses == pytest.approx(expected, rel=1e-8, abs=1e-10)
    assert_close(weights(halves), weights(whole))


@pytest.mark.usefixtures("double_precision")
def test_two_ranks_with_degraded_inputs_match_one_process(tmp_path: Path) -> None:
    ranks = train_together(tmp_path, steps=STEPS, batch_size=BATCH, backward="split", accumulate=2, robust=0.8)
    whole = degraded_trainer()
    for step, expected in enumerate(trained(whole)):
        both = {name: sum(rank.losses[step][name] for rank in ranks) / 2 for name in expected}
        assert both == pytest.approx(expected, rel=1e-8, abs=1e-10), step
    for rank in ranks:
        assert_close(weights(whole), rank.state["weights"])
        assert_close(whole.average.module.state_dict(), rank.state["average"])


def test_trainer_with_degraded_inputs_resumes_bit_exactly() -> None:
    straight, stopped, resumed = degraded_trainer(), degraded_trainer(), degraded_trainer()
    expected = trained(straight, 6)
    trained(stopped, 3)
    for name, module in resumed.objective.modules.items():
        module.load_state_dict(stopped.objective.modules[name].state_dict())
    resumed.average.module.load_state_dict(stopped.average.module.state_dict())
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()), [copy.deepcopy(stopped.rank_state_dict())])
    assert trained(resumed, 6) == expected[3:]
    torch.testing.assert_close(weights(resumed), weights(straight), rtol=0, atol=0)
    torch.testing.assert_close(resumed.rank_state_dict()["pools"], straight.rank_state_dict()["pools"], rtol=0, atol=0)


def test_degraded_step_never_waits_for_the_device() -> None:
    trainer = degraded_trainer()
    with Waits() as waits:
        for step in range(4):
            trainer.train_step(random_batch(list(range(step * BATCH, (step + 1) * BATCH))))
    assert waits.operations == []


def test_strength_0_builds_no_degradation() -> None:
    assert build_degrade(0, robust=0.0) is None
    assert build_degrade(0, robust=0.1) is not None


def test_command_degrades_inputs_only_if_asked_and_resumes_bit_exactly(smoke: Command) -> None:  # noqa: F811
    assert smoke("name=clean", "trainer.steps=4") == 0
    assert smoke("name=off", "trainer.steps=4", "augment.robust=0") == 0
    assert smoke("name=robust", "trainer.steps=4", "augment.robust=0.8") == 0
    assert smoke("name=twice", "trainer.steps=2", "augment.robust=0.8") == 0
    assert smoke("name=twice", "trainer.steps=4", "augment.robust=0.8") == 0
    assert same(newest("runs/off"), newest("runs/clean"))
    assert same(newest("runs/twice"), newest("runs/robust"))
    assert not equal(newest("runs/robust").model.tensors, newest("runs/clean").model.tensors)


def test_run_saved_without_augment_key_resumes_with_clean_inputs(
    smoke: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert smoke("name=whole", "trainer.steps=4") == 0
    assert smoke("name=old", "trainer.steps=2") == 0
    rewrite("runs/old", lambda training: training["recipe"].pop("augment"))
    config = OmegaConf.load("runs/old/config.yaml")
    del config["augment"]
    OmegaConf.save(config, "runs/old/config.yaml")

    assert smoke("name=old", "trainer.steps=4", "augment.robust=0.5") == 2
    assert "augment.robust: 0.0 -> 0.5" in capsys.readouterr().err
    assert run("experiment=runs/old/config.yaml", "name=old", "trainer.steps=4") == 0
    assert same(newest("runs/old"), newest("runs/whole"))


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("augment.robust=1.5", "augment.robust=1.5: give a number from 0 (off) to 1"),
        ("augment.robust=strong", "augment.robust=strong: expected a number"),
        ("augment.robst=0.5", "no key augment.robst: did you mean augment.robust?"),
        ("augment.seed=3", "no key augment.seed: --help lists the keys"),
    ],
)
def test_bad_augment_setting_gives_one_line_error(
    smoke: Command,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    setting: str,
    error: str,
) -> None:
    assert smoke(setting) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert error in lines[0]


def test_objective_that_cannot_degrade_is_refused(
    smoke: Command,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "clean_only.py").write_text(
        "class CleanOnly:\n    def __init__(self, generators, discriminators, *, prepare): raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert smoke("objective._target_=clean_only.CleanOnly", "augment.robust=0.5") == 2
    assert "augment.robust=0.5: clean_only.CleanOnly has no argument `degrade`" in capsys.readouterr().err
    sys.modules.pop("clean_only")
