"""The optimizers of a run as one object, and the check of the batch size."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cyclestyle.errors import CommandError


class Optimizers:
    """Optimizers by name: one for each parameter update of a training step.

    Args:
        optimizers: name of the update, such as `generators` or `discriminators` -> its optimizer. The present learning
            rate of each optimizer counts as its initial learning rate.
    """

    def __init__(self, **optimizers: Optimizer) -> None:
        self._optimizers = optimizers
        self.base_rates = {name: float(each.param_groups[0]["lr"]) for name, each in optimizers.items()}

    def __getitem__(self, name: str) -> Optimizer:
        return self._optimizers[name]

    def __iter__(self) -> Iterator[Optimizer]:
        return iter(self._optimizers.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._optimizers)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """Return all parameters that optimizer `name` changes."""
        return [p for group in self._optimizers[name].param_groups for p in group["params"]]

    def rates(self, factor: float) -> dict[str, float]:
        """Return the learning rates by optimizer name: `factor` times the initial learning rate of each optimizer."""
        return {name: rate * factor for name, rate in self.base_rates.items()}

    def set_rates(self, factor: float) -> None:
        """Set the learning rate of each optimizer to `factor` times its initial learning rate."""
        for name, rate in self.rates(factor).items():
            for group in self._optimizers[name].param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate)  # in place, since a captured CUDA graph reads this tensor
                else:
                    group["lr"] = rate

    @property
    def are_capturable(self) -> bool:
        """True if all optimizers can run inside a CUDA graph."""
        return all("capturable" in group for optimizer in self for group in optimizer.param_groups)

    def make_capturable(self, device: torch.device) -> None:
        """Move learning rates and step counts to the device, where a captured CUDA graph reads them."""
        for optimizer in self:
            for group in optimizer.param_groups:
                group["lr"] = torch.full((), float(group["lr"]), device=device)
                group["capturable"] = True

    def state_dict(self) -> dict[str, Any]:
        """Return moments (running averages of gradients) and step counts by optimizer name.

        Learning rates and betas are left out, since they come from the config.
        """
        return {name: optimizer.state_dict()["state"] for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, moments: Mapping[str, Any]) -> None:
        """Load moments (running averages of gradients) and step counts, as `state_dict` returns them.

        Learning rates and betas stay unchanged. Moments that fit no parameter of the optimizer, such as those of a
        removed loss term, are left out.
        """
        for name, optimizer in self._optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            parameters = dict(enumerate(self.parameters(name)))
            fitting = {
                index: state
                for index, state in moments[name].items()
                if index in parameters and _fits(state, parameters[index])
            }
            optimizer.load_state_dict({"state": fitting, "param_groups": groups})
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


def _fits(state: Mapping[str, Any], parameter: Tensor) -> bool:
    """Return whether the tensors in `state`, the optimizer's state of one parameter, have the shape of `parameter`.

    Scalars, such as step counts, always fit.
    """
    return all(value.shape == parameter.shape for value in state.values() if isinstance(value, Tensor) and value.dim())


def _match_layout(optimizer: Optimizer) -> None:
    """Convert the loaded state of an optimizer to the memory layout of the parameters, as fused optimizers require."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
