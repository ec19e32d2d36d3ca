"""What a network is told besides x, from the entries of `cond`.

    time (B,)             waves, then two dense layers
    label (B,)            a row of a table; the last, number `num_classes`, is the null label of guidance
    pooled (B, D)         two dense layers: a whole text in one vector, sizes and crops
    augment (B, A)        one dense layer without bias: how the image was augmented (Karras et al. 2022), or zeros
    text (B, L, D)        tokens to attend to; `text_mask` (B, L) says which of them exist
    dropout (B,)          typed PRNG keys, one per example: dropout is on if and only if they are there

The first four are added to one vector, the embedding. An entry the network was not built for is refused, and so is a
missing one: neither is ever ignored silently.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer

from diffusion_jax.naming import suggestion
from diffusion_jax.nets import checks
from diffusion_jax.nets.embed import Waves
from diffusion_jax.nets.initial import Scheme, normal
from diffusion_jax.nets.linear import Dense
from diffusion_jax.types import Array, Time

ENTRIES = ("label", "text", "text_mask", "pooled", "augment", "dropout")


class Told(NamedTuple):
    """The widths of what a network can be told; 0 means that it cannot."""

    num_classes: int = 0
    text_width: int = 0
    pooled_width: int = 0
    augment_width: int = 0


class Signal(NamedTuple):
    """What reaches every block: the embedding after its activation, the text, and the keys of dropout."""

    embedding: Array | None
    text: Array | None = None
    text_mask: Array | None = None
    keys: Array | None = None


class Conditioning(nn.Module):
    """Turn time and `cond` into the signal for the blocks; `waves` of width `width`, an embedding of `hidden`."""

    told: Told
    waves: Waves
    width: int
    hidden: int
    initial: Scheme
    dtype: Any
    label_std: float = 1.0
    time_initial: Scheme | None = None

    @nn.compact
    def __call__(self, t: Time, cond: Mapping | None) -> Signal:
        cond = dict(cond or {})
        check_condition(self.told, cond, t.shape[0])
        parts, waves = [], self.waves(t, self.width)
        if waves is not None:
            parts.append(self.two_layers("time", self.time_initial or self.initial, waves))
        if self.told.num_classes:
            rows = self.param("label", normal(self.label_std), (self.told.num_classes + 1, self.hidden))
            # A label out of range gives nan, which is seen; clipping would take the null label's row.
            parts.append(jnp.take(rows, cond["label"], axis=0, mode="fill").astype(self.dtype))
        if self.told.pooled_width:
            parts.append(self.two_layers("pooled", self.initial, cond["pooled"]))
        if self.told.augment_width and "augment" in cond:
            dense = Dense(self.hidden, self.initial, bias=False, name="augment")
            parts.append(dense(cond["augment"].astype(self.dtype)))
        elif self.told.augment_width and self.is_initializing():
            Dense(self.hidden, self.initial, bias=False, name="augment")(jnp.zeros((1, self.told.augment_width)))
        return signal_of(nn.silu(sum(parts[1:], parts[0])) if parts else None, cond)

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
    keywords = {"label": "num_classes", "text": "text_width", "pooled": "pooled_width", "augment": "augment_width"}
    return keywords.get(entry)


def check_condition(told: Told, cond: dict, batch: int) -> None:
    """Refuse a `cond` that the network cannot hear, or that says less than it must hear."""
    for name in cond:
        if name not in ENTRIES:
            raise ValueError(f"cond has an entry '{name}'.{suggestion(name, ENTRIES)} Known: {', '.join(ENTRIES)}.")
    wants = {"label": told.num_classes, "text": told.text_width, "pooled": told.pooled_width}
    for name, width in {**wants, "augment": told.augment_width}.items():
        if name in cond and not width:
            raise ValueError(
                f"cond has '{name}', but the network was built without it ({keyword_of(name)}=0) and would ignore it. "
                f"Build it with {keyword_of(name)}, or leave '{name}' out."
            )
    for name, width in wants.items():
        if width and name not in cond:
            null = f"; the null label is {width}" if name == "label" else ""
            raise ValueError(f"the network was built with {keyword_of(name)}={width}, so cond needs '{name}'{null}.")
    if "text_mask" in cond and "text" not in cond:
        raise ValueError("cond has 'text_mask' but no 'text'.")
    _check_shapes(told, cond, batch)


def _check_shapes(told, cond, batch):
    length = cond["text"].shape[1] if "text" in cond and cond["text"].ndim == 3 else "length"
    wanted = {
        "label": (batch,),
        "text": (batch, length, told.text_width),
        "text_mask": (batch, length),
        "pooled": (batch, told.pooled_width),
        "augment": (batch, told.augment_width),
        "dropout": (batch,),
    }
    for name, value in cond.items():
        if value.shape != wanted[name]:
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
