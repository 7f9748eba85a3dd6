"""Tests that replayed steps equal eager steps, although images and learning rates change between steps.

A capture for CPUs replaces CUDA graphs here: it records every operation with the tensors that it read and wrote, and
computes it again in the same memory. Like CUDA it rejects numbers read by the host and tensors made from Python values.
It does not detect copies from the CPU, since all its tensors are on the CPU.
"""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cyclestyle.assembly.trainer import graphed
from cyclestyle.errors import CommandError, DivergedError
from cyclestyle.hardware.cuda_graphs import REHEARSALS, CudaGraphCapture, Output
from cyclestyle.hardware.device import Hardware
from cyclestyle.objectives.step import Update
from cyclestyle.training.optimization import Optimizers
from cyclestyle.training.periodic import sample
from cyclestyle.training.schedule import LinearDecay
from cyclestyle.training.trainer import Trainer
from cyclestyle.training.updater import Updater
from tests.factories import random_batch, tiny_terms, tiny_trainer

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
STEPS = 12
HOST = (
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::masked_select", "aten::equal"),
    *("aten::_unique2", "aten::lift_fresh"),
)


class Operations(TorchDispatchMode):
    """Records all operations, and the contents of memory before the operations overwrote them."""

    def __init__(self, limit: int | None) -> None:
        super().__init__()
        self.limit = limit  # number of operations after which an error is raised; None for no limit
        self.noted: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.allocated: set[int] = set()  # addresses of storages that the operations created
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.name() in HOST or len(self.noted) == self.limit:
            raise RuntimeError(f"{func.name()} is not permitted\nwhile recording")
        kwargs = kwargs or {}
        for argument, value in [*zip(func._schema.arguments, args, strict=False), *self.named(func, kwargs)]:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for storage in storages(value):
                    if storage.data_ptr() not in self.allocated | self.before.keys():
                        self.before[storage.data_ptr()] = (storage, storage.clone())
        outputs = func(*args, **kwargs)
        inputs = {storage.data_ptr() for storage in storages([args, kwargs])}
        self.allocated |= {storage.data_ptr() for storage in storages(outputs)} - inputs
        self.noted.append((func, args, kwargs, outputs))
        return outputs

    @staticmethod
    def named(func: Any, kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        return ((argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs)

    def undo(self) -> None:
        """Restore overwritten memory, since a capture on a GPU executes nothing."""
        for storage, before in self.before.values():
            storage.copy_(before)

    @torch.no_grad()
    def again(self) -> None:
        """Compute all operations again, from the present contents of their inputs."""
        for func, args, kwargs, outputs in self.noted:
            for old, new in zip(tree_leaves(outputs), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def storages(value: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class OnCpu:
    """Captures operations on the CPU."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit, self.replays = limit, 0

    def rehearse(self, run: Callable[[], Output]) -> Output:
        return run()

    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        operations = Operations(self.limit)
        try:
            with operations:
                outputs = run()
        except RuntimeError as error:
            # Same text as in CUDA's error.
            raise RuntimeError("operation failed due to a previous error during capture") from error
        finally:
            operations.undo()

        def replay() -> None:
            self.replays += 1
            operations.again()

        return replay, outputs


class Recording(Hardware):
    """Hardware of a CPU whose operations can be captured."""

    def __init__(self, **settings: Any) -> None:
        super().__init__("cpu", **{"precision": "fp32"} | settings)
        self.on_cpu = OnCpu()

    def graph_capture(self) -> OnCpu:
        return self.on_cpu


class Scaling(Recording):
    """Hardware of a CPU that scales gradients, as GPUs do in fp16."""

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", enabled=True)


def trainer_of(hardware: Hardware, *, batch_size: int = 1, cuda_graphs: Any = True, **settings: Any) -> Trainer:
    """A trainer whose learning rate falls at every second step."""
    schedule = LinearDecay(constant_epochs=2, decay_epochs=8)
    return tiny_trainer(
        hardware=hardware,
        batch_size=batch_size,
        samples_per_epoch=2 * batch_size,
        schedule=schedule,
        pool=3 * batch_size,
        ema=0.9,
        cuda_graphs=cuda_graphs,
        **settings,
    )


def train(trainer: Trainer, steps: int = STEPS) -> list[dict[str, Tensor]]:
    """Train until step `steps`; return the loss tensors of each step."""
    count = trainer.batch_size
    return [
        trainer.train_step(random_batch(list(range(step * count, (step + 1) * count))))
        for step in range(trainer.step, steps)
    ]


def assert_alike(actual: Trainer, expected: Trainer, losses: list[Any], reference: list[Any], **close: Any) -> None:
    for step, (values, right) in enumerate(zip(losses, reference, strict=True)):
        assert {name: value.item() for name, value in values.items()} == pytest.approx(
            {name: value.item() for name, value in right.items()}, **close
        ), step
    close = {"rtol": close["rel"], "atol": 1e-9}
    torch.testing.assert_close(actual.average.module.state_dict(), expected.average.module.state_dict(), **close)
    torch.testing.assert_close(actual.state_dict(), expected.state_dict(), **close)
    torch.testing.assert_close(actual.rank_state_dict()["pools"], expected.rank_state_dict()["pools"], **close)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("batch_size", "accumulate", "backward"),
    [(1, 1, "split"), (1, 1, "joint"), (2, 1, "split"), (4, 2, "split")],
    ids=str,
)
def test_replayed_steps_equal_eager_steps(batch_size: int, accumulate: int, backward: str) -> None:
    settings: dict[str, Any] = {"batch_size": batch_size, "accumulate": accumulate, "backward": backward}
    recording = Recording()
    replaying, computing = trainer_of(recording, **settings), trainer_of(Recording(), cuda_graphs=False, **settings)
    losses, expected = train(replaying), train(computing)
    assert recording.on_cpu.replays == 2 * (STEPS - REHEARSALS)  # one replay for generators, one for discriminators
    optimizers = replaying.updater.optimizers
    (group,) = optimizers["generators"].param_groups
    rate = computing.updater.optimizers["generators"].param_groups[0]["lr"]
    assert group["lr"].item() == rate < optimizers.base_rates["generators"]
    assert_alike(replaying, computing, losses, expected, rel=1e-12)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (4, 2)], ids=str)
def test_replayed_steps_with_r1_and_trained_loss_terms_equal_eager_steps(batch_size: int, accumulate: int) -> None:
    settings: dict[str, Any] = {"batch_size": batch_size, "accumulate": accumulate}
    recording = Recording()
    replaying = trainer_of(recording, **settings, **tiny_terms())
    computing = trainer_of(Recording(), cuda_graphs=False, **settings, **tiny_terms())
    initial = copy.deepcopy(replaying.objective.state_dict())
    losses, expected = train(replaying, 8), train(computing, 8)
    assert recording.on_cpu.replays == 2 * (8 - REHEARSALS)
    assert {"loss/distance_ab", "loss/r1_a", "loss/calibration_b"} <= losses[-1].keys()
    assert_alike(replaying, computing, losses, expected, rel=1e-12)
    for side, terms in replaying.objective.state_dict().items():
        for name, parameters in terms.items():
            assert not any(torch.equal(value, initial[side][name][key]) for key, value in parameters.items())


def test_replayed_steps_in_bf16_equal_eager_steps() -> None:
    replaying, computing = (
        trainer_of(Recording(precision="bf16"), cuda_graphs=graphs, batch_size=2) for graphs in (True, False)
    )
    # Tolerance: in captured steps the learning rate is a float32 tensor.
    assert_alike(replaying, computing, train(replaying), train(computing), rel=1e-4)


@pytest.mark.usefixtures("double_precision")
def test_resumed_run_is_captured_again_and_equals_uninterrupted_run() -> None:
    through, first, second = (trainer_of(Recording()) for _ in range(3))
    expected = train(through)
    train(first, 6)
    second.load_state_dict(copy.deepcopy(first.state_dict()), [copy.deepcopy(first.rank_state_dict())])
    second.objective.generators.load_state_dict(first.objective.generators.state_dict())
    second.objective.discriminators.load_state_dict(first.objective.discriminators.state_dict())
    second.average.module.load_state_dict(first.average.module.state_dict())
    assert_alike(second, through, train(second), expected[6:], rel=1e-12)


@pytest.mark.usefixtures("double_precision")
def test_error_for_nonfinite_replayed_step_names_that_step() -> None:
    trainer = trainer_of(Recording())
    train(trainer, 8)
    trainer.updater.check_finite(trainer.step)
    next(trainer.objective.generators.parameters()).data.fill_(torch.nan)
    train(trainer, 11)
    with pytest.raises(DivergedError, match="diverged at step 9"):
        trainer.updater.check_finite(trainer.step)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("limit", [10, 130, 500])  # 500 is within a backward pass
def test_failed_graph_capture_falls_back_with_warning(limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    hardware = Recording()
    hardware.on_cpu.limit = limit
    trying, computing = trainer_of(hardware), trainer_of(Recording(), cuda_graphs=False)
    losses = train(trying)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "cuda_graphs" in line]
    assert len(warnings) == 1
    assert "is not permitted); its kernels are launched one by one" in warnings[0]
    assert_alike(trying, computing, losses, train(computing), rel=1e-12)


def another(
    trainer: Trainer,
    *,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    batch_size: int = 1,
    cuda_graphs: Any = False,
    profile: bool = False,
    **settings: Any,
) -> Update | None:
    """Return the function that runs updates of the trainer's objective as CUDA graphs; None if there are no graphs."""
    objective = trainer.objective
    optimizers = Optimizers(**{name: optimizer(each, lr=2e-4) for name, each in objective.parameters.items()})
    updater = Updater(optimizers, trainer.hardware, **settings)
    return graphed(updater, objective, batch_size=batch_size, cuda_graphs=cuda_graphs, profile=profile)


def of_two(trainer: Trainer) -> Trainer:
    trainer.world.size = 2
    return trainer


def recomputing(trainer: Trainer) -> Trainer:
    trainer.objective.generators.ab.recompute = True
    return trainer


@pytest.mark.parametrize(
    ("trainer", "settings", "reason"),
    [
        (lambda: tiny_trainer(), {}, "needs one of NVIDIA's GPUs, and this is CPU, fp32"),
        (
            lambda: of_two(tiny_trainer(hardware=Recording())),
            {"batch_size": 2, "accumulate": 1},
            "is for a run of one process",
        ),
        (lambda: tiny_trainer(hardware=Recording(compile=True)), {}, "does not go with trainer.compile=true"),
        (
            lambda: tiny_trainer(hardware=Recording()),
            {"on_nonfinite": "skip"},
            "does not go with trainer.on_nonfinite=skip",
        ),
        (lambda: recomputing(tiny_trainer(hardware=Recording())), {}, "does not go with trainer.recompute=true"),
        (
            lambda: tiny_trainer(hardware=Recording()),
            {"optimizer": torch.optim.SGD},
            "needs an optimizer that is capturable",
        ),
        (lambda: tiny_trainer(hardware=Scaling()), {}, "does not go with trainer.precision=fp16"),
        (lambda: tiny_trainer(hardware=Recording()), {"profile": True}, "does not go with trainer.profile=true"),
    ],
    ids=["cpu", "processes", "compile", "skip", "recompute", "sgd", "fp16", "profile"],
)
def test_unsupported_setup_is_an_error_with_cuda_graphs_true_but_not_auto(
    trainer: Callable[[], Trainer], settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CommandError, match=f"^trainer.cuda_graphs=true {reason}.*: leave it out$"):
        another(trainer(), cuda_graphs=True, **settings)
    assert another(trainer(), cuda_graphs="auto", **settings) is None
    assert another(trainer(), **settings) is None


@pytest.mark.parametrize(("batch_size", "accumulate", "replays"), [(1, 1, True), (2, 2, True), (2, 1, False)])
def test_auto_setting_uses_cuda_graphs_only_for_micro_batches_of_one_image(
    batch_size: int, accumulate: int, replays: bool
) -> None:
    trainer = tiny_trainer(hardware=Recording(), cuda_graphs="auto", batch_size=batch_size, accumulate=accumulate)
    assert trainer.is_graphed == replays


def test_unused_trainer_is_freed_without_garbage_collection() -> None:
    gc.disable()  # the trainer must be freed by reference counts alone
    try:
        trainer = trainer_of(Recording())
        train(trainer, 5)
        seen = weakref.ref(trainer)
        del trainer
        assert seen() is None
    finally:
        gc.enable()


class OnGpu(Hardware):
    """Hardware of a GPU; its captures always fail unless `records` is True."""

    def __init__(self, *, records: bool, precision: Any) -> None:
        super().__init__("cuda", precision=precision, deterministic=True)
        self.records = records

    def graph_capture(self) -> CudaGraphCapture:
        return CudaGraphCapture(self.device) if self.records else Rehearsing(self.device)


class Rehearsing(CudaGraphCapture):
    def record(self, run: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        raise RuntimeError("capture is disabled")


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("batch_size", "accumulate", "backward"), [(1, 1, "split"), (1, 1, "joint"), (2, 2, "split")])
def test_steps_replayed_on_gpu_equal_eager_steps(
    precision: str, batch_size: int, accumulate: int, backward: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"batch_size": batch_size, "accumulate": accumulate, "backward": backward}
    switches = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        losses = {}
        for records in (True, False):
            trainer = trainer_of(OnGpu(records=records, precision=precision), cuda_graphs="auto", **settings)
            losses[trainer] = train(trainer, 6)
            sample(trainer, *random_batch([0, 1])[:2])
            trainer.updater.check_finite(trainer.step)
            losses[trainer] += train(trainer)
            assert ("capture is disabled" in capsys.readouterr().err) is not records
        (replaying, computing), (actual, expected) = losses, losses.values()
        assert_alike(replaying, computing, actual, expected, rel=1e-5)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = switches
