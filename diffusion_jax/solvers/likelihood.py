"""Exact likelihood by the probability flow (Song et al. 2021b, Sec. 4.3; Chen et al. 2018).

With the scaled state y, the angle phi and the flow dy/dlambda = F of `flow`,

    log p(x0) = log p_prior(y_1) + int tr(dF/dy) dlambda + d log cos(phi_0),                                 (1)

integrated from the clean end of the span to the noise end. F is bounded and the same for every path and pace, so a
uniform grid in log-SNR serves all. x0 is taken to be the signal of the path at the clean end: the noise that is missing
there changes log p by O(sigma^2).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.naming import choose
from diffusion_jax.process.noise import advance, example_keys
from diffusion_jax.process.schedule import as_float, finite_span, levels, wide
from diffusion_jax.solvers.flow import scaled_flow, size
from diffusion_jax.solvers.solver import check_span
from diffusion_jax.types import Array, Denoiser, Key, Schedule


def log_likelihood(
    denoise: Denoiser,
    schedule: Schedule,
    x0: Array,
    key: Key,
    *,
    steps: int | None = 100,
    probes: int | None = 1,
    span: tuple[float, float] | None = None,
    prior: Callable[[Array], Array] | None = None,
    tolerance: float = 1e-5,
    indices: Any = None,
) -> tuple[Array, Array]:
    """Return log p(x0) in nats, one per example, and the latent noise that each x0 came from.

    `steps` fourth-order steps of four evaluations, or None for adaptive ones to `tolerance`. `probes` Rademacher
    vectors estimate the trace (Hutchinson); None computes it exactly, with as many products as x0 has dimensions.
    `prior` is the log-density of x at the noise end of `span`, by default N(0, sigma^2), which sampling starts from.
    """
    _check(steps, probes, tolerance)
    check_span("log_likelihood", span)
    x0 = x0.astype(wide(x0.dtype))
    early, late = (as_float(end).astype(x0.dtype) for end in (finite_span(schedule) if span is None else span))
    keys = example_keys(key, x0.shape[0] if indices is None else indices)
    field = _with_divergence(scaled_flow(denoise, schedule), _trace(keys, probes, x0))
    cos = levels(schedule, early, x0)[0] / size(schedule, early, x0)
    state = cos * x0, jnp.zeros(x0.shape[0], x0.dtype)
    ends = schedule.log_snr(early) / 2, schedule.log_snr(late) / 2
    y, change = _adaptive(field, state, ends, tolerance) if steps is None else _runge_kutta(field, state, ends, steps)
    latent = y * size(schedule, late, x0)
    dimension = x0[0].size
    log_prior = _standard(schedule, late)(latent) if prior is None else prior(latent)
    grown = jnp.log(size(schedule, late, x0)) * dimension  # from the density of x to that of y
    return log_prior + grown + change + dimension * jnp.log(cos), latent


def bits_per_dim(log_p: Array, shape: tuple[int, ...], *, log_q: Array | float = 0.0, levels: int = 256) -> Array:
    """Turn log-densities of dequantised data in [-1, 1] into bits per dimension of the integers (Theis et al. 2016).

    `shape` is that of one example and `log_q` the log-density of its dequantisation noise, from `dequantize`. The
    result bounds the bits of the integers from above.
    """
    dimension = 1
    for length in shape:
        dimension *= length
    nats = -(log_p - log_q) / dimension - jnp.log(2.0 / levels)
    return nats / jnp.log(2.0)


def dequantize(integers: Array, key: Key, *, kind: Any = "uniform", indices: Any = None) -> tuple[Array, Array]:
    """Spread integers 0..255 over their bins of [-1, 1]; return x and the noise's log-density, for `bits_per_dim`."""
    keys = example_keys(key, integers.shape[0] if indices is None else indices)
    kind = choose(DEQUANTIZATIONS, kind, "dequantization")
    noise, log_q = jax.vmap(lambda k: kind.draw(k, integers.shape[1:]))(keys)
    # In float32, 255 and the last 2^-17 of a bin round to the next one.
    x = (integers.astype(jnp.float32) + jnp.minimum(noise, 1 - 2.0**-16)) / 128 - 1
    return x, jnp.sum(log_q.reshape(log_q.shape[0], -1), axis=1)


class Dequantization(NamedTuple):
    """A density on the unit bin: `draw(key, shape)` returns noise in [0, 1) and its log-density."""

    name: str
    draw: Callable[[Key, tuple[int, ...]], tuple[Array, Array]]


def uniform() -> Dequantization:
    """Even noise over the bin (Uria et al. 2013)."""
    return Dequantization("uniform", lambda key, shape: (jax.random.uniform(key, shape), jnp.zeros(shape)))


def truncated_normal(*, std: float = 0.3) -> Dequantization:
    """Normal noise around the middle of the bin, cut at its edges (Zheng et al. 2023); `std` in bins."""
    if not std > 0:
        raise ValueError(f"truncated_normal: std is {std}; it must be greater than 0, in units of a bin.")
    edge = 0.5 / std
    mass = jax.scipy.special.erf(edge / 2**0.5)

    def draw(key, shape):
        z = jax.random.truncated_normal(key, -edge, edge, shape)
        return 0.5 + std * z, jax.scipy.stats.norm.logpdf(z) - jnp.log(std * mass)

    return Dequantization("truncated_normal", draw)


def _with_divergence(flow, trace):
    return lambda half, state: trace(lambda y: flow(half, y), state[0])


def _trace(keys, probes, x):
    """Return a function (field, y) -> (field(y), tr of its Jacobian), exact or by fixed Rademacher probes."""
    if probes is None:
        vectors = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
        vectors = jnp.broadcast_to(vectors, (vectors.shape[0], *x.shape))
        scale = 1
    else:
        draw = jax.vmap(lambda key: jax.random.rademacher(key, x.shape[1:], x.dtype))
        vectors = jax.vmap(lambda probe: draw(advance(keys, probe)))(jnp.arange(probes))
        scale = 1 / probes

    def trace(field, y):
        value, push = jax.linearize(field, y)
        products = jax.vmap(push)(vectors) * vectors
        return value, scale * jnp.sum(products.reshape(*products.shape[:2], -1), axis=(0, 2))

    return trace


def _runge_kutta(field, state, ends, steps):
    h = (ends[1] - ends[0]) / steps

    def move(state, slope, length):
        return jax.tree.map(lambda y, k: y + length * k, state, slope)

    def step(state, index):
        a = ends[0] + h * index.astype(h.dtype)
        k1 = field(a, state)
        k2 = field(a + h / 2, move(state, k1, h / 2))
        k3 = field(a + h / 2, move(state, k2, h / 2))
        k4 = field(a + h, move(state, k3, h))
        mean = jax.tree.map(lambda p, q, r, s: (p + 2 * q + 2 * r + s) / 6, k1, k2, k3, k4)
        return move(state, mean, h), None

    return jax.lax.scan(step, state, jnp.arange(steps))[0]


def _adaptive(field, state, ends, tolerance):
    import diffrax  # most of the package's start-up time, so imported where it is used

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda half, state, _: field(half, state)),
        diffrax.Tsit5(),
        ends[0],
        ends[1],
        None,
        state,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=16384,
    )
    return jax.tree.map(lambda leaf: leaf[0], solution.ys)


def _standard(schedule, t):
    """The log-density of N(0, sigma(t)^2)."""

    def log_density(x):
        sigma = levels(schedule, t, x)[1]
        terms = jax.scipy.stats.norm.logpdf(x / sigma) - jnp.log(sigma)
        return jnp.sum(terms.reshape(x.shape[0], -1), axis=1)

    return log_density


def _check(steps, probes, tolerance):
    for word, value in (("steps", steps), ("probes", probes)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"log_likelihood: {word} is {value}; it must be a whole number of at least 1, or None.")
    if not tolerance > 0:
        raise ValueError(f"log_likelihood: tolerance is {tolerance}; it must be greater than 0.")


DEQUANTIZATIONS = {"uniform": uniform, "truncated_normal": truncated_normal}
