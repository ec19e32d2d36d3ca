"""How a network is told the time: one number becomes waves of many frequencies.

    sinusoidal:   cos(c t w_i), sin(c t w_i),   w_i = period^(-i / (n - shift)),   i = 0 .. n - 1              (1)
    positional:   sin(c t w_i), cos(c t w_i),   w_i = period^(-i / (n - 1))                                    (2)
    fourier:      cos(2 pi c t w_i), sin(2 pi c t w_i),   w_i ~ N(0, scale^2), fixed                           (3)

c is `time_scale`. Networks that were made for steps 0 .. 999 want 1000 for t in [0, 1], and 1 for what EDM's
preconditioning tells them instead of a time. Time stays in float32: bfloat16 would leave 500 distinct times. The last
bit of a frequency, too, moves waves of step 1000 by 1e-4, so (1) and (2) round where the networks do that may be read.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from diffusion_jax.types import Array, Time

Waves = Callable[[Time, int], Array | None]  # (t (B,), width) -> (B, width), or twice as wide for Eq. (3)


def sinusoidal(*, time_scale: float = 1000.0, period: float = 10000.0, shift: float = 0.0) -> Waves:
    """Embed as ADM, DiT and latent diffusion do, Eq. (1); DiT as diffusers has it takes a shift of 1."""

    def waves(t, width):
        angles = _angles(t, time_scale, _frequencies(period, width // 2, max(width // 2 - shift, 1)))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

    return waves


def positional(*, time_scale: float = 1000.0, period: float = 10000.0) -> Waves:
    """Embed as DDPM and DDPM++ do (Vaswani et al. 2017), Eq. (2)."""

    def waves(t, width):
        angles = _angles(t, time_scale, _frequencies(period, width // 2, max(width // 2 - 1, 1)))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)

    return waves


def fourier(
    *, time_scale: float = 1.0, scale: float = 16.0, seed: int = 0, frequencies: tuple[float, ...] = ()
) -> Waves:
    """Embed in random features (Tancik et al. 2020; NCSN++), Eq. (3): `width` frequencies, so twice as many numbers.

    `frequencies` are those that were drawn elsewhere.
    """

    def waves(t, width):
        if frequencies and len(frequencies) != width:
            raise ValueError(f"fourier: {len(frequencies)} frequencies were given; this network has {width}.")
        drawn = frequencies or scale * np.random.Generator(np.random.Philox(seed)).standard_normal(width)
        angles = _angles(t, 1.0, 2 * np.pi * time_scale * np.asarray(drawn))
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)

    return waves


def untimed() -> Waves:
    """Tell the network no time, which a denoiser may guess from the image (Sun et al. 2025)."""
    return lambda t, width: None


def _frequencies(period, count, share):
    """Return period^(-i / share), the exponent of e being rounded first."""
    exponents = -np.float32(np.log(period)) * np.arange(count, dtype=np.float32) / np.float32(share)
    return np.exp(exponents.astype(np.float64))


def _angles(t, scale, frequencies):
    return (scale * t.astype(jnp.float32))[:, None] * np.asarray(frequencies, np.float32)[None]


TIME_EMBEDDINGS = {"sinusoidal": sinusoidal, "positional": positional, "fourier": fourier, "none": untimed}
