"""Export each direction of a model as one file: `python -m cyclestyle.export checkpoint=... format=onnx`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclestyle.cli import compose, dispatch

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.model_files.export_formats import File
    from cyclestyle.model_files.generator_file import GeneratorFiles


def main() -> None:
    dispatch.launch("export", run)


def run(cfg: "DictConfig") -> int:
    export(**compose.arguments_for(cfg, export))
    return 0


def export(
    checkpoint: str | Path,
    *,
    format: Literal["safetensors", "reference", "onnx"] = "safetensors",  # noqa: A002
    output: str | Path | None = None,
    direction: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    existing: Literal["error", "overwrite"] = "error",
    plugins: Sequence[str] = (),
) -> list[Path]:
    """Write one file for each direction, and print the name and size of each file and notes about it.

    `format=reference` also writes the discriminators, with the weights of the last step: `latest_net_D_A.pth` judges
    the outputs of `latest_net_G_A.pth`.

    Args:
        checkpoint: a run folder, a checkpoint folder, a safetensors file, or a `.pth` file of the original CycleGAN
            implementation (Zhu et al. 2017).
        format: `safetensors`, `onnx`, or `reference`, which writes `.pth` files for the original implementation.
        output: output folder. For a model that belongs to a run, None selects the subfolder `exported` of the run
            folder. For other models, None selects the folder that contains `checkpoint` if `checkpoint` is a file, and
            the subfolder `exported` of `checkpoint` if it is a folder.
        direction: direction to export, such as `photo2monet`; None exports all directions.
        weights: `ema` exports the moving average of the weights if the model has one; `raw` exports the weights of the
            last step.
        existing: `error` raises an error if an output file exists; `overwrite` replaces existing output files.
        plugins: names of modules with networks of your own, see `networks.registry.load_plugins`.

    Returns:
        Paths of the files, one for each direction, and then those of the discriminators.

    Raises:
        CommandError: `direction` is unknown, an output file exists already, or a module in `plugins` cannot be loaded.
        CheckpointError: the model is missing or damaged, or `format` does not support its networks; no file has been
            written.
        DiskError: a file cannot be written; no incomplete file remains.
    """
    # Imports here, not above: --help does not need torch, which takes seconds to import.
    from cyclestyle.filesystem.atomic import megabytes
    from cyclestyle.filesystem.listing import printable
    from cyclestyle.model_files import export_formats, generator_file
    from cyclestyle.networks import registry

    registry.load_plugins(plugins)
    sources = with_training_summary(generator_file.read(Path(checkpoint), weights=weights))
    folder = destination(Path(checkpoint), sources.path) if output is None else Path(output)
    targets = [folder / name for name in export_formats.names(sources, format=format, direction=direction)]
    # Check before encoding, since an ONNX export takes minutes.
    check_free(targets, sources.path, may_replace=existing == "overwrite")

    for file, target in zip(export_formats.files(sources, format=format, direction=direction), targets, strict=True):
        write(file, target)
        print("\n  ".join([f"{printable(target)}: {megabytes(len(file.content))}", *file.notes]), flush=True)
    return targets


def with_training_summary(sources: "GeneratorFiles") -> "GeneratorFiles":
    """Add a summary of the training run to each generator in `sources`, for the exported files; return a copy.

    If the model file does not lie in a run folder, return `sources` itself.
    """
    from cyclestyle.model_files import provenance

    run = provenance.run_folder(sources.path)
    if run is None:
        return sources
    by_side = {
        side: source._replace(training=provenance.training_summary(run, step=source.step or 0))
        for side, source in sources.by_side.items()
    }
    return sources._replace(by_side=by_side)


def destination(checkpoint: Path, model: Path) -> Path:
    """Return the default output folder for exported files, see `output` of `export`; the folder may not exist.

    Args:
        checkpoint: path of a file or folder, as given by the user.
        model: model file that was found at `checkpoint`.
    """
    from cyclestyle.model_files import provenance

    if checkpoint.is_file() and provenance.run_folder(model) is None:
        return checkpoint.parent
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent  # `best` and `latest` are no folders
    return (provenance.run_folder(model) or folder) / "exported"


def check_free(targets: list[Path], model: Path, *, may_replace: bool) -> None:
    """Raise a CommandError if one of the `targets` must not or cannot be written.

    A target is rejected if it is the file `model` itself, a folder or a path below a file. An existing file is rejected
    unless `may_replace` is true.
    """
    from cyclestyle.errors import CommandError
    from cyclestyle.filesystem.listing import printable

    for target in targets:
        if target.parent.exists() and not target.parent.is_dir():
            raise CommandError(f"output={printable(target.parent)} is a file: give a folder")
        if target.exists() and target.samefile(model):
            raise CommandError(
                f"{printable(target)} is the checkpoint itself, which is never overwritten: give output="
            )
        if target.is_dir() or (target.exists() and not may_replace):
            raise CommandError(f"{printable(target)} exists already: give existing=overwrite or another output=")


def write(file: "File", target: Path) -> None:
    """Write an exported file atomically to `target`; raise a DiskError if this fails."""
    from cyclestyle.filesystem.atomic import atomic_write, disk_error, free_space

    free: int | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = free_space(target.parent)
        with atomic_write(target) as stream:
            stream.write(file.content)
    except OSError as error:
        message = f"cannot write {target.name}"
        raise disk_error(message, error, target.parent, need=len(file.content), free=free) from None


if __name__ == "__main__":
    main()
