"""Chance that belongs to an example: random numbers named by purpose, seed, epoch and example, and by nothing else.

Philox turns a key and a counter into random numbers (Salmon et al. 2011). Purpose and seed are the key; epoch and
example are the upper half of the counter, whose lower half then has 2^128 numbers for each. So no two streams ever
meet, and none depends on which others were drawn from before, in which batch, process or host.
"""

import numpy as np

ORDER, POINTS, PLANE, SCENE, TRANSFORM = range(5)  # purposes


def generator(purpose: int, seed: int, *, epoch: int = 0, example: int = 0) -> np.random.Generator:
    """Return the random numbers of one example in one epoch, for one purpose."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, epoch, example]))


def check_seed(seed: int, what: str) -> int:
    """Return a seed that `generator` takes, or refuse it."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"{what}: seed is {seed}; it must be from 0 to 2^63 - 1.")
    return seed
