"""The moving average of the generators, compared with a loop over the formula."""

import pytest
import torch
from torch import nn

from cyclestyle.errors import CommandError
from cyclestyle.training.ema import GeneratorAverage, make_ema


@pytest.mark.parametrize("start", [0, 1, 7])
@pytest.mark.parametrize("warm_up", [True, False])
def test_moving_average_of_weights_matches_loop_over_formula(start: int, warm_up: bool) -> None:
    module = nn.Linear(1, 1).double()
    average = make_ema(module, 0.9, start=start, warm_up=warm_up)
    assert average is not None
    random = torch.Generator().manual_seed(0)
    expected = module.weight.item()
    for step in range(100):
        value = torch.rand((), generator=random, dtype=torch.float64).item()
        nn.init.constant_(module.weight, value)
        average.update(step)
        if step < start:
            expected = value
        else:
            decay = min(0.9, (1 + step) / (10 + step)) if warm_up else 0.9
            expected = decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-12), step


def test_average_has_parameters_of_its_own_and_needs_no_gradients() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    average = GeneratorAverage(module, 0.9)
    assert not {id(p) for p in average.module.parameters()} & {id(p) for p in module.parameters()}
    assert not any(p.requires_grad for p in average.module.parameters())
    assert not average.module.training
    assert module.training


def test_make_ema_rejects_bad_settings_and_returns_none_for_decay_zero() -> None:
    module = nn.Linear(1, 1)
    for decay in (-0.1, 1.0, 1.5, float("nan")):
        with pytest.raises(CommandError, match=rf"^ema\.decay={decay}: give 0 \(off\) or a share below 1"):
            make_ema(module, decay)
    with pytest.raises(CommandError, match=r"^ema\.start=-1: give a number of steps, 0 or more$"):
        make_ema(module, 0.9, start=-1)
    assert make_ema(module, 0.0) is None
