"""What a squared error is worth at each noise level.

A weighting is any function of log-SNR; it multiplies a squared error. The published ones were each stated for the
error of one quantity and keep that with them: `min_snr` weighs the error in x0 and `p2` the one in eps, whatever
the network predicts. The errors of one estimate are tied together by x = alpha x0 + sigma eps,

    |eps - eps'|^2 = SNR |x0 - x0'|^2 = (alpha / (alpha^2 + sigma^2))^2 |v - v'|^2,                           (1)

so each weighting can be moved to any space; `objective.exchange` does, for every prediction.

A weighting also says over what it is stated: over `time`, where the density of the times remains a part of the
objective, or over `log_snr`, where the objective is an integral over log-SNR whatever times are drawn,

    E_t[w(log_snr) |error|^2]                 or            integral of w(log_snr) |error|^2 d log_snr.       (2)

No weight overflows: all are finite at SNR = 0, at any SNR in float32, and at infinite SNR.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from diffusion_jax.losses.uncertainty import learned_uncertainty
from diffusion_jax.naming import choose
from diffusion_jax.types import Array, Params, Weighting

MEASURES = ("time", "log_snr")
LARGEST = 80.0  # a log-SNR beyond it is taken for it, whose exponential float32 still holds


class Published(NamedTuple):
    """A weighting and the error it was published for.

    `space` names the prediction whose squared error it multiplies; None is that of the network's own output.
    `measure` says over what it is stated, Eq. (2). `uncertainty(params, log_snr)`, if any, divides the loss further.
    """

    name: str
    space: Any
    of: Weighting
    measure: str = "time"
    uncertainty: Callable[[Params, Array], Array] | None = None

    def __call__(self, log_snr: Array) -> Array:
        """Evaluate the weight."""
        return self.of(log_snr)


def choose_weighting(spec: Any) -> Published:
    """Build a weighting from its name, a mapping, a `Published` one or any function of log-SNR."""
    weighting: Any = choose(WEIGHTINGS, spec, "weighting")
    if isinstance(weighting, Published):
        if weighting.measure not in MEASURES:
            raise ValueError(
                f"weighting '{weighting.name}': measure is '{weighting.measure}'; it must be {' or '.join(MEASURES)}."
            )
        return weighting
    if not callable(weighting):
        raise ValueError(f"weighting is {weighting!r}; it must be a name, a mapping or a function of log-SNR.")
    return Published(getattr(weighting, "__name__", "custom"), None, cast(Weighting, weighting))


def constant(*, value: float = 1.0) -> Published:
    """The same everywhere, in the loss's own space (L_simple of Ho et al. 2020, Eq. 14)."""
    _not_negative("constant", value=value)
    name = "constant" if value == 1 else f"constant(value={value:g})"
    return Published(name, None, lambda log_snr: jnp.full_like(log_snr, value))


def snr() -> Published:
    """SNR on x0, which is 1 on eps (Salimans & Ho 2022, Section 4)."""
    return Published("snr", "x0", _exp)


def truncated_snr() -> Published:
    """max(SNR, 1) on x0 (Salimans & Ho 2022, Section 4)."""
    return Published("truncated_snr", "x0", lambda log_snr: _exp(jnp.maximum(log_snr, 0)))


def min_snr(*, gamma: float = 5.0) -> Published:
    """min(SNR, gamma) on x0 (Hang et al. 2023)."""
    top = math.log(_positive("min_snr", gamma=gamma))
    return Published(f"min_snr(gamma={gamma:g})", "x0", lambda log_snr: jnp.exp(jnp.minimum(log_snr, top)))


def soft_min_snr(*, gamma: float = 5.0) -> Published:
    """SNR gamma / (SNR + gamma) on x0: min_snr without its corner (k-diffusion, with gamma = 1 / sigma_data^2)."""
    top = math.log(_positive("soft_min_snr", gamma=gamma))
    return Published(f"soft_min_snr(gamma={gamma:g})", "x0", lambda log_snr: gamma * jax.nn.sigmoid(log_snr - top))


def edm(*, sigma_data: float = 0.5) -> Published:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 on x0, s = sigma / alpha (Karras et al. 2022, Table 1); 1 on EDM's F."""
    least = 1 / _positive("edm", sigma_data=sigma_data) ** 2
    return Published(f"edm(sigma_data={sigma_data:g})", "x0", lambda log_snr: least + _exp(log_snr))


def p2(*, k: float = 1.0, gamma: float = 1.0) -> Published:
    """1 / (k + SNR)^gamma on eps (Choi et al. 2022, who state it for DDPM's loss)."""
    shift = math.log(_positive("p2", k=k))
    _not_negative("p2", gamma=gamma)
    # log(k + SNR), without SNR
    log_sum = lambda log_snr: shift + jax.nn.softplus(_capped(log_snr) - shift)  # noqa: E731
    return Published(f"p2(k={k:g}, gamma={gamma:g})", "eps", lambda log_snr: jnp.exp(-gamma * log_sum(log_snr)))


def sigmoid(*, bias: float = -1.0) -> Published:
    """sigmoid(bias - log_snr) on eps over log-SNR (Kingma & Gao 2023; Hoogeboom et al. 2024).

    It is their w, without the 1/2 of the bound; on x0 it reads exp(bias) sigmoid(log_snr - bias). Larger images want
    a smaller bias.
    """
    return Published(f"sigmoid(bias={bias:g})", "eps", lambda log_snr: jax.nn.sigmoid(bias - log_snr), "log_snr")


def vlb() -> Published:
    """1/2 on eps over log-SNR: the variational bound in nats (Kingma et al. 2021)."""
    return Published("vlb", "eps", lambda log_snr: jnp.full_like(log_snr, 0.5), "log_snr")


def learned(*, of: Any = "constant", uncertainty: Callable[[Params, Array], Array] = learned_uncertainty) -> Published:
    """Divide the weighting `of` by the loss it leaves at each noise level, as learned along with the network.

    See `losses.uncertainty`: `params["uncertainty"]` must be there from the start; `start_uncertainty()` makes it,
    and with channels=0 it is Kendall's single number. Another `uncertainty(params, log_snr)` may be given.
    """
    weighting = choose_weighting(of)
    return weighting._replace(name=f"learned({weighting.name})", uncertainty=uncertainty)


def _capped(log_snr):
    return jnp.minimum(log_snr, LARGEST)


def _exp(log_snr):
    return jnp.exp(_capped(log_snr))


def _positive(what, **value):
    ((name, number),) = value.items()
    if not number > 0:
        raise ValueError(f"weighting '{what}': {name} is {number}; it must be greater than 0.")
    return number


def _not_negative(what, **value):
    ((name, number),) = value.items()
    if not number >= 0:
        raise ValueError(f"weighting '{what}': {name} is {number}; it must not be negative.")


WEIGHTINGS = {
    "constant": constant,
    "snr": snr,
    "truncated_snr": truncated_snr,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "edm": edm,
    "p2": p2,
    "sigmoid": sigmoid,
    "vlb": vlb,
    "learned": learned,
}
