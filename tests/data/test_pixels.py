"""The rule between bytes and [-1, 1], and resizing, against arithmetic."""

import numpy as np
import pytest

from diffusion_jax.data.pixels import FILTERS, resized, to_uint8, to_unit

DRAW = np.random.default_rng(0)


def test_all_bytes_there_and_back_are_the_same():
    every = np.arange(256, dtype=np.uint8)
    there = to_unit(every)
    assert there.dtype == np.float32
    np.testing.assert_allclose(there, np.arange(256) / 127.5 - 1, atol=1e-7)
    assert (there[0], there[255]) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(there), every)
    # Anything nearer to one byte than to the next becomes that byte.
    for shift in (-0.49, 0.49):
        np.testing.assert_array_equal(to_uint8(there + shift / 127.5), every)


def test_halves_go_up_and_what_is_outside_is_cut():
    assert to_uint8(np.array([0.0, -3.0, 3.0])).tolist() == [128, 0, 255]
    with pytest.raises(ValueError, match="1 of 2 values are not finite"):
        to_uint8(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="must be uint8"):
        to_unit(np.zeros(3))


@pytest.mark.parametrize("name", FILTERS)
def test_a_constant_stays_and_the_mean_is_kept(name):
    for value in (0, 77, 255):
        flat = np.full((12, 18, 3), value, np.uint8)
        assert (resized(flat, (5, 7), name) == value).all()
        np.testing.assert_allclose(resized(flat.astype(np.float32), (5, 7), name), value, rtol=1e-6)
    # Far from the border every pixel counts alike, so the mean of what is small is the mean of what was large.
    image = np.zeros((64, 64, 1), np.float32)
    image[24:40, 24:40] = DRAW.normal(size=(16, 16, 1))
    small = resized(image, (16, 16), name)
    assert small.mean() == pytest.approx(image.mean(), abs=1e-5)


@pytest.mark.parametrize("name", FILTERS)
def test_a_ramp_stays_a_ramp(name):
    ramp = np.broadcast_to(np.arange(64, dtype=np.float32)[None, :, None], (64, 64, 2))
    for width in (16, 32):
        factor = 64 // width
        inner = slice(4, width - 4)
        expected = (np.arange(width) + 0.5) * factor - 0.5
        small = resized(ramp, (64, width), name)
        np.testing.assert_allclose(small[:, inner, 1], np.broadcast_to(expected[inner], (64, width - 8)), atol=1e-3)


def test_box_is_the_average_and_fine_stripes_are_averaged_too():
    image = DRAW.integers(0, 256, (12, 8, 3)).astype(np.uint8)
    exact = image.reshape(4, 3, 4, 2, 3).mean((1, 3))
    assert np.abs(resized(image, (4, 4), "box") - exact).max() <= 1  # rounded once each way
    np.testing.assert_allclose(resized(image.astype(np.float32), (4, 4), "box"), exact, rtol=1e-5)
    stripes = np.broadcast_to((np.arange(64) % 2 * 255.0).astype(np.float32)[None, :, None], (64, 64, 1))
    for name in FILTERS:
        inside = resized(stripes, (16, 16), name)[4:-4, 4:-4]
        np.testing.assert_allclose(inside, 127.5, atol=8)  # a subsampled one would be all 0 or all 255


@pytest.mark.parametrize("name", FILTERS)
def test_bytes_are_the_rounded_numbers(name):
    image = DRAW.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    exact = np.clip(resized(image.astype(np.float32), (9, 11), name), 0, 255)
    assert np.abs(resized(image, (9, 11), name) - exact).max() <= 1.5
    assert resized(image, (9, 11), name).dtype == np.uint8


def test_its_own_size_changes_nothing_and_channels_do_not_mix():
    image = DRAW.normal(size=(8, 8, 5)).astype(np.float32)
    np.testing.assert_array_equal(resized(image, (8, 8)), image)
    np.testing.assert_array_equal(resized(image, (4, 4))[..., 2:3], resized(image[..., 2:3], (4, 4)))
    with pytest.raises(ValueError, match="Did you mean 'lanczos'"):
        resized(image, (4, 4), "lancsoz")
