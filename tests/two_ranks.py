"""One of the processes of test_two_processes_equal_one_at_every_step; started by torchrun."""

import json
import sys
from pathlib import Path

import torch

from cyclestyle.distributed import session
from tests.build import random_batch, tiny_trainer

folder, steps, batch_size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

with session("cpu") as world:
    trainer = tiny_trainer(batch_size=batch_size, pool=9, ema=0.9, world=world)
    told = []
    for step in range(steps):
        draws = list(range(step * batch_size + world.rank, (step + 1) * batch_size, world.size))
        told.append({name: value.item() for name, value in trainer.train_step(random_batch(draws)).items()})
    modules = {"generators": trainer.objective.generators, "discriminators": trainer.objective.discriminators}
    state = {
        "weights": {
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        },
        "average": trainer.average.module.state_dict(),
        "own": trainer.own_state_dict(),
    }
    torch.save(state, folder / f"rank{world.rank}.pt")
    (folder / f"rank{world.rank}.json").write_text(json.dumps(told))
