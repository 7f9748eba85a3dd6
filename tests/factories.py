"""Factories of small real objects that many tests need."""

import torch
from torch import nn

from cyclestyle.data.dataset import Batch
from cyclestyle.distributed.world import World
from cyclestyle.hardware.device import Hardware
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, initialize
from cyclestyle.objectives.adversarial import LeastSquares
from cyclestyle.objectives.cyclegan import CycleGAN, Discriminators, Generators
from cyclestyle.objectives.image_pool import ImagePool
from cyclestyle.training.ema import make_ema
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.schedule import LinearDecay
from cyclestyle.training.trainer import Pools, Trainer


def tiny_objective(*, seed: int = 0, double: bool = False, prepare=None, **weights) -> CycleGAN:
    """A CycleGAN objective; generators have 4 channels and 2 blocks, discriminators 4 channels and 2 layers."""
    generators = Generators(ResNetGenerator(4, 2), ResNetGenerator(4, 2))
    discriminators = Discriminators(PatchDiscriminator(4, 2), PatchDiscriminator(4, 2))
    random = torch.Generator().manual_seed(seed)
    for module in (generators, discriminators):
        initialize(module, generator=random)
        if double:
            module.double()
    weights.setdefault("adversarial", LeastSquares())
    return CycleGAN(generators, discriminators, **weights, **({"prepare": prepare} if prepare else {}))


def adam(module: nn.Module, lr: float = 2e-4) -> torch.optim.Adam:
    return torch.optim.Adam(list(module.parameters()), lr, betas=(0.5, 0.999), fused=True)


def tiny_trainer(
    *,
    batch_size: int = 1,
    pool: int = 50,
    ema: float = 0.0,
    world: World | None = None,
    seed: int = 0,
    precision: str = "fp32",
    hardware: Hardware | None = None,
    samples_per_epoch: int = 10,
    schedule: LinearDecay | None = None,
    **settings,
) -> Trainer:
    """A trainer of `tiny_objective` in this process, at step 0; `hardware` replaces `world` and `precision`."""
    hardware = hardware or Hardware("cpu", precision=precision, world=world)
    objective = tiny_objective(seed=seed, prepare=hardware.wrap)
    for module in (objective.generators, objective.discriminators):
        hardware.to_device(module, training=True)
    settings.setdefault("steps", 1000)
    return Trainer(
        objective,
        Optimizers(adam(objective.generators), adam(objective.discriminators)),
        schedule=schedule or LinearDecay(),
        samples_per_epoch=samples_per_epoch,
        pools=Pools(*(ImagePool(pool, batch_size=batch_size, seed=seed, purpose=f"pool {side}") for side in "ab")),
        average=make_ema(objective.generators, ema),
        hardware=hardware,
        seed=seed,
        batch_size=batch_size,
        **settings,
    )


def random_batch(draws: list[int], *, size: int = 32) -> Batch:
    """Random images, (N, 3, size, size) uint8, one per sample index in `draws`; an image depends only on its index."""

    def images(domain: int) -> torch.Tensor:
        return torch.stack(
            [
                torch.randint(
                    0,
                    256,
                    (3, size, size),
                    dtype=torch.uint8,
                    generator=torch.Generator().manual_seed(2 * draw + domain),
                )
                for draw in draws
            ]
        )

    return Batch(images(0), images(1), draws)
