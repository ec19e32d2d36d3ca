"""Cubic resizing against two libraries and the laws of filters."""

import jax
import numpy as np
import pytest

from diffusion_jax.nets.cubic import covered, four
from diffusion_jax.nets.dinov2 import POSITIONS

SIZES = [(6, 6), (6, 3), (6, 11), (37, 16), (5, 2), (3, 40), (1, 4)]


@pytest.mark.parametrize("name", POSITIONS)
@pytest.mark.parametrize("size", ["3x8", "5x2", "11x7"])
def test_positions_are_interpolated_as_by_torch(reference, name, size):
    known = reference("dinov2_tiny.npz")
    rows, columns = (POSITIONS[name](6, int(count)) for count in size.split("x"))
    found = np.einsum("ih,hwc,jw->ijc", rows, known["in/grid"], columns)
    np.testing.assert_allclose(found, known[f"positions/{name}/{size}"], atol=1e-6)


@pytest.mark.parametrize("filtered", [four, covered])
@pytest.mark.parametrize(("size", "target"), SIZES)
def test_weights_sum_to_one_and_have_no_preferred_side(filtered, size, target):
    matrix = filtered(size, target)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-12)
    if size == target:
        np.testing.assert_allclose(matrix, np.eye(size), atol=1e-12)


@pytest.mark.parametrize(("size", "target"), SIZES)
def test_covered_is_the_cubic_of_jax(size, target):
    known = jax.image.resize(
        np.eye(size, dtype=np.float32), (target, size), "bicubic", precision=jax.lax.Precision.HIGHEST
    )
    np.testing.assert_allclose(covered(size, target), known, atol=1e-5)


def test_enlarging_keeps_straight_lines():
    ramp = np.arange(9.0)
    inside = np.arange(6, 21)
    np.testing.assert_allclose((covered(9, 27) @ ramp)[inside], (inside + 0.5) / 3 - 0.5, atol=1e-12)
