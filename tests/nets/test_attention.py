"""Attention: what it may depend on, and what not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets import attention, remat
from diffusion_jax.nets.attention import Attention, attend, grid_angles, grid_waves, rotate
from diffusion_jax.nets.network import initialize
from diffusion_jax.nets.remat import within


def normal(*shape, seed=0) -> Any:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


attending = jax.jit(attend)


def test_attention_is_its_formula_and_knows_no_order():
    q, k, v = normal(2, 5, 3, 4), normal(2, 7, 3, 4, seed=1), normal(2, 7, 3, 4, seed=2)
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / 2)
    weights /= weights.sum(-1, keepdims=True)
    out = attending(q, k, v)
    np.testing.assert_allclose(out, np.einsum("bhqk,bkhd->bqhd", weights, v), rtol=1e-4, atol=1e-5)
    order, other = np.array([3, 1, 0, 6, 2, 5, 4]), np.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(attending(q, k[:, order], v[:, order]), out, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(attending(q[:, other], k, v), out[:, other], rtol=1e-4, atol=1e-6)


def test_masked_tokens_do_not_matter_and_no_token_gives_nothing():
    q, k, v = normal(3, 5, 2, 4), normal(3, 6, 2, 4, seed=1), normal(3, 6, 2, 4, seed=2)
    mask: Any = np.arange(6)[None] < np.array([4, 6, 0])[:, None]
    out = attending(q, k, v, mask)
    np.testing.assert_allclose(out[0], attending(q[:1], k[:1, :4], v[:1, :4])[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out[1], attending(q[1:2], k[1:2], v[1:2])[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(out[2], 0)
    slope = jax.jit(jax.grad(lambda v: attend(q, k, v, mask).sum()))(v)
    assert np.isfinite(slope).all() and (slope[0, 4:] == 0).all() and (slope[2] == 0).all()


def test_rotary_products_depend_on_differences_of_positions_only():
    height, width, dim = 5, 6, 8
    angles = grid_angles(height, width, dim)
    q, k = (np.broadcast_to(normal(1, 1, 1, dim, seed=s), (1, height * width, 1, dim)) for s in (0, 1))
    turned_q, turned_k = (np.asarray(jax.jit(rotate)(part, angles)) for part in (q, k))
    products = np.einsum("bqhd,bkhd->qk", turned_q, turned_k).reshape(height, width, height, width)
    np.testing.assert_allclose(products[1:, 1:, 1:, 1:], products[:-1, :-1, :-1, :-1], atol=1e-4)
    assert np.abs(products[0, 0] - products[0, 0, 0, 0]).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(turned_q, axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5)


def test_positions_tell_every_patch_apart():
    for table in (grid_waves(4, 6, 16), grid_angles(4, 6, 16)):
        assert table.shape[0] == 24 and len(np.unique(table.round(5), axis=0)) == 24
    waves = grid_waves(4, 6, 16).reshape(4, 6, 16)
    np.testing.assert_array_equal(waves[1:, :, :8], waves[:-1, :, :8])  # the first half knows the column only
    np.testing.assert_array_equal(waves[:, 1:, 8:], waves[:, :-1, 8:])


def test_normalised_queries_and_keys_bound_the_products():
    """Inputs of any size attend alike."""
    x = normal(1, 6, 8)
    layer = Attention(heads=2, normalized="rms", bias=False)
    params = initialize(layer, jax.random.key(0), (x,))
    answer: Any = jax.jit(lambda x: layer.apply({"params": params}, x))
    np.testing.assert_allclose(answer(50 * x), 50 * answer(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("masked", "biased"), [(False, False), (True, False), (True, True)])
def test_the_form_for_cpus_is_jaxs_own_with_its_gradients(masked, biased):
    arrays = normal(2, 5, 3, 4), normal(2, 7, 3, 4, seed=1), normal(2, 7, 3, 4, seed=2)
    mask = np.arange(7)[None, None, None] < np.array([4, 7])[:, None, None, None] if masked else None
    more: Any = {"bias": normal(1, 3, 5, 7, seed=3), "scale": 0.7} if biased else {}

    def results(way):
        loss = lambda *arrays: (jnp.sin(y := way(*arrays, mask=mask, **more)).sum(), y)
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)

    ours, theirs = results(attention.on_cpu), results(jax.nn.dot_product_attention)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


@pytest.mark.parametrize(
    ("platform", "dtype", "dim", "chosen"),
    [
        ("tpu", "bfloat16", 64, "xla"),
        ("gpu", "bfloat16", 64, "cudnn"),
        ("gpu", "float16", 128, "cudnn"),
        ("gpu", "float32", 64, "xla"),
        ("gpu", "bfloat16", 256, "xla"),
        ("gpu", "bfloat16", 20, "xla"),
    ],
)
def test_the_fused_kernel_is_chosen_where_it_exists(platform, dtype, dim, chosen, monkeypatch):
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, implementation, **__: asked.append(implementation))
    attend(*3 * [jnp.zeros((1, 4, 2, dim), dtype)])
    assert asked == [chosen]


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (4, 6), (5, 6), (4, 77)])
def test_the_fused_kernel_is_asked_as_it_wants_to_be(queries, keys, monkeypatch):
    """As its own checks say: a bias (B, 1, T, L) of even T and L; what is added for that changes nothing."""
    real = jax.nn.dot_product_attention

    def strict(q, k, v, *, mask, scale, implementation):
        assert implementation == "cudnn" and q.shape[1] % 2 == k.shape[1] % 2 == 0
        assert mask.shape == (q.shape[0], 1, q.shape[1], k.shape[1])
        return real(q, k, v, mask=mask, scale=scale, implementation="xla")

    lengths = (queries, keys, keys)
    arrays = [normal(3, length, 2, 8, seed=seed).astype(jnp.bfloat16) for seed, length in enumerate(lengths)]
    mask = jnp.arange(keys)[None] < jnp.asarray([[1], [keys], [keys // 2]])
    loss = lambda *arrays: jnp.sin(attend(*arrays, mask=mask).astype(jnp.float32)).sum()
    wanted = jax.value_and_grad(loss, (0, 1, 2))(*arrays)
    monkeypatch.setattr(attention, "platform", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", strict)
    found = jax.value_and_grad(loss, (0, 1, 2))(*arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), atol=0.05), found, wanted)


@pytest.mark.parametrize("remat", [remat.none, remat.blocks], ids=lambda one: one.__name__)
def test_off_the_cpu_the_weights_are_not_kept_for_the_gradient(remat, monkeypatch):
    """The largest array there is: unless blocks are computed again as a whole, which is said once and is enough."""
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    q, k, v = normal(2, 32, 2, 4), normal(2, 48, 2, 4, seed=1), normal(2, 48, 2, 4, seed=2)
    with within(remat):
        out, pull = jax.vjp(attend, q, k, v)
    plain, pull_plain = jax.vjp(jax.nn.dot_product_attention, q, k, v)
    ours, theirs = ((y, *back(jnp.ones_like(y))) for y, back in ((out, pull), (plain, pull_plain)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), tuple(ours), tuple(theirs))
    largest = max(leaf.size for leaf in jax.tree.leaves(pull))
    assert (largest < 2 * 2 * 32 * 48) == (remat.__name__ == "none")
