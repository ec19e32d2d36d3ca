"""The denoising loss: one for every path, prediction, weighting, space and density of times.

    L = E_t,x0,eps [ m(t) mean_d (output - target)^2 ],        target = compose(prediction, (x0, eps)),       (1)

with x = alpha x0 + sigma eps and m the factor of `objective.multiplier`. The error is taken in the network's own
output space, where nothing is divided back, and the weighting moved there. With a learned uncertainty u and the
importance weight r of the times, each example counts r (m error / exp(u) + u).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.losses.history import update_history
from diffusion_jax.losses.objective import Objective, check, multiplier, support
from diffusion_jax.losses.times import draw_times, importance_weight, settle
from diffusion_jax.process.forward import add_noise
from diffusion_jax.process.noise import example_keys, normal_like
from diffusion_jax.process.prediction import Prediction, compose
from diffusion_jax.process.schedule import as_float, rates
from diffusion_jax.types import Apply, Array, Batch, Estimate, Key, LossFn, Metrics, Params, Schedule

WIDEST = 20.0  # bins of log-SNR do not reach beyond; what lies there falls into the outermost


def denoising_loss(
    apply: Apply,
    schedule: Schedule,
    *,
    prediction: Any,
    weighting: Any = "constant",
    times: Any = "uniform",
    space: Any = None,
    uncertainty: Callable[[Params, Array], Array] | None = None,
    bins: int = 10,
    global_batch: int | None = None,
) -> LossFn:
    """Return loss(params, batch, key) -> (loss, metrics), Eq. (1).

    The batch holds `x`, images in float, and if wanted `cond`, `index`, each example's place in the global batch
    (0, 1, ... by default), and `history`, the state of loss-adaptive times. Noise and time of an example depend on
    `key` and its index alone; `global_batch` (this batch's size by default) is what stratified times are spread over.
    The network finds keys for its dropout, one per example, in `cond["dropout"]`.

    Metrics, all of them means over the batch: `loss`; `mse`, in the space of the network's output; `bin_loss` and
    `bin_share` (bins,), what each bin of `bin_edges` contributes to the loss and to the examples, so that their ratio
    is the loss in the bin; and, where the batch has one, the new `history`.
    """
    if global_batch is not None:
        _check_count("global_batch", global_batch)
    objective = check(Objective(schedule, prediction, weighting, times, space))
    uncertainty = uncertainty or objective.weighting.uncertainty
    edges = bin_edges(schedule, bins)

    def loss_fn(params, batch, key):
        x0, index = read_batch(batch)
        history = batch.get("history")
        drawn = settle(objective.times, history)
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t = draw_times(drawn, schedule, time_key, index, total=global_batch or x0.shape[0], dtype=x0.dtype)
        eps = normal_like(example_keys(noise_key, index), x0)
        x = add_noise(schedule, x0, eps, t)
        target = compose(objective.prediction, Estimate(x0, eps), rates(schedule, t, x))
        output = apply(params, x, t, with_dropout(batch, dropout_key, index))
        error = squared_error(objective.prediction, output, target)
        log_snr = schedule.log_snr(t)
        example_loss = multiplier(objective, t) * error
        if uncertainty is not None:
            u = uncertainty(params, log_snr)
            example_loss = example_loss * jnp.exp(-u) + u
        counted = example_loss * importance_weight(drawn, schedule, t)
        loss = counted.mean()
        metrics: Metrics = {"loss": loss, "mse": error.mean(), **_in_bins(log_snr, counted, edges)}
        if history is not None:
            metrics["history"] = update_history(history, t, jax.lax.stop_gradient(example_loss))
        return loss, metrics

    return loss_fn


def bin_edges(schedule: Schedule, bins: int) -> np.ndarray:
    """Return the bins + 1 rising log-SNRs between which `bin_loss` and `bin_count` are summed."""
    _check_count("bins", bins)
    low, high = (float(np.clip(float(end), -WIDEST, WIDEST)) for end in support(schedule))
    return np.linspace(low, high, bins + 1)


def read_batch(batch: Batch) -> tuple[Array, Array]:
    """Return a batch's examples, in float32 or better, and their indices."""
    if "x" not in batch:
        raise ValueError(f"the batch has no 'x', only {', '.join(sorted(batch))}: put the clean examples there.")
    x = jnp.asarray(batch["x"])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"batch['x'] is {x.dtype}; scale the images to floats in [-1, 1] first.")
    index = batch.get("index")
    index = jnp.arange(x.shape[0]) if index is None else jnp.asarray(index)
    if index.shape != x.shape[:1]:
        raise ValueError(f"batch['index'] is {index.shape} for {x.shape[0]} examples; it must be one per example.")
    return as_float(x), index


def with_dropout(batch: Batch, key: Key, index: Array) -> dict[str, Any]:
    """Return a batch's conditions and the keys of its examples' dropout."""
    return {**(batch.get("cond") or {}), "dropout": example_keys(key, index)}


def squared_error(prediction: Prediction, output: Array, target: Array) -> Array:
    """Return each example's mean squared error in the target's dtype; channels of a learned variance are left out."""
    channels = target.shape[-1]
    learned = prediction.name == "learned_variance"
    expected = (*target.shape[:-1], 2 * channels if learned else channels)
    if output.shape != expected:
        raise ValueError(
            f"the network answered with shape {output.shape}; for prediction '{prediction.name}' it must be {expected}."
        )
    error = (output[..., :channels].astype(target.dtype) - target) ** 2
    return error.reshape(error.shape[0], -1).mean(1)


def _check_count(word, value):
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"denoising_loss: {word} is {value}; it must be a whole number of at least 1.")


def _in_bins(log_snr, values, edges):
    """Split the mean of the values, and of 1, by bin of log-SNR."""
    bins = len(edges) - 1
    which = jnp.searchsorted(jnp.asarray(edges[1:-1], log_snr.dtype), log_snr, side="right")
    empty, share = jnp.zeros(bins, values.dtype), 1 / values.shape[0]
    return {"bin_loss": empty.at[which].add(values * share), "bin_share": empty.at[which].add(share)}
