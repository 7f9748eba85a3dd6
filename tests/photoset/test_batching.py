"""Batches of one size, however sizes come."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cyclestyle.photoset import batching


def photo(width: int, height: int, dtype: torch.dtype = torch.uint8) -> batching.QueuedPhoto:
    return batching.QueuedPhoto(Path("x.png"), torch.zeros(3, height, width, dtype=dtype))


def test_batches_are_of_one_size_and_lose_nothing() -> None:
    widths = [8, 9, 8, 8, 10, 9, 8, 8, 8, 9]
    made = list(batching.batches((photo(width, 8) for width in widths), 3))
    assert all(len({one.pixels.shape for one in batch}) == 1 and len(batch) <= 3 for batch in made)
    assert sorted(one.pixels.shape[-1] for batch in made for one in batch) == sorted(widths)
    assert [len(batch) for batch in made if batch[0].pixels.shape[-1] == 8] == [3, 3]


def test_the_first_batch_may_be_small_so_that_something_is_seen_soon() -> None:
    made = list(batching.batches((photo(8, 8) for _ in range(10)), 4, first=1))
    assert [len(batch) for batch in made] == [1, 4, 4, 1]


def test_8_and_16_bits_do_not_share_a_batch() -> None:
    kinds = [torch.uint8, torch.uint16] * 4
    made = list(batching.batches((photo(8, 8, kind) for kind in kinds), 8))
    assert sorted(len(batch) for batch in made) == [4, 4]
    assert all(len({one.pixels.dtype for one in batch}) == 1 for batch in made)


def test_large_pictures_go_in_smaller_batches() -> None:
    made = list(batching.batches([photo(1024, 1024)] * 4 + [photo(2000, 1500)] * 2, 8))
    assert [len(batch) for batch in made] == [2, 2, 1, 1]
    made = list(batching.batches([photo(8, 8)] * 6, 8, most=lambda height, width: 4))
    assert [len(batch) for batch in made] == [4, 2]


@pytest.mark.parametrize(("side", "batch_size", "most"), [(16, 8, 32), (1000, 64, 34)])
def test_sets_where_all_sizes_differ_are_not_held_back(side: int, batch_size: int, most: int) -> None:
    held = highest = 0

    def coming() -> Iterator[batching.QueuedPhoto]:
        nonlocal held, highest
        for n in range(60):
            held += 1
            highest = max(highest, held)
            yield photo(side + n % 40, side + n // 40)

    for batch in batching.batches(coming(), batch_size):
        held -= len(batch)
    assert held == 0
    assert highest <= most
