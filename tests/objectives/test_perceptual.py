"""Content and style losses: independent computations, gradients, additivity, the scale of 1, and degenerate inputs."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.networks.vgg import vgg16_hed
from cyclestyle.objectives.perceptual import (
    STYLE_LAYERS,
    LayerStatistics,
    StyleLoss,
    content_loss,
    gram_loss,
    layer_statistics,
    total_variation,
    wasserstein_loss,
)


def activation(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Activation (N, C, H, W) with correlated channels of different variances, as those of a trained network."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=random, dtype=torch.float64)
    mixing = torch.randn(shape[1], shape[1], generator=random, dtype=torch.float64)
    return (torch.einsum("dc,nchw->ndhw", mixing, x) + seed + 1).to(dtype)


def pooled(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> LayerStatistics:
    return layer_statistics(activation(*shape, seed=seed, dtype=dtype)).over_images()


def columns(x: Tensor) -> np.ndarray:
    """Activations of one image (C, H, W) as one row per channel."""
    return x.detach().double().flatten(1).numpy()


def wasserstein_by_scipy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Wasserstein-2 distance of Gaussians, from activations with one row per channel."""
    first, second = (np.atleast_2d(np.cov(z, bias=True)) for z in (x, y))
    root = scipy.linalg.sqrtm(second)
    common = scipy.linalg.sqrtm(root @ first @ root)
    means = x.mean(axis=1) - y.mean(axis=1)
    return float(means @ means + np.trace(first + second - 2 * np.real(common)))


# Values


def test_content_loss_is_mean_squared_difference() -> None:
    x, y = activation(2, 3, 4, 5), activation(2, 3, 4, 5, seed=1)
    total = sum((a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    assert content_loss(x, y).item() == pytest.approx(total / 120, rel=1e-12)


def test_statistics_match_sums_over_positions() -> None:
    x = activation(2, 3, 4, 5)
    statistics = layer_statistics(x)
    assert statistics.positions.tolist() == [20, 20]
    for n in range(2):
        values = columns(x[n])
        for i in range(3):
            assert statistics.total[n, i].item() == pytest.approx(sum(values[i]), rel=1e-12)
            for j in range(3):
                product = sum(p * q for p, q in zip(values[i], values[j], strict=True))
                assert statistics.products[n, i, j].item() == pytest.approx(product, rel=1e-12)
        assert statistics.mean[n].numpy() == pytest.approx(values.mean(axis=1), rel=1e-12)
        assert statistics.gram[n].numpy() == pytest.approx(values @ values.T / 20, rel=1e-12)
        assert statistics.covariance[n].numpy() == pytest.approx(np.cov(values, bias=True), rel=1e-9)


def test_gram_loss_is_mean_squared_difference_of_gram_matrices() -> None:
    x, y = activation(2, 3, 4, 5), activation(1, 3, 6, 6, seed=1)
    losses = gram_loss(layer_statistics(x), layer_statistics(y).over_images())
    target = columns(y[0]) @ columns(y[0]).T / 36
    for n in range(2):
        gram = columns(x[n]) @ columns(x[n]).T / 20
        expected = sum((gram[i, j] - target[i, j]) ** 2 for i in range(3) for j in range(3)) / 9
        assert losses[n].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("channels", [1, 5])
def test_wasserstein_loss_matches_scipy(channels: int) -> None:
    x, y = activation(2, channels, 6, 7), activation(1, channels, 9, 8, seed=1)
    losses = wasserstein_loss(layer_statistics(x), layer_statistics(y).over_images())
    for n in range(2):
        assert losses[n].item() == pytest.approx(wasserstein_by_scipy(columns(x[n]), columns(y[0])), rel=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
def test_wasserstein_loss_with_fewer_positions_than_channels(dtype: torch.dtype, tolerance: float) -> None:
    """Compare with the nuclear norm of the product of both sets of centred activations, which needs no covariances."""
    x, y = activation(1, 40, 3, 4), activation(1, 40, 4, 5, seed=1)
    loss = wasserstein_loss(layer_statistics(x.to(dtype)), layer_statistics(y.to(dtype)).over_images())
    first, second = ((z - z.mean(axis=1, keepdims=True)) / z.shape[1] ** 0.5 for z in (columns(x[0]), columns(y[0])))
    means = columns(x[0]).mean(axis=1) - columns(y[0]).mean(axis=1)
    nuclear = np.linalg.svd(first.T @ second, compute_uv=False).sum()
    expected = means @ means + (first**2).sum() + (second**2).sum() - 2 * nuclear
    assert loss.item() == pytest.approx(expected, rel=tolerance)


def test_wasserstein_gradient_with_fewer_positions_than_channels_descends() -> None:
    x, y = activation(1, 40, 3, 4, dtype=torch.float32), activation(1, 40, 3, 4, seed=1, dtype=torch.float32)
    target = layer_statistics(y).over_images()
    first = wasserstein_loss(layer_statistics(x), target).item()
    for _ in range(30):
        x.requires_grad_()
        (gradient,) = torch.autograd.grad(wasserstein_loss(layer_statistics(x), target).sum(), x)
        # The gradient of a squared distance of n positions has the length 2 sqrt(distance / n).
        assert gradient.norm().item() < 2 * (first / 12) ** 0.5 * 1.01
        x = (x - 3 * gradient).detach()
    assert wasserstein_loss(layer_statistics(x), target).item() < 1e-2 * first


@pytest.mark.parametrize("loss", [gram_loss, wasserstein_loss])
def test_style_losses_of_equal_statistics_are_zero(loss) -> None:
    x = activation(1, 6, 5, 5)
    same, size = (loss(statistics, layer_statistics(x).over_images()).item() for statistics in (
        layer_statistics(x.flip(3)), layer_statistics(0 * x)
    ))  # fmt: skip
    assert abs(same) < 1e-10 * size


def test_total_variation_is_mean_over_neighbours() -> None:
    image = activation(2, 3, 4, 5)
    across = [(image[n, c, i, j + 1] - image[n, c, i, j]).item() for n, c, i, j in np.ndindex(2, 3, 4, 4)]
    down = [(image[n, c, i + 1, j] - image[n, c, i, j]).item() for n, c, i, j in np.ndindex(2, 3, 3, 5)]
    expected = sum(d * d for d in across) / 96 + sum(d * d for d in down) / 90
    assert total_variation(image).item() == pytest.approx(expected, rel=1e-12)
    assert total_variation(image[..., :1, :1]).item() == 0
    assert total_variation(image[..., :1]).item() == pytest.approx(image[..., :1].diff(dim=2).square().mean().item())


# Gradients


def test_gradients_match_finite_differences() -> None:
    x, target = activation(2, 4, 3, 5).requires_grad_(), activation(2, 4, 3, 5, seed=1)
    style = layer_statistics(target).over_images()
    assert torch.autograd.gradcheck(lambda x: content_loss(x, target), x)
    assert torch.autograd.gradcheck(lambda x: gram_loss(layer_statistics(x), style), x)
    assert torch.autograd.gradcheck(lambda x: wasserstein_loss(layer_statistics(x), style), x)
    assert torch.autograd.gradcheck(total_variation, x)


@pytest.mark.parametrize("distance", ["gram", "wasserstein"])
def test_gradients_of_style_loss_match_finite_differences(distance: str) -> None:
    x = {name: activation(2, 4, 3, 5, seed=seed).requires_grad_() for seed, name in enumerate("xy")}
    loss = StyleLoss(distance, weights={"x": 3, "y": 1})
    loss.calibrate(*({name: pooled(1, 4, 6, 6, seed=seed) for name in "xy"} for seed in (5, 6)))
    assert torch.autograd.gradcheck(
        lambda *x: loss(dict(zip("xy", map(layer_statistics, x), strict=True))), (*x.values(),)
    )


@pytest.mark.parametrize(("loss", "tolerance"), [(gram_loss, 1e-13), (wasserstein_loss, 1e-12)])
def test_gradient_by_statistics_of_tiles_equals_gradient_of_whole(loss, tolerance: float) -> None:
    # Channels are independent: dependent ones would make the square root ill-conditioned, and the test one of rounding.
    random = torch.Generator().manual_seed(0)
    x, y = (torch.rand(1, 4, 6, 8, generator=random, dtype=torch.float64) for _ in "xy")
    x, target = x.requires_grad_(), layer_statistics(y.square()).over_images()
    (whole,) = torch.autograd.grad(loss(layer_statistics(x), target).sum(), x)
    with torch.no_grad():
        left, right = (layer_statistics(part) for part in x.split([3, 5], dim=3))
    merged = LayerStatistics(*(field.requires_grad_() for field in left.merge(right)))
    slopes = torch.autograd.grad(loss(merged, target).sum(), merged[1:], materialize_grads=True)
    tiles = []
    for part in x.detach().split([3, 5], dim=3):
        part.requires_grad_()
        torch.autograd.backward(layer_statistics(part)[1:], slopes)
        tiles.append(part.grad)
    error = (torch.cat(tiles, dim=3) - whole).abs().max() / whole.abs().max()
    assert error.item() < tolerance


# Additivity


def test_statistics_of_tiles_and_images_add_up() -> None:
    x = activation(3, 4, 6, 8)
    whole = layer_statistics(x)
    tiles = [layer_statistics(tile) for rows in x.split([2, 4], dim=2) for tile in rows.split([5, 1, 2], dim=3)]
    merged = tiles[0]
    for tile in tiles[1:]:
        merged = merged.merge(tile)
    torch.testing.assert_close(merged, whole, rtol=1e-12, atol=0)
    together = layer_statistics(x.permute(1, 0, 2, 3).reshape(1, 4, 18, 8))
    torch.testing.assert_close(whole.over_images(), LayerStatistics(*(field[0] for field in together)))


# The scale


@pytest.mark.parametrize("distance", ["gram", "wasserstein"])
@pytest.mark.parametrize(("size", "scale"), [(48, 1.0), (80, 1.0), (48, 1e-3), (48, 1e3)])
def test_style_loss_is_1_at_reference_for_any_size_and_extractor(distance: str, size: int, scale: float) -> None:
    torch.manual_seed(size)
    network = vgg16_hed()
    photo, painting = torch.rand(2, 3, size, size), torch.rand(1, 3, 64, 40).square()

    def statistics(images: Tensor) -> dict[str, LayerStatistics]:
        return {name: layer_statistics(scale * x) for name, x in network(images, STYLE_LAYERS).items()}

    target = {name: each.over_images() for name, each in statistics(painting).items()}
    loss = StyleLoss(distance)
    loss.calibrate(target, statistics(photo))
    assert loss(statistics(photo)).item() == pytest.approx(1, abs=1e-6)
    assert abs(loss(statistics(painting)).item()) < 1e-3


def test_weights_of_style_layers_are_normalized() -> None:
    reference, target = ({name: pooled(1, 4, 6, 6, seed=seed) for name in "xy"} for seed in (1, 2))
    loss = StyleLoss("gram", weights={"x": 3, "y": 1, "off": 0})
    loss.calibrate(target, reference)
    assert loss.layers == ("x", "y")
    assert loss(reference | {"y": target["y"]}).item() == pytest.approx(0.75)
    assert loss(reference | {"x": target["x"]}).item() == pytest.approx(0.25)


@pytest.mark.parametrize("distance", ["gram", "wasserstein"])
def test_reference_equal_to_target_gives_loss_near_0(distance: str) -> None:
    x = activation(1, 8, 6, 6, dtype=torch.float32)
    loss = StyleLoss(distance, weights={"x": 1})
    loss.calibrate({"x": layer_statistics(x).over_images()}, {"x": layer_statistics(x.flip(2))})
    x.requires_grad_()
    value = loss({"x": layer_statistics(x)})
    assert abs(value.item()) < 0.1
    assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_state_dict_restores_target_and_scale() -> None:
    loss, other = StyleLoss(weights={"x": 1}), StyleLoss(weights={"x": 1})
    loss.calibrate({"x": pooled(1, 4, 6, 6)}, {"x": pooled(1, 4, 6, 6, seed=1)})
    assert not other.is_calibrated
    for key, value in loss.state_dict().items():
        path, _, name = key.rpartition(".")
        setattr(other.get_submodule(path), name, value)
    assert other.is_calibrated
    x = {"x": pooled(1, 4, 5, 5, seed=2)}
    assert other(x).item() == loss(x).item()


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"x": -1.0}, r"weight -1 of layer x"), ({"x": math.nan}, "weight nan of layer x"), ({"x": 0.0}, "no layer has")],
)
def test_bad_weight_of_a_style_layer_is_rejected(weights: dict[str, float], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        StyleLoss(weights=weights)


# Degenerate inputs, precision


@pytest.mark.parametrize("distance", ["gram", "wasserstein"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["zero", "constant", "one position"])
@pytest.mark.parametrize("side", ["image", "target", "reference", "all"])
def test_degenerate_activations_give_finite_losses_and_gradients(
    distance: str, dtype: torch.dtype, case: str, side: str
) -> None:
    def make(here: str, seed: int) -> Tensor:
        x = activation(1, 16, 5, 5, seed=seed, dtype=dtype)
        if side not in (here, "all"):
            return x
        return {"zero": 0 * x, "constant": x[:, :, :1, :1].expand_as(x).clone(), "one position": x[..., :1, :1]}[case]

    loss = StyleLoss(distance, weights={"x": 1})
    target, reference = (layer_statistics(make(here, seed)) for seed, here in enumerate(("target", "reference")))
    loss.calibrate({"x": target.over_images()}, {"x": reference})
    image = make("image", 2).requires_grad_()
    value = loss({"x": layer_statistics(image)})
    assert value.isfinite()
    assert value.dtype == dtype
    (gradient,) = torch.autograd.grad(value, image)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 100


@pytest.mark.parametrize("loss", [gram_loss, wasserstein_loss])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_activation_that_is_not_finite_gives_loss_that_is_not_finite(loss, bad: float) -> None:
    x = activation(2, 4, 5, 5)
    x[0, 1, 2, 3] = bad
    losses = loss(layer_statistics(x), pooled(1, 4, 5, 5, seed=1))
    assert losses.isfinite().tolist() == [False, True]


def test_losses_are_computed_in_float32_under_autocast() -> None:
    x, y = (activation(1, 32, 16, 16, seed=seed, dtype=torch.bfloat16) for seed in (0, 1))

    def losses(x: Tensor, y: Tensor) -> list[Tensor]:
        target = layer_statistics(y).over_images()
        statistics = layer_statistics(x)
        style = [loss(statistics, target).sum() for loss in (gram_loss, wasserstein_loss)]
        return [*style, content_loss(x, y), total_variation(x)]

    exact = losses(x.double(), y.double())
    for inputs in ((x, y), (x.float(), y.float())):
        with torch.autocast("cpu", torch.bfloat16):
            values = losses(*inputs)
        assert all(value.dtype == torch.float32 for value in values)
        for value, expected in zip(values, exact, strict=True):
            assert value.item() == pytest.approx(expected.item(), rel=1e-4)
