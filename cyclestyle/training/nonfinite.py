"""Notices losses and gradients that are no numbers any more, without waiting for the device."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from cyclestyle.distributed.world import World

_NEVER = 2**62


class NotFinite(NamedTuple):
    """An update that went wrong."""

    step: int  # steps done before it
    values: dict[str, float]  # its losses, means over all processes, and the norm of its gradient


class NonFiniteDetector:
    """Watches all updates of some networks; the first bad one stays on the device until somebody asks."""

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        self._values: Tensor | None = None  # of the first bad update; of the newest while there is none
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def clear(self) -> None:
        """Forget what was noticed."""
        self._first.fill_(_NEVER)

    def watch(self, step: Tensor, losses: dict[str, Tensor], gradients: Iterable[Tensor]) -> Tensor:
        """Look at one update without waiting for it; changes tensors in their places, so that it can be recorded.

        Args:
            step: steps done before it, an int64 on the device.
            losses: named scalars on the device.
            gradients: of all parameters that it changes, averaged over all processes; empty where a scaler looks for
                overflows itself and allows for them.

        Returns:
            Whether it is bad, a bool on the device.
        """
        values = {name: loss.detach().float() for name, loss in losses.items()}
        gradients = list(gradients)
        if gradients:
            values["gradient norm"] = torch.nn.utils.get_total_norm(gradients).float()
        seen = torch.stack(list(values.values()))
        bad = ~seen.isfinite().all()

        if self._values is None:
            self._values = seen.clone()
        self._values.copy_(torch.where(self._first == _NEVER, seen, self._values))
        self._first.copy_(torch.where(bad, torch.minimum(self._first, step), self._first))
        self._names = list(values)
        return bad

    def first(self, world: World) -> NotFinite | None:
        """The first bad update of any process, if there was one; waits for the device, all processes ask together."""
        step = int(world.min(self._first.clone()).item())
        if step == _NEVER or self._values is None:
            return None
        values = world.mean(self._values.clone()).tolist()
        return NotFinite(step, dict(zip(self._names, values, strict=True)))
