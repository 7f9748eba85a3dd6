"""Gradients that two ranks exchange in a step, and the memory in which these gradients lie."""

import pytest
from torch import nn

from tests.factories import tiny_objective
from tests.two_ranks import Rank, train_together

STEPS = 3
# Pairs of `backward` and `accumulate`, with 2, 4 and 2 backward passes of the generators per step.
MODES = [("split", 1), ("split", 2), ("joint", 2)]


@pytest.fixture(scope="module", params=MODES, ids=lambda mode: f"{mode[0]}-accumulate={mode[1]}")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    backward, accumulate = request.param
    folder = tmp_path_factory.mktemp("ranks")
    return train_together(folder, steps=STEPS, batch_size=4, backward=backward, accumulate=accumulate, count=True)


def gradient_bytes(module: nn.Module) -> int:
    """Return the size in bytes of a module's gradients, which are float64."""
    return 8 * sum(parameter.numel() for parameter in module.parameters())


def test_gradients_are_sent_between_ranks_once_per_step(ranks: list[Rank]) -> None:
    objective = tiny_objective()
    step = [gradient_bytes(objective.generators), gradient_bytes(objective.discriminators)]
    for rank in ranks:  # networks this small fit into one bucket each
        assert rank.sent == STEPS * step


def test_gradients_are_views_of_communication_buckets(ranks: list[Rank]) -> None:
    for rank in ranks:
        assert rank.storages == STEPS * [1, 1]
