"""Sizes of the parts of the check on a GPU: there, and in the rehearsal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import gpu_tables
import torch
from measuring import ROOT

Device = Literal["cpu", "cuda"]


class Scale(NamedTuple):
    """Sizes and lengths of everything that parts do."""

    device: Device
    marker: str  # of the tests to run
    tests: Sequence[str]  # files that have them
    channels: int  # of generators and discriminators
    size: int  # px, of pictures that checks look at
    full_size: int  # px, of pictures that are timed
    steps: int  # in each precision
    runs: int  # timed
    ways: Sequence[str]  # of gpu_tables, to be timed
    batches: Sequence[int]
    matrix: int  # rows and columns
    ranks: Sequence[int]  # processes that train together
    training: Sequence[str]  # what the real training is given
    training_s: float  # how long it takes, from its first step on
    shown: int  # test pictures to be translated
    learns: bool  # whether so short a training has to make its cycles better


def gpu(*, data: Path | None) -> Scale:
    """A GPU and the paper's networks, on pictures of two folders trainA and trainB or on drawn ones."""
    drawn = ("data=scenes", "data.train=80", "data.test=8", "data.size=286", f"data.crop_size={gpu_tables.SIZE}")
    return Scale(
        device="cuda",
        marker="gpu",
        tests=gpu_test_files(),
        channels=64,
        size=128,
        full_size=gpu_tables.SIZE,
        steps=50,
        runs=20,
        ways=gpu_tables.WAYS,
        batches=(1, 8),
        matrix=gpu_tables.MATRIX,
        ranks=(1, 2) if torch.cuda.device_count() > 1 else (1,),
        training=drawn if data is None else (f"data.root={data.absolute()}",),
        training_s=180,
        shown=6,
        learns=True,
    )


def rehearsal() -> Scale:
    """The same on a CPU and tiny: whether all this can run, not what it finds on a GPU."""
    return Scale(
        device="cpu",
        marker="not gpu",
        tests=("tests/test_rng.py",),
        channels=2,
        size=32,
        full_size=32,
        steps=6,
        runs=3,
        ways=(gpu_tables.TEXTBOOK, gpu_tables.EXACT_TEXTBOOK, gpu_tables.OURS),
        batches=(1, 2),
        matrix=512,
        ranks=(1, 2),
        training=("+experiment=smoke", "trainer.steps=100000", "trainer.sample_every=100000"),
        training_s=0.2,
        shown=2,
        learns=False,
    )


def gpu_test_files() -> list[str]:
    """The test files in which anything is marked `gpu`."""
    mark = "pytest.mark." + "gpu"
    return sorted(
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if mark in file.read_text(encoding="utf-8")
    )
