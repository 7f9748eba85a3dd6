"""Program that trains with each extension, straight through and resumed, on all ranks of one start.

    python tests/extending/training.py FOLDER            # one process
    torchrun --nproc_per_node 2 tests/extending/training.py FOLDER

For each extension, `FOLDER/runs/NAME` is trained to the last step at once, and `FOLDER/runs/NAME-resumed` in two
commands. The folder of the user's modules is on the path of the interpreter.
"""

# ruff: noqa: E402 - the path of the interpreter is extended before the imports

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "user"))
sys.path.insert(0, str(HERE.parents[1]))

from cyclestyle import train
from cyclestyle.cli import compose
from cyclestyle.distributed.world import World, session
from cyclestyle.hardware.threads import look
from cyclestyle.run.failure import FailureReport
from cyclestyle.signals import StopRequest

STEPS, HALF = 4, 2
COMMON = [
    *("generator.channels=4", "generator.blocks=1", "discriminator.channels=4", "discriminator.layers=2"),
    *("data.load_size=34", "data.crop_size=32", "data.workers=0", "trainer.batch_size=2", "trainer.accumulate=1"),
    *("trainer.log_every=1", "trainer.sample_every=100", "trainer.save_every=100", "trainer.device=cpu"),
    *("ema.decay=0.9", "pool.size=4", "logger.tensorboard=null", "logger.console=null", "trainer.threads=1"),
]

# Name of the extension -> arguments of the command. README: docs/extending.md describes each.
EXTENSIONS: dict[str, list[str]] = {
    "plain": [],
    "patchnce": [
        *("objective.terms.nce._target_=patchnce.PatchNCE", "objective.terms.nce.layers=[stem,trunk.0]"),
        *("objective.terms.nce.channels=[4,16]", "objective.terms.nce.weight=0.5", "trainer.precision=bf16"),
    ],
    "r1": ["objective.discriminator_terms.r1._target_=r1.R1", "objective.discriminator_terms.r1.weight=5"],
    "perceptual": ["objective.terms.content._target_=perceptual.Perceptual", "trainer.backward=joint"],
    "kid": ["tasks.kid._target_=kid.KID", "tasks.kid.every=1", "checkpoint.best=kid"],
    "cosine": [
        *("schedule._target_=cyclestyle.training.schedule.Cosine", "schedule.final=0.1"),
        *("schedule.constant_epochs=0", "schedule.decay_epochs=2"),
    ],
    "wasserstein": [
        *("adversarial._target_=wasserstein.Wasserstein", "objective.discriminator_terms.r1._target_=r1.R1"),
    ],
    "one-way": ["objective._target_=one_way.OneWay", "objective.geometry=10", "trainer.precision=bf16"],
    "late-average": ["ema.start=2", "ema.warm_up=false"],
    "clipping": ["trainer.clip_norm=0.1"],
    "two-rates": ["optimizer.generators.lr=1e-4", "optimizer.discriminators.lr=4e-4"],
    "service": ["logger.service._target_=service.Service", "logger.service.project=mine"],
    "spectral": [
        *("plugins=[spectral]", "discriminator._target_=spectral.SpectralDiscriminator", "~discriminator.layers"),
    ],
    "grey": ["data.channels_a=1", "objective.identity=0"],
    "generator-per-direction": ["generator.ba._target_=cyclestyle.networks.UNetGenerator", "generator.ba.levels=2"],
}


def main(folder: Path) -> None:
    """Train with each extension on the images in `folder`."""
    with session("cpu") as world:
        for name, extension in EXTENSIONS.items():
            arguments = [f"data.root={folder}", *COMMON, *extension]
            run(world, [*arguments, f"run_dir={folder}/runs/{name}", f"trainer.steps={STEPS}"])
            for steps in (HALF, STEPS):
                run(world, [*arguments, f"run_dir={folder}/runs/{name}-resumed", f"trainer.steps={steps}"])


def run(world: World, arguments: list[str]) -> None:
    """Run the train command with these arguments, on the ranks of `world`."""
    cfg = compose.compose("train", arguments)
    compose.check(cfg)
    with StopRequest() as stop, FailureReport(world) as failure_report:
        code = train.train(cfg, world, stop, failure_report, since=look())
    assert code == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
