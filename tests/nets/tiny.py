"""Networks small enough to compile in a second, one for each kind, and inputs for them."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.naming import choose
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.network import apply_of, initialize

SMALL = {"name": "unet", "channels": 2, "image_size": 8, "width": 8, "multipliers": (1, 2), "depth": 1, "groups": 4}
SONG = {**SMALL, "resample": "fir", "skip_scale": 0.5**0.5, "shortcut": "projected", "decoder_attention": "last"}

# To compile with their gradients; the rest of the laws runs over them too.
SLOW = ("ncsnpp", "adm", "text", "dit", "mmdit", "flux")

# What text would ask in the last block, where it is only seen; kept, since files that are read have it.
IDLE = ("blocks_1/text/attention/norm_q/scale",)

KINDS = {
    "mlp": {"name": "mlp", "channels": 2, "width": 8, "depth": 2, "num_classes": 3},
    "2015": {
        **SMALL,
        "block": "plain",
        "resample": "pool",
        "skips": "level",
        "attention": (),
        "norm": "none",
        "activation": "relu",
        "initial": "he",
    },
    "ddpm": {**SMALL, "resample": {"name": "strided", "padding": (0, 1)}, "attention": (4,), "time": "positional"},
    "ncsnpp": {
        **SONG,
        "image_skip": "residual",
        "attention": (4,),
        "time": "fourier",
        "num_classes": 3,
        "augment_width": 3,
        "join": "waves",
    },
    "adm": {
        **SMALL,
        "tell": "scale_shift",
        "resample": "average",
        "attention": (4,),
        "head_width": 4,
        "initial": "fan_in",
        "num_classes": 3,
        "out_channels": 4,
    },
    "text": {
        **SMALL,
        "attention": (4,),
        "heads": 2,
        "mixer": "transformer",
        "initial": "fan_in",
        "text_width": 5,
        "pooled_width": 3,
    },
    "dit": {
        "name": "dit",
        "channels": 2,
        "size": {"name": "custom", "width": 8, "depth": 2, "heads": 2},
        "num_classes": 3,
    },
    "dit_text": {
        "name": "dit",
        "channels": 2,
        "size": {"name": "custom", "width": 8, "depth": 2, "heads": 2},
        "positions": "rotary",
        "normalized": "rms",
        "text_width": 5,
    },
    "mmdit": {
        "name": "mmdit",
        "channels": 2,
        "width": 8,
        "depth": 2,
        "heads": 2,
        "positions": "learned",
        "max_size": 5,
        "dual": (0,),
        "text_width": 5,
        "pooled_width": 3,
    },
    "flux": {
        "name": "flux",
        "channels": 2,
        "width": 16,
        "depth": 1,
        "single_depth": 1,
        "heads": 2,
        "text_width": 5,
        "pooled_width": 3,
        "guidance_width": 4,
    },
}


def kinds():
    """List the kinds, those that are slow to compile marked."""
    return [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in KINDS]


def build(kind, **changes):
    """Build a network of a kind, with some keywords changed."""
    return choose(NETWORKS, {**KINDS[kind], **changes}, "network")


def inputs(kind, batch=2, seed=0, **changes) -> tuple[Any, Any, Any]:
    """Return (x, t, cond) for a kind of network."""
    spec, rng = {**KINDS[kind], **changes}, np.random.default_rng(seed)
    shape = (batch, 2) if spec["name"] == "mlp" else (batch, 8, 8, 2)
    x, t = rng.normal(size=shape), rng.uniform(0.1, 0.9, batch)
    cond = {}
    if spec.get("num_classes"):
        cond["label"] = np.arange(batch) % 3
    if spec.get("text_width"):
        cond["text"] = rng.normal(size=(batch, 4, 5)).astype(np.float32)
        cond["text_mask"] = np.arange(4)[None] < np.arange(2, batch + 2)[:, None]
    for name in ("pooled", "augment"):
        if spec.get(f"{name}_width"):
            cond[name] = rng.normal(size=(batch, 3)).astype(np.float32)
    if spec.get("guidance_width"):
        cond["guidance"] = np.linspace(1, 4, batch, dtype=np.float32)
    return x.astype(np.float32), t.astype(np.float32), cond


@functools.cache
def started(kind, **changes):
    """Return a network's apply and its parameters as they begin."""
    module = build(kind, **changes)
    return apply_of(module), initialize(module, jax.random.key(0), inputs(kind, **changes))


def stirred(params, size=0.3):
    """Move every parameter away from its beginning, so that no layer is zero."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(7)
    moved = [np.asarray(p) + size * rng.normal(size=p.shape).astype(p.dtype) for p in leaves]
    return jax.tree.unflatten(structure, moved)
