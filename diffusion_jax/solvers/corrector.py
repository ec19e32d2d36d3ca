"""Langevin steps at a fixed noise level.

    x <- x + d score + sqrt(2 d) z,        d = (r sigma)^2,        score = -eps / sigma,                     (1)

leaves the marginal of the path invariant as d -> 0. The step is set by the level alone: scaled by the norms of a
batch, as it is in Song et al. 2021b (Alg. 4 and 5), it would make one example's sample depend on the others and bias
small dimensions. Theirs is d = 2 (snr |z| / |score|)^2, which is (1) for |score| = |z| / sigma and r = snr sqrt(2).
"""

from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.naming import choose
from diffusion_jax.process.noise import advance, normal_like
from diffusion_jax.process.schedule import as_float, levels
from diffusion_jax.solvers.ode import ONE_STEP
from diffusion_jax.solvers.solver import first_order, no_memory, when
from diffusion_jax.solvers.stochastic import ancestral, ddpm, euler_maruyama
from diffusion_jax.types import Schedule, Solver


def predictor_corrector(
    schedule: Schedule, *, predictor: Any = "ancestral", corrections: int = 1, snr: float = 0.16
) -> Solver:
    """Predict with any one-step solver, then correct by Eq. (1) at the new level (Song et al. 2021b, Alg. 1)."""
    _check("predictor_corrector", corrections=corrections, snr=snr)
    first = choose(PREDICTORS, predictor, "predictor", schedule)

    def step(denoise, x, now, memory):
        x, _ = first.step(denoise, x, now, ())
        keys = advance(now.key, 1)

        def correct(x, index):
            return x + _langevin(schedule, denoise, x, now.s, advance(keys, index), size=2 * snr**2), None

        def corrected():
            return jax.lax.scan(correct, x, jnp.arange(corrections))[0]

        clean = jnp.all(schedule.sigma(now.s) == 0)
        return jax.lax.cond(clean, lambda: x, corrected), memory

    return Solver(
        "predictor_corrector",
        1,
        no_memory,
        step,
        evaluations=first.evaluations + corrections,
        stochastic=True,
    )


def annealed_langevin(schedule: Schedule, *, corrections: int = 8, size: float = 0.7) -> Solver:
    """Equation (1) alone, with d = size sigma^2, while the level falls (Song & Ermon 2019, Alg. 1).

    It needs many levels: from one to the next x / alpha stays, and only the mixing takes its noise away. It mixes
    within a mode, hardly between modes far apart, whose shares are those of the level at which they parted. The last
    step is denoised.
    """
    _check("annealed_langevin", corrections=corrections, size=size)

    def step(denoise, x, now, memory):
        clean = jnp.all(schedule.sigma(now.s) == 0)
        level = jnp.where(clean, as_float(now.t), as_float(now.s))
        (alpha, sigma), (alpha_t, sigma_t) = levels(schedule, level, x), levels(schedule, now.t, x)
        noise = alpha_t == 0
        x = jnp.where(noise, sigma / sigma_t, alpha / jnp.where(noise, 1, alpha_t)) * x

        def correct(carry, index):
            x, landing = carry
            estimate = when((index == 0) | ~clean, lambda: denoise(x, level))
            landing = jnp.where(index == 0, first_order(schedule, estimate, now.s, x), landing)
            return (x + _move(schedule, estimate, x, level, advance(now.key, index), size=size), landing), None

        (moved, landing), _ = jax.lax.scan(correct, (x, x), jnp.arange(corrections))
        return jnp.where(clean, landing, moved), memory

    return Solver("annealed_langevin", 1, no_memory, step, evaluations=corrections, stochastic=True)


def _langevin(schedule, denoise, x, t, keys, *, size):
    return _move(schedule, denoise(x, t), x, t, keys, size=size)


def _move(schedule, estimate, x, t, keys, *, size):
    """The change of Eq. (1) with d = size sigma^2."""
    sigma = levels(schedule, t, x)[1]
    return sigma * ((2 * size) ** 0.5 * normal_like(keys, x) - size * estimate.eps)


def _check(name, *, corrections, **sizes):
    if not isinstance(corrections, int) or corrections < 1:
        raise ValueError(f"{name}: corrections is {corrections}; it must be a whole number of at least 1.")
    for word, value in sizes.items():
        if not value > 0:
            raise ValueError(f"{name}: {word} is {value}; it must be greater than 0.")


PREDICTORS = {**ONE_STEP, "ancestral": ancestral, "ddpm": ddpm, "euler_maruyama": euler_maruyama}
