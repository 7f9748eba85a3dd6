"""Builds the training data of a run, and inspects its images."""

import contextlib
from typing import TYPE_CHECKING

from torch import nn

from cyclestyle.cli import compose
from cyclestyle.data import UnpairedFolders
from cyclestyle.errors import CommandError
from cyclestyle.progress import Counter
from cyclestyle.run.folder import RunFolder, write_bad_files
from cyclestyle.signals import StopRequest
from cyclestyle.training.messages import PrintLine

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.distributed.world import World


def find_images(
    cfg: "DictConfig", folder: RunFolder, world: "World", stop: StopRequest, report: PrintLine
) -> UnpairedFolders | None:
    """Find and inspect the training images; rank 0 caches the results, and other ranks on its host reuse them.

    Returns:
        Training data with the image folders of both domains; None if a stop was requested on any rank.

    Raises:
        DataError: images are missing, or too many images are unusable.
    """
    with world.main_first():
        data: UnpairedFolders = compose.build(cfg.data)
        if world.is_main:
            try:
                inspect_with_progress(data, stop)
            finally:
                write_bad_files(folder, data.bad)
    if world.any(stop(), no_timeout=True):
        return None
    if not world.is_main:
        inspect_with_progress(data, stop)
    for note in data.notes:
        report(note)
    return data


def inspect_with_progress(data: UnpairedFolders, stop: StopRequest) -> None:
    """Inspect the training images; show a progress counter if the inspection has to decode images."""
    with contextlib.ExitStack() as exit_stack:
        counters: list[Counter] = []

        def on_progress(done: int, total: int) -> None:
            if not counters:
                counters.append(exit_stack.enter_context(Counter(total, what="inspecting pictures")))
            counters[0].advance()

        data.inspect(on_progress=on_progress, stopping=stop)


def check_crop(crop_size: int, discriminators: nn.Module) -> None:
    """Raise a CommandError if `crop_size` is too small for a discriminator to return a score."""
    largest = max(discriminators.children(), key=lambda each: int(each.minimum_size))  # type: ignore[arg-type]
    smallest, field = largest.minimum_size, largest.receptive_field
    if crop_size < int(smallest):  # type: ignore[arg-type]
        raise CommandError(
            f"crop {crop_size} is too small for the {field}x{field} discriminator: "
            f"set data.crop_size to {smallest} or more"
        )
