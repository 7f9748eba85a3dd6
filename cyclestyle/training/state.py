"""Restore a trainer from a checkpoint, initialise it from another run, or take a snapshot of the trainer's networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cyclestyle.errors import CheckpointError

if TYPE_CHECKING:
    from cyclestyle.checkpoints.model import Model
    from cyclestyle.objectives.step import Objective
    from cyclestyle.run.folder import ResumePoint
    from cyclestyle.training.trainer import Trainer


def restore_or_init(
    trainer: "Trainer", domains: tuple[str, str], resumed: "ResumePoint | None", *, init: str | None
) -> None:
    """Load the checkpoint of a resumed run into `trainer`; for a new run, load the weights at `init` unless it is None.

    Args:
        domains: names of domains a and b.
        resumed: state to resume from; None for a new run.
        init: path of a run folder, a checkpoint folder or a model file; ignored on resume.

    Raises:
        CheckpointError: the weights belong to another architecture, or `init` was trained on the same domains in the
            other order.
    """
    from cyclestyle.checkpoints.directory import read_model

    objective = trainer.objective
    if resumed is not None:
        checkpoint = resumed.checkpoint
        load_networks(checkpoint.model, objective)
        trainer.load_state_dict(checkpoint.training, checkpoint.ranks)
        restore_average(trainer, checkpoint.model)
    elif init is not None:
        model = read_model(Path(init))
        check_architectures(model, objective, init=init)
        if model.domains == domains[::-1] and domains != domains[::-1]:
            raise CheckpointError(
                f"init={init}: it was trained on {model.domains[0]} and {model.domains[1]}, here they are the other "
                f"way round: swap data.domain_a and data.domain_b, and their folders"
            )
        load_networks(model, objective)
        if trainer.average is not None:
            trainer.average.module.load_state_dict(model.weights_under("generators."))


def check_architectures(model: "Model", objective: "Objective", *, init: str) -> None:
    """Raise a CheckpointError unless each network of `model`, read from `init`, has the architecture in `objective`."""
    from cyclestyle.networks import registry

    stored_groups = {"generator": model.generators, "discriminator": model.discriminators}
    for group, present in architectures(objective).items():
        for side, configured in present.items():
            if side not in stored_groups[group]:
                raise CheckpointError(
                    f"init={init}: it has no {group} {side}: give a run folder or a checkpoint, exported files hold "
                    f"one generator only"
                )
            stored = registry.with_defaults(stored_groups[group][side])
            if stored != configured:
                first, second = stored_groups[group].values()
                name = group if first == second else f"{group} {side}"
                raise CheckpointError(f"init={init}: its {name} is {_differences(stored, configured)}")


def architectures(objective: "Objective") -> dict[str, dict[str, dict[str, Any]]]:
    """Return the architectures of all networks: group (`generator`, `discriminator`) -> side (`ab`, `a`) -> values."""
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
    from cyclestyle.checkpoints.model import state_dict_mismatch

    modules = {f"{name}.": module for name, module in objective.modules.items()}
    for prefix, module in modules.items():
        if mismatches := state_dict_mismatch(module.state_dict(), model.weights_under(prefix)):
            fault = f"{model.path}: its weights {prefix}* do not fit the architecture that it names"
            raise CheckpointError("\n  ".join([fault, *mismatches]))
    for prefix, module in modules.items():
        module.load_state_dict(model.weights_under(prefix))


def restore_average(trainer: "Trainer", model: "Model") -> None:
    """Restore the trainer's moving average from `model`; if `model` holds no average, copy its generators instead."""
    if trainer.average is None:
        return
    trainer.average.module.load_state_dict(model.weights_under("ema.") or model.weights_under("generators."))


def snapshot_model(trainer: "Trainer", domains: tuple[str, str]) -> "Model":
    """Return the trainer's networks at the current step as a `Model`; it shares tensors with the networks."""
    from cyclestyle.checkpoints.model import Model

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
    )


def _differences(stored: Mapping[str, object], configured: Mapping[str, object]) -> str:
    keys = [key for key in {**configured, **stored} if stored.get(key) != configured.get(key)]
    return ", ".join(f"{key}={stored.get(key)} where the config has {configured.get(key)}" for key in keys)
