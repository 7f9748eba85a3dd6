"""Rulers: features of batches of images."""

import numpy as np
import pytest
import torch
from PIL import Image

from cyclestyle.errors import CommandError, ImageTypeError
from cyclestyle.evaluation.rulers import Layers, Ruler, resized
from cyclestyle.networks.pretrained import PRETRAINED
from tests.evaluation.small_network import SmallNetwork, small_ruler
from tests.pictures import picture


def batch(*, count: int = 2, width: int = 45, height: int = 37) -> torch.Tensor:
    """uint8 images (N, 3, H, W), all different."""
    images = [np.array(picture(40 * number, width, height)) for number in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def test_features_are_those_of_the_resized_images() -> None:
    ruler = small_ruler(size=32)
    features = ruler.measure(batch(), ["pooled", "tokens", "grams"])
    squares = [picture(40 * number, 45, 37).resize((32, 32), Image.Resampling.BICUBIC) for number in range(2)]
    images = torch.from_numpy(np.stack([np.array(square) for square in squares])).permute(0, 3, 1, 2).contiguous() / 255
    expected = SmallNetwork()(images, ["shallow", "deep"])
    assert torch.equal(features.pooled, expected["deep"].mean(dim=(2, 3)))
    assert features.tokens.shape == (2, 64, 6)
    assert torch.equal(features.tokens[1, 8 * 3 + 5], expected["deep"][1, :, 3, 5])
    for gram, name in zip(features.grams, ["shallow", "deep"], strict=True):
        channels = expected[name][1].numpy().astype(float).reshape(expected[name].shape[1], -1)
        full = channels @ channels.T / channels.shape[1]
        assert gram[1].square().sum().item() == pytest.approx((full**2).sum(), rel=1e-5)
        assert gram[1, 0].item() == pytest.approx(full[0, 0], rel=1e-5)
    assert {features.pooled.dtype, features.tokens.dtype, features.grams[0].dtype} == {torch.float32}


def test_all_parts_take_one_forward_pass() -> None:
    ruler = small_ruler()
    ruler.measure(batch(), {"pooled", "tokens", "grams"})
    ((count, layers),) = ruler.network.calls
    assert count == 2
    assert sorted(layers) == ["deep", "shallow"]


def test_parts_that_are_not_requested_are_not_computed() -> None:
    ruler = small_ruler()
    features = ruler.measure(batch(), ["pooled"])
    assert (features.tokens, features.grams) == (None, ())
    assert ruler.network.calls == [(2, ("deep",))]


@pytest.mark.parametrize("shape", [(1, 1), (33, 32), (31, 200), (500, 3)])
def test_images_of_any_size_are_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    width, height = shape
    images = batch(count=1, width=width, height=height)
    expected = picture(0, width, height).resize((32, 32), Image.Resampling.BICUBIC)
    assert torch.equal(
        (resized(images, 32)[0] * 255).round().to(torch.uint8).permute(1, 2, 0), torch.tensor(np.array(expected))
    )


def test_memory_layout_of_images_does_not_matter() -> None:
    ruler, images = small_ruler(), batch(width=32, height=32)
    layouts = [images.contiguous(memory_format=layout) for layout in (torch.contiguous_format, torch.channels_last)]
    plain, channels_last = (ruler.measure(images, ["pooled"]).pooled for images in layouts)
    assert torch.equal(plain, channels_last)


def test_grey_images_are_measured_as_rgb() -> None:
    grey = batch()[:, :1]
    ruler = small_ruler()
    assert torch.equal(
        ruler.measure(grey, ["pooled"]).pooled, ruler.measure(grey.expand(-1, 3, -1, -1), ["pooled"]).pooled
    )


def test_measurement_ignores_autocast_and_leaves_no_gradient() -> None:
    ruler = small_ruler()
    expected = ruler.measure(batch(), ["pooled"]).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = ruler.measure(batch(), ["pooled"]).pooled
    assert torch.equal(measured, expected)
    ruler.network.requires_grad_(True)
    assert not ruler.measure(batch(), ["pooled"]).pooled.requires_grad


def test_float_images_are_rejected() -> None:
    with pytest.raises(
        ImageTypeError, match=r"dtype torch.float32 and the shape \(2, 3, 37, 45\): expected 8-bit images"
    ):
        small_ruler().measure(batch().float(), ["pooled"])


def test_missing_part_is_a_command_error() -> None:
    ruler = small_ruler(layers=Layers(pooled=("deep",), structure=None, style=()))
    assert (ruler.has_pooled, ruler.has_structure, ruler.has_style) == (True, False, False)
    with pytest.raises(CommandError, match="small has no grams features: choose another ruler"):
        ruler.measure(batch(), ["grams"])


def test_too_small_size_is_a_command_error() -> None:
    with pytest.raises(CommandError, match="size=16: small measures images of 32 px or more"):
        small_ruler(size=16)


@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_networks_are_rulers(name: str) -> None:
    network = PRETRAINED[name]
    ruler = Ruler(name, network.build(), size=32)
    parts = ["pooled", "tokens", *(["grams"] if network.style_layers else [])]
    features = ruler.measure(batch(), parts)
    assert ruler.protocol == f"{name}, 32 px, bicubic"
    assert ruler.has_style == bool(network.style_layers)
    assert len(features.pooled) == len(features.tokens) == 2
    assert [len(gram) for gram in features.grams] == [2] * len(network.style_layers)
