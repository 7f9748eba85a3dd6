"""What happens between two logs, summed up on the device and read out once."""

import time
from typing import Any

import torch
from torch import Tensor

from cyclestyle.hardware.device import Hardware


class RunningMeans:
    """Sums up what happens between two logs, on the device, and reads it out once."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware
        self.steps = self.skipped = 0  # those that were left out are counted in both
        self._sums: dict[str, Tensor] = {}
        self._pictures = self._replaced = 0
        self._waiting_s, self._since = 0.0, time.perf_counter()

    def add(self, means: dict[str, Tensor], *, pictures: int, replaced: int = 0) -> None:
        """One step: its losses (none if it was skipped), and how many pictures it showed and had to replace."""
        for name, value in means.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.steps += 1
        self.skipped += not means
        self._pictures += pictures
        self._replaced += replaced

    def add_data_wait(self, seconds: float) -> None:
        """For data."""
        self._waiting_s += seconds

    def values(self) -> dict[str, float]:
        """Means over the steps since the last call and over all processes; waits for the device."""
        world, trained = self.hardware.world, max(self.steps - self.skipped, 1)
        replaced = torch.tensor(self._replaced, dtype=torch.get_default_dtype(), device=self.hardware.device)
        *means, replaced_mean = world.mean(
            torch.stack([*(s / trained for s in self._sums.values()), replaced])
        ).tolist()
        values = dict(zip(self._sums, means, strict=True))
        elapsed_s = time.perf_counter() - self._since
        values["speed/images_per_s"] = self._pictures / elapsed_s
        values["speed/waiting_for_data"] = self._waiting_s / elapsed_s
        if self.skipped:
            values["skipped_steps"] = self.skipped
        if replaced_mean:
            values["replaced_pictures"] = round(replaced_mean * world.size)
        self._clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """What was summed up so far; not the times, which a resumed run has of its own."""
        counts = {"steps": self.steps, "skipped": self.skipped, "replaced": self._replaced}
        return {"sums": dict(self._sums), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on summing up where another process stopped."""
        self._clear()
        self._sums = {name: value.to(self.hardware.device) for name, value in state["sums"].items()}
        self.steps, self.skipped, self._replaced = state["steps"], state["skipped"], state["replaced"]

    def _clear(self) -> None:
        self._sums = {}
        self.steps = self.skipped = self._pictures = self._replaced = 0
        self._waiting_s, self._since = 0.0, time.perf_counter()


def redistribute(records: list[dict[str, Any]], rank: int) -> dict[str, Any]:
    """What one of a new number of processes goes on with, so that means over them and their counts stay the same."""
    sums = {name: torch.stack([one["sums"][name] for one in records]).mean(dim=0) for name in records[0]["sums"]}
    replaced = sum(one["replaced"] for one in records)
    return records[0] | {"sums": sums, "replaced": replaced if rank == 0 else 0}
