"""What a transform is, and what all of them ask of the examples they are made for."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.source import Example, Info

IMAGES = ("x", "mask", "edges", "hint")


class Transform(NamedTuple):
    """A step on the way of an example, and what is known of the example after it; `random` says whether it draws."""

    name: str
    info: Info
    apply: Callable[[Example, np.random.Generator], Example]
    random: bool = False


def on_images(example: Example, change: Callable[[np.ndarray], np.ndarray]) -> Example:
    """Change `x` and the maps drawn beside it alike."""
    return example | {name: change(example[name]) for name in IMAGES if name in example}


def check_images(info: Info, name: str, least: int = 1) -> None:
    """Refuse what is no image, or always smaller than `least`."""
    shape = info.shapes.get("x", ())
    if len(shape) != 3:
        raise ValueError(
            f"{name}: x of '{info.name}' is of shape {shape}; it must be images (height, width, channels)."
        )
    if any(length is not None and length < least for length in shape[:2]):
        raise ValueError(f"{name}: images of {shape[0]} x {shape[1]} have no part of {least} x {least}.")


def check_entry(info: Info, entry: str, name: str) -> None:
    """Refuse examples that have no such entry."""
    if entry not in info.shapes:
        raise ValueError(f"{name}: examples of '{info.name}' have no '{entry}', only {', '.join(info.shapes)}.")


def check_rate(name: str, rate: float) -> None:
    """Refuse what is no share."""
    if not 0 <= rate <= 1:
        raise ValueError(f"{name}: rate is {rate}; it must be from 0 to 1.")
