"""Training with discriminators of a plugin that have spectral norm: checkpoints, resume and init."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cyclestyle.checkpoints.directory import Checkpoints, read
from cyclestyle.distributed.world import World
from cyclestyle.hardware.device import Hardware
from cyclestyle.networks import ResNetGenerator, initialize, load_plugins
from cyclestyle.networks.registry import build
from cyclestyle.objectives.adversarial import LeastSquares
from cyclestyle.objectives.cyclegan import CycleGAN
from cyclestyle.objectives.pairs import Discriminators, Generators
from cyclestyle.training.ema import make_ema
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.schedule import LinearDecay
from cyclestyle.training.state import check_architectures, load_networks, snapshot_model
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import Updater
from tests.factories import adam, pools, random_batch
from tests.plugins import on_path, write_module


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path) -> Iterator[None]:
    with on_path(tmp_path):
        load_plugins([write_module(tmp_path)])
        yield


def spectral_trainer(*, seed: int) -> Trainer:
    """A trainer whose discriminators have spectral norm, and differ in width."""
    hardware = Hardware("cpu", precision="fp32")
    generators = Generators(ResNetGenerator(4, 1), ResNetGenerator(4, 1))
    discriminators = Discriminators(*(build({"name": "spectral", "width": width}) for width in (3, 5)))
    random = torch.Generator().manual_seed(seed)
    for module in (generators, discriminators):
        initialize(module, generator=random)
        hardware.to_device(module, training=True)
    objective = CycleGAN(generators, discriminators, adversarial=LeastSquares(), pools=pools(2), prepare=hardware.wrap)
    optimizers = Optimizers(**{name: adam(parameters) for name, parameters in objective.parameters.items()})
    return Trainer(
        objective,
        Updater(optimizers, hardware),
        schedule=LinearDecay(),
        samples_per_epoch=10,
        average=make_ema(generators, 0.9),
        hardware=hardware,
        seed=0,
        batch_size=1,
        steps=100,
    )


def train(trainer: Trainer, *, until: int) -> Trainer:
    while trainer.step < until:
        trainer.train_step(random_batch([trainer.step]))
    return trainer


def test_resumed_training_equals_uninterrupted_training(tmp_path: Path) -> None:
    trainer = train(spectral_trainer(seed=0), until=3)
    model = snapshot_model(trainer, ("photo", "monet"))
    folder = Checkpoints(tmp_path / "checkpoints").save(
        model, trainer.state_dict(), trainer.rank_state_dict(), world=World()
    )
    expected = snapshot_model(train(trainer, until=6), ("photo", "monet")).tensors

    checkpoint = read(folder)
    resumed = spectral_trainer(seed=1)
    load_networks(checkpoint.model, resumed.objective)
    resumed.load_state_dict(checkpoint.training, checkpoint.ranks)
    tensors = snapshot_model(train(resumed, until=6), ("photo", "monet")).tensors

    assert "discriminators.a.layers.0.parametrizations.weight.0._u" in tensors
    for name, value in expected.items():
        if not name.startswith("ema."):
            assert torch.equal(tensors[name], value), name


def test_model_records_the_architecture_of_each_discriminator(tmp_path: Path) -> None:
    trainer = spectral_trainer(seed=0)
    model = snapshot_model(trainer, ("photo", "monet"))
    assert model.discriminators == {side: {"name": "spectral", "width": width} for side, width in (("a", 3), ("b", 5))}
    check_architectures(model, trainer.objective, init="runs/mine")
