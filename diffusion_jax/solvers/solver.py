"""The one loop of sampling, and what every step needs.

    x_T -> ... -> x_t -> x_s -> ... -> x_0        over one immutable grid of times.

A step receives t and s and derives neither. It works on x and the estimate (x0, eps) of the denoiser; solvers know
log-SNR as lambda = log(alpha / sigma), half of `log_snr`. Three rules hold for all of them:

 * the step onto sigma = 0 returns the denoised estimate, with one evaluation and no division;
 * the step away from alpha = 0 is the first-order one, since lambda is infinite there;
 * noise is keyed by the example's global index and the step's index, so no batching changes a sample.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from diffusion_jax.process.grid import check_row
from diffusion_jax.process.noise import advance, example_keys
from diffusion_jax.process.schedule import against, as_float, levels, wide
from diffusion_jax.types import Array, Denoiser, Interval, Key, Schedule, Solver, Time

Observer = Callable[[Array, Interval], Any]


def sample(
    denoise: Denoiser,
    solver: Solver,
    times: Any,
    x: Array,
    key: Key,
    *,
    indices: Any = None,
    observe: Observer | None = None,
) -> tuple[Array, Any]:
    """Carry `x` along `times` and return it with the trace: what `observe(x, interval)` said after each step.

    `x` is noise at times[0]; rising times run the other way, from data to noise. `indices` are the examples' global
    indices, 0, 1, 2, ... by default. The function is pure: jit it with whatever changes as an argument.
    """
    if solver.stochastic and _rises(times):
        raise ValueError(f"sample: {solver.name} adds noise on the way to data; only an ODE solver runs a rising grid.")
    times = checked_times(times)
    x = x.astype(wide(x.dtype))
    keys = example_keys(key, x.shape[0] if indices is None else indices)
    if keys.shape[0] != x.shape[0]:
        raise ValueError(f"sample: {keys.shape[0]} indices for a batch of {x.shape[0]}; give one for each example.")
    count = times.shape[0] - 1

    def body(carry, element):
        x, memory = carry
        t, s, index = element
        now = Interval(t, s, advance(keys, index), index, count)
        x, memory = solver.step(denoise, x, now, memory)
        return (x, memory), (observe(x, now) if observe else None)

    (x, _), trace = jax.lax.scan(body, (x, solver.init(x)), (times[:-1], times[1:], jnp.arange(count)))
    return x, trace


def encode(
    denoise: Denoiser, solver: Solver, times: Any, x0: Array, *, observe: Observer | None = None
) -> tuple[Array, Any]:
    """Carry data to noise along the falling grid `times` taken backwards: DDIM inversion, for any deterministic solver.

    The grid must end inside the schedule's span.
    """
    if solver.stochastic:
        raise ValueError(f"encode: {solver.name} adds fresh noise, so it cannot be run backwards; use an ODE solver.")
    if _rises(times):
        raise ValueError("encode: give the falling grid that sampling would use; it is taken backwards here.")
    if not isinstance(times, Tracer) and np.asarray(times)[-1] == 0:
        raise ValueError(
            "encode: the grid ends at t = 0, where x0 does not say what its noise is; end it inside the schedule's "
            "span, as in GRIDS['uniform'](schedule, steps, end=schedule.span[0])."
        )
    return sample(
        denoise, solver, jnp.flip(checked_times(times)), x0, jax.random.key(0), observe=observe
    )  # nothing is drawn


def evaluations(solver: Solver, times: Any, schedule: Schedule) -> int:
    """Count the denoiser calls that `solver` claims for a concrete grid.

    From alpha = 0 a solver in log-SNR makes its first step with one call, so there it may make fewer.
    """
    steps = len(times) - 1
    with jax.ensure_compile_time_eval():
        lands = float(schedule.sigma(np.asarray(times)[-1])) == 0.0
    opening = solver.opening[:steps]
    if lands and opening and len(opening) == steps:
        opening = (*opening[:-1], 1)
    return solver.evaluations * steps - (solver.evaluations - 1) * lands + sum(opening)


def progress(times: Any, *, label: str = "sampling") -> Observer:
    """Make an observer that draws a progress bar with its rate and end time."""
    from tqdm import tqdm  # a bar is the only thing that needs it

    bar = tqdm(total=len(times) - 1, desc=label, unit="step")

    def advance_bar(index):
        bar.n = int(index) + 1
        bar.refresh()
        if bar.n == bar.total:
            bar.close()

    def observe(x, now):
        # Depending on x keeps the bar behind the work.
        jax.debug.callback(lambda index, _: advance_bar(index), now.index, x.ravel()[0])

    return observe


def no_memory(x: Array) -> tuple[()]:
    """Start a solver that keeps nothing from step to step."""
    return ()


def first_order(schedule: Schedule, estimate: Any, s: Time, x: Array) -> Array:
    """Keep the estimate and move the clock to `s`: DDIM, and the exact step if the estimate were constant."""
    alpha, sigma = levels(schedule, s, x)
    return alpha * estimate.x0 + sigma * estimate.eps


def half_log_snr(schedule: Schedule, t: Time, x: Array) -> Array:
    """Return lambda = log(alpha / sigma), shaped against `x`; infinite at a clean or a pure-noise end."""
    return against(schedule.log_snr(t) / 2, x)


def regular(schedule: Schedule, now: Interval) -> Array:
    """Say whether lambda is finite at both ends of the interval."""
    ends = jnp.isfinite(schedule.log_snr(now.t)) & jnp.isfinite(schedule.log_snr(now.s))
    clean = (schedule.sigma(now.s) == 0) | (schedule.sigma(now.t) == 0)
    return jnp.all(ends & ~clean & (schedule.alpha(now.t) != 0) & (schedule.alpha(now.s) != 0))


def two_stages(denoise: Denoiser, x: Array, t: Time, then: Callable, both: Array) -> tuple[Any, Any]:
    """Evaluate at (x, t) and, if `both`, at the point `then(estimate) -> (x, t)`; else the second estimate is 0.

    A scan, so that the network is compiled once.
    """

    def stage(carry, index):
        x, t = carry
        estimate = when((index == 0) | both, lambda: denoise(x, t))
        x, t_next = then(estimate)
        return (x, jnp.asarray(t_next, t.dtype)), estimate

    _, estimates = jax.lax.scan(stage, (x, as_float(t)), jnp.arange(2))
    return jax.tree.map(lambda e: e[0], estimates), jax.tree.map(lambda e: e[1], estimates)


def when(flag: Array, compute: Callable[[], Any]) -> Any:
    """Compute if `flag`, else return zeros of the same structure without computing."""
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(compute))
    return jax.lax.cond(flag, compute, lambda: zeros)


def check_span(what: str, span: tuple[float, float] | None) -> None:
    """Refuse a span of times that does not run from data to noise within [0, 1]."""
    if span is not None and not 0 <= span[0] < span[1] <= 1:
        raise ValueError(f"{what}: span is {span}; it must be (early, late) with 0 <= early < late <= 1.")


def _rises(times):
    return not isinstance(times, Tracer) and np.ndim(times) == 1 and bool(np.asarray(times)[0] < np.asarray(times)[-1])


def checked_times(times: Any) -> Array:
    """Return a grid as an array, refusing what is wrong with one whose values are known."""
    if isinstance(times, Tracer):
        return as_float(times)
    check_row(np.asarray(times))
    return as_float(times)
