"""The common interface of the pretrained networks, with random weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError, DataError, ImageTypeError
from cyclestyle.networks.pretrained import PRETRAINED

NAMES = sorted(PRETRAINED)


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return PRETRAINED[name].build()


def measured_layers(name: str) -> list[str]:
    network = PRETRAINED[name]
    return [*network.pooled_layers, network.structure_layer, *network.style_layers]


def some_images(count: int = 2, height: int = 32, width: int = 32, **kind: torch.dtype) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(
        **kind
    )


def test_networks_have_the_names_used_in_configs() -> None:
    assert NAMES == ["efficientnet_lite0", "lpips_alex", "lpips_vgg", "vgg16_hed", "vgg19"]


@pytest.mark.parametrize("name", NAMES)
def test_measured_layers_exist_and_have_pixels_at_odd_sizes(name: str) -> None:
    network = built(name)
    assert set(measured_layers(name)) <= set(network.layers)
    for height, width in ((32, 32), (33, 47)):
        activations = network(some_images(1, height, width, dtype=torch.float32), network.layers)
        assert list(activations) == list(network.layers)
        for layer, values in activations.items():
            assert values.ndim == 4, layer
            assert values.numel() > 0, layer
            assert values.isfinite().all(), layer
            assert values.std() > 1e-3, layer  # random weights that keep the size of activations


@pytest.mark.parametrize(
    ("name", "divisor"), [("efficientnet_lite0", 16), ("vgg16_hed", 8), ("vgg19", 8), ("lpips_vgg", 8)]
)
def test_structure_layer_has_the_stated_resolution(name: str, divisor: int) -> None:
    layer = PRETRAINED[name].structure_layer
    height, width = built(name)(some_images(1, 64, 96, dtype=torch.float32), [layer])[layer].shape[-2:]
    assert abs(height - 64 / divisor) <= 1  # the blurs of LPIPS's networks add a pixel
    assert abs(width - 96 / divisor) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_layers_are_the_same_one_by_one_and_together(name: str) -> None:
    network, images = built(name), some_images(1, 40, 40, dtype=torch.float32)
    together = network(images, measured_layers(name))
    for layer in measured_layers(name):
        alone = network(images, [layer])
        assert list(alone) == [layer]
        assert torch.equal(alone[layer], together[layer])
    assert network(images, []) == {}


@pytest.mark.parametrize("name", NAMES)
def test_layers_behind_the_last_requested_one_are_not_computed(name: str) -> None:
    network, called = built(name), []
    for layer, step in network.steps.items():
        step.register_forward_hook(lambda *_, layer=layer: called.append(layer))
    network(some_images(1, dtype=torch.float32), [network.layers[2], network.layers[1]])
    assert called == list(network.layers[:3])


@pytest.mark.parametrize("name", NAMES)
def test_images_of_a_batch_do_not_influence_each_other(name: str) -> None:
    network, images, layer = built(name), some_images(3, dtype=torch.float64), PRETRAINED[name].structure_layer
    network.double()
    batch = network(images, [layer])[layer]
    for number in range(3):
        alone = network(images[number : number + 1], [layer])[layer]
        torch.testing.assert_close(batch[number : number + 1], alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("double_precision")
def test_gradients_with_respect_to_images_are_correct(name: str) -> None:
    network = built(name)
    layers = [*PRETRAINED[name].pooled_layers, PRETRAINED[name].structure_layer]
    images = some_images(1, 32, 35).requires_grad_()

    def value(x: Tensor) -> Tensor:
        activations = network(x, layers)
        values = [network.pooled(activations), activations[PRETRAINED[name].structure_layer]]
        return sum((value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum() for value in values)

    (gradient,) = torch.autograd.grad(value(images), images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    # A random direction alone is almost at a right angle to the gradient: rounding errors would exceed the slope.
    direction = gradient / gradient.norm() + noise / noise.norm()
    with torch.no_grad():
        slope = (value(images + 1e-6 * direction) - value(images - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_frozen(name: str) -> None:
    network = built(name)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training
    layer = PRETRAINED[name].structure_layer
    assert not network(some_images(1, dtype=torch.float32), [layer])[layer].requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_of_a_parent_changes_nothing(name: str) -> None:
    network, images, layer = built(name), some_images(2, dtype=torch.float32), PRETRAINED[name].pooled_layers[-1]
    before = network(images, [layer])[layer]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    nn.ModuleList([network]).train()
    assert torch.equal(network(images, [layer])[layer], before)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_input_images_are_not_changed(name: str) -> None:
    images = some_images(1, dtype=torch.float32)
    before = images.clone()
    built(name)(images, measured_layers(name))
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES)
def test_pooled_vectors_equal_means_in_numpy(name: str) -> None:
    network, images = built(name).double(), some_images(2, 33, 40)
    activations = network(images, PRETRAINED[name].pooled_layers)
    vectors = []
    for layer in PRETRAINED[name].pooled_layers:
        means = activations[layer].numpy().reshape(2, activations[layer].shape[1], -1).mean(axis=2)
        if name != "efficientnet_lite0":
            means = means / np.sqrt((means**2).mean(axis=1, keepdims=True))
        vectors.append(means)
    expected = np.concatenate(vectors, axis=1)
    width = {"efficientnet_lite0": 1280, "lpips_alex": 1152}.get(name, 1472)
    assert expected.shape == (2, width)
    np.testing.assert_allclose(network.pooled(activations).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_pooled_vectors_are_float32_under_autocast_and_close_to_float32_results(name: str) -> None:
    network, images = built(name), some_images(2, 48, 48, dtype=torch.float32)
    exact = network.pooled(network(images, PRETRAINED[name].pooled_layers))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        activations = network(images, PRETRAINED[name].pooled_layers)
        rounded = network.pooled(activations)
    assert activations[PRETRAINED[name].pooled_layers[-1]].dtype == torch.bfloat16
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (torch.cosine_similarity(rounded, exact) > 0.99).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_images_of_any_float_dtype_are_computed_in_the_dtype_of_the_weights(name: str, dtype: torch.dtype) -> None:
    network, layer = built(name), PRETRAINED[name].structure_layer
    images = some_images(1, dtype=dtype)
    values = network(images, [layer])[layer]
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, network(images.float(), [layer])[layer], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_network_moves_to_a_device_as_a_whole(name: str) -> None:
    network, layers = built(name).to("meta"), PRETRAINED[name].pooled_layers
    images = torch.rand(1, 3, 32, 32, device="meta")  # a tensor left on the CPU would be an error
    assert network.pooled(network(images, layers)).device.type == "meta"


@pytest.mark.parametrize("name", NAMES)
def test_building_draws_no_global_random_numbers(name: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    PRETRAINED[name].build()
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_trained_weights_only(name: str) -> None:
    assert not [key for key in built(name).state_dict() if not key.startswith(("steps.", "heads."))]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.rand(1, 1, 64, 64), ImageTypeError, "images have the shape (1, 1, 64, 64): expected"),
        (torch.rand(1, 4, 64, 64), ImageTypeError, "images have the shape (1, 4, 64, 64): expected"),
        (torch.rand(3, 64, 64), ImageTypeError, "images have the shape (3, 64, 64): expected"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ImageTypeError, "divide 8-bit images by 255"),
        ("photo.jpg", ImageTypeError, "images are of type str: expected"),
        (torch.rand(1, 3, 31, 64), DataError, "images of 64 x 31 px are too small"),
        (torch.rand(1, 3, 64, 0), DataError, "images of 0 x 64 px are too small"),
    ],
)
def test_unsuitable_images_are_an_error_of_one_line(
    name: str, images: object, error: type[DataError], message: str
) -> None:
    with pytest.raises(error) as raised:
        built(name)(images, [PRETRAINED[name].structure_layer])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.code == 3


@pytest.mark.parametrize("name", NAMES)
def test_unknown_layer_is_an_error_that_lists_the_layers(name: str) -> None:
    network = built(name)
    with pytest.raises(CommandError, match=r"layer relu9_9: .* no such layer") as raised:
        network(some_images(1, dtype=torch.float32), [network.layers[0], "relu9_9"])
    assert all(layer in str(raised.value) for layer in network.layers)


@pytest.mark.parametrize("name", NAMES)
def test_pooling_without_its_layers_is_an_error(name: str) -> None:
    network = built(name)
    activations = network(some_images(1, dtype=torch.float32), [network.layers[0]])
    with pytest.raises(
        CommandError, match=f"{PRETRAINED[name].pooled_layers[-1]} is missing|relu1_2 is missing|relu2 is"
    ):
        network.pooled(activations)


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch_gives_empty_features(name: str) -> None:
    network = built(name)
    activations = network(torch.zeros(0, 3, 40, 40), PRETRAINED[name].pooled_layers)
    assert network.pooled(activations).shape[0] == 0
    assert network.pooled(activations).shape[1] > 1000


@pytest.mark.parametrize("name", [name for name in NAMES if name != "efficientnet_lite0"])
def test_pooled_gradient_is_finite_where_a_stage_is_silent(name: str) -> None:
    network = built(name)
    silent = {layer: torch.zeros(1, 4, 2, 2, requires_grad=True) for layer in PRETRAINED[name].pooled_layers}
    pooled = network.pooled(silent)
    pooled.sum().backward()
    assert torch.equal(pooled, torch.zeros_like(pooled))
    assert all(values.grad is not None and values.grad.isfinite().all() for values in silent.values())
