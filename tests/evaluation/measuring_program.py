"""Program that measures sets of images with a small ruler, on one or more ranks.

    python -m tests.evaluation.measuring_program OUTPUT JOBS

JOBS is JSON text with a list of jobs, see `Job`. Each rank writes the list of its results to `OUTPUT/rank0.pt`, ...
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from cyclestyle.distributed.world import FailedElsewhereError, World, session
from cyclestyle.errors import DataError
from cyclestyle.evaluation.features import set_features
from tests.evaluation.small_network import SmallNetwork, small_ruler

ROOT = Path(__file__).parent.parent.parent


class Job(NamedTuple):
    """A set of images to measure."""

    folder: str
    batch_size: int = 2
    cache: bool = False


class Result(NamedTuple):
    """Result of a job on one rank."""

    pooled: torch.Tensor | None  # None if the job failed
    grams: list[torch.Tensor]
    error: str  # class of the error; empty if there is none
    batches: list[int]  # number of images in each call of the network
    progress: list[tuple[int, int]]


def run(output: Path, jobs: Sequence[Job], *, ranks: int) -> list[list[Result]]:
    """Run the jobs one after the other on ranks started by torchrun; return the results of each rank.

    Args:
        output: path of a new folder for the results.
    """
    output.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [*launcher, "-m", "tests.evaluation.measuring_program", str(output), json.dumps(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    contents = [torch.load(output / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
    return [[Result(*fields) for fields in content] for content in contents]


def main(output: Path, jobs: Sequence[Job]) -> None:
    """Run the jobs on this rank and write its results."""
    torch.set_num_threads(1)
    with session("cpu") as world:
        torch.save([tuple(measure(job, world)) for job in jobs], output / f"rank{world.rank}.pt")


def measure(job: Job, world: World) -> Result:
    """Measure one set of images."""
    ruler = small_ruler()
    assert isinstance(ruler.network, SmallNetwork)
    progress: list[tuple[int, int]] = []
    pooled, grams, failure = None, [], ""
    try:
        features = set_features(
            sorted(Path(job.folder).iterdir()),
            ruler,
            parts={"pooled", "grams"},
            batch_size=job.batch_size,
            world=world,
            cache=job.cache,
            on_progress=lambda done, total: progress.append((done, total)),
        )
        pooled, grams = features.pooled, list(features.grams)
    except (DataError, FailedElsewhereError) as error:
        failure = type(error).__name__
    return Result(pooled, grams, failure, [count for count, _ in ruler.network.calls], progress)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Job(*fields) for fields in json.loads(sys.argv[2])])
