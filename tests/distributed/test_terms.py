"""Terms with parameters and R1 on two ranks: losses, weights and heads equal those of one process."""

from pathlib import Path

import pytest
import torch

from tests.factories import perceptual_terms, random_batch, tiny_terms, tiny_trainer
from tests.two_ranks import train_together

STEPS, BATCH = 4, 4


@pytest.mark.usefixtures("double_precision")
def test_two_ranks_with_extra_loss_terms_match_one_process(tmp_path: Path) -> None:
    ranks = train_together(tmp_path, steps=STEPS, batch_size=BATCH, backward="split", accumulate=2, terms="tiny")

    whole = tiny_trainer(batch_size=BATCH, pool=9, ema=0.9, backward="joint", **tiny_terms())
    initial = {name: value.clone() for name, value in flat(whole.objective.state_dict()).items()}
    for step in range(STEPS):
        losses = whole.train_step(random_batch(list(range(step * BATCH, (step + 1) * BATCH))))
        expected = {name: value.item() for name, value in losses.items()}
        assert {"loss/distance_ab", "loss/r1_b", "loss/calibration_a"} <= expected.keys()
        both = {name: sum(rank.losses[step][name] for rank in ranks) / 2 for name in expected}
        assert both == pytest.approx(expected, rel=1e-8, abs=1e-10), step

    for rank in ranks:
        heads = flat(rank.state["terms"])
        assert heads.keys() == initial.keys()
        torch.testing.assert_close(heads, flat(whole.objective.state_dict()), rtol=1e-6, atol=1e-8)
        assert not any(torch.equal(value, initial[name]) for name, value in heads.items())
        for name, module in whole.objective.modules.items():
            weights = {key: rank.state["weights"][f"{name}.{key}"] for key in module.state_dict()}
            torch.testing.assert_close(weights, dict(module.state_dict()), rtol=1e-6, atol=1e-8)
    first, second = (flat(rank.state["terms"]) for rank in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def flat(state: dict[str, dict[str, dict[str, torch.Tensor]]]) -> dict[str, torch.Tensor]:
    """Return the parameters of the terms of both sides by one name each."""
    return {
        f"{side}.{term}.{key}": value
        for side, terms in state.items()
        for term, parameters in terms.items()
        for key, value in parameters.items()
    }


@pytest.mark.usefixtures("double_precision")
def test_two_ranks_with_content_and_style_terms_match_one_process(tmp_path: Path) -> None:
    ranks = train_together(tmp_path, steps=2, batch_size=BATCH, backward="split", accumulate=2, terms="perceptual")

    whole = tiny_trainer(batch_size=BATCH, pool=9, ema=0.9, backward="joint", terms=perceptual_terms())
    for step in range(2):
        losses = whole.train_step(random_batch(list(range(step * BATCH, (step + 1) * BATCH))))
        expected = {name: value.item() for name, value in losses.items()}
        assert {"loss/content_ab", "loss/style_ba"} <= expected.keys()
        both = {name: sum(rank.losses[step][name] for rank in ranks) / 2 for name in expected}
        assert both == pytest.approx(expected, rel=1e-8, abs=1e-10), step
    for rank in ranks:
        for name, module in whole.objective.modules.items():
            weights = {key: rank.state["weights"][f"{name}.{key}"] for key in module.state_dict()}
            torch.testing.assert_close(weights, dict(module.state_dict()), rtol=1e-6, atol=1e-8)
    first, second = (rank.state["rank_state"]["buffers"] for rank in ranks)
    saved = first["terms"]["style"]
    assert len(saved) == 2 * (1 + 2 * 2)  # per direction: factors, and mean and root of both layers
    assert all(torch.equal(value, second["terms"]["style"][key]) for key, value in saved.items())
