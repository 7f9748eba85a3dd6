"""The two generators and the discriminator of the original implementation, independent of the package.

Their weight files have the parameter names of published ones: the ResNet and the discriminator are one flat sequence,
the levels of the U-Net are nested. Activations work in place.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
INSTANCE: Norm = nn.InstanceNorm2d
RUNNING: Norm = functools.partial(nn.InstanceNorm2d, track_running_stats=True)  # norm of old weight files
BATCH: Norm = nn.BatchNorm2d


class Block(nn.Module):
    """A residual block; with dropout, the index of its second convolution in the sequence is larger by one."""

    def __init__(self, channels: int, norm: Norm, dropout: bool, bias: bool) -> None:
        super().__init__()
        layers = [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm(channels), nn.ReLU(True)]
        if dropout:
            layers.append(nn.Dropout(0.5))
        layers += [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=bias), norm(channels)]
        self.conv_block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


class ReferenceResNet(nn.Module):
    def __init__(
        self,
        channels: int = 4,
        blocks: int = 9,
        *,
        norm: Norm = INSTANCE,
        dropout: bool = False,
        colours: tuple[int, int] = (3, 3),
    ) -> None:
        super().__init__()
        bias, c = norm is not BATCH, channels
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(colours[0], c, 7, bias=bias), norm(c), nn.ReLU(True)]
        for width in (c, 2 * c):
            down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias)
            layers += [down, norm(2 * width), nn.ReLU(True)]
        layers += [Block(4 * c, norm, dropout, bias) for _ in range(blocks)]
        for width in (4 * c, 2 * c):
            up = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            layers += [up, norm(width // 2), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(c, colours[1], 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Level(nn.Module):
    """One level of the U-Net, including all levels inside it; `inside` is None in the innermost level.

    The first activation changes its input in place; the skip connection uses the same tensor, activated too.
    """

    def __init__(
        self, outer: int, inner: int, inside: nn.Module | None, *, norm: Norm, colours: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        bias, self.is_outermost = norm is not BATCH, colours is not None
        down = nn.Conv2d(colours[0] if colours else outer, inner, 4, stride=2, padding=1, bias=bias)
        up_from = inner if inside is None else 2 * inner
        if colours:
            up = nn.ConvTranspose2d(up_from, colours[1], 4, stride=2, padding=1)
            layers = [down, inside, nn.ReLU(True), up, nn.Tanh()]
        else:
            up = nn.ConvTranspose2d(up_from, outer, 4, stride=2, padding=1, bias=bias)
            middle = [] if inside is None else [norm(inner), inside]
            layers = [nn.LeakyReLU(0.2, True), down, *middle, nn.ReLU(True), up, norm(outer)]
            if inside is not None and outer == inner:
                layers.append(nn.Dropout(0.5))
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.is_outermost else torch.cat([x, self.model(x)], 1)


class ReferenceUNet(nn.Module):
    def __init__(
        self, channels: int = 4, levels: int = 7, *, norm: Norm = INSTANCE, colours: tuple[int, int] = (3, 3)
    ) -> None:
        super().__init__()
        c = channels
        level = Level(8 * c, 8 * c, None, norm=norm)
        for _ in range(levels - 5):
            level = Level(8 * c, 8 * c, level, norm=norm)
        for width in (4 * c, 2 * c, c):
            level = Level(width, 2 * width, level, norm=norm)
        self.model = Level(0, c, level, norm=norm, colours=colours)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class ReferencePatch(nn.Module):
    def __init__(self, channels: int = 4, layers: int = 3) -> None:
        super().__init__()
        sequence: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        width = channels
        for i in range(1, layers + 1):
            before, width = width, channels * min(2**i, 8)
            convolution = nn.Conv2d(before, width, 4, stride=2 if i < layers else 1, padding=1)
            sequence += [convolution, nn.InstanceNorm2d(width), nn.LeakyReLU(0.2, True)]
        self.model = nn.Sequential(*sequence, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def randomized(network: nn.Module, *, seed: int = 0) -> nn.Module:
    """Set random weights, so large that every layer affects the output; return the network in eval mode."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return network.eval()
