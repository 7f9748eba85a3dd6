"""Score the translations of a trained generator: `python -m cyclestyle.evaluate checkpoint=... data.root=...`."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cyclestyle.cli import compose, dispatch
from cyclestyle.errors import CommandError
from cyclestyle.hardware.threads import spin_briefly

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.evaluation.comparison import Comparison
    from cyclestyle.evaluation.report import Report
    from cyclestyle.evaluation.scores import OnProgress


class DataSet(NamedTuple):
    """Keys of the node `data`: folders of both domains, see `UnpairedFolders`.

    Attributes:
        aligned: whether test images of both domains with equal names show the same scene.
    """

    root: str | None = None
    a: str | None = None
    b: str | None = None
    test_a: str | None = None
    test_b: str | None = None
    aligned: bool = False


class Features(NamedTuple):
    """Keys of the node `features`: `path` is a file or folder with weights of pretrained networks."""

    path: str | None = None


def main() -> None:
    spin_briefly()
    dispatch.launch("evaluate", run)


def run(cfg: "DictConfig") -> int:
    evaluate(**compose.arguments_for(cfg, evaluate))
    return 0


def evaluate(
    checkpoint: str | Path | Sequence[str | Path],
    input: str | Path | None = None,  # noqa: A002
    *,
    target: str | Path | None = None,
    truth: str | Path | None = None,
    direction: str | None = None,
    data: Mapping[str, Any] | None = None,
    images: int | None = None,
    photo_size: int | None = None,
    names: Literal["all"] | Sequence[str] = "all",
    rulers: Literal["auto"] | Sequence[str] = "auto",
    lpips: Literal["auto"] | Sequence[str] = "auto",
    features: Mapping[str, Any] | None = None,
    missing: Literal["skip", "error", "fetch"] = "skip",
    size: int | Literal["auto"] = "auto",
    strength: float | Sequence[float] = 1.0,
    robustness: bool = False,
    seed: int = 0,
    output: str | Path | None = None,
    cache: bool = True,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    batch_size: int = 8,
    workers: int = 0,
    backend: Literal["auto", "torch", "onnx"] = "auto",
    weights: Literal["ema", "raw"] = "ema",
    plugins: Sequence[str] = (),
) -> "Report | Comparison":
    """Translate photos without writing the translations to disk, and print scores of the translations.

    The photos are those in `input`, for one direction, or the test images of `data`, for both.

    Args:
        checkpoint: a model, see `Translator.load`, or a list of models to compare.
        direction, device, precision, backend, weights, plugins: see `Translator.load`.
        input, target, truth: folders, see `evaluator.Images`.
        data: keys of `DataSet`.
        images: maximum number of images of each set, evenly spaced; None takes all.
        photo_size, seed, cache, batch_size, workers: see `scores.score_direction`.
        names: names of the scores, out of `scores.SCORES`.
        rulers, lpips, missing, size: pretrained networks, see `evaluator.Networks`.
        features: keys of `Features`.
        strength: weight of the model's output in the scored images; several add a curve of scores.
        robustness: whether to measure how far translations move if the photos are degraded.
        output: folder for `evaluate.json` and plots; None takes `evaluation` in the run folder. Without it, no file is
            written for a model outside a run.

    Returns:
        The scores; for a list of models, a comparison of them.
    """
    # importing torch takes seconds; --help and mistyped keys do not need it
    from cyclestyle.distributed.world import session
    from cyclestyle.evaluation import comparison
    from cyclestyle.evaluation.evaluator import Images, Networks, Settings, evaluate_models
    from cyclestyle.evaluation.models import ScoredModel
    from cyclestyle.evaluation.scores import SCORES, check_names
    from cyclestyle.hardware.device import device_type
    from cyclestyle.hardware.memory import EVALUATING
    from cyclestyle.run.failure import FailureReport
    from cyclestyle.translation.pipeline import as_strengths

    paths = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    names = SCORES if names == "all" else names
    check(paths, photo_size=photo_size, size=size, workers=workers, output=output)
    check_names(names)
    data, folder = dict(data or {}), (features or {}).get("path")
    is_aligned = data.pop("aligned", False)
    chosen_images = Images(
        as_path(input),
        as_path(target),
        as_path(truth),
        {key: value for key, value in data.items() if value is not None},
        is_aligned,
        images,
    )
    networks = Networks(rulers, lpips, as_path(folder), missing, size, device)
    settings = Settings(names, as_strengths(strength), photo_size, batch_size, workers, cache, seed)
    options = {"device": device, "precision": precision, "weights": weights, "backend": backend, "plugins": plugins}
    with session(device_type(device)) as world, FailureReport(world, advice=EVALUATING):
        models = [ScoredModel.load(path, direction=direction, world=world, **options) for path in paths]
        log, progress = (print_now, shown_progress) if world.is_main else (ignore, silent_progress)
        reports = evaluate_models(
            models,
            chosen_images,
            networks,
            settings,
            with_robustness=robustness,
            world=world,
            log=log,
            progress=progress,
        )
        compared = comparison.compare(reports)
        if world.is_main:
            show(compared, output=as_path(output))
        world.any(False, no_timeout=True)  # other ranks wait until rank 0 has written the files
    return reports[0] if isinstance(checkpoint, str | Path) else compared


def show(compared: "Comparison", *, output: Path | None) -> None:
    """Print the scores of all models, and write them to files, see `files.write_all`."""
    from cyclestyle.evaluation import comparison, files, robustness, table

    for label, report in zip(compared.labels, compared.reports, strict=True):
        heading = f"\n{label}\n" if len(compared.reports) > 1 else ""
        print("\n\n".join([f"{heading}\n{table.table(report)}", *map(robustness.table, report.robustness)]))
    if len(compared.reports) > 1:
        print(f"\n{comparison.table(compared)}")
    written = files.write_all(compared, output=output)
    for folder in dict.fromkeys(path.parent for path in written):
        names = ", ".join(path.name for path in written if path.parent == folder)
        print(f"\nwritten to {folder}: {names}", flush=True)


def check(
    paths: Sequence[object], *, photo_size: int | None, size: int | str, workers: int, output: str | Path | None
) -> None:
    """Raise a CommandError if no model is given, a number is out of range, or `output` is a file."""
    if not paths:
        raise CommandError("checkpoint=[]: give a run folder or a model file, or a list of them")
    for key, value in (("photo_size", photo_size), ("size", size)):
        if isinstance(value, int) and value < 32:
            raise CommandError(f"{key}={value}: pretrained networks need images of 32 px or more")
    if output is not None and Path(output).is_file():
        raise CommandError(f"output={output} is a file: give a folder for evaluate.json and the figures")
    if workers < 0:
        raise CommandError(f"workers={workers}: give a number of processes, or 0 for threads")


def as_path(given: str | Path | None) -> Path | None:
    """Convert text to a path; None stays None."""
    return None if given is None else Path(given)


def print_now(line: str) -> None:
    """Print a line at once, also if the output is redirected to a file."""
    print(line, flush=True)


def ignore(line: str) -> None:
    """Discard a line, which rank 0 prints."""


@contextlib.contextmanager
def shown_progress(what: str) -> "Iterator[OnProgress]":
    """Context manager: display the number of images done, and the time left; `what` names the work."""
    from cyclestyle.progress import Counter

    with contextlib.ExitStack() as stack:
        counters: list[Counter] = []

        def show(done: int, total: int) -> None:
            if not counters:
                counters.append(stack.enter_context(Counter(total, what=what)))
            counters[0].set_done(done)

        yield show


@contextlib.contextmanager
def silent_progress(what: str) -> "Iterator[OnProgress]":
    """Context manager: display nothing, since rank 0 shows the progress."""
    yield lambda done, total: None


if __name__ == "__main__":
    main()
