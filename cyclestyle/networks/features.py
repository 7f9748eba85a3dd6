"""Activations of inner layers of a network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from cyclestyle.errors import CommandError


class _LastLayerReached(Exception):  # noqa: N818 - ends a forward pass early, not an error
    """Raised to end a forward pass early, once all requested activations are known."""


@contextmanager
def recorded(network: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Context manager: yield a dict that each call of `network` fills with the activations of `layers`.

    Args:
        layers: names of submodules, such as `trunk.0`; the activation of a layer is the output of the submodule.

    Raises:
        CommandError: a name in `layers` is not the name of a submodule, the forward pass did not call one of the
            submodules, or the next layer has overwritten an activation in place.
    """
    activations: dict[str, Tensor] = {}
    versions: dict[str, int] = {}  # number of changes in place, as counted by PyTorch
    handles = []
    for name, layer in [(name, layer_of(network, name)) for name in layers]:

        def record(module: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            activations[name], versions[name] = output, output._version

        handles.append(layer.register_forward_hook(record))
    try:
        yield activations
    finally:
        for handle in handles:
            handle.remove()
    for name in layers:
        if name not in activations:
            raise CommandError(
                f"layer {name}: the forward pass of {type(network).__name__} does not call this layer itself, so it "
                f"has no activations: choose a layer in it or behind it"
            )
        if activations[name]._version != versions[name]:
            raise CommandError(
                f"layer {name}: the next layer of {type(network).__name__} overwrites its activations: choose that "
                f"layer, or build it with inplace=False"
            )


def features(network: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the activations of `layers` for `images`; layers behind the last requested one are not computed.

    Args:
        images: (N, C, H, W).
        layers: see `recorded`, also for errors.
    """
    with recorded(network, layers) as activations:

        def stop_if_complete(*_: object) -> None:
            if len(activations) == len(layers):
                raise _LastLayerReached

        handles = [layer_of(network, name).register_forward_hook(stop_if_complete) for name in layers]
        try:
            network(images)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
    return activations


def layer_of(network: nn.Module, name: str) -> nn.Module:
    """Return the submodule `name` of a network.

    Raises:
        CommandError: there is no such submodule; the message lists those of the first two levels.
    """
    try:
        return network.get_submodule(name)
    except AttributeError:
        known = [key for key, _ in network.named_modules() if key and key.count(".") < 2]
        raise CommandError(
            f"layer {name}: {type(network).__name__} has no such layer, but {', '.join(known)}"
        ) from None
