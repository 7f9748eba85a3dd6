"""Builds the objective of a run: networks, image pools and terms."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from cyclestyle.cli import compose
from cyclestyle.cli.nodes import accepts, split_program_keys, variant, without
from cyclestyle.errors import CommandError
from cyclestyle.model_files import weights
from cyclestyle.networks import initialize, registry
from cyclestyle.networks.resnet import ResNetGenerator
from cyclestyle.objectives.cyclegan import Degrade, Pools
from cyclestyle.objectives.degradations import RandomDegradations
from cyclestyle.objectives.pairs import Discriminators, Generators
from cyclestyle.objectives.step import Objective
from cyclestyle.objectives.terms import Weighted
from cyclestyle.rng import rng_for
from cyclestyle.training.messages import PrintLine, no_output

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.data import UnpairedFolders
    from cyclestyle.hardware.device import Hardware


def build_objective(
    cfg: "DictConfig", hardware: "Hardware", *, data: "UnpairedFolders | None" = None, report: PrintLine = no_output
) -> Objective:
    """Build the objective with its networks and terms. Initial weights depend on the config's seed alone.

    Args:
        data: training data, for terms that need images before training; None if there are no such terms.
        report: function that receives lines of progress of terms.

    Raises:
        CommandError: a network or the objective rejects its settings, or a network is not in the registry.
    """
    generators = Generators(*(build_network(cfg, "generator", name) for name in ("ab", "ba")))
    discriminators = Discriminators(*(build_network(cfg, "discriminator", name) for name in ("a", "b")))
    enable_recompute(generators, recompute=cfg.trainer.recompute)
    random = torch.Generator().manual_seed(cfg.seed)
    for module in (generators, discriminators):
        initialize(module, generator=random)
        hardware.to_device(module, training=True)
    for_terms: dict[str, Any] = {
        "prepare": hardware.wrap,
        "report": report,
    }
    if data is not None and hasattr(data, "training_images"):  # a data class of the user's own may lack it
        for_terms["training_images"] = data.training_images
    # An objective gets those of these arguments that its constructor names.
    offered = {
        "generators": generators,
        "discriminators": discriminators,
        "adversarial": compose.build(cfg.adversarial),
        "pools": build_pools(cfg),
        "terms": build_terms(cfg, hardware, "terms", offered=for_terms),
        "discriminator_terms": build_terms(cfg, hardware, "discriminator_terms", offered=for_terms),
        "backward": cfg.trainer.backward,
        "degrade": build_degrade(cfg.seed, **compose.arguments_for(cfg.augment, build_degrade)),
        "prepare": hardware.wrap,
    }
    node = without(cfg.objective, "terms", "discriminator_terms")
    if offered["degrade"] is not None and not accepts(node["_target_"], "degrade", "objective"):
        raise CommandError(
            f"augment.robust={cfg.augment.robust:g}: {node['_target_']} has no argument `degrade`, so its generators "
            f"would get clean images only: set augment.robust=0, or add the argument (docs/extending.md)"
        )
    objective: Objective = compose.build_with(node, offered)
    if missing := {"generators", "discriminators"} - objective.modules.keys():
        raise CommandError(
            f"objective: the modules of {type(objective).__name__} lack {' and '.join(sorted(missing))}, which "
            f"checkpoints and samples need: add them, also if no update trains them"
        )
    return objective


def build_network(cfg: "DictConfig", group: Literal["generator", "discriminator"], name: str) -> nn.Module:
    """Build the network `name`, such as generator `ab`, from config node `group` and its sub-node `name`.

    If the config does not set `in_channels` or `out_channels` of the network, they are the numbers of channels of its
    input and output images: `data.channels_a` for domain a, `data.channels_b` for domain b.

    Raises:
        CommandError: the network's class is not registered, so that it could not be rebuilt from a model file; the
            network lacks a required property; or its numbers of channels differ from those of the images.
    """
    node = variant(cfg[group], name)
    channels = {side: int(cfg.data.get(f"channels_{side}", 3)) for side in ("a", "b")}
    needed = {"in_channels": channels[name[0]], **({"out_channels": channels[name[1]]} if name[1:] else {})}
    with seeded(cfg.seed, f"{group} {name}"):  # layers of a plugin may keep the weights of their constructor
        network: nn.Module = compose.build_with(node, {key: value for key, value in needed.items() if key not in node})
    for key, value in needed.items():
        if getattr(network, key, 3) != value:
            raise CommandError(
                f"{group} {name} has {key}={getattr(network, key, 3)}, but the images of its domain have {value} "
                f"channel(s): set {group}.{name}.{key}={value}, or data.channels_a and data.channels_b"
            )
    registry.require_rebuildable(network, kind=group)
    return network


def build_pools(cfg: "DictConfig") -> Pools:
    """Build the image pools of both domains."""
    shared = {"batch_size": cfg.trainer.batch_size, "seed": cfg.seed}
    return Pools(*(compose.build(cfg.pool, purpose=f"pool {side}", **shared) for side in ("a", "b")))


def build_degrade(seed: int, /, *, robust: float) -> Degrade | None:
    """Build the function that degrades the generators' inputs; return None if they stay clean.

    Args:
        seed: the run's seed.
        robust: largest strength of the degradations, from 0 (clean inputs) to 1.
    """
    degrade = RandomDegradations(robust, seed=seed)
    return degrade if robust else None


def build_terms(
    cfg: "DictConfig",
    hardware: "Hardware",
    side: Literal["terms", "discriminator_terms"],
    *,
    offered: Mapping[str, Any],
) -> list[Weighted]:
    """Build the additional losses (terms) of the objective on the device; those of weight 0 are left out.

    Random initial parameters of a term depend only on the seed in the config, `side`, and the term's name.

    Args:
        side: config key below `objective`: `terms` for losses of the generators, or `discriminator_terms`.
        offered: keyword arguments; each is passed to those terms whose constructor has a parameter of this name. The
            argument `pretrained`, a function that loads a pretrained network, is added.
    """
    terms = []
    for name, node in (cfg.objective.get(side) or {}).items():
        if node is None:
            continue
        own, rest = split_program_keys(f"objective.{side}.{name}", node)
        if own["weight"] == 0:
            continue
        with seeded(cfg.seed, f"{side} {name}"):
            pretrained = functools.partial(load_pretrained, key=f"objective.{side}.{name}.path")
            term = compose.build_with(rest, {**offered, "pretrained": pretrained})
        if isinstance(term, nn.Module):
            hardware.to_device(term)
        terms.append(Weighted(str(name), term, own["weight"]))
    return terms


def load_pretrained(name: str, /, *, path: str | None = None, key: str) -> nn.Module:
    """Load a pretrained network for a loss: frozen, in float32.

    Args:
        name: name of the network, see `networks.pretrained`.
        path: file of weights, or a folder of such files; None for the cache and installed packages.
        key: config key of `path`, for error messages.

    Raises:
        CommandError: there is no such network, or its weights are not on this machine.
    """
    network = weights.load(name, path=None if path is None else Path(path), key=key)
    assert network is not None
    return network


def enable_recompute(generators: Generators, *, recompute: bool) -> None:
    """If `recompute` is true, let the generators recompute residual blocks in the backward pass, which saves memory.

    Raises:
        CommandError: `recompute` is true, but a generator has no residual blocks.
    """
    for network in (generators.ab, generators.ba) if recompute else ():
        if not isinstance(network, ResNetGenerator):
            raise CommandError(f"trainer.recompute=true: {type(network).__name__} has no residual blocks: leave it out")
        network.recompute = True


@contextmanager
def seeded(seed: int, purpose: str) -> Iterator[None]:
    """Context manager: seed PyTorch's random generators of all devices; at the end, restore the CPU's generator only.

    Args:
        seed: the run's seed.
        purpose: label of the random stream; streams with different labels are independent.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_for(seed, purpose).integers(2**62)))
        yield
