"""Losses of content and style on the features of a pretrained network, as functions and as terms of an objective.

Content is compared position by position (Gatys, Ecker and Bethge 2016, eq. 1). Style is compared by statistics over all
positions of a layer: Gram matrices (Gatys, Ecker and Bethge 2016, eq. 3 to 5), or mean and covariance.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from cyclestyle.errors import CommandError
from cyclestyle.networks.frozen import at_least_float32
from cyclestyle.objectives.terms import Direction

CONTENT_LAYER = "relu4_2"
STYLE_LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1")

StyleDistance = Literal["gram", "wasserstein"]

# A layer whose statistics differ less from the target than this share of the target's own size counts as equal to it.
# Its loss is not divided by the tiny difference, which is mostly rounding.
SMALLEST_DIFFERENCE = 1e-4


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of two activations (N, C, H, W), a scalar of float32 at least.

    The paper uses half of the sum instead. That sum grows with the image size; the mean does not.
    """
    dtype = at_least_float32(features)
    return (features.to(dtype) - target.to(dtype)).square().mean()


def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared difference of horizontal neighbours plus that of vertical neighbours, a scalar.

    Images are (N, C, H, W); in a direction with one pixel, the difference is 0.
    """
    images = images.to(at_least_float32(images))
    differences = (images.diff(dim=dim).square() for dim in (-1, -2))
    return sum((squares.sum() / max(squares.numel(), 1) for squares in differences), images.new_zeros(()))


class LayerStatistics(NamedTuple):
    """Sums over the positions of a layer with C channels, for one set of positions or for each of several images.

    All fields are sums, so that the statistics of tiles, images and processes add up to those of the whole. For N
    images, each field has N as its first dimension.
    """

    positions: Tensor  # () or (N,): number of positions
    total: Tensor  # (..., C): sum of the activations
    products: Tensor  # (..., C, C): sum of the products of the activations of each two channels

    def merge(self, other: "LayerStatistics") -> "LayerStatistics":
        """Add the statistics of other positions, such as those of another tile."""
        return LayerStatistics(*(mine + its for mine, its in zip(self, other, strict=True)))

    def over_images(self) -> "LayerStatistics":
        """Add up the statistics of N images; the fields lose their first dimension."""
        return LayerStatistics(*(field.sum(dim=0) for field in self))

    def detach(self) -> "LayerStatistics":
        """Return the statistics without their history of gradients."""
        return LayerStatistics(*(field.detach() for field in self))

    def to(self, dtype: torch.dtype) -> "LayerStatistics":
        """Return the statistics in another floating-point type."""
        return LayerStatistics(*(field.to(dtype) for field in self))

    @property
    def mean(self) -> Tensor:
        """Mean activation of each channel, (..., C)."""
        return self.total / self.positions[..., None]

    @property
    def gram(self) -> Tensor:
        """Gram matrix divided by the number of positions, (..., C, C): its values do not depend on the image size."""
        return self.products / self.positions[..., None, None]

    @property
    def covariance(self) -> Tensor:
        """Covariance matrix of the channels, (..., C, C): a mean over the positions, so 0 for a single position."""
        return self.gram - self.mean[..., :, None] * self.mean[..., None, :]


def layer_statistics(activation: Tensor) -> LayerStatistics:
    """Return the statistics of each image of an activation (N, C, H, W), in float32 at least, also under autocast."""
    x = activation.to(at_least_float32(activation)).flatten(2)  # (N, C, positions)
    with torch.autocast(x.device.type, enabled=False):
        products = x @ x.transpose(1, 2)
    return LayerStatistics(x.new_full((len(x),), x.shape[2]), x.sum(dim=2), products)


def gram_loss(statistics: LayerStatistics, target: LayerStatistics) -> Tensor:
    """Return the mean squared difference of the Gram matrices: a scalar, or (N,) for the statistics of N images.

    The Gram matrices are divided by the number of positions, so that images of different sizes can be compared.
    """
    loss: Tensor = GramDistance(target)(statistics)
    return loss


def wasserstein_loss(statistics: LayerStatistics, target: LayerStatistics) -> Tensor:
    """Return the squared Wasserstein-2 distance to the target: a scalar, or (N,) for the statistics of N images.

    Both sets of activations are taken as Gaussians with their means m and covariances C. The distance is
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C2^1/2 C1 C2^1/2)^1/2) (Dowson and Landau 1982). It is 0 for equal statistics. The
    covariances may be singular, as they are if a layer has fewer positions than channels.
    """
    loss: Tensor = WassersteinDistance(target)(statistics)
    return loss


class GramDistance(nn.Module):
    """`gram_loss` for a fixed target. Without the argument `target`, the target can be loaded from a checkpoint."""

    gram: Tensor

    def __init__(self, target: LayerStatistics | None = None) -> None:
        super().__init__()
        self.register_buffer("gram", None)
        if target is not None:
            self.set_target(target)

    def set_target(self, target: LayerStatistics) -> None:
        """Compare with `target`, the statistics of one set of positions."""
        self.gram = target.detach().gram

    @property
    def size(self) -> Tensor:
        """Distance of the target from activations of 0, a scalar."""
        return self.gram.square().mean()

    def forward(self, statistics: LayerStatistics) -> Tensor:
        return (statistics.gram - self.gram).square().mean(dim=(-2, -1))


class WassersteinDistance(nn.Module):
    """`wasserstein_loss` for a fixed target. Without the argument `target`, the target can be loaded from a checkpoint.

    Matrices are computed in float64: the square roots of the small eigenvalues would be noise in float32.
    """

    mean: Tensor
    root: Tensor

    def __init__(self, target: LayerStatistics | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", None)
        self.register_buffer("root", None)  # symmetric square root of the covariance
        if target is not None:
            self.set_target(target)

    def set_target(self, target: LayerStatistics) -> None:
        """Compare with `target`, the statistics of one set of positions."""
        target = target.detach().to(torch.float64)
        values, vectors = torch.linalg.eigh(target.covariance)
        self.mean = target.mean
        self.root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    @property
    def size(self) -> Tensor:
        """Distance of the target from activations of 0, a scalar."""
        return self.mean.square().sum() + self.root.square().sum()

    def forward(self, statistics: LayerStatistics) -> Tensor:
        exact = statistics.to(torch.float64)
        covariance = exact.covariance
        variances = covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1) + self.root.square().sum()
        error = self._rounding_error(exact, torch.finfo(statistics.total.dtype).eps)
        common = _trace_of_root(self.root @ covariance @ self.root, error=error)
        loss = (exact.mean - self.mean).square().sum(dim=-1) + variances - 2 * common
        return loss.to(statistics.total.dtype)

    def _rounding_error(self, statistics: LayerStatistics, rounding: float) -> Tensor:
        """Return the size of the rounding errors in root @ covariance @ root, one value per covariance.

        Here, `root` is the square root of the target's covariance, and `covariance` is that of `statistics`. The
        latter is computed as a difference of rounded values, as large as those of the Gram matrix.

        Args:
            rounding: machine epsilon of the type in which the statistics were computed.
        """
        largest = self.root.square().sum(dim=-1).amax()  # variance in the target
        values = statistics.gram.detach().diagonal(dim1=-2, dim2=-1).amax(dim=-1)
        # Errors in sums of many products cancel: a hundredth of one rounding is above those measured with VGG16. The
        # minimum keeps derivatives finite for activations of 0.
        return 0.01 * rounding * largest * values.maximum(rounding * largest)


def _trace_of_root(matrix: Tensor, *, error: Tensor) -> Tensor:
    """Return the trace of the square root of symmetric positive semi-definite matrices (..., C, C), of float64.

    The derivative of a square root is infinite at 0. Eigenvalues below the rounding error of the matrix therefore get
    an odd polynomial that continues the square root with the same slope; there, errors of both signs cancel.

    Args:
        error: size of the rounding errors of each matrix, (...).

    Returns:
        One value per matrix; NaN for a matrix with values that are not finite, where the eigenvalues do not exist.
    """
    is_finite = matrix.isfinite().all(dim=-1).all(dim=-1)
    matrix = torch.where(is_finite[..., None, None], matrix, torch.zeros_like(matrix))
    values = torch.linalg.eigvalsh(matrix)
    limit = error[..., None].clamp_min(torch.finfo(values.dtype).tiny)
    share = (values / limit).clamp(-1, 1)
    small = limit.sqrt() * (1.25 * share - 0.25 * share**3)
    roots = torch.where(values < limit, small, values.maximum(limit).sqrt())
    return torch.where(is_finite, roots.sum(dim=-1), math.nan)


DISTANCES: dict[StyleDistance, type[GramDistance] | type[WassersteinDistance]] = {
    "gram": GramDistance,
    "wasserstein": WassersteinDistance,
}


class StyleLoss(nn.Module):
    """Weighted mean over layers of the style distance to a target, relative to the distance of a reference.

    The distance of each layer is divided by its value at the reference, such as the photo that is to be painted. The
    loss is therefore 1 at the reference and 0 at the target, whatever the target, the network and the image size. If
    reference and target have equal statistics, the loss is 0 there, and not 1.

    Target, root and factors are buffers: they are part of the state dict.

    Args:
        distance: `gram` or `wasserstein`, see `gram_loss` and `wasserstein_loss`.
        weights: layer -> weight, 0 or more; the default is equal weights for `STYLE_LAYERS`.

    Raises:
        CommandError: a weight is negative or not finite, or no weight is above 0.
    """

    def __init__(self, distance: StyleDistance = "wasserstein", *, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        weights = dict.fromkeys(STYLE_LAYERS, 1.0) if weights is None else weights
        for layer, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise CommandError(f"weight {weight:g} of layer {layer}: give a finite number, 0 (off) or more")
        if not any(weights.values()):
            raise CommandError("style: no layer has a weight above 0: give a weight to at least one")
        self.weights = {layer: weight / sum(weights.values()) for layer, weight in weights.items() if weight}
        self.distances = nn.ModuleDict({layer: DISTANCES[distance]() for layer in self.weights})
        self.register_buffer("factors", None)  # one per layer: weight / distance of the reference

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers whose statistics are compared."""
        return tuple(self.weights)

    @property
    def is_calibrated(self) -> bool:
        """Whether the loss has a target and a reference, from `calibrate` or from a state dict."""
        return self.factors is not None

    @torch.no_grad()
    def calibrate(self, target: Mapping[str, LayerStatistics], reference: Mapping[str, LayerStatistics]) -> None:
        """Set the target, and divide by the distance of the reference.

        Args:
            target: layer -> statistics of one set of positions.
            reference: layer -> statistics of one set of positions, or of N images, whose mean distance is used.
        """
        factors = []
        for layer, distance in self.distances.items():
            distance.set_target(target[layer])  # type: ignore[operator]
            smallest = SMALLEST_DIFFERENCE * distance.size  # type: ignore[operator]
            value = distance(reference[layer]).mean().double().maximum(smallest)
            # A layer is 0 everywhere if it is without activation in target and reference.
            factors.append(torch.where(value > 0, self.weights[layer] / value, 0.0))
        self.factors = torch.stack(factors).to(reference[layer].total.dtype)

    def forward(self, statistics: Mapping[str, LayerStatistics]) -> Tensor:
        """Return the loss, a scalar; for statistics of N images, the mean of their losses."""
        values = [distance(statistics[layer]).mean() for layer, distance in self.distances.items()]
        return (self.factors * torch.stack(values)).sum()


# Terms of an objective


class Pretrained(Protocol):
    """Function of the program that loads a pretrained network, frozen, by its name; `path` is a file of weights."""

    def __call__(self, name: str, /, *, path: str | None) -> nn.Module: ...


class TrainingImages(Protocol):
    """Function of the program that returns training images of domain a or b, evenly spaced over the files.

    The images are uint8 (N, C, H, W) with N of at most `count`, in the size of training, the same in every call.
    """

    def __call__(self, domain: Literal["a", "b"], /, count: int) -> Tensor: ...


class Features(nn.Module):
    """Activations of a pretrained network for images in [-1, 1]; grey images count as RGB images.

    Args:
        network: pretrained network, see `networks.pretrained`.
        layers: names of the layers whose activations are returned.
        prepare: function that returns the network as a function in the precision of training.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], *, prepare: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.network = network
        self.layers = tuple(layers)
        self._call = prepare(network)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        rgb = (images + 1) / 2
        if rgb.shape[1] == 1:
            rgb = rgb.expand(-1, 3, -1, -1)
        activations: dict[str, Tensor] = self._call(rgb, self.layers)
        return activations


def unchanged(network: nn.Module) -> nn.Module:
    """Return the network itself, to be called in the precision of its weights."""
    return network


class ContentTerm(nn.Module):
    """Content loss between a photo and its translation, relative to the mean square of the photo's activations.

    The loss is 0 if the activations are equal, and 1 if those of the translation are 0, for any network and layer.

    Args:
        pretrained: function that loads the network; the program passes it.
        network: name of the pretrained network, such as `vgg16_hed` or `vgg19`. The scores of the run do not use it.
        path: file of weights, or a folder of such files; None for the cache and installed packages.
        layer: layer whose activations are compared.
        prepare: see `Features`; the program passes it.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        *,
        network: str = "vgg16_hed",
        path: str | None = None,
        layer: str = CONTENT_LAYER,
        prepare: Callable[[nn.Module], Any] = unchanged,
    ) -> None:
        super().__init__()
        self.sees = (network,)
        self.features = Features(pretrained(network, path=path), [layer], prepare=prepare)

    def forward(self, direction: Direction) -> Tensor:
        with torch.no_grad():
            (photos,) = self.features(direction.source).values()
        (fakes,) = self.features(direction.fake).values()
        losses = [
            content_loss(fake, photo) / content_loss(photo, torch.zeros_like(photo))
            for fake, photo in zip(fakes, photos, strict=True)
        ]
        return torch.stack(losses).mean()


class StyleTerm(nn.Module):
    """Style loss of translations against the training images of the target domain, taken together.

    It is the mean of the `StyleLoss` of each translation. The loss is scaled: up to
    `reference_images` untouched images of the source domain have a mean loss of 1.

    The statistics of both domains are computed at the first step, and saved with the checkpoint: a resumed run does
    not compute them again. Each process computes them from all images, so that all have the same.

    Args:
        pretrained: function that loads the network; the program passes it.
        training_images: function that returns training images; the program passes it.
        network, path: see `ContentTerm`.
        distance: `gram` or `wasserstein`, see `gram_loss` and `wasserstein_loss`; `wasserstein` is slower.
        layers: layers whose statistics are compared, with equal weights.
        images: maximum number of training images per domain for its statistics, 1 or more.
        reference_images: maximum number of untouched images whose mean loss is 1, 1 or more.
        prepare: see `Features`; the program passes it.
        report: function that receives a line of progress; the program passes it.

    Raises:
        CommandError: a number of images is below 1, or there are no layers.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        training_images: TrainingImages,
        *,
        network: str = "vgg16_hed",
        path: str | None = None,
        distance: StyleDistance = "gram",
        layers: Sequence[str] = STYLE_LAYERS,
        images: int = 100,
        reference_images: int = 16,
        prepare: Callable[[nn.Module], Any] = unchanged,
        report: Callable[[str], object] = lambda line: None,
    ) -> None:
        super().__init__()
        if min(images, reference_images) < 1:
            raise CommandError(f"style: images={images}, reference_images={reference_images}: give 1 or more")
        self.sees = (network,)
        self.features = Features(pretrained(network, path=path), layers, prepare=prepare)
        weights = dict.fromkeys(layers, 1.0)
        self.losses = nn.ModuleDict({name: StyleLoss(distance, weights=weights) for name in ("ab", "ba")})
        self._training_images, self._report = training_images, report
        self._images, self._reference_images = images, reference_images

    def forward(self, direction: Direction) -> Tensor:
        loss = self.losses[direction.name]
        if not loss.is_calibrated:
            self._calibrate(direction.fake)
        value: Tensor = loss(self._statistics(direction.fake))
        return value

    def _statistics(self, images: Tensor) -> dict[str, LayerStatistics]:
        return {layer: layer_statistics(activation) for layer, activation in self.features(images).items()}

    @torch.no_grad()
    def _calibrate(self, like: Tensor) -> None:
        """Set target and scale of both directions from the training images; `like` has the type and device of images.

        Images are processed one by one, and their statistics are added up: memory does not grow with their number.
        """
        self._report("computing the style of the training images of both domains")
        for name, loss in self.losses.items():
            source: Literal["a", "b"] = "a" if name == "ab" else "b"
            target: Literal["a", "b"] = "b" if name == "ab" else "a"
            total: dict[str, LayerStatistics] = {}
            for each in self._statistics_of(target, self._images, like):
                total = {
                    layer: total[layer].merge(one.over_images()) if total else one.over_images()
                    for layer, one in each.items()
                }
            references = list(self._statistics_of(source, self._reference_images, like))
            loss.calibrate(  # type: ignore[operator]
                total, {layer: joined([each[layer] for each in references]) for layer in total}
            )

    def _statistics_of(
        self, domain: Literal["a", "b"], count: int, like: Tensor
    ) -> Iterator[dict[str, LayerStatistics]]:
        """Yield the statistics of each of up to `count` training images of a domain."""
        for image in self._training_images(domain, count)[:, None]:  # (1, C, H, W) each
            yield self._statistics(image.to(like) / 127.5 - 1)


def joined(parts: Sequence[LayerStatistics]) -> LayerStatistics:
    """Concatenate the statistics of several batches of images along the first dimension."""
    return LayerStatistics(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
