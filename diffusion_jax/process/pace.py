"""The same path at another pace.

A path says which mixtures of data and noise are met; its pace says when. With a rising map w of [0, 1] onto itself,

    alpha'(t) = alpha(w(t)),      sigma'(t) = sigma(w(t)),      log_snr'(t) = log_snr(w(t)).                (1)

`shift` takes the Moebius map that keeps both ends and multiplies the odds t / (1 - t) by a factor f,

    w(t) = f t / (f t + 1 - t),      with inverse the same map for 1 / f,                                  (2)

which on the rectified path is exactly log_snr' = log_snr - 2 log f (Esser et al. 2024, Eq. 23). `shift_log_snr` has
that shift on every path (Hoogeboom et al. 2023): a factor f on the noise against the data, what an image f times as
wide needs. On a variance-preserving path

    alpha' = alpha / S,      sigma' = f sigma / S,      S^2 = alpha^2 + f^2 sigma^2,                        (3)

which reaches beyond its noisy end. `zero_terminal` (Lin et al. 2024) changes a variance-preserving path so that it ends
in pure noise. With A the old alpha(1), and 1 - alpha = sigma^2 / (1 + alpha) so that nothing cancels at t = 0,

    alpha' = (alpha - A) / (1 - A),      sigma'^2 = sigma^2 (1 + alpha') / ((1 + alpha) (1 - A)).           (4)
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.naming import lookup
from diffusion_jax.process.schedule import derivative
from diffusion_jax.process.schedule import schedule as assemble
from diffusion_jax.types import Array, Schedule


def shift(schedule: Schedule, factor: float) -> Schedule:
    """Spend more time in noise (factor > 1) or near the data (factor < 1), Eq. (2)."""
    _positive("shift", factor=factor)
    if factor == 1:
        return schedule
    name = f"shift({schedule.name}, {factor:g})"
    return _retimed(schedule, name, lambda t: _odds(t, factor), lambda t: _odds(t, 1 / factor))


def shift_log_snr(schedule: Schedule, factor: float) -> Schedule:
    """Lower log-SNR by 2 log(factor) at every time: Eq. (3), or the point of the same path that has the new log-SNR."""
    _positive("shift_log_snr", factor=factor)
    if factor == 1:
        return schedule
    name = f"shift_log_snr({schedule.name}, {factor:g})"
    drop = 2 * math.log(factor)
    if _preserves_variance(schedule):
        (alpha, sigma), span = _rescaled(schedule, factor), schedule.span
    else:
        (alpha, sigma), span = _moved(schedule, drop), _span_on_path(schedule, drop)
        _check_on_path(schedule, alpha, sigma, drop, span)
    return assemble(
        name,
        alpha=alpha,
        sigma=sigma,
        log_snr=lambda t: schedule.log_snr(t) - drop,
        time=lambda log_snr: schedule.time(log_snr + drop),
        span=span,
    )


def resolution_shift(schedule: Schedule, *, pixels: int, base_pixels: int) -> Schedule:
    """Shift from images of `base_pixels` (height times width) to images of `pixels` (Esser et al. 2024, Eq. 23)."""
    _positive("resolution_shift", pixels=pixels, base_pixels=base_pixels)
    return shift(schedule, math.sqrt(pixels / base_pixels))


def sequence_shift(
    schedule: Schedule,
    *,
    tokens: int,
    base_tokens: int = 256,
    max_tokens: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    form: str = "exponential",
) -> Schedule:
    """Shift by a factor that grows with the number of tokens, as Flux does.

    mu is linear through (base_tokens, base_shift) and (max_tokens, max_shift); the factor is exp(mu), or mu for the
    form "linear".
    """
    _positive("sequence_shift", tokens=tokens)
    if not base_tokens < max_tokens:
        raise ValueError(
            f"sequence_shift: base_tokens is {base_tokens} and max_tokens {max_tokens}; it must be larger."
        )
    mu = base_shift + (max_shift - base_shift) * (tokens - base_tokens) / (max_tokens - base_tokens)
    return shift(schedule, lookup(_FORMS, form, "form of sequence_shift")(mu))


def truncate(schedule: Schedule, low: float = 0.0, high: float = 1.0) -> Schedule:
    """Spread the part of the path with t in [low, high] over [0, 1]."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"truncate: the part is [{low}, {high}]; it must be 0 <= low < high <= 1.")
    if (low, high) == (0, 1):
        return schedule
    name = f"truncate({schedule.name}, {low:g}, {high:g})"
    # Written as a mean, so that both ends are met exactly.
    return _retimed(schedule, name, lambda t: low * (1 - t) + high * t, lambda t: (t - low) / (high - low))


def zero_terminal(schedule: Schedule) -> Schedule:
    """Rescale a variance-preserving path so that alpha(1) is exactly 0, Eq. (4).

    Its span ends at 1, where log-SNR is -inf: pure noise is one of its times, so predictions must determine x0 there.
    A path that ends in pure noise already only has its span extended.
    """
    if not _preserves_variance(schedule):
        raise ValueError(
            f"zero_terminal: schedule '{schedule.name}' does not preserve variance (alpha^2 + sigma^2 = 1), which the "
            "rescaling needs. Use it on linear_beta, cosine, sigmoid, trigonometric, betas or alpha_bar."
        )

    if float(schedule.alpha(1.0)) == 0:
        return schedule._replace(span=(schedule.span[0], 1.0))

    def last(t):
        return schedule.alpha(jnp.ones_like(t))

    def alpha_of(t):
        value = (schedule.alpha(t) - last(t)) / (1 - last(t))
        # A compiler may fold alpha(1) with another rounding: make t = 1 exact and leave the derivative.
        return value - jax.lax.stop_gradient(jnp.where(t >= 1, value, 0))

    def sigma_of(t):
        return schedule.sigma(t) * jnp.sqrt((1 + alpha_of(t)) / ((1 + schedule.alpha(t)) * (1 - last(t))))

    def time(log_snr):
        end, new = last(log_snr), jnp.sqrt(jax.nn.sigmoid(log_snr))
        alpha, removed = end + new * (1 - end), (1 - end) * jax.nn.sigmoid(-log_snr) / (1 + new)
        old = 2 * jnp.log(alpha) - jnp.log(removed * (1 + alpha))
        return jnp.minimum(schedule.time(old), 1)

    return assemble(
        f"zero_terminal({schedule.name})",
        alpha=alpha_of,
        sigma=sigma_of,
        log_snr=lambda t: 2 * (jnp.log(alpha_of(t)) - jnp.log(sigma_of(t))),
        time=time,
        span=(schedule.span[0], 1.0),
    )


def from_log_snr(
    log_snr: Callable[[Array], Array],
    *,
    inverse: Callable[[Array], Array] | None = None,
    span: tuple[float, float] = (0.0, 1.0),
    name: str = "from_log_snr",
) -> Schedule:
    """Make the variance-preserving path of any elementwise log-SNR that falls strictly and is finite on `span`.

    At t = 0 and t = 1 it may be infinite. Without `inverse`, times are found by bisection within the span.
    """
    path = assemble(
        name,
        alpha=lambda t: jnp.sqrt(jax.nn.sigmoid(log_snr(t))),
        sigma=lambda t: jnp.sqrt(jax.nn.sigmoid(-log_snr(t))),
        log_snr=log_snr,
        time=inverse or _bisection(log_snr, span),
        span=span,
    )
    _check_log_snr(path)
    return path


def _retimed(path, name, forward, back):
    """Eq. (1) with w = `forward`, whose inverse is `back`."""
    span = max(back(path.span[0]), 0.0), min(back(path.span[1]), 1.0)
    if not span[0] < span[1]:
        raise ValueError(f"{name}: what is left of '{path.name}' lies outside its span {path.span}; keep more of it.")
    return assemble(
        name,
        alpha=lambda t: path.alpha(forward(t)),
        sigma=lambda t: path.sigma(forward(t)),
        log_snr=lambda t: path.log_snr(forward(t)),
        time=lambda log_snr: back(path.time(log_snr)),
        span=span,
    )


def _odds(t, factor):
    # Both ends are met exactly, and 1 - t is the small number near t = 1.
    return factor * t / (factor * t + (1 - t))


def _rescaled(path, factor):
    """Alpha and sigma of Eq. (3)."""

    def both(t):
        alpha, sigma = path.alpha(t), factor * path.sigma(t)
        size = jnp.sqrt(alpha**2 + sigma**2)
        return alpha / size, sigma / size

    return (lambda t: both(t)[0]), (lambda t: both(t)[1])


def _moved(path, drop):
    """Alpha and sigma at the point of the path whose log-SNR is lower by `drop`."""

    def there(t):
        return path.time(path.log_snr(t) - drop)

    return (lambda t: path.alpha(there(t))), (lambda t: path.sigma(there(t)))


def _preserves_variance(path):
    t = np.linspace(0, 1, 17, dtype=np.float32)
    return bool(np.all(np.abs(np.asarray(path.alpha(t) ** 2 + path.sigma(t) ** 2) - 1) < 1e-4))


def _span_on_path(path, drop):
    """Keep the new times away from the ends of the old path where its log-SNR is infinite."""
    low, high = path.span
    if low > 0:
        low = max(low, float(path.time(path.log_snr(low) + drop)))
    if high < 1:
        high = min(high, float(path.time(path.log_snr(high) + drop)))
    return low, high


def _check_on_path(path, alpha, sigma, drop, span):
    for t in span:
        want = float(path.log_snr(t)) - drop
        got = 2 * math.log(float(alpha(t)) / float(sigma(t)))
        if abs(got - want) > 1e-2:
            raise ValueError(
                f"shift_log_snr: at t = {t:g} schedule '{path.name}' would need log-SNR {want:.4g}, which its path "
                "does not reach. Use `shift`, a factor nearer to 1, or a variance-preserving path."
            )


def _bisection(log_snr, span):
    """Invert a falling function: bisect, then one Newton step, which also carries the derivative."""

    def time(value):
        low, high = (jnp.full_like(value, end) for end in span)
        aim = jnp.clip(value, log_snr(high), log_snr(low))

        def halve(_, ends):
            middle = (ends[0] + ends[1]) / 2
            later = log_snr(middle) > aim
            return jnp.where(later, middle, ends[0]), jnp.where(later, ends[1], middle)

        low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
        found = jax.lax.stop_gradient((low + high) / 2)
        there, slope = jax.lax.stop_gradient(derivative(log_snr, found))
        return jnp.clip(found - (there - aim) / slope, *span)

    return time


def _check_log_snr(path):
    low, high = path.span
    if not 0 <= low < high <= 1:
        raise ValueError(f"{path.name}: span is {path.span}; it must be 0 <= low < high <= 1.")
    inner = np.asarray(path.log_snr(np.linspace(low, high, 33, dtype=np.float32)))
    if not (np.all(np.isfinite(inner)) and np.all(np.diff(inner) < 0)):
        raise ValueError(
            f"{path.name}: log_snr must be finite and fall strictly on the span {path.span}; it gave "
            f"{np.array2string(inner, threshold=6, precision=4)}. Give the span on which it does."
        )
    ends = np.asarray([form(t) for form in (path.alpha, path.sigma) for t in (0.0, 1.0)])
    if not np.all(np.isfinite(ends)):
        raise ValueError(
            f"{path.name}: log_snr is nan at t = 0 or t = 1; outside its span it must be finite or infinite."
        )
    middle = (low + high) / 2
    if abs(float(path.time(path.log_snr(middle))) - middle) > 1e-3:
        raise ValueError(
            f"{path.name}: inverse(log_snr(t)) is not t at t = {middle:g}; correct `inverse` or leave it out."
        )


def _positive(what, **values):
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{what}: {name} is {value}; it must be finite and greater than 0.")


_FORMS = {"exponential": math.exp, "linear": float}

PACES = {
    "shift": shift,
    "shift_log_snr": shift_log_snr,
    "resolution_shift": resolution_shift,
    "sequence_shift": sequence_shift,
    "truncate": truncate,
    "zero_terminal": zero_terminal,
}
