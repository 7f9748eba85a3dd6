"""The image pool: discriminators see a history of translations, not only the newest (Shrivastava et al. 2017)."""

import math

import torch
from torch import Tensor

from cyclestyle.errors import CommandError
from cyclestyle.rng import rng_for


class ImagePool:
    """A pool of past translations of one domain, split over the positions of the global batch.

    Position s of a batch of B owns ceil(size / B) slots and decides from the seed and the draw alone, so that what it
    returns depends neither on the other positions nor on which process holds it. While its slots fill, a new image is
    returned and stored; afterwards, with probability 1/2 the new image is returned and forgotten, else a random
    stored one is returned and replaced by it. With B = 1 this is the pool of the paper.

    Args:
        size: slots of the whole pool; 0 returns every image as it came.
        batch_size: B, the global batch.
        seed: the run's seed.
        purpose: names this pool's random decisions, such as `"pool a"`.

    Raises:
        CommandError: a negative size.
    """

    def __init__(self, size: int, *, batch_size: int, seed: int, purpose: str) -> None:
        if size < 0:
            raise CommandError(f"pool.size={size}: give a number of pictures, 0 for none")
        self.slots = math.ceil(size / batch_size)
        self.batch_size, self.seed, self.purpose = batch_size, seed, purpose
        self.stored: dict[int, list[Tensor]] = {}  # position -> at most `slots` images (C, H, W)

    def exchange(self, images: Tensor, draws: list[int]) -> Tensor:
        """For each new image, itself or an older one.

        Args:
            images: (N, C, H, W), detached.
            draws: the draw number of each; draw n stands at position n mod B of its batch.

        Returns:
            (N, C, H, W) on the same device.
        """
        if not self.slots:
            return images
        return torch.stack([self._exchange_one(image, draw) for image, draw in zip(images, draws, strict=True)])

    def _exchange_one(self, image: Tensor, draw: int) -> Tensor:
        stored = self.stored.setdefault(draw % self.batch_size, [])
        if stored and stored[0].shape != image.shape:  # a resumed run may have changed its crop
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
        """The stored images of the positions that this process holds: position -> (n, C, H, W)."""
        return {position: torch.stack(stored) for position, stored in self.stored.items()}

    def load_state_dict(self, state: dict[int, Tensor]) -> None:
        """Take over stored images; positions of other processes may be among them and are kept unused."""
        self.stored = {position: list(images.unbind()) for position, images in state.items()}
