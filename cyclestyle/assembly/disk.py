"""Estimates the disk space that a run will take, and compares it with the free space."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cyclestyle.assembly.periodic import PROBES
from cyclestyle.checkpoints.directory import Checkpoints
from cyclestyle.cli import compose
from cyclestyle.errors import warn
from cyclestyle.filesystem.atomic import free_space
from cyclestyle.monitor.disk import Plan, folder_bytes, kept_checkpoints, size
from cyclestyle.monitor.logger import Logger, Samples
from cyclestyle.monitor.sample_grid import column_titles, encoded_grid
from cyclestyle.training.state import snapshot_model

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.data import UnpairedFolders
    from cyclestyle.run.folder import RunFolder
    from cyclestyle.training.trainer import Trainer


def forecast_disk(
    cfg: "DictConfig", trainer: "Trainer", data: "UnpairedFolders", folder: "RunFolder", loggers: Sequence[Logger]
) -> str:
    """Estimate the bytes that a run will still write, by kind of file; warn if the disk has less free space.

    Sample grids are images that show a few fixed images beside their translations. Their size is measured on grids that
    show untranslated images only. Each checkpoint is assumed to be as large as the newest one. If there is none yet,
    the size is computed for full image pools and an optimizer with two moments per weight, such as Adam.

    Returns:
        One line for the user: bytes in total and by kind of file, and the free space if it is known.
    """
    plan = Plan(
        start=trainer.step,
        total=trainer.total,
        log_every=cfg.trainer.log_every,
        sample_every=cfg.trainer.sample_every,
        grid_bytes=_grid_bytes(data),
    )
    count = kept_checkpoints(
        trainer.total,
        save_every=cfg.trainer.save_every,
        has_best=cfg.checkpoint.best is not None,
        **compose.arguments_for(cfg.checkpoint, Checkpoints),
    )
    uses = {"checkpoints": count * _checkpoint_bytes(trainer, data, folder)}
    for logger in loggers:
        for kind, use in getattr(logger, "disk_use", _no_use)(plan).items():
            uses[kind] = uses.get(kind, 0) + use
    for kind in ("checkpoints", "samples"):  # these are forecasts for the whole run, and some of the files may exist
        if kind in uses:
            uses[kind] = max(uses[kind] - folder_bytes(folder.path / kind), 0)

    parts = ", ".join(f"{kind} {size(use)}" for kind, use in uses.items() if use >= 5e4)
    free, more = free_space(folder.path), sum(uses.values())
    if free is not None and more > free:
        warn(
            f"the disk of {folder.path} may become full: {size(free)} are free, and the run will write {size(more)} "
            f"more: {parts}; a lower checkpoint.keep, a higher checkpoint.keep_every or trainer.sample_every, "
            f"or another run_dir= helps"
        )
    return f"disk: {size(more)} to write{f' ({parts})' if parts else ''}" + (
        f", {size(free)} free" if free is not None else ""
    )


def _no_use(plan: Plan) -> dict[str, int]:
    return {}


def _grid_bytes(data: "UnpairedFolders") -> int:
    """Return the bytes of the sample grids (images that show translations) of one step, for both directions together.

    They are measured on grids that show the untranslated images in place of the translations.
    """
    titles = column_titles(*data.domains)
    return sum(len(encoded_grid(Samples(images, images, images, images), titles)) for images in data.probes(PROBES))


def _checkpoint_bytes(trainer: "Trainer", data: "UnpairedFolders", folder: "RunFolder") -> int:
    newest = folder.checkpoints.newest()
    if newest is not None:
        return folder_bytes(newest)
    weights = sum(tensor.nbytes for tensor in snapshot_model(trainer, data.domains).tensors.values())
    trained = sum(weight.nbytes for weights in trainer.objective.parameters.values() for weight in weights)
    pools: Any = getattr(trainer.objective, "pools", ())
    stored = sum(
        getattr(pool, "slots", 0) * trainer.batch_size * 4 * images[0].numel()
        for pool, images in zip(pools, data.probes(1), strict=False)
    )
    return weights + 2 * trained + stored
