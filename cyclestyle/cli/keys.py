"""Config keys with a special role: not parsed, changeable on resume, stored in exported files, or renamed."""

import copy
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple


class Key(NamedTuple):
    """Special roles of one config key; the roles of a node also apply to all keys in the node."""

    typed: Literal["path", "text"] | None = None  # value is taken as typed, with any characters; `~` expands in paths
    may_change: bool = (
        False  # may differ on resume: the key sets where or how a run is computed, when it stops, or what it reports
    )
    exported: bool = False  # in the training summary of exported files, since the key affects translations


KEYS: dict[str, Key] = {
    "seed": Key(exported=True),
    "name": Key(typed="text", may_change=True),
    "run_dir": Key(typed="path", may_change=True),
    "init": Key(typed="path", may_change=True),
    "plugins": Key(may_change=True),
    "logger": Key(may_change=True),
    "tasks": Key(may_change=True),
    "scores": Key(may_change=True),
    "scores.path": Key(typed="path", may_change=True),
    "resume": Key(may_change=True),
    "checkpoint": Key(typed="path", may_change=True),  # a path for translate, evaluate and export
    "input": Key(typed="path"),
    "output": Key(typed="path"),
    "truth": Key(typed="path"),
    "target": Key(typed="path"),
    "path": Key(typed="path"),
    "direction": Key(typed="text"),
    "features.path": Key(typed="path"),
    "data.root": Key(typed="path", may_change=True),  # a resume compares the lists of files instead
    "data.a": Key(typed="path", may_change=True),
    "data.b": Key(typed="path", may_change=True),
    "data.test_a": Key(typed="path", may_change=True),
    "data.test_b": Key(typed="path", may_change=True),
    "data.domain_a": Key(typed="text"),
    "data.domain_b": Key(typed="text"),
    "data.workers": Key(may_change=True),
    "data.homepage": Key(may_change=True),
    "data.bad_files": Key(may_change=True),
    "data.tolerance": Key(may_change=True),
    "data.resize": Key(exported=True),
    "data.load_size": Key(exported=True),
    "data.crop_size": Key(exported=True),
    "data.colour": Key(exported=True),
    "data.decoder": Key(exported=True),
    "data.range": Key(exported=True),
    "data.channels_a": Key(exported=True),
    "data.channels_b": Key(exported=True),
    "objective.cycle_a": Key(exported=True),
    "objective.cycle_b": Key(exported=True),
    "objective.identity": Key(exported=True),
    "pool.size": Key(exported=True),
    "augment.robust": Key(exported=True),
    "ema.decay": Key(exported=True),
    "optimizer.lr": Key(exported=True),
    "schedule.constant_epochs": Key(exported=True),
    "schedule.decay_epochs": Key(exported=True),
    "trainer.batch_size": Key(exported=True),
    "trainer.precision": Key(exported=True),
    "trainer.steps": Key(may_change=True),
    "trainer.epochs": Key(may_change=True),
    "trainer.log_every": Key(may_change=True),
    "trainer.sample_every": Key(may_change=True),
    "trainer.save_every": Key(may_change=True),
    "trainer.device": Key(may_change=True),
    "trainer.devices": Key(may_change=True),
    "trainer.threads": Key(may_change=True),
    "trainer.compile": Key(may_change=True),
    "trainer.deterministic": Key(may_change=True),
    "trainer.accumulate": Key(may_change=True),
    "trainer.backward": Key(may_change=True),
    "trainer.recompute": Key(may_change=True),
    "trainer.on_nonfinite": Key(may_change=True),
    "trainer.on_explosion": Key(may_change=True),
    "trainer.timeout_s": Key(may_change=True),
    "trainer.profile": Key(may_change=True),
    "trainer.cuda_graphs": Key(may_change=True),
}

PATHS = frozenset(name for name, key in KEYS.items() if key.typed == "path")
TAKEN_AS_TYPED = frozenset(name for name, key in KEYS.items() if key.typed)
INTERPOLATED = frozenset({"name", "run_dir"})  # taken as typed, except that ${...} is replaced as in YAML files
NEEDED = frozenset({"data.crop_size"})  # keys of components that the program itself reads
MAY_CHANGE = tuple(name for name, key in KEYS.items() if key.may_change)
EXPORTED = tuple(name for name, key in KEYS.items() if key.exported)


def may_change(key: str) -> bool:
    """Return whether a resumed run may change `key`: `MAY_CHANGE` lists the key or a node that contains it."""
    return any(key == allowed or key.startswith(f"{allowed}.") for allowed in MAY_CHANGE)


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one that maps dotted keys to values; put `prefix` before each key."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


class Renamed(NamedTuple):
    """Present name of a renamed key; `values` maps former values of the key to present ones."""

    key: str
    values: Mapping[str, str] = {}


RENAMED = {
    "checkpoint.background": Renamed("checkpoint.asynchronous"),
    "trainer.memory": Renamed("trainer.backward", {"lean": "split"}),
    "data.small": Renamed("data.small_images"),
    "data.background": Renamed("data.transparent_as"),
}
_RENAMED_DATA = {"cyclestyle.data.UnpairedFolders", "cyclestyle.data.drawn_scenes"}  # targets with renamed keys
# Keys that earlier versions lacked, with their behaviour.
ADDED_DATA = {
    "colour": "raw", "channels_a": 3, "channels_b": 3, "tolerance": 0.01, "decoder": "earlier", "range": "full"
}  # fmt: skip
RENAMED_TARGETS = {
    "cyclestyle.data.Unpaired": "cyclestyle.data.UnpairedFolders",
    "cyclestyle.losses.LeastSquares": "cyclestyle.objectives.adversarial.LeastSquares",
    "cyclestyle.losses.BinaryCrossEntropy": "cyclestyle.objectives.adversarial.BinaryCrossEntropy",
    "cyclestyle.losses.Hinge": "cyclestyle.objectives.adversarial.Hinge",
}


# Further keys that earlier versions lacked, with the values that hold for their runs. A config of an earlier version is
# recognised by its objective, which has no `_target_`.
ADDED: dict[str, Any] = {
    "plugins": [],
    "objective._target_": "cyclestyle.objectives.cyclegan.CycleGAN",
    "objective.terms": {},
    "objective.discriminator_terms": {},
    "schedule._target_": "cyclestyle.training.schedule.LinearDecay",
    "pool._target_": "cyclestyle.objectives.image_pool.ImagePool",
    "ema._target_": "cyclestyle.training.ema.make_ema",
    "ema.start": 0,
    "ema.warm_up": True,
    "tasks": {},
    "trainer.clip_norm": None,
    "trainer.on_explosion": "warn",
    "checkpoint.best": None,
    "checkpoint.mode": "min",
}
# Root nodes that whole configs of earlier versions lacked, with the values that hold for their runs.
ADDED_ROOTS: dict[str, dict[str, Any]] = {"augment": {"robust": 0.0}}
WHOLE = {"name", "seed", "run_dir"}  # root keys by which a whole config is recognised


def with_present_names(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a config of an earlier version, with its keys, values and `_target_`s renamed to present ones.

    Keys that the earlier version lacked are added, with the values that reproduce its behaviour. The node `data` is not
    changed if its `_target_` is not part of this package.

    Args:
        recipe: the config, as nested dicts.
    """
    config = _rename(recipe, "")
    if isinstance(config.get("objective"), dict) and "_target_" not in config["objective"]:
        _add_keys(config)
    if config.keys() >= WHOLE:
        config = copy.deepcopy(ADDED_ROOTS) | config
    data = config.get("data")
    if isinstance(data, Mapping) and data.get("_target_") not in _RENAMED_DATA:
        config["data"] = recipe["data"]  # a component of the user's own, whose keys are not ours to rename
    elif isinstance(data, Mapping):
        config["data"] = config["data"] | {key: value for key, value in ADDED_DATA.items() if key not in config["data"]}
    return config


def _add_keys(config: dict[str, Any]) -> None:
    """Add the keys in `ADDED` that `config` lacks; add no key whose parent node does not exist."""
    for key, value in ADDED.items():
        path, _, name = key.rpartition(".")
        node = config.get(path) if path else config
        if isinstance(node, dict):
            node.setdefault(name, copy.deepcopy(value))


def _rename(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    renamed_node: dict[str, Any] = {}
    for name, value in node.items():
        renamed = RENAMED.get(f"{prefix}{name}")
        if isinstance(value, Mapping):
            renamed_node[name] = _rename(value, f"{prefix}{name}.")
        elif renamed is not None:
            is_renamed = isinstance(value, str) and value in renamed.values
            renamed_node[renamed.key.rpartition(".")[2]] = renamed.values[value] if is_renamed else value
        elif name == "_target_" and isinstance(value, str):
            renamed_node[name] = RENAMED_TARGETS.get(value, value)
        else:
            renamed_node[name] = value
    return renamed_node
