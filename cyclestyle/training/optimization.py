"""Both optimizers of a run as one, and the batch that they see."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from cyclestyle.errors import CommandError


class Optimizers(NamedTuple):
    """One optimizer for both generators, one for both discriminators."""

    generators: Optimizer
    discriminators: Optimizer

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for optimizer in self:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)  # in place: a captured graph reads it there
                else:
                    group["lr"] = rate

    @property
    def are_capturable(self) -> bool:
        """Whether both can run inside a CUDA graph."""
        return all("capturable" in group for optimizer in self for group in optimizer.param_groups)

    def make_capturable(self, device: torch.device) -> None:
        """Keep learning rates and step counts on the device, where a captured graph reads them."""
        for optimizer in self:
            for group in optimizer.param_groups:
                group["lr"] = torch.full((), float(group["lr"]), device=device)
                group["capturable"] = True

    def state_dict(self) -> dict[str, Any]:
        """The moments of both; rates and betas belong to the config."""
        return {name: optimizer.state_dict()["state"] for name, optimizer in self._asdict().items()}

    def load_state_dict(self, moments: Mapping[str, Any]) -> None:
        """Load the moments of both; rates and betas stay as they are."""
        for name, optimizer in self._asdict().items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": moments[name], "param_groups": groups})
            _match_layout(optimizer)


def check_batch(batch_size: int, *, ranks: int, accumulate: int) -> None:
    """Raise a CommandError unless the global batch divides evenly over processes and accumulation."""
    if batch_size < 1 or accumulate < 1:
        raise CommandError(f"trainer.batch_size={batch_size}, trainer.accumulate={accumulate}: both must be 1 or more")
    if batch_size % (ranks * accumulate):
        raise CommandError(
            f"trainer.batch_size={batch_size} (global) cannot be divided evenly over {ranks} process(es) x "
            f"{accumulate} accumulated part(s): make it a multiple of {ranks * accumulate}"
        )


def _match_layout(optimizer: Optimizer) -> None:
    """Give loaded moments the memory layout of their parameters; fused optimizers read both as if it were the same."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
