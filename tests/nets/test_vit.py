"""Blocks of vision transformers: what a token may depend on, and that a stack is its blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.nets.attention import Attention
from diffusion_jax.nets.network import initialize
from diffusion_jax.nets.vit import FEEDS, SIGHTS, Block, Patches, SelfAttention, Shape, blocks, first

SHAPE = Shape(width=8, depth=3, heads=2, hidden=12, feed="gelu", epsilon=1e-5)


def normal(*shape, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Stack(nn.Module):
    shape: Shape

    @nn.compact
    def __call__(self, h):
        return blocks(self.shape, h)


def built(shape):
    """Return a stack as a function and its parameters, all of them drawn."""
    params = initialize(Stack(shape), jax.random.key(0), (normal(1, 5, shape.width),))
    drawn = jax.tree.map(lambda leaf: leaf + 0.3 * normal(*leaf.shape), params)
    return jax.jit(lambda params, h: Stack(shape).apply({"params": params}, h)), drawn


@pytest.mark.parametrize("feed", FEEDS)
def test_a_stack_is_its_blocks_one_after_the_other(feed):
    shape = SHAPE._replace(feed=feed, scale="learned")
    run, params = built(shape)
    h = normal(2, 5, 8, seed=1)
    last, each = run(params, h)
    block = jax.jit(Block(shape).apply)
    for index in range(shape.depth):
        own = jax.tree.map(lambda leaf, index=index: leaf[index], params["blocks"])
        h, _ = block({"params": own}, h, None)
        np.testing.assert_allclose(each[index], h, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(last, each[-1])


@pytest.mark.parametrize("sight", SIGHTS)
def test_what_a_token_sees(sight):
    run, params = built(SHAPE._replace(sight=sight))
    h = normal(1, 5, 8)
    other = h.copy()
    other[:, 2] = normal(8, seed=1)
    moved = np.abs(run(params, h)[0] - run(params, other)[0])[0].max(-1) > 1e-4
    assert moved.tolist() == {"full": [True] * 5, "causal": [False, False, True, True, True]}[sight]
    order = np.array([3, 0, 4, 1, 2])
    same = np.allclose(run(params, h[:, order])[0], run(params, h)[0][:, order], atol=1e-5)
    assert same == (sight == "full")  # tokens have no order but that of who sees whom


def test_the_last_token_of_causal_attention_sees_all():
    x = normal(2, 5, 8)
    params = initialize(SelfAttention(2), jax.random.key(0), (x,))
    layers = SelfAttention(2), SelfAttention(2, "causal"), Attention(2)
    full, causal, plain = jax.jit(lambda: [layer.apply({"params": params}, x) for layer in layers])()
    np.testing.assert_allclose(full[:, -1], causal[:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(full, plain, rtol=1e-6)


def test_a_scale_of_zero_leaves_a_block_out():
    run, params = built(SHAPE._replace(scale="learned"))
    inner = {**params["blocks"], "scale_1": jnp.zeros((3, 8)), "scale_2": jnp.zeros((3, 8))}
    np.testing.assert_array_equal(run({"blocks": inner}, normal(1, 5, 8))[0], normal(1, 5, 8))


@pytest.mark.parametrize("feed", FEEDS)
def test_feeds_let_through_what_is_large(feed):
    gate, value = jnp.array([[30.0, -30.0]]), jnp.array([[2.0, 3.0]])
    expected, x = ([[60.0, 0.0]], jnp.concatenate([gate, value], 1)) if feed == "swiglu" else ([[30.0, 0.0]], gate)
    np.testing.assert_allclose(FEEDS[feed](x), expected, atol=1e-6)


def test_quick_gelu_is_near_gelu():
    x = jnp.linspace(-6, 6, 999)
    away = np.abs(FEEDS["quick_gelu"](x) - FEEDS["gelu"](x)).max()
    assert 0.01 < away < 0.021


def test_norms_and_softmax_are_in_float32():
    """A constant far from zero is removed by the norms, which half precision would do badly."""
    run, params = built(SHAPE)
    h = normal(2, 5, 8)
    scaled = {"blocks": {**params["blocks"], "attention": jax.tree.map(lambda w: 3 * w, params["blocks"]["attention"])}}
    exact, rough = (run(scaled, h.astype(dtype))[0] for dtype in (jnp.float32, jnp.bfloat16))
    assert rough.dtype == jnp.bfloat16
    assert np.abs(exact - rough.astype(jnp.float32)).max() < 0.03 * np.abs(exact).max()


def test_patches_are_products_with_the_pixels_of_each():
    x = normal(2, 6, 9, 3)
    params = initialize(Patches(4, 3, bias=True), jax.random.key(0), (x,))
    params = {**params, "bias": jnp.arange(4.0)}
    found: Any = Patches(4, 3, bias=True).apply({"params": params}, x)
    for place, (row, column) in enumerate((row, column) for row in (0, 3) for column in (0, 3, 6)):
        pixels = x[:, row : row + 3, column : column + 3].reshape(2, -1)
        expected = pixels @ np.asarray(params["kernel"]).reshape(-1, 4) + np.arange(4)
        np.testing.assert_allclose(found[:, place], expected, rtol=1e-4, atol=1e-5)


def test_learned_tokens_come_first():
    h = normal(2, 3, 4)
    for token in (normal(4), normal(2, 4)):
        found = first(token, h)
        count = found.shape[1] - 3
        np.testing.assert_array_equal(found[1, :count], token.reshape(-1, 4))
        np.testing.assert_array_equal(found[:, count:], h)
