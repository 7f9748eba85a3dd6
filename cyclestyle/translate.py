"""Translate one picture or a whole photo set: `python -m cyclestyle.translate checkpoint=... input=... output=...`."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclestyle.cli import compose, dispatch
from cyclestyle.errors import CommandError
from cyclestyle.hardware.threads import Look, Watch, choose, look, spin_briefly, use
from cyclestyle.hardware.threads import check as check_threads

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from cyclestyle.distributed.world import World
    from cyclestyle.photoset.plan import Plan
    from cyclestyle.photoset.runner import JobResult, Pipeline, Settings

FINISHED_WITH_FAILURES = 6


def main() -> None:
    spin_briefly()
    dispatch.launch("translate", functools.partial(run, since=look()))


def run(cfg: "DictConfig", *, since: Look) -> int:
    from cyclestyle.photoset.interrupt import InterruptHandler

    with InterruptHandler():
        return translate(**compose.arguments_for(cfg, translate), since=since)


def translate(
    checkpoint: str | Path,
    input: str | Path,  # noqa: A002
    output: str | Path,
    *,
    direction: str | None = None,
    strength: float | Sequence[float] = 1.0,
    keep: Literal["none", "colour", "luminance"] = "none",
    format: Literal["keep", "png", "jpeg", "webp", "heic"] = "keep",  # noqa: A002
    quality: int = 95,
    resize: int | None = None,
    metadata: Literal["drop", "keep"] = "drop",
    max_pixels: int = 178_956_970,
    existing: Literal["skip", "overwrite", "error"] = "skip",
    sheet: bool = True,
    tile: int | Literal["auto", "off"] = "auto",
    memory: int | str = "4GB",
    batch_size: int = 8,
    workers: int | Literal["auto"] = "auto",
    threads: int | Literal["auto"] = "auto",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    compile: bool = False,  # noqa: A002
    backend: Literal["auto", "torch", "onnx"] = "auto",
    engine: Literal["local", "ray"] = "local",
    weights: Literal["ema", "raw"] = "ema",
    since: Look | None = None,
) -> int:
    """Translate a picture or a set of pictures, and print what was done.

    Args:
        checkpoint, direction, device, precision, weights, backend, compile: see `Translator.load`.
        input: see `inputs.find`.
        output: a folder; for one picture also a file name with a picture's ending.
        strength, keep, tile, memory: see `TranslationPipeline`.
        format, quality, resize, metadata, max_pixels: see `photos`.
        existing: what happens to files that are there, see `planning.plan`.
        sheet: write index.html, a page to look at photos and translations.
        batch_size: pictures of one size that are translated together, at most.
        workers: processes that read and write; with `engine="ray"` models that compute.
        threads: that compute, in each process on a CPU; see `threads.choose`.
        engine: `local` is this process, or those that torchrun started; `ray` the actors of a cluster.
        since: the moment from which on the use that other processes make of the processor counts; None is now.

    Returns:
        The exit code: 0, or 6 if pictures failed.
    """
    check_threads(threads, key="threads")
    since = since or look()
    # torch takes seconds; --help and typing errors need none
    from cyclestyle.distributed.world import session
    from cyclestyle.hardware.device import device_type
    from cyclestyle.hardware.memory import TRANSLATING
    from cyclestyle.photoset import plan as planning
    from cyclestyle.photoset import ray_engine, runner
    from cyclestyle.photoset.worker_tasks import Reading, Writing
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.translation import pipeline

    check(quality=quality, resize=resize, max_pixels=max_pixels)
    runner.check(batch_size=batch_size, workers=workers)
    strengths = pipeline.as_strengths(strength)
    with session(device_type(device)) as world, FailureReport(world, advice=TRANSLATING):
        check_processes(world, engine=engine, input=str(input), threads=threads)
        if engine == "ray":
            ray_engine.library()
            checkpoint, output = Path(checkpoint).absolute(), Path(output).absolute()  # its processes run elsewhere
        jobs = planning.jobs(str(input), Path(output), format=format, folders=pipeline.strength_folders(strengths))
        on_cpu = device_type(device) == "cpu" and engine == "local"
        chosen = choose(threads, key="threads", since=since if on_cpu else None)
        use(chosen.threads)
        make = functools.partial(
            pipeline.TranslationPipeline.load,
            checkpoint,
            direction=direction,
            device=device,
            precision=precision,
            weights=weights,
            backend=backend,
            compile=compile,
            strength=strengths,
            keep=keep,
            tile=tile,
            memory=memory,
            folder=jobs.hidden or jobs.folder,
        )
        treat = make(world=world)
        settings = runner.Settings(
            Reading(resize, metadata=metadata == "keep", max_pixels=max_pixels),
            Writing(jobs.folder, quality, sheet=jobs.hidden / "thumbnails" if jobs.hidden and sheet else None),
            treat.fingerprint(quality=quality, resize=resize, metadata=metadata),
        )
        plan = planning.plan(jobs, existing=existing, settings=settings.fingerprint, world=world)
        if world.is_main:
            passed = (
                f" ({jobs.skipped_own_outputs:,} translations of earlier commands passed over)"
                if jobs.skipped_own_outputs
                else ""
            )
            print(f"{treat}: {len(plan.todo):,} to translate{passed}", flush=True)
            if changed := planning.heic_as_jpeg(plan.todo):
                print(
                    f"HEIC photos that become JPEG (quality={quality}): {changed:,}; format=heic keeps HEIC", flush=True
                )
            if chosen.note and plan.todo:
                print(chosen.note, flush=True)

        if engine == "ray":
            outcome = ray_engine.run_plan(plan, make, settings, workers=workers)
        else:
            watch = Watch(chosen.threads if on_cpu and world.is_main else 1, key="threads")
            watched = Watched(treat, watch)
            outcome = runner.run_plan(plan, watched, settings, world=world, workers=workers, batch_size=batch_size)

        if world.is_main:
            runner.complete_sheet(plan, outcome, settings, workers)
            close(plan, outcome, settings, facts=treat.facts, labels=treat.labels)
        world.any(False, patient=True)  # the last to leave is the one that writes the report
    return FINISHED_WITH_FAILURES if outcome.failures else 0


class Watched:
    """A treatment after each batch of which somebody looks whether other processes keep its threads waiting."""

    def __init__(self, treat: "Pipeline", watch: Callable[[], object]) -> None:
        self.max_batch, self._treat, self._watch = treat.max_batch, treat, watch

    def __call__(self, pixels: "Tensor", *, advance: Callable[[float], object] | None = None) -> "list[Tensor]":
        made = self._treat(pixels, advance=advance)
        self._watch()
        return made


def check(*, quality: int, resize: int | None, max_pixels: int) -> None:
    """Raise a CommandError for values that no picture can have."""
    if not 1 <= quality <= 100:
        raise CommandError(f"quality={quality}: give a number from 1 to 100")
    if resize is not None and resize < 1:
        raise CommandError(f"resize={resize}: give the longest side in px, or null")
    if max_pixels < 1:
        raise CommandError(f"max_pixels={max_pixels}: give a number of pixels")


def check_processes(world: "World", *, engine: str, input: str, threads: int | str) -> None:  # noqa: A002
    """Raise a CommandError for what only one process can do."""
    if world.size > 1 and engine != "local":
        raise CommandError(f"engine={engine} spreads the work itself: start it without torchrun")
    if engine != "local" and threads != "auto":
        raise CommandError(f"threads={threads} is for engine=local: {engine} gives its processes their cores itself")
    if world.size > 1 and input == "-":
        raise CommandError("input=- can be read by one process only: put the paths into a .txt file")


def close(
    plan: "Plan", outcome: "JobResult", settings: "Settings", *, facts: Sequence[str], labels: Sequence[str]
) -> None:
    """Write the report and the page, and tell how the command fared."""
    from cyclestyle.photoset import runner
    from cyclestyle.photoset.contact_sheet import cards

    where = plan.folder
    if plan.journal is not None:
        plan.journal.report(outcome.lines)
        if settings.writing.sheet is not None:
            thumbnails = settings.writing.sheet
            where = cards.write_contact_sheet(plan.folder, outcome, thumbnails=thumbnails, facts=facts, labels=labels)
    print(runner.summary(outcome, plan, where=where))


if __name__ == "__main__":
    main()
