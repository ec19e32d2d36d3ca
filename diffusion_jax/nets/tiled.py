"""Images too large for one call: a function of images evaluated tile by tile, and its results blended.

    y = sum_k w_k f(x_k) / sum_k w_k                                                                          (1)

x_k are overlapping tiles, all of one size, and w_k rises linearly from the tile's edge over the overlap. One tile is in
memory at a time. Where f looks no further than its pixel, (1) is f itself; an autoencoder looks everywhere, through its
attention and its norms, so tiles change its result a little, and the overlap hides where they meet.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion_jax.nets import checks
from diffusion_jax.types import Array


def tiled(apply: Callable[[Array], Any], *, tile: int, overlap: int) -> Callable[[Array], Any]:
    """Return `apply` evaluated in tiles of `tile` by `tile` pixels that share `overlap`, Eq. (1).

    `apply` maps images (B, H, W, C) to an array, or to a tree of arrays, of images larger or smaller by one factor.
    An image of one tile is handed to it whole.
    """
    checks.whole("tiled", 1, tile=tile)
    checks.whole("tiled", 0, overlap=overlap)
    if overlap >= tile:
        raise ValueError(f"tiled: overlap = {overlap} leaves nothing of a tile of {tile}; a quarter is usual.")

    def evaluate(x):
        sides = x.shape[1:3]
        if max(sides) <= tile:
            return apply(x)
        window = tuple(min(side, tile) for side in sides)
        part = jax.ShapeDtypeStruct((x.shape[0], *window, x.shape[-1]), x.dtype)
        leaves, structure = jax.tree.flatten(jax.eval_shape(apply, part))
        starts = [_starts(side, size, overlap) for side, size in zip(sides, window, strict=True)]
        corners = np.stack([corner.ravel() for corner in np.meshgrid(*starts, indexing="ij")], 1)
        scaled = [_Scale(leaf.shape, window[0], corners, sides, overlap) for leaf in leaves]

        def add(totals, corner):
            row, column = corner
            results = jax.tree.leaves(apply(lax.dynamic_slice(x, (0, row, column, 0), part.shape)))
            parts = zip(scaled, totals, results, strict=True)
            return [scale.added(total, result, corner) for scale, total, result in parts], None

        totals, _ = lax.scan(add, [scale.empty() for scale in scaled], jnp.asarray(corners))
        blended = [
            (total / scale.weight).astype(leaf.dtype) for scale, total, leaf in zip(scaled, totals, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, blended)

    return evaluate


class _Scale:
    """Where the tiles of one result lie, and what each of its pixels is divided by."""

    def __init__(self, shape, size, corners, sides, overlap):
        self.shape = shape
        divisor = math.gcd(shape[1], size)
        self.up, self.down = shape[1] // divisor, size // divisor
        steps = np.array([*corners.ravel(), *sides, overlap])
        if np.any(steps % self.down):
            raise ValueError(
                f"tiled: results are {self.down} times smaller than the images, so the tile, the overlap ({overlap}) "
                f"and the sides ({sides[0]} by {sides[1]}) must be multiples of {self.down}."
            )
        self.sides = tuple(side * self.up // self.down for side in sides)
        rows, columns = (_ramp(length, overlap * self.up // self.down) for length in shape[1:3])
        self.ramp = np.outer(rows, columns).astype(np.float32)[None, :, :, None]
        weight = np.zeros((1, *self.sides, 1), np.float32)
        for row, column in corners * self.up // self.down:
            weight[:, row : row + shape[1], column : column + shape[2]] += self.ramp
        self.weight = weight

    def empty(self):
        return jnp.zeros((self.shape[0], *self.sides, self.shape[3]), jnp.float32)

    def added(self, total, result, corner):
        row, column = corner * self.up // self.down
        place = (0, row, column, 0)
        before = lax.dynamic_slice(total, place, self.shape)
        return lax.dynamic_update_slice(total, before + result.astype(jnp.float32) * self.ramp, place)


def _starts(side, size, overlap):
    """Return where tiles begin; the last ends with the image."""
    return np.array([*range(0, side - size, size - overlap or 1), side - size])


def _ramp(length, overlap):
    """Rise over the overlap, stay at 1, and fall; never 0."""
    place = np.arange(length) + 0.5
    return np.minimum(1, np.minimum(place, length - place) / max(overlap, 0.5))
