"""Tiling plans of the architectures: which activations are stored for the whole image, and which are recomputed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from cyclestyle.networks import ResNetGenerator, UNetGenerator
from cyclestyle.networks.resnet import ResidualBlock
from cyclestyle.networks.unet import inverse_tanh
from cyclestyle.translation.tiled.layers import Add, Concat, Pointwise, RowSource, apply
from cyclestyle.translation.tiled.passes import Pass, StoredActivation


class TilingPlan(Protocol):
    """Execution of one generator strip by strip; each architecture of generators has its own implementation.

    A strip is a group of rows. A pass computes all strips of an activation, one after the other. A plan stores some
    activations of the whole image between passes; each pass recomputes the others for the strips at hand.
    """

    channels: int  # channels of the outermost layer
    multiple: int  # px; the padded height and width are multiples of this, see `pad_to_multiple`
    minimum: int  # px; smallest height and width without padding
    full_pass_values: Mapping[torch.dtype, float]  # measured peak of a full pass in values / (px x channels), by dtype

    def translate(self, image: RowSource, passes: Pass) -> RowSource:
        """Return the generator's output for `image` as a row source, which computes rows on request.

        This call runs all passes but the last, by calling the methods of `passes`. The caller runs the last pass by
        requesting rows of the result.
        """


class ResNetTiling:
    """Tiling plan of the ResNet: two activations are stored, and all others are recomputed in each pass.

    The stored activations have a quarter of the image's height and width, like all activations of the residual blocks.
    """

    multiple, minimum = 4, 8

    def __init__(self, generator: ResNetGenerator) -> None:
        self.generator, self.channels = generator, int(generator.architecture["channels"])
        # bf16 has higher counts, since PyTorch pads by reflection in float32 under autocast on the CPU.
        self.full_pass_values: Mapping[torch.dtype, float] = {
            "transposed": {torch.float32: 3.8, torch.bfloat16: 6.1},
            "resize": {torch.float32: 5.8, torch.bfloat16: 11.0},
        }[str(generator.architecture["upsample"])]

    def translate(self, image: RowSource, passes: Pass) -> RowSource:
        generator = self.generator
        halve, quarter = _sequences(generator.down)
        half = apply(halve, apply(generator.stem, image, passes), passes)
        stored = passes.store(apply(quarter[:1], half, passes))
        x = self._trunk(stored, apply(quarter[1:], stored, passes), passes)
        return apply(generator.head, apply(generator.up, x, passes), passes)

    def _trunk(self, stored: StoredActivation, x: RowSource, passes: Pass) -> RowSource:
        """Run all residual blocks; return the output of the last block, which is then in `stored`.

        `x` is the input of the first block, computed from the rows of `stored`. The output of each block overwrites
        `stored`. A second, temporary store holds the activations within a block.
        """
        scratch = None
        for block in self.generator.trunk:
            assert isinstance(block, ResidualBlock)
            first = apply(block.first[:2], x, passes)
            if scratch is None:
                scratch = passes.store(first)
            else:
                passes.overwrite(scratch, first, measured=True)
            second = apply(block.second[:2], apply(block.first[2:], scratch, passes), passes)
            passes.overwrite(scratch, second, measured=True)
            passes.overwrite(stored, Add(x, apply(block.second[2:], scratch, passes)), measured=False)
            x = stored
        return x


class UNetTiling:
    """Tiling plan of the U-Net: the outermost level is recomputed in each pass, and all other levels are stored."""

    def __init__(self, generator: UNetGenerator) -> None:
        self.generator, self.channels = generator, int(generator.architecture["channels"])
        outermost = {
            "transposed": {torch.float32: 1.8, torch.bfloat16: 2.3},
            "resize": {torch.float32: 5.5, torch.bfloat16: 11.2},
        }[str(generator.architecture["upsample"])]
        detail = int(generator.architecture["detail"]) / self.channels
        # Values held by the detail layers at full size, together with earlier activations that are still alive.
        fine = {torch.float32: 1.8 + 5.2 * detail, torch.bfloat16: 2.3 + 4.0 * detail}
        self.full_pass_values: Mapping[torch.dtype, float] = {key: max(outermost[key], fine[key]) for key in outermost}
        self.multiple = self.minimum = 2 ** len(generator.down)

    def translate(self, image: RowSource, passes: Pass) -> RowSource:
        outermost, *inner = _sequences(self.generator.down)
        x = apply(outermost, image, passes)
        skips = [x]
        for down in inner:
            stored = passes.store(apply(down[:2], x, passes))
            x = apply(down[2:], stored, passes)
            skips.append(x)
        del stored

        x = skips.pop()
        for up in _sequences(self.generator.up):
            upsampled = apply(up[:2], x, passes)
            if len(skips) > 1:
                upsampled = passes.store(upsampled)
            x = Concat(skips.pop(), apply(up[2:], upsampled, passes))
        y = apply(self.generator.head, x, passes)
        if self.generator.architecture["detail"]:
            y = Add(apply(self.generator.fine, Concat(y, image), passes), Pointwise(image, inverse_tanh))
        return Pointwise(y, torch.tanh_)


TILING_PLANS: dict[type[nn.Module], Callable[[Any], TilingPlan]] = {
    ResNetGenerator: ResNetTiling,
    UNetGenerator: UNetTiling,
}


def _sequences(modules: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Return `modules` as a list that the type checker accepts; all of them must be of type `nn.Sequential`."""
    return [module for module in modules if isinstance(module, nn.Sequential)]
