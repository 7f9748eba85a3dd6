"""Measure the translation of photo sets: speed relative to a baseline loop, time to the first photo, and peak memory.

    python scripts/benchmark_translate.py                                      # 256 px (part of `make bench`)
    python scripts/benchmark_translate.py --full --write docs/benchmarks.md    # all (part of `make bench-full`)

The model is the paper's generator (ResNet-9, 64 channels) with random weights; photos are synthetic. 200 photos
of 256 px and 40 photos of 1024x768 px are translated in rounds, from JPEG to JPEG: by the baseline loop ("textbook" in
the tables), by the package with its defaults, and by the package with compile=true. Exits with 1 when a goal is missed
by more than 10 %.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measuring import Goal, circumstances, filled, table, write_section
from PIL import Image
from rich.progress import track

from cyclestyle import networks
from cyclestyle.checkpoints import directory
from cyclestyle.checkpoints.model import Model
from cyclestyle.checkpoints.model import write_model as write_networks
from cyclestyle.data.scenes import drawing
from cyclestyle.distributed.world import World
from cyclestyle.networks import registry
from cyclestyle.photoset import runner
from cyclestyle.photoset.journal import FOLDER
from cyclestyle.photoset.plan import make_jobs, make_plan
from cyclestyle.photoset.worker_tasks import Reading, Writing
from cyclestyle.signals import STOPPED
from cyclestyle.translation.pipeline import TranslationPipeline

GOAL = 1.7  # lowest speed, as a multiple of the baseline loop's speed
FIRST_S = 5.0  # longest time to the first translation, in seconds
GROWTH = 1.1  # largest ratio of the peak memory for 2,000 photos to the peak memory for 200

Loop = Callable[[Path, Path], None]


class Kind(NamedTuple):
    """A kind of photo: its size, and how many are translated per round."""

    name: str
    width: int
    height: int
    photos: int  # number of photos in a round


KINDS = (Kind("256 px", 256, 256, 40), Kind("1024x768", 1024, 768, 8))
ROUNDS = 5


class Speed(NamedTuple):
    """A timed variant of translating, and the seconds of each of its rounds."""

    name: str
    kind: Kind
    seconds: list[float]

    @property
    def photos_per_s(self) -> float:
        return self.kind.photos / statistics.median(self.seconds)


def main() -> int:
    """Measure and print the section, write it if --write is given; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="both sizes, compile=true, memory: 22 minutes")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the tables into")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="translate-") as name:
        folder = Path(name)
        small, full = folder / "small.safetensors", folder / "full.safetensors"
        write_model(small, channels=8, blocks=2)
        write_model(full, channels=64, blocks=9)
        kinds = KINDS if arguments.full else KINDS[:1]
        speeds = [speed for kind in kinds for speed in measured(kind, full, folder, whole=arguments.full)]
        first = [first_photo(full, folder) for _ in track(range(5), description="first photo")]
        peaks = {count: peak_bytes(small, folder, count) for count in (200, 2000)} if arguments.full else {}

    text, goals = page(speeds, first, peaks, whole=arguments.full)
    print(f"\n{text}")
    if arguments.write:
        write_section(arguments.write, "Translating a photo set", text)
    return 1 if any(goal.is_missed_widely for goal in goals) else 0


def measured(kind: Kind, model: Path, folder: Path, *, whole: bool) -> list[Speed]:
    """Time all variants in turn, after a warm-up; each round has new photos."""
    ways: dict[str, Loop] = {"textbook": textbook(model), "cyclestyle": ours(model, compile=False)}
    if whole:
        ways["cyclestyle, compile=true"] = ours(model, compile=True)
    speeds = [Speed(name, kind, []) for name in ways]
    warm = photos(folder / f"warm {kind.name}", kind._replace(photos=8 if kind.width == 256 else 2), seed=99)
    for number, way in enumerate(ways.values()):
        way(warm, folder / f"warm out {kind.name} {number}")
    for turn in track(range(ROUNDS if whole else 3), description=f"translating {kind.name}"):
        source = photos(folder / f"{kind.name} {turn}", kind, seed=turn)
        for speed, way in zip(speeds, ways.values(), strict=True):
            output = folder / f"{kind.name} {turn} {speed.name}"
            since = time.perf_counter()
            way(source, output)
            speed.seconds.append(time.perf_counter() - since)
            assert len(list(output.glob("*.jpg"))) == kind.photos
            shutil.rmtree(output)
        shutil.rmtree(source)
    return speeds


def textbook(path: Path) -> Loop:
    """Return the baseline loop for the model in `path`: decode, translate and encode photos one by one in float32."""
    generator = loaded(path)

    @torch.no_grad()
    def loop(source: Path, output: Path) -> None:
        output.mkdir()
        for file in sorted(source.iterdir()):
            with Image.open(file) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
            values = generator(pixels.float() / 127.5 - 1)
            output_pixels = ((values[0] + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0)
            Image.fromarray(output_pixels.numpy()).save(output / file.name, quality=95, subsampling=0)

    return loop


def ours(path: Path, *, compile: bool) -> Loop:  # noqa: A002
    """Return the package's loop: all that the command does after loading the model, from the plan to the report."""
    pipeline = TranslationPipeline.load(path, direction="a2b", device="cpu", compile=compile)

    def loop(source: Path, output: Path) -> None:
        settings = runner.Settings(Reading(), Writing(output, sheet=output / FOLDER / "thumbnails"), "settings")
        plan = make_plan(make_jobs(str(source), output), existing="skip", settings=settings.fingerprint, world=World())
        outcome = runner.run_plan(plan, pipeline, settings)
        assert plan.journal is not None
        plan.journal.report(outcome.lines)
        plan.journal.release()

    return loop


def first_photo(model: Path, folder: Path) -> float:
    """Seconds from starting the command to the first complete translation, with the defaults."""
    kind = Kind("first", 256, 256, 40)
    source = photos(folder / "first", kind, seed=7)
    output = folder / "first out"
    since = time.perf_counter()
    child = subprocess.Popen(command(model, source, output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while child.poll() is None and not any(output.glob("*.jpg")):
        time.sleep(0.005)
    elapsed = time.perf_counter() - since
    child.terminate()
    _, errors = child.communicate()
    assert child.returncode in (0, STOPPED), errors.decode()
    assert any(output.glob("*.jpg")), "the command ended without a translation"
    shutil.rmtree(output)
    shutil.rmtree(source)
    return elapsed


def peak_bytes(model: Path, folder: Path, count: int) -> int:
    """Peak memory in bytes of a command that translates `count` photos of 64 px."""
    source = photos(folder / f"many {count}", Kind("many", 64, 64, count), seed=3)
    peak_file = folder / "peak"
    code = f"""
import runpy
from pathlib import Path
from cyclestyle.hardware.memory import resident_peak
try:
    runpy.run_module("cyclestyle.translate", run_name="__main__")
finally:
    Path({os.fspath(peak_file)!r}).write_text(str(resident_peak()))
"""
    arguments = command(model, source, folder / f"many out {count}", "workers=0")[3:]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return int(peak_file.read_text())


def command(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    """Command line that translates the folder `source` with the defaults and with the arguments `more`."""
    arguments = [f"checkpoint={model}", f"input={source}", f"output={output}", "direction=a2b", "device=cpu", *more]
    return [sys.executable, "-m", "cyclestyle.translate", *arguments]


def write_model(path: Path, *, channels: int, blocks: int) -> None:
    """Write a model file with a ResNet generator of random weights."""
    torch.manual_seed(0)
    generator = networks.ResNetGenerator(channels, blocks)
    networks.initialize(generator, generator=torch.Generator().manual_seed(0))
    tensors = {
        f"generators.{side}.{key}": value for side in ("ab", "ba") for key, value in generator.state_dict().items()
    }
    tensors = {key: value.clone() for key, value in tensors.items()}
    model = Model(tensors, {"ab": dict(generator.architecture)}, {}, ("photo", "painting"), 1, path)
    write_networks(model, path)


def loaded(path: Path) -> torch.nn.Module:
    """Load the generator of a model file as a plain module in eval mode."""
    model = directory.read_model(path)
    generator = registry.build(model.generators["ab"])
    generator.load_state_dict(model.weights_under("generators.ab."))
    return generator.eval()


def photos(folder: Path, kind: Kind, *, seed: int) -> Path:
    """Write synthetic landscapes as JPEG files, made of four images shifted sideways; return the folder."""
    folder.mkdir()
    side = min(256, max(kind.width, kind.height))
    originals = [drawing.photograph(number, size=side, seed=seed) for number in range(min(4, kind.photos))]
    for number in range(kind.photos):
        pixels = np.roll(originals[number % len(originals)], 7 * number, axis=1)
        image = Image.fromarray(pixels).resize((kind.width, kind.height), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:04}.jpg", quality=92)
    return folder


def page(speeds: list[Speed], first: list[float], peaks: dict[int, int], *, whole: bool) -> tuple[str, list[Goal]]:
    """Return the section of docs/benchmarks.md, and the goals."""
    lines: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    for speed in speeds:
        base = next(other for other in speeds if other.kind == speed.kind)
        ratio = speed.photos_per_s / base.photos_per_s
        low, high = (seconds / speed.kind.photos for seconds in (min(speed.seconds), max(speed.seconds)))
        numbers = (f"{speed.photos_per_s:.2f}", f"{low:.2f} to {high:.2f}", f"{ratio:.2f}")
        lines.append((speed.kind.name, speed.name, len(speed.seconds) * speed.kind.photos, *numbers))
        if speed.name == "cyclestyle":
            name = f"{speed.kind.name}, defaults, times the textbook's photos a second"
            goals.append(Goal(name, ratio, GOAL, at_least=True, unit="x"))
    start = statistics.median(first)
    goals.append(Goal(f"first photo of 40 ({min(first):.1f} to {max(first):.1f} s)", start, FIRST_S, unit=" s"))
    if peaks:
        held = " and ".join(f"{peak / 1e6:,.0f} MB of {count:,}" for count, peak in peaks.items())
        goals.append(Goal(f"2,000 photos, memory of 200 ({held})", peaks[2000] / peaks[200], GROWTH, unit="x"))
    about = filled(
        """ResNet-9 with 64 channels and random weights, JPEG to JPEG, in rounds of 40 photos of 256 px and of 8 of
        1024x768. In each, the textbook's loop (one picture at a time, float32, decoding, computing and encoding one
        after the other), then ours with the defaults (batches, bf16 where there is, workers, journal, thumbnails), and
        perhaps ours with compile=true, whose compilation is not counted; all models are loaded before. Photos a second
        by the median round. The first photo is timed from the command, with the defaults; the memory is that of
        the command's main process, with workers=0, over photos of 64 px. On a GPU: not measured."""
    )
    conditions = circumstances(f"python scripts/benchmark_translate.py{' --full' if whole else ''}")
    rows = table("photos | how | counted | photos/s | seconds a photo, min to max | times the textbook's", lines)
    return "\n\n".join([about, conditions, rows, "\n".join(f"* {goal}" for goal in goals)]), goals


if __name__ == "__main__":
    sys.exit(main())
