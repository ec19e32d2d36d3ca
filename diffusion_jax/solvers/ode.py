"""One-step solvers of the probability-flow ODE.

In the schedule's own time:                   dx/dt = alpha' x0 + sigma' eps.                                    (1)
In the noise level s = sigma / alpha:         d(x / alpha)/ds = eps          (Karras et al. 2022, Eq. 1).        (2)
In lambda = log(alpha / sigma), with h = lambda_s - lambda_t, exactly (Lu et al. 2022, Eq. 3.4):

    x_s = (sigma_s / sigma_t) x_t + sigma_s int exp(lambda) x0 dlambda.                                          (3)

A constant estimate solves (2) and (3) exactly: that is DDIM. Explicit Runge-Kutta methods apply to (1), which is
finite at pure noise, or to (2), which does not depend on the pace of the schedule.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.naming import choose
from diffusion_jax.process.schedule import against, as_float, derivative, levels, rates
from diffusion_jax.solvers.solver import first_order, half_log_snr, no_memory, regular, two_stages, when
from diffusion_jax.types import Array, Estimate, Interval, Schedule, Solver, Time


def ddim(schedule: Schedule) -> Solver:
    """Keep the estimate, move the clock (Song et al. 2021a, Eq. 12 with eta = 0)."""

    def step(denoise, x, now, memory):
        return first_order(schedule, denoise(x, now.t), now.s, x), memory

    return Solver("ddim", 1, no_memory, step)


def euler(schedule: Schedule, *, variable: str = "time") -> Solver:
    """Euler's method in "time", Eq. (1), or in "sigma", Eq. (2), where it is DDIM."""
    return runge_kutta("euler", 1, schedule, ([0], [[0]], [1]), variable)


def heun(schedule: Schedule, *, variable: str = "time") -> Solver:
    """Heun's method; in "sigma" it is EDM's deterministic sampler (Karras et al. 2022, Alg. 1)."""
    return runge_kutta("heun", 2, schedule, ([0, 1], [[0, 0], [1, 0]], [1 / 2, 1 / 2]), variable)


def midpoint(schedule: Schedule, *, variable: str = "time") -> Solver:
    """Evaluate again in the middle of the interval; in "sigma" it is DPM-Solver-2 of Karras et al. 2022."""
    return runge_kutta("midpoint", 2, schedule, ([0, 1 / 2], [[0, 0], [1 / 2, 0]], [0, 1]), variable)


def rk4(schedule: Schedule, *, variable: str = "time") -> Solver:
    """The classic fourth-order method."""
    rows = [[0, 0, 0, 0], [1 / 2, 0, 0, 0], [0, 1 / 2, 0, 0], [0, 0, 1, 0]]
    return runge_kutta("rk4", 4, schedule, ([0, 1 / 2, 1 / 2, 1], rows, [1 / 6, 1 / 3, 1 / 3, 1 / 6]), variable)


def dpmpp_2s(schedule: Schedule) -> Solver:
    """DPM-Solver++(2S): Eq. (3) with the estimate at the middle lambda (Lu et al. 2023, Alg. 1 with r = 1/2)."""

    def step(denoise, x, now, memory):
        middle = middle_time(schedule, now.t, now.s)

        def halfway(estimate):
            return first_order(schedule, estimate, middle, x), middle

        finite = regular(schedule, now)
        e, m = two_stages(denoise, x, now.t, halfway, finite)
        h = half_log_snr(schedule, now.s, x) - half_log_snr(schedule, now.t, x)
        gain = jnp.where(finite, -levels(schedule, now.s, x)[0] * jnp.expm1(-jnp.where(finite, h, 1)), 0)
        return first_order(schedule, e, now.s, x) + gain * (m.x0 - e.x0), memory

    return Solver("dpmpp_2s", 2, no_memory, step, evaluations=2)


def middle_time(schedule: Schedule, t: Time, s: Time) -> Array:
    """Return the time halfway in log-SNR, or `s` where that is infinite."""
    middle = (schedule.log_snr(t) + schedule.log_snr(s)) / 2
    finite = jnp.isfinite(middle)
    return jnp.where(finite, schedule.time(jnp.where(finite, middle, 0)), as_float(s))


def noise_to_signal(schedule: Schedule, t: Time) -> Array:
    """Return sigma / alpha, which is infinite at pure noise."""
    return jnp.exp(-schedule.log_snr(t) / 2)


def time_of_ratio(schedule: Schedule, ratio: Array) -> Array:
    """Return the time at which sigma / alpha is `ratio`."""
    return schedule.time(-2 * jnp.log(ratio))


class Variable(NamedTuple):
    """A variable of integration w(t) with its state y(x) and the slope dy/dw."""

    of: Callable[[Schedule, Time], Array]
    time: Callable[[Schedule, Array], Array]
    state: Callable[[Schedule, Array, Time], Array]
    restore: Callable[[Schedule, Array, Time], Array]
    slope: Callable[[Schedule, Estimate, Time, Array], Array]
    finite: Callable


def _velocity(schedule, estimate, t, x):
    r = rates(schedule, t, x)
    return r.dalpha * estimate.x0 + r.dsigma * estimate.eps


def _over_alpha(schedule, x, t):
    alpha = levels(schedule, t, x)[0]
    return x / jnp.where(alpha == 0, 1, alpha)


def moving(schedule: Schedule, now: Interval) -> Array:
    """Say whether the velocity is finite at `t`, and `s` is not clean: alpha' is infinite at t = 1 on some paths."""
    t = as_float(now.t)
    slopes = derivative(schedule.alpha, t)[1], derivative(schedule.sigma, t)[1]
    return jnp.all(jnp.isfinite(slopes[0]) & jnp.isfinite(slopes[1]) & (schedule.sigma(now.s) != 0))


TIME = Variable(
    of=lambda schedule, t: as_float(t),
    time=lambda schedule, w: w,
    state=lambda schedule, x, t: x,
    restore=lambda schedule, y, t: y,
    slope=_velocity,
    finite=moving,
)

SIGMA = Variable(
    of=noise_to_signal,
    time=time_of_ratio,
    state=_over_alpha,
    restore=lambda schedule, y, t: y * levels(schedule, t, y)[0],
    slope=lambda schedule, estimate, t, x: estimate.eps,
    finite=regular,
)


def runge_kutta(name: str, order: int, schedule: Schedule, tableau: tuple, variable: str) -> Solver:
    """Build the explicit method of a Butcher tableau (nodes, rows, weights) in the named variable.

    The stages are a scan, so that a network is compiled once however many there are.
    """
    nodes, rows, weights = tableau
    var = choose(VARIABLES, variable, "variable") if isinstance(variable, str) else variable

    def step(denoise, x, now, memory):
        t, s = as_float(now.t), as_float(now.s)
        finite = var.finite(schedule, now)
        # Where it is not, any numbers do: the step is DDIM's, and infinities would poison its gradient.
        start, stop = (jnp.where(finite, var.of(schedule, time), 1 + slot) for slot, time in enumerate((t, s)))
        h = against(stop - start, x)
        inner = {0: t, 1: s}
        taus = jnp.stack([inner[c] if c in inner else var.time(schedule, start + c * (stop - start)) for c in nodes])
        y = var.state(schedule, x, t)

        def stage(carry, element):
            slopes, landing = carry
            index, tau, row = element
            point = jnp.where(index == 0, x, var.restore(schedule, y + h * jnp.tensordot(row, slopes, 1), tau))
            estimate = when((index == 0) | finite, lambda: denoise(point, tau))
            slopes = slopes.at[index].set(var.slope(schedule, estimate, tau, x))
            return (slopes, jnp.where(index == 0, first_order(schedule, estimate, s, x), landing)), None

        carry = jnp.zeros((len(nodes), *x.shape), x.dtype), jnp.zeros_like(x)
        elements = jnp.arange(len(nodes)), taus, jnp.asarray(rows, x.dtype)
        (slopes, landing), _ = jax.lax.scan(stage, carry, elements)
        moved = var.restore(schedule, y + h * jnp.tensordot(jnp.asarray(weights, x.dtype), slopes, 1), s)
        return jnp.where(finite, moved, landing), memory

    return Solver(name, order, no_memory, step, evaluations=len(nodes))


VARIABLES = {"time": lambda: TIME, "sigma": lambda: SIGMA}

ONE_STEP = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "midpoint": midpoint,
    "rk4": rk4,
    "dpmpp_2s": dpmpp_2s,
}
