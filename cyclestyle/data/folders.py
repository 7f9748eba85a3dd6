"""Two folders of pictures that were never paired."""

from pathlib import Path

import torch
from torch import Tensor

from cyclestyle import images
from cyclestyle.data.draws import Draws
from cyclestyle.data.scenes import draw
from cyclestyle.data.transforms import Crop, Resize
from cyclestyle.errors import CommandError, DataError


class Unpaired:
    """The pictures of two domains, found once, in an order that depends on their names alone.

    Args:
        root: a folder with `trainA`, `trainB` and perhaps `testA`, `testB`; `a` and `b` take their place.
        a, b: the two training folders, searched with all that lies below them.
        test_a, test_b: folders to take the fixed probe pictures from; the training pictures if none are named.
        domain_a, domain_b: what the domains are called; `photo2monet` is made of these.
        resize, load_size, crop_size, flip: see `Crop`.
        workers: processes that read ahead, in each training process.
        homepage: where the set can be had, for the error when it is missing.

    Raises:
        CommandError: settings that contradict each other.
        DataError: a folder that is missing, has no pictures, or one folder given twice.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        a: str | None = None,
        b: str | None = None,
        test_a: str | None = None,
        test_b: str | None = None,
        domain_a: str = "a",
        domain_b: str = "b",
        resize: Resize = "stretch",
        load_size: int = 286,
        crop_size: int = 256,
        flip: bool = True,
        workers: int = 2,
        homepage: str | None = None,
    ) -> None:
        if domain_a == domain_b:
            raise CommandError(f"data.domain_a and data.domain_b are both {domain_a!r}: give them different names")
        for key, name in (("data.domain_a", domain_a), ("data.domain_b", domain_b)):
            if not name or "/" in name:
                raise CommandError(f"{key}={name}: give a word without /, it becomes part of file names")
        if workers < 0:
            raise CommandError(f"data.workers={workers}: give 0 (no processes of their own) or more")
        self.domains = (domain_a, domain_b)
        self.crop = Crop(resize=resize, load_size=load_size, crop_size=crop_size, flip=flip)
        self.workers = workers

        train_a, train_b = _folder(a, root, "trainA", "data.a"), _folder(b, root, "trainB", "data.b")
        if train_a.exists() and train_b.exists() and train_a.samefile(train_b):
            raise DataError(f"both domains are {train_a.resolve()}: a CycleGAN needs two kinds of pictures")
        self.train_a = _pictures(train_a, domain_a, homepage)
        self.train_b = _pictures(train_b, domain_b, homepage)
        self._probes_a = _probe_files(test_a, root, "testA", "data.test_a") or self.train_a
        self._probes_b = _probe_files(test_b, root, "testB", "data.test_b") or self.train_b
        self.files = {"a": _listed(self.train_a, train_a), "b": _listed(self.train_b, train_b)}

    def draws(self, seed: int) -> Draws:
        """The training examples."""
        return Draws(self.train_a, self.train_b, crop=self.crop, seed=seed)

    def probes(self, count: int) -> tuple[Tensor, Tensor]:
        """The same few pictures of each domain every time: uint8 (count, 3, crop, crop), fewer if there are fewer."""
        return (
            torch.stack([self.crop.centre(images.read(file)) for file in _spread(self._probes_a, count)]),
            torch.stack([self.crop.centre(images.read(file)) for file in _spread(self._probes_b, count)]),
        )

    def __str__(self) -> str:
        return f"{len(self.train_a)} {self.domains[0]}, {len(self.train_b)} {self.domains[1]}"


def drawn_scenes(
    root: str, *, train: int = 300, test: int = 40, size: int = 128, scene_seed: int = 0, **unpaired: object
) -> Unpaired:
    """The embedded set: landscapes that the package draws itself, once, into `root`.

    Args:
        train, test: pictures in each training and each test folder.
        size: px, of the square pictures.
        scene_seed: another number, other landscapes.
        unpaired: see `Unpaired`.
    """
    draw(Path(root), train=train, test=test, size=size, seed=scene_seed, progress=_tell_drawing)
    return Unpaired(root, **unpaired)  # type: ignore[arg-type]


def _tell_drawing(done: int, total: int) -> None:
    """A line at every quarter: drawing takes some seconds, once."""
    if done * 4 // total > (done - 1) * 4 // total:
        print(f"drawing landscapes: {done} of {total}", flush=True)


def _folder(given: str | None, root: str | None, name: str, key: str) -> Path:
    if given is not None:
        return Path(given)
    if root is None:
        raise CommandError(f"no training pictures: give data.root, or data.a and data.b ({key} is not set)")
    return Path(root) / name


def _pictures(folder: Path, domain: str, homepage: str | None) -> list[Path]:
    remedy = "+experiment=demo needs no data"
    if homepage:
        remedy = f"get the set from {homepage} and unpack it there, or give data.root=; {remedy}"
    if not folder.is_dir():
        raise DataError(f"no folder {folder.absolute()} with the pictures of {domain}: {remedy}")
    found = [folder / name for name in images.find(folder)]
    if not found:
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:4]) or "nothing"
        raise DataError(f"no pictures of {domain} in {folder.absolute()}, which contains {inside}: {remedy}")
    if len(found) == 1:
        raise DataError(f"only one picture of {domain} in {folder.absolute()}: training needs at least two")
    return found


def _listed(files: list[Path], root: Path) -> list[str]:
    """What tells one data set from another without reading it: names and sizes, in order."""
    return [f"{file.relative_to(root)} ({file.stat().st_size} bytes)" for file in files]


def _probe_files(given: str | None, root: str | None, name: str, key: str) -> list[Path]:
    """The pictures of a test folder; none where no folder is named and `root` has none."""
    if given is None and (root is None or not (Path(root) / name).is_dir()):
        return []
    folder = Path(root or "") / name if given is None else Path(given)
    if not folder.is_dir():
        raise DataError(f"no folder {folder.absolute()} with test pictures: correct {key} or leave it out")
    return [folder / file for file in images.find(folder)]


def _spread(files: list[Path], count: int) -> list[Path]:
    """A few files from all over the list: neighbours are often alike."""
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]
