"""One family of U-Nets: a path down through levels of half the size, and one up that meets it again at every level.

                    block     tell          resample   mixer         skips   further
    2015            plain     add           pool       -             level   norm "none"
    DDPM            residual  add           strided    attention     every
    DDPM++, NCSN++  residual  add           fir        attention     every   skip_scale 2^-1/2, shortcut projected,
                                                                             decoder_attention last, image_skip residual
    ADM             residual  scale_shift   average    attention     every   head_width 64
    latent          residual  add           strided    transformer   every   text_width 768

(Ronneberger et al. 2015; Ho et al. 2020; Song et al. 2021; Dhariwal & Nichol 2021; Rombach et al. 2022.) The columns
are keywords and combine freely. With skips "every", each block's output on the way down is met by one more block on the
way up; with "level", only the last of each level.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.devices import along_batch
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import checks
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.blocks import BLOCKS, MIXERS, TELLS, Style
from diffusion_jax.nets.condition import PLACES, Conditioning, Told, make_told, spoken, steered
from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.initial import SCHEMES, ZERO
from diffusion_jax.nets.linear import Conv
from diffusion_jax.nets.norm import NORMS
from diffusion_jax.nets.remat import REMATS
from diffusion_jax.nets.resample import RESAMPLERS, Between, Inside
from diffusion_jax.types import Array, Time


class Level(NamedTuple):
    """One size of image: how wide its blocks are, and whether and how they attend."""

    size: int
    width: int
    heads: int  # 0 where pixels do not attend
    transformers: int


def unet(
    *,
    channels: int,
    out_channels: int | None = None,
    image_size: int = 32,
    width: int = 128,
    multipliers: tuple = (1, 2, 2, 2),
    depth: int = 2,
    block: str = "residual",
    tell: str = "add",
    resample: Any = "strided",
    skips: str = "every",
    image_skip: str = "none",
    attention: tuple = (16,),
    decoder_attention: str = "every",
    mixer: str = "attention",
    heads: int = 1,
    head_width: int = 0,
    transformers: Any = 1,
    norm: str = "group",
    groups: int = 32,
    group_width: int = 4,
    epsilon: float = 1e-6,
    activation: str = "silu",
    skip_scale: float = 1.0,
    shortcut: str = "identity",
    initial: str = "fan_average",
    time: Any = "sinusoidal",
    num_classes: int = 0,
    text_width: int = 0,
    pooled_width: int = 0,
    augment_width: int = 0,
    join: str = "embedding",
    dropout: float = 0.0,
    dtype: str = "float32",
    remat: str = "none",
) -> nn.Module:
    """Build a U-Net for images (B, H, W, channels) with levels of `width` times `multipliers` channels.

    `attention` lists the sizes, of images of `image_size`, at which pixels attend; in the middle they do if anywhere,
    and with ("middle",) only there. `head_width`, or where it is 0 `heads`, divides a level's width; `transformers` is
    a number of layers, or one a level; `groups` have `group_width` channels or more. Of `join` tells `condition.py`.
    """
    out_channels = channels if out_channels is None else out_channels
    checks.whole("unet", 1, channels=channels, out_channels=out_channels, depth=depth, groups=groups, heads=heads)
    checks.share("unet", dropout=dropout)
    _check_words(skips=skips, decoder_attention=decoder_attention, shortcut=shortcut, image_skip=image_skip, join=join)
    levels, middle = _levels(image_size, _widths(width, multipliers), attention, (heads, head_width), transformers)
    style = Style(
        activation=lookup(ACTIVATIONS, activation, "activation"), skip_scale=skip_scale, shortcut=shortcut,
        norm=functools.partial(lookup(NORMS, norm, "norm"), groups=groups, epsilon=epsilon, least=group_width),
        tell=lookup(TELLS, tell, "tell"), initial=choose(SCHEMES, initial, "initial"), dropout=dropout,
    )  # fmt: skip
    return UNet(
        channels=channels, out_channels=out_channels, width=width, levels=levels, middle=middle, depth=depth,
        block=lookup(BLOCKS, block, "block"), mixer=_mixer(mixer, text_width, attention), style=style, skips=skips,
        resampler=_resampler(resample, image_skip), waves=choose(TIME_EMBEDDINGS, time, "time"), image_skip=image_skip,
        decoder_attention=decoder_attention, dtype=checks.dtype_of("unet", dtype), remat=lookup(REMATS, remat, "remat"),
        join=join, told=make_told("unet", num_classes, text_width, pooled_width, augment_width)._replace(control=1),
    )  # fmt: skip


class Descent(nn.Module):
    """The way down and what is at its bottom: of a U-Net, and of what is cloned from one."""

    channels: int
    width: int
    levels: tuple[Level, ...]
    middle: Level
    depth: int
    block: Any
    mixer: Any
    resampler: Inside | Between
    skips: str
    image_skip: str
    style: Style
    waves: Waves
    told: Told
    join: str
    dtype: Any
    remat: Any

    def signal(self, x, t, cond):
        """Refuse what the network cannot hear; return the signal for its blocks."""
        checks.images("unet", x, self.channels, 2 ** (len(self.levels) - 1))
        widths, initial = (self.width, 4 * self.width), self.style.initial
        conditioning = Conditioning(
            self.told, self.waves, *widths, initial, self.dtype, join=self.join, name="conditioning"
        )
        return conditioning(t, cond)

    def descend(self, image, signal, hint=None):
        """Go down all levels; return what arrives at the bottom and what is kept for the way up.

        `hint` joins behind the first convolution.
        """
        h, kept, every = image, [], self.skips == "every"
        if self.block.preactivated or every:
            h = Conv(self.width, initial=self.style.initial, name="first")(h)
        if hint is not None:
            h = h + hint
        if every:
            kept.append(h)
        for index, level in enumerate(self.levels):
            if index:
                h, image = self.halved(index, h, image, signal)
                if every:
                    kept.append(h)
            for place in range(self.depth):
                h = self.mapped(f"down_{index}_block_{place}", h, signal, level.width)
                h = self.mixed(f"down_{index}_mixer_{place}", h, signal, level)
                if every or (place == self.depth - 1 and level is not self.levels[-1]):
                    kept.append(h)
        return h, kept

    def bottom(self, h, signal, blocks=2):
        """Apply the blocks of the middle: two with attention between them, or the first alone."""
        if self.skips == "level":
            return h
        h = self.mapped("middle_block_0", h, signal, h.shape[-1])
        if blocks == 1:
            return h
        h = self.mixed("middle_mixer", h, signal, self.middle)
        return self.mapped("middle_block_1", h, signal, h.shape[-1])

    def mapped(self, name, h, signal, width, resample=None):
        """Apply a block."""
        return along_batch(self.remat(self.block, scanned=False)(width, self.style, resample, name=name)(h, signal))

    def mixed(self, name, h, signal, level):
        """Let pixels attend, where the level says so."""
        if not level.heads:
            return h
        mixer = self.remat(self.mixer, scanned=False)
        return along_batch(mixer(level.heads, level.transformers, self.style, name=name)(h, signal))

    def halved(self, index, h, image, signal):
        """Go down to level `index`; with image_skip "residual" the image goes down beside h and joins it."""
        width, style = h.shape[-1], self.style
        if isinstance(self.resampler, Between):
            return self.resampler.down(width, style.initial, f"down_{index}_resample")(h), image
        h = self.mapped(f"down_{index}_resample", h, signal, width, self.resampler.down)
        if self.image_skip == "residual":
            beside = Conv(width, stride=2, padding=(0, 0), initial=style.initial, name=f"down_{index}_image")
            h = image = (h + beside(self.resampler.smooth(image))) * style.skip_scale
        return h, image


class UNet(Descent):
    """The network of `unet`."""

    out_channels: int
    decoder_attention: str

    @nn.compact
    def __call__(self, x: Array, t: Time, cond: Any = None) -> Array:
        style, signal = self.style, self.signal(x, t, cond)
        h, kept = self.descend(x.astype(self.dtype), signal)
        h = self.bottom(h, signal)
        if cond and "control" in cond:
            *kept, h = steered([*kept, h], cond["control"])
        h = self.ascend(h, kept, signal)
        if self.block.preactivated:
            h = style.activation(style.norm(name="last_norm")(h))
        last = Conv(self.out_channels, kernel=3 if self.block.preactivated else 1, initial=ZERO, name="last")
        return last(h).astype(jnp.float32)

    def ascend(self, h, kept, signal):
        """Go up all levels, each block met by what was kept."""
        every = self.skips == "every"
        for index, level in reversed(list(enumerate(self.levels))):
            bottom = level is self.levels[-1]
            if not bottom:
                h = self.doubled(index, h, signal)
            places = self.depth + 1 if every else self.depth * (not bottom)
            for place in range(places):
                if every or place == 0:
                    h = jnp.concatenate([h, kept.pop()], -1)
                h = self.mapped(f"up_{index}_block_{place}", h, signal, level.width)
                if self.decoder_attention == "every" or place == places - 1:
                    h = self.mixed(f"up_{index}_mixer_{place}", h, signal, level)
        return h

    def doubled(self, index, h, signal):
        """Go up to level `index`."""
        width, name = h.shape[-1], f"up_{index}_resample"
        if isinstance(self.resampler, Between):
            return self.resampler.up(width, self.levels[index].width, self.style.initial, name)(h)
        return self.mapped(name, h, signal, width, self.resampler.up)


def example_of(module: Descent) -> tuple[Any, Any, dict[str, Any]]:
    """Return the smallest (x, t, cond) that a network of this family hears, by shape and dtype, but for a hint."""
    side = 2 ** (len(module.levels) - 1)
    x = jax.ShapeDtypeStruct((1, side, side, module.channels), jnp.float32)
    return x, jax.ShapeDtypeStruct((1,), jnp.float32), spoken(module.told)


def _widths(width, multipliers):
    checks.whole("unet", 8, width=width)
    checks.whole("unet", 1, **{f"multipliers[{index}]": number for index, number in enumerate(multipliers)})
    return [width * number for number in multipliers]


def _levels(image_size, widths, attention, heads, transformers):
    """Say of every level, and of the middle, how wide it is and how it attends."""
    checks.whole("unet", 1, image_size=image_size)
    checks.whole("unet", 0, head_width=heads[1])
    halvings = len(widths) - 1
    if not widths or image_size % 2**halvings:
        raise ValueError(
            f"unet: image_size is {image_size}, which {len(widths)} multipliers would halve {halvings} times; "
            f"it must be a multiple of {2**halvings}. Use fewer multipliers or pad the images."
        )
    sizes = [image_size // 2**index for index in range(len(widths))]
    for size in attention:
        if size not in (*sizes, "middle"):
            raise ValueError(f"unet: attention at size {size}, but the levels of a {image_size} image are {sizes}.")
    layers = [transformers] * len(widths) if isinstance(transformers, int) else list(transformers)
    if len(layers) != len(widths):
        raise ValueError(f"unet: transformers is {layers}; give one number, or one for each of {len(widths)} levels.")
    levels = []
    for size, width, depth in zip(sizes, widths, layers, strict=True):
        count = _heads(width, *heads) if size in attention else 0
        levels.append(Level(size, width, count, depth))
    middle = levels[-1]._replace(heads=_heads(widths[-1], *heads) if attention else 0)
    return tuple(levels), middle


def _heads(width, heads, head_width):
    """Divide a width into heads."""
    if head_width:
        checks.divides("unet", "head_width", head_width, "the width of a level", width)
        return width // head_width
    checks.divides("unet", "heads", heads, "the width of a level", width)
    return heads


def _check_words(**words):
    known = {
        "skips": ("every", "level"),
        "decoder_attention": ("every", "last"),
        "shortcut": ("identity", "projected"),
        "image_skip": ("none", "residual"),
        "join": PLACES,
    }
    for name, word in words.items():
        checks.one_of("unet", known[name], **{name: word})


def _mixer(mixer, text_width, attention):
    if text_width and (mixer != "transformer" or not attention):
        raise ValueError(
            f"unet: text_width is {text_width}, but only mixer 'transformer', where pixels attend, reads text; "
            f"mixer is '{mixer}' and attention is {attention}."
        )
    return lookup(MIXERS, mixer, "mixer")


def _resampler(resample, image_skip):
    resampler = choose(RESAMPLERS, resample, "resample")
    if image_skip == "residual" and isinstance(resampler, Between):
        raise ValueError(f"unet: image_skip 'residual' needs resampling without parameters, such as 'fir'; {resample}.")
    return resampler
