"""What every network refuses before it is built: numbers that cannot be."""

from typing import Any

import jax.numpy as jnp

from diffusion_jax.naming import lookup


def whole(network: str, least: int, **numbers: Any) -> None:
    """Refuse numbers that are not whole or are less than `least`."""
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{network}: {name} is {value!r}; it must be a whole number of at least {least}.")


def share(network: str, **numbers: float) -> None:
    """Refuse numbers outside [0, 1)."""
    for name, value in numbers.items():
        if not 0 <= value < 1:
            raise ValueError(f"{network}: {name} is {value!r}; it must lie in [0, 1).")


def one_of(network: str, allowed: tuple, **words: Any) -> None:
    """Refuse words that are not among those allowed."""
    for name, value in words.items():
        lookup(dict.fromkeys(allowed), value, f"{name} of {network}")


def divides(network: str, part: str, of_part: int, whole_name: str, of_whole: int) -> None:
    """Refuse a part that does not divide the whole."""
    if of_whole % of_part:
        near = [n for n in range(1, of_whole + 1) if of_whole % n == 0]
        best = sorted(sorted(near, key=lambda n: abs(n - of_part))[:4])
        raise ValueError(
            f"{network}: {part} = {of_part} does not divide {whole_name} = {of_whole}. "
            f"Near it, {', '.join(map(str, best))} do."
        )


def dtype_of(network: str, dtype: str) -> Any:
    """Return the dtype that a network computes in."""
    return lookup(_DTYPES, dtype, f"dtype of {network}")


def images(network: str, x: Any, channels: int, multiple: int) -> None:
    """Refuse images of the wrong shape: (B, H, W, channels) with sides that are multiples of `multiple`."""
    if x.ndim != 4 or x.shape[-1] != channels:
        raise ValueError(f"{network}: x has shape {x.shape}; it must be (batch, height, width, {channels}).")
    if x.shape[1] % multiple or x.shape[2] % multiple:
        raise ValueError(
            f"{network}: x is {x.shape[1]} by {x.shape[2]}; both must be multiples of {multiple}. Pad or crop the "
            "images, or build a network that halves them less often."
        )


_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
