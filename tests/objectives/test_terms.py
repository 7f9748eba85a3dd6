"""Terms of the CycleGAN objective: losses and gradients compared with plain autograd, their state, and bad terms."""

import copy
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.hardware.device import Hardware
from cyclestyle.networks import PatchDiscriminator, TextureDiscriminator
from cyclestyle.networks.pixelgan import PixelDiscriminator
from cyclestyle.objectives.cyclegan import CycleGAN
from cyclestyle.objectives.terms import Direction, Terms, Weighted
from tests.factories import (
    Calibration,
    GradientPenalty,
    LayerDistance,
    random_batch,
    tiny_objective,
    tiny_terms,
    tiny_trainer,
)

CPU = torch.device("cpu")
OFF = {"cycle_a": 0.0, "cycle_b": 0.0, "identity": 0.0}


class Brightness:
    """Plain callable: squared difference in brightness between photo and translation."""

    def __call__(self, direction: Direction) -> Tensor:
        means = (image.mean(dim=(1, 2, 3)) for image in (direction.fake, direction.source))
        return (next(means) - next(means)).square().mean()


class Return:
    """Mean squared distance of photo and reconstruction."""

    needs = ("reconstructed",)

    def __call__(self, direction: Direction) -> Tensor:
        assert direction.reconstructed is not None
        return (direction.reconstructed - direction.source).square().mean()


class Same:
    """Mean squared distance of a target image and its identity image."""

    needs = ("identity",)

    def __call__(self, direction: Direction) -> Tensor:
        assert direction.identity is not None
        return (direction.identity - direction.target).square().mean()


def images(count: int = 2, size: int = 16) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    a, b = (torch.rand(count, 3, size, size, generator=random, dtype=torch.float64) * 2 - 1 for _ in "ab")
    return a, b


def all_terms() -> list[Weighted]:
    return [
        Weighted("same", Same(), 3.0),
        Weighted("light", Brightness(), 0.25),
        Weighted("distance", LayerDistance().double(), 2.0),
        Weighted("return", Return(), 1.5),
    ]


def gradients(objective: CycleGAN) -> tuple[dict[str, float], list[Tensor]]:
    """Return the losses of the generators, and the gradients of all parameters of their update."""
    a, b = images()
    values: dict[str, float] = {}
    for part in objective.generator_parts:
        losses, _, _ = part(a, b)
        sum(losses.values()).backward()
        values |= {name: loss.item() for name, loss in losses.items()}
    return values, [parameter.grad for parameter in objective.parameters["generators"]]


def activations(generator: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    down = generator.down(generator.stem(x))
    return down, generator.trunk[0](down)


def by_hand(objective: CycleGAN, head: nn.Module) -> tuple[dict[str, float], list[Tensor]]:
    """Return what `gradients` does, from formulas of the losses and `torch.autograd.grad`."""
    a, b = images()
    losses: dict[str, Tensor] = {}
    for name, generator, back, discriminator, source, target in (
        ("ab", objective.generators.ab, objective.generators.ba, objective.discriminators.b, a, b),
        ("ba", objective.generators.ba, objective.generators.ab, objective.discriminators.a, b, a),
    ):
        fake = generator(source)
        losses[f"loss/gan_{name}"] = (discriminator(fake) - 1).square().mean()
        pairs = zip(activations(generator, fake), activations(generator, source), strict=True)
        losses[f"loss/distance_{name}"] = 2 * sum((head(x).tanh() - head(y).tanh()).square().mean() for x, y in pairs)
        light = fake.mean(dim=(1, 2, 3)) - source.mean(dim=(1, 2, 3))
        losses[f"loss/light_{name}"] = 0.25 * light.square().mean()
        losses[f"loss/return_{name}"] = 1.5 * (back(fake) - source).square().mean()
        losses[f"loss/same_{name}"] = 3 * (generator(target) - target).square().mean()
    parameters = [*objective.generators.parameters(), *head.parameters()]
    values = {name: loss.item() for name, loss in losses.items()}
    return values, list(torch.autograd.grad(sum(losses.values()), parameters))


def assert_near(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Compare gradients; those of a bias before an instance norm are rounding noise."""
    expected = list(expected)
    largest = max(gradient.abs().max().item() for gradient in expected)
    for index, (value, right) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(value, right, rtol=1e-7, atol=1e-12 * largest, msg=lambda s, i=index: f"{i}: {s}")


@pytest.mark.parametrize("backward", ["split", "joint"])
def test_losses_and_gradients_of_terms_match_plain_autograd(backward: str) -> None:
    objective = tiny_objective(double=True, terms=all_terms(), backward=backward, **OFF)
    expected_losses, expected = by_hand(objective, objective.terms.modules["distance"].head)
    losses, actual = gradients(objective)
    assert losses == pytest.approx(expected_losses, rel=1e-10)
    assert losses.keys() == expected_losses.keys()
    assert_near(actual, expected)
    assert len(objective.generator_parts) == (2 if backward == "split" else 1)


def test_loss_terms_are_added_to_cycle_and_identity_losses() -> None:
    plain, extended = tiny_objective(double=True), tiny_objective(double=True, terms=all_terms())
    (without, base), (with_terms, total) = gradients(plain), gradients(extended)
    only_terms, added = by_hand(extended, extended.terms.modules["distance"].head)
    shared = {name: value for name, value in only_terms.items() if "gan" in name}
    assert with_terms == pytest.approx(only_terms | without, rel=1e-10)
    assert shared == pytest.approx({name: without[name] for name in shared}, rel=1e-10)
    _, counted_twice = gradients(tiny_objective(double=True, **OFF))  # the adversarial losses, which are in both
    sums = [x + y - z for x, y, z in zip(base, added[: len(base)], counted_twice, strict=True)]
    assert_near(total, [*sums, *added[len(base) :]])


def counted(objective: CycleGAN) -> dict[str, int]:
    """Return how many images each submodule receives in the generators' part of a step."""
    counts: dict[str, int] = {}

    def count(name: str, module: nn.Module) -> None:
        counts[name] = 0

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[name] += len(inputs[0])

        module.register_forward_pre_hook(add)

    for side in ("ab", "ba"):
        for layer in ("stem", "trunk.0", "trunk.1", "head"):
            count(f"{side}.{layer}", objective.generators.get_submodule(f"{side}.{layer}"))
    a, b = images(1)
    for part in objective.generator_parts:
        part(a, b)
    return counts


@pytest.mark.parametrize(
    ("term", "stem", "head", "parts"),
    [
        (Brightness(), 1, 1, 1),
        (Return(), 2, 2, 2),
        (Same(), 2, 2, 1),
        (LayerDistance().double(), 2, 1, 1),  # activations of the translation need no whole pass
    ],
    ids=["none", "reconstructed", "identity", "layers"],
)
def test_only_images_that_a_term_needs_are_computed(term: Any, stem: int, head: int, parts: int) -> None:
    objective = tiny_objective(double=True, terms=[Weighted("term", term)], **OFF)
    assert len(objective.generator_parts) == parts
    counts = counted(objective)
    for side in ("ab", "ba"):
        assert (counts[f"{side}.stem"], counts[f"{side}.head"]) == (stem, head)
    if head < stem:
        assert (counts["ab.trunk.0"], counts["ab.trunk.1"]) == (2, 1)  # trunk.0 is the last requested layer


def test_inputs_that_no_loss_term_needs_are_none_or_empty() -> None:
    directions: list[Direction] = []

    def look(direction: Direction) -> Tensor:
        directions.append(direction)
        return direction.fake.mean()

    objective = tiny_objective(double=True, terms=[Weighted("look", look)], backward="joint", **OFF)
    a, b = images()
    (part,) = objective.generator_parts
    part(a, b)
    ab, ba = directions
    assert (ab.name, ba.name) == ("ab", "ba")
    assert all(torch.equal(*pair) for pair in ((ab.source, a), (ab.target, b), (ba.source, b), (ba.target, a)))
    for direction in directions:
        assert (direction.reconstructed, direction.identity) == (None, None)
        assert direction.source_features == direction.fake_features == {}


@pytest.mark.usefixtures("double_precision")
def test_micro_batches_and_whole_batch_give_equal_losses_with_terms() -> None:
    trainers = [tiny_trainer(batch_size=4, pool=9, accumulate=count, **tiny_terms()) for count in (1, 2)]
    for step in range(3):
        batch = random_batch([4 * step + index for index in range(4)], size=16)
        whole, halves = ({k: v.item() for k, v in trainer.train_step(batch).items()} for trainer in trainers)
        assert halves == pytest.approx(whole, rel=1e-8)
        assert {"loss/distance_ab", "loss/distance_ba", "loss/r1_a", "loss/calibration_b"} <= whole.keys()
    whole_state, halves_state = (trainer.objective.state_dict() for trainer in trainers)
    torch.testing.assert_close(halves_state, whole_state, rtol=1e-7, atol=1e-10)


def test_loss_terms_are_called_in_order_of_their_names() -> None:
    calls: list[str] = []

    def term(name: str) -> Weighted:
        def loss(direction: Direction) -> Tensor:
            calls.append(f"{name} {direction.name}")
            return direction.fake.mean()

        return Weighted(name, loss)

    for names in ("bca", "cab"):
        calls.clear()
        objective = tiny_objective(double=True, terms=[term(name) for name in names], backward="joint")
        objective.generator_parts[0](*images())
        assert calls == ["a ab", "b ab", "c ab", "a ba", "b ba", "c ba"]


def test_loss_term_of_weight_zero_is_neither_computed_nor_saved() -> None:
    def fail(*_: Any) -> Tensor:
        raise AssertionError("a term of weight 0 was called")

    off = [Weighted("off", fail, 0.0), Weighted("distance", LayerDistance(), 0)]
    objective = tiny_objective(
        double=True, terms=off, discriminator_terms=[Weighted("calibration", Calibration(), 0.0)]
    )
    losses, _ = gradients(objective)
    assert not any("off" in name or "distance" in name for name in losses)
    a, b = images()
    assert objective.discriminator_losses(a, b, a, b).losses.keys() == {"loss/discriminator_a", "loss/discriminator_b"}
    plain = tiny_objective()
    for name, parameters in objective.parameters.items():
        assert len(parameters) == len(plain.parameters[name])
    assert objective.state_dict() == {}


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, -math.inf])
def test_weight_that_is_negative_or_not_finite_is_rejected(weight: float) -> None:
    for side, term in (("terms", Brightness()), ("discriminator_terms", GradientPenalty())):
        with pytest.raises(CommandError, match=rf"^objective\.{side}\.mine\.weight={weight:g}: .* 0 \(off\) or more$"):
            tiny_objective(**{side: [Weighted("mine", term, weight)]})
    for name in ("cycle_a", "cycle_b", "identity"):
        with pytest.raises(CommandError, match=f"^objective.{name}={weight:g}: "):
            tiny_objective(**{name: weight})


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (lambda direction: direction.fake, r"a tensor of shape \(2, 3, 16, 16\)"),
        (lambda direction: direction.fake.mean(dim=(0, 1, 2, 3), keepdim=True).flatten(), r"a tensor of shape \(1,\)"),
        (lambda direction: 0.5, "float"),
        (lambda direction: None, "NoneType"),
    ],
)
def test_term_that_returns_no_scalar_tensor_is_rejected(value: Any, found: str) -> None:
    objective = tiny_objective(double=True, terms=[Weighted("mine", value)])
    with pytest.raises(CommandError, match=f"^term mine returned {found}: a loss is a scalar tensor$"):
        gradients(objective)


class Holder:
    """Plain callable that holds a network."""

    def __init__(self, *, trained: bool) -> None:
        self.network = nn.Conv2d(3, 1, 1).double().requires_grad_(trained)

    def __call__(self, direction: Direction) -> Tensor:
        return self.network(direction.fake).mean()


def test_loss_term_that_trains_a_network_but_is_no_module_is_rejected() -> None:
    with pytest.raises(CommandError, match=r"^objective\.terms\.mine: Holder\.network has trained parameters: derive"):
        tiny_objective(terms=[Weighted("mine", Holder(trained=True))])
    losses, _ = gradients(tiny_objective(double=True, terms=[Weighted("mine", Holder(trained=False))]))
    assert "loss/mine_ab" in losses


@pytest.mark.parametrize("term", [object(), nn.L1Loss(), lambda: torch.zeros(())], ids=["object", "module", "function"])
def test_term_that_cannot_be_called_with_a_direction_is_rejected(term: object) -> None:
    with pytest.raises(
        CommandError, match=r"^objective\.terms\.mine: \w+ cannot be called with \(direction\): see docs"
    ):
        Terms("objective.terms", [Weighted("mine", term)], inputs=["direction"])


@pytest.mark.parametrize(
    ("side", "name"),
    [("terms", "gan"), ("discriminator_terms", "discriminator"), ("discriminator_terms", "cycle")],
)
def test_term_with_name_of_another_loss_is_rejected(side: str, name: str) -> None:
    message = rf"^objective\.{side}\.{name}: another loss has this name: choose another one$"
    with pytest.raises(CommandError, match=message):
        tiny_objective(**{side: [Weighted(name, Brightness())]})
    with pytest.raises(CommandError, match=r"^objective\.terms\.twice: another loss"):
        tiny_objective(terms=[Weighted("twice", Brightness()), Weighted("twice", Return())])


def test_term_that_needs_unknown_image_or_layer_is_rejected() -> None:
    unknown = LayerDistance()
    unknown.layers = ("trunk.7",)
    with pytest.raises(
        CommandError, match=r"^layer trunk\.7: ResNetGenerator has no such layer, but stem, stem\.pad, "
    ):
        tiny_objective(terms=[Weighted("mine", unknown)])
    unknown = LayerDistance()
    unknown.needs = ("reconstruction", "identity")
    with pytest.raises(CommandError, match=r"needs reconstruction: expected reconstructed or identity$"):
        tiny_objective(terms=[Weighted("mine", unknown)])


class Statistics(nn.Module):
    """Term with trained and frozen parameters, a saved buffer, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Conv2d(3, 4, 3).requires_grad_(False)
        self.head = nn.Conv2d(4, 1, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)

    def forward(self, direction: Direction) -> Tensor:
        self.mean.lerp_(direction.source.mean(dim=(0, 2, 3)), 0.5)
        return self.head(self.extractor(direction.fake)).square().mean()


def test_frozen_parameters_of_a_term_are_neither_trained_nor_saved() -> None:
    term = Statistics()
    trainer = tiny_trainer(terms=[Weighted("mine", term)])
    before = copy.deepcopy(term.state_dict())
    trained = trainer.updater.optimizers.parameters("generators")
    assert [id(p) for p in trained[-2:]] == [id(p) for p in term.head.parameters()]
    assert not {id(p) for p in trained} & {id(p) for p in term.extractor.parameters()}
    trainer.train_step(random_batch([0], size=16))
    changed = {key for key, value in term.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"head.weight", "head.bias", "mean"}
    assert trainer.state_dict()["objective"].keys() == {"terms"}
    assert trainer.state_dict()["objective"]["terms"]["mine"].keys() == {"head.weight", "head.bias"}
    buffers = trainer.rank_state_dict()["buffers"]["terms"]["mine"]
    assert buffers.keys() == {"mean"}
    assert torch.equal(buffers["mean"], term.mean)


@pytest.mark.parametrize(("rank", "ranks", "source"), [(0, 2, 0), (1, 2, 1), (0, 1, 0), (1, 3, 1), (2, 3, 0)], ids=str)
def test_buffers_of_terms_are_restored_for_each_rank(rank: int, ranks: int, source: int) -> None:
    states = []
    for value in (1.0, 2.0):  # two ranks of the saved run
        objective = tiny_objective(terms=[Weighted("mine", Statistics())], discriminator_terms=[])
        objective.terms.modules["mine"].mean.fill_(value)
        states.append(copy.deepcopy(objective.rank_state_dict()))
    resumed = tiny_objective(terms=[Weighted("mine", Statistics()), Weighted("new", Statistics())])
    resumed.load_rank_state_dicts(states, rank=rank, ranks=ranks, device=CPU)
    assert resumed.terms.modules["mine"].mean.tolist() == 3 * [1.0 + source]
    assert resumed.terms.modules["new"].mean.tolist() == 3 * [0.0]


def test_parameters_of_loss_terms_are_restored_and_mismatches_are_rejected() -> None:
    saved = tiny_objective(**tiny_terms())
    for parameter in (*saved.terms.parameters, *saved.discriminator_terms.parameters):
        nn.init.normal_(parameter)
    state = copy.deepcopy(saved.state_dict())
    assert state.keys() == {"terms", "discriminator_terms"}
    resumed = tiny_objective(**tiny_terms())
    optimized = [id(parameter) for parameter in resumed.parameters["generators"]]
    resumed.load_state_dict(state)
    for side in ("terms", "discriminator_terms"):
        pairs = zip(getattr(resumed, side).parameters, getattr(saved, side).parameters, strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    assert [id(parameter) for parameter in resumed.terms.parameters] == optimized[-2:]  # loaded in place

    resumed.load_state_dict({})  # a checkpoint without terms
    torch.testing.assert_close(resumed.state_dict(), state, rtol=0, atol=0)
    state["terms"]["distance"]["head.weight"] = torch.zeros(5, 16, 1, 1)
    del state["terms"]["distance"]["head.bias"]
    with pytest.raises(CheckpointError, match=r"^term distance: head\.weight, head\.bias differ from the checkpoint"):
        resumed.load_state_dict(state)


@pytest.mark.parametrize("layers", [("down", "trunk.0"), ("trunk.1",), ("trunk.0.second.conv",)], ids=str)
def test_recomputed_activations_give_equal_gradients(layers: tuple[str, ...]) -> None:
    results = []
    for recompute in (False, True):
        term = LayerDistance().double()
        term.layers = layers
        objective = tiny_objective(double=True, terms=[Weighted("distance", term)])
        for generator in (objective.generators.ab, objective.generators.ba):
            generator.recompute = recompute
        results.append(gradients(objective))
    (losses, expected), (recomputed_losses, recomputed) = results
    assert recomputed_losses == pytest.approx(losses, rel=1e-12)
    assert_near(recomputed, expected)


def test_terms_get_float32_inputs_in_bf16_runs() -> None:
    seen: list[Tensor] = []

    class Look(LayerDistance):
        needs = ("reconstructed", "identity")

        def forward(self, direction: Direction) -> Tensor:
            tensors = [value for value in direction if isinstance(value, Tensor)]
            seen.extend([*tensors, *direction.source_features.values(), *direction.fake_features.values()])
            return super().forward(direction)

    trainer = tiny_trainer(precision="bf16", terms=[Weighted("look", Look())])
    trainer.train_step(random_batch([0], size=16))
    assert len(seen) == 2 * (5 + 2 + 2)
    assert {tensor.dtype for tensor in seen} == {torch.float32}
    features = seen[5]
    assert torch.equal(features, features.bfloat16().float())  # the generator itself ran in bf16


def penalty_by_differences(discriminator: nn.Module, real: Tensor, step: float = 1e-5) -> float:
    """Return the mean squared gradient norm from central differences of the sum of scores along each pixel."""
    total = 0.0
    with torch.no_grad():
        for image in real:
            offsets = step * torch.eye(image.numel(), dtype=image.dtype).view(-1, *image.shape)
            upper, lower = (discriminator(image + sign * offsets).sum(dim=(1, 2, 3)) for sign in (1, -1))
            total += ((upper - lower) / (2 * step)).square().sum().item()
    return total / len(real)


DISCRIMINATORS = {
    "patch": lambda: PatchDiscriminator(4, 2),
    "texture": lambda: TextureDiscriminator(4, 2, texture_channels=4),
    "pixel": lambda: PixelDiscriminator(4),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["default", "channels last"])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_r1_penalty_and_its_gradient_match_finite_differences(
    name: str, count: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    discriminator = DISCRIMINATORS[name]().double()
    objective = tiny_objective(double=True, discriminator_terms=[Weighted("r1", GradientPenalty(), 5.0)])
    objective.discriminators.a = discriminator
    a, b = (image.contiguous(memory_format=layout) for image in images(count, 12))

    loss = objective.discriminator_losses(a, b, b, a).losses["loss/r1_a"]
    assert loss.item() == pytest.approx(5 * penalty_by_differences(discriminator, a), rel=1e-5)

    # The gradient has second derivatives of the network: compare its product with a random direction in the space of
    # the parameters with the change of the penalty along this direction.
    parameters = list(discriminator.parameters())
    actual = torch.autograd.grad(loss, parameters, allow_unused=True)  # a last bias has no effect on the penalty
    direction = [torch.randn_like(parameter) for parameter in parameters]
    slope = sum((x * y).sum().item() for x, y in zip(actual, direction, strict=True) if x is not None)
    values = []
    for step in (1e-6, -1e-6):
        moved = copy.deepcopy(discriminator)
        with torch.no_grad():
            for parameter, change in zip(moved.parameters(), direction, strict=True):
                parameter += step * change
        values.append(5 * GradientPenalty()(moved, a, b).item())
    assert abs(slope) > 1e-6
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


@pytest.mark.usefixtures("double_precision")
def test_update_of_discriminators_uses_gradient_of_r1_penalty() -> None:
    trainer = tiny_trainer(batch_size=2, discriminator_terms=[Weighted("r1", GradientPenalty(), 5.0)])
    gradients_seen: list[list[Tensor]] = []
    optimizer = trainer.updater.optimizers["discriminators"]
    optimizer.register_step_pre_hook(
        lambda *_: gradients_seen.append([p.grad.clone() for p in trainer.objective.discriminators.parameters()])
    )
    fakes: list[Tensor] = []
    for pool in trainer.objective.pools:
        exchange = pool.exchange
        pool.exchange = lambda *given, exchange=exchange: fakes.append(exchange(*given)) or fakes[-1]
    discriminators = copy.deepcopy(trainer.objective.discriminators)
    batch = random_batch([0, 1], size=16)
    trainer.train_step(batch)

    total = torch.zeros(())
    for network, pixels, fake in zip((discriminators.a, discriminators.b), batch[:2], fakes, strict=True):
        real = (pixels / 127.5 - 1).requires_grad_()
        scores = network(real)
        total = total + 0.5 * ((scores - 1).square().mean() + network(fake).square().mean())
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        total = total + 5 * slope.square().sum() / 2
    expected = torch.autograd.grad(total, list(discriminators.parameters()))
    assert_near(gradients_seen[0], expected)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_r1_penalty_is_computed_in_float32_in_bf16_runs(name: str) -> None:
    torch.manual_seed(0)
    hardware = Hardware("cpu", precision="bf16")
    objective = tiny_objective(prepare=hardware.wrap, discriminator_terms=[Weighted("r1", GradientPenalty())])
    objective.discriminators.a = DISCRIMINATORS[name]()
    hardware.to_device(objective.discriminators, training=True)
    a, b = (hardware.upload(image.float()) for image in images(2))
    losses = objective.discriminator_losses(a, b, b, a).losses
    exact = GradientPenalty()(copy.deepcopy(objective.discriminators.a).double(), a.double(), b).item()
    assert losses["loss/r1_a"].item() == pytest.approx(exact, rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = GradientPenalty()(objective.discriminators.a, a, b).item()
    assert abs(rounded / exact - 1) > 1e-4  # bf16 would be noticed
    losses["loss/r1_a"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in objective.discriminators.a.parameters())


def test_gradients_of_features_flow_through_photo_and_translation() -> None:

    class OneLayer:
        layers = ("stem",)

        def __call__(self, direction: Direction) -> Tensor:
            return l1_loss(direction.fake_features["stem"], direction.source_features["stem"])

    objective = tiny_objective(double=True, terms=[Weighted("one", OneLayer())], backward="joint", **OFF)
    losses, _, _ = objective.generator_parts[0](*images())
    generator = objective.generators.ab
    actual = torch.autograd.grad(losses["loss/one_ab"], list(generator.parameters()))
    a, _ = images()
    expected = torch.autograd.grad(
        l1_loss(generator.stem(generator(a)), generator.stem(a)), list(generator.parameters())
    )
    assert_near(actual, expected)


class Bank(nn.Module):
    """Term with a buffer that is None at first, and grows with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", None)

    def forward(self, direction: Direction) -> Tensor:
        new = direction.fake.detach().mean().reshape(1)
        self.bank = new if self.bank is None else torch.cat([self.bank, new])
        return self.bank.mean() * direction.fake.mean()


def test_loss_term_buffer_that_starts_as_none_and_grows_is_restored() -> None:
    stopped, resumed = (Terms("objective.terms", [Weighted("bank", Bank())], inputs=["direction"]) for _ in range(2))
    direction = Direction("ab", *(torch.rand(1, 3, 4, 4) for _ in range(3)))
    for _ in range(3):
        next(iter(stopped)).loss(direction)
    resumed.load_buffers(copy.deepcopy(stopped.buffers()))
    assert stopped.buffers()["bank"]["bank"].shape == (3,)
    torch.testing.assert_close(resumed.buffers(), stopped.buffers(), rtol=0, atol=0)


def test_saved_buffer_that_its_loss_term_does_not_have_is_rejected() -> None:
    terms = Terms("objective.terms", [Weighted("bank", Bank())], inputs=["direction"])
    with pytest.raises(CheckpointError, match=r"^term bank: it has no buffer other, .* give the changed term another"):
        terms.load_buffers({"bank": {"other": torch.zeros(2)}})


@pytest.mark.parametrize("field", ["source", "target", "fake"])
def test_term_that_changes_its_images_is_rejected(field: str) -> None:
    def darken(direction: Direction) -> Tensor:
        with torch.no_grad():
            getattr(direction, field).mul_(0.5)
        return direction.fake.mean()

    direction = Direction("ab", *(torch.rand(1, 3, 4, 4) for _ in range(3)))
    with pytest.raises(CommandError, match="term dark changed its images in place"):
        Weighted("dark", darken).loss(direction)


def test_terms_with_extra_state_or_lazy_modules_are_rejected() -> None:
    class Extra(Bank):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 1}

    class Lazy(Bank):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(4)

    for term, words in ((Extra(), "has extra state"), (Lazy(), "has lazy modules")):
        with pytest.raises(CommandError, match=rf"^objective\.terms\.x: \w+ {words}"):
            Terms("objective.terms", [Weighted("x", term)], inputs=["direction"])
