"""The two transformers of CLIP (Radford et al. 2021): one reads text, one sees images, and both point in one space.

Text: tokens and their positions, causal blocks, a last norm; a text is its state at the end-of-text token. Images:
patches behind a class token, a norm before the blocks; an image is its class token after a last norm. A linear map
takes either to the space where the cosine between them says how well they fit.

Because later tokens are not seen, what follows the end of a text changes nothing up to there; a mask changes what comes
after.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.nets import checks
from diffusion_jax.nets.initial import Law, normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.nets.norm import LayerNorm
from diffusion_jax.nets.vit import Patches, Shape, blocks, checked, first
from diffusion_jax.types import Array


class TextFeatures(NamedTuple):
    """States of a text: after the last norm (B, T, C), after each block (depth, B, T, C), at its end, in the space.

    The last entry is the state before the first block.
    """

    tokens: Array
    layers: Array
    pooled: Array
    projected: Array | None
    embedded: Array


class ImageFeatures(NamedTuple):
    """States of an image: after the last block (B, 1 + patches, C), its class token after the norm, in the space.

    The last two entries are the states after each block and before the first.
    """

    tokens: Array
    pooled: Array
    projected: Array | None
    layers: Array
    embedded: Array


def clip_text(
    *,
    vocabulary: int = 49408,
    length: int = 77,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int = 3072,
    feed: str = "quick_gelu",
    epsilon: float = 1e-5,
    end: int | None = None,
    projection: int = 0,
    dtype: str = "float32",
) -> "ClipText":
    """Build the text half: whole numbers (B, T) below `vocabulary`, T up to `length`, to `TextFeatures` in float32.

    A text ends at the first `end`; without one, at the greatest of its numbers, as in the original. `projection` is
    the dimension of the space, 0 for none.
    """
    checks.whole("clip_text", 1, vocabulary=vocabulary, length=length)
    checks.whole("clip_text", 0, projection=projection, **({} if end is None else {"end": end}))
    shape = checked("clip_text", Shape(width, depth, heads, hidden, feed, epsilon, sight="causal"))
    return ClipText(vocabulary, length, shape, end, projection, checks.dtype_of("clip_text", dtype))


def clip_vision(
    *,
    size: int = 224,
    patch: int = 14,
    width: int = 1024,
    depth: int = 24,
    heads: int = 16,
    hidden: int = 4096,
    feed: str = "quick_gelu",
    epsilon: float = 1e-5,
    projection: int = 0,
    dtype: str = "float32",
) -> "ClipVision":
    """Build the half that sees: images (B, size, size, 3), normalised by CLIP's statistics, to `ImageFeatures`."""
    checks.whole("clip_vision", 1, size=size, patch=patch)
    checks.whole("clip_vision", 0, projection=projection)
    checks.divides("clip_vision", "patch", patch, "size", size)
    shape = checked("clip_vision", Shape(width, depth, heads, hidden, feed, epsilon))
    return ClipVision(size, patch, shape, projection, checks.dtype_of("clip_vision", dtype))


class ClipText(nn.Module):
    """The network of `clip_text`."""

    vocabulary: int
    length: int
    shape: Shape
    end: int | None
    projection: int
    dtype: Any

    @nn.compact
    def __call__(self, ids: Array, mask: Array | None = None) -> TextFeatures:
        if ids.ndim != 2 or ids.shape[1] > self.length or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"clip_text: ids are {ids.dtype} of shape {ids.shape}; they must be whole numbers (B, T) with T of at "
                f"most {self.length}."
            )
        width = self.shape.width
        tokens = self.param("tokens", normal(0.02), (self.vocabulary, width))
        positions = self.param("positions", normal(0.01), (self.length, width))
        # A number that is no token gets nan, which is seen; clipping it to one would not be.
        h = jnp.take(tokens, ids, axis=0, mode="fill") + positions[None, : ids.shape[1]]
        embedded = h.astype(self.dtype)
        h, layers = blocks(self.shape, embedded, mask)
        h = LayerNorm(self.shape.epsilon, name="norm")(h)
        ends = ids.argmax(1) if self.end is None else (ids == self.end).argmax(1)
        pooled = h[jnp.arange(len(ids)), ends]
        projected = _projected(pooled, self.projection)
        return TextFeatures(_wide(h), _wide(layers), _wide(pooled), projected, _wide(embedded))


class ClipVision(nn.Module):
    """The network of `clip_vision`."""

    size: int
    patch: int
    shape: Shape
    projection: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> ImageFeatures:
        if x.shape[1:] != (self.size, self.size, 3):
            raise ValueError(f"clip_vision: images are {x.shape}; they must be (B, {self.size}, {self.size}, 3).")
        width, count = self.shape.width, (self.size // self.patch) ** 2
        h = Patches(width, self.patch, bias=False, name="patches")(x.astype(self.dtype))
        h = first(self.param("class", normal(0.02), (width,)), h)
        h = h + self.param("positions", normal(0.02), (1 + count, width)).astype(h.dtype)[None]
        embedded = LayerNorm(self.shape.epsilon, name="norm_before")(h)
        h, layers = blocks(self.shape, embedded)
        pooled = LayerNorm(self.shape.epsilon, name="norm")(h[:, 0])
        projected = _projected(pooled, self.projection)
        return ImageFeatures(_wide(h), _wide(pooled), projected, _wide(layers), _wide(embedded))


class Clip(nn.Module):
    """Both halves, and the logarithm of the scale by which training multiplied their cosines."""

    text: ClipText
    vision: ClipVision

    @nn.compact
    def __call__(self, ids: Array, x: Array, mask: Array | None = None) -> tuple[TextFeatures, ImageFeatures, Array]:
        scale = self.param("logit_scale", Law("constant", 2.6592), ())  # log(1 / 0.07), as published
        return self.text(ids, mask), self.vision(x), scale


def _projected(pooled, width):
    """Take to the common space; called inside a module, which then has the layer."""
    return _wide(Dense(width, bias=False, name="projection")(pooled)) if width else None


def _wide(array):
    return array.astype(jnp.float32)
