"""Guidance: more of what tells a conditional denoiser c from an unconditional u.

    u + scale (c - u)                                               (Ho & Salimans 2022)                       (1)

Scale 1 is the conditional model and 0 the unconditional one; papers that write (1 + w) c - w u mean scale = 1 + w.
(1) holds for x0, eps and every prediction alike, since each is linear in the others at fixed x. Whatever else an
estimate carries is the conditional's. Scales are numbers, one for all or one per example, and may be traced.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from diffusion_jax.denoisers.network import Half
from diffusion_jax.denoisers.threshold import shifted
from diffusion_jax.process.schedule import against, as_float, rates_within
from diffusion_jax.types import Array, Denoiser, Schedule, Time


def classifier_free(conditional: Denoiser, unconditional: Denoiser, scale: Any) -> Denoiser:
    """Guide without a classifier, Eq. (1)."""
    return _straight("classifier_free", conditional, unconditional, scale)


def rescaled(
    conditional: Denoiser, unconditional: Denoiser, scale: Any, *, schedule: Schedule, mix: float = 0.7
) -> Denoiser:
    """Give (1), on x0, the conditional's standard deviation over each example, by the share `mix` (Lin et al. 2024)."""
    pair = _pair("rescaled", conditional, unconditional, scale)
    if not 0 <= mix <= 1:
        raise ValueError(f"rescaled: mix is {mix}; it must be in [0, 1]: 0 is classifier_free, 1 the full rescaling.")

    def denoise(x, t):
        c, u = pair(x, t)
        guided = _extrapolate(c, u, scale)
        ratio = _quotient(_spread(c.x0), _spread(guided.x0), otherwise=1.0)
        # At scale 1 the ratio is 1 but for how the compiler sums.
        excess = jnp.where(against(jnp.asarray(scale), x) == 1, 0.0, mix * (ratio - 1))
        return shifted(guided, excess * guided.x0, schedule, t)

    return denoise


def projected(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Any,
    *,
    schedule: Schedule,
    parallel: float = 0.0,
    limit: float | None = None,
) -> Denoiser:
    """Keep only the share `parallel` of the part of c - u along c, on x0 (APG, Sadat et al. 2024, Algorithm 1).

    `limit` bounds the norm of each example's c - u. The paper's third part, momentum between steps, is left out: a
    denoiser remembers nothing. `parallel=1` is classifier_free.
    """
    pair = _pair("projected", conditional, unconditional, scale)
    if limit is not None and not limit > 0:
        raise ValueError(
            f"projected: limit is {limit}; it bounds a norm: give a positive number, or None for no bound."
        )

    def denoise(x, t):
        c, u = pair(x, t)
        difference = c.x0 - u.x0
        if limit is not None:
            difference *= limit / jnp.sqrt(jnp.maximum(_inner(difference, difference), limit**2))
        along = _quotient(_inner(difference, c.x0), _inner(c.x0, c.x0), otherwise=0.0) * c.x0
        change = difference - (1 - parallel) * along
        return shifted(c, (against(jnp.asarray(scale), x) - 1) * change, schedule, t)

    return denoise


def zero_star(
    conditional: Denoiser, unconditional: Denoiser, scale: Any, *, schedule: Schedule, zero_above: float = 1.0
) -> Denoiser:
    """Guide velocities from the best multiple of the unconditional one (CFG-Zero*, Fan et al. 2025, Algorithm 1).

    With a = <c, u> / <u, u> for each example: a u + scale (c - a u), and no velocity at all where t > `zero_above`.
    Where a rate of the path is infinite, at an end, that of the span's end stands in.
    """
    pair = _pair("zero_star", conditional, unconditional, scale)
    if not 0 < zero_above <= 1:
        raise ValueError(f"zero_star: zero_above is {zero_above}; it is a time in (0, 1], and 1 sets nothing to zero.")

    def denoise(x, t):
        c, u = pair(x, t)
        t, r = as_float(t), rates_within(schedule, t, x)
        of_c, of_u = (r.dalpha * e.x0 + r.dsigma * e.eps for e in (c, u))
        best = _quotient(_inner(of_c, of_u), _inner(of_u, of_u), otherwise=0.0) * of_u
        change = (against(jnp.asarray(scale), x) - 1) * (of_c - best)
        change = jnp.where(against(t, x) > zero_above, -of_c, change)
        # At fixed x, alpha dx0 + sigma deps = 0 while alpha' dx0 + sigma' deps is the change of velocity.
        change = change / (r.alpha * r.dsigma - r.sigma * r.dalpha)
        return c._replace(x0=c.x0 - r.sigma * change, eps=c.eps + r.alpha * change)

    return denoise


def autoguidance(denoise: Denoiser, weak: Denoiser, scale: Any) -> Denoiser:
    """Guide a model by a worse one under the same condition: Eq. (1) with u = weak (Karras et al. 2024)."""
    return _straight("autoguidance", denoise, weak, scale)


def within(guided: Denoiser, plain: Denoiser, interval: Sequence[float]) -> Denoiser:
    """Guide only where low <= t <= high, t being that of the evaluation itself (Kynkaanniemi et al. 2024).

    With one time for all examples only one of the two denoisers is evaluated.
    """
    low, high = _checked(interval)

    def denoise(x, t):
        t = as_float(t)
        inside = (low <= t) & (t <= high)
        if not t.ndim:
            return jax.lax.cond(inside, guided, plain, x, t)
        return jax.tree.map(lambda g, p: jnp.where(_rows(inside, g), g, p), guided(x, t), plain(x, t))

    return denoise


def _straight(what, conditional, unconditional, scale):
    pair = _pair(what, conditional, unconditional, scale)

    def denoise(x, t):
        c, u = pair(x, t)
        return _extrapolate(c, u, scale)

    return denoise


def _pair(what, conditional, unconditional, scale) -> Callable[[Array, Time], Any]:
    """Check the parts of a guidance and return (x, t) -> (c, u), in one call if the two denoisers share one."""
    if unconditional is None or conditional is None:
        missing = "unconditional" if unconditional is None else "conditional"
        raise ValueError(
            f"{what}: a guidance scale without a second model: {missing} is None. Give the denoiser under the null "
            "condition (or, for autoguidance, a weaker model), or use the one denoiser as it is, without guidance."
        )
    known = not isinstance(scale, Tracer)
    if scale is None or np.ndim(scale) > 1 or (known and not np.all(np.isfinite(np.asarray(scale, np.float64)))):
        raise ValueError(
            f"{what}: scale is {scale}; it must be a number, or one for each example: 1 is the conditional model, "
            "more is guidance."
        )
    if isinstance(conditional, Half) and isinstance(unconditional, Half) and conditional.both is unconditional.both:

        def shared(x, t):
            estimates = conditional.both(x, t)
            return estimates[conditional.which], estimates[unconditional.which]

        return shared
    return lambda x, t: (conditional(x, t), unconditional(x, t))


def _extrapolate(c, u, scale):
    def part(c, u):
        by = against(jnp.asarray(scale), c)
        # u + (c - u) is not c in floating point
        return jnp.where(by == 1, c, u + by * (c - u))

    return c._replace(x0=part(c.x0, u.x0), eps=part(c.eps, u.eps))


def _inner(a, b):
    """Each example's inner product, shaped against the examples."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdims=True)


def _spread(value):
    return value.std(tuple(range(1, value.ndim)), keepdims=True)


def _quotient(top, bottom, otherwise):
    """Divide, or give `otherwise` where `bottom` is 0."""
    return jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1.0), otherwise)


def _rows(mask, value):
    return mask.reshape(mask.shape + (1,) * (value.ndim - 1))


def _checked(interval):
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        raise ValueError(f"within: interval is {interval}; it must be two times, (low, high).") from None
    if not 0 <= low < high <= 1:
        raise ValueError(f"within: interval is ({low}, {high}); it must be times with 0 <= low < high <= 1.")
    return low, high


GUIDANCE = {
    "classifier_free": classifier_free,
    "rescaled": rescaled,
    "projected": projected,
    "zero_star": zero_star,
    "autoguidance": autoguidance,
}
