"""Write a model's directions as files to hand on: `python -m cyclestyle.export checkpoint=... format=onnx`."""

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
    return export(**compose.arguments_for(cfg, export))


def export(
    checkpoint: str | Path,
    *,
    format: Literal["safetensors", "reference", "onnx"] = "safetensors",  # noqa: A002
    output: str | Path | None = None,
    direction: str | None = None,
    weights: Literal["ema", "raw"] = "ema",
    existing: Literal["error", "overwrite"] = "error",
) -> int:
    """Write one file for each direction, and print what each is.

    Args:
        checkpoint: a run's folder, a checkpoint's folder, a safetensors file or a reference file.
        format: see `formats.FORMATS`.
        output: a folder; None is `exported` in the run's folder, or the one that the file lies in.
        direction: such as `photo2monet`; None is every direction that there is.
        weights: see `Translator.load`.
        existing: what happens to files that are there: they are an error, or replaced.

    Returns:
        The exit code 0.

    Raises:
        CommandError: no such direction, or files that are in the way.
        CheckpointError: no model there, or one that the format cannot hold; nothing has been written.
        DiskError: the files cannot be written; none is half there.
    """
    from cyclestyle.filesystem.atomic import megabytes  # torch takes seconds; --help and typing errors need none
    from cyclestyle.filesystem.listing import printable
    from cyclestyle.model_files import export_formats
    from cyclestyle.model_files import generator_file as source

    sources = with_history(source.read(Path(checkpoint), weights=weights))
    folder = destination(Path(checkpoint), sources.path) if output is None else Path(output)
    targets = [folder / name for name in export_formats.names(sources, format=format, direction=direction)]
    check_free(targets, sources.path, may_replace=existing == "overwrite")  # before minutes go by with ONNX

    for file, target in zip(export_formats.files(sources, format=format, direction=direction), targets, strict=True):
        write(file, target)
        print("\n  ".join([f"{printable(target)}: {megabytes(len(file.content))}", *file.notes]), flush=True)
    return 0


def with_history(sources: "GeneratorFiles") -> "GeneratorFiles":
    """The sources, with what their run tells of how they were trained."""
    from cyclestyle.model_files import provenance

    run = provenance.run_folder(sources.path)
    if run is None:
        return sources
    found = {
        side: source._replace(training=provenance.training_summary(run, step=source.step or 0))
        for side, source in sources.found.items()
    }
    return sources._replace(found=found)


def destination(checkpoint: Path, model: Path) -> Path:
    """Where the files of a model go unless they are told where."""
    from cyclestyle.model_files import provenance

    if checkpoint.is_file() and provenance.run_folder(model) is None:
        return checkpoint.parent
    return (provenance.run_folder(model) or checkpoint) / "exported"


def check_free(targets: list[Path], model: Path, *, may_replace: bool) -> None:
    """Raise a CommandError if a file is in the way, or is the model itself."""
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
            raise CommandError(f"{printable(target)} is there already: give existing=overwrite or another output=")


def write(file: "File", target: Path) -> None:
    """Write one file, whole or not at all; a DiskError if that cannot be done."""
    from cyclestyle.filesystem.atomic import atomic_write, disk_error, free_space

    free: int | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = free_space(target.parent)
        with atomic_write(target) as stream:
            stream.write(file.content)
    except OSError as error:
        what = f"cannot write {target.name}"
        raise disk_error(what, error, target.parent, need=len(file.content), free=free) from None


if __name__ == "__main__":
    main()
