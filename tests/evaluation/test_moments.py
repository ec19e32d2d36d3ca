"""Moments gathered in pieces are the moments of the whole."""

import numpy as np
import pytest

from diffusion_jax.evaluation.moments import ROWS, accumulate, covariance, empty, merge

POINTS = np.random.default_rng(0).normal(size=(ROWS + 300, 3)) @ np.array([[1, 2, 0], [0, 1, 0], [0, 0, 3.0]])


@pytest.mark.parametrize("ends", [[0, 7, 8, 500], [0, 1, 2, 3], [0, ROWS, ROWS + 299], [0]])
@pytest.mark.parametrize("away", [0.0, 1e6])
def test_any_batches_give_the_moments_of_all(ends, away):
    points = POINTS + away
    moments = empty(3)
    for start, end in zip(ends, [*ends[1:], len(points)], strict=True):
        moments = accumulate(moments, points[start:end])
    assert moments.count == len(points)
    np.testing.assert_allclose(moments.mean, points.mean(0), rtol=1e-12, atol=1e-14)
    # Far from zero, the features themselves have lost digits, and a sum of squares would lose all.
    np.testing.assert_allclose(covariance(moments), np.cov(POINTS.T), rtol=1e-7 if away else 1e-12)


def test_sets_merge_in_any_order():
    parts = [accumulate(empty(3), points) for points in np.split(POINTS, [100, 101, 101, 4000])]
    forth, back = empty(3), empty(3)
    for a, b in zip(parts, parts[::-1], strict=True):
        forth, back = merge(forth, a), merge(b, back)
    for a, b in zip(forth, back, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_features_in_float32_are_summed_in_float64():
    moments = accumulate(empty(3), POINTS.astype(np.float32))
    np.testing.assert_allclose(moments.mean, POINTS.astype(np.float32).mean(0, dtype=np.float64), rtol=1e-12)
    assert moments.scatter.dtype == np.float64


@pytest.mark.parametrize(
    ("features", "words"),
    [(np.ones((2, 4)), r"must be \(n, 3\)"), (np.ones(3), r"must be \(n, 3\)"), (np.full((2, 3), np.nan), "6 of 6")],
)
def test_what_are_not_features_is_refused(features, words):
    with pytest.raises(ValueError, match=words):
        accumulate(empty(3), features)


def test_a_covariance_needs_two():
    with pytest.raises(ValueError, match="there are 1"):
        covariance(accumulate(empty(3), POINTS[:1]))
