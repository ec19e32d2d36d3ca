"""The two halves of the autoencoders of latent diffusion (Rombach et al. 2022): images to a grid of numbers, and back.

    encoder:  first   level 0   half   level 1   half ... level n   middle   last        (code)
    decoder:  (code)  first   middle   level n   twice ... level 1   twice   level 0   last

A level is residual blocks of one width, with attention behind each where the level attends; the decoder has one block
more in each. The blocks are those of the U-Net, told nothing. A `code` is a further 1 x 1 convolution where the halves
meet, which published networks have on both sides or on neither.
"""

import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.devices import along_batch
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.blocks import AttentionBlock, ResidualBlock, Style, add
from diffusion_jax.nets.condition import Signal
from diffusion_jax.nets.initial import SCHEMES
from diffusion_jax.nets.linear import Conv
from diffusion_jax.nets.norm import GroupNorm
from diffusion_jax.nets.remat import REMATS
from diffusion_jax.nets.resample import RESAMPLERS, Between
from diffusion_jax.types import Array


class Frame(NamedTuple):
    """What both halves share; `attention` lists the levels that attend, and the middle does if `middle` says so."""

    widths: tuple[int, ...]
    depth: int
    attention: tuple[int, ...]
    middle: str
    resampler: Between
    style: Style
    dtype: Any
    remat: Any


def framed(
    network: str,
    widths: tuple,
    depth: int,
    *,
    attention: tuple,
    middle: str,
    groups: int,
    activation: str,
    padding: tuple,
    initial: Any,
    dtype: str,
    remat: str,
) -> Frame:
    """Return the frame if such halves can be built; exactly `groups` groups are normalised at every width."""
    checks.whole(network, 1, depth=depth, groups=groups, levels=len(widths))
    for level, width in enumerate(widths):
        checks.whole(network, 1, **{f"widths[{level}]": width})
        checks.divides(network, "groups", groups, f"widths[{level}]", width)
    checks.one_of(network, ("attention", "none"), middle=middle)
    absent = [level for level in attention if level not in range(len(widths))]
    if absent:
        raise ValueError(f"{network}: attention at level {absent[0]}; the levels are 0 to {len(widths) - 1}.")
    style = Style(
        activation=lookup(ACTIVATIONS, activation, f"activation of {network}"),
        norm=functools.partial(GroupNorm, groups=groups, epsilon=1e-6, least=1),
        tell=add, initial=choose(SCHEMES, initial, "initial"), dropout=0.0, skip_scale=1.0, shortcut="identity",
    )  # fmt: skip
    resampler = RESAMPLERS["strided"](padding=padding)
    kept = lookup(REMATS, remat, "remat")
    computed = checks.dtype_of(network, dtype)
    return Frame(tuple(widths), depth, tuple(attention), middle, resampler, style, computed, kept)


def factor(frame: Frame) -> int:
    """Return how many pixels of the image, along each axis, are one of the latent."""
    return 2 ** (len(frame.widths) - 1)


class Encoder(nn.Module):
    """Map images to `width` numbers for each place, then by a 1 x 1 convolution to `code`, unless that is 0."""

    frame: Frame
    width: int
    code: int = 0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        frame, initial = self.frame, self.frame.style.initial
        h = Conv(frame.widths[0], initial=initial, name="first")(x.astype(frame.dtype))
        for level in range(len(frame.widths)):
            if level:
                h = frame.resampler.down(h.shape[-1], initial, f"down_{level}_resample")(h)
            h = _level(frame, f"down_{level}", h, level, frame.depth)
        h = _last(frame, _middle(frame, h), self.width)
        return Conv(self.code, kernel=1, initial=initial, name="code")(h) if self.code else h


class Decoder(nn.Module):
    """Map latents, by a 1 x 1 convolution to `code` numbers unless that is 0, to images of `width` channels."""

    frame: Frame
    width: int
    code: int = 0

    @nn.compact
    def __call__(self, z: Array) -> Array:
        frame, initial = self.frame, self.frame.style.initial
        h = z.astype(frame.dtype)
        h = Conv(self.code, kernel=1, initial=initial, name="code")(h) if self.code else h
        h = _middle(frame, Conv(frame.widths[-1], initial=initial, name="first")(h))
        for level in reversed(range(len(frame.widths))):
            h = _level(frame, f"up_{level}", h, level, frame.depth + 1)
            if level:
                width, above = h.shape[-1], frame.widths[level - 1]
                h = frame.resampler.up(width, above, initial, f"up_{level - 1}_resample")(h)
        return _last(frame, h, self.width)


def _level(frame, name, h, level, count):
    """Apply the blocks of a level."""
    for place in range(count):
        h = _mapped(frame, f"{name}_block_{place}", h, frame.widths[level])
        if level in frame.attention:
            h = _mixed(frame, f"{name}_mixer_{place}", h)
    return h


def _middle(frame, h):
    h = _mapped(frame, "middle_block_0", h, frame.widths[-1])
    if frame.middle == "attention":
        h = _mixed(frame, "middle_mixer", h)
    return _mapped(frame, "middle_block_1", h, frame.widths[-1])


def _mapped(frame, name, h, width):
    return along_batch(frame.remat(ResidualBlock, scanned=False)(width, frame.style, name=name)(h, Signal(None)))


def _mixed(frame, name, h):
    """Let pixels attend, with one head."""
    return along_batch(frame.remat(AttentionBlock, scanned=False)(1, 1, frame.style, name=name)(h, Signal(None)))


def _last(frame, h, width):
    """Close a half; its activation is SiLU whatever the blocks have, as in every published network."""
    h = nn.silu(frame.style.norm(name="last_norm")(h))
    return Conv(width, initial=frame.style.initial, name="last")(h)


def wide(h: Array) -> Array:
    """Return float32."""
    return h.astype(jnp.float32)
