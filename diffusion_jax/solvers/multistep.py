"""Multistep solvers: one evaluation a step, and the polynomial through the last few.

In a variable w with estimates v_j at nodes w_j the exact step of the ODE is DDIM's, the step of a constant estimate,
plus the integral of what the estimate changes:

    x_s = ddim + c int (v(w) - v_0) k(w) dw,                                                            (1)

with v = eps, k dw = d(sigma / alpha), c = alpha_s, or v = x0, k dw = d(alpha / sigma), c = sigma_s. Replacing v by the
polynomial through k nodes gives order k, once k nodes are there. The first steps ramp up from DDIM, whose local error
is O(h^2), so the claim is 2 unless `start` names a better one-step solver for them: then it is min(k, its order + 1).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.naming import choose, lookup
from diffusion_jax.process.schedule import as_float, levels
from diffusion_jax.solvers.ode import ONE_STEP, noise_to_signal, time_of_ratio
from diffusion_jax.solvers.solver import first_order, regular
from diffusion_jax.types import Array, Interval, Schedule, Solver

FEW = 15  # below this many steps DPM-Solver++ lowers its order at the end


class History(NamedTuple):
    """The last estimates, newest first, the times they belong to, and how many there are."""

    values: Array
    times: Array
    filled: Array


def dpmpp_2m(schedule: Schedule) -> Solver:
    """DPM-Solver++(2M): the data's slope in lambda from two evaluations (Lu et al. 2023, Alg. 2)."""

    def correction(now, history, x):
        h, _, _ = _lambda_steps(schedule, now, history, 0)
        return -levels(schedule, now.s, x)[0] * jnp.expm1(-h) * slope_of_data(schedule, now, history)

    return _multistep("dpmpp_2m", 2, schedule, correction, "x0")


def dpmpp_3m(schedule: Schedule) -> Solver:
    """DPM-Solver++(3M), as published: order 2.

    Its weight of the second derivative is half of what the integral (1) asks for, so the third evaluation lowers the
    error but not its rate; `unipc` of order 3 has the full weight. Below 15 steps the last but one is 2M's, as it is
    there.
    """

    def correction(now, history, x):
        h, (near, far), known = _lambda_steps(schedule, now, history, 2)
        left = now.count - now.index
        known = jnp.where((now.count > 0) & (now.count < FEW), jnp.minimum(known, left - 1), known)
        alpha = levels(schedule, now.s, x)[0]
        r0, r1 = near / h, far / h
        new = (history.values[0] - history.values[1]) / r0
        old = (history.values[1] - history.values[2]) / r1
        second = (new - old) / (r0 + r1)
        first = new + r0 * second
        three = alpha * ((jnp.expm1(-h) / h + 1) * first - ((jnp.expm1(-h) + h) / h**2 - 0.5) * second)
        two = -alpha * jnp.expm1(-h) * new / 2
        return jnp.where(known >= 2, three, jnp.where(known == 1, two, 0))

    return _multistep("dpmpp_3m", 3, schedule, correction, "x0")._replace(order=2)


def deis(schedule: Schedule, *, order: int = 3, variable: str = "log_snr", start: Any = None) -> Solver:
    """DEIS: the polynomial of eps in "log_snr", "time" or "sigma", integrated exactly (Zhang & Chen 2023, Eq. 15).

    "time" is the paper's tAB, "sigma" its rhoAB.
    """
    return _adams("deis", schedule, order, variable, start)


def lms(schedule: Schedule, *, order: int = 4, start: Any = None) -> Solver:
    """Linear multistep in sigma / alpha: Adams-Bashforth on any grid (Karras et al. 2022, as in k-diffusion)."""
    return _adams("lms", schedule, order, "sigma", start)


def ipndm(schedule: Schedule, *, order: int = 4) -> Solver:
    """PNDM's fixed Adams-Bashforth weights in DDIM's step, without its Runge-Kutta start (Liu et al. 2022, Eq. 12).

    The weights are those of even steps and the transfer is not: second order, as the paper proves.
    """
    _check_order("ipndm", order)
    table = jnp.asarray([row + [0.0] * (order - len(row)) for row in ADAMS[:order]])

    def correction(now, history, x):
        finite = regular(schedule, now)
        alpha = levels(schedule, now.s, x)[0]
        length = noise_to_signal(schedule, now.s) - noise_to_signal(schedule, now.t)
        length = jnp.where(finite, length, 0).astype(x.dtype)
        usable = jnp.clip(_usable(schedule, history), 1, order)
        weights = jnp.where(finite, table.astype(x.dtype)[usable - 1], 0)
        mixed = jnp.tensordot(weights[1:], history.values[1:] - history.values[:1], 1)
        return alpha * length * mixed

    solver = _multistep("ipndm", order, schedule, correction, "eps")
    return solver._replace(order=min(order, 2))


def _adams(name, schedule, order, variable, start):
    """Integrate the polynomial through the last `order` values of eps against d(sigma / alpha), Eq. (1)."""
    _check_order(name, order)
    position, sigma = lookup(POSITIONS, variable, "variable"), POSITIONS["sigma"]
    roots, weights = np.polynomial.legendre.leggauss(16)

    def correction(now, history, x):
        finite = regular(schedule, now)
        usable = jnp.where(finite, _usable(schedule, history), 1)
        live = jnp.arange(order) < usable
        nodes = jnp.where(live, position.of(schedule, jnp.where(live, history.times, history.times[0])), 0)
        a, b = position.of(schedule, as_float(now.t)), position.of(schedule, as_float(now.s))
        a, b = jnp.where(finite, a, 0), jnp.where(finite, b, 1)
        where = a + (b - a) * jnp.asarray((roots + 1) / 2, a.dtype)
        # d(sigma / alpha) / dw at the quadrature points
        kernel = jax.jvp(lambda w: sigma.of(schedule, position.time(schedule, w)), (where,), (jnp.ones_like(where),))[1]
        basis = _lagrange(nodes, where, live)
        integral = basis @ (kernel * jnp.asarray(weights, a.dtype)) * (b - a) / 2
        integral = jnp.where(live & finite, integral, 0).astype(x.dtype)
        mixed = jnp.tensordot(integral[1:], history.values[1:] - history.values[:1], 1)
        return levels(schedule, now.s, x)[0] * mixed

    return _multistep(name, order, schedule, correction, "eps", start=start)


def _multistep(name, order, schedule, correction: Callable, value: str, *, start: Any = None) -> Solver:
    """Wrap a correction to DDIM's step, made from the history of one half of the estimate, into a solver."""
    first = choose(ONE_STEP, start, "start", schedule) if start is not None else None
    claim = min(order, (first.order if first else 1) + 1)

    def init(x):
        return remember(order, x)

    def step(denoise, x, now, history):
        estimate = denoise(x, now.t)
        history = push(history, getattr(estimate, value), now.t)

        def go():
            return first_order(schedule, estimate, now.s, x) + correction(now, history, x)

        if first is None:
            return go(), history
        begin = functools.partial(first.step, denoise, x, now, ())
        return jax.lax.cond(history.filled < order, lambda: begin()[0], go), history

    opening = (first.evaluations,) * (order - 1) if first else ()
    return Solver(name, claim, init, step, opening=opening)


def slope_of_data(schedule: Schedule, now: Interval, history: History) -> Array:
    """Return half the change of x0 over the interval, by the last two estimates; 0 while there is only one."""
    h, (back,), known = _lambda_steps(schedule, now, history, 1)
    return jnp.where(known >= 1, h / (2 * back), 0) * (history.values[0] - history.values[1])


def remember(order: int, x: Array) -> History:
    """Start an empty history of `order` values like `x`."""
    return History(jnp.zeros((order, *x.shape), x.dtype), jnp.zeros(order), jnp.asarray(0))


def push(history: History, value: Array, t: Any) -> History:
    """Put the newest value first."""
    values = jnp.concatenate([value[None], history.values[:-1]])
    times = jnp.concatenate([as_float(t).astype(history.times.dtype)[None], history.times[:-1]])
    return History(values, times, jnp.minimum(history.filled + 1, len(times)))


def _usable(schedule, history):
    """Count the newest values whose lambda is finite; only the oldest can be at an end."""
    return jnp.sum(inner(schedule, history))


def inner(schedule: Schedule, history: History) -> Array:
    """Say which values of the history are there and have a finite lambda."""
    filled = jnp.arange(history.times.shape[0]) < history.filled
    return filled & (schedule.alpha(history.times) != 0) & (schedule.sigma(history.times) != 0)


def _lambda_steps(schedule, now: Interval, history: History, back: int):
    """Return h of this interval, those of the `back` before it, and how many of these are known and finite.

    What is unknown is 1, so that no nan is born where it is not used.
    """
    nodes = schedule.log_snr(jnp.concatenate([as_float(now.s)[None], history.times[: back + 1]])) / 2
    nodes = nodes.astype(history.values.dtype)
    known = jnp.where(regular(schedule, now), _usable(schedule, history) - 1, 0)
    steps = nodes[:-1] - nodes[1:]
    steps = jnp.where(jnp.arange(back + 1) <= known, steps, 1)
    h = jnp.where(regular(schedule, now), steps[0], 1)
    return h, tuple(steps[1:]), known


def _lagrange(nodes, where, live):
    """Evaluate the Lagrange basis of the live nodes at `where`: shape (nodes, where)."""
    rows = []
    for j in range(len(nodes)):
        product = jnp.ones_like(where)
        for m in range(len(nodes)):
            if m != j:
                gap = jnp.where(live[m] & live[j], nodes[j] - nodes[m], 1)
                product = product * jnp.where(live[m], (where - nodes[m]) / gap, 1)
        rows.append(product)
    return jnp.stack(rows)


def _check_order(name, order):
    if order not in range(1, len(ADAMS) + 1):
        raise ValueError(f"{name} has orders 1 to {len(ADAMS)}; got {order}.")


class _Position(NamedTuple):
    of: Callable
    time: Callable


POSITIONS = {
    "log_snr": _Position(lambda schedule, t: schedule.log_snr(t) / 2, lambda schedule, w: schedule.time(2 * w)),
    "time": _Position(lambda schedule, t: t, lambda schedule, w: w),
    "sigma": _Position(noise_to_signal, time_of_ratio),
}

ADAMS = [
    [1.0],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
]
