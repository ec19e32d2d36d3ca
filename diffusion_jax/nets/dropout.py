"""Dropout that belongs to the example: its masks follow from the example's own key and nothing else.

Each place in a network that drops draws other bits of the same key: the key is folded with a number for the place, a
checksum of the module's path. So example i loses the same entries in any batch, on any number of devices.
"""

import zlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.types import Array, Key


class Dropout(nn.Module):
    """Set a share `rate` of the entries to zero and scale up the others; do nothing without keys (B,)."""

    rate: float

    @nn.compact
    def __call__(self, x: Array, keys: Key | None) -> Array:
        if keys is None or self.rate == 0:
            return x
        place = zlib.crc32("/".join(self.path).encode())

        def kept(key):
            return jax.random.bernoulli(jax.random.fold_in(key, place), 1 - self.rate, x.shape[1:])

        # Drawn on their own: where XLA may draw them within a convolution, a U-Net takes it thrice as long to compile
        mask = jax.lax.optimization_barrier(jax.vmap(kept)(keys))
        return jnp.where(mask, x / (1 - self.rate), jnp.zeros((), x.dtype))
