"""Diffusion transformers (Peebles & Xie 2023): an image is cut into patches, and the patches are a sentence.

Every block is told time and label through six vectors per channel (adaLN-zero), one dense layer of the embedding c:

    s1, b1, g1, s2, b2, g2 = W act(c)
    h <- h + g1 attention(norm(h) (1 + s1) + b1)                                                              (1)
    h <- h + cross(norm(h), text)                                                   (only with text_width)     (2)
    h <- h + g2 mlp(norm(h) (1 + s2) + b2)                                                                    (3)

W, the output of (2) and the last layer are zero at first, so each block begins as the identity. (2) is that of
PixArt-alpha (Chen et al. 2024). The blocks are one scan over stacked parameters, so compiling costs the same at any
depth. In the form that diffusers gave DiT, c is not one vector: every block embeds time and label by layers of its own.
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
from diffusion_jax.nets.condition import Conditioning, Signal, Told, make_told, signal_of
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.initial import ZERO, ZEROS, Law, Scheme, fan_average, normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import layer_norm
from diffusion_jax.nets.remat import REMATS, stack
from diffusion_jax.nets.vit import Patches
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
    grid: int = 0,
    normalized: str = "none",
    mlp_ratio: int = 4,
    mlp_epsilon: float = 1e-6,
    embedders: str = "one",
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
    the patches, which for images of any size span `grid` of them if it is given; "learned" numbers added to `grid` by
    `grid` patches; or "rotary" angles of queries and keys. `normalized` "rms" normalises queries and keys.
    `embedders` is "one" for all blocks or one for "each", of which the last layer hears the first.
    """
    chosen = choose(SIZES, size, "size")
    checks.whole("dit", 1, channels=channels, patch=patch, mlp_ratio=mlp_ratio, **chosen._asdict())
    checks.divides("dit", "heads", chosen.heads, "width", chosen.width)
    turned = ("width of a head", chosen.width // chosen.heads) if positions == "rotary" else ("width", chosen.width)
    checks.divides("dit", "four entries for each frequency and axis", 4, *turned)
    checks.share("dit", dropout=dropout)
    checks.one_of("dit", ("waves", "learned", "rotary"), positions=positions)
    checks.one_of("dit", ("none", "rms"), normalized=normalized)
    checks.one_of("dit", ("one", "each"), embedders=embedders)
    checks.whole("dit", int(positions == "learned"), grid=grid)
    if grid and positions == "rotary":
        raise ValueError(f"dit: grid is {grid}, which rotary positions have no use for; leave it out.")
    return DiT(
        channels=channels,
        out_channels=channels if out_channels is None else out_channels,
        size=chosen,
        patch=patch,
        positions=positions,
        grid=grid,
        shape=BlockShape(chosen.heads, mlp_ratio * chosen.width, normalized, dropout, mlp_epsilon),
        embedders=embedders,
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
    mlp_epsilon: float = 1e-6


class DiT(nn.Module):
    """The network of `dit`."""

    channels: int
    out_channels: int
    size: Size
    patch: int
    positions: str
    grid: int
    shape: BlockShape
    embedders: str
    waves: Waves
    told: Told
    dtype: Any
    remat: Any

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Any = None) -> Array:
        checks.images("dit", x, self.channels, self.patch)
        width, depth, heads = self.size
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        signal, heard, embedding = self._told(t, cond)
        dense = _as_dense(self.patch**2 * self.channels, width)
        h = Patches(width, self.patch, True, dense, name="patches")(x.astype(self.dtype))
        angles = None
        if self.positions == "rotary":
            angles = jnp.asarray(grid_angles(rows, columns, width // heads))
        else:
            h = h + jnp.asarray(self._places(rows, columns), self.dtype)[None]
        blocks = stack(self.remat, Block, depth, told=heard)
        h, _ = blocks(self.shape, name="blocks")(h, signal, angles, jnp.arange(depth))
        h = ended(h, embedding, self.patch**2 * self.out_channels)
        return joined(h, rows, columns, self.patch).astype(jnp.float32)

    def _told(self, t, cond):
        """Return the signal, how the scan over blocks takes it, and the embedding that the last layer hears."""
        conditioning = Conditioning(
            self.told, self.waves, 256, self.size.width, fan_average(), self.dtype,
            label_std=0.02, time_initial=Scheme(normal(0.02), lambda fan: ZEROS), name="conditioning",
        )  # fmt: skip
        if self.embedders == "one":
            signal = conditioning(t, cond)
            return signal, nn.broadcast, signal.embedding
        each = nn.scan(
            lambda one, _: (None, one(t, cond).embedding),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.size.depth,
        )
        _, embeddings = each(conditioning, None)
        signal = signal_of(embeddings, cond or {})
        return signal, Signal._make((0, *[nn.broadcast] * 3)), None if embeddings is None else embeddings[0]

    def _places(self, rows, columns):
        """Return what is added to the patches (rows * columns, width)."""
        if self.positions == "waves":
            return grid_waves(rows, columns, self.size.width, side=self.grid)
        if (rows, columns) != (self.grid, self.grid):
            raise ValueError(
                f"dit: x has {rows} by {columns} patches, but the learned positions are those of {self.grid} by "
                f"{self.grid}."
            )
        return self.param("positions", normal(0.02), (self.grid**2, self.size.width))


class Block(nn.Module):
    """One block, Eqs. (1) to (3); `index` tells its dropout from that of other blocks."""

    shape: BlockShape

    @nn.compact
    def __call__(self, h: Array, signal: Signal, angles: Array | None, index: Array) -> tuple[Array, None]:
        shape, width, h = self.shape, h.shape[-1], along_batch(h)
        keys = keys_of(signal, index)
        told = [None] * 6
        if signal.embedding is not None:
            told = jnp.split(Dense(6 * width, ZERO, name="modulation")(signal.embedding), 6, -1)
        attention = Attention(shape.heads, normalized=shape.normalized, name="attention")
        inner = attention(modulated(normalized(h), *told[:2]), angles=angles)
        h = h + gated(inner, told[2])
        if signal.text is not None:
            to_text = Attention(shape.heads, final=ZERO, normalized=shape.normalized, name="to_text")
            h = h + to_text(normalized(h), signal.text, signal.text_mask)
        inner = modulated(normalized(h, shape.mlp_epsilon), *told[3:5])
        inner = Dense(shape.mlp_width, name="dense_1")(inner)
        inner = Dropout(shape.dropout, name="dropout")(nn.gelu(inner, approximate=True), keys)
        return h + gated(Dense(width, name="dense_2")(inner), told[5]), None


def keys_of(signal: Signal, index: Array) -> Any:
    """Return the keys of dropout of one block."""
    return None if signal.keys is None else jax.vmap(jax.random.fold_in, (0, None))(signal.keys, index)


def _as_dense(numbers, width):
    """Begin the kernel of patches as that of one dense layer, which it is but for its shape."""
    scheme = fan_average()
    return scheme._replace(kernel=Law("uniform", scheme.kernel.spread((numbers, width))))


def custom(*, width: int, depth: int, heads: int) -> Size:
    """Make a transformer of any size."""
    return Size(width, depth, heads)


def ended(h: Array, embedding: Array | None, width: int) -> Array:
    """Map tokens to `width` numbers each, zero at first, inside a module: the end of every such transformer."""
    h = normalized(h)
    if embedding is not None:
        h = modulated(h, *jnp.split(Dense(2 * h.shape[-1], ZERO, name="last_modulation")(embedding), 2, -1))
    return Dense(width, ZERO, name="last")(h)


def joined(h: Array, rows: int, columns: int, patch: int) -> Array:
    """Join patches to images, the inverse of `conv.cut`."""
    h = h.reshape(h.shape[0], rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(h.shape[0], rows * patch, columns * patch, -1)


def normalized(h: Array, epsilon: float = 1e-6) -> Array:
    """Normalise the channels of each token."""
    return layer_norm(h, epsilon).astype(h.dtype)


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
