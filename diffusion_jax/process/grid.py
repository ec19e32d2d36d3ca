"""Grids of times from noise to data.

A grid of `steps` steps is one falling row of steps + 1 times. `uniform` and `quadratic` place the times themselves and
run from t = 1 to t = 0. The grids of noise levels place u = sigma / alpha between the levels at the ends of the span,

    karras:   u^(1/rho) evenly            uniform_log_snr:   log u evenly            beta:   quantiles          (1)

(Karras et al. 2022, Eq. 5), `steps` of them, and the clean end t = 0 last; where the path does not reach clean data
they place steps + 1 and end at the last. `leading`, `trailing` and `linspace` take `steps` of the T integer steps
i of a discrete world, as the times (i + 1) / T, and t = 0 last (Lin et al. 2024, Table 2).

All are made in float64, except where a schedule computes, and returned in JAX's default float type.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.schedule import reaches_clean
from diffusion_jax.types import Array, Schedule


def uniform(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Array:
    """Space the times evenly."""
    _check_steps("uniform", steps)
    return checked(schedule, np.linspace(start, end, steps + 1))


def karras(
    schedule: Schedule, steps: int, *, rho: float = 7.0, sigma_max: float | None = None, sigma_min: float | None = None
) -> Array:
    """Space the rho-th roots of sigma / alpha evenly (Karras et al. 2022)."""
    if not rho > 0:
        raise ValueError(f"karras: rho is {rho}; it must be greater than 0.")

    def between(high, low, ramp):
        return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho

    return _at_levels("karras", schedule, steps, between, sigma_max=sigma_max, sigma_min=sigma_min)


def uniform_log_snr(
    schedule: Schedule, steps: int, *, sigma_max: float | None = None, sigma_min: float | None = None
) -> Array:
    """Space log-SNR evenly (Lu et al. 2022): sigma / alpha falls by a constant factor."""
    return _at_levels("uniform_log_snr", schedule, steps, _geometric, sigma_max=sigma_max, sigma_min=sigma_min)


def exponential(
    schedule: Schedule, steps: int, *, sigma_max: float | None = None, sigma_min: float | None = None
) -> Array:
    """Space the logarithm of sigma / alpha evenly: another name for `uniform_log_snr`."""
    return _at_levels("exponential", schedule, steps, _geometric, sigma_max=sigma_max, sigma_min=sigma_min)


def beta(
    schedule: Schedule,
    steps: int,
    *,
    alpha: float = 0.6,
    beta: float = 0.6,
    sigma_max: float | None = None,
    sigma_min: float | None = None,
) -> Array:
    """Space sigma / alpha by quantiles of a Beta distribution, dense at both ends by default (Lee et al. 2024)."""
    if not (alpha > 0 and beta > 0):
        raise ValueError(f"beta: alpha is {alpha} and beta {beta}; both must be greater than 0.")

    def between(high, low, ramp):
        return low + (high - low) * _beta_quantile(1 - ramp, alpha, beta)

    return _at_levels("beta", schedule, steps, between, sigma_max=sigma_max, sigma_min=sigma_min)


def quadratic(schedule: Schedule, steps: int, *, start: float = 1.0, end: float = 0.0) -> Array:
    """Space the square roots of the times evenly, denser near the data (Song et al. 2021a, Appendix D.2)."""
    _check_steps("quadratic", steps)
    if min(start, end) < 0:
        raise ValueError(f"quadratic: start is {start} and end {end}; times lie in [0, 1].")
    return checked(schedule, np.linspace(math.sqrt(start), math.sqrt(end), steps + 1) ** 2)


def leading(
    schedule: Schedule,
    steps: int,
    *,
    train_steps: int = 1000,
    offset: int = 0,
    include_zero: bool = True,
    last: int = -1,
) -> Array:
    """Take every (T // steps)-th integer step from 0 up, then add `offset`: the noisiest step is left out.

    Without `include_zero` it is every (T // (steps + 1))-th, and step 0 is left out too. `last` is where the grid ends:
    at step -1, which is clean data, or at one that is not.
    """
    _check_steps("leading", steps, train_steps)
    first = 0 if include_zero else 1
    stride = train_steps // (steps + first)
    return _at_indices("leading", schedule, (np.arange(steps) + first)[::-1] * stride + offset, train_steps, last)


def trailing(schedule: Schedule, steps: int, *, train_steps: int = 1000, last: int = -1) -> Array:
    """Take integer steps evenly from T - 1 down, so that sampling starts at pure noise (Lin et al. 2024).

    `last` is as in `leading`.
    """
    _check_steps("trailing", steps, train_steps)
    indices = np.round(train_steps * (steps - np.arange(steps)) / steps) - 1
    return _at_indices("trailing", schedule, indices, train_steps, last)


def linspace(
    schedule: Schedule, steps: int, *, train_steps: int = 1000, include_zero: bool = True, whole: bool = True
) -> Array:
    """Take integer steps evenly from T - 1 to 0, both included; one step alone is T - 1.

    Without `include_zero` the grid stops one spacing short of step 0; without `whole` steps may be fractional.
    """
    _check_steps("linspace", steps, train_steps)
    indices = np.linspace(0, train_steps - 1, steps if include_zero else steps + 1)[::-1][:steps]
    if steps == 1:
        indices = np.asarray([train_steps - 1.0])
    return _at_indices("linspace", schedule, np.round(indices) if whole else indices, train_steps)


def checked(schedule: Schedule, times: Any) -> Array:
    """Return a concrete grid as an array, or say what is wrong with it.

    It is one row of at least 2 times in [0, 1], strictly falling (to sample) or rising (to encode), and between its
    ends log-SNR is finite.
    """
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(np.asarray(times, np.float64))
        values = np.asarray(times)
        check_row(values)
        finite = np.isfinite(np.asarray(schedule.log_snr(times)))
    if not np.all(finite[1:-1]):
        raise ValueError(
            f"grid: log-SNR of schedule '{schedule.name}' is not finite at {values[1:-1][~finite[1:-1]][:4]}; "
            f"only the first and the last time may lie outside its span {schedule.span}. Move or leave out these times."
        )
    return times


def check_row(values: np.ndarray) -> None:
    """Refuse times that are not one strictly falling or rising row within [0, 1]."""
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"times must be one row of at least 2; got shape {values.shape}. See GRIDS.")
    shown = np.array2string(values, threshold=8, precision=6)
    if not (np.all(values >= 0) and np.all(values <= 1)):
        raise ValueError(f"times must lie in [0, 1], from clean to noise; got {shown}. See GRIDS.")
    rises = np.diff(values)
    if np.all(rises < 0) or np.all(rises > 0):
        return
    if np.all(rises <= 0) or np.all(rises >= 0):
        same = values[:-1][rises == 0][0]
        raise ValueError(
            f"times must fall strictly, but the time {same:.6g} occurs twice in {values.dtype}. "
            "Take fewer steps or another grid."
        )
    raise ValueError(f"times must fall strictly, or rise strictly to encode; got {shown}. See GRIDS.")


def _at_levels(what, schedule, steps, between, *, sigma_max, sigma_min):
    """Turn the levels `between(high, low, ramp)` into times; ends that are not given are exactly those of the span."""
    _check_steps(what, steps)
    with jax.ensure_compile_time_eval():
        clean = reaches_clean(schedule)
        high = _level(what, "sigma_max", schedule, sigma_max, schedule.span[1])
        low = _level(what, "sigma_min", schedule, sigma_min, schedule.span[0])
        count = steps if clean else steps + 1
        if not low < high:
            raise ValueError(f"{what}: sigma_min is {low:g} and sigma_max {high:g}; sigma_min must be smaller.")
        log_snr = -2 * np.log(between(high, low, np.linspace(0, 1, count)))
        # As long as the grid itself, so that a schedule's operations are compiled for one shape.
        times = np.array(schedule.time(np.resize(log_snr, steps + 1)), np.float64)[:count]
    if sigma_max is None:
        times[0] = schedule.span[1]
    if sigma_min is None and count > 1:
        times[-1] = schedule.span[0]
    return checked(schedule, np.append(times, 0.0) if clean else times)


def _geometric(high, low, ramp):
    return np.exp(math.log(high) + ramp * (math.log(low) - math.log(high)))


def _level(what, name, schedule, given, end):
    """Return the noise level sigma / alpha that was given, if the path has it, or else that at the end of the span."""
    level = math.exp(-float(schedule.log_snr(end)) / 2) if given is None else float(given)
    if not 0 < level < math.inf:
        raise ValueError(
            f"{what}: {name} is {level:g}; it must be positive and finite. If schedule '{schedule.name}' ends in pure "
            f"noise, give {name}, or use a grid of times such as uniform or trailing."
        )
    if given is not None:
        time = float(schedule.time(-2 * math.log(level)))
        if not (-1e-6 < time < 1 + 1e-6) or abs(float(schedule.log_snr(time)) + 2 * math.log(level)) > 1e-2:
            raise ValueError(
                f"{what}: {name} is {level:g}, a noise level that schedule '{schedule.name}' does not have."
            )
    return level


def _at_indices(what, schedule, indices, train_steps, last=-1):
    if indices[0] >= train_steps or indices[-1] < 0:
        raise ValueError(
            f"{what}: the grid goes from step {indices[0]:g} to step {indices[-1]:g}; steps of this world are 0 to "
            f"{train_steps - 1}. Lower `offset`."
        )
    return checked(schedule, (np.append(indices, last) + 1) / train_steps)


def _check_steps(what, steps, most=None):
    if not (isinstance(steps, int | np.integer) and steps >= 1):
        raise ValueError(f"{what}: steps is {steps}; it must be a whole number, 1 or more.")
    if most is not None and steps > most:
        raise ValueError(f"{what}: steps is {steps}; a world of {most} steps has at most that many. Lower it.")


def _beta_quantile(p, a, b):
    """Invert the regularised incomplete beta function, each tail from its own end."""
    half = _beta_tail(np.asarray(0.5), a, b)
    lower, upper = _tail_quantile(np.minimum(p, half), a, b), _tail_quantile(np.minimum(1 - p, 1 - half), b, a)
    return np.where(p <= half, lower, 1 - upper)


def _tail_quantile(p, a, b):
    low, high = np.zeros_like(p), np.full_like(p, 0.5)
    for _ in range(64):
        middle = (low + high) / 2
        below = _beta_tail(middle, a, b) < p
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _beta_tail(x, a, b):
    """I_x(a, b) for x <= 1/2 by its power series, sum_n (1 - b)_n x^(n + a) / (n! (n + a) B(a, b))."""
    term, total = np.ones_like(x), np.zeros_like(x)
    for n in range(60):
        total = total + term / (n + a)
        term = term * x * (n + 1 - b) / (n + 1)
    return total * x**a * math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b))


GRIDS = {
    "uniform": uniform,
    "karras": karras,
    "uniform_log_snr": uniform_log_snr,
    "exponential": exponential,
    "quadratic": quadratic,
    "beta": beta,
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
}
