"""Variational bounds on -log p(x0), in nats per example, larger than or equal to it in expectation.

For a falling grid t_1 > ... > t_n > 0 (Ho et al. 2020, Eq. 5; Kingma et al. 2021, Eq. 11 to 13)

    -log p(x0) <= KL(q(x_{t_1} | x0) | prior) + sum_i KL(q(x_s | x_t, x0) | p(x_s | x_t)) - E log p(x0 | x_{t_n}),   (1)

and as the grid gets finer its middle term becomes

    1/2 int |eps - eps_hat|^2 d(-log_snr).                                                                           (2)

Both kernels of (1) have the posterior's variance, so with r the fraction of fresh noise the divergence is that of
their means, |alpha_s dx0 + sigma_s sqrt(1 - r) deps|^2 / (2 sigma_s^2 r), unless the network learned its variance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from diffusion_jax.naming import choose
from diffusion_jax.process.forward import add_noise, learned_std, posterior, transition
from diffusion_jax.process.gaussian import discretised_log_likelihood, kl, log_density
from diffusion_jax.process.noise import advance, example_keys, normal_like
from diffusion_jax.process.schedule import as_float, finite_span, levels, wide
from diffusion_jax.solvers.solver import check_span, checked_times
from diffusion_jax.types import Array, Denoiser, Estimate, Key, LearnedEstimate, Schedule


class Bound(NamedTuple):
    """The three terms of a bound, in nats, one value per example."""

    prior: Array
    diffusion: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The bound on -log p(x0)."""
        return self.prior + self.diffusion + self.reconstruction


def discrete_bound(
    denoise: Denoiser,
    schedule: Schedule,
    x0: Array,
    key: Key,
    *,
    times: Any,
    decoder: Any = "density",
    indices: Any = None,
) -> Bound:
    """Evaluate Eq. (1) on the falling grid `times`, which must end above 0, with one draw of noise per step."""
    _check_end(schedule, times)
    times = checked_times(times)
    x0, keys = _begin(x0, key, indices)

    def term(total, element):
        t, s, index = element
        eps = normal_like(advance(keys, index), x0)
        x = add_noise(schedule, x0, eps, t)
        estimate = denoise(x, t)
        mean, std = posterior(schedule, Estimate(x0, eps), x, t, s)
        guess = posterior(schedule, estimate, x, t, s)[0]
        spread = std
        if isinstance(estimate, LearnedEstimate):
            spread = learned_std(std, transition(schedule, x, s, t)[1], estimate.fraction)
        return total + _sum(kl(mean, std, guess, spread)), None

    count = times.shape[0] - 1
    zeros = jnp.zeros(x0.shape[0], x0.dtype)
    diffusion, _ = jax.lax.scan(term, zeros, (times[:-1], times[1:], jnp.arange(count)))
    ends = times[0], times[-1]
    return Bound(*_ends(denoise, schedule, x0, advance(keys, count), ends=ends, decoder=decoder, diffusion=diffusion))


def continuous_bound(
    denoise: Denoiser,
    schedule: Schedule,
    x0: Array,
    key: Key,
    *,
    samples: int = 100,
    decoder: Any = "density",
    span: tuple[float, float] | None = None,
    indices: Any = None,
) -> Bound:
    """Estimate Eq. (2) at `samples` stratified levels per example, uniform in log-SNR, and add the two ends of (1)."""
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"continuous_bound: samples is {samples}; it must be a whole number of at least 1.")
    check_span("continuous_bound", span)
    x0, keys = _begin(x0, key, indices)
    early, late = (as_float(end).astype(x0.dtype) for end in (finite_span(schedule) if span is None else span))
    high, low = schedule.log_snr(early), schedule.log_snr(late)

    def term(total, index):
        own = advance(keys, index)
        u = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(k, 0), (), x0.dtype))(own)
        time = schedule.time(low + (high - low) * (index.astype(x0.dtype) + u) / samples)
        eps = normal_like(own, x0)
        estimate = denoise(add_noise(schedule, x0, eps, time), time)
        return total + (high - low) / (2 * samples) * _sum((eps - estimate.eps) ** 2), None

    diffusion, _ = jax.lax.scan(term, jnp.zeros(x0.shape[0], x0.dtype), jnp.arange(samples))
    last = advance(keys, samples)
    return Bound(*_ends(denoise, schedule, x0, last, ends=(late, early), decoder=decoder, diffusion=diffusion))


def density() -> Callable:
    """Decode to a density: x0 is normal around the estimate, with the noise-to-signal ratio as deviation."""
    return log_density


def discretised(*, levels: int = 256) -> Callable:
    """Decode to integers: the same normal, summed over the bin of each (Ho et al. 2020, Eq. 13)."""
    return lambda x0, mean, std: discretised_log_likelihood(x0, mean, std, levels=levels)


def _ends(denoise, schedule, x0, keys, *, ends, decoder, diffusion):
    """The prior's and the decoder's term around the middle one."""
    decode = choose(DECODERS, decoder, "decoder")
    late, early = ends
    alpha, sigma = levels(schedule, late, x0)
    prior = _sum(kl(alpha * x0, sigma, jnp.zeros_like(x0), sigma))
    alpha, sigma = levels(schedule, early, x0)
    x = add_noise(schedule, x0, normal_like(keys, x0), early)
    return prior, diffusion, -_sum(decode(x0, denoise(x, early).x0, sigma / alpha))


def _begin(x0, key, indices):
    x0 = x0.astype(wide(x0.dtype))
    return x0, example_keys(key, x0.shape[0] if indices is None else indices)


def _check_end(schedule, times):
    if isinstance(times, Tracer):
        return
    with jax.ensure_compile_time_eval():
        clean = float(schedule.sigma(np.asarray(times)[-1])) == 0
    if np.asarray(times)[0] < np.asarray(times)[-1]:
        raise ValueError("discrete_bound: the grid must fall from noise to data.")
    if clean:
        raise ValueError(
            "discrete_bound: the grid must end where some noise is left, and the decoder bridges the rest; "
            "end it at schedule.span[0] instead of 0."
        )


def _sum(x):
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


DECODERS = {"density": density, "discretised": discretised}
