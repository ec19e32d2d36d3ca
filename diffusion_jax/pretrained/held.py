"""Networks that a model needs beside its own, such as what reads its prompts: they lie where they were.

Their parameters are on the device once they were needed, or with `offload` in the host's memory, from where each use
takes them to the device and leaves nothing behind.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from diffusion_jax.pretrained.rules import unread
from diffusion_jax.pretrained.tensors import check_identity


def check(load: Callable[..., Any], folder: str, *, known: str, dtype: str, variant: str) -> None:
    """Refuse a folder that is not as it was, or does not hold what its config says; no tensor is read."""
    check_identity(folder, known, variant=variant)
    load(folder, dtype=dtype, variant=variant, put=unread)


@functools.lru_cache(maxsize=4)
def held(load: Callable[..., Any], folder: str, *, known: str, dtype: str, variant: str, offload: bool = False) -> Any:
    """Return what `load` reads of a folder whose `identity` must be as `known`, once; the last few are kept."""
    check_identity(folder, known, variant=variant)
    with jax.ensure_compile_time_eval():  # also where something is being traced
        return load(folder, dtype=dtype, variant=variant, put=_stay if offload else None)


def _stay(path, array):
    """Leave a parameter on the host."""
    return array
