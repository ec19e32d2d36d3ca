"""Half and twice the size.

Fixed filters of an even number of taps f, which sum to 1, applied along height and along width:

    half:   y[i] = sum_k f[k] x[2 i + k - p]                 twice:   y[2 i + k - p] += 2 f[k] x[i]             (1)

with p = n / 2 - 1 and zeros outside. A convolution of 3 x 3 and (1) after it, on the whole plane, are the convolution
at every other pixel, without padding, of the image smoothed around every pixel, and before the first:

    smooth:   z[j] = sum_k f[k] x[j + k - p],   j = -1 .. n - 1                                                (2)

Taps 1 1 give the mean of squares and the nearest pixel, 1 3 3 1 the smoother
filter of StyleGAN2 and NCSN++ (Karras et al. 2020; Song et al. 2021). They act inside residual blocks, on both
branches. Learned resampling stands between blocks, as layers of their own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.nets.initial import Scheme
from diffusion_jax.nets.linear import Conv, TransposedConv
from diffusion_jax.types import Array


class Inside(NamedTuple):
    """Resampling without parameters, which blocks apply: x -> x of half, and of twice, the size; and Eq. (2)."""

    down: Callable[[Array], Array]
    up: Callable[[Array], Array]
    smooth: Callable[[Array], Array]


class Between(NamedTuple):
    """Resampling by layers between blocks.

    `down` is (width, initial, name) -> module, for a level of that width; `up` is (width, above, initial, name) ->
    module, towards a level of width `above`.
    """

    down: Callable[..., nn.Module]
    up: Callable[..., nn.Module]


def average() -> Inside:
    """Take the mean of squares of pixels, and repeat pixels (ADM)."""
    return fir(taps=(1, 1))


def fir(*, taps: tuple = (1, 3, 3, 1)) -> Inside:
    """Filter with `taps`, an even number of them, Eq. (1)."""
    taps = tuple(float(tap) for tap in taps)
    if len(taps) % 2 or not taps or taps != taps[::-1] or sum(taps) <= 0:
        raise ValueError(f"fir: taps are {taps}; they must be even in number, symmetric and of positive sum.")
    taps = tuple(tap / sum(taps) for tap in taps)
    return Inside(
        lambda x: _down(_down(x, taps, 1), taps, 2),
        lambda x: _up(_up(x, taps, 1), taps, 2),
        lambda x: _smooth(_smooth(x, taps, 1), taps, 2),
    )


def strided(*, padding: tuple = (1, 1)) -> Between:
    """Convolve every other pixel; repeat pixels and convolve.

    `padding` is where the zeros of the first lie: (0, 1) for DDPM, (1, 1) for ADM and latent diffusion.
    """
    padding = tuple(padding)
    if sorted(padding) not in ([0, 1], [1, 1]):
        raise ValueError(f"strided: padding is {padding}; it must be (1, 1), (0, 1) or (1, 0).")

    def down(width, initial, name):
        return Conv(width, stride=2, padding=padding, initial=initial, name=name)

    return Between(down, lambda width, above, initial, name: RepeatedConv(width, initial, name=name))


def pool() -> Between:
    """Keep the largest of four pixels; make each pixel a square by a transposed convolution (Ronneberger 2015)."""
    return Between(
        lambda width, initial, name: MaxPool(name=name),
        lambda width, above, initial, name: TransposedConv(above, initial, name=name),
    )


class RepeatedConv(nn.Module):
    """Repeat pixels twice along both axes, then convolve."""

    width: int
    initial: Scheme

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Conv(self.width, initial=self.initial, name="conv")(fir(taps=(1, 1)).up(x))


class MaxPool(nn.Module):
    """Keep the largest of every two by two pixels."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.max_pool(x, (2, 2), (2, 2))


def _down(x, taps, axis):
    """Halve one axis: a sum of strided slices."""
    before = len(taps) // 2 - 1
    size = x.shape[axis]
    x = _padded(x, axis, before, before)
    slices = [_slice(x, axis, k, k + size - 1, 2) for k in range(len(taps))]
    return sum(tap * part for tap, part in zip(taps[1:], slices[1:], strict=True)) + taps[0] * slices[0]


def _up(x, taps, axis):
    """Double one axis: even and odd places each see every other tap."""
    before = len(taps) // 2 - 1
    size, reach = x.shape[axis], len(taps) // 2
    padded = _padded(x, axis, reach, reach)
    phases = []
    for phase in (0, 1):
        seen = [(k, (phase + before - k) // 2) for k in range(len(taps)) if (phase + before - k) % 2 == 0]
        terms = [2 * taps[k] * _slice(padded, axis, reach + lag, reach + lag + size) for k, lag in seen]
        phases.append(sum(terms[1:], terms[0]))
    shape = (*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _smooth(x, taps, axis):
    """Filter one axis, which becomes longer by one."""
    size, reach = x.shape[axis], len(taps) // 2
    padded = _padded(x, axis, reach, reach)
    terms = [tap * _slice(padded, axis, k, k + size + 1) for k, tap in enumerate(taps)]
    return sum(terms[1:], terms[0])


def _padded(x, axis, before, after):
    return jnp.pad(x, [(before, after) if here == axis else (0, 0) for here in range(x.ndim)])


def _slice(x, axis, start, stop, stride=1):
    return x[(*(slice(None),) * axis, slice(start, stop, stride))]


RESAMPLERS = {"average": average, "fir": fir, "strided": strided, "pool": pool}
