"""A module that joins both generators, and one that joins both discriminators.

DDP allows only one call of a module for each backward pass.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from cyclestyle.networks.features import features, recorded
from cyclestyle.objectives.terms import Direction


class Request(NamedTuple):
    """A direction of translation, and the optional images to compute for it; see `Direction`."""

    name: Literal["ab", "ba"]
    reconstructed: bool = True
    identity: bool = True
    layers: tuple[str, ...] = ()  # submodules of the generator whose activations are returned


class Generators(nn.Module):
    """Both generators as one module, because DDP allows only one call of a module per backward pass.

    Args:
        ab: generator from domain a to domain b; maps images (N, C, H, W) in [-1, 1] to the same size.
        ba: generator from domain b to domain a.
    """

    def __init__(self, ab: nn.Module, ba: nn.Module) -> None:
        super().__init__()
        self.ab, self.ba = ab, ba

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        input_a: Tensor | None = None,
        input_b: Tensor | None = None,
        *,
        requests: Sequence[Request],
    ) -> tuple[Direction, ...]:
        """Translate the images `a` and `b` in the requested directions, in as few generator calls as possible.

        Return one `Direction`, with the requested images, for each of the `requests`, in their order.

        Each generator gets the inputs for translation and for the identity image in one call. With instance norm, which
        computes its statistics per image, results equal those of separate calls; batch norm would mix the two inputs.

        Args:
            a, b: real images (N, C, H, W) in [-1, 1], the `source` and `target` of the results.
            input_a, input_b: degraded copies of `a` and `b`, which the generators get in their place; None: `a` and `b`
                themselves.
            requests: directions to compute.
        """
        inputs = (a if input_a is None else input_a, b if input_b is None else input_b)
        # All translations before all reconstructions: this order decides the random numbers of dropout.
        directions = [self._translate(request, (a, b), inputs) for request in requests]
        return tuple(self._complete(*pair) for pair in zip(requests, directions, strict=True))

    def _translate(self, request: Request, real: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]) -> Direction:
        """Call the generator of the requested direction once; return a `Direction` with its outputs.

        The result contains the translations and, if requested, identity images and `source_features`: activations of
        generator layers for the source images.

        Args:
            real: real images of domains a and b; the `Direction` contains them as `source` and `target`.
            seen: images of domains a and b that the generator receives: `real`, or degraded copies of it.
        """
        generator, (source, target), (seen_source, seen_target) = (
            (self.ab, real, seen) if request.name == "ab" else (self.ba, real[::-1], seen[::-1])
        )
        inputs = torch.cat([seen_source, seen_target]) if request.identity else seen_source
        with recorded(generator, request.layers) as activations:
            outputs = generator(inputs)
        count = len(source)
        fake, identity = outputs.split(count) if request.identity else (outputs, None)
        source_features = {layer: activation[:count] for layer, activation in activations.items()}
        return Direction(request.name, source, target, fake, identity=identity, source_features=source_features)

    def _complete(self, request: Request, direction: Direction) -> Direction:
        """Return a copy of `direction` with reconstructions and `fake_features`, if the request includes them.

        `fake_features` are activations of generator layers for the translations.
        """
        generator, back = (self.ab, self.ba) if request.name == "ab" else (self.ba, self.ab)
        return direction._replace(
            reconstructed=back(direction.fake) if request.reconstructed else None,
            fake_features=features(generator, direction.fake, request.layers) if request.layers else {},
        )


class Scores(NamedTuple):
    """Score maps (N, 1, h, w) of both discriminators, trained to be high for real images.

    A field is None if its discriminator was called with None in place of images.
    """

    a: Tensor | None
    b: Tensor | None


class Discriminators(nn.Module):
    """Both discriminators as one module: discriminator `a` for images of domain a, discriminator `b` for domain b."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, a: Tensor | None, b: Tensor | None) -> Scores:
        """Score images `a` by discriminator `a`, images `b` by discriminator `b`; images can be real or translated."""
        return Scores(None if a is None else self.a(a), None if b is None else self.b(b))
