"""The CycleGAN objective: which pictures are made from which, and what each of them costs.

Two generators translate between domains a and b, two discriminators judge a and b. Nothing here knows about
optimizers, devices, processes or files.

Zhu, Park, Isola, Efros: Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, 2017.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss


class Translations(NamedTuple):
    """What the generators made of a batch; every picture is (N, C, H, W) in [-1, 1], None if its loss has no weight."""

    fake_a: Tensor  # ba(b)
    fake_b: Tensor  # ab(a)
    cycled_a: Tensor | None = None  # ba(fake_b), should be a
    cycled_b: Tensor | None = None  # ab(fake_a), should be b
    same_a: Tensor | None = None  # ba(a), should be a
    same_b: Tensor | None = None  # ab(b), should be b


class Generators(nn.Module):
    """Both generators as one module: one call a backward pass, which is what DDP counts on.

    Args:
        ab: translates domain a to b, (N, C, H, W) to (N, C, H, W).
        ba: translates domain b to a.
    """

    def __init__(self, ab: nn.Module, ba: nn.Module) -> None:
        super().__init__()
        self.ab, self.ba = ab, ba

    def forward(
        self,
        a: Tensor,
        b: Tensor,
        *,
        cycle_a: bool = True,
        cycle_b: bool = True,
        identity_a: bool = True,
        identity_b: bool = True,
    ) -> Translations:
        """All pictures that the asked-for losses need, in as few and as large calls as possible.

        A generator's translation and its identity go through it together; the statistics of instance norm belong to
        one picture, so that this changes nothing but the speed.
        """
        fake_b, same_b = _together(self.ab, a, b if identity_b else None)
        fake_a, same_a = _together(self.ba, b, a if identity_a else None)
        return Translations(
            fake_a=fake_a,
            fake_b=fake_b,
            cycled_a=self.ba(fake_b) if cycle_a else None,
            cycled_b=self.ab(fake_a) if cycle_b else None,
            same_a=same_a,
            same_b=same_b,
        )


class Scores(NamedTuple):
    """What the discriminators say of a batch: maps (N, 1, h, w) of scores, high for real."""

    a: Tensor
    b: Tensor


class Discriminators(nn.Module):
    """Both discriminators as one module; each is named for the domain that it judges."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, a: Tensor, b: Tensor) -> Scores:
        """Scores of pictures that are, or pretend to be, of domain a and of domain b."""
        return Scores(self.a(a), self.b(b))


class Adversarial(Protocol):
    """The game between generators and discriminators; each method makes a scalar of a map of scores."""

    def real(self, scores: Tensor) -> Tensor: ...
    def fake(self, scores: Tensor) -> Tensor: ...
    def fool(self, scores: Tensor) -> Tensor: ...


Losses = dict[str, Tensor]
Call = Callable[..., Any]


def _bare(module: nn.Module, *, synchronized: bool) -> Call:
    return module


class CycleGAN:
    """The losses of a CycleGAN, named and weighted; a term of weight 0 is absent and its pictures are not made.

    Args:
        generators: what translates; kept bare, for saving.
        discriminators: what judges; kept bare, for saving.
        adversarial: least squares in the paper.
        cycle_a: weight of |ba(ab(a)) - a| (paper: 10).
        cycle_b: weight of |ab(ba(b)) - b|.
        identity: weight of |ba(a) - a| and |ab(b) - b|, relative to the cycle weight of the same domain (paper: 0.5).
        prepare: how a module is called: under autocast, compiled, across processes. With `synchronized` its gradients
            are to be averaged over all processes.
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

        self._translate = prepare(generators, synchronized=True)
        self._judge = prepare(discriminators, synchronized=True)
        self._judge_alone = prepare(discriminators, synchronized=False)  # frozen: has no gradients to share

    def generator_losses(self, a: Tensor, b: Tensor) -> tuple[Losses, Translations]:
        """What the generators have to make smaller (Zhu et al. 2017, eq. 3 and 5.2).

        Args:
            a, b: real pictures (N, C, H, W) in [-1, 1].

        Returns:
            The losses, which sum to the generators' objective, and the pictures that were made.
        """
        made: Translations = self._translate(
            a,
            b,
            cycle_a=self.cycle_a != 0,
            cycle_b=self.cycle_b != 0,
            identity_a=self.identity_a != 0,
            identity_b=self.identity_b != 0,
        )
        with _frozen(self.discriminators):
            scores: Scores = self._judge_alone(made.fake_a, made.fake_b)

        losses = {
            "loss/gan_ab": self.adversarial.fool(scores.b),
            "loss/gan_ba": self.adversarial.fool(scores.a),
        }
        for name, weight, picture, wanted in (
            ("loss/cycle_a", self.cycle_a, made.cycled_a, a),
            ("loss/cycle_b", self.cycle_b, made.cycled_b, b),
            ("loss/identity_a", self.identity_a, made.same_a, a),
            ("loss/identity_b", self.identity_b, made.same_b, b),
        ):
            if picture is not None:
                losses[name] = weight * l1_loss(picture, wanted)
        return losses, made

    def discriminator_losses(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> tuple[Losses, Losses]:
        """What the discriminators have to make smaller, and what they said.

        Args:
            a, b: real pictures (N, C, H, W) in [-1, 1].
            fake_a, fake_b: translations, detached from the generators; those that an image pool gave back.

        Returns:
            The losses, and the mean scores of real and translated pictures (to watch, without gradients).
        """
        # One call for real and fake, like the generators' above; DDP wants one call a backward pass.
        scores: Scores = self._judge(torch.cat([a, fake_a]), torch.cat([b, fake_b]))
        (real_a, said_a), (real_b, said_b) = scores.a.chunk(2), scores.b.chunk(2)

        losses = {
            "loss/discriminator_a": 0.5 * (self.adversarial.real(real_a) + self.adversarial.fake(said_a)),
            "loss/discriminator_b": 0.5 * (self.adversarial.real(real_b) + self.adversarial.fake(said_b)),
        }
        means = {
            "score/real_a": real_a.detach().mean(),
            "score/fake_a": said_a.detach().mean(),
            "score/real_b": real_b.detach().mean(),
            "score/fake_b": said_b.detach().mean(),
        }
        return losses, means


def _together(generator: nn.Module, first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One call of a generator for one or two batches."""
    if second is None:
        return generator(first), None
    made_first, made_second = generator(torch.cat([first, second])).split([len(first), len(second)])
    return made_first, made_second


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module but are not computed for its own parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
