"""What the loss was, lately, at each time: the state of loss-adaptive time sampling.

Times are cut into bins. A bin remembers its last few losses and is drawn with probability (Nichol & Dhariwal 2021,
Eq. 18, with their share of uniform draws)

    p_b = (1 - floor) sqrt(mean of loss^2 in b) / (the sum of that over bins) + floor / bins,                 (1)

once every bin has a full memory; until then all are equally likely. The state is an array and every function pure:
keep it with the training state, put it in `batch["history"]`, and take it back from `metrics["history"]`.
"""

from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.process.schedule import as_float
from diffusion_jax.types import Array, Schedule


class History(NamedTuple):
    """The last losses (bins, keep) of each bin of times, the bins' `edges`, and how many losses each has `seen`."""

    losses: Array
    edges: Array
    seen: Array


def start_history(schedule: Schedule, *, bins: int = 100, keep: int = 10) -> History:
    """Return an empty history of the times in the schedule's span."""
    if bins < 1 or keep < 1:
        raise ValueError(f"start_history: bins is {bins} and keep {keep}; both must be at least 1.")
    return History(jnp.zeros((bins, keep)), jnp.linspace(*schedule.span, bins + 1), jnp.zeros(bins, jnp.int32))


def update_history(history: History, t: Array, loss: Array) -> History:
    """Remember the losses (batch,) found at times `t`, in order; those that are not finite are ignored."""
    bins, keep = history.losses.shape
    which = jnp.where(jnp.isfinite(loss), bin_of(history, t), bins)
    mine = which[:, None] == jnp.arange(bins, dtype=jnp.int32)[None]
    found = mine.sum(0, dtype=jnp.int32)
    rank = jnp.where(mine, jnp.cumsum(mine, 0, dtype=jnp.int32) - 1, 0).sum(1, dtype=jnp.int32)
    # Of more losses than fit into a bin only the last stay, so that no two are written to one place.
    latest = rank >= found[which] - keep
    place = (history.seen[which] + rank) % keep
    losses = history.losses.at[jnp.where(latest, which, bins), place].set(
        loss.astype(history.losses.dtype), mode="drop"
    )
    return History(losses, history.edges, history.seen + found)


def probabilities(history: History, *, floor: float) -> Array:
    """Return the probability of each bin, Eq. (1)."""
    bins, keep = history.losses.shape
    size = jnp.sqrt((history.losses**2).mean(1))
    total = size.sum()
    ready = (history.seen >= keep).all() & (total > 0)
    adapted = (1 - floor) * size / jnp.where(ready, total, 1) + floor / bins
    return jnp.where(ready, adapted, 1 / bins)


def bin_of(history: History, t: Array) -> Array:
    """Return the bin in which each time lies."""
    bins = history.losses.shape[0]
    inner = history.edges[1:-1].astype(as_float(t).dtype)
    return jnp.clip(jnp.searchsorted(inner, t, side="right"), 0, bins - 1).astype(jnp.int32)
