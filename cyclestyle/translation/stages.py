"""How each architecture is computed in pieces: what is kept for the whole picture, and what is computed again."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from cyclestyle.networks import ResNetGenerator, UNetGenerator
from cyclestyle.networks.resnet import ResidualBlock
from cyclestyle.networks.unet import before_tanh
from cyclestyle.translation.strips import Joined, Mapped, Rows, Sum, through
from cyclestyle.translation.sweeps import Kept, Sweeping


class Stages(Protocol):
    """An architecture in pieces."""

    channels: int  # of the outermost layer
    multiple: int  # px, as of `minimum`: sizes that the network takes as they are, see `pad_to_multiple`
    minimum: int
    whole_values: Mapping[torch.dtype, float]  # that a whole pass was measured to hold, per px and outermost channel

    def translated(self, picture: Rows, sweeps: Sweeping) -> Rows:
        """What the generator makes of a picture, for one last sweep."""


class ResNetStages:
    """Two copies of the trunk are kept, at a quarter of the size; all above that is computed anew for each sweep."""

    multiple, minimum = 4, 8

    def __init__(self, generator: ResNetGenerator) -> None:
        self.generator, self.channels = generator, int(generator.architecture["channels"])
        # Under autocast on the CPU, PyTorch pads by reflection in float32.
        self.whole_values: Mapping[torch.dtype, float] = {
            "transposed": {torch.float32: 3.8, torch.bfloat16: 6.1},
            "resize": {torch.float32: 5.8, torch.bfloat16: 11.0},
        }[str(generator.architecture["upsample"])]

    def translated(self, picture: Rows, sweeps: Sweeping) -> Rows:
        generator = self.generator
        halve, quarter = _sequences(generator.down)
        half = through(halve, through(generator.stem, picture, sweeps), sweeps)
        kept = sweeps.keep(through(quarter[:1], half, sweeps))
        x = self._trunk(kept, through(quarter[1:], kept, sweeps), sweeps)
        return through(generator.head, through(generator.up, x, sweeps), sweeps)

    def _trunk(self, kept: Kept, x: Rows, sweeps: Sweeping) -> Rows:
        """All blocks, their sums in `kept`, from which `x` is made at first; what they need besides is then free."""
        scratch = None
        for block in self.generator.trunk:
            assert isinstance(block, ResidualBlock)
            first = through(block.first[:2], x, sweeps)
            if scratch is None:
                scratch = sweeps.keep(first)
            else:
                sweeps.overwrite(scratch, first, measured=True)
            second = through(block.second[:2], through(block.first[2:], scratch, sweeps), sweeps)
            sweeps.overwrite(scratch, second, measured=True)
            sweeps.overwrite(kept, Sum(x, through(block.second[2:], scratch, sweeps)), measured=False)
            x = kept
        return x


class UNetStages:
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

    def translated(self, picture: Rows, sweeps: Sweeping) -> Rows:
        outermost, *inner = _sequences(self.generator.down)
        x = through(outermost, picture, sweeps)
        skips = [x]
        for down in inner:
            kept = sweeps.keep(through(down[:2], x, sweeps))
            x = through(down[2:], kept, sweeps)
            skips.append(x)
        del kept

        x = skips.pop()
        for up in _sequences(self.generator.up):
            made = through(up[:2], x, sweeps)
            if len(skips) > 1:
                made = sweeps.keep(made)
            x = Joined(skips.pop(), through(up[2:], made, sweeps))
        y = through(self.generator.head, x, sweeps)
        if self.generator.architecture["detail"]:
            y = Sum(through(self.generator.fine, Joined(y, picture), sweeps), Mapped(picture, before_tanh))
        return Mapped(y, torch.tanh_)


STAGES: dict[type[nn.Module], Callable[[Any], Stages]] = {ResNetGenerator: ResNetStages, UNetGenerator: UNetStages}


def _sequences(modules: Iterable[nn.Module]) -> list[nn.Sequential]:
    """Modules that are sequences of layers, which a type checker cannot know."""
    return [module for module in modules if isinstance(module, nn.Sequential)]
