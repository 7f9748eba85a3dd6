"""The commands as functions, for scripts and notebooks: train, evaluate, export, and load a model."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cyclestyle.cli import compose, dispatch, from_python, signatures
from cyclestyle.distributed import launch
from cyclestyle.errors import CommandError, CyclestyleError
from cyclestyle.hardware.global_state import restored
from cyclestyle.hardware.threads import Look, look
from cyclestyle.signals import STOPPED, StopRequest, terminate_with_parent

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.evaluation.comparison import Comparison
    from cyclestyle.evaluation.report import Report
    from cyclestyle.translation import Translator

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]

_folders: set[Path] = set()  # run folders of the trainings of this process; file locks exclude other processes only
_folders_lock = threading.Lock()


class TrainingResult(NamedTuple):
    """Outcome of a training that did not fail.

    Attributes:
        status: `finished` if the last step was reached, `stopped` if a stop was requested before it.
        step: number of steps in the newest checkpoint of the run.
        folder: run folder, which can be given to `load`, `run_evaluation` and `run_export`.
        values: newest logged value of each name, such as `loss/cycle_a`; empty if `logger.metrics` is null.
    """

    status: Literal["finished", "stopped"]
    step: int
    folder: Path
    values: dict[str, float]


def run_training(*overrides: str | Mapping[str, object]) -> TrainingResult:
    """Train like `python -m cyclestyle.train`, with the same arguments, files and output; repeat the call to resume.

    Global settings that training changes, such as PyTorch's random numbers, are restored at the end. With
    `trainer.devices` above 1, the script that makes this call is started again in each process; its lines after the
    call run only once, in the process that the user started.

    Example:
        >>> result = run_training("+experiment=smoke", {"name": "mine", "optimizer.lr": 1e-4})
        drawing landscapes: ...
        runs/mine: from step 0 to 4, ...
        finished at step 4: runs/mine...
        >>> result.status, result.step
        ('finished', 4)
        >>> result.values["loss/cycle_a"] > 0
        True

    Args:
        overrides: command-line arguments such as `trainer.steps=100`, and mappings from keys to Python values, such as
            `{"trainer.steps": 100}`. Later overrides take precedence.

    Returns:
        Status, step, folder and last logged values.

    Raises:
        CommandError: a key or value is invalid, the run folder is in use, or `trainer.devices` is above 1 and this
            program cannot be started again, as in a notebook.
        DataError: images are missing or unusable.
        CheckpointError: the checkpoints of the run are damaged, or hold other networks.
        DivergedError: a loss or gradient was not finite.
        ResourceError: memory is exhausted, or a device is lost.
        DiskError: the run folder cannot be written.
        KeyboardInterrupt: Ctrl-C was pressed; the training has finished its step and saved. After a second Ctrl-C, it
            has stopped at once, without saving.
    """
    from cyclestyle import train

    cfg = from_python.config("train", overrides)
    folder = Path(cfg.run_dir)
    if launch.is_relaunched():
        return _in_relaunched_process(cfg, folder)

    began = time.time()
    torchrun = "LOCAL_RANK" in os.environ
    if torchrun:
        terminate_with_parent()
    with _in_use(folder), restored(), StopRequest(echo_s=3.0 if torchrun else 0.0, ends_process=False) as stop:
        try:
            code = train.run(cfg, stop=stop, since=look())
        except SystemExit as exiting:  # another rank has failed first; it raises the error
            code = exiting.code if isinstance(exiting.code, int) and exiting.code else 1
        if code not in (0, STOPPED):
            raise _error(code, _recorded_reason(folder, code, since=began))
        if torchrun:
            _wait_for_all_ranks()
    if stop.received is not None:  # now the signal gets its usual effect: Ctrl-C raises KeyboardInterrupt
        signal.raise_signal(stop.received)
    return _result(folder, "stopped" if code else "finished")


def run_evaluation(
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
    device: Device = "auto",
    precision: Precision = "auto",
    batch_size: int = 8,
    workers: int = 0,
    backend: Literal["auto", "torch", "onnx"] = "auto",
    weights: Literal["ema", "raw"] = "ema",
    plugins: Sequence[str] = (),
) -> "Report | Comparison":
    """Score the translations of a model like `python -m cyclestyle.evaluate`, and print the scores.

    Example:
        >>> scores = run_evaluation("runs/mine", "photos", target="paintings", direction="photo2painting")
        runs/mine/...
        >>> scores.find("photo2painting").find("colours").value > 0
        True

    Args:
        checkpoint: a model, see `load`, or a list of models to compare.
        direction, device, precision, backend, weights, plugins: see `load`.
        input: folder of photos to translate; for one direction.
        target: folder with images of the target domain.
        truth: folder with the true translation of each photo, under the same name.
        data: for both directions: `{"root": folder}` with the subfolders `trainA`, `trainB`, `testA`, `testB`, or the
            keys `a`, `b`, `test_a`, `test_b`. The test images are scored. With `"aligned": True`, test images of equal
            names are each other's true translations.
        images: maximum number of images of each set; None takes all.
        photo_size: side, in px, of the square to which all images are resized first; None keeps their sizes.
        names: names of the scores; `all`, or some of `cyclestyle.evaluation.scores.SCORES`.
        rulers: names of the pretrained networks that measure images by their features; `auto` chooses them.
        lpips: names of the LPIPS networks that compare pairs of images; `auto` chooses them.
        features: `{"path": file or folder}` with weights of pretrained networks.
        missing: treatment of pretrained networks without weights: `skip` leaves their scores out, `error` raises an
            error, `fetch` downloads the weights.
        size: side, in px, of the square to which images are resized for pretrained networks.
        strength: weight of the model's output in the scored images; several add scores at each of them.
        robustness: whether to measure how far translations move if the photos are degraded.
        seed: seed of the bootstrap that computes the intervals of the scores.
        output: folder for `evaluate.json` and plots; None takes `evaluation` in the run folder of the model, if it has
            one.
        cache: whether to keep the features of real images on disk.
        batch_size: maximum number of photos that are translated together.
        workers: number of processes that read images; 0 reads them in threads.

    Returns:
        The scores of the model, by direction; a `Comparison` for a list of models.

    Raises:
        CommandError: a value is invalid, or weights are missing and `missing` is `error`.
        CheckpointError: the model is missing, damaged, or does not translate RGB images.
        DataError: an image is missing or damaged, or a true translation differs in size from its photo.
        DiskError: a file cannot be written.
    """
    from cyclestyle.evaluate import evaluate

    given = {
        "checkpoint": checkpoint, "input": input, "target": target, "truth": truth, "direction": direction,
        "data": data or {}, "images": images, "photo_size": photo_size, "names": names, "rulers": rulers,
        "lpips": lpips, "features": features or {}, "missing": missing, "size": size, "strength": strength,
        "robustness": robustness, "seed": seed, "output": output, "cache": cache, "device": device,
        "precision": precision, "batch_size": batch_size, "workers": workers, "backend": backend, "weights": weights,
        "plugins": list(plugins),
    }  # fmt: skip
    cfg = from_python.config("evaluate", [given])
    with restored():
        return evaluate(**compose.arguments_for(cfg, evaluate))


def run_export(
    checkpoint: str | Path,
    *,
    format: Literal["safetensors", "reference", "onnx"] = "safetensors",  # noqa: A002
    output: str | Path | None = None,
    direction: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    existing: Literal["error", "overwrite"] = "error",
    plugins: Sequence[str] = (),
) -> list[Path]:
    """Write one model file for each direction like `python -m cyclestyle.export`, and print the names of the files.

    Example:
        >>> run_export("runs/mine", output="models", direction="photo2painting")
        models/photo2painting.safetensors: ...
        [...Path('models/photo2painting.safetensors')]

    Args:
        checkpoint: a run folder, a checkpoint folder, a safetensors file, or a `.pth` file of the 2017 implementation.
        format: `safetensors`, `onnx`, or `reference`. The last writes `.pth` files for the 2017 implementation: one for
            the generator of each direction, and one for its discriminator if the model has it.
        output: output folder. None selects the subfolder `exported` of the run or checkpoint folder, or the folder of a
            single file outside of a run.
        direction: direction to export, such as `photo2monet`; None exports all directions.
        weights: `ema` exports the moving average of the weights if the model has one; `raw` exports the weights of the
            last step.
        existing: `error` raises an error if an output file exists; `overwrite` replaces existing output files.
        plugins: see `load`.

    Returns:
        Paths of the files; paths of discriminators come last.

    Raises:
        CommandError: a value is invalid, or an output file exists already.
        CheckpointError: the model is missing or damaged, or the format does not support it.
        DiskError: a file cannot be written.
    """
    from cyclestyle.export import export

    given = {
        "checkpoint": checkpoint, "format": format, "output": output, "direction": direction, "weights": weights,
        "existing": existing, "plugins": list(plugins),
    }  # fmt: skip
    cfg = from_python.config("export", [given])
    with restored():
        return export(**compose.arguments_for(cfg, export))


def load(
    path: str | Path,
    direction: str | None = None,
    *,
    device: Device = "auto",
    precision: Precision = "auto",
    weights: Literal["ema", "raw"] = "ema",
    backend: Literal["auto", "torch", "onnx"] = "auto",
    compile: bool = False,  # noqa: A002
    plugins: Sequence[str] = (),
) -> "Translator":
    """Load one direction of a trained model.

    Example:
        >>> import PIL.Image
        >>> translate = load("runs/mine", "photo2painting")
        >>> translate(PIL.Image.open("photo.jpg")).size
        (48, 32)

    Args:
        path: a run folder, a checkpoint folder, a safetensors file, a generator of the 2017 implementation
            (`latest_net_G_A.pth`), or an exported `.onnx` file.
        direction: two domain names of the model with a 2 between them, such as `photo2monet`; or `a2b` or `b2a`. It may
            be omitted if the file has a single direction.
        device: `auto` takes a CUDA GPU, else an Apple GPU (`mps`), else the CPU.
        precision: precision of the network's arithmetic; `auto` takes the fastest that the device supports.
        weights: `ema` is the moving average if the model has one, else the weights of the last step; `raw` is always
            the weights of the last step.
        backend: library that runs the generator; `auto` means `onnx` for an `.onnx` file, else `torch`.
        compile: run the network through `torch.compile`.
        plugins: names of modules with networks of your own, if the model has such networks.

    Returns:
        A callable that translates a PIL image, a NumPy array or a tensor, and returns an object of the same type.

    Raises:
        CommandError: a value is invalid, the device is not available, or the backend cannot run this file.
        CheckpointError: the model is missing or damaged, or its images are neither grey nor RGB.
    """
    from cyclestyle.translation import Translator

    given = {"direction": direction, "device": device, "precision": precision, "weights": weights, "backend": backend}
    signatures.bind("", {**given, "compile": compile, "plugins": list(plugins)}, [load])
    return Translator.load(
        path,
        direction=direction,
        device=device,
        precision=precision,
        weights=weights,
        backend=backend,
        compile=compile,
        plugins=plugins,
    )


def _in_relaunched_process(cfg: "DictConfig", folder: Path) -> TrainingResult:
    """Train and exit, or return the recorded result of an earlier training; for a process started by `relaunch`.

    Such a process is started for one call of `run_training`, but runs the user's script from the beginning. Earlier
    calls of `run_training` return the results that are recorded in their run folders. At its own call, the process
    trains and exits.

    Args:
        cfg: checked config of this call.
        folder: run folder of this call.

    Raises:
        CyclestyleError: the recorded training failed; or no result is recorded. The latter happens if the script passes
            other values to `run_training` than it did in the launching process.
    """
    from cyclestyle import train

    def train_here(stop: StopRequest, since: Look) -> None:
        dispatch.exit_with("train", lambda: train.run(cfg, stop=stop, since=since))

    if launch.is_relaunched(compose.yaml(cfg)):
        train.run_as_program(train_here)
    state, code = _status(folder).get("state"), _status(folder).get("code")
    if state == "finished" or state == "stopped":
        return _result(folder, state)
    if state == "failed" and isinstance(code, int):
        raise _error(code, _recorded_reason(folder, code, since=0.0))
    raise CommandError(
        f"{folder} is another training than the one that trainer.devices started this process for: a script must start "
        f"the same trainings, with the same values, each time that it runs"
    )


@contextlib.contextmanager
def _in_use(folder: Path) -> Iterator[None]:
    """Context manager: raise a CommandError if another training of this process uses `folder`."""
    path = folder.resolve()
    with _folders_lock:
        if path in _folders:
            raise CommandError(f"{folder} is in use by this process: wait for it, or choose another name=")
        _folders.add(path)
    try:
        yield
    finally:
        _folders.discard(path)


def _wait_for_all_ranks() -> None:
    """Wait until rank 0 has written the last files of the run, so that every rank can read them."""
    from cyclestyle.distributed.world import session

    with session("cpu") as world:
        world.any(False, no_timeout=True)


def _result(folder: Path, status: Literal["finished", "stopped"]) -> TrainingResult:
    """Create the result of a training with this status; read its step and last logged values from the run folder."""
    from cyclestyle.checkpoints.directory import Checkpoints, step_of

    newest = Checkpoints(folder / "checkpoints").newest()
    values: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            values |= json.loads(line)
    values.pop("step", None)
    return TrainingResult(status, step_of(newest) if newest is not None else 0, folder, values)


def _error(code: int, reason: str | None) -> CyclestyleError:
    """Create an error of the class whose exit code is `code`, with the message `reason`.

    If `reason` is None, the message states that the training processes have printed the reason.
    """
    kinds = {kind.code: kind for kind in reversed(CyclestyleError.__subclasses__())}
    text = reason or f"the training processes ended with exit code {code}; they have printed the reason"
    return kinds.get(code, CyclestyleError)(text)


def _recorded_reason(folder: Path, code: int, *, since: float) -> str | None:
    """Return the reason that status.json in the run folder gives for a failure with exit code `code`.

    The result is None if the file is missing, was written before the Unix time `since`, or records another exit code.
    """
    with contextlib.suppress(OSError):
        status = _status(folder)
        if (folder / "status.json").stat().st_mtime >= since and status.get("code") == code:
            return f"{folder}: {status.get('reason')}"
    return None


def _status(folder: Path) -> Mapping[str, object]:
    try:
        return dict(json.loads((folder / "status.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
