"""EfficientNet-Lite0 against a computation in NumPy by the names in its published file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cyclestyle.model_files.weight_conversion import convert
from cyclestyle.networks.efficientnet import EfficientNetLite0, SameConv
from tests.networks import published
from tests.networks.numpy_layers import Array, conv, depthwise, zeros_around


def pad_same(x: Array, side: int, stride: int) -> Array:
    """Pad as TensorFlow does in mode SAME: the output has a size of size / stride, rounded up."""
    margins = []
    for size in x.shape[2:]:
        total = side - stride if size % stride == 0 else side - size % stride
        total = max(total, 0)
        margins += [total // 2, total - total // 2]
    return zeros_around(x, *margins)


def numpy_lite0(images: Array, weights: published.Weights) -> dict[str, Array]:
    """Activations of EfficientNet-Lite0; `images` are RGB in 0..1."""

    def norm(x: Array, name: str) -> Array:
        gain, bias, mean, variance = (
            weights[f"{name}.{part}"].reshape(1, -1, 1, 1) for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 0.001) * gain + bias

    def relu6(x: Array) -> Array:
        return np.clip(x, 0, 6)

    x = (255 * images - 127) / 128
    x = relu6(norm(conv(pad_same(x, 3, 2), weights["_conv_stem.weight"], stride=2), "_bn0"))
    found = {"stem": x}
    for number, (channels, out_channels, side, stride) in enumerate(published.LITE0_BLOCKS):
        block, y = f"_blocks.{number}", x
        if number > 0:
            y = relu6(norm(conv(y, weights[f"{block}._expand_conv.weight"]), f"{block}._bn0"))
        kernel = weights[f"{block}._depthwise_conv.weight"]
        y = relu6(norm(depthwise(pad_same(y, side, stride), kernel, stride=stride), f"{block}._bn1"))
        y = norm(conv(y, weights[f"{block}._project_conv.weight"]), f"{block}._bn2")
        x = x + y if channels == out_channels and stride == 1 else y
        found[f"block{number}"] = x
    found["head"] = relu6(norm(conv(x, weights["_conv_head.weight"]), "_bn1"))
    return found


@pytest.mark.parametrize(("height", "width"), [(32, 64), (33, 51), (46, 34)])
@pytest.mark.usefixtures("double_precision")
def test_activations_equal_numpy_at_even_and_odd_sizes(height: int, width: int, tmp_path: Path) -> None:
    weights = published.efficientnet_lite0()
    network = EfficientNetLite0()
    network.load_state_dict(convert("efficientnet_lite0", published.save_pth(weights, tmp_path / "lite0.pth")))
    images = np.random.default_rng(1).uniform(0, 1, (2, 3, height, width))

    expected = numpy_lite0(images, weights)
    activations = network(torch.from_numpy(images), network.layers)
    assert list(activations) == list(expected)
    for layer, values in expected.items():
        size = np.abs(values).max()
        np.testing.assert_allclose(activations[layer].numpy(), values, rtol=0, atol=1e-10 * size, err_msg=layer)
    np.testing.assert_allclose(
        network.pooled(activations).numpy(), expected["head"].mean(axis=(2, 3)), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("size", [7, 8, 9, 10, 11])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_convolution_rounds_sizes_up(size: int, kernel: int, stride: int) -> None:
    output = SameConv(2, 3, kernel, stride=stride)(torch.rand(1, 2, size, size + 1))
    assert output.shape == (1, 3, -(-size // stride), -(-(size + 1) // stride))
