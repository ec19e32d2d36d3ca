"""The order of a run: permutations that depend on seed and epoch alone."""

import itertools

import numpy as np
import pytest

from diffusion_jax.data.order import in_order, permuted, shuffled


@pytest.mark.parametrize("n", [*range(1, 30), 97, 128, 1000, 4099])
def test_every_epoch_is_a_permutation(n):
    order = shuffled(n, seed=3)
    for epoch in (0, 1, 10**12 // n):
        places = order(np.arange(n) + epoch * n)
        assert sorted(places.example.tolist()) == list(range(n))
        assert set(places.epoch.tolist()) == {epoch}


def test_epochs_and_seeds_differ():
    n = 500
    rows = [shuffled(n, seed)(np.arange(n) + epoch * n).example for seed in (0, 1) for epoch in (0, 1, 2)]
    for one, other in itertools.combinations(rows, 2):
        assert (one == other).mean() < 0.02


def test_places_may_be_asked_for_in_any_company():
    order, row = shuffled(37, seed=5), np.arange(200)
    whole = order(row)
    mixed = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(order(mixed).example, whole.example[mixed])
    np.testing.assert_array_equal(order(mixed).epoch, whole.epoch[mixed])
    for one in (0, 36, 37, 199):
        assert order(np.array([one])).example[0] == whole.example[one]


def test_all_permutations_of_a_few_things_are_equally_likely():
    keys, things = 2400, 4
    drawn = np.array([permuted(np.arange(things), things, np.random.default_rng(key)) for key in range(keys)])
    counts = np.unique(drawn @ 10 ** np.arange(things), return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - keys / 24) ** 2 / (keys / 24)).sum() < 55  # chi-square with 23 degrees of freedom: p = 2e-4


def test_no_two_neighbours_stay_together():
    n, epochs = 1000, 20
    order = shuffled(n, seed=0)
    rows = np.array([order(np.arange(n) + epoch * n).example for epoch in range(epochs)])
    together = (np.abs(np.diff(rows, axis=1)) == 1).mean()
    assert together == pytest.approx(2 / n, abs=5 * np.sqrt(2 / n / (n * epochs)))
    moved = np.corrcoef(rows.ravel(), np.tile(np.arange(n), epochs))[0, 1]
    assert abs(moved) < 5 / np.sqrt(n * epochs)


def test_evaluation_goes_once_through_in_order():
    places = in_order(5)(np.arange(8))
    assert places.example.tolist() == [0, 1, 2, 3, 4, 4, 4, 4]
    assert np.asarray(places.valid).tolist() == [True] * 5 + [False] * 3
