"""What the transformers of CLIP and DINOv2 share: blocks that normalise first, and patches of images.

    h <- h + s1 attention(norm(h))                                                                            (1)
    h <- h + s2 feed(norm(h)),          feed(h) = W2 g(W1 h)                                                    (2)

s1 and s2 are 1, or learned for each channel (layer scale, Touvron et al. 2021). Attention sees every token or, in
"causal", those up to its own. The blocks are one scan over stacked parameters.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.naming import lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.attention import attend
from diffusion_jax.nets.initial import ONES, Scheme, fan_average
from diffusion_jax.nets.linear import Conv, Dense
from diffusion_jax.nets.norm import LayerNorm
from diffusion_jax.types import Array


class Shape(NamedTuple):
    """A stack of blocks: `hidden` is the width that g returns, `feed` its name, `scale` "none" or "learned"."""

    width: int
    depth: int
    heads: int
    hidden: int
    feed: str
    epsilon: float
    sight: str = "full"
    scale: str = "none"


def checked(network: str, shape: Shape) -> Shape:
    """Return the shape if such a stack can be built."""
    checks.whole(network, 1, width=shape.width, depth=shape.depth, heads=shape.heads, hidden=shape.hidden)
    checks.divides(network, "heads", shape.heads, "width", shape.width)
    checks.one_of(network, ("none", "learned"), scale=shape.scale)
    lookup(FEEDS, shape.feed, f"feed of {network}")
    lookup(SIGHTS, shape.sight, f"sight of {network}")
    return shape


def blocks(shape: Shape, h: Array, mask: Array | None = None) -> tuple[Array, Array]:
    """Run a stack on h (B, T, C), inside a module; return h, and h after each block (depth, B, T, C).

    `mask` (B, T) says which tokens exist. What a caller does not use of the second is not kept by a compiled program.
    """
    broadcast: Any = nn.broadcast
    stack = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=broadcast, length=shape.depth
    )
    return stack(shape, name="blocks")(h, mask)


class Block(nn.Module):
    """One block, Eqs. (1) and (2)."""

    shape: Shape

    @nn.compact
    def __call__(self, h: Array, mask: Array | None) -> tuple[Array, Array]:
        shape = self.shape
        inner = LayerNorm(shape.epsilon, name="norm_1")(h)
        h = h + self._scaled("scale_1", SelfAttention(shape.heads, shape.sight, name="attention")(inner, mask))
        inner = LayerNorm(shape.epsilon, name="norm_2")(h)
        width = 2 * shape.hidden if shape.feed == "swiglu" else shape.hidden
        inner = FEEDS[shape.feed](Dense(width, name="dense_1")(inner))
        h = h + self._scaled("scale_2", Dense(shape.width, name="dense_2")(inner))
        return h, h

    def _scaled(self, name, h):
        if self.shape.scale == "none":
            return h
        return h * self.param(name, ONES, (h.shape[-1],)).astype(h.dtype)[None, None]


class SelfAttention(nn.Module):
    """Attend from the tokens (B, T, C) to themselves; the parameters are those of `attention.Attention`."""

    heads: int
    sight: str = "full"

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        width = x.shape[-1]
        parts = jnp.split(Dense(3 * width, name="qkv")(x), 3, -1)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, width // self.heads) for part in parts)
        return Dense(width, name="out")(SIGHTS[self.sight](q, k, v, mask).reshape(x.shape))


class Patches(nn.Module):
    """Map the patches of images (B, H, W, C) to tokens (B, T, width), in reading order."""

    width: int
    patch: int
    bias: bool
    initial: Scheme = fan_average()

    def setup(self) -> None:
        self.conv = Conv(self.width, self.patch, self.patch, (0, 0), self.initial, self.bias)
        nn.share_scope(self, self.conv)

    def __call__(self, x: Array) -> Array:
        return self.conv(x).reshape(x.shape[0], -1, self.width)


def first(token: Array, h: Array) -> Array:
    """Put one learned token (C,), or several (n, C), before the tokens of every example."""
    token = token.astype(h.dtype).reshape(1, -1, h.shape[-1])
    return jnp.concatenate([jnp.broadcast_to(token, (h.shape[0], *token.shape[1:])), h], 1)


def causal(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attend to no later token, of those that a mask (B, L) says exist; the softmax is in float32."""
    seen = None if mask is None else mask.astype(bool)[:, None, None]
    return jax.nn.dot_product_attention(q, k, v, mask=seen, is_causal=True, implementation="xla")


def quick_gelu(x: Array) -> Array:
    """Return x sigmoid(1.702 x), OpenAI's stand-in for GELU."""
    return x * nn.sigmoid(1.702 * x)


def swiglu(x: Array) -> Array:
    """Gate the second half of the channels by the first (Shazeer 2020)."""
    gate, value = jnp.split(x, 2, -1)
    return nn.silu(gate) * value


SIGHTS = {"full": attend, "causal": causal}

FEEDS = {"gelu": ACTIVATIONS["gelu"], "quick_gelu": quick_gelu, "swiglu": swiglu}
