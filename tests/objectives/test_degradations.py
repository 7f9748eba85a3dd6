"""Noise, blur and JPEG compression in PyTorch: comparison with Pillow and NumPy, gradients, and random choice."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from cyclestyle.data.scenes.drawing import painting, photograph
from cyclestyle.errors import CommandError
from cyclestyle.objectives import degradations
from cyclestyle.objectives.degradations import RandomDegradations, blur, jpeg, noise


def scene(index: int, *, height: int = 120, width: int = 128) -> Tensor:
    """A drawn photo or painting, (1, 3, H, W) in [-1, 1], of the 8-bit values 0 to 255."""
    pixels = (photograph if index % 2 else painting)(index, size=128)[:height, :width]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def through_pillow(images: Tensor, quality: int) -> Tensor:
    """Write one image as a JPEG file with Pillow and read it again; same shapes and range as `jpeg`."""
    pixels = ((images[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "JPEG", quality=quality)
    decoded = np.atleast_3d(np.asarray(Image.open(file)))
    return torch.from_numpy(decoded.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def psnr(first: Tensor, second: Tensor) -> float:
    """PSNR in dB of images in [-1, 1]."""
    return 10 * math.log10(4 / (first - second).square().mean().item())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95])
@pytest.mark.parametrize("size", [(120, 128), (97, 115)], ids=str)
def test_jpeg_equals_file_of_pillow_except_for_rounding(quality: int, channels: int, size: tuple[int, int]) -> None:
    for index in range(4):
        images = scene(index, height=size[0], width=size[1])[:, :channels]
        expected = through_pillow(images, quality)
        found = jpeg(images, quality)
        assert found.shape == images.shape
        assert psnr(found, expected) > 40
        # The rest is far below the errors of the compression itself, so that no step of the coder is missing.
        assert psnr(found, expected) > psnr(images, expected) + 6


def test_jpeg_of_quality_100_and_flat_colours_keeps_values() -> None:
    flat = torch.tensor([[20.0, 200.0, 90.0], [255.0, 255.0, 255.0]]).view(2, 3, 1, 1).expand(2, 3, 20, 12)
    levels = (jpeg(flat / 127.5 - 1, 100) + 1) * 127.5
    assert (levels - flat).abs().max() < 1.01
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)


def test_jpeg_has_the_gradient_of_its_linear_steps() -> None:
    # Without rounding, the cosine transform cancels, and only the halved resolution of the chroma planes remains.
    def linear(images: Tensor) -> Tensor:
        to_ycc = torch.tensor(
            [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=torch.float64
        )
        ycc = torch.einsum("yc,nchw->nyhw", to_ycc, images)
        small = avg_pool2d(ycc[:, 1:], 2)
        chroma = interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.einsum("cy,nyhw->nchw", to_ycc.inverse(), torch.cat([ycc[:, :1], chroma], dim=1))

    images = scene(1, height=32, width=48).double().requires_grad_()
    upstream = torch.randn(images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (found,) = torch.autograd.grad(jpeg(images, 20), images, upstream)
    (expected,) = torch.autograd.grad(linear(images), images, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # the constants of `to_ycc` have 6 digits


def test_jpeg_slope_over_many_levels_is_close_to_its_gradient() -> None:
    # Quality 90 rounds by steps of a few levels, so a change of 20 levels averages over the steps.
    images, change = scene(1).double() / 2, (scene(2).double() - scene(3).double()) / 4
    weights = scene(4).double()
    images.requires_grad_()
    (gradient,) = torch.autograd.grad((weights * jpeg(images, 90)).sum(), images)
    with torch.no_grad():
        forward, backward = ((weights * jpeg(images + sign * change, 90)).sum() for sign in (0.5, -0.5))
    assert (gradient * change).sum().item() == pytest.approx((forward - backward).item(), rel=0.02)


def test_noise_has_requested_deviation_and_stays_in_range() -> None:
    grey = torch.zeros(2, 3, 64, 64)
    noisy = noise(grey, 12.0, random=np.random.default_rng(0))
    assert (noisy - grey).std().item() * 127.5 == pytest.approx(12.0, rel=0.03)
    assert not torch.equal(noisy[0], noisy[1])
    black = torch.full((1, 3, 64, 64), -1.0, requires_grad=True)
    noisy = noise(black, 12.0, random=np.random.default_rng(0))
    assert noisy.min() == -1
    assert noisy.max() > -0.8
    noisy.sum().backward()
    assert torch.equal(black.grad, torch.ones_like(black))  # clipped values have gradients too


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.3])
def test_blur_equals_weighted_sums_with_repeated_border_pixels(sigma: float) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (9, 14))
    radius = math.ceil(3 * sigma)
    padded = np.pad(image, radius, mode="edge")
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * sigma**2))
    expected = np.zeros_like(image)
    for row, column in np.ndindex(image.shape):
        expected[row, column] = (
            weights * padded[row : row + 2 * radius + 1, column : column + 2 * radius + 1]
        ).sum() / weights.sum()
    found = blur(torch.from_numpy(image).expand(2, 3, 9, 14), sigma)
    torch.testing.assert_close(found, torch.from_numpy(expected).expand(2, 3, 9, 14), rtol=1e-9, atol=1e-12)


def test_blur_has_correct_gradient() -> None:
    images = torch.rand(1, 2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda x: blur(x, 0.8), images.requires_grad_())


def test_random_degradations_depend_on_seed_domain_and_sample_index_alone() -> None:
    images = torch.cat([scene(index)[..., :32, :32] for index in range(8)])
    degrade, draws = RandomDegradations(0.7, seed=3), [5, 11, 2, 40, 41, 42, 43, 44]
    whole = degrade(images, draws, domain="a")
    single = [degrade(images[i : i + 1], draws[i : i + 1], domain="a") for i in (4, 1, 7, 0, 2, 3, 5, 6)]
    assert torch.equal(torch.cat(single), whole[[4, 1, 7, 0, 2, 3, 5, 6]])
    assert not torch.equal(whole, images)
    others = [
        degrade(images, draws, domain="b"),
        RandomDegradations(0.7, seed=4)(images, draws, domain="a"),
        degrade(images, [draw + 100 for draw in draws], domain="a"),
    ]
    assert not any(torch.equal(other, whole) for other in others)


def test_random_degradations_are_equally_frequent_and_limited_by_strength(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, list[float]] = {"noise": [], "blur": [], "jpeg": []}
    for name in found:
        original = getattr(degradations, name)

        def recorded(images: Tensor, amount: float, *, name: str = name, original=original, **rest) -> Tensor:
            found[name].append(amount)
            return original(images, amount, **rest)

        monkeypatch.setattr(degradations, name, recorded)
    RandomDegradations(0.5, seed=0)(torch.zeros(400, 1, 2, 2), list(range(400)), domain="a")
    assert all(70 < len(amounts) < 130 for amounts in found.values())
    assert 0 <= min(found["noise"]) < 1 < 12 < max(found["noise"]) <= 12.5
    assert 0 <= min(found["blur"]) < 0.1 < 1.4 < max(found["blur"]) <= 1.5
    assert 55 <= min(found["jpeg"]) < 58 < 97 < max(found["jpeg"]) <= 100


def test_larger_strength_changes_every_degraded_image_more() -> None:
    images, draws = torch.cat([scene(index)[..., :48, :48] for index in range(24)]), list(range(24))
    weak, strong = (
        (RandomDegradations(robust, seed=0)(images, draws, domain="a") - images).square().mean(dim=(1, 2, 3))
        for robust in (0.1, 1.0)
    )
    assert (strong >= weak).all()
    assert strong.mean() > 4 * weak.mean()


@pytest.mark.parametrize("robust", [-0.1, 1.1, math.nan])
def test_strength_outside_0_to_1_is_rejected(robust: float) -> None:
    with pytest.raises(CommandError, match=rf"^augment\.robust={robust:g}: give a number from 0 \(off\) to 1$"):
        RandomDegradations(robust, seed=0)
