"""One step of training: the gradient of the loss, the optimizer's update, the averages.

The step is written for the whole batch. Under `jit` with a sharded batch that is all; under `pmap` a device sees its
share, and `average` makes means over the devices of what it found. A step whose loss or gradient is not finite changes
nothing but the counters.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.training.ema import Average, update
from diffusion_jax.training.state import TrainState
from diffusion_jax.types import Batch, LossFn, Metrics

Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    averages: Mapping[str, Average],
    *,
    parts: int = 1,
    average: Callable[[Any], Any] = lambda tree: tree,
) -> Step:
    """Return step(state, batch) -> (state, metrics).

    `parts` splits the batch into so many that follow each other, for the memory's sake: the gradient is the whole
    batch's. Metrics are means over the batch, the gradient's norm and the two counters of skipped steps.
    """
    if not isinstance(parts, int) or parts < 1:
        raise ValueError(f"parts is {parts}; it must be a whole number of at least 1.")

    def step(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        gradient, metrics, history = _in_parts(loss_fn, state, batch, key, parts=parts)
        gradient, metrics = average((gradient, metrics))
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        taken = state.step + 1 - state.skipped
        kept = {name: update(rule, state.averages[name], params, taken) for name, rule in averages.items()}
        new = (params, kept, opt_state, history)
        old = (state.params, state.averages, state.opt_state, state.history)
        params, kept, opt_state, history = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        state = state._replace(
            step=state.step + 1,
            params=params,
            averages=kept,
            opt_state=opt_state,
            history=history,
            skipped=state.skipped + ~finite,
            in_a_row=jnp.where(finite, 0, state.in_a_row + 1),
        )
        return state, {**metrics, "grad_norm": norm, "skipped": state.skipped, "in_a_row": state.in_a_row}

    return step


def _in_parts(loss_fn, state, batch, key, *, parts):
    """Return gradient, metrics and history of a batch that is met in equal parts."""
    graded = jax.grad(loss_fn, has_aux=True)

    def one(history, part):
        part = part if history is None else {**part, "history": history}
        gradient, metrics = graded(state.params, part, key)
        metrics = dict(metrics)
        return metrics.pop("history", history), (gradient, metrics)

    if parts == 1:
        history, (gradient, metrics) = one(state.history, batch)
        return gradient, metrics, history

    size = batch["x"].shape[0]
    if size % parts:
        raise ValueError(f"a batch of {size} cannot be met in {parts} equal parts; let the batch be a multiple.")
    if "index" not in batch:
        batch = {**batch, "index": jnp.arange(size)}  # of the whole batch, which a part cannot know
    # Part p takes examples p, p + parts, ...: so each device of a sharded batch finds its share in every part.
    split = jax.tree.map(lambda leaf: jnp.moveaxis(leaf.reshape(size // parts, parts, *leaf.shape[1:]), 1, 0), batch)

    def add(carry, part):
        history, total = carry
        history, found = one(history, part)
        return (history, jax.tree.map(jnp.add, total, found)), None

    first = jax.tree.map(lambda leaf: leaf[0], split)
    _, shapes = jax.eval_shape(one, state.history, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    (history, total), _ = jax.lax.scan(add, (state.history, zeros), split)
    gradient, metrics = jax.tree.map(lambda leaf: leaf / parts, total)
    return gradient, metrics, history
