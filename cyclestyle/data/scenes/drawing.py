"""Rendering of scenes as synthetic photos and paintings: single images, or a whole data set."""

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

VERSION = 1  # increase when the images change: folders drawn by another version are rejected
MANIFEST = "scenes.json"
_BLOCK = 1_000_000  # scene numbers reserved per folder: test scenes do not depend on the size of the training set


def photograph(scene: int, *, size: int, seed: int = 0) -> Bytes:
    """Render scene number `scene` as a photo, uint8 (size, size, 3), with lens blur, vignetting and sensor noise."""
    landscape = lay_out(scene, size, seed)
    rng = generator(seed, scene, "sensor")
    x, y = grid(size)
    vignette = 1 - 0.28 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)
    exposure = blur(landscape.colour, 1) * 0.4 + landscape.colour * 0.6
    grain = rng.standard_normal((size, size, 4), dtype=np.float32)
    noise = 0.010 * grain[..., :1] + 0.006 * grain[..., 1:]  # mostly in brightness, a little in colour
    return to_bytes(exposure * vignette[..., None] + noise)


def painting(scene: int, *, size: int, seed: int = 0) -> Bytes:
    """Render scene number `scene` as an oil painting, uint8 (size, size, 3).

    It has other colours than the photo, brush strokes in relief, and a visible canvas.
    """
    landscape = lay_out(scene, size, seed)
    fine, margin = 2 * size, size // 4  # painted at twice the resolution and averaged, for smooth edges
    side = fine + 2 * margin
    ground = palette(blur(landscape.colour, max(1, size // 40))[::4, ::4])
    image = np.zeros((side, side, 3), dtype=np.float32)
    image[margin:-margin, margin:-margin] = ground.repeat(8, axis=0).repeat(8, axis=1)[:fine, :fine]
    thickness = np.zeros((side, side), dtype=np.float32)
    for strokes in plan(generator(seed, scene, "brush"), landscape):
        stroke(image, thickness, strokes, margin)

    thickness = thickness[margin:-margin, margin:-margin]
    relief = 1.3 * (thickness + weave(fine) * (1.6 - thickness))  # the canvas shows where paint is thin
    dy, dx = np.gradient(relief * (size / 128))
    light = 0.17 * np.clip(-dx - dy, -0.55, 0.55)  # from the upper left, at a low angle
    return to_bytes(halve(image[margin:-margin, margin:-margin] + light[..., None]))


def draw(
    root: Path,
    *,
    train: int = 300,
    test: int = 40,
    size: int = 128,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Draw a data set into the folders trainA, trainB, testA and testB of `root`; return False if it already exists.

    Each training folder gets `train` images, each test folder `test` images (0000.png, 0001.png, ...), with sides of
    `size` px. `root` appears only when all images are drawn. `progress` is called after each image with the number of
    images done and the total number.

    Raises:
        CommandError: a number is out of range.
        DataError: `root` exists with other content, which is left unchanged.
        DiskError: the images cannot be written.
    """
    if size < 16 or train < 1 or test < 0 or seed < 0 or max(train, test) > _BLOCK:
        raise CommandError(
            f"cannot draw scenes with train={train}, test={test}, size={size}, seed={seed}: "
            f"train must be 1 to {_BLOCK}, test 0 to {_BLOCK}, size 16 or more, seed 0 or more"
        )
    requested = {"version": VERSION, "train": train, "test": test, "size": size, "seed": seed}
    if _is_drawn(root, requested):
        return False
    temporary = root.absolute().parent / f".{root.absolute().name}-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        _draw_all(temporary, train, test, size, seed, progress)
        (temporary / MANIFEST).write_text(json.dumps(requested) + "\n")
        temporary.rename(root)
    except OSError as error:
        if _is_drawn(root, requested):  # another process has drawn the same set meanwhile
            return False
        raise DiskError(f"cannot write scenes to {root.absolute()}: {error}; give data.root another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _draw_all(
    folder: Path, train: int, test: int, size: int, seed: int, progress: Callable[[int, int], None] | None
) -> None:
    jobs = [
        (folder / name / f"{index:04}.png", render, first + index)
        for name, render, first, count in (
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
        file, render, scene = job
        Image.fromarray(render(scene, size=size, seed=seed)).save(file)

    # Threads, not processes: numpy and zlib release the GIL, and each process would spend seconds importing torch.
    pool = ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8))
    try:
        for done, _ in enumerate(pool.map(save, jobs), start=1):
            if progress is not None:
                progress(done, len(jobs))
    finally:
        pool.shutdown(cancel_futures=True)


def _is_drawn(root: Path, requested: dict[str, int]) -> bool:
    """Return whether `root` holds the `requested` data set.

    If `root` is missing or empty, return False; if it has other content, raise a DataError.
    """
    remedy = "give data.root another folder"
    if (root.is_dir() and not any(root.iterdir())) or not root.exists():
        return False
    if not (root / MANIFEST).is_file():
        raise DataError(f"{root.absolute()} exists and was not drawn by cyclestyle: {remedy}")
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except ValueError as error:
        raise DataError(f"{root / MANIFEST} cannot be read: delete {root.absolute()}, or {remedy}") from error
    if manifest != requested:
        other = ", ".join(
            f"{key}={manifest.get(key)} not {value}" for key, value in requested.items() if manifest.get(key) != value
        )
        raise DataError(f"{root.absolute()} holds other scenes ({other}): delete it, or {remedy}")
    for name, count in (("trainA", "train"), ("trainB", "train"), ("testA", "test"), ("testB", "test")):
        present = sum(file.stat().st_size > 0 for file in (root / name).glob("*.png"))
        if present != requested[count]:
            raise DataError(
                f"{root / name} holds {present} pictures, not {requested[count]}: delete {root.absolute()}, or {remedy}"
            )
    return True
