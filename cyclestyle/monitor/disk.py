"""Disk space of a run's files: estimates at the start of a run, and the choice of the sample grids to keep."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Plan(NamedTuple):
    """Schedule of a run's logs and sample images, from which loggers estimate the sizes of their files."""

    start: int  # step from which this process trains
    total: int  # step at which training ends
    log_every: int  # steps between two logs
    sample_every: int  # steps between two logs of samples
    grid_bytes: int  # size of the sample grids of one step, both directions together
    values: int = 16  # numbers in one log

    @property
    def sampled(self) -> list[int]:
        """Steps at which sample images are written, over the whole run, in ascending order."""
        return sorted({*range(0, self.total, self.sample_every), self.total})

    @property
    def logs(self) -> int:
        """Number of steps in the whole run at which losses and speeds are logged."""
        return -(-self.total // self.log_every)

    @property
    def coming_logs(self) -> int:
        """Number of steps from `start` to the end of the run at which losses and speeds are logged."""
        return -(-(self.total - self.start) // self.log_every)


def thinned(steps: Sequence[int], keep: int | None) -> set[int]:
    """Choose the steps whose samples are kept: all of the newest steps, and fewer and fewer of the older ones.

    The newest `keep` steps are all kept. Of the `keep` steps before them, about every second one is kept; of the
    2 * `keep` steps before those, about every fourth one, and so on. The first step is always kept. A step that was
    left out once is never chosen again when `steps` grows, so its samples can be deleted.

    Args:
        steps: steps with samples, in ascending order.
        keep: 2 or more; None keeps all.
    """
    if keep is None or len(steps) <= keep:
        return set(steps)
    newest = steps[-1]
    # The largest distance, since the last step of a run may follow the one before it sooner.
    interval = max(later - earlier for earlier, later in itertools.pairwise(steps[-keep - 1 :]))
    kept = {steps[0], *steps[-keep:]}
    for earlier, step in itertools.pairwise(steps[:-keep]):
        doublings = max((newest - step) // (keep * interval), 1).bit_length()
        width = interval << doublings
        if earlier // width < step // width:  # the first step at or after a multiple of the width
            kept.add(step)
    return kept


def kept_checkpoints(total: int, *, save_every: int, keep: int, keep_every: int | None, has_best: bool) -> int:
    """Return the largest number of checkpoint folders that exist at one time, including the one being written.

    Args:
        total: step at which training ends.
        save_every: number of steps between two checkpoints.
        keep: number of newest checkpoints that are kept.
        keep_every: checkpoints at multiples of this step are also kept; None keeps no others.
        has_best: whether the best checkpoint is also kept.
    """
    saves = -(-total // save_every)
    protected = sum(1 for step in range(save_every, total, save_every) if step % keep_every == 0) if keep_every else 0
    return min(saves, keep + 1 + protected + has_best)


def folder_bytes(folder: Path) -> int:
    """Return the total size of the files below a folder; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def size(count: int) -> str:
    """Format a number of bytes, such as `3.2 MB` or `1.4 GB`; 1 GB is 1e9 bytes."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
