"""UniPC: predict, and correct the last prediction with the evaluation that it led to (Zhao et al. 2023).

With h = lambda_s - lambda_t, r_j = (lambda_j - lambda_t) / h and D_j = (x0_j - x0_t) / r_j for the earlier nodes j, and
r = 1 for the new node in the corrector,

    x_s = ddim - alpha_s B sum_j rho_j D_j,       sum_j rho_j r_j^(k-1) = b_k = -h k! phi_{k+1}(-h) / B              (1)

with phi_k(z) = int_0^1 exp((1 - q) z) q^(k-1) / (k-1)! dq, and B = -h (bh1) or exp(-h) - 1 (bh2). The corrector is one
order better than the predictor and costs no evaluation.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.naming import choose, lookup
from diffusion_jax.process.schedule import levels
from diffusion_jax.solvers.multistep import History, inner, push, remember
from diffusion_jax.solvers.ode import ONE_STEP
from diffusion_jax.solvers.solver import first_order, regular
from diffusion_jax.types import Array, Schedule, Solver

MOST = 3


class Memory(NamedTuple):
    """The history of x0 and the corrected x that the last step started from."""

    history: History
    x: Array


def unipc(schedule: Schedule, *, order: int = 2, variant: str = "bh2", start: Any = None) -> Solver:
    """UniPC of an order from 1 to 3, with B = "bh1" or "bh2".

    Order 1 is the predictor alone: DDIM. The corrector makes order 2 converge with the third order; 3 is held to the
    third by its corrected first-order start, unless a one-step solver named by `start` takes the first steps.
    """
    if order not in range(1, MOST + 1):
        raise ValueError(f"unipc has orders 1 to {MOST}; got {order}.")
    ratio = lookup(VARIANTS, variant, "variant")

    first = choose(ONE_STEP, start, "start", schedule) if start is not None else None
    claim = 1 if order == 1 else min(order, first.order if first else 2) + 1

    def init(x):
        return Memory(remember(order + 1, x), jnp.zeros_like(x))

    def step(denoise, x, now, memory):
        estimate = denoise(x, now.t)
        history = push(memory.history, estimate.x0, now.t)
        finite, nodes = _nodes(schedule, history)
        if order > 1:
            # What `start` produced is better than a correction of lower order.
            moved = _correction(schedule, history, x, memory.x, order=order, ratio=ratio, trusted=order if first else 1)
            sigma = levels(schedule, now.t, x)[1]
            x = x + moved
            estimate = estimate._replace(eps=estimate.eps + moved / jnp.where(sigma == 0, 1, sigma))
        usable = jnp.where(regular(schedule, now), jnp.minimum(finite, order), 1)
        target = jnp.where(regular(schedule, now), schedule.log_snr(now.s) / 2, nodes[0] + 1).astype(x.dtype)
        change = _change(nodes[:order], target, history.values[:order], usable, ratio)
        alpha = levels(schedule, now.s, x)[0]
        x_s = first_order(schedule, estimate, now.s, x) + alpha * change
        if first is not None:
            begin = functools.partial(first.step, denoise, x, now, ())
            x_s = jax.lax.cond(history.filled < order, lambda: begin()[0], lambda: x_s)
        return x_s, Memory(history, x)

    opening = (first.evaluations,) * (order - 1) if first else ()
    return Solver("unipc", claim, init, step, opening=opening)


def _correction(schedule, history, x, base, *, order, ratio, trusted):
    """Return what the corrector adds to `x`, which was predicted from `base` at the time before.

    The first `trusted` values are those of points that need no correction.
    """
    finite, nodes = _nodes(schedule, history)
    t, before = history.times[0], history.times[1]
    usable = jnp.minimum(finite - 1, order)
    held = (usable >= 1) & (history.filled > trusted)
    values = history.values[1:]
    new = history.values[0] - values[0]
    change = _change(nodes[1:], nodes[0], values, jnp.maximum(usable, 1), ratio, new=new)
    alpha, sigma = levels(schedule, t, x)
    alpha_before, sigma_before = levels(schedule, before, x)
    eps = (base - alpha_before * values[0]) / jnp.where(sigma_before == 0, 1, sigma_before)
    return jnp.where(held, alpha * (values[0] + change) + sigma * eps - x, 0)


def _change(nodes, target, values, usable, ratio, *, new=None):
    """Return -B sum rho D of Eq. (1) from the base values[0] at nodes[0] to `target`; `new` is the corrector's D."""
    count = len(nodes)
    h = target - nodes[0]
    live = jnp.arange(count) < usable
    r = jnp.where(live, (nodes - nodes[0]) / h, -1 - jnp.arange(count, dtype=nodes.dtype))[1:]
    scale, b = _right_side(h, ratio, count + 1)
    rows = []
    for p in range(1, count + 1):  # the weights if p values are usable
        ends = [r[j] for j in range(p - 1)] + ([] if new is None else [jnp.ones_like(h)])
        rho = _vandermonde(ends, b)
        if len(ends) == 1 and (new is not None or p == 2):
            rho = [jnp.asarray(0.5, h.dtype)]  # as published
        old = rho[: p - 1] + [jnp.zeros_like(h)] * (count - p)
        rows.append(jnp.stack(old + ([rho[-1]] if new is not None else [jnp.zeros_like(h)])))
    rho = jnp.stack(rows)[usable - 1]
    total = jnp.tensordot(rho[:-1] / r, values[1:] - values[:1], 1) if count > 1 else jnp.zeros_like(values[0])
    return -scale * (total if new is None else total + rho[-1] * new)


def _right_side(h, ratio_of, count):
    """Return B and b_1, b_2, ... of Eq. (1)."""
    z = -h
    phis = _phis(z, count + 1)
    ratio = ratio_of(phis)
    return z * ratio, [math.factorial(k) * phis[k] / ratio for k in range(1, count)]


def _phis(z, count):
    """phi_1, phi_2, ... at z < 0: by quadrature near 0, where the recursion phi_{k+1} = (phi_k - 1/k!) / z cancels."""
    roots, weights = np.polynomial.legendre.leggauss(12)
    q, w = jnp.asarray((roots + 1) / 2, z.dtype), jnp.asarray(weights / 2, z.dtype)
    small = jnp.abs(z) < 1.5
    near, far = jnp.where(small, z, -1.0), jnp.where(small, -2.0, z)
    recursion = [jnp.expm1(far) / far]
    for k in range(1, count):
        recursion.append((recursion[-1] - 1 / math.factorial(k)) / far)
    quadrature = [
        jnp.sum(w * jnp.exp((1 - q) * near) * q ** (k - 1)) / math.factorial(k - 1) for k in range(1, count + 1)
    ]
    return [jnp.where(small, a, b) for a, b in zip(quadrature, recursion, strict=True)]


def _vandermonde(nodes, b):
    """Solve sum_j rho_j r_j^(k-1) = b_k: rho_j is b applied to the coefficients of the j-th Lagrange polynomial."""
    solution = []
    for j, own in enumerate(nodes):
        coefficients = [jnp.ones_like(own)]
        for m, other in enumerate(nodes):
            if m != j:
                shifted = [jnp.zeros_like(own), *coefficients]
                scaled = [-other * c for c in coefficients] + [jnp.zeros_like(own)]
                coefficients = [(u + v) / (own - other) for u, v in zip(shifted, scaled, strict=True)]
        solution.append(sum(c * b_k for c, b_k in zip(coefficients, b, strict=False)))
    return solution


def _nodes(schedule, history):
    """Return how many of the newest values have a finite lambda, and the lambdas; the others are only distinct."""
    times = history.times
    known = inner(schedule, history)
    half = jnp.where(known, schedule.log_snr(jnp.where(known, times, 0.5)) / 2, 0)
    nodes = jnp.where(known, half, jnp.max(half) + 1)
    return jnp.sum(known), nodes.astype(history.values.dtype)


VARIANTS = {"bh1": lambda phis: jnp.ones_like(phis[0]), "bh2": lambda phis: phis[0]}
