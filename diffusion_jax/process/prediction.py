"""What a network may predict, turned once into the pair (x0, eps), and back.

With x = alpha x0 + sigma eps known, each prediction fixes the pair by two linear equations:

    v        = alpha eps - sigma x0                 velocity = alpha' x0 + sigma' eps                       (1)
    score    = -eps / sigma                         F        = (x0 - c_skip x) / c_out  (EDM)               (2)

For (2) on any path, with S^2 = sigma^2 + alpha^2 sigma_data^2 (Karras et al. 2022, Table 1, in x / alpha):

    x0  = (alpha sigma_data^2 / S^2) x + (sigma sigma_data / S) F
    eps = (sigma / S^2) x - (alpha sigma_data / S) F                                                        (3)

`gain` is |d output / d eps| at fixed x: an error of size e in eps is one of size gain e in the prediction.
It is what turns the squared error in one space into that in another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.naming import choose
from diffusion_jax.process.schedule import ends_in_noise, wide
from diffusion_jax.types import Array, Estimate, LearnedEstimate, Rates, Schedule


class Prediction(NamedTuple):
    """A parameterisation: `decompose(output, x, rates)`, its inverse `compose(estimate, rates)`, and `gain(rates)`.

    `knows_data` says whether the prediction still determines x0 where alpha = 0.
    """

    name: str
    decompose: Callable[[Array, Array, Rates], Estimate | LearnedEstimate]
    compose: Callable[[Estimate, Rates], Array]
    gain: Callable[[Rates], Array]
    knows_data: bool = True


def decompose(kind: str | dict | Prediction, output: Array, x: Array, rates: Rates) -> Estimate | LearnedEstimate:
    """Turn a network's output at `x` into an estimate, in float32 or better."""
    x, output = x.astype(wide(x.dtype)), output.astype(wide(x.dtype))
    return choose(PREDICTIONS, kind, "prediction").decompose(output, x, rates)


def compose(kind: str | dict | Prediction, estimate: Estimate, rates: Rates) -> Array:
    """Express an estimate as the output of a network that predicts `kind`: also the target of its training."""
    return choose(PREDICTIONS, kind, "prediction").compose(estimate, rates)


def check_prediction(prediction: Prediction, schedule: Schedule) -> None:
    """Refuse a prediction that says nothing about the data at the noise end of a schedule that contains it."""
    if not prediction.knows_data and ends_in_noise(schedule):
        raise ValueError(
            f"prediction '{prediction.name}' on schedule '{schedule.name}', which ends in pure noise (alpha = 0): "
            f"there {prediction.name} does not determine x0. Predict v, x0, velocity or edm, or use a schedule "
            "without zero terminal SNR, such as truncate(schedule, 0, 0.999)."
        )


def eps() -> Prediction:
    """The noise (Ho et al. 2020)."""
    return Prediction(
        "eps",
        lambda output, x, r: Estimate((x - r.sigma * output) / r.alpha, output),
        lambda e, r: e.eps,
        lambda r: jnp.ones_like(r.sigma),
        knows_data=False,
    )


def x0() -> Prediction:
    """The data."""
    return Prediction(
        "x0",
        lambda output, x, r: Estimate(output, (x - r.alpha * output) / r.sigma),
        lambda e, r: e.x0,
        lambda r: r.sigma / r.alpha,
    )


def v() -> Prediction:
    """The angular velocity v = alpha eps - sigma x0 (Salimans & Ho 2022), on any path."""

    def decompose(output, x, r):
        square = r.alpha**2 + r.sigma**2
        return Estimate((r.alpha * x - r.sigma * output) / square, (r.sigma * x + r.alpha * output) / square)

    return Prediction(
        "v",
        decompose,
        lambda e, r: r.alpha * e.eps - r.sigma * e.x0,
        lambda r: (r.alpha**2 + r.sigma**2) / r.alpha,
    )


def score() -> Prediction:
    """The gradient of the log-density of x."""
    return Prediction(
        "score",
        lambda output, x, r: Estimate((x + r.sigma**2 * output) / r.alpha, -r.sigma * output),
        lambda e, r: -e.eps / r.sigma,
        lambda r: 1 / r.sigma,
        knows_data=False,
    )


def velocity() -> Prediction:
    """The velocity dx/dt of the path (Lipman et al. 2023); eps - x0 on the rectified one."""

    def decompose(output, x, r):
        turn = r.alpha * r.dsigma - r.sigma * r.dalpha
        return Estimate((r.dsigma * x - r.sigma * output) / turn, (r.alpha * output - r.dalpha * x) / turn)

    return Prediction(
        "velocity",
        decompose,
        lambda e, r: r.dalpha * e.x0 + r.dsigma * e.eps,
        lambda r: jnp.abs(r.dsigma - r.dalpha * r.sigma / r.alpha),
    )


def flow() -> Prediction:
    """eps - x0, whatever the path and its pace: the straight path's velocity before its time was shifted."""
    return Prediction(
        "flow",
        lambda output, x, r: Estimate(
            (x - r.sigma * output) / (r.alpha + r.sigma), (x + r.alpha * output) / (r.alpha + r.sigma)
        ),
        lambda e, r: e.eps - e.x0,
        lambda r: (r.alpha + r.sigma) / r.alpha,
    )


def edm(*, sigma_data: float = 0.5) -> Prediction:
    """EDM's F, Eq. (3); `precondition` scales the network's input to match."""
    if not sigma_data > 0:
        raise ValueError(f"edm: sigma_data is {sigma_data}; it is the data's standard deviation and must be positive.")

    def size(r):
        return jnp.sqrt(r.sigma**2 + (r.alpha * sigma_data) ** 2)

    def decompose(output, x, r):
        whole = size(r)
        signal, noise = r.alpha * sigma_data / whole, r.sigma / whole
        return Estimate(
            sigma_data * (signal * x / whole + noise * output),
            noise * x / whole - signal * output,
        )

    return Prediction(
        "edm",
        decompose,
        lambda e, r: (r.sigma * e.x0 / sigma_data - r.alpha * sigma_data * e.eps) / size(r),
        lambda r: size(r) / (r.alpha * sigma_data),
    )


def learned_variance(*, of: str | dict | Prediction = "eps") -> Prediction:
    """Twice the channels: a prediction `of` the mean and iDDPM's interpolation of the variance (2021, Eq. 15).

    The second half, in [-1, 1], becomes `LearnedEstimate.fraction` in [0, 1]. Composing gives the mean's half.
    """
    mean = choose(PREDICTIONS, of, "prediction")

    def decompose(output, x, r):
        if output.shape[-1] != 2 * x.shape[-1]:
            raise ValueError(
                f"learned_variance: the network gave {output.shape[-1]} channels for an x of {x.shape[-1]}; "
                f"it must give {2 * x.shape[-1]}."
            )
        value, spread = jnp.split(output, 2, axis=-1)
        estimate = mean.decompose(value, x, r)
        return LearnedEstimate(estimate.x0, estimate.eps, (spread + 1) / 2)

    return Prediction("learned_variance", decompose, mean.compose, mean.gain, mean.knows_data)


PREDICTIONS = {
    "eps": eps,
    "x0": x0,
    "v": v,
    "score": score,
    "velocity": velocity,
    "flow": flow,
    "edm": edm,
    "learned_variance": learned_variance,
}
