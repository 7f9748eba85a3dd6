"""Adversarial losses, compared with values calculated by hand."""

import numpy as np
import pytest
import torch

from cyclestyle.objectives.adversarial import BinaryCrossEntropy, Hinge, LeastSquares

SCORES = np.array([[-2.0, -0.5, 0.0], [0.25, 1.0, 3.0]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("loss", "real", "fake", "generator"),
    [
        (
            LeastSquares(),
            (9 + 2.25 + 1 + 0.5625 + 0 + 4) / 6,
            (4 + 0.25 + 0 + 0.0625 + 1 + 9) / 6,
            (9 + 2.25 + 1 + 0.5625 + 0 + 4) / 6,
        ),
        (
            BinaryCrossEntropy(),
            np.mean(-np.log(sigmoid(SCORES))),
            np.mean(-np.log(1 - sigmoid(SCORES))),
            np.mean(-np.log(sigmoid(SCORES))),
        ),
        (
            Hinge(),
            (3 + 1.5 + 1 + 0.75 + 0 + 0) / 6,
            (0 + 0.5 + 1 + 1.25 + 2 + 4) / 6,
            -1.75 / 6,
        ),
    ],
    ids=["least-squares", "cross-entropy", "hinge"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_match_values_calculated_by_hand(loss, real, fake, generator, dtype):
    scores = torch.tensor(SCORES, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for term, expected in [(loss.real, real), (loss.fake, fake), (loss.generator, generator)]:
        value = term(scores)
        assert value.shape == ()
        assert value.dtype == dtype
        assert value.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("loss", [LeastSquares(), BinaryCrossEntropy(), Hinge()])
def test_gradient_descent_raises_real_scores_and_lowers_fake_scores(loss):
    for term, sign in [(loss.real, 1), (loss.fake, -1), (loss.generator, 1)]:
        scores = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
        (gradient,) = torch.autograd.grad(term(scores), scores)
        assert (-gradient * sign > 0).all()


def test_cross_entropy_is_finite_for_extreme_score():
    scores = torch.tensor([-200.0], requires_grad=True)
    value = BinaryCrossEntropy().generator(scores)
    value.backward()
    assert value.item() == 200
    assert scores.grad.item() == -1
