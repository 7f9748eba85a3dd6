"""Scenes as photographs and as paintings, one by one and as data folders."""

import json
import os
import secrets
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from cyclestyle.data.scenes.brush import palette, plan, stroke, weave
from cyclestyle.data.scenes.landscape import lay_out
from cyclestyle.data.scenes.raster import Bytes, blur, generator, grid, halve, to_bytes
from cyclestyle.errors import CommandError, DataError, DiskError

VERSION = 1  # bump when the pictures change: folders drawn by another version are refused, not mixed
MANIFEST = "scenes.json"
_BLOCK = 1_000_000  # scenes kept for each folder: test scenes stay the same however many are trained on


def photograph(scene: int, *, size: int, seed: int = 0) -> Bytes:
    """The scene as a photograph: (size, size, 3), sharp but for the lens, with sensor noise."""
    landscape = lay_out(scene, size, seed)
    rng = generator(seed, scene, "sensor")
    x, y = grid(size)
    vignette = 1 - 0.28 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    seen = blur(landscape.colour, 1) * 0.4 + landscape.colour * 0.6
    grain = rng.standard_normal((size, size, 4), dtype=np.float32)
    noise = 0.010 * grain[..., :1] + 0.006 * grain[..., 1:]  # mostly in brightness, a little in colour
    return to_bytes(seen * vignette[..., None] + noise)


def painting(scene: int, *, size: int, seed: int = 0) -> Bytes:
    """The same scene as an oil painting: (size, size, 3), another palette, brush strokes with relief, canvas."""
    landscape = lay_out(scene, size, seed)
    fine, margin = 2 * size, size // 4  # laid at twice the resolution and averaged: smooth edges
    side = fine + 2 * margin
    ground = palette(blur(landscape.colour, max(1, size // 40))[::4, ::4])
    picture = np.zeros((side, side, 3), dtype=np.float32)
    picture[margin:-margin, margin:-margin] = ground.repeat(8, axis=0).repeat(8, axis=1)[:fine, :fine]
    thickness = np.zeros((side, side), dtype=np.float32)
    for strokes in plan(generator(seed, scene, "brush"), landscape):
        stroke(picture, thickness, strokes, margin)

    thickness = thickness[margin:-margin, margin:-margin]
    relief = 1.3 * (thickness + weave(fine) * (1.6 - thickness))  # threads show where paint is thin
    dy, dx = np.gradient(relief * (size / 128))
    light = 0.17 * np.clip(-dx - dy, -0.55, 0.55)  # rakes over the canvas from the upper left
    return to_bytes(halve(picture[margin:-margin, margin:-margin] + light[..., None]))


def draw(
    root: Path,
    *,
    train: int = 300,
    test: int = 40,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw the data set into root/{trainA,trainB,testA,testB}/0000.png...; False where it is already drawn.

    The folder appears at once and whole. `progress` is told (pictures done, pictures in all).

    Raises:
        CommandError: numbers that cannot be drawn.
        DataError: `root` holds something else; it is left as it is.
        DiskError: the pictures cannot be written.
    """
    if size < 16 or train < 1 or test < 0 or seed < 0 or max(train, test) > _BLOCK:
        raise CommandError(
            f"cannot draw scenes with train={train}, test={test}, size={size}, seed={seed}: "
            f"train must be 1 to {_BLOCK}, test 0 to {_BLOCK}, size 16 or more, seed 0 or more"
        )
    wanted = {"version": VERSION, "train": train, "test": test, "size": size, "seed": seed}
    if _is_drawn(root, wanted):
        return False
    part = root.absolute().parent / f".{root.absolute().name}-{secrets.token_hex(4)}"
    try:
        part.mkdir(parents=True)
        _draw_all(part, train, test, size, seed, progress)
        (part / MANIFEST).write_text(json.dumps(wanted) + "\n")
        part.rename(root)
    except OSError as error:
        if _is_drawn(root, wanted):  # by another process in the meantime
            return False
        raise DiskError(f"cannot write scenes to {root.absolute()}: {error}; give data.root another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return True


def _draw_all(
    folder: Path, train: int, test: int, size: int, seed: int, progress: Callable[[int, int], None] | None
) -> None:
    jobs = [
        (folder / name / f"{index:04}.png", picture, first + index)
        for name, picture, first, count in (
            ("trainA", photograph, 0, train),
            ("trainB", painting, _BLOCK, train),
            ("testA", photograph, 2 * _BLOCK, test),
            ("testB", painting, 2 * _BLOCK, test),
        )
        for index in range(count)
    ]
    for name in ("trainA", "trainB", "testA", "testB"):
        (folder / name).mkdir()

    def save(job: tuple[Path, Callable[..., Bytes], int]) -> None:
        file, picture, scene = job
        Image.fromarray(picture(scene, size=size, seed=seed)).save(file)

    # Threads, not processes: numpy and zlib let one another run, and a process would first import torch for seconds.
    pool = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8))
    try:
        for done, _ in enumerate(pool.map(save, jobs), start=1):
            if progress is not None:
                progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _is_drawn(root: Path, wanted: dict[str, int]) -> bool:
    """Whether `root` holds the wanted set; False where there is nothing. Raises DataError at anything else."""
    remedy = "give data.root another folder"
    if (root.is_dir() and not any(root.iterdir())) or not root.exists():
        return False
    if not (root / MANIFEST).is_file():
        raise DataError(f"{root.absolute()} exists and was not drawn by cyclestyle: {remedy}")
    try:
        found = json.loads((root / MANIFEST).read_text())
    except ValueError as error:
        raise DataError(f"{root / MANIFEST} cannot be read: delete {root.absolute()}, or {remedy}") from error
    if found != wanted:
        other = ", ".join(
            f"{key}={found.get(key)} not {value}" for key, value in wanted.items() if found.get(key) != value
        )
        raise DataError(f"{root.absolute()} holds other scenes ({other}): delete it, or {remedy}")
    for name, count in (("trainA", "train"), ("trainB", "train"), ("testA", "test"), ("testB", "test")):
        there = sum(file.stat().st_size > 0 for file in (root / name).glob("*.png"))
        if there != wanted[count]:
            raise DataError(
                f"{root / name} holds {there} pictures, not {wanted[count]}: delete {root.absolute()}, or {remedy}"
            )
    return True
