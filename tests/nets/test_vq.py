"""Codebooks: the nearest entry, the gradient past it, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.vq import nearest, vq


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_no_entry_is_nearer_than_the_one_that_is_taken():
    z, codebook = normal(2, 3, 4, 5), normal(7, 5, seed=1)
    found = nearest(z, codebook)
    apart = np.square(z[..., None, :] - codebook.reshape(1, 1, 1, 7, 5)).sum(-1)
    np.testing.assert_array_equal(found.indices, apart.argmin(-1))
    np.testing.assert_array_equal(found.entries, np.asarray(codebook)[found.indices])
    np.testing.assert_allclose(found.latent, found.entries, atol=1e-6)
    again = nearest(found.entries, codebook)
    np.testing.assert_array_equal(again.indices, found.indices)


def test_gradients_pass_as_if_nothing_was_quantised():
    """Of z it is the gradient at the entry; the codebook gets none but through the entries."""
    z, codebook = normal(1, 2, 2, 3), normal(6, 3, seed=1)
    of_z, of_book = jax.grad(lambda z, c: jnp.sum(jnp.sin(nearest(z, c).latent)), (0, 1))(z, codebook)
    np.testing.assert_allclose(of_z, np.cos(nearest(z, codebook).entries), rtol=1e-5)
    np.testing.assert_array_equal(of_book, np.zeros((6, 3)))
    used = jax.grad(lambda c: jnp.sum(nearest(z, c).entries))(codebook)
    np.testing.assert_allclose(used[:, 0], np.bincount(nearest(z, codebook).indices.ravel(), minlength=6))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"entries": 0}, "vq: entries is 0"),
        ({"entry_width": 0}, "vq: entry_width is 0"),
        ({"widths": (4, 6), "groups": 4}, "vq: groups = 4 does not divide"),
    ],
)
def test_codebooks_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        vq(**changes)
