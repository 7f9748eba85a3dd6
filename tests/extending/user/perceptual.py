"""Perceptual loss: photo and translation should agree in the features of a frozen network (Johnson et al. 2016)."""

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from cyclestyle.objectives.terms import Direction


class Perceptual(nn.Module):
    """Mean squared distance of features; the frozen extractor is a toy in place of a pretrained network."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, channels, 3, stride=2))
        self.extractor.requires_grad_(False)

    def forward(self, direction: Direction) -> Tensor:
        return mse_loss(self.extractor(direction.fake), self.extractor(direction.source))
