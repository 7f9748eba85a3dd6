"""Two folders of unpaired training images, one for each domain."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cyclestyle.data.crop import Crop, Resize
from cyclestyle.data.dataset import UnpairedDataset
from cyclestyle.data.image_folder import BadFiles, FileRules, ImageFolder, SmallImages
from cyclestyle.data.inspection import inspect
from cyclestyle.data.layouts import images_in, suggestion
from cyclestyle.data.scenes.drawing import draw
from cyclestyle.errors import CommandError, DataError
from cyclestyle.filesystem.listing import list_contents, nearest_existing, printable
from cyclestyle.images import decoding
from cyclestyle.images.decoders import Colour, DecoderName
from cyclestyle.images.reading import Channels, ImageReader, ValueRange


class UsableFiles(NamedTuple):
    """Image files of both domains that `inspect` found usable; a test list is empty if there is no test folder."""

    train_a: list[Path]
    train_b: list[Path]
    test_a: list[Path]
    test_b: list[Path]


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
        bad_files: with `skip`, some of the files in a folder may be unreadable; they are left out, and files that
            become unreadable later are replaced. `use` is like `skip`, but also uses JPEG files that lack their last
            bytes; the missing part is grey. With `error`, every unreadable file is an error.
        tolerance: largest accepted share of unreadable files in a folder, from 0 to 1; the number of files is rounded
            down (0.01 accepts none in a folder of fewer than 100 files).
        small_images: treatment of images that are smaller than the crop after resizing: `resize` enlarges them,
            `skip` leaves them out, `error` raises a DataError. Small images do not count as unreadable.
        max_pixels: maximum number of pixels of an image; larger images are left out without being decoded, and do not
            count as unreadable.
        transparent_as: background colour for transparent images; see `images.decoding.colour`.
        colour: `managed` converts the colours of images that have an ICC profile to sRGB, as translation does; `raw`
            ignores profiles, as earlier versions did. Images without a profile are the same in both.
        decoder: `photo` lists and decodes files as translation does. `earlier` lists and decodes files as earlier
            versions of this program did, so that runs of those versions can be resumed.
        range: values of black and white in 16-bit files, two numbers from 0 to 65535; `full` leaves the values
            unscaled. Files with 8 bits per channel are never scaled.
        channels_a, channels_b: 3 for RGB images of the domain, 1 for grey images.
        workers: number of processes per rank that prefetch batches.
        homepage: address of the data set's download page, shown in the error text if a training folder is missing.

    Attributes:
        train_a, train_b: all training files, unusable ones included.
        test_a, test_b: all test files, unusable ones included; empty without a test folder.
        files: sizes of all training files in bytes. `files["a"]` and `files["b"]` are dictionaries, keyed by file name
            relative to the training folder, in the order of `train_a` and `train_b`.
        bad: reasons why training files are not used, filled by `inspect`. `bad["a"]` and `bad["b"]` are dictionaries,
            keyed by the file names of the unused files.

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
        tolerance: float = 0.01,
        small_images: SmallImages = "resize",
        max_pixels: int = 100_000_000,
        transparent_as: str = "white",
        colour: Colour = "raw",
        decoder: DecoderName = "earlier",
        range: ValueRange = "full",  # noqa: A002 - name of the config key
        channels_a: Channels = 3,
        channels_b: Channels = 3,
        workers: int = 2,
        homepage: str | None = None,
    ) -> None:
        _check_settings(domain_a, domain_b, workers=workers, max_pixels=max_pixels, transparent_as=transparent_as)
        _check_file_settings(tolerance, range, decoder)
        self.domains = (domain_a, domain_b)
        self.crop = Crop(resize=resize, load_size=load_size, crop_size=crop_size, flip=flip)
        self.rules = FileRules(self.crop, bad_files, small_images, max_pixels, tolerance, range == "full")
        self.reader = ImageReader(
            colour=colour,
            decoder=decoder,
            value_range="full" if range == "full" else (range[0], range[1]),
            transparent_as=transparent_as,
            max_pixels=max_pixels,
            incomplete=bad_files == "use",
        )
        self.workers, self.channels_a, self.channels_b = workers, channels_a, channels_b

        folder_a, folder_b = _folder(a, root, "trainA", "data.a"), _folder(b, root, "trainB", "data.b")
        _check_apart(folder_a, folder_b)
        found_elsewhere = _found_elsewhere(a, b, root, self.domains)
        self._a = _training_images(folder_a, domain_a, homepage, decoder, found_elsewhere)
        self._b = _training_images(folder_b, domain_b, homepage, decoder, found_elsewhere)
        if self._a.listing.folders & self._b.listing.folders:
            raise DataError(
                f"{printable(folder_a.absolute())} and {printable(folder_b.absolute())} have a folder in common, by a "
                f"link: a CycleGAN needs two kinds of pictures"
            )
        self._test_a = _test_images(test_a, root, "testA", "data.test_a", domain_a, decoder)
        self._test_b = _test_images(test_b, root, "testB", "data.test_b", domain_b, decoder)

        self.train_a, self.train_b = self._a.files, self._b.files
        self.test_a, self.test_b = ([] if images is None else images.files for images in (self._test_a, self._test_b))
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
            DataError: a training folder has more damaged or small images than `bad_files`, `tolerance` and
                `small_images` permit, or fewer than two usable files; `bad` then lists all unusable files.
        """
        all_folders = [self._a, self._b, *filter(None, (self._test_a, self._test_b))]
        checks = inspect(
            {images.folder: images.listing.candidates for images in all_folders},
            reader=self.reader,
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
            replacing=self.rules.bad_files != "error",
            reader=self.reader,
            channels_a=self.channels_a,
            channels_b=self.channels_b,
        )

    def usable_files(self) -> UsableFiles:
        """Return the files of all folders without those that `inspect` found unusable, in the order of their names."""
        folders = (self._a, self._b, self._test_a, self._test_b)
        return UsableFiles(*([] if images is None else images.usable for images in folders))

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

    def training_images(self, domain: Literal["a", "b"], /, count: int) -> Tensor:
        """Return up to `count` training images of a domain, uint8 (N, C, crop_size, crop_size).

        They are evenly spaced over the usable files. Every call returns the same images.

        Raises:
            DataError: an image is unreadable.
        """
        if domain == "a":
            return self._centres(None, self._a, count, self.channels_a)
        return self._centres(None, self._b, count, self.channels_b)

    def _centres(self, test: ImageFolder | None, train: ImageFolder, count: int, channels: Channels) -> Tensor:
        files = (test.usable if test else []) or train.usable
        images = [self.reader.read(file, channels=channels) for file in _evenly_spaced(files, count)]
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


def _found_elsewhere(a: str | None, b: str | None, root: str | None, domains: tuple[str, str]) -> str:
    """Return the end of an error message: the settings with which the images in or near `root` can be used.

    The text is empty if `root` is None, if `a` and `b` are both given, if `trainA` and `trainB` in `root` both contain
    images, or if `suggestion` recognises no layout.
    """
    if root is None or not (a is None or b is None):
        return ""
    if all(any(True for _ in images_in(Path(root) / name)) for name in ("trainA", "trainB")):
        return ""
    return suggestion(Path(root), domains)


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


def _check_file_settings(tolerance: float, value_range: ValueRange, decoder: DecoderName) -> None:
    if not 0 <= tolerance < 1:
        raise CommandError(f"data.tolerance={tolerance:g}: give the share of damaged files, from 0 to less than 1")
    if value_range == "full":
        return
    low, high = value_range
    if not 0 <= low < high <= 65535:
        raise CommandError(f"data.range=[{low},{high}]: give two values from 0 to 65535, black and then white")
    if decoder == "earlier":
        raise CommandError(
            f"data.range=[{low},{high}] needs data.decoder=photo: this run reads 16-bit files as earlier versions did"
        )


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


def _training_images(
    folder: Path, domain: str, homepage: str | None, decoder: DecoderName, elsewhere: str
) -> ImageFolder:
    remedy = elsewhere or "+experiment=demo needs no data"
    if homepage and not elsewhere:
        remedy = f"get the set from {homepage} and unpack it there, or give data.root=; {remedy}"
    where = printable(folder.absolute())
    if not folder.is_dir():
        raise DataError(f"no folder {where} with the pictures of {domain} ({nearest_existing(folder)}): {remedy}")
    images = ImageFolder(folder, f"pictures of {domain}", decoder=decoder)
    regular = sum(not candidate.reason for candidate in images.listing.candidates)
    if not regular:
        raise DataError(f"no pictures of {domain} in {where}, which contains {list_contents(folder)}: {remedy}")
    if regular == 1:
        raise DataError(
            f"only one picture of {domain} in {where}, which contains {list_contents(folder)}: training needs at least "
            f"two"
        )
    return images


def _test_images(
    test_folder: str | None, root: str | None, name: str, key: str, domain: str, decoder: DecoderName
) -> ImageFolder | None:
    """Return the test images of a domain; None if `test_folder` is None and there is no folder `root`/`name`.

    Args:
        test_folder: folder with the images; None for the folder `root`/`name`.
        key, domain: config key of `test_folder` and name of the domain, for messages.
        decoder: see `ImageFolder`.

    Raises:
        DataError: `test_folder` does not exist, or the folder cannot be listed.
    """
    if test_folder is None and (root is None or not (Path(root) / name).is_dir()):
        return None
    folder = Path(root or "") / name if test_folder is None else Path(test_folder)
    if not folder.is_dir():
        raise DataError(f"no folder {printable(folder.absolute())} with test pictures: correct {key} or leave it out")
    return ImageFolder(folder, f"test pictures of {domain}", decoder=decoder)


def _evenly_spaced(files: list[Path], count: int) -> list[Path]:
    """Return up to `count` files, spread evenly over the list, because neighbouring files are often alike."""
    count = min(count, len(files))
    return [files[index * len(files) // count] for index in range(count)]
