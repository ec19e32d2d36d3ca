"""Diffusion of latents, with an autoencoder that is linear: a rotation of what it encodes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.latent import latents, seen, statistics, through
from diffusion_jax.process.forward import add_noise
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.oracle import gaussian, mixture
from diffusion_jax.process.schedules import trigonometric
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample

RNG: Any = np.random.default_rng(0)
ROTATION = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
SHIFT = RNG.normal(size=3)
PATH = trigonometric()
MEANS = RNG.normal(size=(2, 3))
KEY = jax.random.key(0)


def encode(x):
    return (x - SHIFT[None]) @ ROTATION


def decode(z):
    return z @ ROTATION.T + SHIFT[None]


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 2.5), ([1.0, -2.0, 3.0], [0.5, 1.0, 2.0])])
def test_there_and_back_is_where_one_was(x64, mean, std):
    ways, x = latents(encode, decode, mean=mean, std=std), RNG.normal(size=(5, 3))
    np.testing.assert_allclose(ways.decode(ways.encode(x)), x, atol=1e-12)
    np.testing.assert_allclose(ways.encode(x), (encode(x) - np.asarray(mean)) / np.asarray(std), atol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_drawing_latents_and_decoding_is_drawing_images(x64, name):
    """Data of which the latents are a known mixture: the same noise, turned, leads to the same images by any solver."""
    std, mean = 0.7, np.array([0.3, -1.0, 2.0])
    ways = latents(encode, decode, mean=mean, std=std)
    noise, times = RNG.normal(size=(6, 3)), GRIDS["uniform"](PATH, 12)
    ours = mixture([0.3, 0.7], MEANS, [0.4, 0.2])  # of y
    # Images are turned y, but for the scale and the place that the path knows nothing of.
    theirs = mixture([0.3, 0.7], MEANS @ ROTATION.T, [0.4, 0.2])

    @jax.jit
    def both(noise):
        y, _ = sample(ours.denoiser(PATH), SOLVERS[name](PATH), times, noise, KEY)
        turned, _ = sample(theirs.denoiser(PATH), SOLVERS[name](PATH), times, noise @ ROTATION.T, KEY)
        return ways.decode(y), std * turned + decode(mean[None])

    np.testing.assert_allclose(*both(noise), atol=1e-9)


def test_statistics_make_the_world_of_a_gaussian_standard(x64):
    """Measured latents of any Gaussian images have mean 0 and spread 1, and the exact flow leads to the images' law."""
    spread = np.array([0.5, 1.0, 3.0])
    x = decode(RNG.normal(size=(4000, 3)) * spread + np.array([4.0, 0.0, -1.0]))
    mean, std = statistics(encode(part) for part in (x[:1000], x[1000:1001], x[1001:]))
    ways = latents(encode, decode, mean=mean, std=std)
    y = np.asarray(ways.encode(x))
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-12)
    # Standard data is left as it is by the flow of a path that keeps variance, so noise decodes to the images' law.
    drawn = ways.decode(gaussian(np.zeros(3), 1.0).flow(PATH, jnp.asarray(y), 1.0, 0.0))
    np.testing.assert_allclose(np.mean(drawn, 0), x.mean(0), atol=1e-6)
    np.testing.assert_allclose(np.cov(np.asarray(drawn).T), np.cov(x.T), atol=1e-4)


def test_images_go_through_latents_and_come_back_by_an_exact_flow(x64):
    ways, x = latents(encode, decode, mean=0.2, std=1.5), RNG.normal(size=(4, 3))
    world = gaussian(np.array([0.5, 0.0, -1.0]), 0.6)
    there = through(ways, lambda y: world.flow(PATH, y, 0.0, 0.7))
    again = through(ways, lambda y: world.flow(PATH, world.flow(PATH, y, 0.0, 0.7), 0.7, 0.0))
    np.testing.assert_allclose(again(x), x, atol=1e-9)
    assert np.abs(there(x) - x).max() > 0.1


def test_what_is_seen_is_the_decoded_belief(x64):
    """Of one point of data the belief is that point, whatever the noise."""
    ways, x = latents(encode, decode, mean=0.2, std=1.5), RNG.normal(size=(1, 3))
    y = ways.encode(x)
    denoise = mixture([1.0], np.asarray(y), [1e-6]).denoiser(PATH)
    noisy = add_noise(PATH, y, RNG.normal(size=(1, 3)), 0.6)
    np.testing.assert_allclose(seen(denoise, ways)(noisy, 0.6), x, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"std": 0.0}, "they must be finite, and std positive"),
        ({"mean": np.nan}, "they must be finite"),
        ({"mean": [0.0, 1.0], "std": [1.0] * 3}, r"mean has shape \(2,\) and std \(3,\)"),
        ({"mean": np.zeros((1, 3))}, "give one number, or one for each channel"),
    ],
)
def test_statistics_that_cannot_be_are_refused(spec, words):
    with pytest.raises(ValueError, match=words):
        latents(encode, decode, **spec)


def test_latents_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="mean has 2 numbers, but the latents have 3 channels"):
        latents(lambda x: x, lambda z: z, mean=[0.0, 1.0]).encode(jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="no latents to measure"):
        statistics([])
