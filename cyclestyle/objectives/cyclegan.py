"""The CycleGAN objective: translations in both directions, and the losses computed from them.

Two generators translate between domains a and b, and two discriminators score images of a and b. This module is
independent of optimizers, devices, ranks and files.

Zhu, Park, Isola, Efros: Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, 2017.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss


class Translations(NamedTuple):
    """Outputs of the generators for a batch, images (N, C, H, W) in [-1, 1]; None for an output not requested."""

    fake_a: Tensor | None = None  # ba(b)
    fake_b: Tensor | None = None  # ab(a)
    reconstructed_a: Tensor | None = None  # ba(fake_b), reconstruction of a
    reconstructed_b: Tensor | None = None  # ab(fake_a), reconstruction of b
    identity_a: Tensor | None = None  # ba(a), compared with a
    identity_b: Tensor | None = None  # ab(b), compared with b


class Generators(nn.Module):
    """Both generators as one module, because DDP allows only one call of a module per backward pass.

    Args:
        ab: generator from domain a to domain b; maps images (N, C, H, W) to the same shape.
        ba: generator from domain b to domain a.
    """

    def __init__(self, ab: nn.Module, ba: nn.Module) -> None:
        super().__init__()
        self.ab, self.ba = ab, ba

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        fake_a: bool = True,
        fake_b: bool = True,
        reconstructed_a: bool = True,
        reconstructed_b: bool = True,
        identity_a: bool = True,
        identity_b: bool = True,
    ) -> Translations:
        """Compute the outputs whose flag is True, in as few generator calls as possible.

        Each generator gets the inputs for translation and for the identity image in one call. This affects speed only,
        not results, as instance norm computes its statistics per image. `reconstructed_a` requires `fake_b`, and
        `reconstructed_b` requires `fake_a`.
        """
        translated_b, unchanged_b = _batched(self.ab, a if fake_b else None, b if identity_b else None)
        translated_a, unchanged_a = _batched(self.ba, b if fake_a else None, a if identity_a else None)
        return Translations(
            fake_a=translated_a,
            fake_b=translated_b,
            reconstructed_a=self.ba(translated_b) if reconstructed_a else None,
            reconstructed_b=self.ab(translated_a) if reconstructed_b else None,
            identity_a=unchanged_a,
            identity_b=unchanged_b,
        )


class Requested(NamedTuple):
    """One flag for each field of `Translations`: whether that output is computed."""

    fake_a: bool = False
    fake_b: bool = False
    reconstructed_a: bool = False
    reconstructed_b: bool = False
    identity_a: bool = False
    identity_b: bool = False


class Scores(NamedTuple):
    """Score maps (N, 1, h, w) of both discriminators, trained to be high for real images; None for a missing input."""

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


class Adversarial(Protocol):
    """Interface of adversarial losses; each method reduces a map of scores to a scalar."""

    def real(self, scores: Tensor) -> Tensor: ...
    def fake(self, scores: Tensor) -> Tensor: ...
    def generator(self, scores: Tensor) -> Tensor: ...


Losses = dict[str, Tensor]  # log key -> weighted scalar
Part = Callable[[Tensor, Tensor], tuple[Losses, Translations]]  # arguments: real images of a and of b
Call = Callable[..., Any]  # a module, or a function that calls it


def _bare(module: nn.Module, *, synchronized: bool) -> Call:
    return module


class CycleGAN:
    """All losses of a CycleGAN, by name and with weights; a loss of weight 0 and the images for it are not computed.

    Args:
        generators: both generators; the attribute is this module without the wrapper of `prepare`, for saving.
        discriminators: both discriminators; the attribute is this module without the wrapper of `prepare`, for saving.
        adversarial: adversarial loss (paper: least squares).
        cycle_a: weight of |ba(ab(a)) - a| (paper: 10).
        cycle_b: weight of |ab(ba(b)) - b|.
        identity: weight of |ba(a) - a| and |ab(b) - b|, relative to the cycle weight of the same domain (paper: 0.5).
        prepare: function that wraps a module with autocast, compilation, DDP or the like. If it is called with
            `synchronized=True`, the gradients of the module's parameters are averaged over all ranks.
    """

    def __init__(
        self,
        generators: Generators,
        discriminators: Discriminators,
        *,
        adversarial: Adversarial,
        cycle_a: float = 10.0,
        cycle_b: float = 10.0,
        identity: float = 0.5,
        prepare: Callable[..., Call] = _bare,
    ) -> None:
        self.generators, self.discriminators = generators, discriminators
        self.adversarial = adversarial
        self.cycle_a, self.cycle_b = cycle_a, cycle_b
        self.identity_a, self.identity_b = identity * cycle_a, identity * cycle_b

        self._requested = Requested(
            fake_a=True,
            fake_b=True,
            reconstructed_a=self.cycle_a != 0,
            reconstructed_b=self.cycle_b != 0,
            identity_a=self.identity_a != 0,
            identity_b=self.identity_b != 0,
        )
        self._translate = prepare(generators, synchronized=True)
        self._score = prepare(discriminators, synchronized=True)
        # The generators' losses use this wrapper: they need no gradients of the discriminators' parameters.
        self._score_unsynchronized = prepare(discriminators, synchronized=False)

    def generator_losses(self, a: Tensor, b: Tensor) -> tuple[Losses, Translations]:
        """Compute the losses of the generators (Zhu et al. 2017, eq. 3 and section 5.2).

        Args:
            a, b: real images (N, C, H, W) in [-1, 1].

        Returns:
            The losses, whose sum is the generators' objective, and the images computed for them.
        """
        return self._generator_losses(self._requested, a, b)

    @property
    def generator_parts(self) -> tuple[Part, ...]:
        """The computation of `generator_losses` in two parts, one per direction, which needs half the memory.

        Each part is a function that returns its share of the losses. Call backward after each part; the gradients add
        up. A part has three of the six generator passes: translation and reconstruction in one direction, and the
        identity image of the translating generator. The last part uses every parameter of both generators, as DDP
        requires. Without cycle losses there is a single part.
        """
        requested = self._requested
        from_a = Requested(fake_b=True, reconstructed_a=requested.reconstructed_a, identity_b=requested.identity_b)
        from_b = Requested(fake_a=True, reconstructed_b=requested.reconstructed_b, identity_a=requested.identity_a)
        if requested.reconstructed_b:
            parts = [from_a, from_b]
        elif requested.reconstructed_a:
            parts = [from_b, from_a]
        else:
            parts = [requested]
        return tuple(functools.partial(self._generator_losses, part) for part in parts)

    def _generator_losses(self, requested: Requested, a: Tensor, b: Tensor) -> tuple[Losses, Translations]:
        """Compute the `requested` outputs of the generators; return the losses based on them, and the outputs."""
        outputs: Translations = self._translate(a, b, **requested._asdict())
        losses: Losses = {}
        if outputs.fake_a is not None or outputs.fake_b is not None:
            with _frozen(self.discriminators):
                scores: Scores = self._score_unsynchronized(outputs.fake_a, outputs.fake_b)
            for name, score in (("loss/gan_ab", scores.b), ("loss/gan_ba", scores.a)):
                if score is not None:
                    losses[name] = self.adversarial.generator(score)
        for name, weight, output, real in (
            ("loss/cycle_a", self.cycle_a, outputs.reconstructed_a, a),
            ("loss/cycle_b", self.cycle_b, outputs.reconstructed_b, b),
            ("loss/identity_a", self.identity_a, outputs.identity_a, a),
            ("loss/identity_b", self.identity_b, outputs.identity_b, b),
        ):
            if output is not None:
                losses[name] = weight * l1_loss(output, real)
        return losses, outputs

    def discriminator_losses(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> tuple[Losses, Losses]:
        """Compute the losses of the discriminators, and mean scores for logging.

        Args:
            a, b: real images (N, C, H, W) in [-1, 1].
            fake_a, fake_b: translations from the image pools, detached from the generators.

        Returns:
            The losses, and the mean scores of real and of translated images, which carry no gradients.
        """
        # One call for real and fake images, as DDP requires one call per backward pass.
        scores_a, scores_b = self._score(torch.cat([a, fake_a]), torch.cat([b, fake_b]))
        (score_real_a, score_fake_a), (score_real_b, score_fake_b) = scores_a.chunk(2), scores_b.chunk(2)

        losses = {
            "loss/discriminator_a": 0.5 * (self.adversarial.real(score_real_a) + self.adversarial.fake(score_fake_a)),
            "loss/discriminator_b": 0.5 * (self.adversarial.real(score_real_b) + self.adversarial.fake(score_fake_b)),
        }
        means = {
            "score/real_a": score_real_a.detach().mean(),
            "score/fake_a": score_fake_a.detach().mean(),
            "score/real_b": score_real_b.detach().mean(),
            "score/fake_b": score_fake_b.detach().mean(),
        }
        return losses, means


def _batched(generator: nn.Module, *batches: Tensor | None) -> list[Tensor | None]:
    """Call `generator` once for all `batches` together; return one output per batch, None for a batch that is None."""
    present = [batch for batch in batches if batch is not None]
    if not present:
        return [None for _ in batches]
    joined = torch.cat(present) if len(present) > 1 else present[0]
    outputs = iter(generator(joined).split([len(batch) for batch in present]))
    return [None if batch is None else next(outputs) for batch in batches]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Context manager: freeze the parameters of `module`; gradients still flow through the module to its input."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
