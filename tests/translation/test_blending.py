"""Blending, checked in Oklab by an independent implementation in numpy and float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.translation import blending as module
from cyclestyle.translation.blending import blend, check

STEPS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)


def to_oklab(image: Tensor) -> np.ndarray:
    """Convert to Oklab, (H, W, 3), with the code and matrices of Ottosson; the matrices are transposed."""
    encoded = (image.double().movedim(0, -1).numpy() + 1) / 2
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    r, g, b = np.moveaxis(linear, -1, 0)
    cone_l = np.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b)
    cone_m = np.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b)
    cone_s = np.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b)
    return np.stack(
        [
            0.2104542553 * cone_l + 0.7936177850 * cone_m - 0.0040720468 * cone_s,
            1.9779984951 * cone_l - 2.4285922050 * cone_m + 0.4505937099 * cone_s,
            0.0259040371 * cone_l + 0.7827717662 * cone_m - 0.8086757660 * cone_s,
        ],
        axis=-1,
    )


def from_oklab(oklab: np.ndarray) -> np.ndarray:
    """Convert to linear light (H, W, 3) with Ottosson's inverse matrices; out-of-gamut colours lie beyond [0, 1]."""
    light, a, b = np.moveaxis(oklab, -1, 0)
    cone_l = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
    cone_m = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
    cone_s = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
    return np.stack(
        [
            4.0767416621 * cone_l - 3.3077115913 * cone_m + 0.2309699292 * cone_s,
            -1.2684380046 * cone_l + 2.6097574011 * cone_m - 0.3413193965 * cone_s,
            -0.0041960863 * cone_l - 0.7034186147 * cone_m + 1.7076147010 * cone_s,
        ],
        axis=-1,
    )


def fits(oklab: np.ndarray, margin: float = 1e-4) -> np.ndarray:
    linear = from_oklab(oklab)
    return ((linear > margin) & (linear < 1 - margin)).all(-1)


def chroma(oklab: np.ndarray) -> np.ndarray:
    return np.hypot(oklab[..., 1], oklab[..., 2])


def colours(seed: int, *, low: float = -1.0, high: float = 1.0, size: tuple[int, int] = (40, 50)) -> Tensor:
    """Create an image of random colours, float64 (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, *size, generator=generator, dtype=torch.float64) * (high - low) + low


def flat(red: float, green: float, blue: float) -> Tensor:
    """Create a one-pixel image from channels in [0, 1], float64 (3, 1, 1)."""
    return torch.tensor([red, green, blue], dtype=torch.float64)[:, None, None] * 2 - 1


@pytest.mark.parametrize("keep", ["none", "colour", "luminance"])
def test_strength_0_returns_the_photo_and_strength_1_the_translation(keep) -> None:
    photo, translation = colours(0).float(), colours(1).float()
    assert torch.equal(blend(photo, translation, strength=0, keep=keep), photo)
    assert torch.equal(blend(photo, translation), translation)


@pytest.mark.parametrize("strength", [0.25, 0.5, 0.9])
def test_blend_is_linear_in_oklab_up_to_strength_1(strength: float) -> None:
    photo, translation = colours(0), colours(1)
    line = to_oklab(photo) * (1 - strength) + to_oklab(translation) * strength
    within = fits(line)
    assert within.mean() > 0.9

    np.testing.assert_allclose(to_oklab(blend(photo, translation, strength=strength))[within], line[within], atol=1e-6)
    in_float32 = blend(photo.float(), translation.float(), strength=strength)
    assert in_float32.dtype == torch.float32
    np.testing.assert_allclose(to_oklab(in_float32)[within], line[within], atol=1e-4)


def test_lightness_steps_shrink_above_strength_1() -> None:
    photo, translation = colours(0, low=-0.3, high=0.3), colours(1, low=-0.3, high=0.3)
    blended = np.stack([to_oklab(blend(photo, translation, strength=step)) for step in STEPS])
    light = np.diff(blended[..., 0], axis=0) * np.sign(blended[4, ..., 0] - blended[0, ..., 0])
    assert (light > 0).all()
    np.testing.assert_allclose(light[:4], light[:4].mean(axis=0, keepdims=True).repeat(4, 0), atol=1e-6)
    assert (light[4] < light[3]).all()
    assert (light[5] < light[4]).all()


def test_lightness_extrapolates_by_ratio_above_strength_1() -> None:
    darker = to_oklab(blend(flat(0.6, 0.6, 0.6), flat(0.3, 0.3, 0.3), strength=1.5))[0, 0, 0]
    start, end = (to_oklab(flat(value, value, value))[0, 0, 0] for value in (0.6, 0.3))
    assert darker == pytest.approx(end * (end / start) ** 0.5, abs=1e-6)

    brighter = to_oklab(blend(flat(0.6, 0.6, 0.6), flat(0.9, 0.9, 0.9), strength=1.5))[0, 0, 0]
    end = to_oklab(flat(0.9, 0.9, 0.9))[0, 0, 0]
    assert 1 - brighter == pytest.approx((1 - end) * ((1 - end) / (1 - start)) ** 0.5, abs=1e-6)


def test_grey_gets_no_complementary_colour_above_strength_1() -> None:
    photo = colours(0)
    grey = colours(1)[:1].expand(3, -1, -1)
    assert chroma(to_oklab(photo)).mean() > 0.1
    assert chroma(to_oklab(blend(photo, grey, strength=1.5))).max() < 1e-5

    faded = blend(flat(0.8, 0.3, 0.3), flat(0.65, 0.55, 0.55), strength=1.5)
    red, green, _ = faded[:, 0, 0].tolist()
    assert red > green


def test_blend_is_continuous_at_strength_1() -> None:
    photo, translation = colours(0), colours(1)
    below, above = (to_oklab(blend(photo, translation, strength=step)) for step in (1 - 1e-4, 1 + 1e-4))
    assert np.abs(above - below).max() < 1e-3


@pytest.mark.parametrize("keep", ["none", "colour", "luminance"])
@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_neutral_greys_stay_neutral(keep, strength: float) -> None:
    levels = torch.linspace(-1, 1, 256)[None, None].expand(3, 16, 256)
    blended = blend(levels, levels.flip(-1), strength=strength, keep=keep)
    assert (blended.amax(0) - blended.amin(0)).max() < 2 / 65535


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("keep", ["none", "colour", "luminance"])
@pytest.mark.parametrize("strength", [0.3, 1.0, 1.5])
def test_results_are_finite_and_in_range(dtype: torch.dtype, keep, strength: float) -> None:
    corners = torch.tensor([-1.0, 1.0]).repeat(32)
    photo = torch.cat([colours(0), torch.cartesian_prod(*[corners[:8]] * 3).T[:, None, :50].expand(-1, 4, -1)], 1)
    translation = torch.cat([colours(1), colours(2).round()[:, :4]], 1)
    blended = blend(photo.to(dtype), translation.to(dtype), strength=strength, keep=keep)
    assert blended.dtype == dtype
    assert blended.isfinite().all()
    assert blended.abs().max() <= 1


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_option_keep_colour_does_not_raise_chroma_of_the_photo(strength: float) -> None:
    photo, translation = colours(0), colours(1)
    before, after = to_oklab(photo), to_oklab(translation)
    light = before[..., :1] * (1 - strength) + after[..., :1] * strength
    expected = np.concatenate([light, before[..., 1:] * np.minimum(light / before[..., :1], 1)], -1)

    blended = to_oklab(blend(photo, translation, strength=strength, keep="colour"))
    np.testing.assert_allclose(blended[..., :1], light, atol=2e-5)
    within = fits(expected)
    assert within.mean() > 0.8
    np.testing.assert_allclose(blended[within], expected[within], atol=1e-6)


@pytest.mark.parametrize("strength", [0.5, 1.0, 1.5])
def test_option_keep_luminance_preserves_lightness_of_the_photo(strength: float) -> None:
    photo, translation = colours(0), colours(1)
    blended = to_oklab(blend(photo, translation, strength=strength, keep="luminance"))
    np.testing.assert_allclose(blended[..., 0], to_oklab(photo)[..., 0], atol=2e-5)


def test_option_keep_luminance_takes_colours_from_the_translation() -> None:
    photo, translation = colours(0), colours(1)
    before, after = to_oklab(photo), to_oklab(translation)
    expected = np.concatenate([before[..., :1], after[..., 1:] * np.minimum(before[..., :1] / after[..., :1], 1)], -1)
    within = fits(expected)
    blended = to_oklab(blend(photo, translation, keep="luminance"))
    np.testing.assert_allclose(blended[within], expected[within], atol=1e-6)


def test_out_of_gamut_colours_lose_minimal_chroma() -> None:
    photo, translation = colours(0), colours(1)
    before, after = to_oklab(photo), to_oklab(translation)
    expected = np.concatenate([before[..., :1], after[..., 1:] * np.minimum(before[..., :1] / after[..., :1], 1)], -1)
    outside = ~fits(expected, margin=-1e-5)
    assert outside.mean() > 0.05

    blended = to_oklab(blend(photo, translation, keep="luminance"))[outside]
    expected = expected[outside]
    np.testing.assert_allclose(blended[:, 0], expected[:, 0], atol=2e-5)
    across = blended[:, 1] * expected[:, 2] - blended[:, 2] * expected[:, 1]
    assert np.abs(across / chroma(expected)).max() < 2e-5  # distance from the line of constant hue
    assert (chroma(blended) < chroma(expected)).all()

    more = np.concatenate([blended[:, :1], blended[:, 1:] * (1 + 1e-3 / chroma(blended)[:, None])], -1)
    assert not fits(more, margin=0).any()


def test_blending_result_does_not_depend_on_number_of_pixels_processed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, translation = colours(0), colours(1)
    whole = blend(photo, translation, strength=1.3)
    for strip in (1, 3 * photo.shape[-1], 7 * photo.shape[-1] + 1):
        monkeypatch.setattr(module, "STRIP", strip)
        assert torch.allclose(blend(photo, translation, strength=1.3), whole, atol=1e-9)


def test_blending_converts_a_limited_number_of_pixels_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixel_counts: list[int] = []
    convert = module._to_oklab
    monkeypatch.setattr(
        module, "_to_oklab", lambda pixels: pixel_counts.append(pixels[..., 0, :, :].numel()) or convert(pixels)
    )
    monkeypatch.setattr(module, "STRIP", 1000)
    blend(colours(0, size=(333, 50)), colours(1, size=(333, 50)), strength=0.5)
    assert max(pixel_counts) == 1000
    assert sum(pixel_counts) == 2 * 333 * 50


def test_blended_batch_equals_single_blends() -> None:
    photos, translations = torch.stack([colours(0), colours(2)]), torch.stack([colours(1), colours(3)])
    together = blend(photos, translations, strength=1.2, keep="colour")
    for index in range(2):
        alone = blend(photos[index], translations[index], strength=1.2, keep="colour")
        assert torch.allclose(together[index], alone, atol=1e-12)


def test_blend_does_not_modify_its_inputs() -> None:
    photo, translation = colours(0), colours(1)
    copies = photo.clone(), translation.clone()
    for keep in ("none", "colour", "luminance"):
        blend(photo, translation, strength=1.4, keep=keep)
    assert torch.equal(photo, copies[0])
    assert torch.equal(translation, copies[1])


@pytest.mark.parametrize(
    ("strength", "keep", "message"),
    [
        (-0.1, "none", "strength=-0.1 is out of range"),
        (1.51, "none", "1.5 the maximum"),
        (float("nan"), "none", "strength=nan is out of range"),
        (1, "color", "keep=color is unknown: none, colour or luminance"),
    ],
)
def test_blending_rejects_invalid_strength_and_keep_options(strength: float, keep, message: str) -> None:
    with pytest.raises(CommandError, match=message) as caught:
        check(strength, keep)
    assert "\n" not in str(caught.value)
    with pytest.raises(CommandError, match=message):
        blend(colours(0), colours(1), strength=strength, keep=keep)
