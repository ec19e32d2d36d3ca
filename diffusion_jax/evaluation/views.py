"""What CLIP and DINOv2 are shown of an image in bytes: resized by Pillow's bicubic filter, cut, shifted and scaled.

    CLIP (its processor in transformers)    the shorter side to `size`, then the square in the middle         (1)
    DINOv2 (dgm-eval, Stein et al. 2023)    both sides to `size`, whatever the shape was                        (2)

Pillow works on bytes and rounds twice. It resizes along the rows first and the columns after, and each time

    out = clip((2^21 + sum_j round(2^22 w_j) in_j) >> 22, 0, 255)                                             (3)

in 32-bit integers: halves go up, and what the filter overshoots is cut off. An axis that has its size is not touched.
(Since version 13 Pillow begins with the columns of tall images that shrink; published numbers are from before.)
"bytes" is (3) exactly. "none" keeps fractions and overshoots, as CMMD's original code does, which resizes numbers in
[0, 1] by `jax.image.resize`. The last step is in float32:

    (byte / 255 - mean) / std                                                                                 (4)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from diffusion_jax.nets.cubic import covered
from diffusion_jax.types import Array

BITS = 22
Resize = Callable[[Any, int, int], Array]


class Statistics(NamedTuple):
    """The mean and standard deviation of the channels of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CLIP = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def middle(images: Any, size: int, resize: Resize, statistics: Statistics = CLIP) -> Array:
    """Return what CLIP sees of bytes (N, H, W, 3), Eqs. (1) and (4): float32 (N, size, size, 3)."""
    height, width = images.shape[1:3]
    short = min(height, width)
    height, width = (size if side == short else int(size * side / short) for side in (height, width))
    top, left = (height - size) // 2, (width - size) // 2
    resized = resize(jnp.asarray(images), height, width)
    return normalised(resized[:, top : top + size, left : left + size], statistics)


def whole(images: Any, size: int, resize: Resize, statistics: Statistics = IMAGENET) -> Array:
    """Return what DINOv2 sees of bytes (N, H, W, 3), Eqs. (2) and (4): float32 (N, size, size, 3)."""
    return normalised(resize(jnp.asarray(images), size, size), statistics)


def normalised(pixels: Array, statistics: Statistics) -> Array:
    """Evaluate Eq. (4)."""
    mean, std = (jnp.asarray(numbers, jnp.float32)[None, None, None] for numbers in statistics)
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def rounded() -> Resize:
    """Resize and round as Pillow does, Eq. (3)."""

    def along(images, axis, target):
        scaled = _weights(images.shape[axis], target) * 2**BITS
        weights = jnp.asarray(np.trunc(scaled + np.copysign(0.5, scaled)), jnp.int32)
        total = jnp.tensordot(images.astype(jnp.int32), weights, ([axis], [1])) + 2 ** (BITS - 1)
        return jnp.moveaxis(jnp.clip(total >> BITS, 0, 255), -1, axis)

    return functools.partial(_separable, along)


def unrounded() -> Resize:
    """Resize in float32 and neither round nor clip."""

    def along(images, axis, target):
        weights = jnp.asarray(_weights(images.shape[axis], target), jnp.float32)
        pixels = images.astype(jnp.float32)
        return jnp.moveaxis(jnp.tensordot(pixels, weights, ([axis], [1]), precision=lax.Precision.HIGHEST), -1, axis)

    return functools.partial(_separable, along)


def _separable(along, images, height, width):
    """Resize the axes that need it, along the rows first."""
    for axis, target in ((2, width), (1, height)):
        if images.shape[axis] != target:
            images = along(images, axis, target)
    return images


@functools.cache
def _weights(size, target):
    return covered(size, target)


ROUNDINGS = {"bytes": rounded, "none": unrounded}
