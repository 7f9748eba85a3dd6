"""Two folders of pictures that were never paired."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cyclestyle.data.crop import Crop, Resize
from cyclestyle.data.dataset import UnpairedDataset
from cyclestyle.data.image_folder import BadFiles, FileRules, ImageFolder, SmallImages
from cyclestyle.data.inspection import inspect
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CommandError, DataError
from cyclestyle.filesystem.listing import list_contents, nearest_existing, printable
from cyclestyle.images import decoding


class UnpairedFolders:
    """The pictures of two domains, found once, in an order that depends on their names alone.

    Building it lists the folders and opens no file; `inspect` then looks into each. Without it, damaged files are
    found, and replaced, when they are drawn.

    Args:
        root: a folder with `trainA`, `trainB` and perhaps `testA`, `testB`; `a` and `b` take their place.
        a, b: the two training folders, searched with all that lies below them.
        test_a, test_b: folders to take the fixed probe pictures from; the training pictures if none are named.
        domain_a, domain_b: what the domains are called; `photo2monet` is made of these.
        resize, load_size, crop_size, flip: see `Crop`.
        bad_files: `skip` trains without files that cannot be read, as long as they are no more than 1 % of a folder's,
            rounded down (of fewer than 100, none), and without those that go bad later; `error` wants all to be good.
        small_images: what becomes of pictures that are smaller than the crop after resizing: `resize` enlarges them,
            `skip` leaves them out, which is not counted towards the 1 %, `error` refuses them.
        max_pixels: larger pictures are left out, which is not counted either, without being decoded.
        transparent_as: what transparent pictures are laid on; see `images.colour`.
        workers: processes that read ahead, in each training process.
        homepage: where the set can be had, for the error when it is missing.

    Attributes:
        train_a, train_b: the training files, with those that cannot be used.
        files: name, relative to its folder, and bytes of each of these, for `a` and for `b`, in order.
        bad: of these the names of those that are not used, and why; known from `inspect` on.

    Raises:
        CommandError: settings that contradict each other.
        DataError: a folder that is missing or has fewer than two pictures, or domains that share a folder.
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
        bad_files: BadFiles = "skip",
        small_images: SmallImages = "resize",
        max_pixels: int = 100_000_000,
        transparent_as: str = "white",
        workers: int = 2,
        homepage: str | None = None,
    ) -> None:
        _check_settings(domain_a, domain_b, workers=workers, max_pixels=max_pixels, transparent_as=transparent_as)
        self.domains = (domain_a, domain_b)
        self.crop = Crop(resize=resize, load_size=load_size, crop_size=crop_size, flip=flip)
        self.policy = FileRules(self.crop, bad_files, small_images, max_pixels)
        self.transparent_as, self.workers = transparent_as, workers

        folder_a, folder_b = _folder(a, root, "trainA", "data.a"), _folder(b, root, "trainB", "data.b")
        _check_apart(folder_a, folder_b)
        self._a = _pictures(folder_a, domain_a, homepage)
        self._b = _pictures(folder_b, domain_b, homepage)
        if self._a.listing.folders & self._b.listing.folders:
            raise DataError(
                f"{printable(folder_a.absolute())} and {printable(folder_b.absolute())} have a folder in common, by a "
                f"link: a CycleGAN needs two kinds of pictures"
            )
        self._test_a = _test_pictures(test_a, root, "testA", "data.test_a", domain_a)
        self._test_b = _test_pictures(test_b, root, "testB", "data.test_b", domain_b)

        self.train_a, self.train_b = self._a.files, self._b.files
        self.files = {"a": self._a.sizes, "b": self._b.sizes}
        self.bad: dict[str, dict[str, str]] = {"a": {}, "b": {}}

    def inspect(
        self, *, tell: Callable[[int, int], None] | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Look into all files, those of the test folders too; what was seen before is remembered (see `inspection`).

        Args:
            tell: called after each file that had to be opened, with how many of those are done, of how many.
            stopping: asked before the first file and after each; if it says yes, nothing is known yet.

        Raises:
            DataError: more files cannot be used than `bad_files` and `small_images` allow, or fewer than two can; `bad`
                has all of them.
        """
        everywhere = [self._a, self._b, *filter(None, (self._test_a, self._test_b))]
        found = inspect(
            {pictures.folder: pictures.listing.candidates for pictures in everywhere},
            max_pixels=self.policy.max_pixels,
            tell=tell,
            stopping=stopping,
        )
        if found is None:
            return
        for pictures in everywhere:
            pictures.classify(found[pictures.folder], self.policy)
        self.bad = {"a": self._a.skipped, "b": self._b.skipped}
        for pictures in (self._a, self._b):
            pictures.require_usable(self.policy)

    @property
    def notes(self) -> list[str]:
        """What somebody should know of the pictures, to be said once; more after `inspect`."""
        return [
            note
            for pictures in (self._a, self._b, self._test_a, self._test_b)
            if pictures is not None
            for note in pictures.notes
        ]

    def draws(self, seed: int) -> UnpairedDataset:
        """The training examples."""
        return UnpairedDataset(
            self.train_a,
            self.train_b,
            crop=self.crop,
            seed=seed,
            bad_a=self._a.skipped_indices,
            bad_b=self._b.skipped_indices,
            replacing=self.policy.bad_files == "skip",
            transparent_as=self.transparent_as,
            max_pixels=self.policy.max_pixels,
        )

    def probes(self, count: int) -> tuple[Tensor, Tensor]:
        """The same few pictures of each domain every time: uint8 (count, 3, crop, crop), fewer if there are fewer.

        Raises:
            DataError: one of them cannot be read.
        """
        return self._centres(self._test_a, self._a, count), self._centres(self._test_b, self._b, count)

    def _centres(self, test: ImageFolder | None, train: ImageFolder, count: int) -> Tensor:
        files = (test.usable if test else []) or train.usable
        read = [
            decoding.read(file, background=self.transparent_as, max_pixels=self.policy.max_pixels)
            for file in _spread(files, count)
        ]
        return torch.stack([self.crop.centre(image) for image in read])

    def __str__(self) -> str:
        counts = (len(pictures.files) - len(pictures.skipped) for pictures in (self._a, self._b))
        return ", ".join(f"{count} {domain}" for count, domain in zip(counts, self.domains, strict=True))


def drawn_scenes(
    root: str, *, train: int = 300, test: int = 40, size: int = 128, scene_seed: int = 0, **unpaired: object
) -> UnpairedFolders:
    """The embedded set: landscapes that the package draws itself, once, into `root`.

    Args:
        train, test: pictures in each training and each test folder.
        size: px, of the square pictures.
        scene_seed: another number, other landscapes.
        unpaired: see `UnpairedFolders`.
    """
    draw(Path(root), train=train, test=test, size=size, seed=scene_seed, progress=_tell_drawing)
    return UnpairedFolders(root, **unpaired)  # type: ignore[arg-type]


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


def _check_settings(domain_a: str, domain_b: str, *, workers: int, max_pixels: int, transparent_as: str) -> None:
    if domain_a == domain_b:
        raise CommandError(f"data.domain_a and data.domain_b are both {domain_a!r}: give them different names")
    for key, name in (("data.domain_a", domain_a), ("data.domain_b", domain_b)):
        if not name or "/" in name:
            raise CommandError(f"{key}={name}: give a word without /, it becomes part of file names")
    if workers < 0:
        raise CommandError(f"data.workers={workers}: give 0 (no processes of their own) or more")
    if max_pixels < 1:
        raise CommandError(f"data.max_pixels={max_pixels}: give 1 or more")
    try:
        decoding.colour(transparent_as)
    except ValueError:
        raise CommandError(
            f"data.transparent_as={transparent_as}: give a colour such as white or '\"#808080\"'"
        ) from None


def _check_apart(a: Path, b: Path) -> None:
    """Raise a DataError if the pictures of one domain would be among those of the other."""
    if not (a.exists() and b.exists()):
        return
    if a.samefile(b):
        raise DataError(f"both domains are {printable(a.resolve())}: a CycleGAN needs two kinds of pictures")
    for inner, outer in ((a, b), (b, a)):
        if inner.resolve().is_relative_to(outer.resolve()):
            raise DataError(
                f"{printable(inner.resolve())} lies inside {printable(outer.resolve())}, so that its pictures would be "
                f"in both domains: give folders side by side"
            )


def _pictures(folder: Path, domain: str, homepage: str | None) -> ImageFolder:
    remedy = "+experiment=demo needs no data"
    if homepage:
        remedy = f"get the set from {homepage} and unpack it there, or give data.root=; {remedy}"
    where = printable(folder.absolute())
    if not folder.is_dir():
        raise DataError(f"no folder {where} with the pictures of {domain} ({nearest_existing(folder)}): {remedy}")
    pictures = ImageFolder(folder, f"pictures of {domain}")
    regular = sum(not candidate.reason for candidate in pictures.listing.candidates)
    if not regular:
        raise DataError(f"no pictures of {domain} in {where}, which contains {list_contents(folder)}: {remedy}")
    if regular == 1:
        raise DataError(
            f"only one picture of {domain} in {where}, which contains {list_contents(folder)}: training needs at least "
            f"two"
        )
    return pictures


def _test_pictures(given: str | None, root: str | None, name: str, key: str, domain: str) -> ImageFolder | None:
    """The pictures of a test folder; none where no folder is named and `root` has none."""
    if given is None and (root is None or not (Path(root) / name).is_dir()):
        return None
    folder = Path(root or "") / name if given is None else Path(given)
    if not folder.is_dir():
        raise DataError(f"no folder {printable(folder.absolute())} with test pictures: correct {key} or leave it out")
    return ImageFolder(folder, f"test pictures of {domain}")


def _spread(files: list[Path], count: int) -> list[Path]:
    """A few files from all over the list: neighbours are often alike."""
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]
