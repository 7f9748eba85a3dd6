"""Activations of inner layers: values, early end of the forward pass, clean-up, and layers that cannot be recorded."""

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.networks import PatchDiscriminator, ResNetGenerator, UNetGenerator
from cyclestyle.networks.features import features, layer_of, recorded


def num_hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def test_recorded_activations_are_outputs_of_the_layers() -> None:
    torch.manual_seed(0)
    generator, images = ResNetGenerator(4, 2), torch.rand(2, 3, 16, 16)
    down = generator.down(generator.stem(images))
    block = generator.trunk[0](down)
    with recorded(generator, ("trunk.0", "down")) as activations:
        output = generator(images)
    assert torch.equal(output, generator(images))
    assert activations.keys() == {"trunk.0", "down"}
    assert torch.equal(activations["down"], down)
    assert torch.equal(activations["trunk.0"], block)
    assert activations["down"].shape == (2, 16, 4, 4)
    assert num_hooks(generator) == 0


def test_recording_no_layers_leaves_output_unchanged() -> None:
    generator, images = ResNetGenerator(4, 1), torch.rand(1, 3, 16, 16)
    with recorded(generator, ()) as activations:
        output = generator(images)
    assert activations == {}
    assert torch.equal(output, generator(images))


@pytest.mark.parametrize(
    ("network", "layers", "behind"),
    [
        (lambda: ResNetGenerator(4, 2), ("trunk.0", "stem"), "trunk.1"),
        (lambda: UNetGenerator(4, 3), ("down.1",), "down.2"),
        (lambda: PatchDiscriminator(4, 2), ("body.0.act",), "body.1"),
    ],
    ids=["resnet", "unet", "patch"],
)
def test_layers_behind_the_last_requested_one_are_not_computed(network, layers: tuple[str, ...], behind: str) -> None:
    torch.manual_seed(0)
    module, images = network(), torch.rand(1, 3, 16, 16)
    calls: list[str] = []
    for name in (*layers, behind):
        module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    with recorded(module, layers) as expected:
        module(images)
    assert calls.count(behind) == 1
    calls.clear()
    values = features(module, images, layers)
    assert sorted(calls) == sorted(layers)
    assert values.keys() == expected.keys()
    assert all(torch.equal(values[name], expected[name]) for name in layers)
    assert num_hooks(module) == 0


def test_hooks_are_removed_after_an_error() -> None:
    generator = ResNetGenerator(4, 1)
    with pytest.raises(RuntimeError, match="channels"), recorded(generator, ("stem", "down")):
        generator(torch.rand(1, 5, 16, 16))
    with pytest.raises(RuntimeError, match="channels"):
        features(generator, torch.rand(1, 5, 16, 16), ("stem", "down"))
    with pytest.raises(CommandError, match="layer nowhere"):
        features(generator, torch.rand(1, 3, 16, 16), ("stem", "nowhere"))
    assert num_hooks(generator) == 0


def test_error_for_unknown_layer_lists_layers_of_the_top_two_levels() -> None:
    with pytest.raises(CommandError) as caught:
        layer_of(ResNetGenerator(4, 1), "trunk.1")
    assert str(caught.value) == (
        "layer trunk.1: ResNetGenerator has no such layer, but stem, stem.pad, stem.conv, stem.norm, stem.act, down, "
        "down.0, down.1, trunk, trunk.0, up, up.0, up.1, head, head.pad, head.conv, head.tanh"
    )
    with pytest.raises(CommandError, match=r"layer stem\.conv\.weight"):  # a parameter
        layer_of(ResNetGenerator(4, 1), "stem.conv.weight")


def test_layer_that_the_forward_pass_does_not_call_is_rejected() -> None:
    generator, images = ResNetGenerator(4, 1), torch.rand(1, 3, 16, 16)
    features(generator, images, ("trunk",))
    generator.recompute = True  # calls each block, but not the sequence of blocks
    for network, layer in ((generator, "trunk"), (UNetGenerator(4, 3), "up")):
        message = f"^layer {layer}: the forward pass of {type(network).__name__} does not call this layer itself"
        with pytest.raises(CommandError, match=message):
            features(network, images, (layer,))
        with pytest.raises(CommandError, match=message), recorded(network, (layer,)):
            network(images)


class InPlace(nn.Sequential):
    """Network of two convolutions, whose activation functions overwrite their inputs."""

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(
                first=nn.Conv2d(3, 4, 3),
                act=nn.ReLU(inplace=True),
                second=nn.Conv2d(4, 3, 3),
                end=nn.ReLU(inplace=True),
            )
        )


def test_layer_whose_activations_are_overwritten_is_rejected() -> None:
    network, images = InPlace(), torch.rand(1, 3, 8, 8)
    with pytest.raises(CommandError, match=r"^layer first: the next layer of InPlace overwrites its activations"):
        features(network, images, ("first", "act"))
    values: dict[str, Tensor] = features(network, images, ("act",))
    assert torch.equal(values["act"], network.first(images).relu())
