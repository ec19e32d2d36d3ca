"""Autoencoders' losses: where they are least, and who feels them."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.losses.autoencoder import commitment, reconstruction


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_best_scale_is_the_mean_error():
    x, again = normal(2, 3, 3, 2), normal(2, 3, 3, 2, seed=1)
    best = jnp.log(jnp.abs(x - again).mean())
    value = lambda scale: reconstruction(x, again, scale).sum()
    np.testing.assert_allclose(jax.grad(value)(best), 0, atol=1e-4)
    assert value(best) < value(best + 0.1) and value(best) < value(best - 0.1)
    one = value(jnp.zeros(()))
    np.testing.assert_allclose(one, jnp.abs(x - again).sum(), rtol=1e-5)
    assert reconstruction(x, again, best).shape == (2,)


def test_a_commitment_draws_both_together_latents_less():
    z, entries = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    of_z, of_entries = jax.grad(lambda *pair: commitment(*pair, beta=0.25), (0, 1))(z, entries)
    np.testing.assert_allclose(of_z, 0.25 * 2 * (z - entries) / z.size, rtol=1e-5)
    np.testing.assert_allclose(of_entries, 2 * (entries - z) / z.size, rtol=1e-5)
    np.testing.assert_allclose(commitment(z, entries), 1.25 * np.square(z - entries).mean(), rtol=1e-5)
    assert commitment(z, z) == 0
