"""Averages of the parameters over training, each a weighted mean of all steps so far.

    average <- d(t) average + (1 - d(t)) params,        t = 1, 2, ... the number of steps taken.             (1)

The power function profile (Karras et al. 2024, Eq. 123 to 127) weighs step s of t by s^gamma:

    d(t) = (1 - 1/t)^(gamma + 1),        std = sqrt(gamma + 1) / ((gamma + 2) sqrt(gamma + 3)),              (2)

where std is the width of the profile as a share of the training so far. Snapshots of two such averages are enough to
make any other length afterwards: see `post_hoc`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Params


class Average(NamedTuple):
    """An average by its rule: `decay(t)` is d(t) of Eq. (1); `gamma` is that of a power profile, else None."""

    name: str
    decay: Callable[[Array], Array]
    gamma: float | None = None


def constant(*, decay: float = 0.9999) -> Average:
    """Forget at one rate; 0 keeps the newest parameters alone."""
    _check_decay("constant", decay)
    return Average("constant", lambda t: jnp.full_like(t, decay))


def warmup(*, decay: float = 0.9999, numerator: float = 1.0, denominator: float = 10.0) -> Average:
    """Forget fast at first: d(t) = min(decay, (numerator + t) / (denominator + t)), as TensorFlow's averages do."""
    _check_decay("warmup", decay)
    if not 0 <= numerator <= denominator:
        raise ValueError(
            f"warmup: numerator is {numerator} and denominator {denominator}; it must be 0 <= numerator <= denominator."
        )
    return Average("warmup", lambda t: jnp.minimum(decay, (numerator + t) / (denominator + t)))


def half_life(*, images: float, batch_size: int, ramp_up: float | None = 0.05) -> Average:
    """Halve an example's weight after `images` more, or `ramp_up` times those seen so far if fewer (as EDM's code)."""
    if not (images > 0 and batch_size > 0 and (ramp_up is None or ramp_up > 0)):
        raise ValueError(f"half_life: images, batch_size and ramp_up must be positive; got {images}, {batch_size}.")

    def decay(t):
        length = jnp.asarray(images, t.dtype)
        if ramp_up is not None:
            length = jnp.minimum(length, t * batch_size * ramp_up)
        return 0.5 ** (batch_size / length)

    return Average("half_life", decay)


def power(*, std: float = 0.05) -> Average:
    """Weigh step s by s^gamma, Eq. (2), with the profile's relative width `std`."""
    gamma = gamma_of(std)
    # (1 - 1/t)^(gamma + 1) by logarithms: in float32 1 - 1/t is 1 from t = 2^24 on.
    return Average("power", lambda t: jnp.exp((gamma + 1) * jnp.log1p(-1 / t)), gamma)


def gamma_of(std: float) -> float:
    """Solve Eq. (2) for gamma: the positive root of std^2 (g + 2)^2 (g + 3) = g + 1."""
    if not 0 < std < 1 / 12**0.5:
        raise ValueError(f"power: std is {std}; it must lie between 0 and 0.2887, the width of the plain mean.")
    # With v = std^-2: g^3 + 7 g^2 + (16 - v) g + (12 - v) = 0.
    v = std**-2
    roots = np.roots([1, 7, 16 - v, 12 - v])
    return float(roots.real.max())


def update(average: Average, kept: Params, params: Params, t: Array) -> Params:
    """Return the average after step `t` that led to `params`, Eq. (1), in float32 whatever the parameters are."""
    d = average.decay(t.astype(jnp.float32))
    return jax.tree.map(lambda a, p: a + (1 - d) * (p.astype(a.dtype) - a), kept, params)


def _check_decay(name, decay):
    if not 0 <= decay < 1:
        raise ValueError(f"{name}: decay is {decay}; it must be at least 0 and less than 1.")


AVERAGES = {"constant": constant, "warmup": warmup, "half_life": half_life, "power": power}
