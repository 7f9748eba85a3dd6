"""Sizes of the parts of the GPU check, on a GPU and in the dry run on a CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import gpu_tables
import torch
from measuring import ROOT

Device = Literal["cpu", "cuda"]


class Scale(NamedTuple):
    """Sizes and durations that the parts of the GPU check use."""

    device: Device
    marker: str  # pytest marker of the tests to run
    tests: Sequence[str]  # files with these tests
    channels: int  # channels of generators and discriminators
    size: int  # px, images of checks
    full_size: int  # px, images of timed steps
    steps: int  # number of steps in each precision
    runs: int  # number of timed runs
    ways: Sequence[str]  # timed variants of gpu_tables
    batches: Sequence[int]  # timed batch sizes
    matrix: int  # rows and columns of the multiplied matrices
    ranks: Sequence[int]  # numbers of ranks to train with
    training: Sequence[str]  # arguments of the real training
    training_s: float  # duration of the real training from its first step
    shown: int  # number of test images to translate
    learns: bool  # whether the part fails if the cycle losses do not fall within `training_s`


def gpu(*, data: Path | None) -> Scale:
    """Sizes on a GPU: the paper's networks; images are in `data`/trainA and trainB, or synthetic if `data` is None."""
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
    """Sizes of the dry run on a CPU; the dry run shows that the parts run, but not their results on a GPU."""
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
    """The test files with tests that are marked `gpu`."""
    mark = "pytest.mark." + "gpu"
    return sorted(
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if mark in file.read_text(encoding="utf-8")
    )
