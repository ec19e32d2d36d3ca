"""Noise keyed by the global index of the example.

Example i draws from the same stream whatever the batch around it, the number of devices or the number of hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.process.schedule import wide
from diffusion_jax.types import Array, Key


def example_keys(key: Key, indices: Any) -> Key:
    """Give each example its own key: `indices` are global indices, or their number for 0, 1, 2, ..."""
    indices = jnp.arange(indices) if isinstance(indices, int) else jnp.asarray(indices)
    if indices.ndim != 1 or not jnp.issubdtype(indices.dtype, jnp.integer):
        raise ValueError(f"indices must be one row of whole numbers; got {indices.dtype} of shape {indices.shape}.")
    return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)


def advance(keys: Key, step: Any) -> Key:
    """Derive every example's key for one step of a loop."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, step)


def normal_like(keys: Key, x: Array) -> Array:
    """Draw standard normal noise shaped like the batch `x`, example i from keys[i], in float32 or better."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], wide(x.dtype)))(keys)
