"""Padding by reflection and by repetition."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from cyclestyle.networks import ResNetGenerator, TextureDiscriminator, UNetGenerator
from cyclestyle.networks.padding import ReflectionPad, pad_to_multiple, reflect_by_index, repeat_edges


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (3, 3, 3, 3), (0, 4, 2, 1), (4, 0, 0, 6), (0, 0, 0, 0)])
def test_reflect_by_index_matches_pytorch(padding):
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 3, 7 + sum(padding[2:]), 5 + sum(padding[:2]), dtype=torch.float64)

    output, expected = reflect_by_index(x, padding), F.pad(x, padding, mode="reflect")
    (gradient,) = torch.autograd.grad((output * weights).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)

    assert torch.equal(output, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("size", "margin"), [((7, 5), 2), ((7, 5), 12), ((1, 1), 3), ((4, 9), 0)])
def test_repeat_edges_matches_pytorch(size, margin):
    x = torch.randn(2, 1, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 1, *(side + 2 * margin for side in size), dtype=torch.float64)

    output, expected = repeat_edges(x, margin), F.pad(x, 4 * [margin], mode="replicate")
    (gradient,) = torch.autograd.grad((output * weights).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)

    assert torch.equal(output, expected)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


class PretendCuda(torch.Tensor):
    """A CPU tensor whose `is_cuda` is True, to test the CUDA branch without a GPU."""

    is_cuda = True


@pytest.mark.parametrize(
    ("kind", "is_deterministic", "kernel"),
    [
        (torch.Tensor, False, "ReflectionPad2D"),
        (torch.Tensor, True, "ReflectionPad2D"),
        (PretendCuda, False, "ReflectionPad2D"),
        (PretendCuda, True, "IndexSelect"),
    ],
)
def test_reflection_uses_index_select_only_on_cuda_in_deterministic_mode(kind, is_deterministic, kernel):
    x = torch.randn(1, 1, 4, 4, requires_grad=True).as_subclass(kind)
    torch.use_deterministic_algorithms(is_deterministic)
    try:
        y = ReflectionPad(1)(x)
    finally:
        torch.use_deterministic_algorithms(False)

    functions = [y.grad_fn, y.grad_fn.next_functions[0][0]]  # a tensor subclass adds an alias node before the function
    assert any(kernel in function.name() for function in functions)
    assert torch.equal(y.detach(), F.pad(x.detach(), (1, 1, 1, 1), mode="reflect"))


def test_reflection_under_autocast_stores_no_float32_copy():
    x = torch.randn(1, 2, 5, 6).bfloat16().requires_grad_()
    saved = []

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        y = ReflectionPad(1)(x)

    assert y.dtype == torch.bfloat16
    assert torch.equal(y, F.pad(x, (1, 1, 1, 1), mode="reflect"))
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNetGenerator(8, 2),
        lambda: ResNetGenerator(8, 2, upsample="resize"),
        lambda: UNetGenerator(8, 3, upsample="resize", detail=4),
        lambda: nn.Sequential(ResNetGenerator(8, 1), TextureDiscriminator(4, 1, 4)),
    ],
    ids=["transposed", "resize", "detail", "texture"],
)
@pytest.mark.parametrize("size", [32, 21])
def test_cuda_gradients_are_bit_exact_in_deterministic_mode(make, size, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    network = make().cuda()
    x = torch.rand(2, 3, size, size, device="cuda", requires_grad=True)

    def gradients():
        return torch.autograd.grad(network(x).square().sum(), [x, *network.parameters()])

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(first, second) for first, second in zip(gradients(), gradients(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("multiple", "minimum"), [(4, 8), (8, 8), (32, 32)])
def test_padding_is_minimal_centred_and_reversible(multiple, minimum):
    for size in range(1, 41):
        x = torch.rand(1, 2, size, 41 - size)
        padded, crop = pad_to_multiple(x, multiple, minimum=minimum)

        for before, after in zip(x.shape[2:], padded.shape[2:], strict=True):
            assert after % multiple == 0
            assert after >= minimum
            assert after == minimum or after - before < multiple
        assert torch.equal(padded[crop], x)
        assert crop[1].start == (padded.shape[2] - size) // 2


def test_padding_repeats_edge_only_on_short_sides():
    for size in range(1, 41):
        x = torch.rand(1, 1, size, 16)
        padded, (_, rows, _) = pad_to_multiple(x, 16, minimum=16)

        margins = (rows.start, padded.shape[2] - rows.stop)
        mode = "reflect" if max(margins) < size else "edge"
        expected = np.pad(x[0, 0].numpy(), (margins, (0, 0)), mode=mode)
        np.testing.assert_array_equal(padded[0, 0].numpy(), expected)


def test_image_that_needs_no_padding_is_not_copied():
    x = torch.rand(1, 3, 8, 12)
    assert pad_to_multiple(x, 4, minimum=8).image is x
