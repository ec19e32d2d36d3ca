"""EDM's preconditioning of a network's input (Karras et al. 2022, Table 1 and Section 5), on any path.

In x / alpha, with noise level sigma / alpha, EDM feeds c_in x / alpha and tells the network c_noise:

    c_in x / alpha = x / sqrt(sigma^2 + alpha^2 sigma_data^2),        c_noise = log(sigma / alpha) / 4         (1)

The output's scaling, c_skip and c_out, is the prediction `edm` with the same sigma_data.
"""

import jax.numpy as jnp

from diffusion_jax.denoisers.network import on_steps
from diffusion_jax.process.schedule import as_float, levels
from diffusion_jax.types import Apply, Schedule


def precondition(apply: Apply, schedule: Schedule, *, sigma_data: float = 0.5) -> Apply:
    """Scale a network's input to unit variance and tell it c_noise for a time, Eq. (1).

    To be used with `prediction={"name": "edm", "sigma_data": sigma_data}`, in training and in sampling. Outside the
    schedule's span, where c_noise may be infinite, the network is told that of the span's end.
    """
    if not sigma_data > 0:
        raise ValueError(
            f"precondition: sigma_data is {sigma_data}; it is the data's standard deviation and must be positive."
        )

    def preconditioned(params, x, t, cond):
        t = as_float(t)
        alpha, sigma = levels(schedule, t, x)
        scaled = x.astype(alpha.dtype) / jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
        return apply(params, scaled, -schedule.log_snr(jnp.clip(t, *schedule.span)) / 8, cond)

    return preconditioned


def plain(apply: Apply, schedule: Schedule) -> Apply:
    """Leave a network's input as it is: x and the time in [0, 1]."""
    return apply


def steps(apply: Apply, schedule: Schedule, *, count: int = 1000) -> Apply:
    """Tell a network the step it is at, of `count`, for a time: see `on_steps`."""
    return on_steps(apply, steps=count)


def log_sigma(apply: Apply, schedule: Schedule) -> Apply:
    """Tell a network the logarithm of sigma / alpha for a time, and leave x as it is (NCSN++, Song et al. 2021)."""

    def told(params, x, t, cond):
        return apply(params, x, -schedule.log_snr(jnp.clip(as_float(t), *schedule.span)) / 2, cond)

    return told


def sigma(apply: Apply, schedule: Schedule) -> Apply:
    """Tell a network sigma for a time, and leave x as it is: the time of a straight path, whatever its pace."""

    def told(params, x, t, cond):
        return apply(params, x, schedule.sigma(as_float(t)), cond)

    return told


INPUTS = {"plain": plain, "edm": precondition, "steps": steps, "log_sigma": log_sigma, "sigma": sigma}
