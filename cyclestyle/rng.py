"""Randomness with an owner: every random decision is a function of the run's seed, a purpose and a count.

Nothing here has state, so that nothing needs saving: draw 1,000,003 decides the same whether or not the
million draws before it were made by this process.
"""

import zlib

import numpy as np


def rng_for(seed: int, purpose: str, count: int = 0) -> np.random.Generator:
    """The random numbers that belong to one purpose (`"crop"`, `"pool a"`) at one count (a draw, a step)."""
    # Of a list that mixes large and small integers numpy makes floats, whose last bits, the count, are gone.
    key = np.array([seed % 2**64, (zlib.crc32(purpose.encode()) << 32) ^ count], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
