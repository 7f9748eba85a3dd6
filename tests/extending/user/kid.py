"""Kernel inception distance between translations and target images, on toy features (Binkowski et al. 2018)."""

import torch
from torch import Tensor, nn

from cyclestyle.data import UnpairedFolders
from cyclestyle.hardware.device import Hardware
from cyclestyle.images.tensors import to_float
from cyclestyle.training.periodic import Networks


class KID:
    """Task that scores the averaged generator ab; a random network takes the place of Inception."""

    def __init__(self, data: UnpairedFolders, hardware: Hardware, *, count: int = 8) -> None:
        self.a, self.b = (to_float(hardware.upload(images)) for images in data.probes(count))
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        hardware.to_device(self.features)

    def __call__(self, step: int, networks: Networks) -> dict[str, float]:
        fake, real = self.features(networks.averaged.ab(self.a)), self.features(self.b)
        return {"kid": mmd(fake, real).item()}


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of two sets of features (N, D), with the kernel (x.y / D + 1)^3."""
    xx, yy, xy = ((p @ q.T / x.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = sum((k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in (xx, yy))
    return within - 2 * xy.mean()
