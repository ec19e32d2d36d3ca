"""Densities in the plane against the oracle, quadrature and their own draws."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.data.density import DENSITIES, density
from diffusion_jax.process import oracle

KEYWORDS = [
    {"name": "ring", "count": 5, "radius": 1.5, "std": 0.3},
    {"name": "moons", "std": 0.2, "count": 7},
    {"name": "spiral", "arms": 3, "turns": 0.8, "std": 0.1, "count": 9},
    {"name": "checkerboard", "cells": 6, "fine": 2},
]


def grid(side=6.0, count=301):
    axis = np.linspace(-side, side, count)
    return np.stack(np.meshgrid(axis, axis), -1), (axis[1] - axis[0]) ** 2


def test_the_names_are_the_oracles():
    assert set(DENSITIES) == set(oracle.DENSITIES)


@pytest.mark.parametrize("kind", [*DENSITIES, *KEYWORDS], ids=str)
def test_log_density_is_the_oracles(x64, kind):
    keywords = {} if isinstance(kind, str) else {name: value for name, value in kind.items() if name != "name"}
    name = kind if isinstance(kind, str) else kind["name"]
    exact = oracle.DENSITIES[name](**keywords)
    x = np.random.default_rng(0).normal(size=(50, 2)) * 2
    ours = density(kind=kind)
    np.testing.assert_allclose(ours.log_density(x), exact.log_density(jnp.asarray(x)), rtol=1e-10)
    np.testing.assert_array_equal(ours.rounds.labels, exact.labels)
    assert ours.info.num_classes == exact.labels.max() + 1


@pytest.mark.parametrize("kind", DENSITIES)
def test_it_integrates_to_one_and_to_its_entropy(kind):
    source = density(kind=kind)
    points, pixel = grid(side=5.0, count=201)
    log_p = source.log_density(points)
    assert np.exp(log_p).sum() * pixel == pytest.approx(1, abs=1e-9)
    assert source.entropy == pytest.approx(-(np.exp(log_p) * log_p).sum() * pixel, abs=1e-6)


def test_the_entropy_of_one_gaussian_is_known():
    one = density(kind={"name": "ring", "count": 1, "radius": 0.0, "std": 0.37})
    assert one.entropy == pytest.approx(np.log(2 * np.pi * np.e * 0.37**2), abs=1e-10)


@pytest.mark.parametrize("kind", DENSITIES)
def test_draws_follow_the_density(kind):
    source = density(kind=kind, examples=1500, seed=1)
    drawn = [source[i] for i in range(len(source))]
    x = np.stack([example["x"] for example in drawn])
    rounds = source.rounds
    for axis in (0, 1):

        def share_below(value, axis=axis):
            below = stats.norm.cdf((value[:, None] - rounds.means[:, axis]) / rounds.stds)
            return below @ rounds.weights

        assert stats.kstest(x[:, axis], share_below).pvalue > 1e-3
    surprise = -source.log_density(x)
    assert surprise.mean() == pytest.approx(source.entropy, abs=5 * surprise.std() / np.sqrt(len(x)))
    counts = np.bincount([example["label"] for example in drawn], minlength=source.info.num_classes)
    expected = np.bincount(rounds.labels, rounds.weights) * len(x)
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_a_plane_in_many_dimensions_keeps_distances_and_density():
    flat, wide = density(kind="moons", seed=4), density(kind="moons", seed=4, dimensions=10)
    x, high = (np.stack([source[i]["x"] for i in range(20)]).astype(np.float64) for source in (flat, wide))
    assert high.shape == (20, 10)
    np.testing.assert_allclose(high @ high.T, x @ x.T, atol=1e-5)
    np.testing.assert_allclose(wide.log_density(high), flat.log_density(x), atol=1e-4)
    assert np.linalg.matrix_rank(high, tol=1e-4) == 2
    assert wide.entropy == pytest.approx(flat.entropy, abs=1e-12)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"kind": "mons"}, "Did you mean 'moons'"),
        ({"kind": {"name": "moons", "arms": 2}}, "belongs to spiral"),
        ({"dimensions": 1}, "at least 2"),
        ({"examples": 0}, "at least 1"),
        ({"seed": -1}, "density: seed is -1"),
    ],
)
def test_bad_keywords_are_refused(keywords, words):
    with pytest.raises(ValueError, match=words):
        density(**keywords)
