"""What a block keeps for its gradient, and what it computes again: memory against time (Chen et al. 2016).

none      keep everything but the kernels that other devices hold, which are gathered again
dots      keep the results of products with kernels, also of convolutions, and compute the rest, which is cheap, again
blocks    keep a block's input only and compute the whole block again
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn
from jax.extend.core import primitives

from diffusion_jax.devices import GATHERED, gathers


def none(block: Any, *, scanned: bool) -> Any:
    """Keep everything but gathered kernels."""
    if not gathers():
        return block
    policy = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)
    return nn.remat(block, policy=policy, prevent_cse=not scanned)


def dots(block: Any, *, scanned: bool) -> Any:
    """Keep the results of products with kernels; this also saves the time that writing and reading all the rest takes.

    The products of attention, a number for each pair of tokens, are larger than what they are made of: they go.
    """
    return nn.remat(_telling(block, dots), policy=_product, prevent_cse=not scanned)


def blocks(block: Any, *, scanned: bool) -> Any:
    """Keep the input only."""
    return nn.remat(_telling(block, blocks), prevent_cse=not scanned)  # a compiler that sees the scan cannot undo it


def stack(remat: Any, block: Any, length: int, *, told: Any = nn.broadcast) -> Any:
    """Return equal blocks as one scan, called with what they change, what they are told, what they see, and indices.

    `told` is how the scan takes the second: alike for every block, or an entry for each.
    """
    return nn.scan(
        remat(block, scanned=True),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(told, nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
        length=length,
    )


@contextlib.contextmanager
def within(remat: Any) -> Iterator[None]:
    """Note, while blocks are traced, whether they are computed again: what is, need not be so once more inside."""
    token = _AGAIN.set(remat is not none)
    try:
        yield
    finally:
        _AGAIN.reset(token)


def once_more(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a part of a block whose gradient computes it again, unless the block is computed again in any case."""
    return function if _AGAIN.get() else jax.checkpoint(function)


def _product(primitive, *shapes, **settings):
    if primitive is primitives.conv_general_dilated_p:
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *shapes, **settings)


def _telling(block, remat):
    """Return a block that says so to its parts while it is traced."""

    class Telling(block):
        def __call__(self, *args):
            with within(remat):
                return super().__call__(*args)

    return Telling


_AGAIN = contextvars.ContextVar("blocks are computed again", default=False)

REMATS = {"none": none, "dots": dots, "blocks": blocks}
