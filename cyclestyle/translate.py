"""Translate one photo or a whole photo set: `python -m cyclestyle.translate checkpoint=... input=... output=...`."""

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
    from cyclestyle.photoset.journal import ReportRow
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
    mask: str | Path | None = None,
    feather: int = 0,
    format: Literal["keep", "png", "jpeg", "webp", "tiff", "avif", "heic"] = "keep",  # noqa: A002
    quality: int = 95,
    resize: int | None = None,
    metadata: Literal["drop", "keep"] = "drop",
    max_pixels: int = 178_956_970,
    existing: Literal["skip", "overwrite", "error"] = "skip",
    sheet: bool = True,
    prune: bool | str = False,
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
    plugins: Sequence[str] = (),
    since: Look | None = None,
) -> int:
    """Translate a photo or a set of photos, and print a summary.

    Args:
        checkpoint, direction, device, precision, weights, backend, compile, plugins: see `Translator.load`.
        input: see `inputs.find`.
        output: output folder; for a single photo, a file name with the suffix of an image format is accepted too.
        strength, keep, tile, memory: see `TranslationPipeline`.
        mask: a grey image for all photos, or a folder with one for each photo under the same relative path with any
            ending; each of the size of its photo. Black keeps the photo, white takes the translation, and greys blend
            them. None translates whole photos.
        feather: width of the soft edge inside the black areas' outlines, px, see `masks.feathered`.
        format: file format of the translations; `keep` uses the format of each photo, but writes JPEG for HEIC,
            and PNG for GIF and JPEG 2000.
        quality: quality of lossy formats, 1 to 100.
        resize: limit for the longer side, in px; photos above the limit are shrunk to it. None keeps the size of all
            photos.
        metadata: `keep` copies the metadata of each photo to its translation; `drop` does not.
        max_pixels: largest number of pixels that a photo may have.
        existing: what to do with existing output files, see `plan.make_plan`.
        sheet: whether to write the contact sheet, index.html.
        prune: `list` prints the translations whose photos are gone; `remove`, or True, also removes them. False does
            not look for them.
        batch_size: largest number of photos of one size that are translated together.
        workers: number of processes that read and write photos; with `engine="ray"`, number of copies of the model.
        threads: number of threads per process for computation on a CPU; see `threads.choose`.
        engine: `local` translates in this process, or in the processes started by torchrun; `ray` translates in actors
            of a Ray cluster.
        since: processor-time counters, read earlier; None reads them now. With `threads="auto"`, they show how much
            other processes have occupied the cores since then.

    Returns:
        The exit code: 0, or 6 if some photos could not be translated.
    """
    check_threads(threads, key="threads")
    since = since or look()
    # importing torch takes seconds; --help and mistyped keys do not need it
    from cyclestyle.distributed.world import session
    from cyclestyle.filesystem.listing import printable
    from cyclestyle.hardware.device import device_type
    from cyclestyle.hardware.memory import TRANSLATING, above_limit, resident_peak
    from cyclestyle.photoset import masks, orphans, ray_engine, runner
    from cyclestyle.photoset.plan import heic_as_jpeg, make_jobs, make_plan, renamed
    from cyclestyle.photoset.worker_tasks import Reading, Writing
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.translation.pipeline import TranslationPipeline, as_strengths, strength_folders

    check(quality=quality, resize=resize, max_pixels=max_pixels)
    runner.check(batch_size=batch_size, workers=workers)
    strengths = as_strengths(strength)
    masks.check(mask, feather, input=str(input))
    pruning = orphans.parse(prune, input=str(input))
    with session(device_type(device)) as world, FailureReport(world, advice=TRANSLATING):
        check_processes(world, engine=engine, input=str(input), threads=threads)
        if engine == "ray":
            ray_engine.library()
            checkpoint, output = (
                Path(checkpoint).absolute(),
                Path(output).absolute(),
            )  # actors have other working folders
        found_masks = None if mask is None else masks.find(mask)
        jobs = make_jobs(
            str(input), Path(output), format=format, folders=strength_folders(strengths), masks=found_masks
        )
        on_cpu = device_type(device) == "cpu" and engine == "local"
        chosen = choose(threads, key="threads", since=since if on_cpu else None)
        use(chosen.threads)
        load_pipeline = functools.partial(
            TranslationPipeline.load,
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
            folder=jobs.hidden,
            plugins=plugins,
        )
        pipeline = load_pipeline(world=world)
        if mask is not None:
            pipeline.check_blends(f"mask={mask}")
        program = resident_peak()
        settings = runner.Settings(
            Reading(resize, metadata=metadata == "keep", max_pixels=max_pixels, feather=feather),
            Writing(jobs.folder, quality, sheet=jobs.hidden / "thumbnails" if sheet and not jobs.is_single else None),
            pipeline.fingerprint(
                quality=quality, resize=resize, metadata=metadata, **({} if mask is None else {"feather": feather})
            ),
        )
        plan = make_plan(jobs, existing=existing, settings=settings.fingerprint, world=world)
        if world.is_main:
            skipped = (
                f" ({jobs.skipped_own_outputs:,} translations of earlier commands skipped)"
                if jobs.skipped_own_outputs
                else ""
            )
            print(f"{pipeline}: {len(plan.todo):,} to translate{skipped}", flush=True)
            if jobs.repeated:
                print(
                    f"{len(jobs.repeated):,} further name(s) of the same files skipped (links), such as "
                    f"{printable(jobs.repeated[0])}",
                    flush=True,
                )
            if changed := heic_as_jpeg(plan.todo):
                print(
                    f"HEIC photos that become JPEG (quality={quality}): {changed:,}; format=heic keeps HEIC", flush=True
                )
            if jobs.unused_masks:
                print(
                    f"masks without a photo: {len(jobs.unused_masks):,}, such as {printable(jobs.unused_masks[0])}",
                    flush=True,
                )
            if others := renamed(plan.todo):
                what = "1 translation has another name" if len(others) == 1 else f"{len(others):,} have other names"
                print(
                    f"names that are taken, or differ only in capitals: {what}, such as "
                    f"{printable(others[0].targets[0])}",
                    flush=True,
                )
            if chosen.note and plan.todo:
                print(chosen.note, flush=True)

        facts = [
            *pipeline.facts,
            *([] if mask is None else ["masked" + (f", feather {feather} px" if feather else "")]),
        ]
        shown = functools.partial(show, plan, settings=settings, facts=facts, labels=pipeline.labels)
        with runner.unfinished(plan, settings, report=shown if world.is_main else None):
            if engine == "ray":
                outcome = ray_engine.run_plan(plan, load_pipeline, settings, workers=workers)
            else:
                watch = Watch(chosen.threads if on_cpu and world.is_main else 1, key="threads")
                watched = Watched(pipeline, watch)
                outcome = runner.run_plan(plan, watched, settings, world=world, workers=workers, batch_size=batch_size)

        if world.is_main:
            runner.complete_sheet(plan, outcome, settings, workers)
            orphaned = orphans.find(plan, Path(input)) if pruning != "no" else []
            print(runner.summary(outcome, plan, where=shown(outcome, more=orphans.rows(orphaned, pruning))))
            if plan.todo and (line := above_limit(pipeline.memory, program=program)):
                print(line)
            if pruning == "remove":
                orphans.remove(plan, orphaned)
            if pruning != "no":
                print(orphans.summary(orphaned, pruning, report=plan.journal.folder / "report.jsonl"))
        world.any(False, no_timeout=True)  # other ranks wait until rank 0 has written the report
    return FINISHED_WITH_FAILURES if outcome.failures else 0


class Watched:
    """Wrapper that runs a pipeline and calls the function `watch` after each batch.

    `watch` detects other processes that compete with the pipeline for processor cores.
    """

    def __init__(self, pipeline: "Pipeline", watch: Callable[[], object]) -> None:
        self.max_batch, self._pipeline, self._watch = pipeline.max_batch, pipeline, watch

    def __call__(self, pixels: "Tensor", *, advance: Callable[[float], object] | None = None) -> "list[Tensor]":
        translations = self._pipeline(pixels, advance=advance)
        self._watch()
        return translations


def check(*, quality: int, resize: int | None, max_pixels: int) -> None:
    """Raise a CommandError if `quality`, `resize` or `max_pixels` is out of range."""
    if not 1 <= quality <= 100:
        raise CommandError(f"quality={quality}: give a number from 1 to 100")
    if resize is not None and resize < 1:
        raise CommandError(f"resize={resize}: give the longest side in px, or null")
    if max_pixels < 1:
        raise CommandError(f"max_pixels={max_pixels}: give a number of pixels")


def check_processes(world: "World", *, engine: str, input: str, threads: int | str) -> None:  # noqa: A002
    """Raise a CommandError if `engine`, `input`, `threads` and the number of processes do not fit together.

    Several processes require the engine `local`, and an `input` other than `-` (standard input). With another engine
    than `local`, `threads` must be `auto`.
    """
    if world.size > 1 and engine != "local":
        raise CommandError(f"engine={engine} distributes the photos itself: start it without torchrun")
    if engine != "local" and threads != "auto":
        raise CommandError(f"threads={threads} is for engine=local: {engine} assigns the cores itself")
    if world.size > 1 and input == "-":
        raise CommandError("input=- can be read by one process only: put the paths into a .txt file")


def show(
    plan: "Plan",
    outcome: "JobResult",
    *,
    settings: "Settings",
    facts: Sequence[str],
    labels: Sequence[str],
    more: Sequence["ReportRow"] = (),
) -> Path:
    """Write the report and the contact sheet of a photo set; for a single file, write nothing.

    Args:
        facts: lines about the model, shown on the contact sheet.
        labels: one label for each strength, such as "50%", shown on the contact sheet; empty for a single strength.
        more: further rows of the report, which are not shown on the contact sheet.

    Returns:
        Path of the contact sheet. If none was written: path of the translation if there is only one, else of the output
        folder.
    """
    from cyclestyle.photoset.contact_sheet import cards

    targets = [target for job in plan.jobs for target in job.targets]
    where = plan.folder / targets[0] if len(targets) == 1 else plan.folder
    if not plan.is_single:
        plan.journal.report([*outcome.lines, *more], passed_over=plan.passed_over)
        if settings.writing.sheet is not None:
            thumbnails = settings.writing.sheet
            where = cards.write_contact_sheet(
                plan.folder,
                outcome,
                thumbnails=thumbnails,
                facts=[*facts, *filter(None, [plan.passed_over.summary()])],
                labels=labels,
            )
    return where


if __name__ == "__main__":
    main()
