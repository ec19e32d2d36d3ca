"""The published paths, in closed form.

Every one is written so that float32 loses nothing: differences of numbers near one go through expm1, log1p and the
addition theorems, and log-SNR is never the logarithm of a quotient. `span` leaves out the ends at which log-SNR is
infinite; alpha and sigma hold there too.
"""

import math

import jax
import jax.numpy as jnp

from diffusion_jax.process.discrete import discrete
from diffusion_jax.process.schedule import schedule
from diffusion_jax.process.table import alpha_bar, betas, tabulated
from diffusion_jax.types import Schedule

END = 1e-3  # how near the span comes to an end with infinite log-SNR


def linear_beta(*, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Variance-preserving path of a linear noise rate (Ho et al. 2020; Song et al. 2021b, Eq. 33).

    With B = integral of beta: alpha = exp(-B/2), sigma^2 = 1 - exp(-B).
    """
    _positive("linear_beta", beta_min=beta_min, beta_max=beta_max)
    integral, inverse = _linear_rate(beta_min, beta_max)
    return schedule(
        "linear_beta",
        alpha=lambda t: jnp.exp(-integral(t) / 2),
        sigma=lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
        log_snr=lambda t: _minus_log_expm1(integral(t)),
        time=lambda log_snr: inverse(jax.nn.softplus(-log_snr)),
        span=(1e-5, 1.0),
    )


def sub_vp(*, beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """The sub-variance-preserving path (Song et al. 2021b, Eq. 30): alpha as `linear_beta`, sigma = 1 - alpha^2."""
    _positive("sub_vp", beta_min=beta_min, beta_max=beta_max)
    integral, inverse = _linear_rate(beta_min, beta_max)
    return schedule(
        "sub_vp",
        alpha=lambda t: jnp.exp(-integral(t) / 2),
        sigma=lambda t: -jnp.expm1(-integral(t)),
        log_snr=lambda t: -integral(t) - 2 * jnp.log(-jnp.expm1(-integral(t))),
        # alpha / sigma = 1 / (2 sinh(B/2))
        time=lambda log_snr: inverse(2 * jnp.arcsinh(jnp.exp(-log_snr / 2) / 2)),
        span=(5e-3, 1.0),
    )


def geometric(*, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """Variance-exploding path with a geometric noise level (Song et al. 2021b, Eq. 31). It ends at sigma_min, not 0."""
    _increasing("geometric", sigma_min, sigma_max)
    low, rise = math.log(sigma_min), math.log(sigma_max / sigma_min)
    return schedule(
        "geometric",
        alpha=jnp.ones_like,
        sigma=lambda t: jnp.exp(low + rise * t),
        log_snr=lambda t: -2 * (low + rise * t),
        time=lambda log_snr: -(log_snr / 2 + low) / rise,
        span=(0.0, 1.0),
    )


def karras(*, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """EDM's path, sigma = sigma_max t^rho with alpha = 1 (Karras et al. 2022, Eq. 5).

    Uniform times from span[0], where sigma is sigma_min, to 1 are exactly their noise levels; t = 0 is clean data.
    """
    _increasing("karras", sigma_min, sigma_max)
    _positive("karras", rho=rho)
    return schedule(
        "karras",
        alpha=jnp.ones_like,
        sigma=lambda t: sigma_max * t**rho,
        log_snr=lambda t: -2 * (math.log(sigma_max) + rho * jnp.log(t)),
        time=lambda log_snr: jnp.exp(-(log_snr / 2 + math.log(sigma_max)) / rho),
        span=((sigma_min / sigma_max) ** (1 / rho), 1.0),
    )


def cosine(*, offset: float = 0.008) -> Schedule:
    """Cosine path with iDDPM's offset (Nichol & Dhariwal 2021, Eq. 17); `offset=0` is the `trigonometric` path.

    With u = u0 + (pi/2 - u0) t: alpha = cos u / cos u0, sigma^2 = sin(u - u0) sin(u + u0) / cos^2 u0.
    """
    if not 0 <= offset < 1:
        raise ValueError(f"cosine: offset is {offset}; it must be in [0, 1). The paper's is 0.008.")
    first = math.pi / 2 * offset / (1 + offset)
    reach, scale = math.pi / 2 - first, math.cos(first)

    def log_snr(t):
        gone = reach * t
        return 2 * jnp.log(jnp.sin(reach * (1 - t))) - jnp.log(jnp.sin(gone) * jnp.sin(2 * first + gone))

    def time(log_snr):
        sin2 = jax.nn.sigmoid(-log_snr) * scale**2  # sin(u - u0) sin(u + u0)
        sin_u, cos_u = jnp.sqrt(math.sin(first) ** 2 + sin2), jnp.sqrt(jax.nn.sigmoid(log_snr)) * scale
        sin_sum = sin_u * scale + cos_u * math.sin(first)
        return jnp.arctan2(sin2 / sin_sum, cos_u * scale + sin_u * math.sin(first)) / reach

    return schedule(
        "cosine",
        alpha=lambda t: jnp.sin(reach * (1 - t)) / scale,  # cos u, exact at t = 1
        sigma=lambda t: jnp.sqrt(jnp.sin(reach * t) * jnp.sin(2 * first + reach * t)) / scale,
        log_snr=log_snr,
        time=time,
        span=(END, 1 - END),
    )


def sigmoid(*, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """Sigmoid path (Jabri et al. 2022; Chen 2023): alpha^2 falls from 1 to 0 along a sigmoid between start and end.

    With w = t W, W = (end - start) / (2 tau), and c the ratio cosh(end / 2 tau) / cosh(start / 2 tau):
    SNR = sinh(W - w) / (c sinh w).
    """
    _increasing("sigmoid", start, end, positive=False)
    _positive("sigmoid", tau=tau)
    if max(abs(start), abs(end)) > 40 * tau:
        raise ValueError(
            f"sigmoid: start / tau is {start / tau} and end / tau {end / tau}; beyond 40 float32 has no sigmoid left."
        )
    whole = (end - start) / (2 * tau)
    log_c = math.log(math.cosh(end / (2 * tau)) / math.cosh(start / (2 * tau)))

    def log_snr(t):
        return jnp.log(jnp.sinh(whole * (1 - t)) / jnp.sinh(whole * t)) - log_c

    def time(log_snr):
        ratio = math.sinh(whole) / (jnp.exp(log_snr + log_c) + math.cosh(whole))
        return jnp.arctanh(ratio) / whole

    # (v_end - v(z)) / (v_end - v_start) by sinh(a - b) / (cosh a cosh b), for alpha^2 and for sigma^2
    def part(t, from_end):
        z = start / (2 * tau) + whole * t
        return jnp.sinh(whole * (1 - t if from_end else t)) / jnp.cosh(z) / math.sinh(whole)

    return schedule(
        "sigmoid",
        alpha=lambda t: jnp.sqrt(part(t, True) * math.cosh(start / (2 * tau))),
        sigma=lambda t: jnp.sqrt(part(t, False) * math.cosh(end / (2 * tau))),
        log_snr=log_snr,
        time=time,
        span=(END, 1 - END),
    )


def rectified() -> Schedule:
    """The straight path alpha = 1 - t, sigma = t of rectified flow and flow matching (Liu et al. 2023; Lipman 2023)."""
    return schedule(
        "rectified",
        alpha=lambda t: 1 - t,
        sigma=lambda t: t,
        log_snr=lambda t: 2 * (jnp.log1p(-t) - jnp.log(t)),
        time=lambda log_snr: jax.nn.sigmoid(-log_snr / 2),
        span=(END, 1 - END),
    )


def trigonometric() -> Schedule:
    """The arc alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Albergo et al. 2023; TrigFlow, Lu & Song 2024)."""
    return schedule(
        "trigonometric",
        alpha=lambda t: jnp.sin(math.pi / 2 * (1 - t)),
        sigma=lambda t: jnp.sin(math.pi / 2 * t),
        log_snr=lambda t: 2 * (jnp.log(jnp.sin(math.pi / 2 * (1 - t))) - jnp.log(jnp.sin(math.pi / 2 * t))),
        time=lambda log_snr: 2 / math.pi * jnp.arctan(jnp.exp(-log_snr / 2)),
        span=(END, 1 - END),
    )


def _linear_rate(beta_min, beta_max):
    """The integral of the rate from 0 to t, and its inverse without cancellation."""
    rise = beta_max - beta_min
    integral = lambda t: t * (beta_min + rise / 2 * t)  # noqa: E731
    inverse = lambda b: 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * rise * b))  # noqa: E731
    return integral, inverse


def _minus_log_expm1(b):
    """-log(exp(b) - 1), which neither overflows for large b nor cancels for small b."""
    return -b - jnp.log(-jnp.expm1(-b))


def _positive(what, **values):
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{what}: {name} is {value}; it must be greater than 0, and finite.")


def _increasing(what, low, high, positive=True):
    if not -math.inf < low < high < math.inf or (positive and low <= 0):
        need = "0 < low < high, and finite" if positive else "low < high, and finite"
        raise ValueError(f"{what}: its range is ({low}, {high}); it must be {need}.")


SCHEDULES = {
    "linear_beta": linear_beta,
    "sub_vp": sub_vp,
    "geometric": geometric,
    "karras": karras,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "rectified": rectified,
    "trigonometric": trigonometric,
    "tabulated": tabulated,
    "betas": betas,
    "alpha_bar": alpha_bar,
    "discrete": discrete,
}
