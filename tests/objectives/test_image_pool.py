"""Image pool: comparison with the paper's algorithm, and its division among positions and ranks."""

import numpy as np
import pytest
import torch

from cyclestyle.errors import CommandError
from cyclestyle.objectives.image_pool import ImagePool
from cyclestyle.rng import rng_for


def numbered(draws: list[int]) -> torch.Tensor:
    """Return one image per sample index in `draws`, with the index as its pixel value."""
    return torch.tensor(draws, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def exchanged(pool: ImagePool, draws: list[int]) -> list[int]:
    return [int(value) for value in pool.exchange(numbered(draws), draws)[:, 0, 0, 0]]


def test_unfilled_pool_and_pool_of_size_0_return_inputs() -> None:
    filling, none = (ImagePool(size, batch_size=1, seed=0, purpose="pool a") for size in (50, 0))
    assert [exchanged(filling, [n]) for n in range(50)] == [[n] for n in range(50)]
    assert [exchanged(none, [n]) for n in range(200)] == [[n] for n in range(200)]


def test_pool_with_batch_size_1_matches_paper() -> None:
    pool = ImagePool(5, batch_size=1, seed=3, purpose="pool b")
    stored: list[int] = []
    for draw in range(300):
        if len(stored) < 5:
            stored.append(draw)
            expected = draw
        else:
            random = rng_for(3, "pool b", draw)
            if random.random() < 0.5:
                expected = draw
            else:
                slot = int(random.integers(5))
                expected, stored[slot] = stored[slot], draw
        assert exchanged(pool, [draw]) == [expected]


def test_full_pool_returns_older_images_half_the_time() -> None:
    pool = ImagePool(10, batch_size=1, seed=0, purpose="pool a")
    returned = np.array([exchanged(pool, [draw])[0] for draw in range(2000)])
    fresh = (returned == np.arange(2000))[10:]
    assert 0.45 < fresh.mean() < 0.55
    assert min(int(images[0, 0, 0]) for images in pool.stored[0]) > 1500


@pytest.mark.parametrize(("batch_size", "ranks"), [(4, 2), (6, 3), (4, 4)])
def test_pool_images_are_independent_of_number_of_ranks(batch_size: int, ranks: int) -> None:
    def new_pool() -> ImagePool:
        return ImagePool(9, batch_size=batch_size, seed=1, purpose="pool a")

    joint, shares = new_pool(), [new_pool() for _ in range(ranks)]
    for step in range(30):
        draws = list(range(step * batch_size, (step + 1) * batch_size))
        expected = exchanged(joint, draws)
        for rank, share in enumerate(shares):
            assert exchanged(share, draws[rank::ranks]) == expected[rank::ranks]
    assert all(len(stored) == -(-9 // batch_size) for stored in joint.stored.values())
    states = [share.state_dict() for share in shares]
    assert sorted(position for state in states for position in state) == list(range(batch_size))


def test_restored_pool_continues_bit_exactly() -> None:
    straight, stopped = (ImagePool(6, batch_size=2, seed=0, purpose="pool a") for _ in range(2))
    pairs = [[2 * step, 2 * step + 1] for step in range(40)]
    expected = [exchanged(straight, pair) for pair in pairs]
    for pair in pairs[:17]:
        exchanged(stopped, pair)
    restored = ImagePool(6, batch_size=2, seed=0, purpose="pool a")
    restored.load_state_dict(stopped.state_dict())
    assert [exchanged(restored, pair) for pair in pairs[17:]] == expected[17:]


def test_pool_is_cleared_if_image_size_changes() -> None:
    pool = ImagePool(2, batch_size=1, seed=0, purpose="pool a")
    for draw in range(5):
        pool.exchange(torch.zeros(1, 3, 2, 2), [draw])
    assert pool.exchange(torch.ones(1, 3, 4, 4), [5]).shape == (1, 3, 4, 4)
    assert [image.shape[-1] for image in pool.stored[0]] == [4]


def test_negative_pool_size_is_rejected() -> None:
    with pytest.raises(CommandError, match=r"pool\.size=-1"):
        ImagePool(-1, batch_size=1, seed=0, purpose="pool a")


def test_stored_images_are_copies() -> None:
    pool = ImagePool(2, batch_size=1, seed=0, purpose="pool a")
    image = torch.ones(1, 3, 2, 2)
    pool.exchange(image, [0])
    image.zero_()
    assert pool.stored[0][0].min() == 1
