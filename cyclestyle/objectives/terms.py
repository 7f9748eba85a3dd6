"""Terms, the additional losses of an objective: one object per loss, whose name and weight are set in the config.

A term of the generators is called once for each direction of translation, a term of the discriminators once for each
domain. A term that is a module may have parameters: they are trained, saved and resumed with the networks.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from cyclestyle.calls import takes_positional
from cyclestyle.errors import CheckpointError, CommandError


class Direction(NamedTuple):
    """One direction of translation for N pairs of images, each image (N, C, H, W) in [-1, 1].

    In direction ab, the source images are of domain a, and the target images are of domain b. Features are
    activations of generator layers. Gradients flow from `fake`, `reconstructed`, `identity` and the features into the
    generators. With `augment.robust`, `fake`, `identity` and `source_features` are computed from degraded copies of the
    real images; `source` and `target` are clean in any case.
    """

    name: Literal["ab", "ba"]
    source: Tensor  # real images of the source domain
    target: Tensor  # real images of the target domain; not the translations of `source`, as training is unpaired
    fake: Tensor  # translations of `source`
    reconstructed: Tensor | None = None  # `fake` translated back; None if no term needs it
    identity: Tensor | None = None  # output of this direction's generator for `target`; None if no term needs it
    source_features: Mapping[str, Tensor] = {}  # generator layer -> its activations for `source`
    fake_features: Mapping[str, Tensor] = {}  # generator layer -> its activations for `fake`


class Term(Protocol):
    """Loss of the generators; it returns a scalar for one direction.

    Two class attributes declare optional inputs. `needs` lists `reconstructed` and `identity`, if the term uses these
    images. `layers` lists names of the generator's submodules, such as `trunk.0`, whose activations the term uses.

    A third attribute, `sees`, lists the pretrained networks whose features the term uses, such as `vgg19`. Networks
    from `model_files.weights.load` in an attribute of the term are found without it. See `objectives.sees`.
    """

    def __call__(self, direction: Direction, /) -> Tensor: ...


class DiscriminatorTerm(Protocol):
    """Loss of the discriminators; it returns a scalar for one domain, such as a gradient penalty.

    The discriminator runs in float32 and can be differentiated twice. `real` and `fake` are detached. A term that needs
    gradients with respect to them calls `requires_grad_()` on detached copies.

    Args:
        discriminator: discriminator of the domain.
        real: real images (N, C, H, W) in [-1, 1].
        fake: translations from the image pool, with the shape and range of `real`.
    """

    def __call__(self, discriminator: nn.Module, real: Tensor, fake: Tensor, /) -> Tensor: ...


class Weighted(NamedTuple):
    """A term, its name in the config and in the log, and its weight in the sum of losses."""

    name: str
    term: Any  # Term or DiscriminatorTerm
    weight: float = 1.0

    def loss(self, *inputs: Any) -> Tensor:
        """Call the term and return its weighted loss.

        Raises:
            CommandError: the term does not return a scalar tensor, or has changed an image or activation in place.
        """
        given = list(_tensors_in(inputs))
        versions = [tensor._version for tensor in given]
        value = self.term(*inputs)
        if [tensor._version for tensor in given] != versions:
            raise CommandError(f"term {self.name} changed its images in place, but other losses use them: clone them")
        if not isinstance(value, Tensor) or value.dim():
            found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise CommandError(f"term {self.name} returned {found}: a loss is a scalar tensor")
        return self.weight * value


def check_weight(key: str, weight: float) -> None:
    """Raise a CommandError unless the weight of a loss is a finite number of 0 or more; `key` is its config key."""
    if not (math.isfinite(weight) and weight >= 0):
        raise CommandError(f"{key}={weight:g}: the weight of a loss is a finite number, 0 (off) or more")


def declared(component: object, attribute: Literal["needs", "layers", "sees"]) -> Collection[str]:
    """Return the names that an optional attribute of a component lists; empty if there is no such attribute.

    Raises:
        CommandError: the attribute is a text, not a tuple of names.
    """
    names = getattr(component, attribute, ())
    if isinstance(names, str):
        raise CommandError(f"{type(component).__name__}.{attribute} is the text {names!r}: expected a tuple of names")
    return cast(Collection[str], names)


class Terms:
    """All terms of the generators or all terms of the discriminators, sorted by name, with their trained parameters.

    Args:
        key: config key of the terms, such as `objective.terms`, for error messages.
        terms: terms with different names; those of weight 0 are left out.
        inputs: names of the arguments with which each term is called.
        reserved: names that a term may not have, since other losses are logged under them.

    Raises:
        CommandError: a name is reserved or used twice, a weight is negative or not finite, a term cannot be called with
            these arguments, or a term holds trained networks, but is no module itself.
    """

    def __init__(
        self,
        key: str,
        terms: Sequence[Weighted] = (),
        *,
        inputs: Sequence[str],
        reserved: Collection[str] = (),
    ) -> None:
        names = [term.name for term in terms]
        for name, term, weight in terms:
            if name in reserved or names.count(name) > 1:
                raise CommandError(f"{key}.{name}: another loss has this name: choose another one")
            check_weight(f"{key}.{name}.weight", weight)
            if not callable(term) or not takes_positional(term, len(inputs)):
                raise CommandError(
                    f"{key}.{name}: {type(term).__name__} cannot be called with ({', '.join(inputs)}): see "
                    f"docs/extending.md"
                )
            _check_state(f"{key}.{name}", term)
        self._terms = sorted((term for term in terms if term.weight), key=lambda term: term.name)

    def __iter__(self) -> Iterator[Weighted]:
        return iter(self._terms)

    @property
    def needs(self) -> set[str]:
        """Optional images that at least one term uses: `reconstructed`, `identity`."""
        return {need for weighted in self._terms for need in declared(weighted.term, "needs")}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the generators' submodules whose activations at least one term uses."""
        return tuple(sorted({layer for weighted in self._terms for layer in declared(weighted.term, "layers")}))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Terms that are modules, by name."""
        return {name: term for name, term, _ in self._terms if isinstance(term, nn.Module)}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Trained parameters of all terms; parameters that were frozen when the term was built are left out."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Return the trained parameters of each term; frozen ones, such as those of a feature network, are left out."""
        trained = {
            name: {key: p.detach() for key, p in module.named_parameters() if p.requires_grad}
            for name, module in self.modules.items()
        }
        return {name: state for name, state in trained.items() if state}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore a result of `state_dict`; a term that is missing in `state` keeps its initial parameters.

        Raises:
            CheckpointError: the parameters of a term differ in name or shape.
        """
        for name, present in self.state_dict().items():
            _copy(name, present, state.get(name, present))

    def buffers(self) -> dict[str, dict[str, Tensor]]:
        """Return the persistent buffers of each term, such as running means, which may differ between ranks."""
        buffers = {name: _saved_buffers(module) for name, module in self.modules.items()}
        return {name: state for name, state in buffers.items() if state}

    def load_buffers(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restore a result of `buffers`; buffers that are missing there keep their initial values.

        A buffer takes the saved shape, since it may have grown, or may have been None when the term was built.

        Raises:
            CheckpointError: a term lacks a saved buffer.
        """
        for name, module in self.modules.items():
            for key, saved in state.get(name, {}).items():
                _restore_buffer(name, module, key, saved)


def _saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {key: value for key, value in module.state_dict().items() if key not in parameters}


@torch.no_grad()
def _copy(name: str, present: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    shapes, saved_shapes = ({key: tuple(value.shape) for key, value in state.items()} for state in (present, saved))
    if shapes != saved_shapes:
        keys = [key for key in {**shapes, **saved_shapes} if shapes.get(key) != saved_shapes.get(key)]
        raise CheckpointError(
            f"term {name}: {', '.join(keys)} differ from the checkpoint in presence or shape: give the changed term "
            f"another name"
        )
    for key, value in present.items():
        value.copy_(saved[key])


def _restore_buffer(name: str, module: nn.Module, key: str, saved: Tensor) -> None:
    path, _, attribute = key.rpartition(".")
    try:
        owner = module.get_submodule(path)
        present = owner._buffers[attribute]
    except (AttributeError, KeyError):
        raise CheckpointError(
            f"term {name}: it has no buffer {key}, which the checkpoint holds: give the changed term another name"
        ) from None
    if present is not None and present.shape == saved.shape:
        present.copy_(saved)
    else:
        device = next((tensor.device for tensor in module.state_dict().values()), saved.device)
        owner._buffers[attribute] = saved.clone().to(device)


def _check_state(key: str, term: object) -> None:
    """Raise a CommandError if a term has state that would not be saved, or lazy parameters, which have no shape yet.

    Two kinds of state are not saved: extra state of modules (`get_extra_state`), and trained parameters in a term that
    is no module.
    """
    if isinstance(term, nn.Module):
        if any(type(module).get_extra_state is not nn.Module.get_extra_state for module in term.modules()):
            raise CommandError(f"{key}: {type(term).__name__} has extra state, which is not saved: keep it in buffers")
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in term.parameters()):
            raise CommandError(f"{key}: {type(term).__name__} has lazy modules: give their sizes to the constructor")
        return
    for attribute, value in vars(term).items() if hasattr(term, "__dict__") else ():
        if any(parameter.requires_grad for parameter in _parameters_in(value)):
            raise CommandError(
                f"{key}: {type(term).__name__}.{attribute} has trained parameters: derive {type(term).__name__} from "
                f"torch.nn.Module, so that they are trained and saved, or freeze them with requires_grad_(False)"
            )


def _tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)


def _parameters_in(value: object) -> Iterator[nn.Parameter]:
    """Yield the parameters in an attribute: a parameter, a module, or a list, tuple or dict of these."""
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parameters_in(item)
    elif isinstance(value, dict):
        yield from _parameters_in(list(value.values()))
