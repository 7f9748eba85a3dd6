"""The two optimizers of a run as one object, and the check of the batch size."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from cyclestyle.errors import CommandError


class Optimizers(NamedTuple):
    """Two optimizers: one for both generators, and one for both discriminators."""

    generators: Optimizer
    discriminators: Optimizer

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of both optimizers for the next step."""
        for optimizer in self:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)  # in place, since a captured CUDA graph reads this tensor
                else:
                    group["lr"] = rate

    @property
    def are_capturable(self) -> bool:
        """True if both optimizers can run inside a CUDA graph."""
        return all("capturable" in group for optimizer in self for group in optimizer.param_groups)

    def make_capturable(self, device: torch.device) -> None:
        """Move learning rates and step counts to the device, where a captured CUDA graph reads them."""
        for optimizer in self:
            for group in optimizer.param_groups:
                group["lr"] = torch.full((), float(group["lr"]), device=device)
                group["capturable"] = True

    def state_dict(self) -> dict[str, Any]:
        """Return moments, keyed by optimizer name; without learning rates and betas, which come from the config."""
        return {name: optimizer.state_dict()["state"] for name, optimizer in self._asdict().items()}

    def load_state_dict(self, moments: Mapping[str, Any]) -> None:
        """Load the moments of both optimizers; learning rates and betas stay unchanged."""
        for name, optimizer in self._asdict().items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments[name], "param_groups": groups})
            _match_layout(optimizer)


def check_batch(batch_size: int, *, ranks: int, accumulate: int) -> None:
    """Raise a CommandError unless the batch of a step can be divided evenly over all micro-batches of all ranks.

    Args:
        batch_size: number of image pairs per step, over all ranks.
        ranks: number of processes.
        accumulate: number of micro-batches that each rank computes per step.
    """
    if batch_size < 1 or accumulate < 1:
        raise CommandError(f"trainer.batch_size={batch_size}, trainer.accumulate={accumulate}: both must be 1 or more")
    if batch_size % (ranks * accumulate):
        raise CommandError(
            f"trainer.batch_size={batch_size} (global) cannot be divided evenly over {ranks} process(es) x "
            f"{accumulate} accumulated micro-batch(es): make it a multiple of {ranks * accumulate}"
        )


def _match_layout(optimizer: Optimizer) -> None:
    """Convert loaded moments to the memory layout of the parameters, since fused optimizers need equal layouts."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
