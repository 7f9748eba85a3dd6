"""CycleGAN objective: comparison with recorded losses of the 2017 implementation and with the `Textbook` loop."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cyclestyle.model_files.original_weights import from_reference
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, initialize
from cyclestyle.objectives.adversarial import BinaryCrossEntropy, LeastSquares
from cyclestyle.objectives.cyclegan import CycleGAN
from cyclestyle.objectives.pairs import Discriminators, Generators
from cyclestyle.objectives.step import Part
from tests.factories import pools, tiny_objective
from tests.textbook import NAMES, Textbook

GOLDEN = Path(__file__).parents[1] / "golden" / "reference_steps.npz"


def step(
    objective: CycleGAN,
    optimizers: list[torch.optim.Optimizer],
    a: torch.Tensor,
    b: torch.Tensor,
) -> dict[str, float]:
    """Do one training step with `objective` and plain optimizers; return the losses by name."""
    generator_losses, fakes = {}, {}
    for part in objective.generator_parts:
        losses, _, images = part(a, b)
        sum(losses.values()).backward()
        generator_losses |= losses
        fakes |= {name: fake.detach() for name, fake in images.items()}
    optimizers[0].step()
    optimizers[0].zero_grad()
    discriminator_losses, _, _ = objective.discriminator_losses(a, b, fakes["fake_a"], fakes["fake_b"])
    sum(discriminator_losses.values()).backward()
    optimizers[1].step()
    optimizers[1].zero_grad()
    return {name: loss.item() for name, loss in (generator_losses | discriminator_losses).items()}


def adams(objective: CycleGAN) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Adam(module.parameters(), 2e-4, betas=(0.5, 0.999), fused=True)
        for module in (objective.generators, objective.discriminators)
    ]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["default", "channels last"])
@pytest.mark.parametrize(
    ("in_parts", "recompute"), [(False, False), (True, False), (True, True)], ids=["joint", "split", "recomputed"]
)
def test_losses_and_weights_match_original_implementation(
    in_parts: bool, recompute: bool, layout: torch.memory_format
) -> None:
    golden = np.load(GOLDEN)
    meta = json.loads(str(golden["meta"]))

    def weights(name: str) -> dict[str, torch.Tensor]:
        prefix = f"init/{name}/"
        return {
            key.removeprefix(prefix): torch.from_numpy(golden[key]) for key in golden.files if key.startswith(prefix)
        }

    networks: dict[str, nn.Module] = {}
    for name in ("G_A", "G_B", "D_A", "D_B"):
        network = ResNetGenerator(meta["ngf"], meta["n_blocks"]) if name[0] == "G" else PatchDiscriminator(meta["ndf"])
        network.load_state_dict(from_reference(weights(name), network))
        networks[name] = network.double()
        network.recompute = recompute
    objective = CycleGAN(
        Generators(ab=networks["G_A"], ba=networks["G_B"]),
        Discriminators(a=networks["D_B"], b=networks["D_A"]),
        adversarial=LeastSquares(),
        cycle_a=meta["lambda_A"],
        cycle_b=meta["lambda_B"],
        identity=meta["lambda_identity"],
        pools=pools(),
        backward="split" if in_parts else "joint",
    )
    optimizers = adams(objective)

    for index in range(meta["steps"]):
        a, b = (
            torch.from_numpy(golden[f"real_{side}"][index]).double().contiguous(memory_format=layout) for side in "AB"
        )
        losses = step(objective, optimizers, a, b)
        assert losses.keys() == NAMES.keys()
        for name, reference in NAMES.items():
            assert losses[name] == pytest.approx(golden[f"loss/{reference}"][index], rel=1e-9), (index, name)

    for name, network in networks.items():
        flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        expected = golden[f"final_checksum/{name}"]
        assert [flat.abs().sum().item(), (flat**2).sum().item()] == pytest.approx(list(expected), rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "adversarial", "mode"),
    [
        ({"cycle_a": 10.0, "cycle_b": 10.0, "identity": 0.5}, LeastSquares(), "lsgan"),
        ({"cycle_a": 10.0, "cycle_b": 10.0, "identity": 0.0}, LeastSquares(), "lsgan"),
        ({"cycle_a": 7.0, "cycle_b": 3.0, "identity": 0.3}, LeastSquares(), "lsgan"),
        ({"cycle_a": 4.0, "cycle_b": 9.0, "identity": 1.0}, BinaryCrossEntropy(), "bce"),
    ],
    ids=["paper", "no identity", "unequal cycles", "bce"],
)
def test_steps_with_joint_losses_match_textbook_implementation(settings: dict, adversarial: object, mode: str) -> None:
    objective = tiny_objective(double=True, adversarial=adversarial, backward="joint", **settings)
    copies = copy.deepcopy((objective.generators, objective.discriminators))
    textbook = Textbook(
        copies[0].ab, copies[0].ba, copies[1].b, copies[1].a,
        lambda_a=settings["cycle_a"], lambda_b=settings["cycle_b"], lambda_identity=settings["identity"], mode=mode,
    )  # fmt: skip
    optimizers = adams(objective)
    random = torch.Generator().manual_seed(5)
    for _ in range(3):
        a, b = (torch.rand(2, 3, 48, 64, generator=random, dtype=torch.float64) * 2 - 1 for _ in "ab")
        losses, expected = step(objective, optimizers, a, b), textbook.step(a, b)
        assert {NAMES[name] for name in losses} == expected.keys()
        for name, value in losses.items():
            assert value == pytest.approx(expected[NAMES[name]], rel=1e-9), name

    for module, reference in zip((objective.generators, objective.discriminators), copies, strict=True):
        for parameter, expected_parameter in zip(module.parameters(), reference.parameters(), strict=True):
            # A bias before an instance norm has no effect; its gradient is rounding noise of about 1e-16. Adam divides
            # it by its own size + 1e-8, so that steps of about 1e-12 result.
            torch.testing.assert_close(parameter, expected_parameter, rtol=1e-9, atol=1e-9)


class Counting(nn.Module):
    """Wrapper of a network; it counts the images that the network receives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.num_images = network, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_images += len(x)
        return self.network(x)


@pytest.mark.parametrize(
    ("settings", "absent", "num_images"),
    [
        ({}, set(), (3, 3)),
        ({"identity": 0.0}, {"loss/identity_a", "loss/identity_b"}, (2, 2)),
        ({"cycle_a": 0.0}, {"loss/cycle_a", "loss/identity_a"}, (3, 1)),
        (
            {"cycle_a": 0.0, "cycle_b": 0.0},
            {"loss/cycle_a", "loss/cycle_b", "loss/identity_a", "loss/identity_b"},
            (1, 1),
        ),
    ],
)
def test_loss_of_weight_zero_is_not_computed(settings: dict, absent: set, num_images: tuple[int, int]) -> None:
    ab, ba = Counting(ResNetGenerator(4, 1)), Counting(ResNetGenerator(4, 1))
    discriminators = Discriminators(PatchDiscriminator(4, 2), PatchDiscriminator(4, 2))
    objective = CycleGAN(
        Generators(ab, ba), discriminators, adversarial=LeastSquares(), pools=pools(), backward="joint", **settings
    )
    (part,) = objective.generator_parts
    losses, _, _ = part(torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32))
    every = {name for name in NAMES if "discriminator" not in name}
    assert losses.keys() == every - absent
    assert (ab.num_images, ba.num_images) == num_images


WEIGHTS = [
    {},
    {"identity": 0.0},
    {"cycle_a": 0.0},
    {"cycle_b": 0.0},
    {"cycle_a": 0.0, "cycle_b": 0.0},
    {"cycle_a": 7.0, "cycle_b": 3.0, "identity": 0.3},
]


def gradients(objective: CycleGAN, parts: Sequence[Part]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Return losses and generator gradients after one backward pass for each of `parts`, which frees its graph."""
    random = torch.Generator().manual_seed(5)
    a, b = (torch.rand(2, 3, 48, 40, generator=random, dtype=torch.float64) * 2 - 1 for _ in "ab")
    values = {}
    objective.generators.zero_grad()
    for part in parts:
        losses, _, _ = part(a, b)
        sum(losses.values()).backward()
        assert not values.keys() & losses.keys()
        values |= {name: loss.item() for name, loss in losses.items()}
    return values, {name: parameter.grad for name, parameter in objective.generators.named_parameters()}


@pytest.mark.parametrize("recompute", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_sum_over_split_loss_parts_equals_joint_losses_and_gradients(
    weights: dict[str, float], recompute: bool
) -> None:
    joint, split = (tiny_objective(double=True, backward=backward, **weights) for backward in ("joint", "split"))
    joint_losses, joint_gradients = gradients(joint, joint.generator_parts)
    for generator in (split.generators.ab, split.generators.ba):
        generator.recompute = recompute
    split_losses, split_gradients = gradients(split, split.generator_parts)

    assert split_losses == pytest.approx(joint_losses, rel=1e-12)
    assert split_losses.keys() == joint_losses.keys()
    largest = max(gradient.abs().max() for gradient in joint_gradients.values())
    for name, gradient in joint_gradients.items():
        torch.testing.assert_close(split_gradients[name], gradient, rtol=1e-6, atol=1e-12 * largest.item(), msg=name)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_last_loss_part_uses_every_generator_parameter(weights: dict[str, float]) -> None:
    objective = tiny_objective(double=True, **weights)
    _, last_gradients = gradients(objective, objective.generator_parts[-1:])
    assert all(gradient is not None for gradient in last_gradients.values())


def test_each_loss_part_stores_half_the_activations_of_joint_losses() -> None:
    joint_objective, objective = tiny_objective(backward="joint"), tiny_objective(backward="split")
    a, b = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)

    def saved_bytes(losses_of: object) -> int:
        """Return the bytes that `losses_of` stores for the backward pass: each storage once, no parameters."""
        modules = [module for each in (joint_objective, objective) for module in each.modules.values()]
        parameters = {parameter.untyped_storage().data_ptr() for each in modules for parameter in each.parameters()}
        sizes: dict[int, int] = {}
        references = []  # keeps every storage alive, so that addresses stay unique

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            references.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses_of(a, b)
        return sum(size for address, size in sizes.items() if address not in parameters)

    joint = saved_bytes(*joint_objective.generator_parts)
    parts = [saved_bytes(part) for part in objective.generator_parts]
    for generator in (objective.generators.ab, objective.generators.ba):
        generator.recompute = True
    recomputed = [saved_bytes(part) for part in objective.generator_parts]
    assert max(parts) < 0.52 * joint
    assert max(recomputed) < 0.9 * max(parts)  # only the 2 residual blocks are recomputed, a small share here


def test_generator_losses_give_discriminators_no_gradients_and_vice_versa() -> None:
    objective = tiny_objective()
    a, b = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    fakes: dict[str, torch.Tensor] = {}
    for part in objective.generator_parts:
        losses, _, images = part(a, b)
        sum(losses.values()).backward()
        fakes |= images
    assert all(parameter.grad is None for parameter in objective.discriminators.parameters())
    assert all(parameter.requires_grad for parameter in objective.discriminators.parameters())
    before = [parameter.grad.clone() for parameter in objective.generators.parameters()]
    discriminator_losses, _, _ = objective.discriminator_losses(
        a, b, fakes["fake_a"].detach(), fakes["fake_b"].detach()
    )
    sum(discriminator_losses.values()).backward()
    assert all(
        torch.equal(old, parameter.grad)
        for old, parameter in zip(before, objective.generators.parameters(), strict=True)
    )
    assert all(parameter.grad is not None for parameter in objective.discriminators.parameters())


def test_initial_weights_depend_on_seed_alone() -> None:
    first, again, other = (tiny_objective(seed=seed) for seed in (1, 1, 2))
    torch.rand(100)  # the state of the global generator has no effect
    same = [
        torch.equal(x, y) for x, y in zip(first.generators.parameters(), again.generators.parameters(), strict=True)
    ]
    assert all(same)
    assert not torch.equal(first.generators.ab.stem.conv.weight, other.generators.ab.stem.conv.weight)
    assert not torch.equal(first.generators.ab.stem.conv.weight, first.generators.ba.stem.conv.weight)
    initialize(first.generators, generator=torch.Generator().manual_seed(1))
