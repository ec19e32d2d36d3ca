"""The probability flow on the scaled state y = x / sqrt(alpha^2 + sigma^2), in lambda = log(alpha / sigma).

With the angle phi, cos(phi) = alpha / sqrt(alpha^2 + sigma^2),

    dy/dlambda = F = sin(phi) cos(phi) (sin(phi) x0 - cos(phi) eps),                                         (1)

which is bounded, smooth, and the same for every path and pace.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.process.schedule import against, levels
from diffusion_jax.types import Array, Denoiser, Schedule, Time


def scaled_flow(denoise: Denoiser, schedule: Schedule) -> Callable[[Array, Array], Array]:
    """Return F of Eq. (1) as a function of lambda and y."""

    def flow(half, y):
        time = schedule.time(2 * half)
        cos, sin = (against(jnp.sqrt(jax.nn.sigmoid(sign * 2 * half)), y) for sign in (1, -1))
        estimate = denoise(y * size(schedule, time, y), time)
        return sin * cos * (sin * estimate.x0 - cos * estimate.eps)

    return flow


def size(schedule: Schedule, t: Time, x: Array) -> Array:
    """Return sqrt(alpha^2 + sigma^2), by which `x` is y."""
    return jnp.hypot(*levels(schedule, t, x))
