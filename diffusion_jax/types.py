"""The vocabulary every room speaks.

Time runs in [0, 1]: t = 0 is clean data, t = 1 is pure noise, and

    x_t = alpha(t) x0 + sigma(t) eps,        log_snr = 2 log(alpha / sigma).

Sampling goes from `t` to `s` with s < t.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Time: TypeAlias = Any  # a scalar, or one time per example: float32 or better
Key: TypeAlias = jax.Array  # one PRNG key, or one per example
Params: TypeAlias = Any
Batch: TypeAlias = dict[str, Any]
Metrics: TypeAlias = dict[str, Any]


class Schedule(NamedTuple):
    """A path from data to noise: four closed forms and the span of times on which all of them are finite."""

    name: str
    alpha: Callable[[Time], Array]
    sigma: Callable[[Time], Array]
    log_snr: Callable[[Time], Array]
    time: Callable[[Array], Array]  # the inverse of log_snr
    span: tuple[float, float]


class Rates(NamedTuple):
    """Coefficients of the path at one time and their time derivatives, shaped to broadcast against x."""

    alpha: Array
    sigma: Array
    dalpha: Array
    dsigma: Array


class Estimate(NamedTuple):
    """What a denoiser believes of x: the data in it and the noise in it; x = alpha x0 + sigma eps."""

    x0: Array
    eps: Array


class LearnedEstimate(NamedTuple):
    """An `Estimate` with the network's interpolation, in [0, 1], between the small and the large log-variance."""

    x0: Array
    eps: Array
    fraction: Array


class Interval(NamedTuple):
    """One element of the sampling scan: go from `t` to `s`; `key` holds one key per example.

    `index` of `count` says where in the grid it lies; a count of 0 means that nobody knows.
    """

    t: Array
    s: Array
    key: Key
    index: Any = 0
    count: int = 0


Denoiser: TypeAlias = Callable[[Array, Time], Any]  # (x, t) -> Estimate or LearnedEstimate
Step: TypeAlias = Callable[[Denoiser, Array, Interval, Any], tuple[Array, Any]]
Apply: TypeAlias = Callable[[Params, Array, Array, Any], Array]  # a network's (params, x, t, cond)
Weighting: TypeAlias = Callable[[Array], Array]  # of log-SNR
LossFn: TypeAlias = Callable[[Params, Batch, Key], tuple[Array, Metrics]]


class Solver(NamedTuple):
    """A step through reverse time and what it claims.

    `order` is the claimed order of convergence and `evaluations` the claimed calls of the denoiser in a step; a step
    onto sigma = 0 costs one call. Another solver's first steps cost `opening`, one number a step, beside. Tests measure
    all of them.
    """

    name: str
    order: int
    init: Callable[[Array], Any]
    step: Step
    evaluations: int = 1
    stochastic: bool = False
    opening: tuple[int, ...] = ()
