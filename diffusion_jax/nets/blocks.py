"""The blocks that U-Nets are made of. Each is called with an image and the signal of `condition.py`.

    residual:   h = conv(act(norm(x)));   h = conv0(drop(act(tell(norm, h))));   (shortcut(x) + h) c            (1)
    plain:      h = act(tell(norm, conv(x)));   h = act(norm(conv(h)))                                         (2)

conv0 is zero at first; c is `skip_scale`. What the network is told enters in one of two ways, from one dense layer:

    add:           tell(norm, h) = norm(h + b)                                            (DDPM)                 (3)
    scale_shift:   tell(norm, h) = norm(h) (1 + s) + b                                    (ADM)                  (4)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.nets.attention import Attention
from diffusion_jax.nets.condition import Signal
from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.initial import ZERO, Scheme
from diffusion_jax.nets.linear import Conv, Dense
from diffusion_jax.nets.norm import LayerNorm
from diffusion_jax.types import Array


class Style(NamedTuple):
    """What all blocks of one network share."""

    activation: Callable[[Array], Array]
    norm: Callable[..., nn.Module]  # by name
    tell: Callable[..., Array]
    initial: Scheme
    dropout: float
    skip_scale: float
    shortcut: str  # "identity" where it can be, or "projected" where the size changes too


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut, Eq. (1); `resample` acts on both."""

    width: int
    style: Style
    resample: Callable[[Array], Array] | None = None

    preactivated = True  # the network has a convolution before its first block, and norm and act after its last

    @nn.compact
    def __call__(self, x: Array, signal: Signal) -> Array:
        style = self.style
        h = style.activation(style.norm(name="norm_1")(x))
        if self.resample:
            h, x = self.resample(h), self.resample(x)
        h = Conv(self.width, initial=style.initial, name="conv_1")(h)
        h = style.tell(style, style.norm(name="norm_2"), h, signal.embedding)
        h = Dropout(style.dropout, name="dropout")(style.activation(h), signal.keys)
        h = Conv(self.width, initial=ZERO, name="conv_2")(h)
        if x.shape[-1] != self.width or (self.resample and style.shortcut == "projected"):
            x = Conv(self.width, kernel=1, initial=style.initial, name="shortcut")(x)
        return _scaled(x + h, style.skip_scale)


class PlainBlock(nn.Module):
    """Two convolutions, Eq. (2): the U-Net of 2015 with norm "none"."""

    width: int
    style: Style
    resample: Callable[[Array], Array] | None = None

    preactivated = False

    @nn.compact
    def __call__(self, x: Array, signal: Signal) -> Array:
        style = self.style
        h = self.resample(x) if self.resample else x
        h = Conv(self.width, initial=style.initial, name="conv_1")(h)
        h = style.activation(style.tell(style, style.norm(name="norm_1"), h, signal.embedding))
        h = Dropout(style.dropout, name="dropout")(h, signal.keys)
        h = Conv(self.width, initial=style.initial, name="conv_2")(h)
        return style.activation(style.norm(name="norm_2")(h))


class AttentionBlock(nn.Module):
    """Attention over all pixels beside a shortcut; its last layer is zero at first."""

    heads: int
    depth: int
    style: Style

    @nn.compact
    def __call__(self, x: Array, signal: Signal) -> Array:
        tokens = _tokens(self.style.norm(name="norm")(x))
        h = Attention(self.heads, self.style.initial, ZERO, name="attention")(tokens)
        return _scaled(x + h.reshape(x.shape), self.style.skip_scale)


class TransformerBlocks(nn.Module):
    """`depth` layers of attention to the image, then to the text, and a gated dense layer (Rombach et al. 2022)."""

    heads: int
    depth: int
    style: Style

    @nn.compact
    def __call__(self, x: Array, signal: Signal) -> Array:
        style, width = self.style, x.shape[-1]
        h = _tokens(style.norm(epsilon=1e-6, name="norm")(x))
        h = Dense(width, style.initial, name="in")(h)
        for layer in range(self.depth):
            h = TransformerLayer(self.heads, style, name=f"layer_{layer}")(h, signal)
        h = Dense(width, ZERO, name="out")(h)
        return _scaled(x + h.reshape(x.shape), style.skip_scale)


class TransformerLayer(nn.Module):
    """Attention within, attention to the text if there is one, and a dense layer gated by GELU."""

    heads: int
    style: Style

    @nn.compact
    def __call__(self, h: Array, signal: Signal) -> Array:
        initial, width = self.style.initial, h.shape[-1]
        attention = Attention(self.heads, initial, initial, bias=False, name="attention")
        h = h + attention(LayerNorm(name="norm_1")(h))
        if signal.text is not None:
            to_text = Attention(self.heads, initial, initial, bias=False, name="to_text")
            h = h + to_text(LayerNorm(name="norm_2")(h), signal.text, signal.text_mask)
        value, gate = jnp.split(Dense(8 * width, initial, name="dense_1")(LayerNorm(name="norm_3")(h)), 2, -1)
        inner = Dropout(self.style.dropout, name="dropout")(value * nn.gelu(gate, approximate=False), signal.keys)
        return h + Dense(width, initial, name="dense_2")(inner)


def add(style: Style, norm: nn.Module, h: Array, embedding: Array | None) -> Array:
    """Add what is told to every pixel, Eq. (3)."""
    if embedding is None:
        return norm(h)
    told = Dense(h.shape[-1], style.initial, name="tell")(embedding)
    return norm(h + told.reshape(h.shape[0], 1, 1, -1))


def scale_shift(style: Style, norm: nn.Module, h: Array, embedding: Array | None) -> Array:
    """Scale and shift by what is told, Eq. (4)."""
    if embedding is None:
        return norm(h)
    return norm(h, Dense(2 * h.shape[-1], style.initial, name="tell")(embedding))


def _tokens(x):
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _scaled(x: Array, scale: Any) -> Array:
    return x if scale == 1 else x * scale


BLOCKS = {"residual": ResidualBlock, "plain": PlainBlock}
MIXERS = {"attention": AttentionBlock, "transformer": TransformerBlocks}
TELLS = {"add": add, "scale_shift": scale_shift}
