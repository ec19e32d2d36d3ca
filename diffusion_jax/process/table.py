"""A path through any table of coefficients.

The k-th of T rows, counted from 1 and ordered from clean to noisy, is the path at t = k / T; before the first lies
clean data (alpha = 1, sigma = 0) at t = 0. Between two rows log-SNR and the logarithm of sqrt(alpha^2 + sigma^2) are
linear in t. Where log-SNR is infinite, before the first row and after the last one with alpha = 0, SNR is a
power of the distance to the end: sigma^2 grows like t, alpha falls like 1 - t, as they do on smooth paths.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.schedule import schedule
from diffusion_jax.types import Schedule


def tabulated(alpha: Any, sigma: Any) -> Schedule:
    """Lay a path through the rows (alpha, sigma), clean to noisy; a first row with sigma = 0 is the clean one."""
    alpha, sigma = _checked(alpha, sigma)
    if sigma[0] == 0:
        origin, alpha, sigma = alpha[0], alpha[1:], sigma[1:]
    else:
        origin = 1.0
    rows = len(alpha)
    terminal = alpha[-1] == 0  # the last row is pure noise, at t = 1
    inner = rows - 1 if terminal else rows
    if inner < 1:
        raise ValueError("tabulated: the table needs at least one row with both signal and noise in it.")
    t_in = np.arange(1, inner + 1) / rows
    log_snr_in = 2 * (np.log(alpha[:inner]) - np.log(sigma[:inner]))
    t_all = np.arange(rows + 1) / rows
    log_size = np.log(np.hypot(np.append(origin, alpha), np.append(0.0, sigma)))
    first, last = float(t_in[0]), float(t_in[-1])
    high, low = float(log_snr_in[0]), float(log_snr_in[-1])

    def log_snr(t):
        between = _interpolate(t, t_in, log_snr_in)
        before = high - jnp.log(jnp.where(t < first, t, first) / first)
        if not terminal:
            return jnp.where(t < first, before, between)
        after = low + 2 * jnp.log((1 - jnp.where(t > last, t, last)) / (1 - last))
        return jnp.where(t < first, before, jnp.where(t > last, after, between))

    def time(value):
        between = _interpolate(-value, -log_snr_in, t_in)
        before = first * jnp.exp(high - jnp.maximum(value, high))
        if not terminal:
            return jnp.where(value > high, before, between)
        after = 1 - (1 - last) * jnp.exp((jnp.minimum(value, low) - low) / 2)
        return jnp.where(value > high, before, jnp.where(value < low, after, between))

    def size(t):
        return jnp.exp(_interpolate(t, t_all, log_size))

    def alpha_of(t):
        # Written per piece, so that values and derivatives are finite at both ends.
        inside = _between(t, first, last)
        value = jnp.sqrt(jax.nn.sigmoid(log_snr(inside)))
        start = jax.lax.rsqrt(1 + jnp.exp(-high) * jnp.minimum(t, first) / first)
        if terminal:
            ratio = jnp.exp(low / 2) * (1 - jnp.maximum(t, last)) / (1 - last)
            value = jnp.where(t > last, ratio * jax.lax.rsqrt(1 + ratio**2), value)
        return size(t) * jnp.where(t < first, start, value)

    def sigma_of(t):
        inside = _between(t, first, last)
        value = jnp.sqrt(jax.nn.sigmoid(-log_snr(inside)))
        square = jnp.exp(-high) * jnp.minimum(t, first) / first
        start = jnp.sqrt(square / (1 + square))
        if terminal:
            ratio = jnp.exp(low / 2) * (1 - jnp.maximum(t, last)) / (1 - last)
            value = jnp.where(t > last, jax.lax.rsqrt(1 + ratio**2), value)
        return size(t) * jnp.where(t < first, start, value)

    # Pure noise in the table is one of its times, so the span ends at 1 with it.
    return schedule("tabulated", alpha=alpha_of, sigma=sigma_of, log_snr=log_snr, time=time, span=(first / 100, 1.0))


def alpha_bar(values: Any) -> Schedule:
    """Lay a variance-preserving path through a table of alpha-bar, first step first."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError("alpha_bar: values must be one row of numbers in [0, 1], falling from clean to noisy.")
    return tabulated(np.sqrt(values), np.sqrt(1 - values))


def betas(values: Any) -> Schedule:
    """Lay a variance-preserving path through a table of betas, first step first."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all((values > 0) & (values <= 1)):
        raise ValueError("betas: values must be one row of numbers in (0, 1].")
    log_kept = np.cumsum(np.log1p(-np.where(values == 1, 0, values)))
    kept = np.where(np.cumsum(values == 1) > 0, 0.0, np.exp(log_kept))
    removed = np.where(kept == 0, 1.0, -np.expm1(log_kept))
    return tabulated(np.sqrt(kept), np.sqrt(removed))


def _checked(alpha, sigma):
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    if alpha.ndim != 1 or alpha.shape != sigma.shape or alpha.size == 0:
        raise ValueError(f"tabulated: alpha and sigma must be rows of one length; got {alpha.shape}, {sigma.shape}.")
    if not (np.all(np.isfinite(alpha)) and np.all(np.isfinite(sigma)) and np.all(alpha >= 0) and np.all(sigma >= 0)):
        raise ValueError("tabulated: alpha and sigma must be finite and not negative.")
    angle = np.arctan2(sigma, alpha)
    if not np.all(np.diff(angle) > 0) or alpha[0] == 0:
        raise ValueError("tabulated: the signal-to-noise ratio must fall strictly; order the rows from clean to noisy.")
    return alpha, sigma


def _between(t, first, last):
    # jnp.clip would halve the derivative at the nodes it ends on, t = 1 among them.
    return jnp.where(t < first, first, jnp.where(t > last, last, t))


def _interpolate(value, nodes, heights):
    """Piecewise linear, constant outside; tables are kept in float64 and used in the dtype of `value`."""
    return jnp.interp(value, jnp.asarray(nodes, value.dtype), jnp.asarray(heights, value.dtype))
