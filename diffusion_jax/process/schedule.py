"""What can be said of any path x_t = alpha x0 + sigma eps.

Its velocity is dx/dt = alpha' x0 + sigma' eps. As a diffusion dx = f x dt + g dw it has

    f = (log alpha)',        g^2 = -sigma^2 (log_snr)'.                                  (1)

The second form of (1) has no cancellation, where d sigma^2/dt - 2 f sigma^2 does.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Rates, Schedule, Time


def schedule(name: str, *, alpha: Callable, sigma: Callable, log_snr: Callable, time: Callable, span) -> Schedule:
    """Assemble a schedule whose functions take any real input and compute in float32 or better."""
    ends = (float(span[0]), float(span[1]))
    return Schedule(name, _in_float(alpha), _in_float(sigma), _in_float(log_snr), _in_float(time), ends)


def rates(schedule: Schedule, t: Time, x: Array) -> Rates:
    """Evaluate the path and its derivatives at `t`, a scalar or one time per example of `x`."""
    t = as_float(t)
    alpha, dalpha = derivative(schedule.alpha, t)
    sigma, dsigma = derivative(schedule.sigma, t)
    return Rates(*(against(value, x) for value in (alpha, sigma, dalpha, dsigma)))


def rates_within(schedule: Schedule, t: Time, x: Array) -> Rates:
    """Evaluate `rates`, with a derivative that is infinite at an end of the path taken from the end of the span."""
    exact = rates(schedule, t, x)
    near = rates(schedule, jnp.clip(as_float(t), *schedule.span), x)
    dalpha, dsigma = (
        jnp.where(jnp.isfinite(value), value, other)
        for value, other in ((exact.dalpha, near.dalpha), (exact.dsigma, near.dsigma))
    )
    return exact._replace(dalpha=dalpha, dsigma=dsigma)


def levels(schedule: Schedule, t: Time, x: Array) -> tuple[Array, Array]:
    """Evaluate (alpha, sigma) at `t`, shaped to broadcast against `x`."""
    return against(schedule.alpha(t), x), against(schedule.sigma(t), x)


def drift_and_diffusion(schedule: Schedule, t: Time) -> tuple[Array, Array]:
    """Evaluate f and g^2 of Eq. (1)."""
    t = as_float(t)
    alpha, dalpha = derivative(schedule.alpha, t)
    return dalpha / alpha, -(schedule.sigma(t) ** 2) * derivative(schedule.log_snr, t)[1]


def reaches_clean(schedule: Schedule) -> bool:
    """Say whether sigma is exactly 0 at t = 0; inside jit too."""
    with jax.ensure_compile_time_eval():
        return float(schedule.sigma(0.0)) == 0.0


def ends_in_noise(schedule: Schedule) -> bool:
    """Say whether the span contains a time at which alpha is exactly 0: zero terminal SNR."""
    with jax.ensure_compile_time_eval():
        return float(schedule.alpha(schedule.span[1])) == 0.0


def finite_span(schedule: Schedule) -> tuple[float, float]:
    """Return the span, short of a noise end without any signal: there to where alpha is 1e-4 sigma."""
    if not ends_in_noise(schedule):
        return schedule.span
    with jax.ensure_compile_time_eval():
        return schedule.span[0], float(schedule.time(jnp.asarray(2 * math.log(1e-4))))


def derivative(form: Callable[[Time], Array], t: Array) -> tuple[Array, Array]:
    """Evaluate an elementwise function and its derivative at `t`."""
    return jax.jvp(form, (t,), (jnp.ones_like(t),))


def as_float(t: Time) -> Array:
    """Return `t` in float32 or better: half precision cannot tell neighbouring times apart."""
    t = jnp.asarray(t)
    return t.astype(wide(t.dtype))


def against(value: Array, x: Array) -> Array:
    """Shape a per-time value to broadcast against `x`, in x's dtype but never below float32."""
    value = value.astype(wide(x.dtype))
    return value.reshape(value.shape + (1,) * (x.ndim - 1)) if value.ndim else value


def wide(dtype: Any) -> Any:
    """Return the float type to compute in: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _in_float(form):
    return lambda value: form(as_float(value))
