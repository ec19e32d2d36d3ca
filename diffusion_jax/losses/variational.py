"""The hybrid loss of a learned variance (Nichol & Dhariwal 2021, Section 3.1).

Over the chain of T steps from t = i / T to s = (i - 1) / T, i = 1 ... T,

    L = L_simple + weight L_vlb,        L_vlb = T E_i[L_i],                                                  (1)
    L_i = KL(q(x_s | x_t, x0) || N(mean, std^2)),        L_1 = -log P(x0 | x_1),                             (2)

with L_vlb in bits per dimension, without the term of pure noise, which has nothing to learn. `mean` is the posterior's
for the network's estimate, with its gradient stopped, so that L_vlb trains the variance alone. The variance lies
between that of the posterior (small) and of the one-step transition (large), Eq. (15) of the paper:

    log std^2 = fraction log large^2 + (1 - fraction) log small^2.                                           (3)

At the first step the posterior has no variance; the second step's stands in for it, as in the published code.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.losses.denoising import read_batch, squared_error, with_dropout
from diffusion_jax.naming import choose
from diffusion_jax.process.forward import add_noise, posterior, transition
from diffusion_jax.process.gaussian import discretised_log_likelihood, kl_log_variance
from diffusion_jax.process.noise import example_keys, normal_like
from diffusion_jax.process.prediction import PREDICTIONS, check_prediction, compose, decompose, learned_variance
from diffusion_jax.process.schedule import against, rates
from diffusion_jax.types import Apply, Array, Estimate, LearnedEstimate, LossFn, Schedule

FLOOR = 1e-6  # a decoder narrower than this is certain of its bin, and its density leaves float32


def hybrid_loss(
    apply: Apply,
    schedule: Schedule,
    *,
    steps: int,
    prediction: Any = "eps",
    vlb_weight: float = 1e-3,
    levels: int = 256,
) -> LossFn:
    """Return loss(params, batch, key) -> (loss, metrics), Eq. (1), for a network with twice the channels of x.

    `prediction` is that of the mean; `levels` are the values a channel of the data can take in [-1, 1]. The batch is
    that of `denoising_loss`. Metrics: `loss`; `mse`, which is L_simple; and `vlb`, L_vlb.
    """
    if steps < 2:
        raise ValueError(f"hybrid_loss: steps is {steps}; the chain needs at least 2.")
    schedule = schedule._replace(span=(schedule.span[0], 1.0))  # the chain starts at pure noise
    kind = choose(PREDICTIONS, prediction, "prediction")
    kind = kind if kind.name == "learned_variance" else learned_variance(of=kind)
    check_prediction(kind, schedule)

    def loss_fn(params, batch, key):
        x0, index = read_batch(batch)
        step_key, noise_key, dropout_key = jax.random.split(key, 3)
        draw = lambda key: jax.random.randint(key, (), 1, steps + 1)  # noqa: E731
        step = jax.vmap(draw)(example_keys(step_key, index))
        t = step.astype(x0.dtype) / steps
        eps = normal_like(example_keys(noise_key, index), x0)
        x = add_noise(schedule, x0, eps, t)
        r = rates(schedule, t, x)
        output = apply(params, x, t, with_dropout(batch, dropout_key, index))
        mse = squared_error(kind, output, compose(kind, Estimate(x0, eps), r)).mean()
        estimate: Any = decompose(kind, output, x, r)
        fixed = LearnedEstimate(*jax.lax.stop_gradient((estimate.x0, estimate.eps)), estimate.fraction)
        terms = chain_terms(schedule, fixed, Estimate(x0, eps), x, step, steps=steps, levels=levels)
        vlb = steps * terms.mean()
        loss = mse + vlb_weight * vlb
        return loss, {"loss": loss, "mse": mse, "vlb": vlb}

    return loss_fn


def chain_terms(
    schedule: Schedule,
    estimate: LearnedEstimate,
    truth: Estimate,
    x: Array,
    step: Array,
    *,
    steps: int,
    levels: int = 256,
) -> Array:
    """Return L_i of Eq. (2) in bits per dimension for each example of `x`, at step i = `step` of 1 ... steps."""
    dtype = x.dtype
    t, s = step.astype(dtype) / steps, (step - 1).astype(dtype) / steps
    first = against((step == 1).astype(dtype), x) > 0
    # The mean is linear in the estimate, so its error is that of the estimate's and needs no difference of means.
    error = Estimate(truth.x0 - estimate.x0, truth.eps - estimate.eps)
    away, small = posterior(schedule, error, x, t, s)
    _, second = posterior(schedule, truth, x, jnp.asarray(2 / steps, dtype), jnp.asarray(1 / steps, dtype))
    away, small = jnp.where(first, 0, away), jnp.where(first, second, small)
    low, high = 2 * jnp.log(small), 2 * jnp.log(transition(schedule, x, s, t)[1])
    log_variance = estimate.fraction * high + (1 - estimate.fraction) * low
    std = jnp.maximum(jnp.exp(log_variance / 2), FLOOR)
    decoder = -discretised_log_likelihood(truth.x0, estimate.x0, std, levels=levels)
    term = jnp.where(first, decoder, kl_log_variance(away, low, jnp.zeros_like(x), log_variance))
    return term.reshape(term.shape[0], -1).mean(1) / math.log(2)
