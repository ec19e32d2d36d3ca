"""CLIP and DINOv2 without weights: where a text ends, and what is refused."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.clip import clip_text, clip_vision
from diffusion_jax.nets.dinov2 import dinov2
from diffusion_jax.nets.network import initialize

TINY: Any = {"width": 8, "depth": 1, "heads": 2, "hidden": 8}
TEXT: Any = {**TINY, "vocabulary": 20, "length": 8, "projection": 4}
IDS = np.array([[18, 3, 5, 2, 19, 19, 19, 0]], np.int32)


@functools.cache
def running(end=None):
    """Return the text half as a function, with parameters that are all drawn."""
    module = clip_text(**TEXT, end=end)
    drawn = initialize(module, jax.random.key(0), (IDS,))
    params = jax.tree.map(lambda leaf: leaf + 0.5 * np.random.default_rng(0).normal(size=leaf.shape), drawn)
    return jax.jit(lambda ids: module.apply({"params": params}, ids))


def test_a_text_ends_at_its_end_or_its_greatest_number():
    for end, place in ((None, 4), (2, 3)):
        found = running(end)(IDS)
        np.testing.assert_array_equal(found.pooled[0], found.tokens[0, place])


def test_what_follows_the_end_changes_nothing():
    other = IDS.copy()
    other[0, 5:] = (1, 7, 4)
    for end in (None, 2):
        np.testing.assert_array_equal(running(end)(IDS).projected, running(end)(other).projected)
    np.testing.assert_allclose(running()(IDS).pooled, running()(IDS[:, :5]).pooled, rtol=1e-4, atol=1e-5)


def test_numbers_that_are_no_tokens_give_nan():
    bad = IDS.copy()
    bad[0, 1] = 20
    assert np.isnan(running()(bad).projected).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: clip_text(**{**TEXT, "heads": 3}), "clip_text: heads = 3 does not divide width = 8"),
        (lambda: clip_text(**TEXT, feed="gelo"), "unknown feed of clip_text 'gelo'. Did you mean 'gelu'"),
        (lambda: clip_text(**TEXT, end=-1), "clip_text: end is -1"),
        (lambda: clip_text(**TEXT, dtype="float8"), "unknown dtype of clip_text"),
        (lambda: clip_vision(size=30, patch=14), "clip_vision: patch = 14 does not divide size = 30"),
        (lambda: dinov2(registers=-1), "dinov2: registers is -1"),
        (lambda: dinov2(positions="original "), "Did you mean 'original'"),
    ],
)
def test_networks_that_cannot_be_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (clip_text(**TEXT), np.zeros((1, 9), np.int32), "T of at most 8"),
        (clip_text(**TEXT), np.zeros((1, 8), np.float32), "ids are float32"),
        (clip_text(**TEXT), np.zeros(8, np.int32), "must be whole numbers"),
        (clip_vision(size=8, patch=4, **TINY), np.zeros((1, 8, 12, 3)), r"must be \(B, 8, 8, 3\)"),
        (dinov2(grid=2, patch=4, **TINY), np.zeros((1, 8, 10, 3)), "8 by 10; both must be multiples of 4"),
        (dinov2(grid=2, patch=4, **TINY), np.zeros((1, 8, 8, 1)), r"\(batch, height, width, 3\)"),
    ],
)
def test_inputs_that_cannot_be_are_refused(module, inputs, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(inputs))
