"""Optimizers, their learning rates, and what stands before and after them; all of it optax."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from diffusion_jax.naming import choose, lookup

Rate = Callable[[Any], Any]  # optax's schedule: the number of steps taken -> learning rate


def make_optimizer(
    optimizer: Any, rate: Any, *, clip: float | None = None, held: Sequence[str] = ()
) -> tuple[optax.GradientTransformation, Rate]:
    """Return the optimizer that a config names, with its learning rate, and the rate on its own, to be logged.

    `clip` bounds the norm of the whole gradient. `held` names the entries of the parameters that stay as they are,
    such as "network" beside what is trained for it: they are not decayed, and no moments of them are kept.
    """
    schedule = choose(RATES, rate, "rate")
    chosen = choose(OPTIMIZERS, optimizer, "optimizer", schedule)
    if clip is not None:
        if not clip > 0:
            raise ValueError(f"clip is {clip}; it must be greater than 0, or None for no clipping.")
        chosen = optax.chain(optax.clip_by_global_norm(clip), chosen)
    return _holding(chosen, held) if held else chosen, schedule


def adam(rate: Rate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015)."""
    return optax.adam(rate, b1=b1, b2=b2, eps=eps)


def adamw(
    rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decayed: str = "matrices",
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), of the parameters that `decayed` names."""
    mask = lookup(MASKS, decayed, "decayed")
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def lion(
    rate: Rate, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0, decayed: str = "matrices"
) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023)."""
    return optax.lion(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=lookup(MASKS, decayed, "decayed"))


def sgd(rate: Rate, *, momentum: float = 0.9, nesterov: bool = False) -> optax.GradientTransformation:
    """Gradient descent with momentum."""
    return optax.sgd(rate, momentum=momentum, nesterov=nesterov)


def muon(
    rate: Rate, *, beta: float = 0.95, weight_decay: float = 0.0, adam_b1: float = 0.9, adam_b2: float = 0.999
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for matrices, convolutions' kernels among them, and Adam for the rest."""
    return optax.contrib.muon(
        rate,
        beta=beta,
        weight_decay=weight_decay,
        adam_b1=adam_b1,
        adam_b2=adam_b2,
        muon_weight_dimension_numbers=_as_matrices,
    )


def constant(*, peak: float, warmup: int = 0) -> Rate:
    """Rise to `peak` over `warmup` steps and stay."""
    _check("constant", peak=peak, warmup=warmup)
    return optax.warmup_constant_schedule(0.0 if warmup else peak, peak, warmup)


def cosine(*, peak: float, steps: int, warmup: int = 0, end: float = 0.0) -> Rate:
    """Rise to `peak` over `warmup` steps, then fall to `end` along half a cosine until `steps`."""
    _check("cosine", peak=peak, warmup=warmup, end=end, steps=steps - warmup - 1)
    return optax.warmup_cosine_decay_schedule(0.0 if warmup else peak, peak, warmup, steps, end)


def linear(*, peak: float, steps: int, warmup: int = 0, end: float = 0.0) -> Rate:
    """Rise to `peak` over `warmup` steps, then fall to `end` along a line until `steps`."""
    _check("linear", peak=peak, warmup=warmup, end=end, steps=steps - warmup - 1)
    rise = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([rise, optax.linear_schedule(peak, end, steps - warmup)], [warmup])


def inverse_sqrt(*, peak: float, reference: int, warmup: int = 0) -> Rate:
    """Stay at `peak` until step `reference`, then fall as 1 / sqrt(step) (Karras et al. 2024, Eq. 67)."""
    _check("inverse_sqrt", peak=peak, warmup=warmup, reference=reference)

    def rate(count):
        fallen = peak / jax.numpy.sqrt(jax.numpy.maximum(count / reference, 1))
        return fallen * jax.numpy.minimum(count / warmup, 1) if warmup else fallen

    return rate


def _holding(optimizer, held):
    """Let an optimizer see all but the entries that are held."""

    def parts(params):
        for name in held:
            if name not in params:
                raise ValueError(f"held names '{name}', but the parameters have {', '.join(params)} alone.")
        return {name: "held" if name in held else "trained" for name in params}

    return optax.partition({"trained": optimizer, "held": optax.set_to_zero()}, parts)


def _as_matrices(params):
    """Say of each parameter what of it is a matrix: the last axis is the output's, all before it the input's."""
    matrix = optax.contrib.MuonDimensionNumbers

    def of(leaf):
        return matrix(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,)) if leaf.ndim >= 2 else None

    return jax.tree.map(of, params)


def _check(name, *, peak, **others):
    if not peak > 0:
        raise ValueError(f"{name}: peak is {peak}; the learning rate must be greater than 0.")
    for word, value in others.items():
        if value < 0:
            raise ValueError(
                f"{name}: {word} leaves {value}; it must not be negative, and warmup must end before steps."
            )


MASKS = {
    "all": lambda params: jax.tree.map(lambda leaf: True, params),
    "matrices": lambda params: jax.tree.map(lambda leaf: leaf.ndim >= 2, params),
}

RATES = {"constant": constant, "cosine": cosine, "linear": linear, "inverse_sqrt": inverse_sqrt}

OPTIMIZERS = {"adam": adam, "adamw": adamw, "lion": lion, "muon": muon, "sgd": sgd}
