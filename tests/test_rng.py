"""Tests that random numbers depend on their key (the seed, the purpose and the count) and on nothing else."""

import itertools

from cyclestyle.rng import rng_for

PURPOSES = ["a", "b", "crop a", "crop b", "pool a", "pool b", "networks 0", "networks 1"]
SEEDS = [0, 1, 2**31, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 1]
COUNTS = [0, 1, 2, 1023, 1024, 1_000_003, 1_000_004, 2**32 - 1]


def test_different_seeds_purposes_and_counts_give_different_numbers() -> None:
    keys = list(itertools.product(SEEDS, PURPOSES, COUNTS))
    values = {int(rng_for(*key).integers(2**63)) for key in keys}
    assert len(values) == len(keys)


def test_same_seed_purpose_and_count_give_same_numbers() -> None:
    for key in itertools.product(SEEDS, PURPOSES, COUNTS):
        assert rng_for(*key).random() == rng_for(*key).random()


def test_negative_seed_is_accepted() -> None:
    assert rng_for(-1, "a").random() != rng_for(1, "a").random()
