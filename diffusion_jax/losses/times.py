"""At which times a network is trained.

A density on the schedule's span is given by its quantile function, so that any of them can be drawn independently or
stratified: example i draws u_i in (0, 1) and is trained at t = quantile(u_i), with

    independent: u_i keyed by i,                stratified: u_i = (u_0 + i / B) mod 1                        (1)

over the global batch of B examples (Kingma et al. 2021). Densities known on a wider range, with distribution
function F of a coordinate y that rises with t, are cut to the span [a, b] and renormalised:

    quantile(u) = F^-1(F(a) + u (F(b) - F(a))),        density(t) = F'(y) (dy/dt) / (F(b) - F(a))            (2)

The coordinate is t itself, or the logarithm of the noise level s = sigma / alpha, -log_snr / 2.

Times may be drawn from one density and count as drawn from another, their `target`: the importance weight is
target / density, and the expectation of the loss is that of the target.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.scipy.stats import norm

from diffusion_jax.losses.history import History, bin_of, probabilities
from diffusion_jax.naming import choose
from diffusion_jax.process.noise import example_keys
from diffusion_jax.process.schedule import derivative
from diffusion_jax.types import Array, Key, Schedule

OfTime = Callable[[Schedule, Array], Array]


class Times(NamedTuple):
    """A density of times: `quantile(schedule, u)`, `density(schedule, t)`, and how the `numbers` u are drawn.

    `target` is the density the times count as, where it is another; `given` makes the density from a `History`,
    where it depends on one.
    """

    name: str
    quantile: OfTime
    density: OfTime
    numbers: Callable[[Key, Array, int, Any], Array]
    target: OfTime | None = None
    given: Callable[[History], "Times"] | None = None


def draw_times(times: Times, schedule: Schedule, key: Key, index: Array, *, total: int, dtype: Any) -> Array:
    """Draw one time for each example, `index` being its place in the global batch of `total`."""
    u = times.numbers(key, index, total, dtype)
    half = float(jnp.finfo(dtype).eps) / 2  # never 0 or 1, where unbounded densities have no quantile
    return times.quantile(schedule, jnp.clip(u, half, 1 - half))


def target_density(times: Times, schedule: Schedule, t: Array) -> Array:
    """Evaluate the density that the loss is an expectation over."""
    return (times.target or times.density)(schedule, t)


def importance_weight(times: Times, schedule: Schedule, t: Array) -> Array:
    """Evaluate target / density: exactly 1 where the two are one."""
    if times.target is None:
        return jnp.ones_like(t)
    return times.target(schedule, t) / times.density(schedule, t)


def settle(times: Times, history: History | None) -> Times:
    """Return times that no longer depend on a history, having been given it."""
    if times.given is None:
        return times
    if history is None:
        raise ValueError(
            f"times '{times.name}' adapt to past losses, but the batch has no 'history': put start_history(schedule) "
            "there at the first step, and metrics['history'] of each step at the next."
        )
    settled = times.given(history)
    return times._replace(quantile=settled.quantile, density=settled.density, given=None)


def uniform() -> Times:
    """Every time alike."""
    return _cut("uniform", lambda t: t, lambda u: u, jnp.ones_like)


def steps(*, count: int = 1000) -> Times:
    """The times i / count of a chain's steps i = 1 ... count, every one alike; they count as uniform."""
    if not (isinstance(count, int) and count >= 1):
        raise ValueError(f"times 'steps': count is {count}; it must be a whole number of at least 1.")

    def quantile(schedule, u):
        low, high = schedule.span
        first, last = max(math.ceil(low * count - 1e-6), 1), math.floor(high * count + 1e-6)
        return jnp.clip((first + jnp.floor(u * (last - first + 1))) / count, low, high)

    return uniform()._replace(name=f"steps({count})", quantile=quantile)


def stratified(*, of: Any = "uniform") -> Times:
    """Spread the draws `of` another density evenly over the global batch, Eq. (1): the same loss, less noise."""
    times = choose(TIMES, of, "times")
    return times._replace(name=f"stratified({times.name})", numbers=_spread)


def logit_normal(*, mean: float = 0.0, std: float = 1.0) -> Times:
    """logit(t) is normal (Esser et al. 2024, Section 3.1); a mean above 0 favours noisy times."""
    _positive("logit_normal", std=std)

    def inside(t):
        return jnp.clip(t, 1e-7, 1 - 1e-7)

    def standard(t):
        return (jnp.log(inside(t)) - jnp.log1p(-inside(t)) - mean) / std

    return _cut(
        f"logit_normal(mean={mean:g}, std={std:g})",
        lambda t: ndtr(standard(t)),
        lambda u: jax.nn.sigmoid(mean + std * ndtri(u)),
        lambda t: norm.pdf(standard(t)) / (std * inside(t) * (1 - inside(t))),
    )


def log_normal_sigma(*, mean: float = -1.2, std: float = 1.2) -> Times:
    """log(sigma / alpha) is normal (Karras et al. 2022, Table 1), on any path."""
    _positive("log_normal_sigma", std=std)
    return _cut(
        f"log_normal_sigma(mean={mean:g}, std={std:g})",
        lambda y: ndtr((y - mean) / std),
        lambda u: mean + std * ndtri(u),
        lambda y: norm.pdf((y - mean) / std) / std,
        of=(_log_noise, _at_log_noise),
    )


def uniform_log_snr() -> Times:
    """Every log-SNR of the span alike."""
    return _cut("uniform_log_snr", lambda y: y, lambda u: u, jnp.ones_like, of=(_log_noise, _at_log_noise))


def mode(*, scale: float = 1.29) -> Times:
    """The quantile function u - scale (sin^2(pi u / 2) - u), heavier in the middle (Esser et al. 2024, Section 3.1).

    `scale` in [-1, 2 / (pi - 2)]: there the function rises; 0 is uniform and below 0 the ends are favoured.
    """
    if not -1 <= scale <= 2 / (jnp.pi - 2):
        raise ValueError(f"times 'mode': scale is {scale}; it must be in [-1, {2 / (jnp.pi - 2):.4f}].")

    def cdf(t):
        return _mode_cdf(t, jnp.asarray(scale, t.dtype))

    def density(t):
        return 1 / (1 + scale - scale * jnp.pi / 2 * jnp.sin(jnp.pi * cdf(t)))

    return _cut(f"mode(scale={scale:g})", cdf, lambda u: _mode_quantile(u, scale), density)


def cosmap() -> Times:
    """The times at which the straight path has the log-SNR of the cosine one (Esser et al. 2024, Section 3.1)."""
    return _cut(
        "cosmap",
        lambda t: 2 / jnp.pi * jnp.arctan2(t, 1 - t),
        lambda u: 1 / (1 + jnp.tan(jnp.pi / 2 * (1 - u))),
        lambda t: 2 / (jnp.pi * (1 - 2 * t * (1 - t))),
    )


def importance(*, of: Any, target: Any = "uniform") -> Times:
    """Draw from one density and count as another: the loss of `target`, with the noise of `of`."""
    times, wanted = choose(TIMES, of, "times"), choose(TIMES, target, "times")
    if wanted.given is not None:
        raise ValueError(f"times 'importance': the target '{wanted.name}' depends on past losses; give another.")
    wanted_density = wanted.target or wanted.density
    return times._replace(name=f"importance({times.name}, {wanted.name})", target=wanted_density)


def loss_adaptive(*, floor: float = 0.001) -> Times:
    """Draw times in proportion to the root mean square of their recent losses, counted as uniform.

    Nichol & Dhariwal 2021, Eq. 18; see `losses.history` for the state it needs. `floor` is the uniform share.
    """
    if not 0 < floor <= 1:
        raise ValueError(f"times 'loss_adaptive': floor is {floor}; it must be in (0, 1], so that no time is lost.")

    def given(history):
        share = probabilities(history, floor=floor)
        bins = share.shape[0]
        total = jnp.cumsum(share)

        def quantile(schedule, u):
            start = jnp.zeros(1, u.dtype)
            heights = jnp.concatenate([start, (total / total[-1]).astype(u.dtype)])
            return jnp.clip(jnp.interp(u, heights, history.edges.astype(u.dtype)), *schedule.span)

        def density(schedule, t):
            return share.astype(t.dtype)[bin_of(history, t)] * bins / (schedule.span[1] - schedule.span[0])

        return Times("loss_adaptive", quantile, density, _independent)

    def unknown(schedule, value):
        raise ValueError("times 'loss_adaptive' draw from a history: settle(times, history) gives the density.")

    return Times("loss_adaptive", unknown, unknown, _independent, uniform().density, given)


def _cut(name, cdf, inverse, density, of=None):
    """Cut a distribution of the coordinate `of` = (forth, back) to the span, Eq. (2)."""
    forth, back = of or (lambda schedule, t: t, lambda schedule, y: y)

    def limits(schedule, like):
        return (cdf(forth(schedule, jnp.asarray(end, like.dtype))) for end in schedule.span)

    def quantile(schedule, u):
        low, high = limits(schedule, u)
        return jnp.clip(back(schedule, inverse(low + u * (high - low))), *schedule.span)

    def density_of_time(schedule, t):
        low, high = limits(schedule, t)
        y, dy = derivative(lambda t: forth(schedule, t), t)
        return density(y) * dy / (high - low)

    return Times(name, quantile, density_of_time, _independent)


def _log_noise(schedule, t):
    return -schedule.log_snr(t) / 2


def _at_log_noise(schedule, y):
    return schedule.time(-2 * y)


def _independent(key, index, total, dtype):
    return jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(example_keys(key, index))


def _spread(key, index, total, dtype):
    return (jax.random.uniform(key, (), dtype) + (index % total).astype(dtype) / total) % 1


def _mode_quantile(u, scale):
    return u - scale * (jnp.sin(jnp.pi / 2 * u) ** 2 - u)


@jax.jit
def _mode_cdf(t, scale):
    """Invert `_mode_quantile` by bisection, which its flat places do not trouble."""

    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        below = _mode_quantile(middle, scale) < t
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    return sum(jax.lax.fori_loop(0, 54, halve, (jnp.zeros_like(t), jnp.ones_like(t)))) / 2


def _positive(what, **value):
    ((name, number),) = value.items()
    if not number > 0:
        raise ValueError(f"times '{what}': {name} is {number}; it must be greater than 0.")


TIMES = {
    "uniform": uniform,
    "steps": steps,
    "stratified": stratified,
    "logit_normal": logit_normal,
    "log_normal_sigma": log_normal_sigma,
    "mode": mode,
    "cosmap": cosmap,
    "uniform_log_snr": uniform_log_snr,
    "loss_adaptive": loss_adaptive,
    "importance": importance,
}
