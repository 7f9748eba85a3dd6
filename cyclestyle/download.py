"""Fetch the weights of pretrained networks into the cache: `python -m cyclestyle.download features=...`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cyclestyle.cli import compose, dispatch

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.model_files.weights import Found


def main() -> None:
    dispatch.launch("download", run)


def run(cfg: "DictConfig") -> int:
    download(**compose.arguments_for(cfg, download))
    return 0


def download(features: str | Sequence[str], *, path: str | Path | None = None) -> dict[str, Path]:
    """Put the weights of pretrained networks into the cache; print the origin, size, licence and file of each.

    If some weights cannot be fetched, the others are fetched nevertheless.

    Args:
        features: name of a network, several names, or `all`.
        path: file or folder with weights, searched before the cache, see `model_files.weights.find`. None searches the
            cache first.

    Returns:
        Name of each network -> file of its weights in the cache.

    Raises:
        CommandError: a name is unknown, `path` holds no weights, or a download failed.
        CheckpointError: a file at `path` is damaged.
        DiskError: the cache cannot be written.
    """
    from cyclestyle.errors import CommandError
    from cyclestyle.model_files import weights

    names = chosen(features)
    for name in names:
        weights.check_name(name)
    failures: list[str] = []
    for name in names:
        try:
            found = weights.find(name, path=None if path is None else Path(path), report=show, key="path")
            found = weights.fetch(name, report=show, key="path") if found is None else weights.store(found)
            show(describe(name, found))
        except CommandError as error:
            failures.append(str(error))
    if failures:
        messages = list(dict.fromkeys(failures))  # an unusable path fails for each network
        heading = [f"{len(failures)} of {len(names)} networks have no weights:"] if len(messages) > 1 else []
        raise CommandError("\n  ".join([*heading, *messages]))
    return {name: weights.cached_file(name) for name in names}


def chosen(features: str | Sequence[str]) -> list[str]:
    """Return the names of networks in `features`, each once and in the given order; `all` means all networks.

    The names are not checked.
    """
    from cyclestyle.model_files.published_weights import PUBLISHED

    given = [features] if isinstance(features, str) else features
    return list(dict.fromkeys(name for item in given for name in (PUBLISHED if item == "all" else [item])))


def describe(name: str, found: "Found") -> str:
    """Describe the weights of network `name` in one line: their origin, size, licence and file in the cache.

    `found` is the result of the search or download; the weights must be in the cache already.
    """
    from cyclestyle.filesystem.atomic import megabytes
    from cyclestyle.filesystem.listing import printable
    from cyclestyle.model_files import weights

    origins = {
        "cache": "already in the cache, from",
        "path": f"from {printable(found.file)}:",
        "package": "from the installed package",
        "fetched": "fetched from",
    }
    file = weights.cached_file(name)
    return (
        f"{name}: {origins[found.place]} {found.weights.source}; {megabytes(file.stat().st_size)}, "
        f"licence {found.weights.licence}: {printable(file)}"
    )


def show(line: str) -> None:
    """Print a line and flush it, so that it appears immediately."""
    print(line, flush=True)


if __name__ == "__main__":
    main()
