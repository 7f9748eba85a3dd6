"""What two processes send one another in a step, and where it lies."""

import pytest
from torch import nn

from tests.factories import tiny_objective
from tests.two_ranks import Rank, train_together

STEPS = 3
WAYS = [("split", 1), ("split", 2), ("joint", 2)]  # generators in two, four and two parts


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: f"{way[0]}-accumulate={way[1]}")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Rank]:
    backward, accumulate = request.param
    folder = tmp_path_factory.mktemp("ranks")
    return train_together(folder, steps=STEPS, batch_size=4, backward=backward, accumulate=accumulate, count=True)


def gradient_bytes(module: nn.Module) -> int:
    """In float64."""
    return 8 * sum(parameter.numel() for parameter in module.parameters())


def test_every_gradient_is_sent_once_a_step_in_however_many_parts_it_is_computed(ranks: list[Rank]) -> None:
    objective = tiny_objective()
    step = [gradient_bytes(objective.generators), gradient_bytes(objective.discriminators)]
    for rank in ranks:  # such small networks are sent in one piece each
        assert rank.sent == STEPS * step


def test_gradients_lie_where_they_are_sent_from(ranks: list[Rank]) -> None:
    for rank in ranks:
        assert rank.storages == STEPS * [1, 1]
