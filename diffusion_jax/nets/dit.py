"""Diffusion transformers (Peebles & Xie 2023): an image is cut into patches, and the patches are a sentence.

Every block is told time and label through six vectors per channel (adaLN-zero), one dense layer of the embedding c:

    s1, b1, g1, s2, b2, g2 = W act(c)
    h <- h + g1 attention(norm(h) (1 + s1) + b1)                                                              (1)
    h <- h + cross(norm(h), text)                                                   (only with text_width)     (2)
    h <- h + g2 mlp(norm(h) (1 + s2) + b2)                                                                    (3)

W, the output of (2) and the last layer are zero at first, so each block begins as the identity. (2) is that of
PixArt-alpha (Chen et al. 2024). The blocks are one scan over stacked parameters, so compiling costs the same at any
depth.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.devices import along_batch
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.attention import Attention, grid_angles, grid_waves
from diffusion_jax.nets.condition import Conditioning, Signal, Told, make_told
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.initial import ZERO, Law, Scheme, fan_average, normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import layer_norm
from diffusion_jax.nets.remat import REMATS
from diffusion_jax.types import Array, Time


class Size(NamedTuple):
    """How large a transformer is."""

    width: int
    depth: int
    heads: int


def dit(
    *,
    channels: int,
    out_channels: int | None = None,
    size: str | dict = "S",
    patch: int = 2,
    positions: str = "waves",
    normalized: str = "none",
    mlp_ratio: int = 4,
    time: Any = "sinusoidal",
    num_classes: int = 0,
    text_width: int = 0,
    pooled_width: int = 0,
    augment_width: int = 0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> nn.Module:
    """Build a transformer over patches of `patch` by `patch` pixels of images (B, H, W, channels).

    `size` is a name, or {"name": "custom", "width": ..., "depth": ..., "heads": ...}. `positions` are "waves" added to
    the patches or "rotary" angles of queries and keys; `normalized` "rms" normalises queries and keys.
    """
    chosen = choose(SIZES, size, "size")
    checks.whole("dit", 1, channels=channels, patch=patch, mlp_ratio=mlp_ratio, **chosen._asdict())
    checks.divides("dit", "heads", chosen.heads, "width", chosen.width)
    checks.divides(
        "dit", "four entries for each frequency and axis", 4, "width of a head", chosen.width // chosen.heads
    )
    checks.share("dit", dropout=dropout)
    checks.one_of("dit", ("waves", "rotary"), positions=positions)
    checks.one_of("dit", ("none", "rms"), normalized=normalized)
    return DiT(
        channels=channels,
        out_channels=channels if out_channels is None else out_channels,
        size=chosen,
        patch=patch,
        positions=positions,
        shape=BlockShape(chosen.heads, mlp_ratio * chosen.width, normalized, dropout),
        waves=choose(TIME_EMBEDDINGS, time, "time"),
        told=make_told("dit", num_classes, text_width, pooled_width, augment_width),
        dtype=checks.dtype_of("dit", dtype),
        remat=lookup(REMATS, remat, "remat"),
    )


class BlockShape(NamedTuple):
    """What all blocks of one transformer share."""

    heads: int
    mlp_width: int
    normalized: str
    dropout: float


class DiT(nn.Module):
    """The network of `dit`."""

    channels: int
    out_channels: int
    size: Size
    patch: int
    positions: str
    shape: BlockShape
    waves: Waves
    told: Told
    dtype: Any
    remat: Any

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Any = None) -> Array:
        checks.images("dit", x, self.channels, self.patch)
        width, depth, heads = self.size
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        conditioning = Conditioning(
            self.told, self.waves, 256, width, fan_average(), self.dtype,
            label_std=0.02, time_initial=Scheme(normal(0.02), lambda fan: Law("constant", 0.0)), name="conditioning",
        )  # fmt: skip
        signal = conditioning(t, cond)
        h = Dense(width, name="patches")(cut(x.astype(self.dtype), self.patch))
        angles = None
        if self.positions == "rotary":
            angles = jnp.asarray(grid_angles(rows, columns, width // heads))
        else:
            h = h + jnp.asarray(grid_waves(rows, columns, width), self.dtype)[None]
        blocks = nn.scan(
            self.remat(Block, scanned=True),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=depth,
        )
        h, _ = blocks(self.shape, name="blocks")(h, signal, angles, jnp.arange(depth))
        h = ended(h, signal.embedding, self.patch**2 * self.out_channels)
        return joined(h, rows, columns, self.patch).astype(jnp.float32)


class Block(nn.Module):
    """One block, Eqs. (1) to (3); `index` tells its dropout from that of other blocks."""

    shape: BlockShape

    @nn.compact
    def __call__(self, h: Array, signal: Signal, angles: Array | None, index: Array) -> tuple[Array, None]:
        shape, width, h = self.shape, h.shape[-1], along_batch(h)
        keys = signal.keys
        if keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        told = [None] * 6
        if signal.embedding is not None:
            told = jnp.split(Dense(6 * width, ZERO, name="modulation")(signal.embedding), 6, -1)
        attention = Attention(shape.heads, normalized=shape.normalized, name="attention")
        inner = attention(modulated(normalized(h), *told[:2]), angles=angles)
        h = h + gated(inner, told[2])
        if signal.text is not None:
            to_text = Attention(shape.heads, final=ZERO, normalized=shape.normalized, name="to_text")
            h = h + to_text(normalized(h), signal.text, signal.text_mask)
        inner = Dense(shape.mlp_width, name="dense_1")(modulated(normalized(h), *told[3:5]))
        inner = Dropout(shape.dropout, name="dropout")(nn.gelu(inner, approximate=True), keys)
        return h + gated(Dense(width, name="dense_2")(inner), told[5]), None


def custom(*, width: int, depth: int, heads: int) -> Size:
    """Make a transformer of any size."""
    return Size(width, depth, heads)


def ended(h: Array, embedding: Array | None, width: int) -> Array:
    """Map tokens to `width` numbers each, zero at first, inside a module: the end of every such transformer."""
    h = normalized(h)
    if embedding is not None:
        h = modulated(h, *jnp.split(Dense(2 * h.shape[-1], ZERO, name="last_modulation")(embedding), 2, -1))
    return Dense(width, ZERO, name="last")(h)


def cut(x: Array, patch: int) -> Array:
    """Cut images into patches in reading order: (B, H, W, C) to (B, tokens, patch^2 C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


def joined(h: Array, rows: int, columns: int, patch: int) -> Array:
    """Join patches to images, the inverse of `cut`."""
    h = h.reshape(h.shape[0], rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(h.shape[0], rows * patch, columns * patch, -1)


def normalized(h: Array) -> Array:
    """Normalise the channels of each token."""
    return layer_norm(h, 1e-6).astype(h.dtype)


def modulated(h: Array, shift: Array | None, scale: Array | None) -> Array:
    """Scale and shift tokens by what an example is told, if it is told anything."""
    return h if shift is None or scale is None else h * (1 + scale[:, None]) + shift[:, None]


def gated(h: Array, gate: Array | None) -> Array:
    """Scale tokens by a gate of an example, if there is one."""
    return h if gate is None else h * gate[:, None]


SIZES = {
    "S": functools.partial(custom, width=384, depth=12, heads=6),
    "B": functools.partial(custom, width=768, depth=12, heads=12),
    "L": functools.partial(custom, width=1024, depth=24, heads=16),
    "XL": functools.partial(custom, width=1152, depth=28, heads=16),
    "custom": custom,
}
