"""Two processes that train as one, for tests of what they do: how they are started, and what each of them runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.optim import Optimizer

from cyclestyle.distributed.world import World, session
from cyclestyle.training.trainer import Trainer
from tests.factories import random_batch, tiny_trainer


class Rank(NamedTuple):
    """What one process has to tell at its end."""

    told: list[dict[str, float]]  # losses and scores of its share, step by step
    sent: list[int]  # bytes of each all-reduce of gradients; empty unless they were counted
    storages: list[int]  # in how many pieces of memory the gradients of each update lay
    state: dict[str, Any]  # weights, average and what the process alone holds


def train_together(
    folder: Path, *, steps: int, batch_size: int, backward: str, accumulate: int = 1, count: bool = False
) -> list[Rank]:
    """Train `tiny_trainer` in float64 in two processes.

    Args:
        folder: an empty one, for what they tell.
        count: what is sent; gradients then go through a hook in Python rather than the way they go by default.
    """
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "backward": backward,
        "accumulate": accumulate,
        "count": count,
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [*command, str(folder), json.dumps(settings)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    states = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    reports = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]
    return [Rank(**report, state=state) for report, state in zip(reports, states, strict=True)]


class CountingWorld(World):
    """Remembers the bytes of every all-reduce of gradients."""

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


def main(folder: Path, *, steps: int, batch_size: int, backward: str, accumulate: int, count: bool) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    with session("cpu") as joined:
        world = CountingWorld(joined.rank, joined.size) if count else joined
        trainer = tiny_trainer(
            batch_size=batch_size, accumulate=accumulate, pool=9, ema=0.9, world=world, backward=backward
        )
        storages: list[int] = []
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(lambda optimizer, *_: storages.append(pieces(optimizer)))
        told = []
        for step in range(steps):
            draws = list(range(step * batch_size + world.rank, (step + 1) * batch_size, world.size))
            told.append({name: value.item() for name, value in trainer.train_step(random_batch(draws)).items()})
        torch.save(state(trainer), folder / f"rank{world.rank}.pt")
        report = {"told": told, "sent": world.sent if isinstance(world, CountingWorld) else [], "storages": storages}
        (folder / f"rank{world.rank}.json").write_text(json.dumps(report))


def pieces(optimizer: Optimizer) -> int:
    """In how many pieces of memory the gradients lie."""
    gradients = (p.grad for group in optimizer.param_groups for p in group["params"])
    return len({gradient.untyped_storage().data_ptr() for gradient in gradients})


def state(trainer: Trainer) -> dict[str, Any]:
    """What a process has at its end."""
    modules = {"generators": trainer.objective.generators, "discriminators": trainer.objective.discriminators}
    return {
        "weights": {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        },
        "average": trainer.average.module.state_dict(),
        "own": trainer.rank_state_dict(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.loads(sys.argv[2]))
