"""Augmentation changes what it says it changes, by as much as it says, and nothing when it says nothing."""

import numpy as np
import pytest

from diffusion_jax.data.augment import NUMBERS, TAPS, affine, augment, warped
from diffusion_jax.data.source import BYTES, Info

INFO = Info("pictures", {"x": (None, None, 3)}, (), (-1.0, 1.0))


def picture(height=24, width=20):
    return np.random.default_rng(0).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def told(**numbers):
    names = ("flip", "flop", "scale", "cosine", "sine", "stretch_x", "stretch_y", "right", "down")
    return np.array([numbers.get(name, 0) for name in names], np.float32)


def places(height, width):
    """An image that says of every pixel where it is, from the middle."""
    grid = np.stack(np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2), -1)
    return np.concatenate([grid, np.ones((height, width, 1))], -1).astype(np.float32)


def test_the_filter_is_orthonormal_at_even_shifts():
    for shift in range(0, len(TAPS), 2):
        assert abs(TAPS[shift:] @ TAPS[: len(TAPS) - shift] - (shift == 0)) < 1e-11
    assert abs(TAPS.sum() - 2**0.5) < 1e-11


def test_a_map_that_changes_nothing_changes_no_pixel_and_whole_moves_are_exact():
    x = picture()
    np.testing.assert_allclose(warped(x, np.eye(2), np.zeros(2)), x, atol=1e-6)
    np.testing.assert_allclose(warped(x, np.eye(2), np.array([2.0, 1.0]))[:-1, :-2], x[1:, 2:], atol=1e-6)
    mirrored = warped(x, np.eye(2), np.array([3.0, 0.0]))
    np.testing.assert_allclose(mirrored[:, -3:], x[:, -2:-5:-1], atol=1e-6)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"scale": 1.0}, np.eye(2) / 2**0.2),
        ({"cosine": -1.0, "sine": 1.0}, [[0, -1], [1, 0]]),
        ({"stretch_x": 1.0}, np.diag([2**-0.2, 2**0.2])),
        ({"stretch_y": -2.0}, np.diag([2**-0.4, 2**0.4])[::-1, ::-1]),
        ({"scale": -1.0, "stretch_x": 0.6, "stretch_y": 0.8, "cosine": -0.4, "sine": 0.8}, None),
    ],
)
def test_a_smooth_image_is_read_where_the_numbers_say(numbers, expected):
    matrix, move = affine(told(right=0.3, down=-0.2, **numbers), 48, 40)
    if expected is not None:
        np.testing.assert_allclose(matrix, expected, atol=1e-6)
    grid = places(48, 40)
    out = warped(grid, matrix, move)
    inside = np.abs(grid[..., :2]).max(-1) < 4  # farther out the mirror shows
    np.testing.assert_allclose(out[inside][:, :2], (grid[..., :2] @ matrix.T + move)[inside], atol=1e-4)
    np.testing.assert_allclose(out[..., 2], 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(matrix), 2 ** (-0.4 * numbers.get("scale", 0)), rtol=1e-6)


def test_rates_and_what_is_told():
    transform = augment(INFO, rate=0.12)
    rows = np.stack(
        [transform.apply({"x": picture(4, 4)}, np.random.default_rng(seed))["augment"] for seed in range(3000)]
    )
    assert rows.shape == (3000, NUMBERS) and rows.dtype == np.float32
    share = (rows != 0).mean(0)
    sigma = 4 * (0.12 * 0.88 / 3000) ** 0.5
    assert abs(share[0] - 0.5) < 0.04 and abs(share[1] - 0.06) < sigma
    assert np.abs(share[[2, 3, 4, 7, 8]] - 0.12).max() < sigma and abs(share[5] - 0.12) < sigma
    used = rows[rows[:, 2] != 0, 2]
    assert abs(used.std() - 1) < 0.15
    np.testing.assert_allclose((rows[:, 3] + 1) ** 2 + rows[:, 4] ** 2, 1, atol=1e-5)


def test_an_image_told_to_be_as_it_was_is():
    transform = augment(INFO, rate=0.0)
    for seed in range(4):
        out = transform.apply({"x": picture()}, np.random.default_rng(seed))
        np.testing.assert_array_equal(out["x"], picture()[:, ::-1] if out["augment"][0] else picture())
        assert not out["augment"][1:].any()


def test_bytes_and_bad_rates_are_refused():
    with pytest.raises(ValueError, match="put to_unit before"):
        augment(INFO._replace(range=BYTES))
    with pytest.raises(ValueError, match="rate is"):
        augment(INFO, rate=1.5)
