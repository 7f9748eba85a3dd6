"""VGG16 of HED against a computation in NumPy, and VGG19 against torchvision."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from cyclestyle.model_files.weight_conversion import convert
from cyclestyle.networks.pretrained import PRETRAINED
from cyclestyle.networks.vgg import Vgg
from tests.networks import published
from tests.networks.numpy_layers import Array, conv, maximum, relu, zeros_around


def numpy_vgg16_hed(images: Array, weights: published.Weights) -> dict[str, Array]:
    """Activations of HED's VGG16; `images` are RGB in 0..1, `weights` those of Keras."""
    x = 255 * images[:, ::-1] - np.array([104.00699, 116.66877, 122.67892]).reshape(1, 3, 1, 1)
    found: dict[str, Array] = {}
    for stage, depth in enumerate((2, 2, 3, 3, 3), 1):
        if stage > 1:
            x = maximum(x, 2, stride=2)
        for number in range(depth):
            name = f"block{stage}/layers/conv2d" + ("" if number == 0 else f"_{number}")
            x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge") if not found else zeros_around(x, 1, 1, 1, 1)
            kernel = weights[f"{name}/vars/0"].transpose(3, 2, 0, 1)
            x = relu(conv(x, kernel, weights[f"{name}/vars/1"]))
            found[f"relu{stage}_{number + 1}"] = x
    return found


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47)])
@pytest.mark.usefixtures("double_precision")
def test_vgg16_of_keras_weights_equals_numpy(height: int, width: int, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    weights = published.keras_hed()
    with h5py.File(tmp_path / "published.h5", "w") as file:
        for name, values in weights.items():
            file[name] = values
    network = PRETRAINED["vgg16_hed"].build()
    network.load_state_dict(convert("vgg16_hed", tmp_path / "published.h5"))
    images = np.random.default_rng(1).uniform(0, 1, (1, 3, height, width))

    expected = numpy_vgg16_hed(images, weights)
    activations = network(torch.from_numpy(images), network.layers)
    assert list(activations) == list(expected)
    for layer, values in expected.items():
        size = np.abs(values).max()
        np.testing.assert_allclose(activations[layer].numpy(), values, rtol=0, atol=1e-10 * size, err_msg=layer)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 39)])
@pytest.mark.usefixtures("double_precision")
def test_vgg19_equals_torchvision(height: int, width: int, tmp_path: Path) -> None:
    with torch.device("meta"):  # without the memory for its classifier
        reference = torchvision.models.vgg19(weights=None, init_weights=False)
    features = reference.features.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in features:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.normal_(module.bias, std=0.1)
    kept = {key: values for key, values in reference.state_dict().items() if key.startswith("features.")}
    torch.save({**kept, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "vgg19.pth")
    network = PRETRAINED["vgg19"].build()
    network.load_state_dict(convert("vgg19", tmp_path / "vgg19.pth"))

    images = torch.rand(1, 3, height, width)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    x, expected = (images - mean) / deviation, []
    with torch.no_grad():
        for module in features:
            x = module(x)
            if isinstance(module, torch.nn.ReLU):
                expected.append(x.clone())
    activations = network(images, network.layers)
    assert len(activations) == len(expected) == 16
    for values, reference_values in zip(activations.values(), expected, strict=True):
        torch.testing.assert_close(values, reference_values, rtol=1e-10, atol=1e-10)


def test_layers_are_named_by_stage_and_convolution() -> None:
    assert PRETRAINED["vgg19"].pooled_layers == ("relu1_2", "relu2_2", "relu3_4", "relu4_4", "relu5_4")
    assert PRETRAINED["vgg16_hed"].pooled_layers == ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    for name in ("vgg16_hed", "vgg19"):
        network = PRETRAINED[name].build()
        assert isinstance(network, Vgg)
        assert network.pooled_layers == PRETRAINED[name].pooled_layers


def test_evenly_coloured_image_has_no_frame_in_the_first_layer_of_hed() -> None:
    grey = torch.full((1, 3, 40, 40), 0.7)
    first = PRETRAINED["vgg16_hed"].build()(grey, ["relu1_1"])["relu1_1"]
    assert first.max() > 0
    torch.testing.assert_close(first, first[:, :, 20:21, 20:21].expand_as(first))
