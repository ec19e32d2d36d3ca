"""Diffusion of latents (Rombach et al. 2022): encode once, diffuse there, decode once.

A diffusion model wants data of mean 0 and spread 1. An autoencoder's latents z are neither, so what is diffused is

    y = (z - mean) / std,                                                                                     (1)

channel by channel. Published models have one number for all channels: std = 1 / scaling_factor, mean = shift_factor.
The denoiser, the path and the solver know nothing of this, and neither does the autoencoder.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Denoiser, Time


class Latents(NamedTuple):
    """The way from images to y of Eq. (1), and back."""

    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


def latents(
    encode: Callable[[Array], Array], decode: Callable[[Array], Array], *, mean: Any = 0.0, std: Any = 1.0
) -> Latents:
    """Return the two ways, given the autoencoder's own, images to z and z to images.

    `mean` and `std` are one number, or one for each channel. Where z is drawn from a posterior, `encode` has its noise.
    """
    mean, std = (np.asarray(value, np.float64) for value in (mean, std))
    if mean.ndim > 1 or std.ndim > 1 or (mean.ndim and std.ndim and mean.shape != std.shape):
        raise ValueError(
            f"latents: mean has shape {mean.shape} and std {std.shape}; give one number, or one for each channel."
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(f"latents: mean is {mean} and std {std}; they must be finite, and std positive.")

    def to_y(x):
        z = encode(x)
        return (z - _channels("mean", mean, z)) / _channels("std", std, z)

    def to_images(y):
        return decode(y * _channels("std", std, y) + _channels("mean", mean, y))

    return Latents(to_y, to_images)


def statistics(batches: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the standard deviation of each channel of latents (B, ..., C), in float64.

    Batches are merged by their moments (Chan et al. 1979), so that any number of them costs no digits.
    """
    count, mean, square = 0, np.zeros(()), np.zeros(())
    for batch in batches:
        z = np.asarray(batch, np.float64)
        z = z.reshape(-1, z.shape[-1])
        total = count + len(z)
        away = z.mean(0) - mean
        square = square + np.square(z - z.mean(0)).sum(0) + away**2 * count * len(z) / total
        mean, count = mean + away * len(z) / total, total
    if not count:
        raise ValueError("statistics: there are no latents to measure.")
    return mean, np.sqrt(square / count)


def through(ways: Latents, diffuse: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return a map of images to images by a map of latents, such as noise to some time and a solver back from there."""
    return lambda x: ways.decode(diffuse(ways.encode(x)))


def seen(denoise: Denoiser, ways: Latents) -> Callable[[Array, Time], Array]:
    """Return a function of latents and time to the images that the denoiser believes in, for previews and guidance."""
    return lambda y, t: ways.decode(denoise(y, t).x0)


def _channels(what, value, z):
    """Shape a number for each channel against z (..., C)."""
    if value.ndim and value.shape[0] != z.shape[-1]:
        raise ValueError(f"latents: {what} has {value.shape[0]} numbers, but the latents have {z.shape[-1]} channels.")
    return jnp.asarray(value, z.dtype).reshape(*(1,) * (z.ndim - 1), -1)
