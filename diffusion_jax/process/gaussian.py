"""Gaussian identities of the variational bound, elementwise and in nats.

With d = log(std1^2 / std2^2):

    KL(N1 || N2) = (exp(d) - 1 - d + (mean1 - mean2)^2 / std2^2) / 2                                        (1)

and for data on `levels` values of [-1, 1], h half their distance, the bins at both ends open (Ho et al. 2020, Eq. 13):

    log P(x) = log(Phi((x + h - mean) / std) - Phi((x - h - mean) / std)).                                  (2)
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array


def kl(mean1: Array, std1: Array, mean2: Array, std2: Array) -> Array:
    """Return KL(N(mean1, std1^2) || N(mean2, std2^2)), Eq. (1)."""
    return _kl(2 * jnp.log(std1 / std2), (mean1 - mean2) / std2)


def kl_log_variance(mean1: Array, log_variance1: Array, mean2: Array, log_variance2: Array) -> Array:
    """Return KL(N1 || N2), Eq. (1), of Gaussians given by the logarithms of their variances."""
    return _kl(log_variance1 - log_variance2, (mean1 - mean2) * jnp.exp(-log_variance2 / 2))


def log_density(x: Array, mean: Array, std: Array) -> Array:
    """Return log N(x; mean, std^2)."""
    return -(((x - mean) / std) ** 2) / 2 - jnp.log(std) - math.log(2 * math.pi) / 2


def discretised_log_likelihood(x: Array, mean: Array, std: Array, *, levels: int = 256) -> Array:
    """Return the log-probability under N(mean, std^2) of the bin of `x`, one of `levels` values of [-1, 1], Eq. (2)."""
    if levels < 2:
        raise ValueError(f"discretised_log_likelihood: levels is {levels}; it must be at least 2 (256 for 8 bits).")
    half = 1 / (levels - 1)
    low, high = (x - half - mean) / std, (x + half - mean) / std
    first, last = x < -1 + half, x > 1 - half
    open_bin = jax.scipy.special.log_ndtr(jnp.where(first, high, -low))
    return jnp.where(first | last, open_bin, _log_mass((x - mean) / std, half / std))


def _kl(log_ratio, distance):
    return (_expm1_minus(log_ratio) + distance**2) / 2


def _expm1_minus(d):
    """exp(d) - 1 - d, which cancels for small d: there by its series."""
    near = jnp.where(jnp.abs(d) < 0.1, d, 0)
    series = jnp.ones_like(d)
    for n in range(11, 2, -1):
        series = 1 + near / n * series
    return jnp.where(jnp.abs(d) < 0.1, near**2 / 2 * series, jnp.expm1(d) - d)


def _log_mass(middle, half):
    """The logarithm of the standard normal mass of [middle - half, middle + half].

    A difference of distribution functions cancels where the density hardly changes, so there Gauss's rule integrates.
    """
    middle = -jnp.abs(middle)  # the lower tail is the one that floating point resolves
    narrow = half * (1 - middle) < 1

    thin = jnp.where(narrow, half, 0)
    density = [
        -((middle + thin * float(node)) ** 2) / 2 + math.log(weight) for node, weight in zip(*_GAUSS, strict=True)
    ]
    integral = jax.nn.logsumexp(jnp.stack(density), axis=0) + jnp.log(half) - math.log(2 * math.pi) / 2

    wide = jnp.where(narrow, 1, half)
    upper, lower = (jax.scipy.special.log_ndtr(middle + sign * wide) for sign in (1, -1))
    return jnp.where(narrow, integral, upper + _log1mexp(upper - lower))


def _log1mexp(d):
    """log(1 - exp(-d)) for d > 0."""
    small = d < math.log(2)
    near, far = jnp.where(small, d, 1), jnp.where(small, 1, d)
    return jnp.where(small, jnp.log(-jnp.expm1(-near)), jnp.log1p(-jnp.exp(-far)))


_GAUSS = np.polynomial.legendre.leggauss(8)
