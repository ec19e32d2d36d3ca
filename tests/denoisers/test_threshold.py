"""Thresholds keep the data in range and go on explaining x."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.threshold import THRESHOLDS, dynamic_threshold, static_threshold
from diffusion_jax.process.schedules import trigonometric
from diffusion_jax.types import Estimate, LearnedEstimate
from tests.exact_network import DATA, SCHEDULE, noisy

TIMES = np.array([0.0, 0.3, 0.7, 1.0])
BOTH = [static_threshold, dynamic_threshold]


def levels(path):
    return (np.asarray(form(TIMES))[:, None, None] for form in (path.alpha, path.sigma))


@pytest.mark.parametrize("name", sorted(THRESHOLDS))
@pytest.mark.parametrize("path", [SCHEDULE, trigonometric()], ids=["linear_beta", "trigonometric"])
def test_thresholded_data_still_explains_x(x64, name, path):
    x = 2 * noisy()
    denoise = THRESHOLDS[name](DATA.denoiser(path), path, **({} if name == "none" else {"limit": 0.5}))
    estimate, slope = jax.jit(lambda x: (denoise(x, TIMES), jax.grad(lambda x: denoise(x, TIMES).eps.sum())(x)))(x)
    alpha, sigma = levels(path)
    assert np.abs(estimate.x0).max() == 0.5 or name == "none"
    np.testing.assert_allclose((alpha * estimate.x0 + sigma * estimate.eps)[1:], x[1:], atol=1e-12)
    assert np.isfinite(estimate.eps).all() and np.isfinite(slope).all()  # at sigma = 0 too


def test_static_threshold_clips(x64):
    x, plain = noisy(), DATA.denoiser(SCHEDULE)
    ours, truth = jax.jit(lambda: (static_threshold(plain, SCHEDULE, limit=0.3)(x, 0.4), plain(x, 0.4)))()
    np.testing.assert_array_equal(ours.x0, np.clip(truth.x0, -0.3, 0.3))


def test_dynamic_threshold_scales_each_example_from_its_own_percentile(x64):
    x, plain = 2 * noisy(), DATA.denoiser(SCHEDULE)
    denoise = dynamic_threshold(plain, SCHEDULE, percentile=0.8, limit=0.7)
    ours, truth = jax.jit(lambda: (denoise(x, TIMES), plain(x, TIMES)))()
    reach = np.maximum(np.quantile(np.abs(truth.x0).reshape(4, -1), 0.8, axis=1), 0.7)[:, None, None]
    assert (reach > 0.7).any() and (reach == 0.7).any()
    np.testing.assert_allclose(ours.x0, np.clip(truth.x0, -reach, reach) / reach * 0.7, atol=1e-12)


@pytest.mark.parametrize("threshold", BOTH)
def test_what_is_in_range_is_left_alone_and_so_is_a_learned_variance(threshold):
    x, fraction = noisy(), jnp.full((4, 2, 3), 0.3)

    def learned(x, t):
        e = DATA.denoiser(SCHEDULE)(x, t)
        return LearnedEstimate(e.x0, e.eps, fraction)

    ours, truth = jax.jit(lambda: (threshold(learned, SCHEDULE, limit=50.0)(x, TIMES), learned(x, TIMES)))()
    jax.tree.map(np.testing.assert_array_equal, ours, truth)


def test_half_precision_x_is_thresholded_in_float32():
    x = noisy(dtype=jnp.bfloat16)
    estimate = static_threshold(DATA.denoiser(SCHEDULE), SCHEDULE)(x, 0.5)
    assert isinstance(estimate, Estimate) and {value.dtype for value in estimate} == {jnp.dtype("float32")}


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("threshold", BOTH)
def test_bad_limits_are_refused(threshold, limit):
    with pytest.raises(ValueError, match=f"{threshold.__name__}: limit is"):
        threshold(DATA.denoiser(SCHEDULE), SCHEDULE, limit=limit)


@pytest.mark.parametrize("percentile", [0.0, 1.1, 99.5])
def test_bad_percentiles_are_refused(percentile):
    with pytest.raises(ValueError, match=r"percentile is .* it must be in \(0, 1\]"):
        dynamic_threshold(DATA.denoiser(SCHEDULE), SCHEDULE, percentile=percentile)
