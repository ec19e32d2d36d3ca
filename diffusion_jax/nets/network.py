"""What the rest of the house needs of a network: its parameters and a pure function of them.

A network is a linen module called with (x, t, cond): x is (batch, ..., channels), t is (batch,) in float32, and cond is
None or a dict with any of the entries of `condition.py`. It returns float32.
"""

from typing import Any

import jax
from flax import linen as nn

from diffusion_jax.nets.initial import initialize, shapes_of
from diffusion_jax.types import Apply, Params

__all__ = ["apply_of", "count", "initialize", "shapes_of"]


def apply_of(module: nn.Module) -> Apply:
    """Return the network as a pure function (params, x, t, cond)."""

    def apply(params, x, t, cond) -> Any:
        return module.apply({"params": params}, x, t, cond)

    return apply


def count(params: Params) -> int:
    """Count parameters, of arrays or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
