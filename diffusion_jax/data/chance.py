"""Chance that belongs to an example: random numbers named by purpose, seed, epoch and example, and by nothing else.

Philox turns a key and a counter into random numbers (Salmon et al. 2011). Purpose and seed are the key; epoch and
example are the upper half of the counter, whose lower half then has 2^128 numbers for each. So no two streams ever
meet, and none depends on which others were drawn from before, in which batch, process or host.
"""

import numpy as np

ORDER, POINTS, PLANE, SCENE, TRANSFORM = range(5)  # purposes
WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # by which Philox moves its key from round to round


def generator(purpose: int, seed: int, *, epoch: int = 0, example: int = 0) -> np.random.Generator:
    """Return the random numbers of one example in one epoch, for one purpose."""
    return np.random.Generator(np.random.Philox(key=[seed, purpose], counter=[0, 0, epoch, example]))


def words(purpose: int, seed: int, examples: np.ndarray) -> np.ndarray:
    """Return the first four words (n, 4) in 64 bits of each example's stream in epoch 0, of all examples at once."""
    examples = np.asarray(examples, np.uint64)
    # Philox adds one to the counter before it draws.
    a, b, c, d = np.ones_like(examples), np.zeros_like(examples), np.zeros_like(examples), examples
    key = [np.uint64(seed), np.uint64(purpose)]
    for _ in range(10):
        (high, low), (higher, lower) = _product(a, 0xD2E7470EE14C6C93), _product(c, 0xCA5A826395121157)
        a, b, c, d = higher ^ b ^ key[0], lower, high ^ d ^ key[1], low
        key = [np.uint64((int(word) + step) % 2**64) for word, step in zip(key, WEYL, strict=True)]
    return np.stack([a, b, c, d], -1)


def uniforms(words: np.ndarray) -> np.ndarray:
    """Turn 64-bit words into numbers in [0, 1)."""
    return (words >> np.uint64(11)) * 2.0**-53


def _product(x, factor):
    """Return the upper and the lower 64 bits of a product."""
    factor, half, low = np.uint64(factor), np.uint64(32), np.uint64(0xFFFFFFFF)
    x_high, x_low, f_high, f_low = x >> half, x & low, factor >> half, factor & low
    middle = x_high * f_low + (x_low * f_low >> half)
    across = x_low * f_high + (middle & low)
    return x_high * f_high + (middle >> half) + (across >> half), x * factor


def check_seed(seed: int, what: str) -> int:
    """Return a seed that `generator` takes, or refuse it."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"{what}: seed is {seed}; it must be from 0 to 2^63 - 1.")
    return seed
