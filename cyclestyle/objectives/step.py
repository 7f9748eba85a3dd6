"""Contract between an objective, which computes losses, and the trainer, which updates networks.

A training step consists of updates; each update changes one group of parameters once, such as those of the generators.
The losses of an update are computed by one or more functions, its parts. The trainer calls the parts one after the
other, back-propagates the losses of each part before the next call, and then changes the parameters.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Scalars = dict[str, Tensor]  # log key, such as "loss/cycle_a" or "score/real_a" -> scalar


class Images(NamedTuple):
    """This rank's share of the real images of one step: N images of each domain, (N, C, H, W) in [-1, 1]."""

    a: Tensor
    b: Tensor
    draws: list[int]  # N sample indices, one for each pair of images


class PartResult(NamedTuple):
    """Return value of a part, which is a function that computes some or all losses of an update."""

    losses: Scalars  # weighted losses, whose sum is minimised
    scores: Mapping[str, Tensor] = {}  # further scalars for the log, without gradients
    images: Mapping[str, Tensor] = {}  # images that the step needs afterwards; the trainer detaches them


Part = Callable[..., PartResult]  # receives the tensors that were passed to `Update`, or one micro-batch of them


class UpdateResult(NamedTuple):
    """Return value of an `Update`: scalars and images from its parts, such as losses and translations."""

    scalars: Scalars  # losses and scores, averaged over micro-batches, without gradients
    images: dict[str, Tensor]  # images of all parts and micro-batches, without gradients


class UpdateSkipped(Exception):  # noqa: N818 - an outcome that ends a step early, not an error
    """Raised by an `Update` that left out its change of the parameters, because a loss or gradient was not finite."""


class Update(Protocol):
    """Function of the trainer that updates parameters once.

    Args:
        name: name of the update, a key of `Objective.parameters`.
        parts: functions that compute the losses. Each is called once for each micro-batch, and its losses are
            back-propagated before the next call. The last part must use every parameter of the update. Under CUDA
            graphs, the Python code of the parts runs only in the first calls with each `name`. Therefore pass the same
            parts at every call, and pass changing values in `tensors`.
        tensors: arguments of the parts, at least one, all with the same first dimension N, along which they are split
            into micro-batches. Pass a changing number as a tensor of N copies.

    Raises:
        UpdateSkipped: the parameters were left unchanged, because a loss or gradient was not finite.
    """

    def __call__(self, name: str, parts: Sequence[Part], *tensors: Tensor) -> UpdateResult: ...


class Objective(Protocol):
    """Losses of a training run, and the order of its updates; the trainer trains any class with these members.

    An objective may also have the attribute `sees`, a tuple with the names of the pretrained networks whose features
    its losses use. Those that its attributes `terms`, `discriminator_terms` and `adversarial`, and its discriminators
    use are found without it, see `objectives.sees`.
    """

    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """Networks by the names under which a checkpoint stores their weights.

        The trainer accepts any names. The train command, for checkpoints, samples and other periodic tasks, requires
        `generators`, with submodules `ab` and `ba`, and `discriminators`, with submodules `a` and `b`.
        """

    @property
    def parameters(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """Trained parameters by the name of the update that changes them."""

    def step(self, images: Images, update: Update) -> Scalars:
        """Do all updates of one training step, in order; return their losses and scores."""

    def state_dict(self) -> dict[str, Any]:
        """Return state that is equal on all ranks, without the weights of `modules`; may be empty."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state`, a result of `state_dict`; `state` is empty if the saved run had none."""

    def rank_state_dict(self) -> dict[str, Any]:
        """Return state of this rank alone, such as its share of an image pool; may be empty."""

    def load_rank_state_dicts(
        self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int, device: torch.device
    ) -> None:
        """Restore the state of one rank from the results of `rank_state_dict` on all ranks of a saved run.

        Args:
            states: one result per rank of the saved run, which may have had another number of ranks than this run.
            rank: number of this rank.
            ranks: number of ranks of this run.
            device: device of the trained networks; `states` are on the CPU.
        """
