"""The forward process and its Gaussian kernels.

For s < t, with q(x_t | x_s) = N(alpha_ts x_s, sigma_ts^2) and the fraction of fresh noise
r = 1 - exp(log_snr_t - log_snr_s):

    alpha_ts = alpha_t / alpha_s,        sigma_ts = sigma_t sqrt(r)                                          (1)
    x_s | x_t, x0 : mean = alpha_s x0 + sigma_s sqrt(1 - eta^2 r) eps,   std = eta sigma_s sqrt(r)           (2)

    learned: log std = fraction log(sigma_t sqrt(r)) + (1 - fraction) log(sigma_s sqrt(r))                   (3)

(2) is Song et al. 2021a, Eq. 7 and 16; eta = 1 is DDPM's posterior. r is never a difference of variances, so it
stays in [0, 1] in float32 where sigma_s^2 - std^2 does not. (3) lies between the posterior's variance and the
transition's (Nichol & Dhariwal 2021, Eq. 15).
"""

import jax.numpy as jnp

from diffusion_jax.process.noise import normal_like
from diffusion_jax.process.schedule import against, levels
from diffusion_jax.types import Array, Estimate, Key, LearnedEstimate, Schedule, Time


def add_noise(schedule: Schedule, x0: Array, eps: Array, t: Time) -> Array:
    """Return x_t = alpha x0 + sigma eps."""
    alpha, sigma = levels(schedule, t, x0)
    return alpha * x0 + sigma * eps


def transition(schedule: Schedule, x: Array, s: Time, t: Time) -> tuple[Array, Array]:
    """Return mean and standard deviation of x_t given `x` at the earlier time `s`, Eq. (1)."""
    (alpha_s, _), (alpha_t, sigma_t) = levels(schedule, s, x), levels(schedule, t, x)
    return alpha_t / alpha_s * x, sigma_t * jnp.sqrt(fresh_fraction(schedule, t, s, x))


def posterior(
    schedule: Schedule, estimate: Estimate | LearnedEstimate, x: Array, t: Time, s: Time, *, eta: float | Array = 1.0
) -> tuple[Array, Array]:
    """Return mean and standard deviation of x_s given `x` at `t` and an estimate of what is in it, Eq. (2)."""
    alpha, sigma = levels(schedule, s, x)
    fresh = eta**2 * fresh_fraction(schedule, t, s, x)
    mean = alpha * estimate.x0 + sigma * jnp.sqrt(1 - fresh) * estimate.eps
    return mean, sigma * jnp.sqrt(fresh)


def learned_std(small: Array, large: Array, fraction: Array) -> Array:
    """Return the std that a network's `fraction` means between the posterior's and the transition's, Eq. (3)."""
    known = jnp.where(small > 0, small, 1)
    return jnp.where(small > 0, known * (large / known) ** fraction, 0)


def fresh_fraction(schedule: Schedule, t: Time, s: Time, x: Array) -> Array:
    """Return the share r of the noise variance at `s` that is new to it when coming from `t`, shaped against `x`."""
    return against(-jnp.expm1(schedule.log_snr(t) - schedule.log_snr(s)), x)


def prior(schedule: Schedule, keys: Key, x: Array, t: Time = 1.0) -> Array:
    """Draw pure noise at the level of `t`, shaped like `x`, example i from keys[i] (see `example_keys`)."""
    return levels(schedule, t, x)[1] * normal_like(keys, x)


def start_from(schedule: Schedule, x0: Array, keys: Key, t: Time) -> Array:
    """Noise `x0` to `t`, to start sampling in mid-path (SDEdit, Meng et al. 2022)."""
    return add_noise(schedule, x0, normal_like(keys, x0), t)
