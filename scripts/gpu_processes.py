"""Parts of the GPU check that start processes: the tests, training over NCCL, and a real training."""

import contextlib
import importlib.util
import json
import math
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

import gpu_scale
import torch
from gpu_numbers import exact, loss_difference, to_numbers
from gpu_report import Report
from gpu_scale import Device, Scale
from measuring import ROOT, our_trainer, random_batch
from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cyclestyle.data.dataset import Batch
from cyclestyle.distributed.world import World, session
from cyclestyle.images import decoding, reading


def tests(report: Report, scale: Scale) -> None:
    """Run the tests marked `gpu`; check that at least one passes, none fails and none is skipped."""
    if missing := [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]:
        report.not_run(f"{' and '.join(missing)} not installed")
        return
    results = report.folder / "tests.xml"
    results.unlink(missing_ok=True)
    options = ["-m", scale.marker, "-p", "no:cacheprovider", f"--junitxml={results.absolute()}"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *scale.tests], cwd=ROOT, check=False)
    count = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in ElementTree.parse(results).iter("testsuite"):
        for name in count:
            count[name] += int(suite.get(name, 0))
    bad = count["failures"] + count["errors"]
    report.check("tests that passed", count["tests"] - bad - count["skipped"], 1, at_least=True)
    report.equal("tests that failed", bad, 0)
    report.equal("tests that were skipped", count["skipped"], 0)


def ranks(report: Report, scale: Scale) -> None:
    """Train over NCCL (on a CPU: gloo) with one rank and, if the machine has two GPUs, also with two ranks.

    Check that the losses of three fp32 steps are within 1e-4 of the losses without a process group.
    """
    expected = three_steps(World(), scale)
    for size in scale.ranks:
        actual = in_one_process(scale) if size == 1 else in_processes(size, scale, report)
        difference = loss_difference(actual, expected)
        report.check(f"{size} of {size} ranks, {BACKENDS[scale.device]}, losses", difference, 1e-4)
    if len(scale.ranks) == 1:
        report.text("Two ranks: not run, there is one GPU.")


BACKENDS = {"cuda": "NCCL", "cpu": "gloo"}


class WrappingWorld(World):
    """A world that averages gradients over its ranks even if there is only one."""

    def synchronize(self, module: nn.Module, device: torch.device) -> nn.Module:
        if self.size > 1:
            return super().synchronize(module, device)
        with warnings.catch_warnings():  # World.synchronize suppresses the same warning
            warnings.simplefilter("ignore", FutureWarning)
            devices = [device] if device.type == "cuda" else None
            wrapped = DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)
        self._wrapped.append(wrapped)
        return wrapped


def three_steps(world: World, scale: Scale) -> list[dict[str, float]]:
    """Losses of three training steps; in each step, the ranks share a batch of two image pairs."""
    try:
        hardware = exact(scale.device, world=world, deterministic=True)
        trainer = our_trainer(hardware=hardware, channels=scale.channels, batch=2)
        losses = []
        for step in range(3):
            batch = random_batch(scale.size, step, 2)
            share = slice(world.rank, None, world.size)
            local = trainer.train_step(Batch(batch.a[share], batch.b[share], batch.draws[share]))
            losses.append(to_numbers({name: world.mean(value.clone()) for name, value in local.items()}))
        return losses
    finally:
        torch.use_deterministic_algorithms(False)


def in_one_process(scale: Scale) -> list[dict[str, float]]:
    """Losses of the three steps in this process, over a process group of one rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with environment(alone), session(scale.device, timeout_s=60) as world:
        return three_steps(WrappingWorld(local_rank=world.local_rank), scale)


def in_processes(size: int, scale: Scale, report: Report) -> list[dict[str, float]]:
    """Mean losses of the three steps in `size` new processes, each with its own GPU."""
    path = report.folder / "ranks-losses.json"
    path.unlink(missing_ok=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
    subprocess.run([*torchrun, __file__, str(path), scale.device], check=True)
    losses: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    return losses


def run_rank(path: Path, device: Device) -> None:
    """Run as one of the processes that `in_processes` starts; rank 0 writes the mean losses to `path`."""
    scale = gpu_scale.rehearsal() if device == "cpu" else gpu_scale.gpu(data=None)
    with session(device, timeout_s=60) as world:
        losses = three_steps(world, scale)
        if world.is_main:
            path.write_text(json.dumps(losses), encoding="utf-8")


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Context manager: set environment variables of this process; restore them on exit."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


AFTERWARDS_S = 30  # time reserved for the last save and for translating, in seconds


def training(report: Report, scale: Scale) -> None:
    """Start a real training with the train command, request a stop, and translate test images.

    Check that the command exits with 75, that its losses are finite, and that its cycle losses at the end are lower
    than at the start.
    """
    run, log = report.folder / "run", report.folder / "train.log"
    shutil.rmtree(run, ignore_errors=True)
    arguments = [*scale.training, f"run_dir={run.absolute()}", f"trainer.device={scale.device}"]
    if not any(argument.startswith("data.root=") for argument in arguments):
        arguments.append(f"data.root={(report.folder / 'scenes').absolute()}")
    command = [sys.executable, "-m", "cyclestyle.train", *arguments, "logger.tensorboard=null"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}
        )
        try:
            stop_after(process, run, seconds=min(scale.training_s, report.left_s - AFTERWARDS_S), report=report)
            code = process.wait()
        finally:
            process.kill()
    print(log.read_text(encoding="utf-8"), flush=True)
    report.equal("exit code, 75 for stopped on request", code, 75)
    check_log(report, scale, run)
    root = next(argument.partition("=")[2] for argument in arguments if argument.startswith("data.root="))
    translate(report, scale, run, Path(root))


def stop_after(process: "subprocess.Popen[bytes]", run: Path, *, seconds: float, report: Report) -> None:
    """Request that a run stops `seconds` after its first log line, or earlier if the part runs out of time."""
    latest = time.monotonic() + report.left_s - AFTERWARDS_S
    until = latest
    while process.poll() is None and time.monotonic() < min(until, latest):
        if until == latest and (run / "metrics.jsonl").exists():
            until = min(latest, time.monotonic() + seconds)
        time.sleep(0.05)
    if process.poll() is None:
        (run / "stop").touch()


def check_log(report: Report, scale: Scale, run: Path) -> None:
    """Check the losses in the run's metrics.jsonl, and compare the last line with the first line."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if "loss/cycle_a" in line]  # without the lines of tasks
    losses = [value for line in lines for name, value in line.items() if name.startswith("loss/")]
    report.equal("non-finite losses in the log", sum(not math.isfinite(value) for value in losses), 0)
    first, last = (sum(line[f"loss/cycle_{side}"] for side in "ab") for line in (lines[0], lines[-1]))
    if scale.learns:
        report.check("cycle losses at the end, share of those in the first log line", last / first, 0.9)
    steps, speed = lines[-1]["step"], statistics.median(line["speed/images_per_s"] for line in lines)
    report.text(
        f"{steps} steps, {speed:.0f} images/s by the log's median; cycle losses {first:.3f}, at the end {last:.3f}."
    )


def translate(report: Report, scale: Scale, run: Path, root: Path) -> None:
    """Translate test images from `root`; record JPEG files that show each image beside its translation."""
    from cyclestyle.translation import Translator

    translator = Translator.load(run, direction="a2b", device=scale.device)
    folder = root / "testA" if (root / "testA").is_dir() else root / "trainA"
    photos = decoding.find(folder)[: scale.shown]
    for index, path in enumerate(photos):
        photo = reading.read_8_bit(folder / path)
        photo.thumbnail((256, 256))
        translated = translator(photo)
        pair = Image.new("RGB", (2 * photo.width, photo.height))
        pair.paste(photo, (0, 0))
        pair.paste(translated, (photo.width, 0))
        name = f"translated-{index}.jpg"
        pair.save(report.folder / name, quality=85)
        report.picture(name)
    report.check("images translated", len(photos), 1, at_least=True)


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]), "cpu" if sys.argv[2] == "cpu" else "cuda")
