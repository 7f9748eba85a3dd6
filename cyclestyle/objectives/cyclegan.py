"""The CycleGAN objective: translations in both directions, and the losses computed from them.

Two generators translate between domains a and b, and two discriminators score images of a and b. This module is
independent of optimizers, devices, ranks and files.

Zhu, Park, Isola, Efros: Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks, 2017.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from cyclestyle.errors import CommandError
from cyclestyle.networks.features import layer_of
from cyclestyle.objectives.image_pool import ImagePool
from cyclestyle.objectives.pairs import Discriminators, Generators, Request
from cyclestyle.objectives.step import Images, Part, PartResult, Scalars, Update
from cyclestyle.objectives.terms import Terms, Weighted, check_weight


class Adversarial(Protocol):
    """Interface of adversarial losses; each method reduces a map of scores to a scalar."""

    def real(self, scores: Tensor) -> Tensor: ...
    def fake(self, scores: Tensor) -> Tensor: ...
    def generator(self, scores: Tensor) -> Tensor: ...


class Degrade(Protocol):
    """Function that returns degraded copies of images, for the input of the generators.

    Args:
        images: real images (N, C, H, W) in [-1, 1].
        draws: sample index of each image: the number of its training pair in the run. An image with the same index and
            domain gets the same random numbers.
        domain: domain of the images.
    """

    def __call__(self, images: Tensor, draws: list[int], *, domain: Literal["a", "b"]) -> Tensor: ...


class Pools(NamedTuple):
    """Image pools of the two domains; each pool holds past translations into its domain."""

    a: ImagePool
    b: ImagePool


class Prepare(Protocol):
    """Function that wraps a module with autocast, compilation, DDP or the like.

    With `synchronized=True`, the wrapper averages the gradients of the module's parameters over all ranks. The wrapper
    must then be called once for each backward pass, and the last backward pass of an update must use all parameters of
    the module.
    """

    def __call__(self, module: nn.Module, *, synchronized: bool) -> Callable[..., Any]: ...


def _bare(module: nn.Module, *, synchronized: bool) -> Callable[..., Any]:
    return module


class CycleGAN:
    """All losses of a CycleGAN, by name and with weights.

    Losses of weight 0, and images that only these losses need, are not computed.

    The attributes `generators` and `discriminators` are the modules without the wrapper of `prepare`, for saving.

    Args:
        generators: both generators.
        discriminators: both discriminators.
        adversarial: adversarial loss (paper: least squares).
        pools: image pools, whose past translations the discriminators train on, besides new ones.
        cycle_a: weight of |ba(ab(a)) - a| (paper: 10).
        cycle_b: weight of |ab(ba(b)) - b|.
        identity: weight of |ba(a) - a| and |ab(b) - b|, relative to the cycle weight of the same domain (paper: 0.5). A
            cycle weight of 0 turns the identity loss of that domain off too.
        terms: additional losses of the generators, with their names and weights.
        discriminator_terms: additional losses of the discriminators, with their names and weights.
        backward: `split` back-propagates the losses of the two translation directions one after the other, which needs
            half the memory; `joint` back-propagates them in one pass. Both settings give equal gradients.
        degrade: degrades the real images that the generators translate, so that they learn to translate poor images as
            well as good ones. The losses and the discriminators still use the clean images. None leaves all inputs
            clean.
        prepare: function that wraps the networks, see `Prepare`.

    Raises:
        CommandError: a weight is negative or not finite; a term is invalid (see `Terms`), has the name of another loss,
            or needs a layer that a generator lacks; or an identity loss or a term needs identity images, but the
            domains have unequal numbers of channels.
    """

    def __init__(
        self,
        generators: Generators,
        discriminators: Discriminators,
        *,
        adversarial: Adversarial,
        pools: Pools,
        cycle_a: float = 10.0,
        cycle_b: float = 10.0,
        identity: float = 0.5,
        terms: Sequence[Weighted] = (),
        discriminator_terms: Sequence[Weighted] = (),
        backward: Literal["split", "joint"] = "split",
        degrade: Degrade | None = None,
        prepare: Prepare = _bare,
    ) -> None:
        for name, weight in (("cycle_a", cycle_a), ("cycle_b", cycle_b), ("identity", identity)):
            check_weight(f"objective.{name}", weight)
        self.generators, self.discriminators = generators, discriminators
        self.adversarial, self.pools, self.degrade = adversarial, pools, degrade
        # Weights by direction: cycle losses compare images of the source domain, identity losses of the target domain.
        self.cycle = {"ab": cycle_a, "ba": cycle_b}
        self.identity = {"ab": identity * cycle_b, "ba": identity * cycle_a}
        self.terms = Terms("objective.terms", terms, inputs=["direction"], reserved=["gan"])
        self.discriminator_terms = Terms(
            "objective.discriminator_terms",
            discriminator_terms,
            inputs=["discriminator", "real", "fake"],
            reserved=["discriminator", "cycle", "identity"],
        )
        self._sides = {"terms": self.terms, "discriminator_terms": self.discriminator_terms}

        self.modules: dict[str, nn.Module] = {"generators": generators, "discriminators": discriminators}
        self.parameters: dict[str, list[nn.Parameter]] = {
            "generators": [*_trained(generators), *self.terms.parameters],
            "discriminators": [*_trained(discriminators), *self.discriminator_terms.parameters],
        }
        self._call_generators = prepare(generators, synchronized=True)
        self._call_discriminators = prepare(discriminators, synchronized=True)
        # The generators' losses use this wrapper: they need no gradients of the discriminators' parameters.
        self._call_discriminators_unsynchronized = prepare(discriminators, synchronized=False)
        both = self._requests()
        self.generator_parts: tuple[Part, ...] = tuple(
            functools.partial(self.generator_losses, requests)
            for requests in (_one_by_one(both) if backward == "split" else [both])
        )

    def step(self, images: Images, update: Update) -> Scalars:
        """Update both generators, then both discriminators on pooled translations.

        The order is that of the authors' code; the pools are described by Zhu et al. 2017, section 4.
        """
        a, b, draws = images
        inputs: tuple[Tensor, ...] = ()
        if self.degrade is not None:
            inputs = self.degrade(a, draws, domain="a"), self.degrade(b, draws, domain="b")
        generator_scalars, fakes = update("generators", self.generator_parts, a, b, *inputs)
        fake_a = self.pools.a.exchange(fakes["fake_a"], draws)
        fake_b = self.pools.b.exchange(fakes["fake_b"], draws)
        discriminator_scalars, _ = update("discriminators", [self.discriminator_losses], a, b, fake_a, fake_b)
        return generator_scalars | discriminator_scalars

    def generator_losses(
        self,
        requests: Sequence[Request],
        a: Tensor,
        b: Tensor,
        input_a: Tensor | None = None,
        input_b: Tensor | None = None,
    ) -> PartResult:
        """Compute the losses of the generators for the requested directions (Zhu et al. 2017, eq. 3 and section 5.2).

        Args:
            requests: one or both directions, and the images to compute for each.
            a, b: real images (N, C, H, W) in [-1, 1].
            input_a, input_b: degraded copies of `a` and `b`, which the generators get in their place; None: `a` and `b`
                themselves.

        Returns:
            The losses, and the translations under the names `fake_a` and `fake_b`.
        """
        # One `Direction` for each request.
        directions = self._call_generators(a, b, input_a, input_b, requests=requests)
        fakes = {f"fake_{direction.name[1]}": direction.fake for direction in directions}
        with _frozen(self.discriminators):
            scores = self._call_discriminators_unsynchronized(fakes.get("fake_a"), fakes.get("fake_b"))

        losses: Scalars = {}
        for direction in directions:
            name, source, target = direction.name, direction.name[0], direction.name[1]
            losses[f"loss/gan_{name}"] = self.adversarial.generator(scores.a if target == "a" else scores.b)
            if weight := self.cycle[name]:
                losses[f"loss/cycle_{source}"] = weight * l1_loss(direction.reconstructed, direction.source)
            if weight := self.identity[name]:
                losses[f"loss/identity_{target}"] = weight * l1_loss(direction.identity, direction.target)
            for term in self.terms:
                losses[f"loss/{term.name}_{name}"] = term.loss(direction)
        return PartResult(dict(sorted(losses.items(), key=_place_in_sum)), images=fakes)

    def discriminator_losses(self, a: Tensor, b: Tensor, fake_a: Tensor, fake_b: Tensor) -> PartResult:
        """Compute the losses of the discriminators, and mean scores for logging.

        Args:
            a, b: real images (N, C, H, W) in [-1, 1].
            fake_a, fake_b: translations from the image pools, detached from the generators.
        """
        # One call for real and fake images, as DDP requires one call per backward pass. Batch norm would mix them.
        scores_a, scores_b = self._call_discriminators(torch.cat([a, fake_a]), torch.cat([b, fake_b]))
        (score_real_a, score_fake_a), (score_real_b, score_fake_b) = scores_a.chunk(2), scores_b.chunk(2)

        # Halved, so that discriminators learn more slowly than generators (Zhu et al. 2017, section 7.1).
        losses = {
            "loss/discriminator_a": 0.5 * (self.adversarial.real(score_real_a) + self.adversarial.fake(score_fake_a)),
            "loss/discriminator_b": 0.5 * (self.adversarial.real(score_real_b) + self.adversarial.fake(score_fake_b)),
        }
        for term in self.discriminator_terms:
            losses[f"loss/{term.name}_a"] = term.loss(self.discriminators.a, a, fake_a)
            losses[f"loss/{term.name}_b"] = term.loss(self.discriminators.b, b, fake_b)
        means = {
            "score/real_a": score_real_a.mean(),
            "score/fake_a": score_fake_a.mean(),
            "score/real_b": score_real_b.mean(),
            "score/fake_b": score_fake_b.mean(),
        }
        return PartResult(losses, means)

    def state_dict(self) -> dict[str, Any]:
        """Return the trained parameters of the additional losses (terms), equal on all ranks; may be empty."""
        return {side: state for side, terms in self._sides.items() if (state := terms.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the trained parameters of the additional losses (terms) from a result of `state_dict`.

        Raises:
            CheckpointError: the parameters of a term differ in name or shape.
        """
        for side, terms in self._sides.items():
            terms.load_state_dict(state.get(side, {}))

    def rank_state_dict(self) -> dict[str, Any]:
        """Return this rank's share of the image pools, and the buffers of the additional losses (terms), if any."""
        buffers = {side: state for side, terms in self._sides.items() if (state := terms.buffers())}
        return {
            "pools": {"a": self.pools.a.state_dict(), "b": self.pools.b.state_dict()},
            **({"buffers": buffers} if buffers else {}),
        }

    def load_rank_state_dicts(
        self, states: Sequence[Mapping[str, Any]], *, rank: int, ranks: int, device: torch.device
    ) -> None:
        """Restore the image pools, and the buffers of the additional losses (terms).

        `states` has the result of `rank_state_dict` for each rank of the saved run. The images of all pools are divided
        among the ranks of this run. Each rank restores the buffers that the rank of the same number had in the saved
        run; a rank that the saved run did not have restores the buffers of rank 0.
        """
        for side, pool in (("a", self.pools.a), ("b", self.pools.b)):
            stored = (item for state in states for item in state["pools"][side].items())
            pool.load_state_dict({place: images.to(device) for place, images in stored if place % ranks == rank})
        buffers = states[rank if rank < len(states) else 0].get("buffers", {})
        for side, terms in self._sides.items():
            terms.load_buffers(buffers.get(side, {}))

    def _requests(self) -> list[Request]:
        """Return one request per direction, for all images that the losses with a weight above 0 need."""
        needs, layers = self.terms.needs, self.terms.layers
        if unknown := needs - {"reconstructed", "identity"}:
            raise CommandError(
                f"objective.terms: a term needs {', '.join(sorted(unknown))}: expected reconstructed or identity"
            )
        requests = [
            Request(
                name,
                reconstructed=bool(self.cycle[name]) or "reconstructed" in needs,
                identity=bool(self.identity[name]) or "identity" in needs,
                layers=layers,
            )
            for name in ("ab", "ba")
        ]
        for request in requests:
            generator = self.generators.ab if request.name == "ab" else self.generators.ba
            for layer in layers:
                layer_of(generator, layer)
            inputs, outputs = (getattr(generator, name, 3) for name in ("in_channels", "out_channels"))
            if request.identity and inputs != outputs:
                raise CommandError(
                    f"objective.identity: the generator {request.name} maps {inputs} channel(s) to {outputs}, so it "
                    f"cannot translate images of its own target domain: set objective.identity=0, and use no term that "
                    f"needs identity images"
                )
        return requests


def _one_by_one(requests: Sequence[Request]) -> list[Sequence[Request]]:
    """Group the requests into parts that are back-propagated one after the other, to halve the memory.

    Each direction is a part of its own if at least one direction has a reconstruction. DDP requires that the last part
    use every parameter of both generators. A reconstruction uses both generators, so a direction with a reconstruction
    comes last. If neither direction has a reconstruction, both directions form one part.
    """
    parts = sorted(requests, key=lambda request: request.reconstructed)  # a direction with a reconstruction comes last
    return [[request] for request in parts] if parts[-1].reconstructed else [requests]


def _trained(module: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in module.parameters() if parameter.requires_grad)


def _place_in_sum(loss: tuple[str, Tensor]) -> tuple[int, str]:
    """Return the sort key of a loss, given as (log key, value).

    The order is adversarial, cycle, identity, others. It is fixed because the order of a sum affects its rounding.
    """
    kind = loss[0].removeprefix("loss/").rpartition("_")[0]
    kinds = ("gan", "cycle", "identity")
    return kinds.index(kind) if kind in kinds else len(kinds), loss[0]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Context manager: freeze the parameters of `module`; gradients still flow through the module to its input."""
    trained = list(_trained(module))
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
