"""What a network is told besides x, from the entries of `cond`.

    time (B,)             waves, then two dense layers
    label (B,)            a row of a table; the last, number `num_classes`, is the null label of guidance
    pooled (B, D)         two dense layers: a whole text in one vector, sizes and crops
    augment (B, A)        one dense layer without bias: how the image was augmented (Karras et al. 2022), or zeros
    guidance (B,)         waves, then two dense layers: the scale of the guidance that was distilled (Meng et al. 2023)
    text (B, L, D)        tokens to attend to; `text_mask` (B, L) says which of them exist
    dropout (B,)          typed PRNG keys, one per example: dropout is on if and only if they are there
    hint (B, nH, nW, C)   an image that a control network reads, see `controlnet.py`
    control               what control networks answered: an array for each of a U-Net's skips, and one for its middle

The first five are added to one vector, the embedding. Label and augmentation may instead join the waves of time, before
its two layers (EDM's SongUNet): the label by a dense layer, of sqrt(num_classes) at its place and zeros elsewhere. An
entry the network was not built for is refused, and so is a missing one: neither is ever ignored silently.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer

from diffusion_jax.naming import suggestion
from diffusion_jax.nets import checks
from diffusion_jax.nets.embed import Waves, sinusoidal
from diffusion_jax.nets.initial import Scheme, normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.types import Array, Time

PLACES = ("embedding", "waves")
ENTRIES = ("label", "text", "text_mask", "pooled", "augment", "guidance", "dropout", "hint", "control")


class Told(NamedTuple):
    """The widths of what a network can be told, of guidance that of its waves; 0 means that it cannot.

    `control` is 1 where it can be steered.
    """

    num_classes: int = 0
    text_width: int = 0
    pooled_width: int = 0
    augment_width: int = 0
    guidance_width: int = 0
    hint_channels: int = 0
    control: int = 0


class Signal(NamedTuple):
    """What reaches every block: the embedding after its activation, the text, and the keys of dropout."""

    embedding: Array | None
    text: Array | None = None
    text_mask: Array | None = None
    keys: Array | None = None


class Conditioning(nn.Module):
    """Turn time and `cond` into the signal for the blocks; `waves` of width `width`, an embedding of `hidden`.

    `join` says what labels and augmentations are added to, one of `PLACES`.
    """

    told: Told
    waves: Waves
    width: int
    hidden: int
    initial: Scheme
    dtype: Any
    label_std: float = 1.0
    time_initial: Scheme | None = None
    join: str = "embedding"

    @nn.compact
    def __call__(self, t: Time, cond: Mapping | None) -> Signal:
        cond = dict(cond or {})
        check_condition(self.told, cond, t.shape[0])
        parts, waves = [], self.waves(t, self.width)
        early = self.join == "waves"
        if early:
            waves = self.joined(waves, cond)
        if waves is not None:
            parts.append(self.two_layers("time", self.time_initial or self.initial, waves))
        if self.told.num_classes and not early:
            rows = self.param("label", normal(self.label_std), (self.told.num_classes + 1, self.hidden))
            # A label out of range gives nan, which is seen; clipping would take the null label's row.
            parts.append(jnp.take(rows, cond["label"], axis=0, mode="fill").astype(self.dtype))
        if self.told.pooled_width:
            parts.append(self.two_layers("pooled", self.initial, cond["pooled"]))
        if self.told.guidance_width:
            scale = sinusoidal()(cond["guidance"], self.told.guidance_width)
            parts.append(self.two_layers("guidance", self.initial, scale))
        if not early:
            parts += self.augmented(cond, self.hidden)
        return signal_of(nn.silu(sum(parts[1:], parts[0])) if parts else None, cond)

    def joined(self, waves, cond):
        """Add what the label and the augmentation say to the waves."""
        if waves is None:
            raise ValueError("labels join the waves of time (join='waves'), and time 'none' has none.")
        count, width, said = self.told.num_classes, waves.shape[-1], self.augmented(cond, waves.shape[-1])
        if count:
            label = cond["label"]
            places = count**0.5 * jax.nn.one_hot(label, count, dtype=self.dtype)
            exists = ((label >= 0) & (label <= count))[:, None]
            said.append(jnp.where(exists, Dense(width, self.initial, name="label")(places), jnp.nan))
        return sum(said, waves)

    def augmented(self, cond, width):
        """Return what the augmentation says, in a list, or an empty one."""
        if not self.told.augment_width:
            return []
        dense = Dense(width, self.initial, bias=False, name="augment")
        if "augment" in cond:
            return [dense(cond["augment"].astype(self.dtype))]
        if self.is_initializing():
            dense(jnp.zeros((1, self.told.augment_width)))
        return []

    def two_layers(self, name, initial, value):
        """Map a value to the embedding by dense, SiLU, dense."""
        h = nn.silu(Dense(self.hidden, initial, name=f"{name}_1")(value.astype(self.dtype)))
        return Dense(self.hidden, initial, name=f"{name}_2")(h)


def signal_of(embedding: Array | None, cond: Mapping) -> Signal:
    """Return the signal of an embedding and of what `cond` has besides."""
    return Signal(embedding, cond.get("text"), cond.get("text_mask"), cond.get("dropout"))


def make_told(network: str, num_classes: int, text_width: int, pooled_width: int, augment_width: int) -> Told:
    """Collect what a network can be told, refusing widths that cannot be."""
    told = Told(num_classes, text_width, pooled_width, augment_width)
    checks.whole(network, 0, **told._asdict())
    return told


def keyword_of(entry: str) -> str | None:
    """Name the keyword by which a network is built to hear an entry, or None for one that needs none."""
    return _KEYWORDS.get(entry)


def spoken(told: Told) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the `cond` of one example with what a network must hear, but a hint, by shape and dtype."""
    shapes = {
        "label": jax.ShapeDtypeStruct((1,), jnp.int32),
        "text": jax.ShapeDtypeStruct((1, 1, told.text_width), jnp.float32),
        "pooled": jax.ShapeDtypeStruct((1, told.pooled_width), jnp.float32),
        "guidance": jax.ShapeDtypeStruct((1,), jnp.float32),
    }
    return {name: shape for name, shape in shapes.items() if getattr(told, _KEYWORDS[name])}


def check_condition(told: Told, cond: dict, batch: int) -> None:
    """Refuse a `cond` that the network cannot hear, or that says less than it must hear.

    How large images must be is not known here: see `check_hint` and `steered`.
    """
    for name in cond:
        if name not in ENTRIES:
            raise ValueError(f"cond has an entry '{name}'.{suggestion(name, ENTRIES)} Known: {', '.join(ENTRIES)}.")
    for name, keyword in _KEYWORDS.items():
        width = getattr(told, keyword)
        if name in cond and not width:
            whose = " It is for a control network beside it: see nets/controlnet.py." if name == "hint" else ""
            raise ValueError(
                f"cond has '{name}', but the network was built without it ({keyword}=0) and would ignore it. "
                f"Build it with {keyword}, or leave '{name}' out.{whose}"
            )
        if width and name not in cond and name != "augment":
            null = f"; the null label is {width}" if name == "label" else ""
            raise ValueError(f"the network was built with {keyword}={width}, so cond needs '{name}'{null}.")
    if "control" in cond and not told.control:
        raise ValueError("cond has 'control', which only a U-Net hears, and this network is none; leave it out.")
    if "text_mask" in cond and "text" not in cond:
        raise ValueError("cond has 'text_mask' but no 'text'.")
    _check_shapes(told, cond, batch)


def check_hint(hint: Array, x: Array, channels: int, factor: int) -> None:
    """Refuse a hint that is not `channels` numbers for each pixel of an image `factor` times as large as x."""
    batch, height, width, _ = x.shape
    wanted = (batch, factor * height, factor * width, channels)
    if hint.shape != wanted:
        raise ValueError(
            f"cond['hint'] has shape {hint.shape}; for x of shape {x.shape} it must be {wanted}: the control network "
            f"halves it until {factor} by {factor} pixels of it are one of x."
        )


def steered(kept: Sequence[Array], control: Sequence[Array]) -> list[Array]:
    """Add what control networks answered to what a U-Net keeps; where it is one pixel, to all pixels alike."""
    if not isinstance(control, tuple | list) or len(control) != len(kept):
        given = f"{len(control)} arrays" if isinstance(control, tuple | list) else "one array"
        raise ValueError(
            f"cond['control'] is {given}; this U-Net takes a tuple of {len(kept)}: one for each of the "
            f"{len(kept) - 1} features that it keeps on the way down, in their order, and one for the middle."
        )
    for place, (h, more) in enumerate(zip(kept, control, strict=True)):
        if more.shape not in (h.shape, (h.shape[0], 1, 1, h.shape[-1])):
            raise ValueError(
                f"cond['control'][{place}] has shape {more.shape}; it must be {h.shape}. A control network steers the "
                "U-Net that it was cloned from, and others of its sizes."
            )
    return [h + more.astype(h.dtype) for h, more in zip(kept, control, strict=True)]


def _check_shapes(told, cond, batch):
    length = cond["text"].shape[1] if "text" in cond and cond["text"].ndim == 3 else "length"
    wanted = {
        "label": (batch,),
        "text": (batch, length, told.text_width),
        "text_mask": (batch, length),
        "pooled": (batch, told.pooled_width),
        "augment": (batch, told.augment_width),
        "guidance": (batch,),
        "dropout": (batch,),
    }
    for name, value in cond.items():
        if name in wanted and value.shape != wanted[name]:
            hint = " Dropout keys are typed: jax.random.key, not PRNGKey." if name == "dropout" else ""
            raise ValueError(f"cond['{name}'] has shape {value.shape}; it must be {wanted[name]}.{hint}")
    label = cond.get("label")
    if label is None:
        return
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"cond['label'] has dtype {label.dtype}; labels are whole numbers.")
    if isinstance(label, Tracer):
        return
    label = np.asarray(label)
    if np.any((label < 0) | (label > told.num_classes)):
        raise ValueError(
            f"cond['label'] is {label}; labels run from 0 to {told.num_classes - 1}, and {told.num_classes} is the "
            "null label."
        )


_KEYWORDS = {
    "label": "num_classes",
    "text": "text_width",
    "pooled": "pooled_width",
    "augment": "augment_width",
    "guidance": "guidance_width",
    "hint": "hint_channels",
}
