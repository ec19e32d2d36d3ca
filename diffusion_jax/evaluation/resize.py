"""How images become what the Inception network sees: 299 x 299 pixels, by a named rule.

Each rule is linear and separable: out = R image C^T with a matrix of weights for the rows and one for the columns. They
differ in where output pixel i looks, from n pixels to 299, and at how many of them:

    TF1:         i n / 299                      at 2 neighbours: corners drift by half a pixel                 (1)
    half pixel:  (i + 1/2) n / 299 - 1/2        at 2 neighbours, so that shrinking aliases                     (2)
    clean:       (i + 1/2) n / 299 - 1/2        at all that a pixel covers, by a bicubic filter                (3)

and in their scale: (b - 128) / 128 for (1) and (3), b / 127.5 - 1 for (2). FIDs of different rules are not comparable;
(1) is that of the original code, and of what ADM, EDM and torch-fidelity report; (2) is pytorch-fid's and (3)
clean-fid's (Parmar et al. 2022).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion_jax.nets.cubic import covered
from diffusion_jax.types import Array

SIZE = 299
Resize = Callable[[Any], Array]

# The originals find their places in float32, and images of high contrast show the digits it lacks.
_INDEX = np.arange(SIZE, dtype=np.float32)


def tf1_bilinear() -> Resize:
    """Interpolate as `resize_bilinear` of TensorFlow 1 does, Eq. (1)."""
    return _rule("tf1_bilinear", lambda size: _two_neighbours(_INDEX * _step(size), size), _tf1_scale)


def half_pixel_bilinear() -> Resize:
    """Interpolate between the centres of pixels, without averaging, Eq. (2)."""

    def weights(size):
        places = (_INDEX + 0.5).astype(np.float64) * _step(size) - 0.5
        return _two_neighbours(np.maximum(places.astype(np.float32), 0), size)

    return _rule("half_pixel_bilinear", weights, lambda pixels: pixels / 127.5 - 1)


def clean() -> Resize:
    """Filter as Pillow does, in float32: cut to 0 .. 255 and never rounded, Eq. (3)."""
    return _rule("clean", lambda size: covered(size, SIZE), lambda pixels: _tf1_scale(jnp.clip(pixels, 0, 255)))


def _tf1_scale(pixels):
    return (pixels - 128) / 128


def _rule(name, weights, scale):
    """Build images (N, H, W, 3) in uint8 -> (N, 299, 299, 3) in float32; each size has its matrices once."""
    matrix = functools.cache(lambda size: np.eye(SIZE) if size == SIZE else weights(size))

    def resize(images):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"{name}: images are {images.dtype} of shape {images.shape}; they must be uint8 (N, height, width, 3): "
                "round them first, by the one rule of data/pixels.py."
            )
        pixels = jnp.asarray(images).astype(jnp.float32)
        for axis in (2, 1):  # as Pillow: along the rows first
            if pixels.shape[axis] != SIZE:
                by = jnp.asarray(matrix(pixels.shape[axis]), jnp.float32)
                turned = jnp.tensordot(pixels, by, ([axis], [1]), precision=lax.Precision.HIGHEST)
                pixels = jnp.moveaxis(turned, -1, axis)
        return scale(pixels)

    return resize


def _step(size):
    return np.float32(size) / np.float32(SIZE)


def _two_neighbours(places, size):
    """Return the matrix (299, size) that interpolates at `places`, which are not below 0."""
    low = np.minimum(np.floor(places).astype(int), size - 1)
    share, rows = places - low, np.arange(SIZE)
    matrix = np.zeros((SIZE, size))
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), share)
    return matrix


RESIZES = {
    "tf1_bilinear": tf1_bilinear,
    "half_pixel_bilinear": half_pixel_bilinear,
    "clean": clean,
}
