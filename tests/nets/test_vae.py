"""Autoencoders: what their halves do, what a draw from the posterior is, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.naming import choose
from diffusion_jax.nets import AUTOENCODERS
from diffusion_jax.nets.network import count, initialize, shapes_of
from diffusion_jax.nets.tiled import tiled
from diffusion_jax.nets.vae import LEAST, MOST, Posterior, kl, mode, sample, vae
from tests.nets.tiny import stirred

TINY: Any = {"channels": 2, "latent_channels": 3, "widths": (4, 8), "depth": 1, "groups": 2}


def normal(*shape, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@functools.cache
def built(name="vae", **changes):
    """Return an autoencoder and its parameters, all of them drawn."""
    module = choose(AUTOENCODERS, {"name": name, **TINY, **changes}, "autoencoder")
    return module, stirred(initialize(module, jax.random.key(0), (normal(1, 4, 4, 2),)), 0.1)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_images_come_back_in_their_shape_and_examples_are_kept_apart(name):
    module, params = built(name)
    run, x = jax.jit(lambda x: module.apply({"params": params}, x)), normal(2, 4, 8, 2)
    out, other = run(x), run(np.stack([x[0], x[0]]))
    assert out.shape == x.shape and out.dtype == jnp.float32
    np.testing.assert_allclose(out[0], other[0], rtol=1e-5, atol=1e-5)
    assert np.abs(out[1] - other[1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_in_bfloat16_parameters_and_results_stay_float32(name):
    module, params = built(name)
    rough, x = choose(AUTOENCODERS, {"name": name, **TINY, "dtype": "bfloat16"}, "autoencoder"), normal(1, 4, 4, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes_of(rough, (x,)))} == {jnp.dtype("float32")}
    exact, near = jax.jit(lambda: [net.apply({"params": params}, x) for net in (module, rough)])()
    assert near.dtype == jnp.float32
    assert 0 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_parameter_counts(name):
    """But for a codebook, which learns from its commitment and not from images."""
    module, params = built(name, attention=(1,))
    x, weights = normal(1, 4, 8, 2), normal(1, 4, 8, 2, seed=1)
    slope = jax.jit(jax.grad(lambda params: jnp.sum(module.apply({"params": params}, x) * weights)))(params)
    for path, leaf in jax.tree.leaves_with_path({**slope, "codebook": jnp.ones(1)}):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, f"{jax.tree_util.keystr(path)} plays no part"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ({"name": "vae"}, 83_653_863),  # Stable Diffusion 1, 2 and XL
        ({"name": "vae", "latent_channels": 16, "encoder_code": False, "decoder_code": False}, 83_819_683),  # 3, FLUX.1
        ({"name": "vq"}, 55_322_782),  # latent diffusion, VQ-f4
    ],
)
def test_sizes_are_the_published_ones(spec, published):
    shapes = shapes_of(choose(AUTOENCODERS, spec, "autoencoder"), (jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32),))
    assert count(shapes) == published


def test_large_images_are_evaluated_in_tiles():
    """A posterior is a tree of two; tiles of it and of its images have the sizes of the whole."""
    module, params = built()
    encode, decode = (
        lambda x, way=way: module.apply({"params": params}, x, method=way) for way in ("encode", "decode")
    )
    found: Any = jax.eval_shape(tiled(encode, tile=8, overlap=2), normal(1, 20, 14, 2))
    assert found.mean.shape == found.log_variance.shape == (1, 10, 7, 3)
    assert jax.eval_shape(tiled(decode, tile=4, overlap=1), found.mean).shape == (1, 20, 14, 2)


def test_draws_have_the_posteriors_moments():
    posterior = Posterior(*(jnp.full((20000, 1, 1, 2), value) for value in (0.5, np.log(0.09))))
    drawn = sample(posterior, jnp.asarray(normal(20000, 1, 1, 2)))
    np.testing.assert_allclose(drawn.mean((0, 1, 2)), 0.5, atol=0.01)
    np.testing.assert_allclose(drawn.std((0, 1, 2)), 0.3, rtol=0.02)
    np.testing.assert_array_equal(mode(posterior), sample(posterior, jnp.zeros((20000, 1, 1, 2))))


def test_the_divergence_is_the_mean_difference_of_log_densities():
    mean, log_variance, noise = normal(1, 2, 2, 3), 0.5 * normal(1, 2, 2, 3, seed=1), normal(40000, 2, 2, 3, seed=2)
    z = sample(Posterior(mean, log_variance), noise)
    difference = (-(noise**2) - log_variance + z**2).sum((1, 2, 3)) / 2
    np.testing.assert_allclose(difference.mean(), kl(Posterior(mean, log_variance))[0], rtol=0.02)
    np.testing.assert_array_equal(kl(Posterior(jnp.zeros((3, 2, 2, 1)), jnp.zeros((3, 2, 2, 1)))), np.zeros(3))


def test_log_variances_are_bounded():
    module, params = built()
    run = jax.jit(lambda params: module.apply({"params": params}, normal(1, 4, 4, 2), method="encode"))
    for value, bound in ((-99.0, LEAST), (99.0, MOST)):
        code = {"kernel": jnp.zeros((1, 1, 6, 6)), "bias": jnp.full(6, value)}
        found: Any = run({**params, "encoder": {**params["encoder"], "code": code}})
        np.testing.assert_array_equal(found.log_variance, np.full((1, 2, 2, 3), bound))
        np.testing.assert_array_equal(found.mean, np.full((1, 2, 2, 3), value))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"widths": (4, 6), "groups": 4}, r"vae: groups = 4 does not divide widths\[1\] = 6. Near it, 1, 2, 3, 6 do"),
        ({"widths": ()}, "vae: levels is 0"),
        ({"attention": (2,)}, "vae: attention at level 2; the levels are 0 to 1"),
        ({"middle": "attend"}, "unknown middle of vae 'attend'. Did you mean 'attention'"),
        ({"activation": "swish"}, "unknown activation of vae 'swish'"),
        ({"latent_channels": 0}, "vae: latent_channels is 0"),
        ({"dtype": "float16"}, "unknown dtype of vae 'float16'"),
        ({"padding": (2, 0)}, "padding is"),
    ],
)
def test_autoencoders_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        vae(**{**TINY, **changes})


@pytest.mark.parametrize(
    ("method", "shape", "words"),
    [
        ("encode", (1, 4, 5, 2), "4 by 5; both must be multiples of 2"),
        ("encode", (1, 4, 4, 3), r"\(batch, height, width, 2\)"),
        ("decode", (1, 4, 4, 2), r"\(batch, height, width, 3\)"),
    ],
)
def test_inputs_that_cannot_be_are_refused(method, shape, words):
    module, params = built()
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda x: module.apply({"params": params}, x, method=method), jnp.zeros(shape))
