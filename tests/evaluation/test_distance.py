"""Distances between sets of points against their closed forms."""

import numpy as np
import pytest

from diffusion_jax.evaluation.distance import sliced_distance


def test_a_set_is_at_no_distance_from_itself_in_any_order():
    points = np.random.default_rng(0).normal(size=(50, 3))
    assert sliced_distance(points, points[::-1]) == pytest.approx(0, abs=1e-12)


def test_a_shift_is_its_length_over_the_root_of_the_dimensions():
    points = np.random.default_rng(0).normal(size=(200, 2))
    away = sliced_distance(points, points + np.asarray([3.0, 4.0]), directions=4000)
    assert away == pytest.approx(5 / 2**0.5, rel=0.03)
    assert sliced_distance(points, 3 * points) == pytest.approx(2 * np.sqrt((points**2).sum(1).mean() / 2), rel=0.1)


def test_images_are_points_too_and_sets_must_be_alike():
    images = np.random.default_rng(0).normal(size=(10, 4, 4, 3))
    assert sliced_distance(images, images + 1) > 0
    with pytest.raises(ValueError, match="they must be alike"):
        sliced_distance(images, images[:5])
