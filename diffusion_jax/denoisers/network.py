"""From a network to a denoiser.

A network maps (params, x, t, cond) to an output of one kind of prediction; here that output is turned, once, into the
pair (x0, eps) that everything downstream speaks. Time reaches the network as one number per example, in float32 or
better.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from diffusion_jax.naming import choose
from diffusion_jax.process.prediction import PREDICTIONS, check_prediction, decompose
from diffusion_jax.process.schedule import as_float, rates_within, wide
from diffusion_jax.types import Apply, Array, Denoiser, Params, Schedule, Time


def make_denoiser(apply: Apply, params: Params, schedule: Schedule, *, prediction: Any, cond: Any = None) -> Denoiser:
    """Return the denoiser that a network's output means, `cond` being handed to the network as it is.

    Where alpha = 0 some predictions, such as eps, do not determine x0: they are asked at the end of the schedule's
    span instead, and refused if that is pure noise.
    """
    prediction = choose(PREDICTIONS, prediction, "prediction")
    check_prediction(prediction, schedule)

    def denoise(x, t):
        _check_time(t)
        t = as_float(t) if prediction.knows_data else jnp.minimum(as_float(t), schedule.span[1])
        output = apply(params, x, per_example(t, x), cond)
        _check_output(prediction, output, x)
        return decompose(prediction, output, x, rates_within(schedule, t, x))

    return denoise


def _in_turns(first, second):
    """Return the rows of both in turns: one after the other they would move from device to device."""
    return jnp.stack([first, second], 1).reshape(-1, *first.shape[1:])


def _check_time(t):
    if not isinstance(t, Tracer) and not np.all((np.asarray(t) >= 0) & (np.asarray(t) <= 1 + 1e-6)):
        raise ValueError(
            f"a denoiser's time runs in [0, 1]; got {np.asarray(t)}. Step i of T is (i + 1) / T: see World.time."
        )


@dataclass(frozen=True, eq=False)  # a tuple would be no function to JAX's transformations
class Half:
    """One of two denoisers that share a call: both(x, t) gives the two estimates, and this one is `both(x, t)[which]`.

    Guidance recognises a pair of halves and makes one call for the two; on its own a half costs its own part only.
    """

    both: Callable[[Array, Time], tuple[Any, Any]]
    which: int
    alone: Denoiser

    def __call__(self, x: Array, t: Time) -> Any:
        return self.alone(x, t)


def doubled(
    apply: Apply, params: Params, schedule: Schedule, *, prediction: Any, cond: Any, null: Any
) -> tuple[Half, Half]:
    """Return the conditional and the unconditional denoiser of one network, which share one call of twice the batch.

    `cond` and `null` are trees alike of arrays, one row per example. Meant for guidance:
    `classifier_free(*doubled(...), scale)`.
    """
    _check_alike(cond, null)
    alone = [make_denoiser(apply, params, schedule, prediction=prediction, cond=tree) for tree in (cond, null)]
    denoise = make_denoiser(apply, params, schedule, prediction=prediction, cond=jax.tree.map(_in_turns, cond, null))

    def both(x, t):
        t = per_example(as_float(t), x)
        estimate = denoise(_in_turns(x, x), _in_turns(t, t))
        pairs = [value.reshape(-1, 2, *value.shape[1:]) for value in estimate]
        return type(estimate)(*(pair[:, 0] for pair in pairs)), type(estimate)(*(pair[:, 1] for pair in pairs))

    return Half(both, 0, alone[0]), Half(both, 1, alone[1])


def on_steps(apply: Apply, *, steps: int = 1000) -> Apply:
    """Adapt a network trained on integer steps: it is told the step t steps - 1, whole at the times of steps."""
    if not (isinstance(steps, int) and steps >= 1):
        raise ValueError(
            f"on_steps: steps is {steps}; it must be the whole number of steps the network was trained on."
        )

    def on_time(params, x, t, cond):
        step = t * steps - 1
        whole = jnp.round(step)
        # A float32 time is half a rounding off its step; the network should not see it.
        return apply(params, x, jnp.where(jnp.abs(step - whole) <= steps * 2.0**-23, whole, step), cond)

    return on_time


def per_example(t: Array, x: Array) -> Array:
    """Give every example of `x` its time, in the dtype that `x` is computed in."""
    if t.ndim and t.shape != x.shape[:1]:
        raise ValueError(f"times of shape {t.shape} for {x.shape[0]} examples; give one time, or one per example.")
    return jnp.broadcast_to(t, x.shape[:1]).astype(wide(x.dtype))


def _check_output(prediction, output, x):
    twice = (*x.shape[:-1], 2 * x.shape[-1])
    expected = twice if prediction.name == "learned_variance" else x.shape
    if output.shape != expected:
        hint = " If the second half of the channels is a learned variance, predict 'learned_variance'."
        raise ValueError(
            f"the network answered x of shape {x.shape} with shape {output.shape}; for prediction "
            f"'{prediction.name}' it must be {expected}.{hint if output.shape == twice else ''}"
        )


def _check_alike(cond, null):
    kinds = [jax.tree.structure(tree) for tree in (cond, null)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"doubled: cond is {kinds[0]} and null is {kinds[1]}; they must have the same entries.")
    if not jax.tree.leaves(cond):
        raise ValueError("doubled: cond is empty; a network without conditions has nothing to be guided by.")
    shapes = [[jnp.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (cond, null)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"doubled: cond has shapes {shapes[0]} and null {shapes[1]}; they must be alike, one row per example."
        )
