"""Registry of the networks that a model file can name: those of this package, and those of plugins.

A plugin is a module that the user names, or an installed package with an entry point; see docs/networks.md. A model
file contains the name of a network and its constructor arguments, never the name of a module.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Literal, NamedTuple

import torch
from torch import nn

from cyclestyle.errors import CheckpointError, CommandError
from cyclestyle.networks.patchgan import PatchDiscriminator
from cyclestyle.networks.pixelgan import PixelDiscriminator
from cyclestyle.networks.resnet import ResNetGenerator
from cyclestyle.networks.texture import TextureDiscriminator
from cyclestyle.networks.unet import UNetGenerator

Kind = Literal["generator", "discriminator"]
Table = dict[str, type[nn.Module]]
Architecture = dict[str, str | int | float | bool]

GENERATORS: Table = {"resnet": ResNetGenerator, "unet": UNetGenerator}
DISCRIMINATORS: Table = {
    "patch": PatchDiscriminator,
    "pixel": PixelDiscriminator,
    "texture": TextureDiscriminator,
}


class Channels(NamedTuple):
    """Numbers of channels of a generator's input and output."""

    input: int
    output: int


ENTRY_POINTS = "cyclestyle.networks"  # entry point group; an entry point has the name of the network, and its class
MAX_PARAMETERS = 2**29  # 2 GiB in float32, 47 times the default generator

_OWN: dict[Kind, Table] = {"generator": GENERATORS, "discriminator": DISCRIMINATORS}
_TABLE_NAMES: dict[Kind, str] = {"generator": "GENERATORS", "discriminator": "DISCRIMINATORS"}
_plugins: dict[Kind, Table] = {"generator": {}, "discriminator": {}}  # networks from `load_plugins`


def load_plugins(modules: Iterable[str]) -> None:
    """Import plugin modules, and add the networks in their tables `GENERATORS` and `DISCRIMINATORS` to the registry.

    A table maps the name of a network to its class. Networks of plugins loaded earlier remain in the registry.

    Raises:
        CommandError: a module cannot be imported or has neither table, a table is malformed, or a name in it belongs to
            another network already.
    """
    for name in modules:
        module = _import(name)
        tables = {kind: getattr(module, attribute, None) for kind, attribute in _TABLE_NAMES.items()}
        if all(table is None for table in tables.values()):
            raise CommandError(
                f"plugins: module {name} has no networks: give it a table such as "
                f'GENERATORS = {{"mine": MyGenerator}} or DISCRIMINATORS = {{...}}'
            )
        for kind, table in tables.items():
            if table is not None:
                _add(kind, table, name)


def build(architecture: Mapping[str, object], *, kind: Kind | None = None) -> nn.Module:
    """Build the network that `architecture` describes: its `name` in the registry, and constructor arguments.

    Arguments missing from `architecture` take their defaults. `architecture` may come from a damaged or hostile model
    file: a CheckpointError, and no other exception, is raised if it is invalid. A network with more than
    `MAX_PARAMETERS` parameters is rejected before memory is allocated for it.

    The name is looked up in the tables of this package, then in those of loaded plugins, and then among the entry
    points of installed packages.

    Args:
        kind: the only accepted kind of network; None accepts both.
    """
    name = architecture.get("name")
    network = _find(name, kind) if isinstance(name, str) and _is_plain(name) else None
    if network is None:
        raise _unknown(name, kind)
    arguments = {key: value for key, value in architecture.items() if key != "name"}
    known = inspect.signature(network).parameters
    for key, value in arguments.items():
        if key not in known:
            raise CheckpointError(f"unknown argument {_shown(key)} of {name}: expected some of {', '.join(known)}")
        if not _is_plain(value):
            raise CheckpointError(f"argument {key} of {name} is {_shown(value)}: expected a number or a word")

    empty = _without_memory(network, name, arguments)
    size = sum(parameter.numel() for parameter in empty.parameters())
    if size > MAX_PARAMETERS:
        raise CheckpointError(
            f"architecture {name} would have {size:,} parameters: expected at most {MAX_PARAMETERS:,}"
        )
    if not _is_own(network):
        is_discriminator = hasattr(empty, "minimum_size")
        if kind and network not in _plugins[kind].values() and is_discriminator != (kind == "discriminator"):
            raise _unknown(name, kind)  # the class of an entry point may be of either kind
        if fault := _architecture_fault(empty, name, arguments):
            raise CheckpointError(fault)
    return network(**arguments)


def with_defaults(architecture: Mapping[str, object]) -> Architecture:
    """Return `architecture` with the default of each missing argument added.

    Old model files lack arguments that were introduced later. Raises CheckpointError under the same conditions as
    `build`.
    """
    with torch.device("meta"):
        network = build(architecture)
    return dict(network.architecture)  # type: ignore[arg-type]


def channels_of(generator: nn.Module) -> Channels:
    """Return the attributes `in_channels` and `out_channels` of a generator; 3 for an attribute that it lacks."""
    return Channels(int(getattr(generator, "in_channels", 3)), int(getattr(generator, "out_channels", 3)))


def require_rebuildable(network: nn.Module, *, kind: Kind) -> None:
    """Raise a CommandError unless `build` can rebuild `network` from its architecture, to load checkpoints later.

    A discriminator must also have the properties `minimum_size` and `receptive_field`.
    """
    label = f"{kind}: {type(network).__name__}"
    architecture = getattr(network, "architecture", None)
    if not isinstance(architecture, Mapping) or not isinstance(architecture.get("name"), str):
        raise CommandError(
            f"{label} has no architecture, without which its checkpoints cannot be loaded: give it the property "
            f'architecture, such as {{"name": "mine", "channels": 64}}'
        )
    if kind == "discriminator" and not (hasattr(network, "minimum_size") and hasattr(network, "receptive_field")):
        raise CommandError(f"{label} needs the properties minimum_size and receptive_field, two numbers of px")
    name = architecture["name"]
    try:
        found = _find(name, kind)
    except CheckpointError as error:
        raise CommandError(f"{label}: {error}") from None
    if found is not type(network):
        raise CommandError(
            f"{label} is not in the table of networks under its name {_shown(name)}, without which its checkpoints "
            f"cannot be loaded: add it to {_TABLE_NAMES[kind]} of a module, and give plugins=[module]"
        )
    try:
        rebuilt = with_defaults(architecture)
    except CheckpointError as error:
        raise CommandError(f"{label} cannot be rebuilt from its architecture: {error}") from None
    if rebuilt != dict(architecture):
        raise CommandError(
            f"{label} cannot be rebuilt from its architecture: {_shown(name)} gives {rebuilt}, not {dict(architecture)}"
        )


def _import(name: object) -> ModuleType:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise CommandError(f"plugins: {name!r} is not the name of a module: expected one such as my.module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise CommandError(
                f"plugins: no module {name}: start the command in its folder, or put that folder into PYTHONPATH"
            ) from None
        raise CommandError(f"plugins: module {name} cannot be imported: {_one_line(error)}") from None
    except Exception as error:  # a module of the user's may raise anything
        raise CommandError(f"plugins: module {name} cannot be imported: {_one_line(error)}") from None


def _add(kind: Kind, table: object, module: str) -> None:
    """Add the networks in `table` to the registry; raise a CommandError if the table is malformed or a name is taken.

    Args:
        table: attribute `GENERATORS` or `DISCRIMINATORS` of the plugin, a mapping from names to classes.
        module: name of the plugin, for error messages.
    """
    where = f"plugins: {_TABLE_NAMES[kind]} of {module}"
    if not isinstance(table, Mapping):
        raise CommandError(f'{where} is {_shown(table)}: expected a mapping such as {{"mine": MyGenerator}}')
    for name, network in table.items():
        if not isinstance(name, str) or not name or not _is_plain(name):
            raise CommandError(f"{where} has the name {_shown(name)}: expected a word of at most 40 characters")
        if not isinstance(network, type) or not issubclass(network, nn.Module):
            raise CommandError(f"{where}: {name} is {_shown(network)}: expected a class derived from torch.nn.Module")
        known = GENERATORS | DISCRIMINATORS | _plugins["generator"] | _plugins["discriminator"]
        if name in known and _qualified(known[name]) != _qualified(network):
            raise CommandError(
                f"{where}: the name {name} of {_qualified(network)} belongs to {_qualified(known[name])}: choose "
                f"another name"
            )
        if not _is_own(network):
            _plugins[kind][name] = network


def _find(name: str, kind: Kind | None) -> type[nn.Module] | None:
    kinds: tuple[Kind, ...] = (kind,) if kind else ("generator", "discriminator")
    for tables in (_OWN, _plugins):
        for one in kinds:
            if name in tables[one]:
                return tables[one][name]
    if any(name in table for tables in (_OWN, _plugins) for table in tables.values()):
        return None  # a network of the other kind
    return _from_entry_point(name)


def _from_entry_point(name: str) -> type[nn.Module] | None:
    """Load the class of the entry point `name`; return None if no installed package has such an entry point."""
    points = {point.value: point for point in entry_points(group=ENTRY_POINTS, name=name)}
    if not points:
        return None
    if len(points) > 1:
        raise CheckpointError(f"architecture {name} is defined by several installed packages: {', '.join(points)}")
    ((value, point),) = points.items()
    try:
        network = point.load()
    except Exception as error:  # a package of the user's may raise anything
        raise CheckpointError(f"architecture {name}: {value} cannot be loaded: {_one_line(error)}") from None
    if not isinstance(network, type) or not issubclass(network, nn.Module):
        raise CheckpointError(f"architecture {name}: {value} is not a class derived from torch.nn.Module")
    return network


def _unknown(name: object, kind: Kind | None) -> CheckpointError:
    kinds: tuple[Kind, ...] = (kind,) if kind else ("generator", "discriminator")
    known = [known for tables in (_OWN, _plugins) for one in kinds for known in tables[one]]
    return CheckpointError(
        f"unknown architecture {_shown(name)}: expected one of {', '.join(known)}; if a package or module of yours "
        f"defines it, give plugins=[module]"
    )


def _without_memory(network: type[nn.Module], name: object, arguments: Mapping[str, object]) -> nn.Module:
    """Build a network whose tensors have shapes but no values."""
    try:
        with torch.device("meta"):
            return network(**arguments)
    except CommandError as error:
        raise CheckpointError(f"impossible architecture {name}: {error}") from None
    except Exception as error:
        if _is_own(network):
            raise
        raise CheckpointError(f"impossible architecture {name}: {_qualified(network)}: {_one_line(error)}") from None


def _architecture_fault(network: nn.Module, name: object, arguments: Mapping[str, object]) -> str:
    """Return why `network` cannot be rebuilt from its attribute `architecture`; empty if it can.

    Args:
        name, arguments: name in the registry and constructor arguments with which `network` was built.
    """
    label = f"network {name} of {_qualified(type(network))}"
    architecture = getattr(network, "architecture", None)
    if not isinstance(architecture, Mapping):
        return f'{label} has no architecture: give it the property architecture, such as {{"name": "{name}"}}'
    described = {"name": name, **arguments}
    if not all(_is_plain(value) for value in architecture.values()):
        return f"{label} has an architecture with more than numbers and words: {_first_line(architecture)}"
    if dict(architecture) | described != dict(architecture):
        return f"{label} has the architecture {_first_line(architecture)}: expected {_first_line(described)} in it"
    values = {key: value for key, value in architecture.items() if key != "name"}
    rebuilt = getattr(_without_memory(type(network), name, values), "architecture", None)
    if rebuilt != architecture:
        return f"{label} is not rebuilt from its architecture {_first_line(architecture)}: {_first_line(rebuilt)}"
    return ""


def _is_own(network: type[nn.Module]) -> bool:
    return network in GENERATORS.values() or network in DISCRIMINATORS.values()


def _qualified(network: type[nn.Module]) -> str:
    return f"{network.__module__}.{network.__qualname__}"


def _is_plain(value: object) -> bool:
    """Return whether `value` is a text of at most 40 characters, a float, or an integer of at most 30 digits.

    Longer integers are excluded because `repr` fails on very long ones.
    """
    if isinstance(value, str):
        return len(value) <= 40
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**30)


def _shown(value: object) -> str:
    return repr(value) if value is None or _is_plain(value) else f"({type(value).__name__})"


def _first_line(value: object) -> str:
    return (str(value).splitlines() or [""])[0][:120]


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {_first_line(error)}"
