"""The order of a run: an endless row of examples, every epoch a fresh permutation, any place of it at once.

Place g of the row lies in epoch g // n, at place g % n of it. The permutation of an epoch is a Feistel network on
pairs (left, right) of residues mod a and b, with a b >= n barely, whose rounds

    left <- left + F(right) mod a,        right <- right + F(left) mod b                                      (1)

are undone by subtracting, hence one to one whatever F is; results of n or more are sent through again until they
fall below n (Black & Rogaway 2002). Nothing is stored and nothing is shuffled, so the order takes no memory, starts
at once at any place, and depends neither on the size of a batch nor on who reads which part of it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from diffusion_jax.data.chance import ORDER, generator

ROUNDS = 12  # with 8 the permutations of five or six things are measurably uneven


class Places(NamedTuple):
    """Where the examples at some places of the row come from: epoch, index in the source.

    `valid` says whether each counts, where a row has a last batch to fill.
    """

    epoch: np.ndarray
    example: np.ndarray
    valid: np.ndarray | None = None


Order: TypeAlias = Callable[[np.ndarray], Places]


def shuffled(n: int, seed: int) -> Order:
    """Return the order of training: endless, every epoch a permutation of its own."""

    def places(row):
        epoch, inside = np.divmod(row, n)
        example = np.empty_like(inside)
        for one in np.unique(epoch):
            mine = epoch == one
            example[mine] = permuted(inside[mine], n, generator(ORDER, seed, epoch=int(one)))
        return Places(epoch, example)

    return places


def in_order(n: int) -> Order:
    """Return the order of evaluation: once through, then the last example again, which does not count."""

    def places(row):
        return Places(np.zeros_like(row), np.minimum(row, n - 1), row < n)

    return places


def permuted(places: np.ndarray, n: int, draw: np.random.Generator) -> np.ndarray:
    """Send places in 0 .. n - 1 to where the permutation that `draw` chooses sends them, Eq. (1)."""
    rows = math.isqrt(n - 1) + 1 if n > 1 else 1
    columns = -(-n // rows)
    salts = draw.integers(0, 2**64, ROUNDS, np.uint64)
    value = places.astype(np.uint64)
    outside = np.ones(value.shape, bool)
    while outside.any():
        left, right = np.divmod(value[outside], np.uint64(columns))
        for turn, salt in enumerate(salts):
            if turn % 2:
                right = (right + _mixed(left + salt) % np.uint64(columns)) % np.uint64(columns)
            else:
                left = (left + _mixed(right + salt) % np.uint64(rows)) % np.uint64(rows)
        value[outside] = left * np.uint64(columns) + right
        outside = value >= n
    return value.astype(np.int64)


def _mixed(word):
    """Scatter 64-bit words: the finaliser of SplitMix64 (Steele et al. 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
