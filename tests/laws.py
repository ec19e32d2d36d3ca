"""The cases that laws are parametrised over, and the laws that every path obeys, whoever made it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process.schedule import derivative, drift_and_diffusion, reaches_clean
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.types import Schedule

_RISE = np.linspace(0, 0.98, 21)
_ANGLE = np.linspace(0.04, 1.53, 20)

SCHEDULE_CASES: dict[str, Callable[[], Schedule]] = {
    "linear_beta": SCHEDULES["linear_beta"],
    "sub_vp": SCHEDULES["sub_vp"],
    "geometric": SCHEDULES["geometric"],
    "karras": SCHEDULES["karras"],
    "cosine": SCHEDULES["cosine"],
    "sigmoid": SCHEDULES["sigmoid"],
    "rectified": SCHEDULES["rectified"],
    "trigonometric": SCHEDULES["trigonometric"],
    "tabulated": lambda: SCHEDULES["tabulated"](alpha=1 - _RISE, sigma=_RISE),
    "betas": lambda: SCHEDULES["betas"](values=np.linspace(1e-3, 0.4, 20)),
    "alpha_bar": lambda: SCHEDULES["alpha_bar"](values=np.cos(_ANGLE) ** 2),
    "discrete": lambda: SCHEDULES["discrete"](world={"name": "squared_cosine", "steps": 20, "max_beta": 0.5}),
}
"""Every entry of SCHEDULES, with the arguments it needs."""

TABLES = ("tabulated", "betas", "alpha_bar", "discrete")
VARIANCE_PRESERVING = ("linear_beta", "cosine", "sigmoid", "trigonometric", "betas", "alpha_bar", "discrete")
ENDS_IN_NOISE = ("cosine", "sigmoid", "rectified", "trigonometric")

PACE_CASES: dict[str, dict] = {
    "shift": {"factor": 3.0},
    "shift_log_snr": {"factor": 2.0},
    "resolution_shift": {"pixels": 128**2, "base_pixels": 64**2},
    "sequence_shift": {"tokens": 1024},
    "truncate": {"low": 0.1, "high": 0.9},
    "zero_terminal": {},
}
"""Every entry of PACES, with the arguments it needs."""


COUNT = 64  # one shape for all laws, so that each operation is compiled once


def at(form: Callable, times) -> np.ndarray:
    """Evaluate at any times, padded to the one shape."""
    times = np.asarray(times)
    return np.asarray(form(np.resize(times, COUNT)))[: times.size].reshape(times.shape)


def slope_at(form: Callable, times) -> np.ndarray:
    """Evaluate the derivative at any times."""
    return at(lambda t: derivative(form, jnp.asarray(t))[1], times)


def inside(schedule: Schedule, dtype: Any = np.float64, *, closed: bool = False) -> np.ndarray:
    """Times over the whole span, both ends included, but (unless `closed`) not an end with infinite log-SNR."""
    times = np.linspace(*schedule.span, COUNT).astype(dtype)
    if not closed and not np.isfinite(np.asarray(schedule.log_snr(times))[-1]):
        times[-1] = (times[-1] + times[-2]) / 2
    return times


def at_ends(dtype) -> np.ndarray:
    """t = 0 and t = 1, again and again."""
    return np.resize(np.asarray([0, 1], dtype), COUNT)


def assert_times_invert(schedule: Schedule, dtype) -> None:
    """time(log_snr(t)) = t, to the rounding of log-SNR carried through its slope."""
    t = jnp.asarray(inside(schedule, dtype))
    log_snr, slope = derivative(schedule.log_snr, t)
    assert log_snr.dtype == dtype
    # The compiler's log1p and arctanh are 100 roundings off in float64; a table keeps t to a rounding of 0.01.
    roundings = (16 if dtype == np.float32 else 128) * np.finfo(dtype).eps
    bound = roundings * (np.abs((1 + np.abs(log_snr)) / slope) + t + 0.01)
    error = np.abs(np.asarray(schedule.time(log_snr) - t))
    assert np.all(error <= bound), (schedule.name, float(np.max(error / bound)))


def assert_consistent(schedule: Schedule) -> None:
    """In float64: log_snr = 2 log(alpha / sigma), and d sigma^2/dt = 2 f sigma^2 + g^2 with g^2 > 0."""
    t = jnp.asarray(inside(schedule))
    alpha, (sigma, dsigma) = schedule.alpha(t), derivative(schedule.sigma, t)
    np.testing.assert_allclose(schedule.log_snr(t), 2 * np.log(alpha / sigma), rtol=1e-9, atol=1e-9)
    f, g2 = drift_and_diffusion(schedule, t)
    scale = np.abs(2 * f * sigma**2) + g2
    assert np.all(g2 > 0)
    assert np.all(np.abs(2 * sigma * dsigma - 2 * f * sigma**2 - g2) <= 1e-8 * scale)


def assert_falls(schedule: Schedule, dtype) -> None:
    """Log-SNR falls strictly."""
    assert np.all(np.diff(np.asarray(schedule.log_snr(inside(schedule, dtype)))) < 0), schedule.name


def assert_finite(schedule: Schedule, dtype) -> None:
    """Values and derivatives are finite on the span; alpha and sigma at both ends of time too."""
    t = jnp.asarray(inside(schedule, dtype))
    whole = jnp.asarray(inside(schedule, dtype, closed=True))
    points = [
        (schedule.alpha, whole),
        (schedule.sigma, whole),
        (schedule.log_snr, t),
        (schedule.time, schedule.log_snr(t)),
    ]
    for form, at in points:
        for what in derivative(form, at):
            assert what.dtype == dtype
            assert np.all(np.isfinite(what)), schedule.name
    ends = at_ends(dtype)
    assert np.all(np.isfinite(schedule.alpha(ends))) and np.all(np.isfinite(schedule.sigma(ends)))


def assert_ends(schedule: Schedule, dtype) -> None:
    """The ends of time are where they are said to be, and log-SNR is infinite exactly where a coefficient is 0."""
    low, high = schedule.span
    assert 0 <= low < high <= 1
    ends = at_ends(dtype)
    alpha, sigma, log_snr = (np.asarray(form(ends)) for form in (schedule.alpha, schedule.sigma, schedule.log_snr))
    assert reaches_clean(schedule) == (sigma[0] == 0)
    assert np.isposinf(log_snr[0]) == (sigma[0] == 0)
    assert np.isneginf(log_snr[1]) == (alpha[1] == 0)


def quick(cases, *few):
    """Cases of a law of which a default run meets only a few; the others are slow."""
    return [pytest.param(case, marks=() if case in few else pytest.mark.slow) for case in cases]
