"""Image pool: a store of past translations for the training of discriminators (Shrivastava et al. 2017)."""

import math

import torch
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.rng import rng_for


class ImagePool:
    """A pool of past translations into one domain, with separate slots for each position in the global batch.

    The global batch, which spans all ranks, has B = `batch_size` positions. Each position has ceil(size / B) slots for
    images. Until the slots of a position are full, each new image is stored and returned. Afterwards, with probability
    1/2 the new image is returned and not stored; otherwise a random stored image is returned, and the new image takes
    its slot. With B = 1, this is the pool of the CycleGAN paper. Random numbers depend only on the seed, `purpose` and
    the number of the training pair in the run. The images returned at a position therefore depend neither on other
    positions nor on the number of ranks.

    Args:
        size: number of slots of the whole pool, rounded up to a multiple of `batch_size`. With 0, each new image is
            returned and none is stored.
        batch_size: number of pairs in the global batch, over all ranks.
        seed: the run's seed.
        purpose: name of this pool's random stream, such as `"pool a"`.

    Raises:
        CommandError: `size` is negative.
    """

    def __init__(self, size: int, *, batch_size: int, seed: int, purpose: str) -> None:
        if size < 0:
            raise CommandError(f"pool.size={size}: give a number of pictures, 0 for none")
        self.slots = math.ceil(size / batch_size)
        self.batch_size, self.seed, self.purpose = batch_size, seed, purpose
        self.stored: dict[int, list[Tensor]] = {}  # position -> at most `slots` images (C, H, W)

    def exchange(self, images: Tensor, draws: list[int]) -> Tensor:
        """Return, for each new image, either this image or an older one from the pool; store new images in the pool.

        Args:
            images: new translations (N, C, H, W), detached.
            draws: for each image, the number of its training pair, counted from 0 over all steps and ranks of the run.
                The image of pair i has position i mod `batch_size`.

        Returns:
            Images (N, C, H, W) on the device of `images`.
        """
        if not self.slots:
            return images
        return torch.stack([self._exchange_one(image, draw) for image, draw in zip(images, draws, strict=True)])

    def _exchange_one(self, image: Tensor, draw: int) -> Tensor:
        stored = self.stored.setdefault(draw % self.batch_size, [])
        if stored and stored[0].shape != image.shape:  # a resumed run may have another crop size
            stored.clear()
        if len(stored) < self.slots:
            stored.append(image.clone())
            return image
        random = rng_for(self.seed, self.purpose, draw)
        if random.random() < 0.5:
            return image
        slot = int(random.integers(self.slots))
        older, stored[slot] = stored[slot], image.clone()
        return older

    def state_dict(self) -> dict[int, Tensor]:
        """Return the images stored on this rank, (images, C, H, W), by their position in the global batch."""
        return {position: torch.stack(stored) for position, stored in self.stored.items()}

    def load_state_dict(self, state: dict[int, Tensor]) -> None:
        """Replace the stored images with those in `state`, which maps positions to images as `state_dict` does."""
        self.stored = {position: list(images.unbind()) for position, images in state.items()}
