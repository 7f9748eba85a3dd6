"""ST-LPIPS against a computation in NumPy by the names in its published files, and properties of the distance."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cyclestyle.errors import DataError, ImageTypeError
from cyclestyle.model_files.weight_conversion import convert
from cyclestyle.networks.lpips import Lpips
from cyclestyle.networks.pretrained import PRETRAINED
from tests.networks import published
from tests.networks.numpy_layers import Array, blur, conv, maximum, relu, zeros_around

NAMES = ["lpips_alex", "lpips_vgg"]
PUBLISHED: dict[str, Callable[[], published.Weights]] = {
    "lpips_alex": published.stlpips_alex,
    "lpips_vgg": published.stlpips_vgg,
}


def numpy_distance(name: str, x: Array, y: Array, weights: published.Weights) -> Array:
    """Distances of images in 0..1, by the formula of Zhang et al. 2018."""
    layers = numpy_alex if name == "lpips_alex" else numpy_vgg
    total = np.zeros(len(x))
    for number, (of_x, of_y) in enumerate(zip(layers(x, weights), layers(y, weights), strict=True)):
        unit_x, unit_y = (values / (np.sqrt((values**2).sum(axis=1, keepdims=True)) + 1e-10) for values in (of_x, of_y))
        total += ((unit_x - unit_y) ** 2 * weights[f"lin{number}.model.1.weight"]).sum(axis=1).mean(axis=(1, 2))
    return total


def normalized(images: Array, weights: published.Weights) -> Array:
    return (2 * images - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]


def convolved(x: Array, weights: published.Weights, name: str, margin: int) -> Array:
    padded = zeros_around(x, margin, margin, margin, margin)
    return conv(padded, weights[f"net.{name}.weight"], weights[f"net.{name}.bias"])


def numpy_alex(images: Array, weights: published.Weights) -> list[Array]:
    x1 = relu(blur(convolved(normalized(images, weights), weights, "slice1.0", 2)))
    x2 = relu(convolved(blur(maximum(x1, 3, stride=1)), weights, "slice2.5", 2))
    x3 = relu(convolved(blur(maximum(x2, 3, stride=1)), weights, "slice3.9", 1))
    x4 = relu(convolved(x3, weights, "slice4.11", 1))
    x5 = relu(convolved(x4, weights, "slice5.13", 1))
    return [x1, x2, x3, x4, x5]


def numpy_vgg(images: Array, weights: published.Weights) -> list[Array]:
    x, found = normalized(images, weights), []
    for stage, names in enumerate(published.STLPIPS_VGG_CONVS):
        if stage > 0:
            x = blur(maximum(x, 2, stride=1))
        for name in names:
            x = relu(convolved(x, weights, name, 1))
        found.append(x)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (35, 42)])
@pytest.mark.usefixtures("double_precision")
def test_distance_and_compared_layers_equal_numpy(name: str, height: int, width: int, tmp_path: Path) -> None:
    weights = PUBLISHED[name]()
    network = PRETRAINED[name].build()
    network.load_state_dict(convert(name, published.save_pth(weights, tmp_path / "lpips.pth")))
    x, y = np.random.default_rng(1).uniform(0, 1, (2, 2, 3, height, width))

    expected = numpy_distance(name, x, y, weights)
    assert (expected > 0.01).all()
    np.testing.assert_allclose(network(torch.from_numpy(x), torch.from_numpy(y)).numpy(), expected, rtol=1e-10)
    layers = numpy_alex(x, weights) if name == "lpips_alex" else numpy_vgg(x, weights)
    activations = network(torch.from_numpy(x), PRETRAINED[name].pooled_layers)
    for values, expected_values in zip(activations.values(), layers, strict=True):
        np.testing.assert_allclose(values.numpy(), expected_values, rtol=0, atol=1e-10 * np.abs(expected_values).max())


def built(name: str) -> Lpips:
    torch.manual_seed(0)
    network = PRETRAINED[name].build()
    assert isinstance(network, Lpips)
    return network


@pytest.mark.parametrize("name", NAMES)
def test_distance_of_equal_images_is_zero_with_a_zero_gradient(name: str) -> None:
    x = torch.rand(2, 3, 32, 32).requires_grad_()
    distance = built(name)(x, x.detach().clone())
    distance.sum().backward()
    assert torch.equal(distance, torch.zeros(2))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("name", NAMES)
def test_distance_is_symmetric_and_grows_with_noise(name: str) -> None:
    network, x = built(name), torch.rand(1, 3, 40, 40)
    noise = torch.randn_like(x)
    distances = torch.stack([network(x, x + strength * noise) for strength in (0.01, 0.05, 0.2)])
    assert (distances.diff(dim=0) > 0).all()
    torch.testing.assert_close(network(x, x + noise), network(x + noise, x))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_the_distance_is_correct(name: str) -> None:
    network = built(name).double()
    generator = torch.Generator().manual_seed(1)
    x, y, noise = torch.rand(3, 1, 3, 32, 33, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(network(x, y).sum(), x)
    # A random direction alone is almost at a right angle to the gradient: rounding errors would exceed the slope.
    direction = gradient / gradient.norm() + noise / noise.norm()
    with torch.no_grad():
        slope = (network(x + 1e-6 * direction, y) - network(x - 1e-6 * direction, y)).sum() / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_silent_layers_have_no_distance_and_a_finite_gradient(name: str) -> None:
    network = built(name)
    for key, values in network.named_parameters():
        if key.endswith("bias"):
            values.fill_(-100.0)  # all ReLUs are 0
    x = torch.rand(1, 3, 32, 32).requires_grad_()
    distance = network(x, torch.rand(1, 3, 32, 32))
    distance.sum().backward()
    assert torch.equal(distance, torch.zeros(1))
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_only_the_activations_are_rounded_under_autocast(name: str) -> None:
    network, layers = built(name), PRETRAINED[name].pooled_layers
    x, y = torch.rand(2, 2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = network(x, y)
        rounded = [network(images, layers) for images in (x, y)]
    assert all(values.dtype == torch.bfloat16 for activations in rounded for values in activations.values())
    assert distance.dtype == torch.float32
    expected = torch.zeros(2, dtype=torch.float64)
    for layer in layers:
        of_x, of_y = (torch.nn.functional.normalize(activations[layer].double(), dim=1) for activations in rounded)
        head = network.heads[layer].double().view(1, -1, 1, 1)
        expected += ((of_x - of_y).square() * head).sum(dim=1).mean(dim=(1, 2))
    torch.testing.assert_close(distance.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_cannot_be_compared_are_an_error_of_one_line(name: str) -> None:
    network = built(name)
    with pytest.raises(ImageTypeError, match=r"shapes \(1, 3, 40, 40\) and \(2, 3, 40, 40\) cannot be compared"):
        network(torch.rand(1, 3, 40, 40), torch.rand(2, 3, 40, 40))
    with pytest.raises(DataError, match="images of 40 x 20 px are too small"):
        network(torch.rand(1, 3, 20, 40), torch.rand(1, 3, 20, 40))
