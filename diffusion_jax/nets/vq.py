"""The vector-quantised autoencoder of latent diffusion (van den Oord et al. 2017; Rombach et al. 2022).

    z = encode(x),      q(z) = the entry of the codebook nearest to z, at each place,      x' = decode(q(z))       (1)

A diffusion model sees z as it was before (1), and what it draws is quantised on the way back. The gradient goes through
q as if it were the identity. What keeps z and the codebook together in training is `losses.autoencoder.commitment`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.nets import checks
from diffusion_jax.nets.autoencoder import Decoder, Encoder, Frame, factor, framed, wide
from diffusion_jax.nets.initial import Law
from diffusion_jax.types import Array


class Quantised(NamedTuple):
    """The nearest entries (B, h, w, C), passing on gradients; the same as they are; and their numbers (B, h, w)."""

    latent: Array
    entries: Array
    indices: Array


def vq(
    *,
    channels: int = 3,
    out_channels: int | None = None,
    latent_channels: int = 3,
    entries: int = 8192,
    entry_width: int | None = None,
    widths: tuple = (128, 256, 512),
    depth: int = 2,
    attention: tuple = (),
    middle: str = "attention",
    groups: int = 32,
    activation: str = "silu",
    padding: tuple = (0, 1),
    initial: Any = "fan_in",
    dtype: str = "float32",
    remat: str = "none",
) -> "VQ":
    """Build an autoencoder of images (B, H, W, channels) with a codebook; keywords are as in `vae`.

    An entry has `entry_width` numbers, by default as many as a latent has channels.
    """
    out_channels = channels if out_channels is None else out_channels
    entry_width = latent_channels if entry_width is None else entry_width
    checks.whole("vq", 1, channels=channels, out_channels=out_channels, latent_channels=latent_channels)
    checks.whole("vq", 1, entries=entries, entry_width=entry_width)
    frame = framed(
        "vq", widths, depth, attention=attention, middle=middle, groups=groups, activation=activation,
        padding=padding, initial=initial, dtype=dtype, remat=remat,
    )  # fmt: skip
    return VQ(channels, out_channels, latent_channels, entries, entry_width, frame)


class VQ(nn.Module):
    """The network of `vq`; called, it decodes what it encodes."""

    channels: int
    out_channels: int
    latent_channels: int
    entries: int
    entry_width: int
    frame: Frame

    def setup(self):
        self.encoder = Encoder(self.frame, self.latent_channels, self.entry_width)
        self.decoder = Decoder(self.frame, self.out_channels, self.latent_channels)
        law = Law("uniform", 1 / self.entries)
        self.codebook = self.param("codebook", law, (self.entries, self.entry_width))

    def __call__(self, x: Array) -> Array:
        return self.decode(self.encode(x))

    def encode(self, x: Array) -> Array:
        """Return z (B, h, w, entry_width), not yet quantised, in float32."""
        checks.images("vq", x, self.channels, factor(self.frame))
        return wide(self.encoder(x))

    def quantise(self, z: Array) -> Quantised:
        """Return the entries nearest to z, Eq. (1)."""
        checks.images("vq", z, self.entry_width, 1)
        return nearest(z, self.codebook)

    def decode(self, z: Array) -> Array:
        """Return images of z, which is quantised, in float32."""
        return wide(self.decoder(self.quantise(z).latent))


def nearest(z: Array, codebook: Array) -> Quantised:
    """Find the entries (n, C) of a codebook nearest to z (..., C)."""
    # |z|^2 is the same for all entries; the product is in full precision, as a TPU's own might choose a neighbour.
    products = jnp.einsum("...c,nc->...n", z, codebook, precision="highest")
    distances = jnp.square(codebook).sum(-1).reshape(*(1,) * (z.ndim - 1), -1) - 2 * products
    indices = jnp.argmin(distances, -1)
    entries = jnp.take(codebook, indices, axis=0)
    return Quantised(z + jax.lax.stop_gradient(entries - z), entries, indices)
