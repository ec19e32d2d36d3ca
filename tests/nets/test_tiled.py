"""Tiles: what sees its own pixel is not changed by them, and nothing is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.resample import average
from diffusion_jax.nets.tiled import tiled


def image(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


LOCAL = {"same": lambda x: x**2, "half": average().down, "twice": average().up}


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [((2, 20, 12, 3), 8, 4), ((1, 14, 8, 1), 8, 0), ((1, 6, 22, 2), 8, 2), ((1, 8, 9 * 2, 1), 6, 4)],
)
def test_what_sees_its_own_pixel_is_the_same_in_tiles(name, shape, tile, overlap):
    x = image(*shape)
    found = jax.jit(tiled(LOCAL[name], tile=tile, overlap=overlap))(x)
    np.testing.assert_allclose(found, LOCAL[name](x), rtol=1e-5, atol=1e-6)


def test_images_of_one_tile_are_handed_over_whole():
    x = image(1, 8, 6, 2)
    np.testing.assert_array_equal(tiled(lambda x: x - x.mean(), tile=8, overlap=2)(x), x - x.mean())


def test_results_are_blended_linearly_and_trees_are_kept():
    """Tiles that return their own means: between two tiles the result goes from one to the other."""
    x = jnp.concatenate([jnp.zeros((1, 4, 8, 1)), jnp.ones((1, 4, 4, 1))], 2)
    means = lambda x: {"mean": jnp.broadcast_to(x.mean((1, 2, 3), keepdims=True), x.shape), "x": x}
    found = jax.jit(tiled(means, tile=8, overlap=4))(x)
    expected = 0.5 * np.array([0, 0, 0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1, 1, 1])
    np.testing.assert_allclose(found["mean"][0, 0, :, 0], expected, atol=1e-6)
    np.testing.assert_allclose(found["x"], x, atol=1e-6)


def test_only_one_tile_is_evaluated_at_a_time():
    shapes = []
    look = lambda x: shapes.append(x.shape) or x
    jax.eval_shape(tiled(look, tile=8, overlap=2), image(1, 64, 32, 1))
    assert set(shapes) == {(1, 8, 8, 1)}


@pytest.mark.parametrize(
    ("tile", "overlap", "side", "words"),
    [
        (0, 0, 8, "tiled: tile is 0"),
        (8, 8, 16, "overlap = 8 leaves nothing of a tile of 8"),
        (8, 3, 16, r"must be multiples of 2"),
        (8, 2, 15, r"must be multiples of 2"),
    ],
)
def test_tiles_that_cannot_be_are_refused(tile, overlap, side, words):
    with pytest.raises(ValueError, match=words):
        tiled(LOCAL["half"], tile=tile, overlap=overlap)(image(1, 16, side, 1))
