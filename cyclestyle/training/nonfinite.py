"""Detection of losses and gradients that are not finite, without waiting for the device."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from cyclestyle.distributed.world import World

_NEVER = 2**62


class NotFinite(NamedTuple):
    """An update whose losses or gradients were not finite."""

    step: int  # number of steps done before the update
    values: dict[str, float]  # losses and gradient norm of the update, averaged over all ranks


class NonFiniteDetector:
    """Checks every update of one optimizer; the first non-finite (bad) update is recorded on the device."""

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        self._values: Tensor | None = None  # losses and norm of the first bad update, or of the newest
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def clear(self) -> None:
        """Clear the record of the first bad update."""
        self._first.fill_(_NEVER)

    def watch(self, step: Tensor, losses: dict[str, Tensor], gradients: Iterable[Tensor]) -> Tensor:
        """Check one update without waiting for the device; a CUDA graph can capture the call, which works in place.

        Args:
            step: number of steps done before the update, an int64 scalar on the device.
            losses: named scalars on the device.
            gradients: gradients of all parameters that the update changes, averaged over all ranks; empty with a
                gradient scaler, which handles overflows itself.

        Returns:
            Bool scalar on the device: whether a loss or the gradient norm is not finite.
        """
        values = {name: loss.detach().float() for name, loss in losses.items()}
        gradients = list(gradients)
        if gradients:
            values["gradient norm"] = torch.nn.utils.get_total_norm(gradients).float()
        stacked = torch.stack(list(values.values()))
        bad = ~stacked.isfinite().all()

        if self._values is None:
            self._values = stacked.clone()
        self._values.copy_(torch.where(self._first == _NEVER, stacked, self._values))
        self._first.copy_(torch.where(bad, torch.minimum(self._first, step), self._first))
        self._names = list(values)
        return bad

    def first(self, world: World) -> NotFinite | None:
        """Return the first bad update of any rank, or None; wait for the device. All ranks must call this together."""
        step = int(world.min(self._first.clone()).item())
        if step == _NEVER or self._values is None:
            return None
        values = world.mean(self._values.clone()).tolist()
        return NotFinite(step, dict(zip(self._names, values, strict=True)))
