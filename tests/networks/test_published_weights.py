"""The pretrained networks with their published weights; skipped where the weights are missing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cyclestyle.data.scenes.drawing import painting, photograph
from cyclestyle.networks.pretrained import PRETRAINED

Pretrained = Callable[[str], nn.Module]

NAMES = sorted(PRETRAINED)
SCENES = range(4)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.stack([torch.from_numpy(photograph(scene, size=96)) for scene in SCENES]).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def paintings() -> Tensor:
    return torch.stack([torch.from_numpy(painting(scene, size=96)) for scene in SCENES]).permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize(
    ("name", "expected"),
    # distances by the package stlpips-pytorch 0.0.2, stlpips.LPIPS(variant="shift_tolerant"), in float64
    [
        ("lpips_alex", [0.44636642695246515, 0.375366335518577]),
        ("lpips_vgg", [0.43674801602828733, 0.3838043806046485]),
    ],
)
def test_distance_equals_that_of_the_published_program(
    name: str, expected: list[float], photos: Tensor, paintings: Tensor, pretrained: Pretrained
) -> None:
    distance = pretrained(name)(photos[:2], paintings[:2])
    torch.testing.assert_close(distance, torch.tensor(expected), rtol=1e-5, atol=0)


def test_pooled_vectors_equal_those_of_the_published_program(photos: Tensor, pretrained: Pretrained) -> None:
    network = pretrained("efficientnet_lite0")
    pooled = network.pooled(network(photos[:2], ["head"]))
    # pooled vectors by the package efficientnet-lite-pytorch 0.1.0, extract_features((255 x - 127) / 128), in float64
    torch.testing.assert_close(pooled.mean(dim=1), torch.tensor([0.37760666407268134, 0.5455476470079292]))
    torch.testing.assert_close(pooled.norm(dim=1), torch.tensor([30.887644882182567, 39.740319731113004]))


@pytest.mark.parametrize("name", NAMES)
def test_painting_is_nearer_to_the_photo_of_its_scene_than_to_other_photos_in_structure(
    name: str, photos: Tensor, paintings: Tensor, pretrained: Pretrained
) -> None:
    network, layer = pretrained(name), PRETRAINED[name].structure_layer
    of_photos, of_paintings = (self_similarity(network(x, [layer])[layer]) for x in (photos, paintings))
    distances = (of_photos[:, None] - of_paintings[None]).square().mean(dim=(2, 3))  # (photo, painting)
    is_same_scene = torch.eye(len(SCENES), dtype=torch.bool)
    assert distances[is_same_scene].mean() < 0.9 * distances[~is_same_scene].mean()


def self_similarity(activation: Tensor) -> Tensor:
    """Return the cosines between all positions, (N, C, H, W) -> (N, HW, HW)."""
    tokens = torch.nn.functional.normalize(activation.flatten(2), dim=1)
    return tokens.transpose(1, 2) @ tokens


@pytest.mark.parametrize("name", NAMES)
def test_pooled_vectors_separate_photos_from_paintings(
    name: str, photos: Tensor, paintings: Tensor, pretrained: Pretrained
) -> None:
    network, layers = pretrained(name), PRETRAINED[name].pooled_layers
    a, b = (network.pooled(network(x, layers)) for x in (photos, paintings))
    within = torch.cat([torch.pdist(a), torch.pdist(b)]).mean()
    assert torch.cdist(a, b).mean() > 1.05 * within


@pytest.mark.parametrize("name", ["lpips_alex", "lpips_vgg"])
def test_shift_by_a_pixel_counts_less_than_noise_that_changes_the_pixels_equally(
    name: str, photos: Tensor, pretrained: Pretrained
) -> None:
    network, x, shifted = pretrained(name), photos[..., :-1], photos[..., 1:]
    amplitude = (x - shifted).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    noisy = x + amplitude * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert (network(x, shifted) < 0.5 * network(x, noisy)).all()
