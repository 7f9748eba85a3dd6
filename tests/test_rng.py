"""Random decisions are functions of seed, purpose and count, and differ in each of them."""

import itertools

from cyclestyle.rng import rng_for

PURPOSES = ["a", "b", "crop a", "crop b", "pool a", "pool b", "networks 0", "networks 1"]
SEEDS = [0, 1, 2**31, 2**53 + 1, 2**63, 2**63 + 1, 2**64 - 1]
COUNTS = [0, 1, 2, 1023, 1024, 1_000_003, 1_000_004, 2**32 - 1]


def test_no_two_decisions_are_the_same() -> None:
    asked = list(itertools.product(SEEDS, PURPOSES, COUNTS))
    told = {int(rng_for(*one).integers(2**63)) for one in asked}
    assert len(told) == len(asked)


def test_the_same_decision_is_always_the_same() -> None:
    for one in itertools.product(SEEDS, PURPOSES, COUNTS):
        assert rng_for(*one).random() == rng_for(*one).random()


def test_a_negative_seed_is_a_seed_too() -> None:
    assert rng_for(-1, "a").random() != rng_for(1, "a").random()
