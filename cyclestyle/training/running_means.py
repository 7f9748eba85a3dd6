"""Values to log for the steps since the last log.

These are means of losses and scores, speeds, the number of skipped steps, and the number of replaced images.
"""

import time
from typing import Any

import torch
from torch import Tensor

from cyclestyle.hardware.device import Hardware


class RunningMeans:
    """Means of losses and scores since the last log. Their sums stay on the device and are read only at each log."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.steps = self.skipped = 0  # a skipped step increases both counts
        self._sums: dict[str, Tensor] = {}
        self.earlier_speeds: dict[str, float] = {}  # for the next log, if this process has trained none of its steps
        self._images = self._replaced = 0
        self._waiting_s, self._since = 0.0, time.perf_counter()

    def add(self, means: dict[str, Tensor], *, pictures: int, replaced: int = 0) -> None:
        """Add the values of one training step.

        Args:
            means: losses and scores of the step by name, scalars on the device; empty for a skipped step.
            pictures: number of images in the step, over all ranks.
            replaced: number of unreadable images that were replaced by other images, in this rank's share of the step.
        """
        for name, value in means.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.steps += 1
        self.skipped += not means
        self._images += pictures
        self._replaced += replaced

    def add_data_wait(self, seconds: float) -> None:
        """Add `seconds` to the time that training has waited for data."""
        self._waiting_s += seconds

    def values(self) -> dict[str, float]:
        """Return the values to log, computed over the steps since the last call, and reset all sums and counts.

        Losses and scores are means over all ranks and over all steps that were not skipped. Speeds are measured over
        the steps that this process has trained; if it has trained none, the attribute `earlier_speeds` supplies them
        from the log of an earlier process. This call waits for the device; all ranks must call it together.
        """
        world, trained = self.hardware.world, max(self.steps - self.skipped, 1)
        replaced = torch.tensor(self._replaced, dtype=torch.get_default_dtype(), device=self.hardware.device)
        *means, replaced_mean = world.mean(
            torch.stack([*(s / trained for s in self._sums.values()), replaced])
        ).tolist()
        values = dict(zip(self._sums, means, strict=True))
        elapsed_s = time.perf_counter() - self._since
        if self._images:
            values["speed/images_per_s"] = self._images / elapsed_s
            values["speed/waiting_for_data"] = self._waiting_s / elapsed_s
        else:
            values |= self.earlier_speeds
        if self.skipped:
            values["skipped_steps"] = self.skipped
        if replaced_mean:
            values["replaced_pictures"] = round(replaced_mean * world.size)
        self.clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts since the last log, but no times: a resumed run measures times from its own start."""
        counts = {"steps": self.steps, "skipped": self.skipped, "replaced": self._replaced}
        return {"sums": dict(self._sums), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load sums and counts that `state_dict` or `redistribute` returned."""
        self.clear()
        self._sums = {name: value.to(self.hardware.device) for name, value in state["sums"].items()}
        self.steps, self.skipped, self._replaced = state["steps"], state["skipped"], state["replaced"]

    def clear(self) -> None:
        """Set all sums and counts to zero; speeds are measured from now on."""
        self._sums, self.earlier_speeds = {}, {}
        self.steps = self.skipped = self._images = self._replaced = 0
        self._waiting_s, self._since = 0.0, time.perf_counter()


def redistribute(states: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """Combine the running means of all saved ranks for a run that resumes with another number of ranks.

    Args:
        states: `RunningMeans.state_dict` of every rank of the saved run.
        rank: rank in the resumed run that will load the result.

    Returns:
        State with the sums averaged over the saved ranks, so that the logged means do not change. The total count of
        replaced images is given to rank 0 alone; the other ranks get 0.
    """
    sums = {name: torch.stack([state["sums"][name] for state in states]).mean(dim=0) for name in states[0]["sums"]}
    replaced = sum(state["replaced"] for state in states)
    return states[0] | {"sums": sums, "replaced": replaced if rank == 0 else 0}
