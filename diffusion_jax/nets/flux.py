"""The transformers of Flux (Black Forest Labs 2024): blocks of two streams, as `mmdit.py`'s, then blocks of one.

After `depth` blocks in which text and image have kernels of their own come `single_depth` blocks over both as one
sentence, whose attention and dense layers run side by side:

    b, s, g = W act(c),    h' = norm(h) (1 + s) + b
    h <- h + g W2 [attention(h'), gelu(W1 h')]                                                                 (1)

W and the last layer are zero at first. Every token has a place on several axes, that of text being the origin and that
of a patch (0, row, column); each axis turns a share of every head by angles (`axis_angles`). Guidance, where it was
distilled into the network, is told as time is.

The numbers of a patch are in the order of channels first, (C, p, p), so that what is beside an image as more channels
is beside it in patches too.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.devices import along_batch
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.attention import Heads, axis_angles
from diffusion_jax.nets.condition import Conditioning, Signal, Told
from diffusion_jax.nets.conv import cut
from diffusion_jax.nets.dit import BlockShape, ended, gated, joined, keys_of, modulated, normalized
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.initial import ZERO, fan_average
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.mmdit import Block, Sentence, look, read, shape_of, told_with_text
from diffusion_jax.nets.remat import REMATS, stack
from diffusion_jax.types import Array, Time


def flux(
    *,
    channels: int,
    out_channels: int | None = None,
    width: int = 384,
    depth: int = 6,
    single_depth: int = 12,
    heads: int = 6,
    axes: Iterable[int] = (),
    patch: int = 2,
    mlp_ratio: int = 4,
    time: Any = "sinusoidal",
    text_width: int = 0,
    pooled_width: int = 0,
    guidance_width: int = 0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> nn.Module:
    """Build a transformer over text (B, L, text_width) and patches of images (B, H, W, channels).

    `axes` are the entries of a head that each axis turns, by default an eighth for the first and the rest for rows and
    columns. `guidance_width` is that of the waves of guidance, 256 in the original, 0 for a network without.
    """
    checks.whole("flux", 1, channels=channels, patch=patch)
    checks.whole("flux", 0, depth=depth, single_depth=single_depth, guidance_width=guidance_width)
    checks.divides("flux", "pairs of waves", 2, "guidance_width", guidance_width)
    shape = shape_of("flux", width, heads, mlp_ratio, normalized="rms", dropout=dropout)
    return Flux(
        channels=channels,
        out_channels=channels if out_channels is None else out_channels,
        width=width,
        depth=depth,
        single_depth=single_depth,
        axes=_checked(tuple(axes) or _shares(width // heads), width // heads),
        patch=patch,
        shape=shape,
        waves=choose(TIME_EMBEDDINGS, time, "time"),
        dtype=checks.dtype_of("flux", dtype),
        remat=lookup(REMATS, remat, "remat"),
        told=told_with_text("flux", text_width=text_width, pooled_width=pooled_width, guidance_width=guidance_width),
    )


class Flux(nn.Module):
    """The network of `flux`."""

    channels: int
    out_channels: int
    width: int
    depth: int
    single_depth: int
    axes: tuple[int, ...]
    patch: int
    shape: BlockShape
    waves: Waves
    told: Told
    dtype: Any
    remat: Any

    def __call__(self, x: Array, t: Time, cond: Any = None) -> Array:
        checks.images("flux", x, self.channels, self.patch)
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        h = self.patches(packed(x, self.patch), t, cond, grid_places(rows, columns))
        return unpacked(h, rows, columns, self.patch)

    @nn.compact
    def patches(self, h: Array, t: Time, cond: Any, places: Any, text_places: Any = None) -> Array:
        """Evaluate the network on patches (B, T, p^2 C) at `places` (T, axes), those of text being 0 unless given."""
        conditioning = Conditioning(
            self.told, self.waves, 256, self.width, fan_average(), self.dtype, name="conditioning"
        )
        signal = conditioning(t, cond)
        h = Dense(self.width, name="patches")(h.astype(self.dtype))
        text, signal, sentence = read(signal, h)
        length = text.shape[1]
        if text_places is None:
            text_places = jnp.zeros((length, places.shape[1]))
        places = jnp.concatenate([jnp.asarray(one, jnp.float32) for one in (text_places, places)])
        sentence = sentence._replace(angles=axis_angles(places, self.axes))
        if self.depth:
            blocks = stack(self.remat, Block, self.depth)(self.shape, name="blocks")
            (text, h), _ = blocks((text, h), signal, sentence, jnp.arange(self.depth))
        if self.single_depth:
            h = jnp.concatenate([text, h], 1)
            blocks = stack(self.remat, SingleBlock, self.single_depth)(self.shape, name="single_blocks")
            h, _ = blocks(h, signal, sentence, self.depth + jnp.arange(self.single_depth))
            h = h[:, length:]
        return ended(h, signal.embedding, self.patch**2 * self.out_channels).astype(jnp.float32)


class SingleBlock(nn.Module):
    """One block over all tokens as one stream, Eq. (1); `index` tells its dropout from that of other blocks."""

    shape: BlockShape

    @nn.compact
    def __call__(self, h: Array, signal: Signal, sentence: Sentence, index: Array) -> tuple[Array, None]:
        shape, width, h = self.shape, h.shape[-1], along_batch(h)
        told = [None] * 3
        if signal.embedding is not None:
            told = jnp.split(Dense(3 * width, ZERO, name="modulation")(signal.embedding), 3, -1)
        inner = modulated(normalized(h), *told[:2])
        found = look(*Heads(shape.heads, width, shape.normalized, name="attention").ask(inner), sentence)
        inner = nn.gelu(Dense(shape.mlp_width, name="dense_1")(inner), approximate=True)
        inner = Dropout(shape.dropout, name="dropout")(inner, keys_of(signal, index))
        both = jnp.concatenate([found.reshape(h.shape), inner], -1)
        return h + gated(Dense(width, name="dense_2")(both), told[2]), None


def packed(x: Array, patch: int) -> Array:
    """Cut images into patches in reading order, channels first in each: (B, H, W, C) to (B, tokens, C patch^2)."""
    h = cut(x, patch)
    return h.reshape(*h.shape[:2], patch**2, -1).swapaxes(2, 3).reshape(h.shape)


def unpacked(h: Array, rows: int, columns: int, patch: int) -> Array:
    """Join patches to images, the inverse of `packed`."""
    h = h.reshape(*h.shape[:2], -1, patch**2).swapaxes(2, 3).reshape(h.shape)
    return joined(h, rows, columns, patch)


def grid_places(rows: int, columns: int) -> np.ndarray:
    """Return the places (0, row, column) of patches in reading order."""
    row, column = np.mgrid[:rows, :columns]
    return np.stack([np.zeros_like(row), row, column], -1).reshape(-1, 3).astype(np.float32)


def _shares(dim):
    """Divide a head between three axes, as 128 is into 16, 56 and 56."""
    side = 2 * (7 * dim // 32)
    return dim - 2 * side, side, side


def _checked(axes, dim):
    """Return the axes, if they divide a head."""
    if len(axes) != 3 or sum(axes) != dim or any(share < 2 or share % 2 for share in axes):
        raise ValueError(
            f"flux: axes are {axes}; they must be three even numbers from 2, whose sum is the width of a head, {dim}."
        )
    return axes
