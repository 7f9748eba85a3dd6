"""The CycleGAN objective: which pictures are made from which, and what each of them costs.

Two generators translate between domains a and b, two discriminators judge a and b. Nothing here knows about
optimizers, devices, processes or files.

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
    """What the generators made of a batch; every picture is (N, C, H, W) in [-1, 1], None if it was not asked for."""

    fake_a: Tensor | None = None  # ba(b)
    fake_b: Tensor | None = None  # ab(a)
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
        fake_a: bool = True,
        fake_b: bool = True,
        cycled_a: bool = True,
        cycled_b: bool = True,
        same_a: bool = True,
        same_b: bool = True,
    ) -> Translations:
        """The pictures that are asked for, in as few and as large calls as possible.

        A generator's translation and its identity go through it together; the statistics of instance norm belong to
        one picture, so that this changes nothing but the speed. A cycle needs its translation.
        """
        made_b, kept_b = _together(self.ab, a if fake_b else None, b if same_b else None)
        made_a, kept_a = _together(self.ba, b if fake_a else None, a if same_a else None)
        return Translations(
            fake_a=made_a,
            fake_b=made_b,
            cycled_a=self.ba(made_b) if cycled_a else None,
            cycled_b=self.ab(made_a) if cycled_b else None,
            same_a=kept_a,
            same_b=kept_b,
        )


class Wanted(NamedTuple):
    """Which of the `Translations` to make."""

    fake_a: bool = False
    fake_b: bool = False
    cycled_a: bool = False
    cycled_b: bool = False
    same_a: bool = False
    same_b: bool = False


class Scores(NamedTuple):
    """What the discriminators say of a batch: maps (N, 1, h, w) of scores, high for real; None without pictures."""

    a: Tensor | None
    b: Tensor | None


class Discriminators(nn.Module):
    """Both discriminators as one module; each is named for the domain that it judges."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, a: Tensor | None, b: Tensor | None) -> Scores:
        """Scores of pictures that are, or pretend to be, of domain a and of domain b."""
        return Scores(None if a is None else self.a(a), None if b is None else self.b(b))


class Adversarial(Protocol):
    """The game between generators and discriminators; each method makes a scalar of a map of scores."""

    def real(self, scores: Tensor) -> Tensor: ...
    def fake(self, scores: Tensor) -> Tensor: ...
    def generator(self, scores: Tensor) -> Tensor: ...


Losses = dict[str, Tensor]
Part = Callable[[Tensor, Tensor], tuple[Losses, Translations]]
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

        self._wanted = Wanted(
            fake_a=True,
            fake_b=True,
            cycled_a=self.cycle_a != 0,
            cycled_b=self.cycle_b != 0,
            same_a=self.identity_a != 0,
            same_b=self.identity_b != 0,
        )
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
        return self._generator_losses(self._wanted, a, b)

    @property
    def generator_parts(self) -> tuple[Part, ...]:
        """`generator_losses` in parts, to be called and back-propagated one after the other: their gradients add up.

        One part is all that one translation and the other domain's picture make of a generator: three of the six
        passes, in half the memory. The last part uses every parameter of both generators, which DDP counts on.
        """
        wanted = self._wanted
        from_a = Wanted(fake_b=True, cycled_a=wanted.cycled_a, same_b=wanted.same_b)
        from_b = Wanted(fake_a=True, cycled_b=wanted.cycled_b, same_a=wanted.same_a)
        if wanted.cycled_b:
            parts = [from_a, from_b]
        elif wanted.cycled_a:
            parts = [from_b, from_a]
        else:
            parts = [wanted]
        return tuple(functools.partial(self._generator_losses, part) for part in parts)

    def _generator_losses(self, wanted: Wanted, a: Tensor, b: Tensor) -> tuple[Losses, Translations]:
        """Those of the losses that come from the pictures that are wanted."""
        made: Translations = self._translate(a, b, **wanted._asdict())
        losses: Losses = {}
        if made.fake_a is not None or made.fake_b is not None:
            with _frozen(self.discriminators):
                scores: Scores = self._judge_alone(made.fake_a, made.fake_b)
            for name, score in (("loss/gan_ab", scores.b), ("loss/gan_ba", scores.a)):
                if score is not None:
                    losses[name] = self.adversarial.generator(score)
        for name, weight, picture, real in (
            ("loss/cycle_a", self.cycle_a, made.cycled_a, a),
            ("loss/cycle_b", self.cycle_b, made.cycled_b, b),
            ("loss/identity_a", self.identity_a, made.same_a, a),
            ("loss/identity_b", self.identity_b, made.same_b, b),
        ):
            if picture is not None:
                losses[name] = weight * l1_loss(picture, real)
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
        said_of_a, said_of_b = self._judge(torch.cat([a, fake_a]), torch.cat([b, fake_b]))
        (real_a, said_a), (real_b, said_b) = said_of_a.chunk(2), said_of_b.chunk(2)

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


def _together(generator: nn.Module, *batches: Tensor | None) -> list[Tensor | None]:
    """One call of a generator for all batches that are there."""
    there = [batch for batch in batches if batch is not None]
    if not there:
        return [None for _ in batches]
    made = iter(generator(torch.cat(there) if len(there) > 1 else there[0]).split([len(batch) for batch in there]))
    return [None if batch is None else next(made) for batch in batches]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module but are not computed for its own parameters."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
