"""Networks built from the architectures in model files."""

import contextlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cyclestyle.errors import CheckpointError
from cyclestyle.networks import (
    PatchDiscriminator,
    PixelDiscriminator,
    ResNetGenerator,
    TextureDiscriminator,
    UNetGenerator,
)
from cyclestyle.networks.registry import DISCRIMINATORS, GENERATORS, build, with_defaults

EXAMPLES = [
    ResNetGenerator(3, 2, dropout=0.25, upsample="resize", in_channels=1, out_channels=2),
    UNetGenerator(3, 4, dropout=0.5, in_channels=2, out_channels=1),
    PatchDiscriminator(3, 2, in_channels=5),
    UNetGenerator(3, 3, upsample="resize", detail=2),
    PatchDiscriminator(3, 2, norm=False),
    PixelDiscriminator(3, in_channels=4),
    TextureDiscriminator(3, 2, 5, in_channels=4),
]


@pytest.mark.parametrize("network", EXAMPLES, ids=lambda network: type(network).__name__)
def test_build_reproduces_network_from_architecture(network):
    rebuilt = build(json.loads(json.dumps(network.architecture)))

    assert type(rebuilt) is type(network)
    assert rebuilt.architecture == network.architecture
    assert str(rebuilt) == str(network)
    rebuilt.load_state_dict(network.state_dict())


def test_architecture_names_match_registry():
    for name, network in (GENERATORS | DISCRIMINATORS).items():
        with torch.device("meta"):
            assert network().architecture["name"] == name


def test_build_uses_defaults_for_missing_arguments():
    with torch.device("meta"):
        assert build({"name": "patch"}).architecture == PatchDiscriminator().architecture


@pytest.mark.parametrize(
    ("architecture", "word"),
    [
        ({}, "None"),
        ({"name": "gan"}, "'gan'"),
        ({"name": "cyclestyle.networks.ResNetGenerator"}, "expected one of resnet, unet, patch, pixel, texture"),
        ({"name": ["resnet"]}, "list"),
        ({"name": "resnet", "_target_": "os.system"}, "'_target_'"),
        ({"name": "resnet", "levels": 3}, "'levels'"),
        ({"name": "resnet", "self": 3}, "'self'"),
        ({"name": "resnet", "channels": "64"}, "channels"),
        ({"name": "resnet", "channels": 64.0}, "channels"),
        ({"name": "resnet", "channels": True}, "channels"),
        ({"name": "resnet", "channels": None}, "channels"),
        ({"name": "resnet", "channels": [64]}, "channels"),
        ({"name": "resnet", "channels": 10**5000}, "channels"),
        ({"name": "resnet", "blocks": 65}, "blocks"),
        ({"name": "resnet", "upsample": "x" * 10**6}, "upsample"),
        ({"name": "resnet", "dropout": float("nan")}, "dropout"),
        ({"name": "unet", "levels": 40}, "levels"),
        ({"name": "patch", "layers": 0}, "layers"),
        ({"name": "pixel", "channels": 1025}, "channels"),
        ({"name": "resnet", "channels": 1024, "blocks": 64}, "parameters"),
        ({"name": "unet", "channels": 1024, "levels": 10}, "parameters"),
        ({"name": "resnet", "x" * 10**6: 1}, "unknown argument"),
    ],
    ids=range(22),
)
def test_bad_architecture_gives_one_line_error(architecture, word):
    with torch.device("meta"), pytest.raises(CheckpointError) as caught:  # meta: no allocation even if the check fails
        build(architecture)

    message = str(caught.value)
    assert word in message
    assert "expected" in message
    assert "\n" not in message
    assert len(message) < 250


numbers = st.integers(-3, 5) | st.integers(min_value=1025) | st.integers(max_value=-1) | st.floats()


def test_with_defaults_adds_missing_arguments():
    assert with_defaults({"name": "patch", "channels": 4}) == {
        "name": "patch", "channels": 4, "layers": 3, "norm": True, "in_channels": 3,
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"^unknown architecture "):
        with_defaults({"name": "vit"})


json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
small = st.integers(1, 4)
generator = {"channels": small, "dropout": st.floats(0, 1), "in_channels": small, "out_channels": small}
nearly_right = st.one_of(
    st.fixed_dictionaries({"name": st.just(name)}, optional=arguments)
    for name, arguments in {
        "resnet": generator | {"blocks": small, "upsample": st.sampled_from(["transposed", "resize", "bilinear"])},
        "unet": generator | {"levels": st.integers(1, 5), "detail": st.integers(0, 2)},
        "patch": {"channels": small, "layers": small, "norm": st.booleans(), "in_channels": small},
        "pixel": {"channels": small, "in_channels": small},
        "texture": {"channels": small, "layers": small, "texture_channels": small, "in_channels": small},
    }.items()
)
one_thing_changed = st.builds(
    lambda known, key, value: known | {key: value},
    nearly_right,
    st.sampled_from(["name", *generator, "blocks", "levels", "layers", "upsample"]) | st.text(),
    json_values,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(nearly_right | one_thing_changed | st.dictionaries(st.text(), json_values))
def test_architecture_mapping_builds_a_network_or_raises_checkpoint_error(architecture):
    with contextlib.suppress(CheckpointError), torch.device("meta"):
        network = build(architecture)
        assert isinstance(network, nn.Module)
        assert network.architecture.items() >= architecture.items()
