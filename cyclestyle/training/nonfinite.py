"""Detection of losses and gradients that are not finite, without waiting for the device after each update."""

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
    """Checks each update of one optimizer; records the first bad update since the last `clear`.

    An update is bad if one of its losses, or the norm of its gradients, is not finite.
    """

    def __init__(self, device: torch.device) -> None:
        self._names: list[str] = []
        # Losses and gradient norm of the first bad update, or of the newest update if none was bad.
        self._values: Tensor | None = None
        self._first = torch.full((), _NEVER, dtype=torch.int64, device=device)

    def clear(self) -> None:
        """Clear the record of the first bad update."""
        self._first.fill_(_NEVER)

    def watch(self, step: Tensor, losses: dict[str, Tensor], gradients: Iterable[Tensor]) -> Tensor:
        """Check one update without waiting for the device.

        The check works in place, so that a CUDA graph can capture it.

        Args:
            step: number of steps done before the update, an int64 scalar on the device.
            losses: losses by name, scalars on the device.
            gradients: gradients of all parameters that the update changes, averaged over all ranks; empty if a
                gradient scaler is in use, since the scaler itself skips updates whose gradients overflow.

        Returns:
            Bool scalar on the device: true if a loss or the gradient norm is not finite.
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
        """Return the first bad update on any rank since the last `clear`; None if there is none.

        This call waits for the device. All ranks must call it together.
        """
        step = int(world.min(self._first.clone()).item())
        if step == _NEVER or self._values is None:
            return None
        values = world.mean(self._values.clone()).tolist()
        return NotFinite(step, dict(zip(self._names, values, strict=True)))
