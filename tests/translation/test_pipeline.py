"""Translation pipeline: full and tiled passes, strengths, 8 and 16 bits, fingerprints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cyclestyle.checkpoints.directory import read_model
from cyclestyle.errors import CommandError, DataError
from cyclestyle.images import tensors
from cyclestyle.networks import registry
from cyclestyle.translation import blending
from cyclestyle.translation.pipeline import TranslationPipeline, as_strengths, strength_folders
from tests.translation.models import RESNET, UNET, noise, write_model


def load(path: Path, **options: object) -> TranslationPipeline:
    return TranslationPipeline.load(path, direction="a2b", device="cpu", **{"precision": "fp32"} | options)


def pixels(width: int, height: int, *, count: int = 1, dtype: torch.dtype = torch.uint8) -> Tensor:
    values = np.stack([noise(width, height, seed=seed) for seed in range(count)]).transpose(0, 3, 1, 2)
    return torch.from_numpy(values.astype(np.uint16) * 257 if dtype == torch.uint16 else values.copy())


@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_pipeline_results_equal_generator_outputs(tmp_path: Path, dtype: torch.dtype, largest: int) -> None:
    path = write_model(tmp_path)
    generator = registry.build(RESNET)
    generator.load_state_dict(read_model(path).weights_under("ema.ab."))
    images = pixels(21, 18, count=2, dtype=dtype)
    with torch.inference_mode():
        values = generator.eval()(images.double().float() / largest * 2 - 1)
    expected = ((values.double().numpy() + 1) / 2 * largest).round().clip(0, largest)

    (result,) = load(path)(images)
    assert result.dtype == dtype
    assert np.abs(result.numpy().astype(float) - expected).max() <= 1


@pytest.mark.parametrize("architecture", [RESNET, UNET], ids=["resnet", "unet"])
def test_tiled_result_equals_full_pass(tmp_path: Path, architecture: dict) -> None:
    path = write_model(tmp_path, architecture=architecture)
    images = pixels(403, 301)
    shares: list[float] = []
    (result,) = load(path, tile=50)(images, advance=shares.append)
    (whole,) = load(path, tile="off")(images)
    assert (result.int() - whole.int()).abs().max() <= 1
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_large_images_are_tiled_or_rejected(tmp_path: Path) -> None:
    path = write_model(tmp_path, architecture={"name": "resnet", "channels": 8, "blocks": 1})
    images = pixels(2000, 1500)
    shares: list[float] = []
    (whole,) = load(path)(images, advance=shares.append)
    assert shares == []
    (result,) = load(path, memory="300MB")(images, advance=shares.append)
    assert shares
    assert (result.int() - whole.int()).abs().max() <= 1
    with pytest.raises(DataError, match=r"memory=10 MB .*: set memory= to 2\d\d MB or more"):
        load(path, memory="10MB")(images)
    assert torch.equal(load(path, memory="10MB", tile="off")(images)[0], whole)


def test_16_bit_images_use_fp32_by_default(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    images = pixels(24, 20, dtype=torch.uint16)
    exact = load(path)(images)[0].int()
    assert torch.equal(load(path, precision="auto")(images)[0].int(), exact)
    coarse = load(path, precision="bf16")(images)[0].int()
    assert (coarse - exact).abs().max() > 20  # steps of 16 bits, which bf16 cannot resolve


def test_result_for_each_strength_is_the_blend_with_that_strength(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    images = pixels(20, 16)
    results = load(path, strength=[0, 0.5, 1, 1.5])(images)
    assert torch.equal(results[0], images)
    assert torch.equal(results[2], load(path)(images)[0])
    translation = load(path).translator.values(tensors.to_float(images))
    for result, strength in zip(results, (0, 0.5, 1, 1.5), strict=True):
        expected = tensors.to_uint8(blending.blend(tensors.to_float(images), translation, strength=strength))
        assert torch.equal(result, expected)


def test_pipeline_blends_with_the_requested_keep_option(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    images = pixels(20, 16)
    translation = load(path).translator.values(tensors.to_float(images))
    for keep in ("colour", "luminance"):
        expected = tensors.to_uint8(blending.blend(tensors.to_float(images), translation, keep=keep))
        assert torch.equal(load(path, keep=keep)(images)[0], expected)


def test_batch_size_is_limited_by_memory(tmp_path: Path) -> None:
    path = write_model(tmp_path, architecture={"name": "resnet", "channels": 64, "blocks": 1})
    small, large = load(path, memory="500MB"), load(path, memory="4GB")
    assert small.max_batch(256, 256) < large.max_batch(256, 256)
    assert large.max_batch(256, 256) == 2**21 // 256**2
    assert small.max_batch(6000, 4000) == 1


def test_fingerprint_depends_on_all_settings_that_change_pixels(tmp_path: Path) -> None:
    path, other = write_model(tmp_path / "a"), write_model(tmp_path / "b", domains=("x", "y"))
    usual = load(path).fingerprint(quality=95)
    assert load(other).fingerprint(quality=95) == usual  # the same weights with other domain names
    for options in ({"tile": 64}, {"memory": "1GB"}, {"tile": "off"}):
        assert load(path, **options).fingerprint(quality=95) == usual
    different = [
        load(path).fingerprint(quality=90),
        load(path, strength=0.5).fingerprint(quality=95),
        load(path, strength=[0.5, 1]).fingerprint(quality=95),
        load(path, keep="colour").fingerprint(quality=95),
        load(path, precision="bf16").fingerprint(quality=95),
        load(path, weights="raw").fingerprint(quality=95),
        TranslationPipeline.load(path, direction="b2a", device="cpu", precision="fp32").fingerprint(quality=95),
    ]
    assert len({usual, *different}) == 1 + len(different)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.6}, "strength=1.6"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"strength": [0.5, 0.5]}, "strength=.*different"),
        ({"strength": []}, "one or more different numbers"),
        ({"tile": 0}, "tile=0"),
        ({"memory": "much"}, "memory=much"),
    ],
)
def test_settings_out_of_range_are_rejected(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        load(write_model(tmp_path), **options)


def test_results_of_each_blending_strength_get_their_own_folder() -> None:
    assert strength_folders(as_strengths(0.5)) == ("",)
    assert strength_folders(as_strengths([0.25, 1])) == ("strength-0.25", "strength-1")
