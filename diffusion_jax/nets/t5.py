"""The encoder of T5 (Raffel et al. 2020), which reads the prompts of Stable Diffusion 3, FLUX.1 and PixArt.

    h <- h + attention(norm(h)),        softmax(q k' + b) v, without the scale 1 / sqrt(d)                      (1)
    h <- h + feed(norm(h)),             feed(h) = W2 g(W1 h)   or, gated,   W2 (g(W1 h) V h)                    (2)

norm divides by the root mean square, and no layer has a bias. What a token knows of places is b, one number for each
head and each bucket of distances, the same in every block. Half of the buckets are for tokens that follow; half of
either are single distances, and the rest grow geometrically up to `reach`, beyond which there is no other. The blocks
are one scan.

T5 1.0 has g = relu; 1.1 and its descendants (FLAN, mT5) are gated by gelu_tanh.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.naming import lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.attention import attend
from diffusion_jax.nets.initial import normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import RMSNorm
from diffusion_jax.types import Array


class Shape(NamedTuple):
    """What all blocks share: a head has `head_width` numbers, and `hidden` is the width that g returns."""

    width: int
    heads: int
    head_width: int
    hidden: int
    activation: str
    feed: str
    epsilon: float


def t5(
    *,
    vocabulary: int = 32128,
    width: int = 4096,
    depth: int = 24,
    heads: int = 64,
    head_width: int = 64,
    hidden: int = 10240,
    activation: str = "gelu_tanh",
    feed: str = "gated",
    buckets: int = 32,
    reach: int = 128,
    epsilon: float = 1e-6,
    dtype: str = "float32",
) -> "T5":
    """Build the encoder: whole numbers (B, T) below `vocabulary` and a mask (B, T) or None, to states (B, T, width).

    `feed` is "plain" or "gated", Eq. (2). By default it is that of T5 1.1 XXL, of 4.8 billion parameters.
    """
    checks.whole("t5", 1, vocabulary=vocabulary, width=width, depth=depth, heads=heads, hidden=hidden)
    checks.whole("t5", 1, head_width=head_width)
    checks.whole("t5", 4, buckets=buckets)
    checks.divides("t5", "two directions, each of two kinds", 4, "buckets", buckets)
    checks.whole("t5", buckets // 4 + 1, reach=reach)
    checks.one_of("t5", ("plain", "gated"), feed=feed)
    lookup(ACTIVATIONS, activation, "activation of t5")
    shape = Shape(width, heads, head_width, hidden, activation, feed, epsilon)
    return T5(vocabulary, depth, shape, buckets, reach, checks.dtype_of("t5", dtype))


class T5(nn.Module):
    """The network of `t5`; it returns float32."""

    vocabulary: int
    depth: int
    shape: Shape
    buckets: int
    reach: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> Array:
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"t5: ids are {ids.dtype} of shape {ids.shape}; they must be whole numbers (B, T).")
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"t5: the mask is {mask.shape} and must be like the ids, {ids.shape}.")
        length = ids.shape[1]
        tokens = self.param("tokens", normal(1.0), (self.vocabulary, self.shape.width))
        # A number that is no token gets nan, which is seen; clipping it to one would not be.
        h = jnp.take(tokens, ids, axis=0, mode="fill").astype(self.dtype)
        places = self.param("places", normal(self.shape.width**-0.5), (self.buckets, self.shape.heads))
        apart = np.arange(length)[None] - np.arange(length)[:, None]
        bias = places[bucket(apart, self.buckets, self.reach)].transpose(2, 0, 1)[None]
        stack = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=self.depth,
        )
        h, _ = stack(self.shape, name="blocks")(h, bias, mask)
        return RMSNorm(self.shape.epsilon, name="norm")(h).astype(jnp.float32)


class Block(nn.Module):
    """One block, Eqs. (1) and (2)."""

    shape: Shape

    @nn.compact
    def __call__(self, h: Array, bias: Array, mask: Array | None) -> tuple[Array, None]:
        shape = self.shape
        h = h + SelfAttention(shape.heads, shape.head_width, name="attention")(
            RMSNorm(shape.epsilon, name="norm_1")(h), bias, mask
        )
        act, gated = ACTIVATIONS[shape.activation], shape.feed == "gated"
        inner = RMSNorm(shape.epsilon, name="norm_2")(h)
        inner = Dense((1 + gated) * shape.hidden, bias=False, name="dense_1")(inner)
        gate, value = jnp.split(inner, 2, -1) if gated else (inner, None)
        inner = act(gate) if value is None else act(gate) * value
        return h + Dense(shape.width, bias=False, name="dense_2")(inner), None


class SelfAttention(nn.Module):
    """Attend from the tokens (B, T, C) to themselves, Eq. (1); heads may be wider or narrower than C together."""

    heads: int
    head_width: int

    @nn.compact
    def __call__(self, x: Array, bias: Array, mask: Array | None) -> Array:
        inner = self.heads * self.head_width
        parts = jnp.split(Dense(3 * inner, bias=False, name="qkv")(x), 3, -1)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, self.head_width) for part in parts)
        y = attend(q, k, v, mask, bias=bias, scale=1.0)
        return Dense(x.shape[-1], bias=False, name="out")(y.reshape(*x.shape[:2], inner))


def bucket(apart: np.ndarray, buckets: int, reach: int) -> np.ndarray:
    """Return the buckets of distances, which are negative for tokens before.

    The logarithms are in float32, as in the published code: where one of them is whole, rounding decides.
    """
    half, single = buckets // 2, buckets // 4
    far = np.abs(apart)
    grown = np.log(np.maximum(far, 1).astype(np.float32) / single) / np.float32(math.log(reach / single))
    grown = single + (grown * (half - single)).astype(np.int32)
    return np.where(far < single, far, np.minimum(grown, half - 1)) + half * (apart > 0)
