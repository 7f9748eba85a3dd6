"""Factories of small real objects that many tests need."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from cyclestyle.assembly.trainer import graphed
from cyclestyle.data.dataset import Batch
from cyclestyle.distributed.world import World
from cyclestyle.hardware.device import Hardware
from cyclestyle.monitor.logger import Logger
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, initialize
from cyclestyle.objectives.adversarial import LeastSquares
from cyclestyle.objectives.cyclegan import CycleGAN, Pools
from cyclestyle.objectives.image_pool import ImagePool
from cyclestyle.objectives.pairs import Discriminators, Generators
from cyclestyle.objectives.perceptual import ContentTerm, StyleTerm, unchanged
from cyclestyle.objectives.terms import Direction, Weighted
from cyclestyle.training.ema import make_ema
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.periodic import Save, Task, usual_tasks
from cyclestyle.training.schedule import LinearDecay, Schedule
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import Updater


def tiny_objective(
    *, seed: int = 0, double: bool = False, prepare=None, pool: int = 50, batch_size: int = 1, **settings
) -> CycleGAN:
    """A CycleGAN objective; generators have 4 channels and 2 blocks, discriminators 4 channels and 2 layers."""
    generators = Generators(ResNetGenerator(4, 2), ResNetGenerator(4, 2))
    discriminators = Discriminators(PatchDiscriminator(4, 2), PatchDiscriminator(4, 2))
    random = torch.Generator().manual_seed(seed)
    for module in (generators, discriminators):
        initialize(module, generator=random)
        if double:
            module.double()
    settings.setdefault("adversarial", LeastSquares())
    settings.setdefault("pools", pools(pool, batch_size=batch_size, seed=seed))
    return CycleGAN(generators, discriminators, **settings, **({"prepare": prepare} if prepare else {}))


class LayerDistance(nn.Module):
    """Term with a trained head: mean squared distance between projected generator activations of photo and output."""

    layers = ("down", "trunk.0")  # both have 16 channels in `tiny_objective`

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.head = nn.Conv2d(16, 3, 1)
        random = torch.Generator().manual_seed(seed)
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, std=0.5, generator=random)

    def forward(self, direction: Direction) -> torch.Tensor:
        pairs = [(direction.fake_features[layer], direction.source_features[layer]) for layer in self.layers]
        return torch.stack(
            [(self.head(fake).tanh() - self.head(source).tanh()).square().mean() for fake, source in pairs]
        ).sum()


class GradientPenalty:
    """Discriminator term: mean over the real images of the squared gradient norm (R1)."""

    def __call__(self, discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        images = real.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
        return gradient.square().sum(dim=(1, 2, 3)).mean()


class Calibration(nn.Module):
    """Discriminator term with a trained parameter, a factor for the mean score of real images."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        return (self.factor * discriminator(real).mean(dim=(1, 2, 3)) - 1).square().mean()


def tiny_terms() -> dict[str, list[Weighted]]:
    """Terms of both sides of `tiny_objective`: two with parameters, and R1."""
    return {
        "terms": [Weighted("distance", LayerDistance(), 2.0)],
        "discriminator_terms": [Weighted("r1", GradientPenalty(), 0.5), Weighted("calibration", Calibration(), 0.1)],
    }


class TinyFeatures(nn.Module):
    """Frozen random network with the interface of the pretrained networks: two layers, of 6 and 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)])
        random = torch.Generator().manual_seed(3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.4, generator=random)
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor, layers: Sequence[str]) -> dict[str, torch.Tensor]:
        first = self.steps[0](images).relu()
        found = {"first": first, "second": self.steps[1](first).relu()}
        return {layer: found[layer] for layer in layers}


def training_images(domain: str, /, count: int) -> torch.Tensor:
    """Up to four training images of a domain, for the style term; those of domain b are dark."""
    images = random_batch(list(range(100, 100 + min(count, 4))))["ab".index(domain)]
    return images if domain == "a" else images // 3


def perceptual_terms(distance: str = "wasserstein", *, images=training_images, prepare=unchanged) -> list[Weighted]:
    """Content and style terms with `TinyFeatures`."""

    def load(name: str, /, *, path: str | None) -> nn.Module:
        return TinyFeatures()

    content = ContentTerm(load, layer="second", prepare=prepare)
    style = StyleTerm(load, images, distance=distance, layers=("first", "second"), reference_images=2, prepare=prepare)
    return [Weighted("content", content, 0.5), Weighted("style", style, 2.0)]


def pools(size: int = 50, *, batch_size: int = 1, seed: int = 0) -> Pools:
    """Empty image pools of both domains."""
    return Pools(*(ImagePool(size, batch_size=batch_size, seed=seed, purpose=f"pool {side}") for side in "ab"))


def adam(parameters: Iterable[nn.Parameter], lr: float = 2e-4) -> torch.optim.Adam:
    return torch.optim.Adam(list(parameters), lr, betas=(0.5, 0.999), fused=True)


def tiny_trainer(
    *,
    batch_size: int = 1,
    pool: int = 50,
    ema: float = 0.0,
    world: World | None = None,
    seed: int = 0,
    precision: str = "fp32",
    hardware: Hardware | None = None,
    lr_discriminators: float = 2e-4,
    samples_per_epoch: int = 10,
    schedule: Schedule | None = None,
    steps: int = 1000,
    epochs: int | None = None,
    accumulate: int = 1,
    on_nonfinite: str = "stop",
    clip_norm: float | None = None,
    cuda_graphs: bool | str = False,
    **settings,
) -> Trainer:
    """A trainer of `tiny_objective` in this process, at step 0.

    `hardware` replaces `world` and `precision`; `settings` are those of the objective.
    """
    hardware = hardware or Hardware("cpu", precision=precision, world=world)
    objective = tiny_objective(seed=seed, prepare=hardware.wrap, pool=pool, batch_size=batch_size, **settings)
    for module in (objective.generators, objective.discriminators):
        hardware.to_device(module, training=True)
    rates = {"discriminators": lr_discriminators}
    optimizers = Optimizers(**{name: adam(each, rates.get(name, 2e-4)) for name, each in objective.parameters.items()})
    updater = Updater(optimizers, hardware, accumulate=accumulate, on_nonfinite=on_nonfinite, clip_norm=clip_norm)
    return Trainer(
        objective,
        updater,
        schedule=schedule or LinearDecay(),
        samples_per_epoch=samples_per_epoch,
        average=make_ema(objective.generators, ema),
        hardware=hardware,
        seed=seed,
        batch_size=batch_size,
        steps=steps,
        epochs=epochs,
        update=graphed(updater, objective, batch_size=batch_size, cuda_graphs=cuda_graphs),
    )


def fit(
    trainer: Trainer,
    batches: Iterable[Batch],
    *,
    save: Save = lambda *, last: None,
    loggers: Sequence[Logger] = (),
    probes: tuple[torch.Tensor, torch.Tensor] | None = None,
    tasks: Sequence[Task] = (),
    stop_requested: Callable[[], bool] = lambda: False,
    **every: int,
) -> bool:
    """Train with the tasks of every run and with `tasks`; `every` holds the numbers of steps between them."""

    def on_step(step: int) -> None:
        for logger in loggers:
            logger.on_step(step)

    usual = usual_tasks(trainer, save=save, loggers=loggers, probes=probes, **every)
    return trainer.fit(iter(batches), tasks=[*usual, *tasks], on_step=on_step, stop_requested=stop_requested)


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
