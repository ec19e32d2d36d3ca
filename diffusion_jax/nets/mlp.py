"""A residual network for points, such as data in the plane.

Every block normalises, is scaled and shifted by what the network is told (Perez et al. 2018), and adds to its input:

    h <- h + W2 act(norm(W1 act(norm(h))) (1 + scale) + shift)                                                (1)

with W2 and the last layer zero at first, so that the network begins as the zero function.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.condition import Conditioning, Told
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.initial import ZERO, fan_average
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import layer_norm
from diffusion_jax.nets.remat import REMATS
from diffusion_jax.types import Array, Time


def mlp(
    *,
    channels: int,
    out_channels: int | None = None,
    width: int = 128,
    depth: int = 4,
    activation: str = "silu",
    time: Any = "sinusoidal",
    num_classes: int = 0,
    pooled_width: int = 0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> nn.Module:
    """Build a network for x (B, channels) of `depth` residual blocks."""
    out_channels = channels if out_channels is None else out_channels
    checks.whole("mlp", 1, channels=channels, out_channels=out_channels, depth=depth)
    checks.whole("mlp", 2, width=width)
    checks.whole("mlp", 0, num_classes=num_classes, pooled_width=pooled_width)
    checks.divides("mlp", "pairs of time waves", 2, "width", width)
    checks.share("mlp", dropout=dropout)
    return MLP(
        channels=channels,
        out_channels=out_channels,
        width=width,
        depth=depth,
        activation=lookup(ACTIVATIONS, activation, "activation"),
        waves=choose(TIME_EMBEDDINGS, time, "time"),
        told=Told(num_classes=num_classes, pooled_width=pooled_width),
        dropout=dropout,
        dtype=checks.dtype_of("mlp", dtype),
        remat=lookup(REMATS, remat, "remat"),
    )


class MLP(nn.Module):
    """The network of `mlp`."""

    channels: int
    out_channels: int
    width: int
    depth: int
    activation: Any
    waves: Waves
    told: Told
    dropout: float
    dtype: Any
    remat: Any

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Any = None) -> Array:
        if x.ndim != 2 or x.shape[1] != self.channels:
            raise ValueError(f"mlp: x has shape {x.shape}; it must be (batch, {self.channels}).")
        conditioning = Conditioning(
            self.told, self.waves, self.width, self.width, fan_average(), self.dtype, name="conditioning"
        )
        signal = conditioning(t, cond)
        block = self.remat(Block, scanned=False)
        h = Dense(self.width, name="first")(x.astype(self.dtype))
        for index in range(self.depth):
            h = block(self.activation, self.dropout, name=f"block_{index}")(h, signal.embedding, signal.keys)
        h = self.activation(_normalized(h))
        return Dense(self.out_channels, ZERO, name="last")(h).astype(jnp.float32)


class Block(nn.Module):
    """One residual block, Eq. (1)."""

    activation: Any
    dropout: float

    @nn.compact
    def __call__(self, h, embedding, keys):
        width = h.shape[-1]
        inner = Dense(width, name="dense_1")(self.activation(_normalized(h)))
        inner = _normalized(inner)
        if embedding is not None:
            scale, shift = jnp.split(Dense(2 * width, name="modulation")(embedding), 2, -1)
            inner = inner * (1 + scale) + shift
        inner = Dropout(self.dropout, name="dropout")(self.activation(inner), keys)
        return h + Dense(width, ZERO, name="dense_2")(inner)


def _normalized(h):
    return layer_norm(h, 1e-6).astype(h.dtype)
