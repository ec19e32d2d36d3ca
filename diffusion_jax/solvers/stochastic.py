"""Solvers that add fresh noise.

For any rate w(t) >= 0 the process (Song et al. 2021b; Ma et al. 2024, Eq. 4)

    dx = (velocity - w/2 score) dt + sqrt(w) dw,        score = -eps / sigma,                                (1)

run from t to s < t, keeps the marginals of the path. DDIM's family does so in closed form, with a share of the noise
that is left made fresh: `process.forward.posterior`. The DPM-Solver++ SDE solvers are exponential in
lambda = log(alpha / sigma) (Lu et al. 2023, Eq. 18): with h = lambda_s - lambda_t and eta the share of the SDE,

    x_s = alpha_s x0 + sigma_s exp(-eta h) eps + sigma_s sqrt(1 - exp(-2 eta h)) z
          + alpha_s (1 - exp(-(1 + eta) h)) dx0,                                                             (2)

where dx0 is what a second evaluation changes.
"""

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.naming import lookup
from diffusion_jax.process.forward import fresh_fraction, learned_std, posterior, transition
from diffusion_jax.process.noise import advance, normal_like
from diffusion_jax.process.schedule import against, as_float, derivative, drift_and_diffusion, levels, rates
from diffusion_jax.solvers.multistep import push, remember, slope_of_data
from diffusion_jax.solvers.ode import heun, middle_time, moving, noise_to_signal, time_of_ratio
from diffusion_jax.solvers.solver import first_order, half_log_snr, no_memory, regular, two_stages
from diffusion_jax.types import Interval, LearnedEstimate, Schedule, Solver


def ancestral(schedule: Schedule, *, eta: float = 1.0) -> Solver:
    """DDIM's family: eta = 1 is DDPM's posterior, eta = 0 is `ddim` (Song et al. 2021a, Eq. 12)."""
    _share("ancestral", eta)

    def step(denoise, x, now, memory):
        mean, std = posterior(schedule, denoise(x, now.t), x, now.t, now.s, eta=eta)
        return mean + std * normal_like(now.key, x), memory

    return Solver("ancestral", 1, no_memory, step, stochastic=eta > 0)


def ddpm(schedule: Schedule, *, variance: str = "fixed_small") -> Solver:
    """DDPM's step with its variance "fixed_small", "fixed_large" or "learned" (Ho et al. 2020; Nichol & Dhariwal 2021).

    "learned" interpolates the logarithms of the two and needs a network that predicts `learned_variance`.
    """
    spread = lookup(DDPM_VARIANCES, variance, "variance")

    def step(denoise, x, now, memory):
        estimate = denoise(x, now.t)
        mean, small = posterior(schedule, estimate, x, now.t, now.s)
        std = jnp.where(small > 0, spread(estimate, small, transition(schedule, x, now.s, now.t)[1]), 0)
        return mean + std * normal_like(now.key, x), memory

    return Solver("ddpm", 1, no_memory, step, stochastic=True)


def euler_ancestral(schedule: Schedule, *, eta: float = 1.0) -> Solver:
    """k-diffusion's name for `ancestral`: Euler in sigma / alpha to a lower level and noise back up is that step."""
    return ancestral(schedule, eta=eta)._replace(name="euler_ancestral")


def euler_maruyama(schedule: Schedule, *, diffusion: str | Callable = "growth", scale: float = 1.0) -> Solver:
    """Euler-Maruyama on Eq. (1) with the rate w = scale * diffusion(t): a name in DIFFUSIONS, or any function of time.

    "growth" is d(sigma^2)/dt, finite everywhere; "reverse_sde" is g^2, which is infinite where alpha is 0.
    """
    rate = lookup(DIFFUSIONS, diffusion, "diffusion")(schedule) if isinstance(diffusion, str) else diffusion
    if not scale >= 0:
        raise ValueError(f"euler_maruyama: scale is {scale}; it must not be negative. 0 is the ODE.")

    def step(denoise, x, now, memory):
        estimate, r = denoise(x, now.t), rates(schedule, now.t, x)
        length = against(as_float(now.t) - as_float(now.s), x)
        # Rounding may take a rate below 0 at the noise end, and some are infinite there: then the step is DDIM's.
        w = jnp.maximum(scale * against(rate(as_float(now.t)), x), 0)
        regular_step = moving(schedule, now) & jnp.all(jnp.isfinite(w))
        w = jnp.where(regular_step, w, 0)
        slope = r.dalpha * estimate.x0 + (r.dsigma + w / (2 * r.sigma)) * estimate.eps
        moved = x - length * slope + jnp.sqrt(w * length) * normal_like(now.key, x)
        return jnp.where(regular_step, moved, first_order(schedule, estimate, now.s, x)), memory

    return Solver("euler_maruyama", 1, no_memory, step, stochastic=scale > 0)


def edm(
    schedule: Schedule, *, churn: float = 0.0, low: float = 0.0, high: float = float("inf"), inflate: float = 1.0
) -> Solver:
    """EDM's sampler (Karras et al. 2022, Alg. 2): raise the noise level a little, then Heun in sigma / alpha.

    `churn` is S_churn, (`low`, `high`) the levels sigma / alpha within which it acts, `inflate` is S_noise.
    """
    if not churn >= 0:
        raise ValueError(f"edm: churn is {churn}; it must not be negative. 0 is the ODE.")
    inner = heun(schedule, variable="sigma")

    def step(denoise, x, now, memory):
        if churn == 0:
            return inner.step(denoise, x, now, memory)
        level = noise_to_signal(schedule, now.t)
        gamma = jnp.minimum(churn / jnp.maximum(now.count, 1), 2**0.5 - 1)
        gamma = jnp.where((level >= low) & (level <= high) & jnp.isfinite(level), gamma, 0)
        t, last = as_float(now.t), schedule.span[1]
        raised = jnp.where(gamma > 0, time_of_ratio(schedule, level * (1 + gamma)), t)
        # The path ends somewhere: what cannot be raised is not.
        raised = jnp.where(raised > last, jnp.maximum(t, last), raised)
        gamma = jnp.where((gamma > 0) & (raised > t), noise_to_signal(schedule, raised) / level - 1, 0)
        alpha, (alpha_up, sigma_up) = levels(schedule, now.t, x)[0], levels(schedule, raised, x)
        added = sigma_up * jnp.sqrt(against(1 - (1 + gamma) ** -2, x))
        ratio = alpha_up / jnp.where(alpha == 0, 1, alpha)
        x = jnp.where(against(gamma, x) > 0, ratio * x + inflate * added * normal_like(now.key, x), x)
        return inner.step(denoise, x, now._replace(t=raised), memory)

    return Solver("edm", 2, no_memory, step, evaluations=2, stochastic=churn > 0)


def dpmpp_sde(schedule: Schedule, *, eta: float = 1.0) -> Solver:
    """DPM-Solver++ SDE of two stages: Eq. (2) with the estimate at the middle lambda of one Brownian path."""
    _share("dpmpp_sde", eta)

    def step(denoise, x, now, memory):
        middle = middle_time(schedule, now.t, now.s)
        keys = advance(now.key, 0), advance(now.key, 1)
        z_middle, z_rest = normal_like(keys[0], x), normal_like(keys[1], x)

        def halfway(estimate):
            mean, std = posterior(schedule, estimate, x, now.t, middle, eta=eta)
            return mean + std * z_middle, middle

        finite = regular(schedule, now)
        e, m = two_stages(denoise, x, now.t, halfway, finite)
        mean, std = posterior(schedule, e, x, now.t, now.s, eta=eta)
        fresh = fresh_fraction(schedule, now.t, now.s, x)
        ratio = noise_to_signal(schedule, now.s) / noise_to_signal(schedule, now.t)
        kept = against(jnp.where(finite, ratio, 0), x) * jnp.sqrt(1 - eta**2 * fresh)
        mean = jnp.where(finite, mean + levels(schedule, now.s, x)[0] * (1 - kept) * (m.x0 - e.x0), mean)
        # The noise of the whole interval contains that of its first half.
        share = jnp.sqrt(jnp.where(finite, _brownian_share(schedule, now, middle, x), 0))
        return mean + std * (share * z_middle + jnp.sqrt(1 - share**2) * z_rest), memory

    return Solver("dpmpp_sde", 1, no_memory, step, evaluations=2, stochastic=eta > 0)


def dpmpp_2m_sde(schedule: Schedule, *, eta: float = 1.0) -> Solver:
    """DPM-Solver++(2M) SDE: Eq. (2) with dx0 from the evaluation before (midpoint form)."""
    _share("dpmpp_2m_sde", eta)

    def step(denoise, x, now, history):
        estimate = denoise(x, now.t)
        history = push(history, estimate.x0, now.t)
        alpha, sigma = levels(schedule, now.s, x)
        finite = regular(schedule, now)
        h = half_log_snr(schedule, now.s, x) - half_log_snr(schedule, now.t, x)
        h = jnp.where(finite, h, jnp.inf if eta > 0 else 0)
        mean = alpha * estimate.x0 + sigma * jnp.exp(-eta * h) * estimate.eps
        gain = -alpha * jnp.expm1(-(1 + eta) * jnp.where(finite, h, 1))
        std = sigma * jnp.sqrt(-jnp.expm1(-2 * eta * h))
        x = mean + gain * slope_of_data(schedule, now, history) + std * normal_like(now.key, x)
        return x, history

    claim = 1 if eta > 0 else 2
    return Solver("dpmpp_2m_sde", claim, lambda x: remember(2, x), step, stochastic=eta > 0)


def _brownian_share(schedule: Schedule, now: Interval, middle, x):
    """The share of the interval's Brownian time, sigma / alpha, that lies before the middle."""
    a, m, b = (noise_to_signal(schedule, t) for t in (now.t, middle, now.s))
    return against((a - m) / (a - b), x)


def _share(name, eta):
    if not 0 <= eta <= 1:
        raise ValueError(f"{name}: eta is {eta}; it must be in [0, 1], from the ODE to the full posterior noise.")


def _growth(schedule):
    return lambda t: derivative(lambda u: schedule.sigma(u) ** 2, t)[1]


def _learned(estimate, small, large):
    if not isinstance(estimate, LearnedEstimate):
        raise ValueError(
            "ddpm: variance 'learned' needs a network of prediction 'learned_variance'; this denoiser has no variance. "
            "Take 'fixed_small' or 'fixed_large'."
        )
    return learned_std(small, large, estimate.fraction)


DDPM_VARIANCES = {
    "fixed_small": lambda estimate, small, large: small,
    "fixed_large": lambda estimate, small, large: large,
    "learned": _learned,
}

DIFFUSIONS = {
    "growth": _growth,
    "reverse_sde": lambda schedule: lambda t: drift_and_diffusion(schedule, t)[1],
    "sigma": lambda schedule: schedule.sigma,
    "constant": lambda schedule: jnp.ones_like,
}
