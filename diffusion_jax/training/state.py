"""What training carries from step to step: all of it is saved, and nothing else decides how a run goes on."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.training.ema import Average
from diffusion_jax.types import Array, Key, Params


class TrainState(NamedTuple):
    """The state after `step` batches.

    `key` never changes: step n draws from it and n. `history` is what the loss remembers of earlier steps, or None.
    `skipped` counts the steps whose loss or gradient was not finite, and `in_a_row` those since the last that was.
    """

    step: Array
    params: Params
    averages: dict[str, Params]
    opt_state: Any
    key: Key
    history: Any
    skipped: Array
    in_a_row: Array


def start_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    averages: Mapping[str, Average],
    key: Key,
    *,
    history: Any = None,
) -> TrainState:
    """Return the state before the first step; averages start at the parameters, in float32."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        averages={name: jax.tree.map(lambda p: jnp.array(p, jnp.float32), params) for name in averages},
        opt_state=optimizer.init(params),
        key=key,
        history=history,
        skipped=jnp.zeros((), jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
    )
