"""Half and twice the size, against filters written by hand and scipy's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate2d, upfirdn

from diffusion_jax.naming import choose
from diffusion_jax.nets.conv import convolve
from diffusion_jax.nets.initial import SCHEMES
from diffusion_jax.nets.resample import RESAMPLERS, Between, Inside, fir


def image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def both(resampler, x, y=None):
    """Return x at half the size, and y, or x itself, at twice."""
    return jax.jit(lambda x, y: (resampler.down(x), resampler.up(y)))(x, x if y is None else y)


@pytest.mark.parametrize("name", RESAMPLERS)
def test_sizes_halve_and_double(name):
    resampler, x = choose(RESAMPLERS, name, "resample"), image(2, 8, 6, 3)
    if isinstance(resampler, Inside):
        down, up = jax.eval_shape(resampler.down, x), jax.eval_shape(resampler.up, x)
    else:
        assert isinstance(resampler, Between)
        scheme = SCHEMES["fan_in"]()
        layers = resampler.down(3, scheme, "down"), resampler.up(3, 2, scheme, "up")
        down, up = (jax.eval_shape(layer.init_with_output, jax.random.key(0), x)[0] for layer in layers)
    assert down.shape == (2, 4, 3, 3)
    assert up.shape == (2, 16, 12, 2 if name == "pool" else 3)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
def test_filters_are_those_of_scipy(taps):
    x, h = image(1, 8, 6, 1), np.array(taps) / sum(taps)
    before = len(taps) // 2 - 1
    down, up = both(fir(taps=taps), x)

    def filtered(x, up, down):
        for axis in (1, 2):
            size = x.shape[axis] * up // down
            full = upfirdn(h * up, x, up, 1, axis=axis)
            start = before if up == 2 else len(taps) - 1 - before
            x = np.take(full, start + down * np.arange(size), axis)
        return x

    np.testing.assert_allclose(down, filtered(x, 1, 2), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(up, filtered(x, 2, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_filters_keep_constants_and_are_each_others_transpose(taps):
    """<up x, y> = 4 <x, down y>; a constant stays itself wherever the zeros outside are not felt."""
    small, large = image(1, 4, 6, 2), image(1, 8, 12, 2, seed=1)
    down, up = both(fir(taps=taps), large, small)
    np.testing.assert_allclose(np.vdot(up, large), 4 * np.vdot(small, down), rtol=1e-4)
    ones, edge = np.ones((1, 8, 12, 2), np.float32), len(taps) // 2 - 1
    for out in both(fir(taps=taps), ones):
        np.testing.assert_allclose(out[:, edge : out.shape[1] - edge, edge : out.shape[2] - edge], 1, rtol=1e-6)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
def test_smoothing_first_is_convolving_the_whole_plane_first(taps):
    """So a convolution that halves feels no border but the image's own."""
    x, kernel, h = image(1, 8, 6, 1), image(3, 3, seed=1), np.array(taps) / sum(taps)
    far = 3 + len(taps)
    plane = correlate2d(np.pad(x[0, :, :, 0], far), kernel, mode="same")
    plane = correlate2d(plane, np.outer(h, h), mode="valid")  # at j - p of the plane that begins at -far
    begin = far - (len(taps) // 2 - 1)
    wanted = plane[begin : begin + 8 : 2, begin : begin + 6 : 2]
    smooth = jax.jit(fir(taps=taps).smooth)(x)
    found = convolve(smooth, jnp.asarray(kernel[:, :, None, None]), stride=2, padding=(0, 0))
    np.testing.assert_allclose(found[0, :, :, 0], wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(smooth[:, 1::2, 1::2], fir(taps=taps).down(jnp.asarray(x)), rtol=1e-5, atol=1e-6)


def test_average_is_the_mean_of_squares_and_the_nearest_pixel():
    x = image(2, 4, 6, 3)
    down, up = both(RESAMPLERS["average"](), x)
    np.testing.assert_allclose(down, x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4)), atol=1e-6)
    np.testing.assert_array_equal(up, x.repeat(2, 1).repeat(2, 2))


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 2), (), (0, 0)])
def test_filters_that_would_shift_or_fade_are_refused(taps):
    with pytest.raises(ValueError, match="even in number, symmetric and of positive sum"):
        fir(taps=taps)
    with pytest.raises(ValueError, match="padding is"):
        choose(RESAMPLERS, {"name": "strided", "padding": (2, 2)}, "resample")
