"""Discriminators' losses against the divergences that they measure, and the weight between two losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses.adversarial import ADVERSARIES, balance, deception

# Two distributions over five places; samples are their places, in the proportions of the densities.
P, Q = np.array([8, 4, 2, 1, 1]) / 16, np.array([1, 1, 6, 4, 4]) / 16
REAL, FAKE = (np.repeat(np.arange(5), (16 * density).astype(int)) for density in (P, Q))


def best(name):
    """Return the best discriminator, and half of twice the greatest loss less the divergence."""
    if name == "logistic":
        mean = (P + Q) / 2
        divergence = (P * np.log(P / mean) + Q * np.log(Q / mean)).sum() / 2
        return np.log(P / Q), np.log(2) - divergence
    return np.sign(P - Q), 1 - np.abs(P - Q).sum() / 2


@pytest.mark.parametrize("name", ADVERSARIES)
def test_the_least_loss_is_a_divergence(name):
    logits, least = best(name)

    def loss(logits):
        return ADVERSARIES[name](logits[REAL], logits[FAKE])

    found, slope = jax.value_and_grad(loss)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(found, least, rtol=1e-5)
    if name == "logistic":
        np.testing.assert_allclose(slope, np.zeros(5), atol=1e-6)
    for seed in range(20):
        other = logits + np.random.default_rng(seed).normal(size=5) * 0.5
        assert loss(jnp.asarray(other, jnp.float32)) >= least - 1e-6


@pytest.mark.parametrize("name", ADVERSARIES)
def test_who_cannot_tell_loses_the_same_by_either(name):
    """With logits of zero hinge is 1 and logistic log 2, and more for who is wrong."""
    none = ADVERSARIES[name](jnp.zeros(3), jnp.zeros(3))
    np.testing.assert_allclose(none, {"hinge": 1.0, "logistic": np.log(2)}[name], rtol=1e-6)
    assert ADVERSARIES[name](-jnp.ones(3), jnp.ones(3)) > none > ADVERSARIES[name](jnp.ones(3), -jnp.ones(3))
    assert deception(jnp.ones(3)) < deception(jnp.zeros(3))


def test_balanced_losses_have_equal_gradients():
    first, second = {"a": jnp.asarray([3.0, 0.0]), "b": jnp.asarray([[4.0]])}, {"a": jnp.asarray([0.0, 0.5])}
    np.testing.assert_allclose(balance(first, second), 10, rtol=1e-3)
    np.testing.assert_allclose(balance(first, {"a": jnp.zeros(2)}), 1e4)
    assert jax.grad(lambda x: balance({"a": x}, second))(jnp.asarray(2.0)) == 0
