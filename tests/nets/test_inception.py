"""The FID Inception: parity with other implementations on random weights, and where its features come from."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.inception import fold, inception, random_weights, shapes, widths

NAMES = {"64": "pool_64", "192": "pool_192", "768": "pool_768", "2048": "pool", "logits_unbiased": "logits"}


@functools.cache
def network():
    """Return the jitted network and its random weights, compiled once."""
    return jax.jit(inception), random_weights()


def test_every_layer_is_that_of_other_implementations(reference):
    run, weights = network()
    known = reference("inception_random.npz")
    image = known["299x299/images"].astype(np.float32)
    ways = {"pytorch_fid": image / 127.5 - 1, "torch_fidelity": (image - 128) / 128}
    compared = 0
    for way, x in ways.items():
        found = run(fold(weights), x)
        assert {kind: rows.shape[1] for kind, rows in found.items()} == widths()
        for name, kind in NAMES.items():
            if f"299x299/{way}/{name}" in known:
                expected = known[f"299x299/{way}/{name}"]
                scale = np.abs(expected).max()
                np.testing.assert_allclose(found[kind], expected, rtol=1e-4, atol=2e-6 * scale)
                compared += 1
    assert compared == 6


def test_the_spatial_features_are_seven_channels_of_the_first_branch_of_the_seventh_block(reference):
    """With gain 0 there, the channels are their biases, and the seven are together at each pixel."""
    run, weights = network()
    weights = dict(weights)
    name = "Mixed_6d.branch1x1.bn"
    weights[f"{name}.weight"] = np.zeros_like(weights[f"{name}.weight"])
    weights[f"{name}.bias"] = np.arange(1.0, 193.0, dtype=np.float32)
    found = run(fold(weights), jnp.zeros((1, 299, 299, 3)))
    np.testing.assert_allclose(found["spatial"], np.tile(np.arange(1.0, 8.0), 17 * 17)[None])


def test_folding_is_the_normalisation_of_the_convolution():
    weights, conv = network()[1], "Conv2d_3b_1x1"
    x = np.random.default_rng(0).normal(size=64)
    mean, variance, gain, bias = (
        weights[f"{conv}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    expected = (weights[f"{conv}.conv.weight"][:, :, 0, 0] @ x - mean) / np.sqrt(variance + 0.001) * gain + bias
    folded = fold(weights)[conv]
    np.testing.assert_allclose(x @ np.asarray(folded["kernel"][0, 0]) + folded["bias"], expected, rtol=1e-4, atol=1e-4)


def test_random_weights_depend_on_the_seed():
    one, other = random_weights(), random_weights(1)
    assert {name: array.shape for name, array in one.items()} == shapes()
    assert all(np.any(one[name] != other[name]) for name in one)


def test_other_networks_are_refused():
    weights = dict(network()[1])
    wrong = {**weights, "fc.weight": np.zeros((1000, 2048))}
    with pytest.raises(ValueError, match=r"'fc.weight' is \(1000, 2048\) where the FID Inception has \(1008, 2048\)"):
        fold(wrong)
    del weights["Mixed_7c.branch_pool.bn.bias"]
    with pytest.raises(ValueError, match=r"have no 'Mixed_7c.branch_pool.bn.bias'.*not of another Inception"):
        fold(weights)
    with pytest.raises(ValueError, match="as a resizing gives"):
        inception({}, jnp.zeros((1, 32, 32, 3)))


@pytest.mark.slow
def test_half_precision_is_near(reference):
    run, weights = network()
    x = jnp.asarray(reference("inception_random.npz")["299x299/images"].astype(np.float32) / 127.5 - 1)
    exact, near = run(fold(weights), x), run(fold(weights, jnp.bfloat16), x)
    for kind in widths():
        assert near[kind].dtype == jnp.float32
        error = np.abs(near[kind] - exact[kind]).max() / np.abs(exact[kind]).max()
        assert 0 < error < 0.05, kind
