"""Multimodal diffusion transformers (Esser et al. 2024), of Stable Diffusion 3: text and image are one sentence.

The two streams of tokens, text and image, have kernels of their own, and see each other in attention alone. Each is
told time and pooled text through six vectors per channel, as in DiT (`dit.py`):

    b1, s1, g1, b2, s2, g2 = W act(c)
    q, k, v = those of text and those of image, one after the other, of norm(h) (1 + s1) + b1                  (1)
    h <- h + g1 out(attention(q, k, v)),    of which each stream takes its own tokens                          (2)
    h <- h + g2 mlp(norm(h) (1 + s2) + b2)                                                                     (3)

In the layers `dual` (those of 3.5 medium) the image also attends to itself, which is added in (2) with vectors of its
own. After the last block the text is not needed, so (2) and (3) are for the image there. W and the last layer are zero
at first. Blocks in a row that are equal are one scan, so compiling costs the same at any depth.

Positions are the middle of a table for images of `max_size` by `max_size` patches: the centre stays what it is when
the image grows or is not square.
"""

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.devices import along_batch
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.attention import Heads, attend, grid_waves, rotate_neighbours
from diffusion_jax.nets.condition import Conditioning, Signal, Told
from diffusion_jax.nets.dit import BlockShape, ended, gated, joined, keys_of, modulated, normalized
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.initial import ZERO, fan_average, normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.remat import REMATS, stack
from diffusion_jax.nets.vit import Patches
from diffusion_jax.types import Array, Time


class Group(NamedTuple):
    """Equal blocks in a row: the index of the first, how many, whether the image attends twice, whether text ends."""

    first: int
    count: int
    dual: bool
    last: bool


class Sentence(NamedTuple):
    """Of the tokens of text and of image after them: their angles, and which of them exist."""

    angles: Array | None
    mask: Array | None


def mmdit(
    *,
    channels: int,
    out_channels: int | None = None,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    patch: int = 2,
    positions: str = "waves",
    max_size: int = 192,
    dual: Iterable[int] = (),
    normalized: str = "rms",
    mlp_ratio: int = 4,
    time: Any = "sinusoidal",
    text_width: int = 0,
    pooled_width: int = 0,
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> nn.Module:
    """Build a transformer over text (B, L, text_width) and patches of images (B, H, W, channels).

    `positions` are fixed "waves" or a "learned" table. `dual` are the layers in which the image attends twice;
    `normalized` "rms" normalises queries and keys, as 3.5 does and 3 does not.
    """
    checks.whole("mmdit", 1, channels=channels, depth=depth, patch=patch, max_size=max_size)
    checks.one_of("mmdit", ("waves", "learned"), positions=positions)
    dual = tuple(dual)
    for layer in dual:
        checks.whole("mmdit", 0, **{"a layer of dual": layer})
        if layer >= depth:
            raise ValueError(f"mmdit: dual has layer {layer}; the layers are 0 to {depth - 1}.")
    checks.divides("mmdit", "four entries for each frequency and axis", 4, "width", width)
    shape = shape_of("mmdit", width, heads, mlp_ratio, normalized=normalized, dropout=dropout)
    return MMDiT(
        channels=channels,
        out_channels=channels if out_channels is None else out_channels,
        width=width,
        groups=groups_of(depth, dual),
        patch=patch,
        positions=positions,
        max_size=max_size,
        shape=shape,
        waves=choose(TIME_EMBEDDINGS, time, "time"),
        dtype=checks.dtype_of("mmdit", dtype),
        remat=lookup(REMATS, remat, "remat"),
        told=told_with_text("mmdit", text_width=text_width, pooled_width=pooled_width),
    )


class MMDiT(nn.Module):
    """The network of `mmdit`."""

    channels: int
    out_channels: int
    width: int
    groups: tuple[Group, ...]
    patch: int
    positions: str
    max_size: int
    shape: BlockShape
    waves: Waves
    told: Told
    dtype: Any
    remat: Any

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Any = None) -> Array:
        checks.images("mmdit", x, self.channels, self.patch)
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        conditioning = Conditioning(
            self.told, self.waves, 256, self.width, fan_average(), self.dtype, name="conditioning"
        )
        signal = conditioning(t, cond)
        h = Patches(self.width, self.patch, bias=True, name="patches")(x.astype(self.dtype))
        h = h + self._positions(rows, columns).astype(self.dtype)[None]
        text, signal, sentence = read(signal, h)
        for number, group in enumerate(self.groups):
            blocks = stack(self.remat, Block, group.count)(self.shape, group.dual, group.last, name=f"blocks_{number}")
            (text, h), _ = blocks((text, h), signal, sentence, group.first + jnp.arange(group.count))
        h = ended(h, signal.embedding, self.patch**2 * self.out_channels)
        return joined(h, rows, columns, self.patch).astype(jnp.float32)

    def _positions(self, rows, columns):
        """Return the positions (rows * columns, width) of patches."""
        down, across = middle(self.max_size, rows, columns)
        if self.positions == "waves":
            return jnp.asarray(grid_waves(rows, columns, self.width, first=(down.start, across.start)))
        table = self.param("positions", normal(0.02), (self.max_size**2, self.width))
        return table.reshape(self.max_size, self.max_size, self.width)[down, across].reshape(-1, self.width)


class Block(nn.Module):
    """One block of two streams, Eqs. (1) to (3); `index` tells its dropout from that of other blocks."""

    shape: BlockShape
    dual: bool = False
    last: bool = False

    @nn.compact
    def __call__(
        self, streams: tuple[Array, Array], signal: Signal, sentence: Sentence, index: Array
    ) -> tuple[tuple[Array, Array], None]:
        text, h = (along_batch(stream) for stream in streams)
        keys, width, length = keys_of(signal, index), h.shape[-1], text.shape[1]
        of_text = Stream(self.shape, width, 2 if self.last else 6, name="text")
        of_image = Stream(self.shape, width, 9 if self.dual else 6, name="image")
        text_told, told = of_text.told(signal.embedding), of_image.told(signal.embedding)
        parts = zip(of_text.ask(text, text_told), of_image.ask(h, told), strict=True)
        q, k, v = (jnp.concatenate(pair, 1) for pair in parts)
        if self.last:  # nobody hears what text would find
            q, length = q[:, length:], 0
        y = look(q, k, v, sentence)
        if not self.last:
            text = of_text.hear(text, y[:, :length], text_told, keys)
        return (text, of_image.hear(h, y[:, length:], told, keys)), None


class Stream(nn.Module):
    """What a block does to one kind of tokens, told in so many vectors: 6, 9 to attend twice, or 2 to be seen only."""

    shape: BlockShape
    width: int
    vectors: int

    def setup(self):
        shape = self.shape
        self.modulation = Dense(self.vectors * self.width, ZERO)
        self.attention = Heads(shape.heads, self.width, shape.normalized)
        self.self_attention = Heads(shape.heads, self.width, shape.normalized)
        self.dense_1, self.dense_2 = Dense(shape.mlp_width), Dense(self.width)
        self.dropout = Dropout(shape.dropout)

    def told(self, embedding: Array | None) -> list:
        """Return the vectors (B, width), or as many times nothing."""
        return [None] * self.vectors if embedding is None else jnp.split(self.modulation(embedding), self.vectors, -1)

    def ask(self, h: Array, told: list) -> tuple[Array, Array, Array]:
        """Return queries, keys and values, Eq. (1)."""
        return self.attention.ask(modulated(normalized(h), *told[:2]))

    def hear(self, h: Array, y: Array, told: list, keys: Any) -> Array:
        """Add what attention found and what the dense layers make of it, Eqs. (2) and (3)."""
        found = gated(self.attention.hear(y), told[2])
        if self.vectors == 9:
            own = attend(*self.self_attention.ask(modulated(normalized(h), *told[6:8])))
            found = found + gated(self.self_attention.hear(own), told[8])
        h = h + found
        inner = nn.gelu(self.dense_1(modulated(normalized(h), *told[3:5])), approximate=True)
        return h + gated(self.dense_2(self.dropout(inner, keys)), told[5])


def groups_of(depth: int, dual: Iterable[int] = ()) -> tuple[Group, ...]:
    """Divide layers into runs of equal blocks."""
    twice = frozenset(dual)
    kinds = [(layer in twice, layer == depth - 1) for layer in range(depth)]
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(kinds)]
    firsts = itertools.accumulate((count for _, count in runs), initial=0)
    return tuple(Group(first, count, *kind) for first, (kind, count) in zip(firsts, runs, strict=False))


def middle(most: int, rows: int, columns: int) -> tuple[slice, slice]:
    """Return the middle rows and columns of a table for `most` by `most` patches."""
    if max(rows, columns) > most:
        raise ValueError(
            f"mmdit: x has {rows} by {columns} patches, and the table of positions ends at {most} by {most}. Take "
            "smaller images, or build the network with a larger max_size."
        )
    top, left = (most - rows) // 2, (most - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def shape_of(network: str, width: int, heads: int, mlp_ratio: int, *, normalized: str, dropout: float) -> BlockShape:
    """Return what all blocks share, if such blocks can be built."""
    checks.whole(network, 1, width=width, heads=heads, mlp_ratio=mlp_ratio)
    checks.divides(network, "heads", heads, "width", width)
    checks.one_of(network, ("none", "rms"), normalized=normalized)
    checks.share(network, dropout=dropout)
    return BlockShape(heads, mlp_ratio * width, normalized, dropout)


def told_with_text(network: str, **widths: int) -> Told:
    """Collect what a network can be told, of which text must be there."""
    checks.whole(network, 0, **widths)
    if not widths["text_width"]:
        raise ValueError(
            f"{network}: text_width is 0, and half of this network is for text. Tell it text, with "
            "config.cond=('text', 'text_mask'), or take dit, which needs none."
        )
    return Told(**widths)


def read(signal: Signal, h: Array) -> tuple[Array, Signal, Sentence]:
    """Make tokens of the text, inside a module, and take it from the signal for the blocks; `h` are the image's."""
    mask = signal.text_mask
    assert signal.text is not None  # since it was told with text
    if mask is not None:
        mask = jnp.concatenate([mask.astype(bool), jnp.ones(h.shape[:2], bool)], 1)
    text = Dense(h.shape[-1], name="text")(signal.text.astype(h.dtype))
    return text, signal._replace(text=None, text_mask=None), Sentence(None, mask)


def look(q: Array, k: Array, v: Array, sentence: Sentence) -> Array:
    """Let queries attend to all tokens, turned by their angles if they have any."""
    if sentence.angles is not None:
        q, k = rotate_neighbours(q, sentence.angles), rotate_neighbours(k, sentence.angles)
    return attend(q, k, v, sentence.mask)
