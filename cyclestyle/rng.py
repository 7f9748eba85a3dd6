"""Stateless random numbers: each random decision depends on the run's seed, the decision's purpose and a count.

No generator state has to be saved: training example 1,000,003 gets the same crop whether or not this process has
computed the crops of the examples before it.
"""

import zlib

import numpy as np


def rng_for(seed: int, purpose: str, count: int = 0) -> np.random.Generator:
    """Return a random generator that depends only on the arguments: equal arguments give equal random numbers.

    Args:
        purpose: name of the random decision, such as `"crop a"`.
        count: number of the training example, step or other repetition for which the decision is made.
    """
    # The dtype is explicit: numpy would convert a mix of large and small integers to floats and lose bits of the count.
    key = np.array([seed % 2**64, (zlib.crc32(purpose.encode()) << 32) ^ count], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
