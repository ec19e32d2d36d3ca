"""Attention (Vaswani et al. 2017), and where its positions come from.

    softmax(q k' / sqrt(d)) v,    softmax in float32.                                                          (1)

Rotary positions (Su et al. 2021) turn pairs of entries of q and k by angles proportional to the position p, so that
q k' depends on differences of positions only. In two dimensions half of the pairs turn with the row and half with the
column; with more axes, each has its share.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.devices import platform
from diffusion_jax.nets.initial import Scheme, fan_average
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import RMSNorm
from diffusion_jax.nets.remat import once_more
from diffusion_jax.types import Array


class Attention(nn.Module):
    """Attend from the tokens x (B, T, C) to themselves, or to a `context` (B, L, D).

    Queries, keys and values lie side by side in one kernel, in this order, each with its heads one after the other.
    """

    heads: int
    initial: Scheme = fan_average()
    final: Scheme = fan_average()
    bias: bool = True
    normalized: str = "none"  # queries and keys, by "rms" (Henry et al. 2020), which keeps their products bounded

    @nn.compact
    def __call__(
        self, x: Array, context: Array | None = None, mask: Array | None = None, angles: Array | None = None
    ) -> Array:
        width = x.shape[-1]
        keys, values = self.read(x if context is None else context.astype(x.dtype))
        if context is None:
            parts = jnp.split(Dense(3 * width, self.initial, self.bias, name="qkv")(x, keys, values), 3, -1)
        else:
            pair = Dense(2 * width, self.initial, self.bias, name="kv")(keys, values)
            parts = [Dense(width, self.initial, self.bias, name="q")(x), *jnp.split(pair, 2, -1)]
        q, k, v = (part.reshape(*part.shape[:2], self.heads, width // self.heads) for part in parts)
        if self.normalized == "rms":
            q, k = RMSNorm(name="norm_q")(q), RMSNorm(name="norm_k")(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return Dense(width, self.final, name="out")(attend(q, k, v, mask).reshape(x.shape))

    def read(self, context: Array) -> tuple[Array, Array]:
        """Return what keys and what values are made of: the same, where no hypernetwork steps in."""
        return context, context


class Heads(nn.Module):
    """Make queries, keys and values of tokens (B, T, width), for whoever lets them attend, and take the answer back.

    The parameters are those of `Attention`.
    """

    heads: int
    width: int
    normalized: str = "none"

    def setup(self):
        self.qkv, self.out = Dense(3 * self.width), Dense(self.width)
        self.norm_q, self.norm_k = RMSNorm(), RMSNorm()

    def ask(self, x: Array) -> tuple[Array, Array, Array]:
        """Return queries, keys and values (B, T, heads, d)."""
        parts = jnp.split(self.qkv(x), 3, -1)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1) for part in parts)
        return (self.norm_q(q), self.norm_k(k), v) if self.normalized == "rms" else (q, k, v)

    def hear(self, y: Array) -> Array:
        """Map what was found, (B, T, heads, d), to tokens."""
        return self.out(y.reshape(*y.shape[:2], self.width))


def attend(
    q: Array, k: Array, v: Array, mask: Array | None = None, *, bias: Array | None = None, scale: float | None = None
) -> Array:
    """Evaluate Eq. (1) for q (B, T, heads, d) and k and v (B, L, heads, d); `mask` (B, L) says which keys exist.

    A row of the mask that allows nothing gets zeros. `scale` is instead of 1 / sqrt(d), and `bias` (1, heads, T, L) is
    added to the scaled products.
    """
    if mask is None:
        return _attend(q, k, v, None, bias=bias, scale=scale)
    mask = mask.astype(bool)
    some = mask.any(-1)
    y = _attend(q, k, v, (mask | ~some[:, None])[:, None, None], bias=bias, scale=scale)
    return jnp.where(some[:, None, None, None], y, jnp.zeros((), y.dtype))


def on_cpu(
    q: Array, k: Array, v: Array, mask: Array | None, *, bias: Array | None = None, scale: float | None = None
) -> Array:
    """Evaluate Eq. (1), dividing by the sum of the weights after the product with v: a third faster, its gradient more.

    `mask` is (B, 1, 1, L).
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
    logits = jnp.matmul(q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias / factor
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    # Subtracting any number changes nothing, so nothing flows back through the greatest
    greatest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp((logits - greatest) * factor)
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (y / weights.sum(-1, keepdims=True)).astype(q.dtype).transpose(0, 2, 1, 3)


def rotate(x: Array, angles: Array) -> Array:
    """Turn pairs of entries of x (B, T, heads, d) by `angles` (T, d / 2): entry i pairs with entry i + d / 2."""
    cos, sin = (wave[None, :, None] for wave in (jnp.cos(angles), jnp.sin(angles)))
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1).astype(x.dtype)


def rotate_neighbours(x: Array, angles: Array) -> Array:
    """Turn pairs of entries 2 i and 2 i + 1, as Flux does; all first ones of pairs come before the second ones.

    This order of entries is for queries and keys both, whose products do not depend on it.
    """
    apart = x.reshape(*x.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(x.shape)
    return rotate(apart, angles)


def axis_angles(places: Array, dims: tuple[int, ...], *, period: float = 10000.0) -> Array:
    """Return the angles (T, d / 2) of tokens at `places` (T, axes), each axis turning `dims` of the d entries."""
    turns = [
        places[:, axis, None] * np.asarray(period ** -(np.arange(0, dim, 2) / dim), np.float32)[None]
        for axis, dim in enumerate(dims)
    ]
    return jnp.concatenate(turns, 1)


def grid_angles(height: int, width: int, dim: int, *, period: float = 100.0) -> np.ndarray:
    """Return the angles (height * width, dim / 2) of pixels in reading order, for heads of `dim` entries."""
    frequency = period ** -(np.arange(dim // 4) / (dim // 4))
    row, column = np.mgrid[:height, :width]
    return np.concatenate([place.reshape(-1, 1) * frequency for place in (row, column)], 1).astype(np.float32)


def grid_waves(height: int, width: int, dim: int, *, side: int = 0, first: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Return sin-cos positions (height * width, dim): the first half of the entries knows the column, then the row.

    This order is that of MAE and DiT, whose weights may be read. Both axes span `side` pixels if it is given; the
    place of the first pixel is `first`.
    """
    frequency = 1 / 10000.0 ** (np.arange(dim // 4) / (dim // 4))
    row, column = np.mgrid[first[0] : first[0] + height, first[1] : first[1] + width]
    if side:
        row, column = row * (side / height), column * (side / width)
    angles = [place.reshape(-1, 1) * frequency for place in (column, row)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], 1).astype(np.float32)


def _attend(q, k, v, mask, *, bias, scale):
    """Choose by platform: cuDNN's fused kernel in half precision, for heads it knows; our own form on CPUs; XLA's."""
    if platform() == "cpu":
        return on_cpu(q, k, v, mask, bias=bias, scale=scale)
    half = platform() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16)
    fused = bias is None and half and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    if fused:
        return _by_cudnn(q, k, v, mask, scale=scale)
    # As a fused kernel does, the gradient computes the weights again: they are the largest array that there is.
    plain = partial(jax.nn.dot_product_attention, scale=scale, implementation="xla")
    return once_more(plain)(q, k, v, bias=bias, mask=mask)


def _by_cudnn(q, k, v, mask, *, scale):
    """Ask cuDNN, which wants an entry of the mask for each product, and an even number of queries and of keys."""
    fused = partial(jax.nn.dot_product_attention, scale=scale, implementation="cudnn")
    if mask is None:
        return fused(q, k, v)
    asked, known = q.shape[1], k.shape[1]
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    mask = jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, known % 2)))  # a key that was added is not there
    return fused(q, k, v, mask=jnp.broadcast_to(mask, (q.shape[0], 1, q.shape[1], k.shape[1])))[:, :asked]
