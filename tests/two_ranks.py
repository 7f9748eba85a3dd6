"""Training on two ranks, for tests: a function that starts both ranks, and the program that each rank runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.optim import Optimizer

from cyclestyle.distributed.world import World, session
from cyclestyle.objectives.degradations import RandomDegradations
from cyclestyle.training.trainer import Trainer
from tests.factories import perceptual_terms, random_batch, tiny_terms, tiny_trainer


class Rank(NamedTuple):
    """Results of training on one rank."""

    losses: list[dict[str, float]]  # losses and scores of this rank's share of the batch, one entry per step
    sent: list[int]  # bytes of each all-reduce of gradients; empty unless counted
    storages: list[int]  # number of memory blocks that hold the gradients, one entry per update
    state: dict[str, Any]  # weights, moving average, parameters of terms and `rank_state_dict`


def train_together(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    backward: str,
    accumulate: int = 1,
    count: bool = False,
    terms: Literal["tiny", "perceptual"] | None = None,
    robust: float = 0.0,
) -> list[Rank]:
    """Train a `tiny_trainer` in float64 on two ranks; return the results of both ranks.

    Args:
        folder: empty folder for the results.
        count: whether to count the bytes of gradients sent, which uses a Python hook instead of DDP's default path.
        terms: terms of the objective: those of `tiny_terms`, those of `perceptual_terms`, or none.
        robust: largest strength of random degradations of the generators' inputs; 0 for clean inputs.
    """
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "backward": backward,
        "accumulate": accumulate,
        "count": count,
        "terms": terms,
        "robust": robust,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.run(
        [*command, str(folder), json.dumps(settings)], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    states = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return [Rank(**report, state=state) for report, state in zip(reports, states, strict=True)]


class CountingWorld(World):
    """A world that counts the bytes of every all-reduce of gradients."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(rank, size)
        self.sent: list[int] = []

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        wrapped = super().synchronize(module, device)
        wrapped.register_comm_hook(self, CountingWorld.send)
        return wrapped

    def send(self, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.sent.append(bucket.buffer().nbytes)
        return allreduce_hook(dist.group.WORLD, bucket)


def main(
    folder: Path,
    *,
    steps: int,
    batch_size: int,
    backward: str,
    accumulate: int,
    count: bool,
    terms: str | None,
    robust: float,
) -> None:
    """Train on this rank and write the results to `folder`."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with session("cpu") as joined:
        world = CountingWorld(joined.rank, joined.size) if count else joined
        trainer = tiny_trainer(
            batch_size=batch_size,
            accumulate=accumulate,
            pool=9,
            ema=0.9,
            world=world,
            backward=backward,
            degrade=RandomDegradations(robust, seed=0) if robust else None,
            **(tiny_terms() if terms == "tiny" else {}),
            **({"terms": perceptual_terms()} if terms == "perceptual" else {}),
        )
        storages: list[int] = []
        for optimizer in trainer.updater.optimizers:
            optimizer.register_step_pre_hook(lambda optimizer, *_: storages.append(memory_blocks(optimizer)))
        losses = []
        for step in range(steps):
            draws = list(range(step * batch_size + world.rank, (step + 1) * batch_size, world.size))
            losses.append({name: value.item() for name, value in trainer.train_step(random_batch(draws)).items()})
        torch.save(state(trainer), folder / f"rank{world.rank}.pt")
        report = {
            "losses": losses,
            "sent": world.sent if isinstance(world, CountingWorld) else [],
            "storages": storages,
        }
        (folder / f"rank{world.rank}.json").write_text(json.dumps(report))


def memory_blocks(optimizer: Optimizer) -> int:
    """Return the number of memory blocks that hold the gradients of an optimizer's parameters."""
    gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
    return len({gradient.untyped_storage().data_ptr() for gradient in gradients})


def state(trainer: Trainer) -> dict[str, Any]:
    """Return the weights, the moving average, the parameters of terms and the `rank_state_dict` of this rank."""
    modules = {"generators": trainer.objective.generators, "discriminators": trainer.objective.discriminators}
    return {
        "weights": {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        },
        "average": trainer.average.module.state_dict(),
        "terms": trainer.objective.state_dict(),
        "rank_state": trainer.rank_state_dict(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
