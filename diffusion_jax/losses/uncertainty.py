"""Learned uncertainty: every noise level says how large its loss is, and is divided by that.

With u a function of log-SNR that is trained along with the network (Kendall et al. 2018; Karras et al. 2024, Eq. 21),

    L = loss / exp(u) + u,        least at  exp(u) = E[loss | log_snr],  where  L = 1 + log E[loss | log_snr].   (1)

So the network's gradient at each noise level is divided by the loss there: any other weight cancels, and only the
density of the times is left to say which levels matter. u is kept beside the network's parameters, in
`params["uncertainty"]`, and is

    u = bias + sum_k w_k sqrt(2 / K) cos(f_k c + p_k),        c = -log_snr / 8,                               (2)

with fixed random frequencies and phases (c is EDM's log(sigma) / 4). K = 0 leaves Kendall's single number.
"""

import math

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Params

COLLECTION = "uncertainty"


def start_uncertainty(*, channels: int = 128) -> Params:
    """Return the first `params["uncertainty"]`, with u = 0; 0 channels give one uncertainty for all levels."""
    return {"bias": jnp.zeros(()), "weights": jnp.zeros((channels,))}


def learned_uncertainty(params: Params, log_snr: Array) -> Array:
    """Evaluate u at each log-SNR, Eq. (2)."""
    if COLLECTION not in params:
        raise ValueError(
            f"the loss learns its uncertainty, but params has no '{COLLECTION}', only {', '.join(sorted(params))}: "
            f"start training from {{**params, '{COLLECTION}': start_uncertainty()}}."
        )
    dtype = log_snr.dtype
    bias, weights = (params[COLLECTION][name].astype(dtype) for name in ("bias", "weights"))
    if not weights.size:
        return jnp.broadcast_to(bias, log_snr.shape)
    frequency, phase = _waves(weights.size, dtype)
    c = (-log_snr / 8)[..., None]
    shape = (1,) * log_snr.ndim + weights.shape
    waves = jnp.cos(c * frequency.reshape(shape) + phase.reshape(shape)) * math.sqrt(2 / weights.size)
    return bias + (waves * weights.reshape(shape)).sum(-1)


def _waves(count, dtype):
    """Fixed frequencies and phases: the same for every run, so they need no place in a checkpoint."""
    frequency, phase = jax.random.split(jax.random.key(0))
    turn = 2 * math.pi
    return turn * jax.random.normal(frequency, (count,), dtype), turn * jax.random.uniform(phase, (count,), dtype)
