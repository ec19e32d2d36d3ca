"""Layers against their plain forms: normalisation, convolution, embedding, initial laws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.naming import choose
from diffusion_jax.nets import conv
from diffusion_jax.nets.activation import ACTIVATIONS
from diffusion_jax.nets.embed import TIME_EMBEDDINGS
from diffusion_jax.nets.initial import SCHEMES
from diffusion_jax.nets.linear import Conv, Dense, TransposedConv
from diffusion_jax.nets.norm import NORMS, GroupNorm, LayerNorm, RMSNorm, groups_for
from diffusion_jax.nets.product import flat


def normal(*shape, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def started(layer, x) -> Any:
    """Return a layer's output at its beginning, and its parameters."""
    return jax.jit(layer.init_with_output)(jax.random.key(0), x)


def test_group_norm_is_that_of_flax_with_its_gradients():
    x, weights = normal(3, 4, 5, 12) * 3 + 2, normal(3, 4, 5, 12, seed=3)
    scale, bias = normal(12, seed=1), normal(12, seed=2)
    ways = [GroupNorm(groups=3, epsilon=1e-3), nn.GroupNorm(num_groups=3, epsilon=1e-3, use_fast_variance=False)]

    def value(way, x, scale, bias):
        out = way.apply({"params": {"scale": scale, "bias": bias}}, x)
        return jnp.sum(out * weights), out

    results = [
        jax.jit(jax.value_and_grad(lambda *a, way=way: value(way, *a), (0, 1, 2), has_aux=True))(x, scale, bias)
        for way in ways
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4), *results)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3), (2, 4, 5, 3)])
def test_the_flat_product_is_that_over_all_axes_whatever_is_derived(shape):
    x, kernel, weights = normal(*shape), normal(3, 7, seed=1), normal(*shape[:-1], 7, seed=2)

    def results(way):
        value = lambda x, kernel: jnp.sum(jnp.sin(way(x, kernel)) * weights)
        pushed = jax.jvp(way, (x, kernel), (x * x, kernel + 1))
        return pushed, jax.grad(value, (0, 1))(x, kernel), jax.vmap(way, (None, 0))(x, jnp.stack([kernel] * 2))

    ours, theirs = (jax.jit(results, static_argnums=0)(way) for way in (flat, lambda x, k: jnp.tensordot(x, k, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("name", NORMS)
def test_a_modulation_scales_and_shifts_what_the_norm_returns(name):
    norm, x, told = NORMS[name](groups=2, epsilon=1e-6), normal(2, 3, 3, 8), normal(2, 16, seed=1)
    plain, params = started(norm, x)
    modulated = jax.jit(norm.apply)(params, x, told)
    scale, shift = told[:, None, None, :8], told[:, None, None, 8:]
    np.testing.assert_allclose(modulated, plain * (1 + scale) + shift, rtol=1e-5, atol=1e-5)


def test_norms_have_their_moments_even_far_from_zero_and_in_bfloat16():
    far = normal(2, 16, 16, 8) + 1000.0
    out = np.asarray(started(GroupNorm(groups=2), far)[0]).reshape(2, -1, 2, 4)
    np.testing.assert_allclose(out.mean((1, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(out.std((1, 3)), 1, atol=1e-3)
    half = jnp.asarray(normal(2, 64, 64, 8) + 3, jnp.bfloat16)
    for norm in (GroupNorm(groups=2), LayerNorm(), RMSNorm()):
        (narrow, _), (wide, _) = started(norm, half), started(norm, half.astype(jnp.float32))
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    x = normal(3, 7)
    rows = np.asarray(started(LayerNorm(), x)[0])
    np.testing.assert_allclose(rows.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(rows.std(-1), 1, atol=1e-4)
    rows = np.asarray(started(RMSNorm(), 5 * x)[0])
    np.testing.assert_allclose((rows**2).mean(-1), 1, atol=1e-4)


def test_groups_divide_the_channels():
    assert groups_for(128, 32) == 32 and groups_for(320, 32) == 32
    assert groups_for(32, 32) == 8 and groups_for(3, 32) == 1
    for channels in range(1, 200):
        assert channels % groups_for(channels, 32) == 0


@pytest.mark.parametrize(("shape", "size", "limit"), [((4, 5, 6, 3), 3, 800), ((2, 6, 5, 2), 5, 2**20)])
def test_the_convolution_by_products_is_the_plain_one_whatever_is_derived(shape, size, limit, monkeypatch):
    """Values, both gradients, forward mode, a gradient of a forward derivative, vmap and second order."""
    monkeypatch.setattr(conv, "CACHE", limit)
    arrays = normal(*shape), normal(size, size, shape[-1], 4, seed=1), normal(*shape, seed=2)

    def results(way, x, kernel, away):
        loss = lambda x, kernel: jnp.sum(jnp.sin(way(x, kernel)))
        forward = lambda kernel: jax.jvp(lambda x: loss(x, kernel), (x,), (away,))[1]
        both = jax.jvp(way, (x, kernel), (away, jnp.cos(kernel)))
        grads = jax.grad(loss, (0, 1))(x, kernel)
        mixed = jax.grad(lambda x: jnp.sum(jax.grad(loss, 1)(x, kernel) ** 2))(x)
        return both, grads, jax.grad(forward)(kernel), jax.vmap(way, (None, 0))(x, jnp.stack([kernel, -kernel])), mixed

    ours, theirs = (jax.jit(results, static_argnums=0)(way, *arrays) for way in (conv.by_products, conv.plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-3), ours, theirs)


def test_a_convolution_is_its_sum_over_the_window():
    x, kernel = normal(2, 5, 4, 3), normal(3, 3, 3, 2, seed=1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    by_hand = np.sum([padded[:, k : k + 5, m : m + 4] @ kernel[k, m] for k in range(3) for m in range(3)], 0)
    np.testing.assert_allclose(conv.convolve(x, kernel), by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(conv.convolve(x, kernel[:1, :1]), x @ kernel[0, 0], rtol=1e-5, atol=1e-6)
    beside = np.sum([x[:, k:4:2, m::2] @ kernel[k, m] for k in range(2) for m in range(2)], 0)
    strided = conv.convolve(x[:, :4], kernel, stride=2, padding=(1, 1))
    np.testing.assert_allclose(strided[:, 0, 0], by_hand[:, 0, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(conv.convolve(x, kernel[:2, :2], stride=2, padding=(0, 0)), beside, rtol=1e-4, atol=1e-5)
    late = conv.convolve(x[:, :4], kernel, stride=2, padding=(0, 1))
    np.testing.assert_allclose(late[:, 0, 0], by_hand[:, 1, 1], rtol=1e-4, atol=1e-5)


def test_wide_convolutions_on_a_cpu_take_the_fast_path_and_narrow_ones_do_not():
    def has_products(channels):
        text = str(jax.make_jaxpr(conv.convolve)(jnp.zeros((1, 4, 4, channels)), jnp.zeros((3, 3, channels, 32))))
        return "custom_jvp_call" in text

    assert has_products(32) and not has_products(31)


def test_layers_cast_their_parameters_to_the_dtype_of_x():
    for layer in (Dense(4), Conv(4), TransposedConv(4)):
        out, params = started(layer, jnp.ones((1, 2, 2, 3), jnp.bfloat16))
        assert out.dtype == jnp.bfloat16
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_a_transposed_convolution_gives_every_corner_its_own_kernel():
    x = normal(1, 2, 3, 4)
    out, params = started(TransposedConv(5), x)
    kernel = np.asarray(params["params"]["kernel"])
    for i in range(2):
        for j in range(2):
            np.testing.assert_allclose(out[:, i::2, j::2], x @ kernel[i, j], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_gates(name):
    """f(x) - f(-x) = x, f(0) = 0, and far to the left nothing passes."""
    act, x = ACTIVATIONS[name], jnp.linspace(-4, 4, 33)
    np.testing.assert_allclose(act(x) - act(-x), x, atol=1e-5)
    assert abs(float(act(jnp.float32(-30.0)))) < 1e-6


@pytest.mark.parametrize("name", SCHEMES)
def test_kernels_have_the_published_variance(name):
    fans = {"fan_average": 1 / 150, "fan_in": 1 / 3 / 100, "he": 2 / 100}
    scheme, shape = choose(SCHEMES, name, "initial"), (2, 2, 25, 50)
    kernel = scheme.kernel(jax.random.key(0), shape)
    np.testing.assert_allclose(kernel.var(), fans[name], rtol=0.1)
    assert abs(float(kernel.mean())) < 5 * np.sqrt(fans[name] / kernel.size)
    bias = np.asarray(scheme.bias(100)(jax.random.key(1), (4000,)))
    expected = 0.1 / np.sqrt(3) if name == "fan_in" else 0.0
    np.testing.assert_allclose(bias.std(), expected, rtol=0.05)
    assert np.abs(bias).max() <= 0.1


@pytest.mark.parametrize("name", TIME_EMBEDDINGS)
def test_the_likeness_of_two_times_depends_on_their_difference_only(name):
    waves = TIME_EMBEDDINGS[name]()
    t = jnp.linspace(0, 1, 9)
    if name == "none":
        assert waves(t, 16) is None
        return
    told = waves(t, 16)
    assert told.dtype == jnp.float32
    alike = np.asarray(told @ told.T)
    for lag in range(9):
        np.testing.assert_allclose(np.diag(alike, lag), alike[0, lag], atol=2e-3)
    np.testing.assert_allclose(np.diag(alike), told.shape[1] / 2, rtol=1e-4)
    np.testing.assert_array_equal(waves(t, 16), told)
    scaled = TIME_EMBEDDINGS[name](time_scale=1.0)(t * 7, 16)
    np.testing.assert_allclose(TIME_EMBEDDINGS[name](time_scale=7.0)(t, 16), scaled, atol=1e-3)


def test_frequencies_are_the_published_ones():
    """ADM's end one short of 1 / period, DDPM's reach it; a thousand steps are told apart."""
    step = jnp.float32([3 / 1000])
    n = np.arange(64)
    adm = np.concatenate([np.cos(3 * 10000 ** (-n / 64)), np.sin(3 * 10000 ** (-n / 64))])
    np.testing.assert_allclose(TIME_EMBEDDINGS["sinusoidal"]()(step, 128)[0], adm, atol=1e-5)
    ddpm = np.concatenate([np.sin(3 * 10000 ** (-n / 63)), np.cos(3 * 10000 ** (-n / 63))])
    np.testing.assert_allclose(TIME_EMBEDDINGS["positional"]()(step, 128)[0], ddpm, atol=1e-5)
    steps = TIME_EMBEDDINGS["sinusoidal"]()(jnp.arange(1, 1001) / 1000, 32)
    assert len(np.unique(np.asarray(steps), axis=0)) == 1000
