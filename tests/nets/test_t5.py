"""T5's encoder without weights: buckets of distances, what a token sees, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.network import count, initialize, shapes_of
from diffusion_jax.nets.t5 import bucket, t5
from tests.laws import quick
from tests.nets.tiny import stirred

TINY: Any = {
    "vocabulary": 20,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "head_width": 3,
    "hidden": 12,
    "buckets": 8,
    "reach": 6,
}
IDS = np.array([[3, 5, 2, 19, 1, 0], [4, 4, 7, 1, 0, 0]], np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]])


@functools.cache
def running(**changes):
    """Return the encoder as a function of parameters, ids and mask, and parameters that are all drawn."""
    module = t5(**{**TINY, **changes})
    params = stirred(initialize(module, jax.random.key(0), (IDS,)))
    return jax.jit(lambda params, ids, mask: module.apply({"params": params}, ids, mask)), params


def test_the_size_is_the_published_one():
    shapes = shapes_of(t5(), (jax.ShapeDtypeStruct((1, 8), jnp.int32),))
    assert count(shapes) == 4_762_310_656  # T5 1.1 XXL


def test_buckets_are_the_published_ones():
    """Distances up to 7 are alone; then 8, 12, 16, 23, 32, 46, 64 and 91 begin a bucket, and 128 has no other."""
    far = np.arange(300)
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    expected = np.searchsorted(starts, far, side="right") - 1
    np.testing.assert_array_equal(bucket(-far, 32, 128), expected)
    np.testing.assert_array_equal(bucket(far[1:], 32, 128), expected[1:] + 16)


def test_what_is_masked_changes_nothing_and_the_rest_does():
    run, params = running()
    other = np.where(MASK, IDS, 9)
    np.testing.assert_allclose(run(params, IDS, MASK)[0, :5], run(params, other, MASK)[0, :5], atol=1e-5)
    np.testing.assert_allclose(run(params, IDS, MASK)[1, :4], run(params, IDS[:, :4], None)[1], rtol=1e-4, atol=1e-5)
    assert np.abs(run(params, IDS, MASK) - run(params, IDS, None)).max() > 1e-3


def test_places_are_known_by_their_distance_alone():
    """Without the numbers of the buckets tokens have no order; with them a text may stand anywhere in a longer one."""
    run, params = running()
    order = [2, 0, 1, 5, 4, 3]
    flat = {**params, "places": jnp.ones_like(params["places"])}
    np.testing.assert_allclose(run(flat, IDS[:, order], None), run(flat, IDS, None)[:, order], rtol=1e-4, atol=1e-5)
    assert np.abs(run(params, IDS[:, order], None) - run(params, IDS, None)[:, order]).max() > 1e-3
    late = np.array([[0, 0, 3, 5, 2, 19]], np.int32)
    mask = np.array([[0, 0, 1, 1, 1, 1]])
    early = run(params, IDS[:1, :4], None)
    np.testing.assert_allclose(run(params, late, mask)[:, 2:], early, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feed", quick(["plain", "gated"], "gated"))
def test_every_parameter_counts_and_states_have_mean_square_one(feed):
    run, params = running(feed=feed)
    unscaled = {**params, "norm": {"scale": jnp.ones(8)}}
    np.testing.assert_allclose((run(unscaled, IDS, MASK) ** 2).mean(-1), 1, rtol=1e-3)
    weights = np.random.default_rng(0).normal(size=(2, 6, 8)).astype(np.float32)
    for path, leaf in jax.tree.leaves_with_path(jax.grad(lambda p: jnp.sum(run(p, IDS, MASK) * weights))(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, f"{jax.tree_util.keystr(path)} plays no part"


def test_numbers_that_are_no_tokens_give_nan():
    run, params = running()
    assert np.isnan(run(params, np.where(IDS == 19, 20, IDS), MASK)[0]).all()


@pytest.mark.slow
def test_in_bfloat16_parameters_and_results_stay_float32():
    run, params = running()
    rough, drawn = running(dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    exact, near = run(params, IDS, MASK), rough(params, IDS, MASK)
    assert near.dtype == jnp.float32
    assert 0 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buckets": 6}, "4 does not divide buckets = 6"),
        ({"buckets": 32, "reach": 8}, "t5: reach is 8; it must be a whole number of at least 9"),
        ({"feed": "gate"}, "unknown feed of t5 'gate'. Did you mean 'gated'"),
        ({"activation": "gelo"}, "unknown activation of t5 'gelo'"),
        ({"head_width": 0}, "t5: head_width is 0"),
    ],
)
def test_encoders_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        t5(**{**TINY, **changes})


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        (IDS[0], None, "must be whole numbers"),
        (IDS.astype(np.float32), None, "ids are float32"),
        (IDS, MASK[:1], r"the mask is \(1, 6\) and must be like the ids"),
    ],
)
def test_inputs_that_cannot_be_are_refused(ids, mask, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(t5(**TINY).init, jax.random.key(0), ids, mask)
