"""Two folders of unpaired training images, one for each domain."""

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
from cyclestyle.images import decoding, reading
from cyclestyle.images.decoders import Colour
from cyclestyle.images.reading import Channels


class UnpairedFolders:
    """Training images and probe images of two domains; the order of the files depends on their names alone.

    Probe images are fixed images that are translated at regular intervals during training.

    The constructor lists the folders and opens no file; `inspect` then decodes each file. Without `inspect`, damaged
    files are detected and replaced when training reads them.

    Args:
        root: folder with the subfolders `trainA`, `trainB` and, optionally, `testA`, `testB`.
        a, b: the two training folders, searched recursively; they override `trainA` and `trainB` in `root`.
        test_a, test_b: folders with the probe images; they override `testA` and `testB` in `root`. Without a test
            folder, training images of the domain are used as probe images.
        domain_a, domain_b: names of the domains; joined by `2`, they name a direction, such as `photo2monet`.
        resize, load_size, crop_size, flip: see `Crop`.
        bad_files: with `skip`, up to 1 % of the files in a folder, rounded down, may be unreadable (none in a folder of
            fewer than 100 files); they are left out, and files that become unreadable later are replaced. With `error`,
            every unreadable file is an error.
        small_images: treatment of images that are smaller than the crop after resizing: `resize` enlarges them,
            `skip` leaves them out, `error` raises a DataError. Small images do not count as unreadable.
        max_pixels: maximum number of pixels of an image; larger images are left out without being decoded, and do not
            count as unreadable.
        transparent_as: background colour for transparent images; see `images.decoding.colour`.
        colour: `managed` converts the colours of images that have an ICC profile to sRGB, as translation does; `raw`
            ignores profiles, as earlier versions did. Images without a profile are the same in both.
        channels_a, channels_b: 3 for RGB images of the domain, 1 for grey images.
        workers: number of processes per rank that prefetch batches.
        homepage: address of the data set's download page, shown in the error text if a training folder is missing.

    Attributes:
        train_a, train_b: all training files, unusable ones included.
        files: sizes of all training files in bytes. `files["a"]` and `files["b"]` are dictionaries, keyed by file name
            relative to the training folder, in the order of `train_a` and `train_b`.
        bad: reasons why training files are not used, keyed in the same way; filled by `inspect`.

    Raises:
        CommandError: invalid or contradictory settings.
        DataError: a folder is missing or has fewer than two images, or the domains share a folder.
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
        colour: Colour = "raw",
        channels_a: Channels = 3,
        channels_b: Channels = 3,
        workers: int = 2,
        homepage: str | None = None,
    ) -> None:
        _check_settings(domain_a, domain_b, workers=workers, max_pixels=max_pixels, transparent_as=transparent_as)
        self.domains = (domain_a, domain_b)
        self.crop = Crop(resize=resize, load_size=load_size, crop_size=crop_size, flip=flip)
        self.rules = FileRules(self.crop, bad_files, small_images, max_pixels)
        self.transparent_as, self.workers = transparent_as, workers
        self.colour, self.channels_a, self.channels_b = colour, channels_a, channels_b

        folder_a, folder_b = _folder(a, root, "trainA", "data.a"), _folder(b, root, "trainB", "data.b")
        _check_apart(folder_a, folder_b)
        self._a = _training_images(folder_a, domain_a, homepage)
        self._b = _training_images(folder_b, domain_b, homepage)
        if self._a.listing.folders & self._b.listing.folders:
            raise DataError(
                f"{printable(folder_a.absolute())} and {printable(folder_b.absolute())} have a folder in common, by a "
                f"link: a CycleGAN needs two kinds of pictures"
            )
        self._test_a = _test_images(test_a, root, "testA", "data.test_a", domain_a)
        self._test_b = _test_images(test_b, root, "testB", "data.test_b", domain_b)

        self.train_a, self.train_b = self._a.files, self._b.files
        self.files = {"a": self._a.sizes, "b": self._b.sizes}
        self.bad: dict[str, dict[str, str]] = {"a": {}, "b": {}}

    def inspect(
        self, *, on_progress: Callable[[int, int], None] | None = None, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        """Decode all training and test images, and decide for each file whether it is used; results are cached.

        Args:
            on_progress: function that is called after each opened file with two numbers: files opened so far, and files
                to open in total.
            stopping: function that is polled before the first file and after each file; if it returns True, inspection
                ends early, and no file is marked as unused.

        Raises:
            DataError: a training folder has more unusable files than `bad_files` and `small_images` allow, or fewer
                than two usable files; `bad` then lists all unusable files.
        """
        all_folders = [self._a, self._b, *filter(None, (self._test_a, self._test_b))]
        checks = inspect(
            {images.folder: images.listing.candidates for images in all_folders},
            max_pixels=self.rules.max_pixels,
            colour=self.colour,
            on_progress=on_progress,
            stopping=stopping,
        )
        if checks is None:
            return
        for images in all_folders:
            images.classify(checks[images.folder], self.rules)
        self.bad = {"a": self._a.skipped, "b": self._b.skipped}
        for images in (self._a, self._b):
            images.require_usable(self.rules)

    @property
    def notes(self) -> list[str]:
        """Remarks for the user on the training and test folders, to be logged once; `inspect` adds further remarks."""
        return [
            note
            for images in (self._a, self._b, self._test_a, self._test_b)
            if images is not None
            for note in images.notes
        ]

    def draws(self, seed: int) -> UnpairedDataset:
        """Return the data set of training pairs for a run with seed `seed`; item n is the n-th pair of the run."""
        return UnpairedDataset(
            self.train_a,
            self.train_b,
            crop=self.crop,
            seed=seed,
            bad_a=self._a.skipped_indices,
            bad_b=self._b.skipped_indices,
            replacing=self.rules.bad_files == "skip",
            transparent_as=self.transparent_as,
            colour=self.colour,
            channels_a=self.channels_a,
            channels_b=self.channels_b,
            max_pixels=self.rules.max_pixels,
        )

    def probes(self, count: int) -> tuple[Tensor, Tensor]:
        """Return up to `count` probe images for each domain: two tensors, a and b, uint8 (N, C, crop_size, crop_size).

        C is `channels_a` or `channels_b`. Every call returns the same images.

        Raises:
            DataError: a probe image is unreadable.
        """
        return (
            self._centres(self._test_a, self._a, count, self.channels_a),
            self._centres(self._test_b, self._b, count, self.channels_b),
        )

    def _centres(self, test: ImageFolder | None, train: ImageFolder, count: int, channels: Channels) -> Tensor:
        files = (test.usable if test else []) or train.usable
        images = [
            reading.read_8_bit(
                file,
                channels=channels,
                colour=self.colour,
                transparent_as=self.transparent_as,
                max_pixels=self.rules.max_pixels,
            )
            for file in _evenly_spaced(files, count)
        ]
        return torch.stack([self.crop.centre(image) for image in images])

    def __str__(self) -> str:
        counts = (len(images.files) - len(images.skipped) for images in (self._a, self._b))
        return ", ".join(f"{count} {domain}" for count, domain in zip(counts, self.domains, strict=True))


def drawn_scenes(
    root: str, *, train: int = 300, test: int = 40, size: int = 128, scene_seed: int = 0, **unpaired: object
) -> UnpairedFolders:
    """Return the synthetic landscapes in the folder `root` as training data; the first call draws them.

    Args:
        train: number of images in each of the two training folders.
        test: number of images in each of the two test folders.
        size: side of the square images in px.
        scene_seed: seed of the drawn landscapes, independent of the run's seed.
        unpaired: further settings; see `UnpairedFolders`.
    """
    draw(Path(root), train=train, test=test, size=size, seed=scene_seed, progress=_print_progress)
    return UnpairedFolders(root, **unpaired)  # type: ignore[arg-type]


def _print_progress(done: int, total: int) -> None:
    """Print a line each time that another quarter of the `total` images is done."""
    if done * 4 // total > (done - 1) * 4 // total:
        print(f"drawing landscapes: {done} of {total}", flush=True)


def _folder(folder: str | None, root: str | None, name: str, key: str) -> Path:
    if folder is not None:
        return Path(folder)
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
        raise CommandError(f"data.workers={workers}: give 0 (read in the training process) or more")
    if max_pixels < 1:
        raise CommandError(f"data.max_pixels={max_pixels}: give 1 or more")
    try:
        decoding.colour(transparent_as)
    except ValueError:
        raise CommandError(
            f"data.transparent_as={transparent_as}: give a colour such as white or '\"#808080\"'"
        ) from None


def _check_apart(a: Path, b: Path) -> None:
    """Raise a DataError if both domains use the same folder, or one folder lies inside the other."""
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


def _training_images(folder: Path, domain: str, homepage: str | None) -> ImageFolder:
    remedy = "+experiment=demo needs no data"
    if homepage:
        remedy = f"get the set from {homepage} and unpack it there, or give data.root=; {remedy}"
    where = printable(folder.absolute())
    if not folder.is_dir():
        raise DataError(f"no folder {where} with the pictures of {domain} ({nearest_existing(folder)}): {remedy}")
    images = ImageFolder(folder, f"pictures of {domain}")
    regular = sum(not candidate.reason for candidate in images.listing.candidates)
    if not regular:
        raise DataError(f"no pictures of {domain} in {where}, which contains {list_contents(folder)}: {remedy}")
    if regular == 1:
        raise DataError(
            f"only one picture of {domain} in {where}, which contains {list_contents(folder)}: training needs at least "
            f"two"
        )
    return images


def _test_images(test_folder: str | None, root: str | None, name: str, key: str, domain: str) -> ImageFolder | None:
    """Return the images in `test_folder` or, by default, in `root`/`name`; None if this default does not exist."""
    if test_folder is None and (root is None or not (Path(root) / name).is_dir()):
        return None
    folder = Path(root or "") / name if test_folder is None else Path(test_folder)
    if not folder.is_dir():
        raise DataError(f"no folder {printable(folder.absolute())} with test pictures: correct {key} or leave it out")
    return ImageFolder(folder, f"test pictures of {domain}")


def _evenly_spaced(files: list[Path], count: int) -> list[Path]:
    """Return up to `count` files, spread evenly over the list, because neighbouring files are often alike."""
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]
