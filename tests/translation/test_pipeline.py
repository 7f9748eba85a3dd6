"""What is done to pixels: whole or in pieces, at any strength, in 8 and 16 bits, and what changes the fingerprint."""

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


def treatment(path: Path, **options: object) -> TranslationPipeline:
    return TranslationPipeline.load(path, direction="a2b", device="cpu", **{"precision": "fp32"} | options)


def pixels(width: int, height: int, *, count: int = 1, dtype: torch.dtype = torch.uint8) -> Tensor:
    made = np.stack([noise(width, height, seed=seed) for seed in range(count)]).transpose(0, 3, 1, 2)
    return torch.from_numpy(made.astype(np.uint16) * 257 if dtype == torch.uint16 else made.copy())


@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_a_result_is_what_the_bare_generator_makes_in_as_many_bits(
    tmp_path: Path, dtype: torch.dtype, largest: int
) -> None:
    path = write_model(tmp_path)
    generator = registry.build(RESNET)
    generator.load_state_dict(read_model(path).weights_under("ema.ab."))
    taken = pixels(21, 18, count=2, dtype=dtype)
    with torch.inference_mode():
        values = generator.eval()(taken.double().float() / largest * 2 - 1)
    expected = ((values.double().numpy() + 1) / 2 * largest).round().clip(0, largest)

    (made,) = treatment(path)(taken)
    assert made.dtype == dtype
    assert np.abs(made.numpy().astype(float) - expected).max() <= 1


@pytest.mark.parametrize("architecture", [RESNET, UNET], ids=["resnet", "unet"])
def test_in_pieces_is_the_same_as_whole(tmp_path: Path, architecture: dict) -> None:
    path = write_model(tmp_path, architecture=architecture)
    taken = pixels(403, 301)
    told: list[float] = []
    (made,) = treatment(path, tile=50)(taken, advance=told.append)
    (whole,) = treatment(path, tile="off")(taken)
    assert (made.int() - whole.int()).abs().max() <= 1
    assert told == sorted(told)
    assert told[-1] == 1


def test_what_does_not_fit_is_computed_in_pieces_or_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path, architecture={"name": "resnet", "channels": 8, "blocks": 1})
    taken = pixels(2000, 1500)
    told: list[float] = []
    (whole,) = treatment(path)(taken, advance=told.append)
    assert told == []
    (made,) = treatment(path, memory="300MB")(taken, advance=told.append)
    assert told
    assert (made.int() - whole.int()).abs().max() <= 1
    with pytest.raises(DataError, match=r"memory=10 MB .*: set memory= to 2\d\d MB or more"):
        treatment(path, memory="10MB")(taken)
    assert torch.equal(treatment(path, memory="10MB", tile="off")(taken)[0], whole)


def test_16_bits_are_computed_in_full_precision_unless_asked_otherwise(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    taken = pixels(24, 20, dtype=torch.uint16)
    exact = treatment(path)(taken)[0].int()
    assert torch.equal(treatment(path, precision="auto")(taken)[0].int(), exact)
    asked = treatment(path, precision="bf16")(taken)[0].int()
    assert (asked - exact).abs().max() > 20  # of 65535; bf16 cannot tell neighbours of 16 bits apart


def test_several_strengths_take_one_pass_and_each_is_its_blend(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    taken = pixels(20, 16)
    made = treatment(path, strength=[0, 0.5, 1, 1.5])(taken)
    assert torch.equal(made[0], taken)
    assert torch.equal(made[2], treatment(path)(taken)[0])
    answer = treatment(path).translator.values(tensors.to_float(taken))
    for result, one in zip(made, (0, 0.5, 1, 1.5), strict=True):
        expected = tensors.to_uint8(blending.blend(tensors.to_float(taken), answer, strength=one))
        assert torch.equal(result, expected)


def test_what_is_kept_of_the_photo_is_handed_on(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    taken = pixels(20, 16)
    answer = treatment(path).translator.values(tensors.to_float(taken))
    for keep in ("colour", "luminance"):
        expected = tensors.to_uint8(blending.blend(tensors.to_float(taken), answer, keep=keep))
        assert torch.equal(treatment(path, keep=keep)(taken)[0], expected)


def test_batches_stay_within_the_memory(tmp_path: Path) -> None:
    path = write_model(tmp_path, architecture={"name": "resnet", "channels": 64, "blocks": 1})
    small, large = treatment(path, memory="500MB"), treatment(path, memory="4GB")
    assert small.max_batch(256, 256) < large.max_batch(256, 256)
    assert large.max_batch(256, 256) == 2**21 // 256**2
    assert small.max_batch(6000, 4000) == 1


def test_the_fingerprint_covers_what_changes_pixels_and_nothing_else(tmp_path: Path) -> None:
    path, other = write_model(tmp_path / "a"), write_model(tmp_path / "b", domains=("x", "y"))
    usual = treatment(path).fingerprint(quality=95)
    assert treatment(other).fingerprint(quality=95) == usual  # the same weights under other names
    for options in ({"tile": 64}, {"memory": "1GB"}, {"tile": "off"}):
        assert treatment(path, **options).fingerprint(quality=95) == usual
    different = [
        treatment(path).fingerprint(quality=90),
        treatment(path, strength=0.5).fingerprint(quality=95),
        treatment(path, strength=[0.5, 1]).fingerprint(quality=95),
        treatment(path, keep="colour").fingerprint(quality=95),
        treatment(path, precision="bf16").fingerprint(quality=95),
        treatment(path, weights="raw").fingerprint(quality=95),
        TranslationPipeline.load(path, direction="b2a", device="cpu", precision="fp32").fingerprint(quality=95),
    ]
    assert len({usual, *different}) == 1 + len(different)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strength": 1.6}, "strength=1.6"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"strength": [0.5, 0.5]}, "strength=.*different"),
        ({"strength": []}, "one or more different numbers"),
        ({"tile": 0}, "tile=0"),
        ({"memory": "much"}, "memory=much"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, options: dict, told: str) -> None:
    with pytest.raises(CommandError, match=told):
        treatment(write_model(tmp_path), **options)


def test_strengths_have_folders_where_there_are_several() -> None:
    assert strength_folders(as_strengths(0.5)) == ("",)
    assert strength_folders(as_strengths([0.25, 1])) == ("strength-0.25", "strength-1")
