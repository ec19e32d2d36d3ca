"""Guidance by the gradient of a classifier (Dhariwal & Nichol 2021).

With g = grad log p(y | x) at the noise level of t, Bayes' rule adds g to the score; in the pair (x0, eps):

    eps' = eps - scale sigma g,        x0' = x0 + scale (sigma^2 / alpha) g                                    (1)

At pure noise the classifier is asked at the end of the schedule's span instead, where g / alpha still has its limit.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.process.schedule import against, as_float, levels
from diffusion_jax.types import Array, Denoiser, Schedule, Time


def classifier_guidance(
    denoise: Denoiser, log_prob: Callable[[Array, Time], Array], schedule: Schedule, scale: Any
) -> Denoiser:
    """Guide a denoiser by log_prob(x, t) -> (batch,), the log-probability of each example's class, Eq. (1).

    Scale 1 turns the denoiser of all data into that of the class, 0 changes nothing. `scale` is one number or one
    per example.
    """

    def summed(x, t):
        value = log_prob(x, t)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"classifier_guidance: log_prob answered {x.shape[0]} examples with shape {value.shape}; it must give "
                f"one log-probability for each, {x.shape[:1]}."
            )
        return value.sum()

    def guided(x, t):
        estimate = denoise(x, t)
        t = as_float(t)
        asked = jnp.minimum(t, schedule.span[1])
        slope = jax.grad(summed)(x.astype(estimate.x0.dtype), asked)
        (alpha, sigma), (alpha_asked, sigma_asked) = levels(schedule, t, x), levels(schedule, asked, x)
        # Before the span's end the two levels are the same, and (1) is what is left of this.
        push = against(jnp.asarray(scale), x) * sigma_asked / alpha_asked * slope
        return estimate._replace(x0=estimate.x0 + sigma * push, eps=estimate.eps - alpha * push)

    return guided
