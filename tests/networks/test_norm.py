"""Instance norm in every memory layout."""

import pytest
import torch

from cyclestyle.networks.norm import InstanceNorm

LAYOUTS = {"default": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.mark.parametrize("gradient", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("num_images", [1, 2, 3])
def test_instance_norm_matches_its_formula_in_every_memory_layout(num_images, layout, gradient):
    random = torch.Generator().manual_seed(0)
    values, weights = (torch.randn(num_images, 5, 7, 9, generator=random, dtype=torch.float64) for _ in "xg")
    x = values.clone(memory_format=layout).requires_grad_()
    exact = values.clone().requires_grad_()

    y = InstanceNorm(5)(x)
    y.backward(weights.contiguous(memory_format=gradient))
    centred = exact - exact.mean((2, 3), keepdim=True)
    expected = centred / ((centred**2).mean((2, 3), keepdim=True) + 1e-5).sqrt()
    (expected * weights).sum().backward()

    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(x.grad, exact.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("num_images", [1, 2])
def test_memory_layout_is_preserved(num_images, layout):
    x = torch.randn(num_images, 5, 7, 9).contiguous(memory_format=layout)
    assert InstanceNorm(5)(x).is_contiguous(memory_format=layout)
