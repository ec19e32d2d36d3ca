"""Gaussian identities against SciPy and against what they must sum to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion_jax.process.gaussian import discretised_log_likelihood, kl, kl_log_variance, log_density

LEVELS = np.arange(256) / 127.5 - 1


def test_kl_is_the_integral_of_its_definition(x64):
    mean1, std1 = np.asarray([0.3, 1.0, 0.0]), np.asarray([0.5, 2.0, 1.0])
    mean2, std2 = np.asarray([-0.2, 1.0, 0.1]), np.asarray([1.5, 0.7, 1.0])
    log_ratio = lambda x, *one_two: stats.norm.logpdf(x, *one_two[:2]) - stats.norm.logpdf(x, *one_two[2:])
    integrand = lambda x, *one_two: stats.norm.pdf(x, *one_two[:2]) * log_ratio(x, *one_two)
    cases = zip(mean1, std1, mean2, std2, strict=True)
    want = [integrate.quad(integrand, -30, 30, args=args, epsabs=1e-12)[0] for args in cases]
    np.testing.assert_allclose(kl(*map(jnp.asarray, (mean1, std1, mean2, std2))), want, atol=1e-10)
    logs = (mean1, 2 * np.log(std1), mean2, 2 * np.log(std2))
    np.testing.assert_allclose(kl_log_variance(*map(jnp.asarray, logs)), want, atol=1e-10)


def test_kl_of_nearly_equal_gaussians_keeps_its_digits_in_float32():
    d = np.asarray([1e-5, -1e-4, 1e-3, -1e-2, 0.099, 0.101, -1.0, 3.0, 20.0], np.float32)
    exact = (np.expm1(d.astype(np.longdouble)) - d.astype(np.longdouble)) / 2
    got = kl_log_variance(jnp.zeros(9), jnp.asarray(d), jnp.zeros(9), jnp.zeros(9))
    np.testing.assert_allclose(got[3:], exact[3:].astype(float), rtol=2e-5)
    np.testing.assert_allclose(got[:3], d[:3].astype(float) ** 2 / 4, rtol=1e-3)
    assert np.all(got > 0)


def test_kl_is_zero_for_equals_and_has_finite_gradients():
    one, std = jnp.ones(4), jnp.asarray([1e-6, 1e-2, 1.0, 100.0])
    np.testing.assert_array_equal(kl(one, std, one, std), 0)
    for gradient in jax.jit(jax.grad(lambda *args: kl(*args).sum(), argnums=(0, 1, 2, 3)))(one, std, one, std):
        np.testing.assert_array_equal(gradient, 0)


def test_log_density_is_that_of_scipy(x64):
    x, mean, std = np.asarray([0.3, -5.0, 40.0]), np.asarray([0.0, 1.0, 2.0]), np.asarray([1e-3, 1.0, 7.0])
    np.testing.assert_allclose(
        log_density(*map(jnp.asarray, (x, mean, std))), stats.norm.logpdf(x, mean, std), rtol=1e-12
    )


bins = jax.jit(discretised_log_likelihood)


def each(*values, dtype=jnp.float32):
    """Values repeated to one shape, that of the levels."""
    return jnp.asarray(np.resize(np.asarray(values), LEVELS.shape), dtype)


@pytest.mark.parametrize("std", [1e-3, 0.01, 0.3, 2.0, 100.0])
@pytest.mark.parametrize("mean", [-1.2, 0.1])
def test_bins_share_the_whole_probability(mean, std):
    log_p = bins(each(*LEVELS), each(mean), each(std))
    assert np.all(np.isfinite(log_p)) and np.all(log_p <= 0)
    assert np.exp(np.asarray(log_p, np.float64)).sum() == pytest.approx(1, abs=2e-5)


@pytest.mark.parametrize("std", [0.002, 0.02, 0.3, 3.0, 100.0])
def test_bins_are_differences_of_the_distribution_function(std):
    """In float64 and in float32, against SciPy's tails."""
    mean, half = 0.3, 1 / 255
    lower, upper = np.append(-np.inf, LEVELS[1:] - half), np.append(LEVELS[:-1] + half, np.inf)
    flip = mean < LEVELS  # SciPy too resolves only the lower tail
    a, b = np.where(flip, mean - upper, lower - mean) / std, np.where(flip, mean - lower, upper - mean) / std
    with np.errstate(divide="ignore"):
        want = stats.norm.logcdf(b) + np.log1p(-np.exp(stats.norm.logcdf(a) - stats.norm.logcdf(b)))
    for dtype, tolerance in ((jnp.float64, 1e-10), (jnp.float32, 3e-5)):
        with jax.enable_x64(dtype is jnp.float64):
            got = bins(each(*LEVELS, dtype=dtype), each(mean, dtype=dtype), each(std, dtype=dtype))
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("distance", [0.0, 0.5, 3.0])
def test_the_two_rules_for_bins_meet(distance):
    """Flat and steep bins are computed in two ways, which agree where half / std (1 + distance / std) = 1."""
    half = 1 / 255
    std = (half + np.sqrt(half**2 + 4 * half * distance)) / 2
    x = each(LEVELS[100])
    below, above = bins(x, x - distance, each(0.9999 * std, 1.0001 * std))[:2]
    assert float(below) == pytest.approx(float(above), rel=1e-3)


def test_gradients_of_bins_are_finite_even_far_away():
    x, mean = each(-1.0, 0.0, 1.0, 1.0), each(30.0, -20.0, 0.9, -1.0)
    std = each(*np.repeat([1e-3, 1.0, 50.0], 4))
    loss = lambda mean, std: discretised_log_likelihood(x, mean, std).sum()
    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(mean, std):
        assert np.all(np.isfinite(gradient))


def test_two_levels_are_the_two_halves():
    halves = jax.jit(lambda x: discretised_log_likelihood(x, 0 * x, 0 * x + 1, levels=2))(each(-1.0, 1.0))
    np.testing.assert_allclose(halves, np.log(0.5), rtol=1e-6)
    with pytest.raises(ValueError, match="levels is 1; it must be at least 2"):
        discretised_log_likelihood(each(0.0), each(0.0), each(1.0), levels=1)
