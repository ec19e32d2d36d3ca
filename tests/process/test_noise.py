"""Noise belongs to the example, not to the batch it happens to be in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process.noise import advance, example_keys, normal_like

KEY = jax.random.key(0)


def draw(indices, step=3, dtype=jnp.float32):
    keys = advance(example_keys(KEY, indices), step)
    return np.asarray(normal_like(keys, jnp.zeros((keys.shape[0], 4, 2), dtype)))


def test_an_example_draws_the_same_in_any_batch():
    whole = draw(6)
    np.testing.assert_array_equal(draw(3), whole[:3])
    np.testing.assert_array_equal(draw(np.asarray([5, 2, 2])), whole[[5, 2, 2]])
    np.testing.assert_array_equal(draw(np.asarray([4])), whole[4:5])


def test_it_draws_the_same_under_jit_and_over_hosts():
    whole = draw(6)
    jitted = jax.jit(lambda indices: normal_like(advance(example_keys(KEY, indices), 3), jnp.zeros((6, 4, 2))))
    np.testing.assert_array_equal(jitted(np.arange(6)), whole)
    np.testing.assert_array_equal(np.concatenate([draw(np.arange(3)), draw(np.arange(3, 6))]), whole)


def test_examples_steps_and_keys_differ():
    draws = [
        draw(6),
        draw(6, step=4),
        np.asarray(normal_like(example_keys(jax.random.key(1), 6), jnp.zeros((6, 4, 2)))),
    ]
    rows = np.concatenate(draws).reshape(18, -1)
    assert np.max(np.abs(np.corrcoef(rows) - np.eye(18))) < 0.999


def test_noise_is_standard_normal_in_float32_or_better():
    x = np.asarray(normal_like(example_keys(KEY, 64), jnp.zeros((64, 500), jnp.bfloat16)))
    assert x.dtype == np.float32
    assert len(np.unique(x)) > 0.99 * x.size  # bfloat16 would have a few thousand values
    assert abs(x.mean()) < 5 / np.sqrt(x.size)
    assert abs(x.var() - 1) < 5 * np.sqrt(2 / x.size)


@pytest.mark.parametrize("indices", [np.arange(3.0), np.zeros((2, 2), int), np.asarray(3)])
def test_indices_are_one_row_of_whole_numbers(indices):
    with pytest.raises(ValueError, match="one row of whole numbers"):
        example_keys(KEY, indices)


def test_noise_follows_float64(x64):
    assert normal_like(example_keys(KEY, 2), jnp.zeros((2, 3), jnp.float64)).dtype == jnp.float64
