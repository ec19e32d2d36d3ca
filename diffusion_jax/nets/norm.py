"""Normalisation, with statistics in float32 whatever the network computes in.

Group normalisation (Wu & He 2018) of x in G groups of channels, followed by an affine map that may differ per example:

    y = (x - m_g) / sqrt(v_g + epsilon) * scale + shift                                                       (1)

m_g and v_g are averages of the moments of single channels, which are sums over the outer axes and so vectorise over
channels; then (1) is one multiplication and one addition per entry, whatever scale and shift are made of.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.nets.initial import ONES, ZEROS
from diffusion_jax.types import Array


class GroupNorm(nn.Module):
    """Normalise groups of channels and scale them; `modulation` (B, 2 C) holds a further 1 + scale and a shift.

    A group has at least `least` channels, if that can be, and `groups` are made fewer for it.
    """

    groups: int = 32
    epsilon: float = 1e-5
    least: int = 4

    @nn.compact
    def __call__(self, x: Array, modulation: Array | None = None) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", ONES, (channels,))[None]
        shift = self.param("bias", ZEROS, (channels,))[None]
        if modulation is not None:
            more, further = jnp.split(modulation.astype(jnp.float32), 2, -1)
            scale, shift = scale * (1 + more), shift * (1 + more) + further
        return group_norm(x, scale, shift, groups=groups_for(channels, self.groups, self.least), epsilon=self.epsilon)


class NoNorm(nn.Module):
    """Leave x as it is but for a modulation (B, 2 C)."""

    groups: int = 1
    epsilon: float = 0.0
    least: int = 1

    @nn.compact
    def __call__(self, x: Array, modulation: Array | None = None) -> Array:
        if modulation is None:
            return x
        more, further = (_inner(part, x) for part in jnp.split(modulation, 2, -1))
        return x * (1 + more) + further


class LayerNorm(nn.Module):
    """Normalise the last axis, then scale and shift it by learned numbers."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ONES, (x.shape[-1],))
        shift = self.param("bias", ZEROS, (x.shape[-1],))
        y = layer_norm(x.astype(jnp.float32), self.epsilon) * _outer(scale, x) + _outer(shift, x)
        return y.astype(x.dtype)


class RMSNorm(nn.Module):
    """Divide the last axis by its root mean square and scale it (Zhang & Sennrich 2019)."""

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", ONES, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        square = jnp.mean(wide**2, -1, keepdims=True)
        return (wide * jax.lax.rsqrt(square + self.epsilon) * _outer(scale, x)).astype(x.dtype)


def group_norm(x: Array, scale: Array, shift: Array, *, groups: int, epsilon: float) -> Array:
    """Evaluate Eq. (1) for x (B, ..., C), scale and shift being (1, C) or (B, C)."""
    wide = x.astype(jnp.float32)
    inner = tuple(range(1, x.ndim - 1))
    mean = _over_groups(wide.mean(inner), groups)
    variance = _over_groups(jnp.square(wide - _inner(mean, x)).mean(inner), groups)
    gain = scale * jax.lax.rsqrt(variance + epsilon)
    return (wide * _inner(gain, x) + _inner(shift - mean * gain, x)).astype(x.dtype)


def layer_norm(x: Array, epsilon: float) -> Array:
    """Subtract the mean of the last axis and divide by its standard deviation, in float32."""
    wide = x.astype(jnp.float32)
    away = wide - wide.mean(-1, keepdims=True)
    return away * jax.lax.rsqrt(jnp.square(away).mean(-1, keepdims=True) + epsilon)


def groups_for(channels: int, groups: int, least: int = 4) -> int:
    """Return the largest number of groups up to `groups` that divides the channels, of `least` each if it can."""
    return math.gcd(channels, min(groups, max(channels // least, 1)))


def _over_groups(moments, groups):
    """Average (B, C) over groups of channels, and hand each channel its group's average."""
    batch, channels = moments.shape
    average = moments.reshape(batch, groups, -1).mean(-1, keepdims=True)
    return jnp.broadcast_to(average, (batch, groups, channels // groups)).reshape(batch, channels)


def _inner(value, x):
    """Shape (B, C) against (B, ..., C)."""
    return value.reshape(value.shape[0], *(1,) * (x.ndim - 2), value.shape[-1])


def _outer(value, x):
    return value.reshape(*(1,) * (x.ndim - 1), -1)


NORMS = {"group": GroupNorm, "none": NoNorm}
