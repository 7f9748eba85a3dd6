"""How each architecture is computed in pieces: what is kept for the whole picture, and what is computed again."""

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
    """An architecture in pieces."""

    channels: int  # of the outermost layer
    multiple: int  # px, as of `minimum`: sizes that the network takes as they are, see `pad_to_multiple`
    minimum: int
    whole_values: Mapping[torch.dtype, float]  # that a whole pass was measured to hold, per px and outermost channel

    def translated(self, picture: RowSource, sweeps: Pass) -> RowSource:
        """What the generator makes of a picture, for one last sweep."""


class ResNetTiling:
    """Two copies of the trunk are kept, at a quarter of the size; all above that is computed anew for each sweep."""

    multiple, minimum = 4, 8

    def __init__(self, generator: ResNetGenerator) -> None:
        self.generator, self.channels = generator, int(generator.architecture["channels"])
        # Under autocast on the CPU, PyTorch pads by reflection in float32.
        self.whole_values: Mapping[torch.dtype, float] = {
            "transposed": {torch.float32: 3.8, torch.bfloat16: 6.1},
            "resize": {torch.float32: 5.8, torch.bfloat16: 11.0},
        }[str(generator.architecture["upsample"])]

    def translated(self, picture: RowSource, sweeps: Pass) -> RowSource:
        generator = self.generator
        halve, quarter = _sequences(generator.down)
        half = apply(halve, apply(generator.stem, picture, sweeps), sweeps)
        kept = sweeps.keep(apply(quarter[:1], half, sweeps))
        x = self._trunk(kept, apply(quarter[1:], kept, sweeps), sweeps)
        return apply(generator.head, apply(generator.up, x, sweeps), sweeps)

    def _trunk(self, kept: StoredActivation, x: RowSource, sweeps: Pass) -> RowSource:
        """All blocks, their sums in `kept`, from which `x` is made at first; what they need besides is then free."""
        scratch = None
        for block in self.generator.trunk:
            assert isinstance(block, ResidualBlock)
            first = apply(block.first[:2], x, sweeps)
            if scratch is None:
                scratch = sweeps.keep(first)
            else:
                sweeps.overwrite(scratch, first, measured=True)
            second = apply(block.second[:2], apply(block.first[2:], scratch, sweeps), sweeps)
            sweeps.overwrite(scratch, second, measured=True)
            sweeps.overwrite(kept, Add(x, apply(block.second[2:], scratch, sweeps)), measured=False)
            x = kept
        return x


class UNetTiling:
    """All levels are kept from half the outermost's size down; the outermost one is computed anew for each sweep."""

    def __init__(self, generator: UNetGenerator) -> None:
        self.generator, self.channels = generator, int(generator.architecture["channels"])
        outermost = {
            "transposed": {torch.float32: 1.8, torch.bfloat16: 2.3},
            "resize": {torch.float32: 5.5, torch.bfloat16: 11.2},
        }[str(generator.architecture["upsample"])]
        detail = int(generator.architecture["detail"]) / self.channels
        # Behind the outermost level: what the layers at full size hold, together with what is still there of before.
        behind = {torch.float32: 1.8 + 5.2 * detail, torch.bfloat16: 2.3 + 4.0 * detail}
        self.whole_values: Mapping[torch.dtype, float] = {key: max(outermost[key], behind[key]) for key in outermost}
        self.multiple = self.minimum = 2 ** len(generator.down)

    def translated(self, picture: RowSource, sweeps: Pass) -> RowSource:
        outermost, *inner = _sequences(self.generator.down)
        x = apply(outermost, picture, sweeps)
        skips = [x]
        for down in inner:
            kept = sweeps.keep(apply(down[:2], x, sweeps))
            x = apply(down[2:], kept, sweeps)
            skips.append(x)
        del kept

        x = skips.pop()
        for up in _sequences(self.generator.up):
            made = apply(up[:2], x, sweeps)
            if len(skips) > 1:
                made = sweeps.keep(made)
            x = Concat(skips.pop(), apply(up[2:], made, sweeps))
        y = apply(self.generator.head, x, sweeps)
        if self.generator.architecture["detail"]:
            y = Add(apply(self.generator.fine, Concat(y, picture), sweeps), Pointwise(picture, inverse_tanh))
        return Pointwise(y, torch.tanh_)


TILING_PLANS: dict[type[nn.Module], Callable[[Any], TilingPlan]] = {
    ResNetGenerator: ResNetTiling,
    UNetGenerator: UNetTiling,
}


def _sequences(modules: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Modules that are sequences of layers, which a type checker cannot know."""
    return [module for module in modules if isinstance(module, nn.Sequential)]
