"""Parts shared by the pretrained networks: checks of images, normalisation, selection of layers, pooling."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError, DataError, ImageTypeError

MINIMUM_SIZE = 32  # px; smaller images vanish in the fifth stage, at 1/16 or 1/32 of the image size

# Mean and standard deviation of ImageNet's images per channel (red, green, blue), values in 0..1; the normalisation of
# torchvision's networks.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class Normalization(nn.Module):
    """Normalisation of images (N, 3, H, W), sRGB in 0..1: subtracts `mean`, divides by `deviation`.

    A call takes the images and a second tensor, `like`. The values are computed in float32 at least, and then converted
    to the dtype of `like`.

    Args:
        mean, deviation: mean and standard deviation of each channel, in the order red, green, blue.
        is_bgr: whether the channels of the output have the order blue, green, red.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], *, is_bgr: bool = False) -> None:
        super().__init__()
        self.is_bgr = is_bgr
        # Not persistent: the values belong to the architecture, and a state dict holds the trained weights only.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, like: Tensor) -> Tensor:
        normalized = (images.to(at_least_float32(images)) - self.mean) / self.deviation
        if self.is_bgr:
            normalized = normalized.flip(1)
        return normalized.to(like.dtype)


def check_images(images: Tensor) -> None:
    """Raise an error with a message for users unless `images` can be the input of a pretrained network.

    Raises:
        ImageTypeError: `images` is not a floating-point tensor (N, 3, H, W).
        DataError: a side is shorter than `MINIMUM_SIZE` px.
    """
    expected = "expected floating-point RGB images (N, 3, H, W) in 0..1"
    if not isinstance(images, Tensor):
        raise ImageTypeError(f"images are of type {type(images).__name__}: {expected}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ImageTypeError(f"images have the shape {tuple(images.shape)}: {expected}")
    if not images.is_floating_point():
        raise ImageTypeError(f"images have the dtype {images.dtype}: {expected}; divide 8-bit images by 255")
    height, width = images.shape[-2:]
    if min(height, width) < MINIMUM_SIZE:
        raise DataError(
            f"images of {width} x {height} px are too small for a pretrained network: resize them to at least "
            f"{MINIMUM_SIZE} px per side"
        )


def run_layers(steps: nn.ModuleDict, x: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Apply `steps` one after the other, until all requested outputs are known.

    Args:
        steps: layer name -> module that computes this layer, in the order of the forward pass.
        x: input of the first step.
        layers: names of the requested layers, keys of `steps`.

    Returns:
        Layer name -> output of its module, for each of `layers`.

    Raises:
        CommandError: a name in `layers` is not a key of `steps`.
    """
    if unknown := [name for name in layers if name not in steps]:
        raise CommandError(f"layer {unknown[0]}: a network with this name has no such layer, but {', '.join(steps)}")
    found: dict[str, Tensor] = {}
    missing = set(layers)
    for name, step in steps.items():
        if not missing:
            break
        x = step(x)
        if name in missing:
            found[name] = x
            missing.remove(name)
    return found


def chosen(activations: Mapping[str, Tensor], layers: Sequence[str]) -> Iterator[Tensor]:
    """Yield those of the `activations` that `layers` names, in the order of `layers`, in float32 at least.

    Raises:
        CommandError: the activations of a layer are missing.
    """
    for name in layers:
        if name not in activations:
            raise CommandError(f"pooled features need the activations of {', '.join(layers)}: {name} is missing")
        yield activations[name].to(at_least_float32(activations[name]))


def pooled_stages(activations: Mapping[str, Tensor], layers: Sequence[str]) -> Tensor:
    """Return one vector per image, (N, d): the mean of every channel of `layers` over all positions, layer by layer.

    The means of each layer are divided by their root mean square, so that all layers have equal weight.

    Args:
        activations: layer name -> activations (N, C, H, W). C, H and W may differ between layers; d is the sum of the
            layers' C.
        layers: names of the layers to use.

    Raises:
        CommandError: the activations of a layer are missing.
    """
    vectors = []
    for activation in chosen(activations, layers):
        means = activation.mean(dim=(2, 3))
        # vector_norm, and not a square root of a sum, because its gradient is finite for activations of zero
        size = torch.linalg.vector_norm(means, dim=1, keepdim=True) / means.shape[1] ** 0.5
        vectors.append(means / size.clamp_min(1e-12))
    return torch.cat(vectors, dim=1)


def freeze(network: nn.Module) -> None:
    """Switch `network` to evaluation mode and exclude its weights from gradients; gradients of images still flow."""
    network.eval().requires_grad_(False)


def initialize_like_he(network: nn.Module) -> None:
    """Draw random weights for all convolutions, scaled so that activations keep their variance (He et al. 2015).

    Biases become 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def at_least_float32(x: Tensor) -> torch.dtype:
    """Return the dtype of `x`, or float32 if `x` has fewer bits."""
    return torch.promote_types(x.dtype, torch.float32)
