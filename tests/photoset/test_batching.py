"""Batching of images of mixed sizes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cyclestyle.photoset import batching


def photo(width: int, height: int, dtype: torch.dtype = torch.uint8) -> batching.QueuedPhoto:
    return batching.QueuedPhoto(Path("x.png"), torch.zeros(3, height, width, dtype=dtype))


def test_each_batch_holds_one_image_size_and_no_image_is_lost() -> None:
    widths = [8, 9, 8, 8, 10, 9, 8, 8, 8, 9]
    result = list(batching.batches((photo(width, 8) for width in widths), 3))
    assert all(len({item.pixels.shape for item in batch}) == 1 and len(batch) <= 3 for batch in result)
    assert sorted(item.pixels.shape[-1] for batch in result for item in batch) == sorted(widths)
    assert [len(batch) for batch in result if batch[0].pixels.shape[-1] == 8] == [3, 3]


def test_first_batch_size_argument_limits_only_the_first_batch() -> None:
    result = list(batching.batches((photo(8, 8) for _ in range(10)), 4, first_batch_size=1))
    assert [len(batch) for batch in result] == [1, 4, 4, 1]


def test_8_and_16_bit_images_do_not_share_a_batch() -> None:
    dtypes = [torch.uint8, torch.uint16] * 4
    result = list(batching.batches((photo(8, 8, dtype) for dtype in dtypes), 8))
    assert sorted(len(batch) for batch in result) == [4, 4]
    assert all(len({item.pixels.dtype for item in batch}) == 1 for batch in result)


def test_large_images_have_smaller_batches() -> None:
    result = list(batching.batches([photo(1024, 1024)] * 4 + [photo(2000, 1500)] * 2, 8))
    assert [len(batch) for batch in result] == [2, 2, 1, 1]
    result = list(batching.batches([photo(8, 8)] * 6, 8, max_batch=lambda height, width: 4))
    assert [len(batch) for batch in result] == [4, 2]


@pytest.mark.parametrize(("side", "batch_size", "limit"), [(16, 8, 32), (1000, 64, 34)])
def test_number_of_waiting_images_is_limited_if_all_sizes_differ(side: int, batch_size: int, limit: int) -> None:
    held = highest = 0

    def photos() -> Iterator[batching.QueuedPhoto]:
        nonlocal held, highest
        for n in range(60):
            held += 1
            highest = max(highest, held)
            yield photo(side + n % 40, side + n // 40)

    for batch in batching.batches(photos(), batch_size):
        held -= len(batch)
    assert held == 0
    assert highest <= limit
