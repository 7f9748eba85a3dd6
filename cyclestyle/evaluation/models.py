"""Models to be scored: the directions in a model file, as functions that translate RGB images."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml  # type: ignore[import-untyped, unused-ignore]

from cyclestyle.checkpoints import directory
from cyclestyle.errors import CommandError
from cyclestyle.images.tensors import with_channels
from cyclestyle.model_files import generator_file
from cyclestyle.photoset.batching import Model
from cyclestyle.translation import Translator

Side = Literal["ab", "ba"]
Domain = Literal["a", "b"]

_ENDS: dict[Side, tuple[Domain, Domain]] = {"ab": ("a", "b"), "ba": ("b", "a")}
_SIDES: dict[str, Domain] = {"a": "a", "b": "b"}
_SPLIT = re.compile(r"(?:train|test|val)[_-]?([ABab])")  # names of folders in data sets, such as testA


class ScoredModel(NamedTuple):
    """A model with all its directions.

    Attributes:
        path: path of the model, as the user gave it.
        translators: translator of each direction, one or two.
        chosen: the direction that the user named; None if none was named.
        losses_see: names of pretrained networks whose features a loss of the training used.
    """

    path: str
    translators: Mapping[Side, Translator]
    chosen: Side | None = None
    losses_see: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path, *, direction: str | None = None, **options: Any) -> "ScoredModel":
        """Load every direction of a model.

        Args:
            direction, options: see `Translator.load`.
        """
        place = Path(path)
        chosen = None if direction is None else Translator.load(place, direction=direction, **options)
        if place.suffix.lower() == ".onnx":  # it holds one direction
            only = chosen or Translator.load(place, **options)
            return cls(str(path), {only.side: only}, only.side if chosen else None)
        files = generator_file.read(place, weights=options.get("weights", "ema"))
        names: Mapping[Side, str | None] = {"ab": "a2b", "ba": "b2a"}
        if len(files.by_side) == 1:  # a file that does not state its direction accepts no name
            names = dict.fromkeys(files.by_side)
        translators = {
            side: chosen if chosen is not None and chosen.side == side
            else Translator.load(place, direction=name, **options)
            for side, name in names.items()
        }  # fmt: skip
        seen = {name for source in files.by_side.values() for name in source.losses_see}
        return cls(str(path), translators, None if chosen is None else chosen.side, tuple(sorted(seen)))

    @property
    def first(self) -> Translator:
        """Translator of the only direction, or of the one from the first domain to the second."""
        return next(iter(self.translators.values()))

    def selected(self, *, source: Path | None = None, target: Path | None = None) -> list[Side]:
        """Return the directions to score: the chosen one, or all.

        If none was chosen, the model has two directions, and `source` is given, the direction follows from the domains
        of the folders. The domain of a folder is known if the folder is a training or test folder of the run, or if its
        name shows the domain, as `testA` does.

        Args:
            source: folder with images of the source domain; None if all directions can be scored.
            target: folder with images of the target domain; None if there is none.

        Raises:
            CommandError: the direction does not follow from the folders.
        """
        if self.chosen is not None:
            return [self.chosen]
        if len(self.translators) == 1 or source is None:
            return list(self.translators)
        domains = self._domain_of(source), None if target is None else self._domain_of(target)
        for side, (first, second) in _ENDS.items():
            if domains in ((first, second), (first, None), (None, second)):
                return [side]
        names = " or ".join(translator.direction for translator in self.translators.values())
        raise CommandError(f"direction= is missing: this model translates {names}")

    def function(self, side: Side) -> Model | None:
        """Return the function that translates uint8 RGB images (N, 3, H, W) in a direction; None if there is none."""
        translator = self.translators.get(side)
        if translator is None:
            return None
        return lambda pixels: with_channels(translator.batch(pixels), 3)

    def _domain_of(self, folder: Path) -> Domain | None:
        """Return the domain of the images in a folder; None if it is unknown."""
        place = folder.resolve()
        for domain, known in _training_folders(Path(self.path)):
            if place == known.resolve():
                return domain
        if match := _SPLIT.fullmatch(place.name):
            return _SIDES[match[1].lower()]
        name = place.name.lower()
        has_a, has_b = (len(word) > 1 and word.lower() in name for word in self.first.domains)
        return None if has_a == has_b else "a" if has_a else "b"


def run_folder(path: Path) -> Path | None:
    """Return the run folder that a model belongs to; None if `path` is a model file or outside a run folder.

    Args:
        path: path of the model: a run folder, a checkpoint folder in it, or one of its pointer files `best` and
            `latest`.
    """
    if path.name in directory.POINTERS:
        path = path.parent
    elif not path.is_dir():
        return None
    candidates = (path, path.parent, path.parent.parent)
    return next((folder for folder in candidates if (folder / "checkpoints").is_dir()), None)


def _training_folders(model: Path) -> Iterator[tuple[Domain, Path]]:
    """Yield the folders that a run was trained on, with their domains; none if the model belongs to no run."""
    run = run_folder(model)
    if run is None:
        return
    try:
        data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
        given = {key: Path(data[key]) for key in ("root", "a", "b", "test_a", "test_b") if data.get(key) is not None}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return
    for domain in _SIDES.values():
        yield from ((domain, given[key]) for key in (domain, f"test_{domain}") if key in given)
        if "root" in given:
            yield from ((domain, given["root"] / f"{split}{domain.upper()}") for split in ("train", "test"))
