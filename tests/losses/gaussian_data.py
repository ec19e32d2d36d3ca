"""Gaussian data, whose best possible loss is known, and the published weightings in the words of their papers.

With x0 ~ N(mean, std^2), the posterior variance of eps is SNR std^2 / (1 + SNR std^2): what no network can undercut.
"""

import jax.numpy as jnp
import numpy as np

from diffusion_jax.process.oracle import gaussian
from diffusion_jax.process.prediction import PREDICTIONS, compose
from diffusion_jax.process.schedule import derivative, rates

STD = 0.6
DIMENSIONS = 4
DATA = gaussian(np.linspace(-0.5, 0.8, DIMENSIONS), STD)

# (weighting, keywords, the papers' formula of SNR, on which error, over what)
PUBLISHED = [
    ("constant", {}, lambda snr: np.ones_like(snr), None, "time"),
    ("constant", {"value": 3.0}, lambda snr: np.full_like(snr, 3.0), None, "time"),
    ("snr", {}, lambda snr: snr, "x0", "time"),
    ("truncated_snr", {}, lambda snr: np.maximum(snr, 1), "x0", "time"),
    ("min_snr", {}, lambda snr: np.minimum(snr, 5), "x0", "time"),
    ("min_snr", {"gamma": 1.5}, lambda snr: np.minimum(snr, 1.5), "x0", "time"),
    ("soft_min_snr", {"gamma": 4.0}, lambda snr: snr * 4 / (snr + 4), "x0", "time"),
    ("edm", {"sigma_data": 0.7}, lambda snr: (1 / snr + 0.49) / (0.49 / snr), "x0", "time"),
    ("p2", {}, lambda snr: 1 / (1 + snr), "eps", "time"),
    ("p2", {"k": 2.0, "gamma": 0.5}, lambda snr: 1 / np.sqrt(2 + snr), "eps", "time"),
    ("sigmoid", {"bias": -2.0}, lambda snr: 1 / (1 + snr * np.exp(2.0)), "eps", "log_snr"),
    ("vlb", {}, lambda snr: np.full_like(snr, 0.5), "eps", "log_snr"),
    ("learned", {"of": {"name": "min_snr", "gamma": 2.0}}, lambda snr: np.minimum(snr, 2), "x0", "time"),
]

# |d output / d eps| at fixed x
GAINS = {
    "eps": lambda alpha, sigma, dalpha, dsigma: 1,
    "x0": lambda alpha, sigma, dalpha, dsigma: sigma / alpha,
    "v": lambda alpha, sigma, dalpha, dsigma: alpha + sigma**2 / alpha,
    "score": lambda alpha, sigma, dalpha, dsigma: 1 / sigma,
    "velocity": lambda alpha, sigma, dalpha, dsigma: dsigma - dalpha * sigma / alpha,
    "flow": lambda alpha, sigma, dalpha, dsigma: 1 + sigma / alpha,
    "edm": lambda alpha, sigma, dalpha, dsigma: np.sqrt((sigma / alpha / 0.5) ** 2 + 1),
    "learned_variance": lambda alpha, sigma, dalpha, dsigma: 1,
}


def network(schedule, prediction, off=lambda log_snr: 0 * log_snr):
    """The best network for DATA, plus `off(log_snr)` in eps and params["bias"] in its own output."""
    kind, denoise = PREDICTIONS[prediction](), DATA.denoiser(schedule)

    def apply(params, x, t, cond):
        estimate, r = denoise(x, t), rates(schedule, t, x)
        error = off(schedule.log_snr(t))[:, None]
        estimate = estimate._replace(x0=estimate.x0 - r.sigma / r.alpha * error, eps=estimate.eps + error)
        mean = compose(kind, estimate, r) + params["bias"][None]
        return jnp.concatenate([mean, mean], -1) if prediction == "learned_variance" else mean

    return apply


def best_loss(schedule, prediction, row, times, u):
    """At the times with quantiles `u`: what an example adds to the loss, and the factor on its squared error."""
    _, _, formula, space, measure = row
    t = times.quantile(schedule, jnp.asarray(u, jnp.float32))
    log_snr, slope = derivative(schedule.log_snr, t)
    coefficients = [np.asarray(value, np.float64) for value in rates(schedule, t, t)]
    own = GAINS[prediction](*coefficients)
    snr = np.exp(np.asarray(log_snr, np.float64))
    weight = formula(snr) * (GAINS[space or prediction](*coefficients) / own) ** 2
    if measure == "log_snr":
        weight = weight * -np.asarray(slope, np.float64) / np.asarray(times.density(schedule, t), np.float64)
    elif times.target is not None:
        weight = weight * np.asarray(times.target(schedule, t) / times.density(schedule, t), np.float64)
    return weight * own**2 * snr * STD**2 / (1 + snr * STD**2), weight
