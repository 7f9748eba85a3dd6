"""Builds the trainer of a run: optimizers, schedule, moving average, and CUDA graphs around the updates."""

import inspect
import pkgutil
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from cyclestyle.cli import compose
from cyclestyle.cli.nodes import variant
from cyclestyle.hardware.cuda_graphs import GraphedCalls, choose_capture
from cyclestyle.objectives.step import Objective, Update
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import Updater

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from cyclestyle.hardware.device import Hardware


def build_trainer(cfg: "DictConfig", objective: Objective, hardware: "Hardware", *, samples_per_epoch: int) -> Trainer:
    """Build the trainer at step 0.

    Raises:
        CommandError: an optimizer, the schedule or another part of the trainer rejects its settings.
    """
    optimizers = Optimizers(
        **{name: build_optimizer(cfg, hardware, name, list(each)) for name, each in objective.parameters.items()}
    )
    updater = Updater(optimizers, hardware, **compose.arguments_for(cfg.trainer, Updater))
    return Trainer(
        objective,
        updater,
        schedule=compose.build(cfg.schedule),
        samples_per_epoch=samples_per_epoch,
        average=compose.build(cfg.ema, generators=objective.modules["generators"]),
        hardware=hardware,
        seed=cfg.seed,
        update=graphed(updater, objective, **compose.arguments_for(cfg.trainer, graphed)),
        **compose.arguments_for(cfg.trainer, Trainer),
    )


def build_optimizer(
    cfg: "DictConfig", hardware: "Hardware", name: str, parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """Build the optimizer `name`, such as `generators`; use its fused version if its class and the device have one."""
    node = variant(cfg.optimizer, name)
    can_fuse = "fused" in inspect.signature(pkgutil.resolve_name(node._target_)).parameters
    fused = {"fused": True} if can_fuse and hardware.device.type in ("cuda", "cpu") else {}
    optimizer: torch.optim.Optimizer = compose.build(node, params=parameters, **fused)
    return optimizer


def graphed(
    updater: Updater,
    objective: Objective,
    /,
    *,
    batch_size: int,
    cuda_graphs: bool | Literal["auto"] = False,
    profile: bool = False,
) -> Update | None:
    """Wrap the updater so that its updates run as CUDA graphs; return None if they run eagerly.

    Args:
        batch_size: number of image pairs per step.
        cuda_graphs: True requires graphs, which reserve memory and need an NVIDIA GPU; `auto` uses them if they are
            possible and faster.
        profile: whether steps are profiled. If so, graphs are impossible: the profiler cannot attribute the kernels of
            a graph.

    Raises:
        CommandError: `cuda_graphs` is True, although the device or another option excludes graphs.
    """
    if cuda_graphs is False:
        return None
    hardware = updater.hardware
    capture = hardware.graph_capture()
    obstacles = {
        "does not go with trainer.profile=true": profile,
        f"needs one of NVIDIA's GPUs, and this is {hardware}": capture is None,
        "is for a run of one process": hardware.world.size > 1,
        "does not go with trainer.compile=true": hardware.compile,
        "does not go with trainer.precision=fp16, whose scaling asks the device for numbers": (
            updater.scaler.is_enabled()
        ),
        "does not go with trainer.on_nonfinite=skip, which asks the device for numbers": updater.skips_nonfinite,
        "does not go with trainer.recompute=true": any(
            getattr(module, "recompute", False) for module in objective.modules["generators"].modules()
        ),
        "needs an optimizer that is capturable": not updater.optimizers.are_capturable,
    }
    # With more than one image per micro-batch, kernels take longer than their launches, so graphs save no time.
    chosen = choose_capture(cuda_graphs, capture, obstacles, pays=batch_size == updater.accumulate)
    if chosen is None:
        return None
    updater.optimizers.make_capturable(hardware.device)
    return GraphedCalls(chosen, updater)
