"""Tests of checked values, of arguments that a constructor rejects, and of components of the wrong kind."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from cyclestyle.cli import compose
from cyclestyle.errors import CommandError

HERE = __name__
WEIGHT = "expected a finite number, 0 or more"


class Strict:
    """A component whose constructor checks its argument."""

    def __init__(self, size: float = 1.0, *, depth: int = 1) -> None:
        if size < 0:
            raise ValueError(f"size {size} is negative")
        if depth > 1:
            self.dig(depth)

    def dig(self, depth: int) -> None:
        raise ValueError("a mistake in a method")


@dataclasses.dataclass
class Record:
    """A component whose check runs after its constructor."""

    size: float = 1.0

    def __post_init__(self) -> None:
        raise TypeError(f"size {self.size} is of the wrong type")


def strict(size: float = 1.0) -> Strict:
    """Build a component by a function."""
    return Strict(size)


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(CommandError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def checked(*arguments: str) -> Any:
    cfg = compose.compose("train", arguments)
    compose.check(cfg)
    return cfg


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("optimizer.lr=-1", WEIGHT),
        ("optimizer.lr=nan", WEIGHT),
        ("optimizer.lr=inf", WEIGHT),
        ("optimizer.lr=1e+39", WEIGHT),
        ("optimizer.generators.lr=-1", WEIGHT),
        ("optimizer.betas=[0.5, 1]", "expected a number from 0 to less than 1"),
        ("optimizer.betas=[nan, 0.9]", "expected a number from 0 to less than 1"),
        ("optimizer.eps=inf", "expected a finite number"),
        ("objective.cycle_a=-1", WEIGHT),
        ("objective.identity=nan", WEIGHT),
        ("ema.decay=nan", "expected a finite number"),
        ("generator.ba.dropout=nan", "expected a finite number"),
        ("seed=-1", "expected a number from 0 to 9223372036854775807"),
        ("seed=9223372036854775808", "expected a number from 0 to 9223372036854775807"),
        (f"seed={10**50}", "expected a number from 0 to 9223372036854775807"),
    ],
)
def test_number_out_of_range_is_rejected(typed: str, expected: str) -> None:
    key, _, value = typed.partition("=")
    shown = value if len(value) <= 40 else f"{value[:40]}..."
    assert message_of(lambda: checked(typed)) == f"{key}={shown}: {expected}"


@pytest.mark.parametrize("typed", ["optimizer.lr=0", "optimizer.lr=1e30", "seed=9223372036854775807", "ema.decay=0"])
def test_number_at_the_end_of_its_range_is_accepted(typed: str) -> None:
    checked(typed)


def test_numbers_of_custom_component_are_not_checked() -> None:
    checked(f"adversarial._target_={HERE}.Strict", "adversarial.size=inf")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["optimizer.eps=-1"], "optimizer.eps=-1: torch.optim.Adam rejects its arguments: Invalid epsilon value: -1"),
        (
            ["optimizer._target_=torch.optim.AdamW", "optimizer.discriminators.weight_decay=-3"],
            "optimizer.discriminators.weight_decay=-3: torch.optim.AdamW rejects its arguments: "
            "Invalid weight_decay value: -3",
        ),
    ],
)
def test_arguments_rejected_by_an_optimizer_are_named(typed: list[str], message: str) -> None:
    node = compose.variant(checked(*typed).optimizer, "discriminators")
    assert message_of(lambda: compose.build(node, params=[torch.zeros(1, requires_grad=True)])) == message


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("Strict", "size -2.5 is negative (test_values.py:"),
        ("strict", "size -2.5 is negative (test_values.py:"),
        ("Record", "size -2.5 is of the wrong type (test_values.py:"),
    ],
)
def test_error_of_user_constructor_names_its_arguments_and_line(target: str, reason: str) -> None:
    cfg = checked(f"logger.mine._target_={HERE}.{target}", "logger.mine.size=-2.5")
    message = message_of(lambda: compose.build(cfg.logger.mine))
    assert message.startswith(f"logger.mine.size=-2.5: {HERE}.{target} rejects its arguments: {reason}")


def test_missing_argument_error_names_the_component() -> None:
    cfg = checked("logger.mine._target_=cyclestyle.monitor.MetricsFile")
    assert message_of(lambda: compose.build(cfg.logger.mine)).startswith(
        "logger.mine: cyclestyle.monitor.MetricsFile rejects its arguments: "
    )


def test_error_in_a_method_keeps_its_traceback() -> None:
    cfg = checked(f"logger.mine._target_={HERE}.Strict", "logger.mine.depth=2")
    with pytest.raises(ValueError, match="a mistake in a method"):
        compose.build(cfg.logger.mine)


@pytest.mark.parametrize(
    ("path", "target", "reason"),
    [
        ("adversarial", "torch.nn.MSELoss", "adversarial needs the methods real, fake, generator; missing: real, "),
        (
            "adversarial",
            "cyclestyle.networks.PixelDiscriminator",
            "adversarial needs the methods real, fake, generator",
        ),
        ("data", "torch.nn.Identity", "data needs the methods inspect, draws, probes; missing: inspect, draws, probes"),
        ("generator", f"{HERE}.Strict", "generator needs the methods parameters, state_dict; missing: parameters, "),
        ("logger.console", f"{HERE}.Strict", "logger needs the methods on_step, metrics, pictures, close; missing: on"),
    ],
)
def test_component_that_lacks_required_methods_is_rejected(path: str, target: str, reason: str) -> None:
    cfg = checked(f"{path}._target_={target}")
    node = cfg.logger.console if path == "logger.console" else cfg[path]
    assert message_of(lambda: compose.build(node)).startswith(f"{path}._target_={target}: {reason}")


@pytest.mark.parametrize("path", ["objective.terms", "objective.discriminator_terms", "tasks"])
def test_loss_term_or_task_without_call_method_is_rejected(path: str) -> None:
    cfg = OmegaConf.create({})
    OmegaConf.update(cfg, f"{path}.mine", {"_target_": f"{HERE}.Strict"}, force_add=True)
    node = OmegaConf.select(cfg, f"{path}.mine")
    assert message_of(lambda: compose.build(node)).startswith(
        f"{path}.mine._target_={HERE}.Strict: {path} needs the method __call__; missing: __call__"
    )


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (
            "torch.optim.LBFGS",
            "cannot be used: its method step needs arguments (missing a required argument: 'closure')",
        ),
        (
            "torch.nn.Identity",
            "optimizer needs the methods step, zero_grad, state_dict, load_state_dict; missing: step",
        ),
    ],
)
def test_optimizer_that_the_training_loop_cannot_use_is_rejected(target: str, reason: str) -> None:
    cfg = checked(f"optimizer._target_={target}")
    message = message_of(lambda: compose.build(cfg.optimizer, params=[torch.zeros(1, requires_grad=True)]))
    assert reason in message
