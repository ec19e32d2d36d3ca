"""What autoencoders of latent diffusion minimise, beside the divergence of their posterior (`nets.vae.kl`).

    reconstruction:  |x - x'| / exp(s) + s,    for each number of an image, s a learned log-scale                 (1)
    commitment:      beta |z - sg(e)|^2 + |sg(z) - e|^2,    e being the entry of the codebook nearest to z         (2)

(1) is a Laplacian likelihood but for a constant, and least where exp(s) is the mean error (Rombach et al. 2022); (2) is
of van den Oord et al. 2017, sg being a constant to the gradient.
"""

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array


def reconstruction(x: Array, again: Array, log_scale: Array) -> Array:
    """Return Eq. (1) for each example, summed over its numbers."""
    return (jnp.abs(x - again) / jnp.exp(log_scale) + log_scale).sum(range(1, x.ndim))


def commitment(z: Array, entries: Array, *, beta: float = 0.25) -> Array:
    """Return the mean of Eq. (2) over all numbers."""
    still = jax.lax.stop_gradient
    return beta * jnp.square(z - still(entries)).mean() + jnp.square(still(z) - entries).mean()
