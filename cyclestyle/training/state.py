"""Restore a trainer from a checkpoint, initialise it from another run, or take a snapshot of the trainer's networks."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cyclestyle.errors import CheckpointError
from cyclestyle.training.messages import PrintLine, no_output

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cyclestyle.checkpoints.model import Model
    from cyclestyle.objectives.step import Objective
    from cyclestyle.run.folder import ResumePoint
    from cyclestyle.training.trainer import Trainer

_GROUPS = ("generators", "discriminators")  # modules whose architectures a model file describes


def restore_or_init(
    trainer: "Trainer",
    domains: tuple[str, str],
    resumed: "ResumePoint | None",
    *,
    init: str | None,
    report: PrintLine = no_output,
) -> None:
    """Load the checkpoint of a resumed run into `trainer`; for a new run, load the weights at `init` unless it is None.

    Args:
        domains: names of domains a and b.
        resumed: state to resume from; None for a new run.
        init: path of a run folder, a checkpoint folder, a model file or a folder with exported files, see
            `model_files.initial.read`; ignored on resume.
        report: function that prints a line. The lines name the networks that were loaded from `init`, and those that
            keep their random weights.

    Raises:
        CheckpointError: the weights belong to another architecture, or `init` was trained on the same domains in the
            other order.
    """
    from cyclestyle.model_files import initial

    objective = trainer.objective
    if resumed is not None:
        checkpoint = resumed.checkpoint
        load_networks(checkpoint.model, objective)
        trainer.load_state_dict(checkpoint.training, checkpoint.ranks)
        restore_average(trainer, checkpoint.model)
    elif init is not None:
        found = initial.read(Path(init), domains)
        model = found.model
        check_architectures(model, objective, init=init, ignored=() if found.states_dropout else ("dropout",))
        if found.states_domains and model.domains == domains[::-1] and domains != domains[::-1]:
            raise CheckpointError(
                f"init={init}: it was trained on {model.domains[0]} and {model.domains[1]}, here they are the other "
                f"way round: swap data.domain_a and data.domain_b, and their folders"
            )
        missing = load_present_networks(model, objective)
        if trainer.average is not None:
            trainer.average.module.load_state_dict(objective.modules["generators"].state_dict())
        for line in init_report(objective, missing, notes=found.notes):
            report(f"init={init}: {line}")


def check_architectures(model: "Model", objective: "Objective", *, init: str, ignored: Collection[str] = ()) -> None:
    """Raise a CheckpointError if a network in `model` and the same network of `objective` differ in architecture.

    Networks that `model` does not hold are not checked.

    Args:
        init: path that `model` was read from, for the error message.
        ignored: names of architecture arguments that may differ, such as `dropout`.
    """
    from cyclestyle.networks import registry

    stored_groups = {"generator": model.generators, "discriminator": model.discriminators}
    for group, present in architectures(objective).items():
        for side, configured in present.items():
            if side not in stored_groups[group] or not model.weights_under(f"{group}s.{side}."):
                continue
            try:
                stored = registry.with_defaults(stored_groups[group][side])
            except CheckpointError as error:
                raise CheckpointError(f"init={init}: its {group} {side}: {error}") from None
            keys = [key for key in {**configured, **stored} if stored.get(key) != configured.get(key)]
            if keys := ["name"] if "name" in keys else [key for key in keys if key not in ignored]:
                are_equal = len(present) == len(stored_groups[group]) and _same(stored_groups[group].values())
                name = group if are_equal else f"{group} {side}"
                raise CheckpointError(
                    f"init={init}: its {name} is {_differences(stored, configured, keys)}: {_remedy(group, side, keys)}"
                )


def load_present_networks(model: "Model", objective: "Objective") -> list[str]:
    """Load the networks that `model` holds into `objective`; the others keep their weights.

    Returns:
        Names of the networks that `model` does not hold, such as `generator ba`.

    Raises:
        CheckpointError: `model` holds none of the networks, or holds one whose weights have other names or shapes.
    """
    missing: list[str] = []
    loaded: dict[str, dict[str, Tensor]] = {}
    for name, module in objective.modules.items():
        absent = _absent_sides(model, name, module)
        missing += [f"{name.removesuffix('s')} {side}" for side in absent]
        weights = _without(model.weights_under(f"{name}."), absent)
        if not weights and name not in _GROUPS:
            missing.append(name)
            continue
        _check_weights(model, name, expected=_without(module.state_dict(), absent), found=weights)
        loaded[name] = weights
    if not any(loaded.values()):
        raise CheckpointError(f"{model.path} holds no generator and no discriminator that this run could start from")
    for name, state in loaded.items():
        module = objective.modules[name]
        module.load_state_dict({**module.state_dict(), **state})
    return missing


def init_report(objective: "Objective", missing: Sequence[str], *, notes: Sequence[str]) -> list[str]:
    """Describe which networks have the weights loaded from `init`: return one or two lines for the user.

    The first line names the loaded networks. If other networks or loss terms keep their random weights, a second line
    names these.

    Args:
        missing: names of the networks that were not loaded, from `load_present_networks`.
        notes: remarks about the loaded weights, for the first line.
    """
    every = [f"{group} {side}" for group, sides in architectures(objective).items() for side in sides]
    loaded = [name for name in every if name not in missing]
    remarks = f" ({'; '.join(notes)})" if notes else ""
    terms = [
        f"objective.{side}.{name}"
        for side, state in objective.state_dict().items()
        if isinstance(state, Mapping)
        for name in state
    ]
    fresh = [*missing, *terms]
    first = f"starts with its {', '.join(loaded)}{remarks}"
    return [first, f"not in it, with fresh random weights: {', '.join(fresh)}"] if fresh else [first]


def architectures(objective: "Objective") -> dict[str, dict[str, dict[str, Any]]]:
    """Return the architectures of all networks.

    Returns:
        Group (`generator` or `discriminator`) -> network (such as `ab` or `a`) -> class name and constructor arguments.
    """
    generators, discriminators = (cast(Any, objective.modules[name]) for name in ("generators", "discriminators"))
    return {
        "generator": {"ab": dict(generators.ab.architecture), "ba": dict(generators.ba.architecture)},
        "discriminator": {"a": dict(discriminators.a.architecture), "b": dict(discriminators.b.architecture)},
    }


def load_networks(model: "Model", objective: "Objective") -> None:
    """Load the weights of `model` into the networks of `objective`.

    Raises:
        CheckpointError: `model` lacks weights of the networks, has additional ones, or has weights of another shape.
    """
    for name, module in objective.modules.items():
        _check_weights(model, name, expected=module.state_dict(), found=model.weights_under(f"{name}."))
    for name, module in objective.modules.items():
        module.load_state_dict(model.weights_under(f"{name}."))


def restore_average(trainer: "Trainer", model: "Model") -> None:
    """Restore the trainer's moving average of the generators from `model`; do nothing if the trainer has none.

    If `model` has no moving average, the weights of its generators are used instead.
    """
    if trainer.average is None:
        return
    trainer.average.module.load_state_dict(model.weights_under("ema.") or model.weights_under("generators."))


def snapshot_model(trainer: "Trainer", domains: tuple[str, str]) -> "Model":
    """Return the trainer's networks at the current step as a `Model`; it shares tensors with the networks."""
    from cyclestyle.checkpoints.model import Model
    from cyclestyle.objectives.sees import networks_seen

    objective = trainer.objective
    modules = dict(objective.modules)
    if trainer.average is not None:
        modules["ema"] = trainer.average.module
    return Model(
        tensors={
            f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
        },
        generators=architectures(objective)["generator"],
        discriminators=architectures(objective)["discriminator"],
        domains=domains,
        step=trainer.step,
        path=Path(),
        losses_see=tuple(networks_seen(objective)),
    )


def _absent_sides(model: "Model", name: str, module: "nn.Module") -> list[str]:
    """Return the names of the networks in `module` that `model` does not hold, such as `ba`.

    Args:
        name: name of `module` in the objective; the result is empty unless it is `generators` or `discriminators`.
        module: module whose children are the networks.
    """
    if name not in _GROUPS:
        return []
    stored = model.generators if name == "generators" else model.discriminators
    sides = [side for side, _ in module.named_children()]
    return [side for side in sides if side not in stored or not model.weights_under(f"{name}.{side}.")]


def _without(weights: Mapping[str, "Tensor"], sides: Sequence[str]) -> dict[str, "Tensor"]:
    excluded = tuple(f"{side}." for side in sides)
    return {key: value for key, value in weights.items() if not key.startswith(excluded)}


def _check_weights(
    model: "Model", name: str, *, expected: Mapping[str, "Tensor"], found: Mapping[str, "Tensor"]
) -> None:
    """Raise a CheckpointError unless the weights of module `name` in `model` have the expected names and shapes."""
    from cyclestyle.checkpoints.model import state_dict_mismatch

    if mismatches := state_dict_mismatch(expected, found):
        fault = f"{model.path}: its weights {name}.* do not fit the architecture that it names"
        raise CheckpointError("\n  ".join([fault, *mismatches]))


def _same(architectures: Iterable[Mapping[str, Any]]) -> bool:
    first, *rest = architectures
    return all(other == first for other in rest)


def _differences(stored: Mapping[str, object], configured: Mapping[str, object], keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={stored.get(key)} where the config has {configured.get(key)}" for key in keys)


def _remedy(group: str, side: str, keys: Sequence[str]) -> str:
    """Return advice on how to make the config match the stored architecture of a network.

    Args:
        group: `generator` or `discriminator`.
        side: the network, such as `ab` or `a`.
        keys: architecture arguments that differ, or `name` for another class.
    """
    if "name" in keys:
        return f"choose the same {group} in the config, or another init="
    settings = [f"{group}.{key}" for key in keys if key not in ("in_channels", "out_channels")]
    if "in_channels" in keys:
        settings.append(f"data.channels_{side[0]}")
    if "out_channels" in keys:
        settings.append(f"data.channels_{side[1]}")
    return f"set {' and '.join(settings)} to its values, or choose another init="
