"""Keep the estimated data within its known range.

Whatever becomes of x0, the pair goes on to explain x = alpha x0 + sigma eps:

    eps' = eps + (alpha / sigma) (x0 - x0')                                                                   (1)

At sigma = 0 no noise could make up the difference, and eps is left as it is.
"""

from typing import Any

import jax.numpy as jnp

from diffusion_jax.process.schedule import levels
from diffusion_jax.types import Array, Denoiser, Schedule, Time


def no_threshold(denoise: Denoiser, schedule: Schedule) -> Denoiser:
    """Leave the data as it is."""
    return denoise


def static_threshold(denoise: Denoiser, schedule: Schedule, *, limit: float = 1.0) -> Denoiser:
    """Clip the data to [-limit, limit]."""
    _check_limit("static_threshold", limit)

    def thresholded(x, t):
        estimate = denoise(x, t)
        return _with_data(estimate, jnp.clip(estimate.x0, -limit, limit), schedule, t)

    return thresholded


def dynamic_threshold(
    denoise: Denoiser, schedule: Schedule, *, percentile: float = 0.995, limit: float = 1.0
) -> Denoiser:
    """Clip each example at its own percentile of |x0| and scale that to `limit` (Saharia et al. 2022, Section 2.3).

    An example whose percentile lies within the limit is clipped at the limit and not scaled.
    """
    _check_limit("dynamic_threshold", limit)
    if not 0 < percentile <= 1:
        raise ValueError(f"dynamic_threshold: percentile is {percentile}; it must be in (0, 1], such as 0.995.")

    def thresholded(x, t):
        estimate = denoise(x, t)
        size = jnp.abs(estimate.x0)
        reach = jnp.quantile(size.reshape(size.shape[0], -1), percentile, axis=1)
        reach = jnp.maximum(reach, limit).reshape((-1,) + (1,) * (size.ndim - 1))
        return _with_data(estimate, jnp.clip(estimate.x0, -reach, reach) * (limit / reach), schedule, t)

    return thresholded


def shifted(estimate: Any, change: Array, schedule: Schedule, t: Time) -> Any:
    """Return the estimate that finds `change` more data in the same x, Eq. (1)."""
    alpha, sigma = levels(schedule, t, change)
    ratio = jnp.where(sigma > 0, alpha / jnp.where(sigma > 0, sigma, 1.0), 0.0)
    return estimate._replace(x0=estimate.x0 + change, eps=estimate.eps - ratio * change)


def _with_data(estimate, x0, schedule, t):
    return shifted(estimate, x0 - estimate.x0, schedule, t)._replace(x0=x0)  # x0 to the last digit


def _check_limit(what, limit):
    if not limit > 0:
        raise ValueError(
            f"{what}: limit is {limit}; it is the largest absolute value of the data and must be positive."
        )


THRESHOLDS = {"none": no_threshold, "static": static_threshold, "dynamic": dynamic_threshold}
