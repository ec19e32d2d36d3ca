"""The variational autoencoder of latent diffusion (Kingma & Welling 2014; Rombach et al. 2022).

    q(z | x) = N(mean(x), exp(log_variance(x))),        x' = decode(z)                                        (1)
    KL(q | N(0, 1)) = 1/2 sum (mean^2 + variance - 1 - log_variance)                                          (2)

                          latent_channels   encoder_code, decoder_code   a pixel of the latent
    Stable Diffusion 1-2, XL        4       True                          8 by 8
    Stable Diffusion 3, FLUX.1     16       False                         8 by 8

What a diffusion model sees is z with a mean and a scale removed, which is not the network's: see `denoisers.latent`.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.nets import checks
from diffusion_jax.nets.autoencoder import Decoder, Encoder, Frame, factor, framed, wide
from diffusion_jax.types import Array

LEAST, MOST = -30.0, 20.0  # of log-variances, as published


class Posterior(NamedTuple):
    """q(z | x), Eq. (1): both (B, h, w, latent_channels)."""

    mean: Array
    log_variance: Array


def vae(
    *,
    channels: int = 3,
    out_channels: int | None = None,
    latent_channels: int = 4,
    widths: tuple = (128, 256, 512, 512),
    depth: int = 2,
    attention: tuple = (),
    middle: str = "attention",
    encoder_code: bool = True,
    decoder_code: bool = True,
    groups: int = 32,
    activation: str = "silu",
    padding: tuple = (0, 1),
    initial: Any = "fan_in",
    dtype: str = "float32",
    remat: str = "none",
) -> "VAE":
    """Build an autoencoder of images (B, H, W, channels), halved once less than there are `widths`.

    `attention` lists levels whose pixels attend, 0 being the finest. `encoder_code` and `decoder_code` say whether the
    halves have a 1 x 1 convolution where they meet (diffusers: use_quant_conv, use_post_quant_conv). `padding` is where
    the zeros of a strided convolution lie.
    """
    out_channels = channels if out_channels is None else out_channels
    checks.whole("vae", 1, channels=channels, out_channels=out_channels, latent_channels=latent_channels)
    frame = framed(
        "vae", widths, depth, attention=attention, middle=middle, groups=groups, activation=activation,
        padding=padding, initial=initial, dtype=dtype, remat=remat,
    )  # fmt: skip
    codes = 2 * latent_channels * encoder_code, latent_channels * decoder_code
    return VAE(channels, out_channels, latent_channels, codes, frame)


class VAE(nn.Module):
    """The network of `vae`; called, it decodes the mode."""

    channels: int
    out_channels: int
    latent_channels: int
    codes: tuple[int, int]
    frame: Frame

    def setup(self):
        self.encoder = Encoder(self.frame, 2 * self.latent_channels, self.codes[0])
        self.decoder = Decoder(self.frame, self.out_channels, self.codes[1])

    def __call__(self, x: Array) -> Array:
        return self.decode(self.encode(x).mean)

    def encode(self, x: Array) -> Posterior:
        """Return q(z | x) in float32."""
        checks.images("vae", x, self.channels, factor(self.frame))
        mean, log_variance = jnp.split(wide(self.encoder(x)), 2, -1)
        return Posterior(mean, jnp.clip(log_variance, LEAST, MOST))

    def decode(self, z: Array) -> Array:
        """Return images in float32."""
        checks.images("vae", z, self.latent_channels, 1)
        return wide(self.decoder(z))


def mode(posterior: Posterior) -> Array:
    """Return the likeliest z."""
    return posterior.mean


def sample(posterior: Posterior, noise: Array) -> Array:
    """Return a z drawn from q, given standard normal `noise` of its shape; `process.noise` keys noise by example."""
    return posterior.mean + jnp.exp(posterior.log_variance / 2) * noise


def kl(posterior: Posterior) -> Array:
    """Return Eq. (2) for each example, in nats."""
    mean, log_variance = posterior
    return (mean**2 + jnp.expm1(log_variance) - log_variance).sum((1, 2, 3)) / 2
