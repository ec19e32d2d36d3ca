"""The kernels of the forward process are one Markov chain, and the posterior is its reverse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import discrete
from diffusion_jax.process.forward import add_noise, fresh_fraction, posterior, prior, start_from, transition
from diffusion_jax.process.noise import advance, example_keys, normal_like
from diffusion_jax.types import Estimate
from tests import laws

NAMES = sorted(laws.SCHEDULE_CASES)
every = pytest.mark.parametrize("name", NAMES)


@functools.cache
def case(name):
    return laws.SCHEDULE_CASES[name]()


def each(*values):
    """One value per example of a batch of laws.COUNT."""
    return np.resize(np.asarray(values), laws.COUNT)


def three_times(path):
    """s < u < t inside the span, the ends of the span among them."""
    low, high = path.span
    return [low + (high - low) * each(*part) for part in ([0, 0.1, 0.3, 0.7], [0.2, 0.5, 0.4, 0.8], [1, 0.9, 0.6, 1])]


ONE, ZERO = each(1.0), each(0.0)
X0, EPS = each(0.7, -1.2, 0.3, 2.0), each(-0.4, 0.9, 1.7, 0.2)


@every
def test_kernels_compose(name, x64):
    """s -> u -> t is s -> t, and clean -> s -> t is clean -> t, in mean and variance."""
    path, one = case(name), jnp.asarray(ONE)
    s, u, t = three_times(path)
    (a_us, sd_us), (a_tu, sd_tu), (a_ts, sd_ts) = (transition(path, one, *ends) for ends in ((s, u), (u, t), (s, t)))
    np.testing.assert_allclose(a_us * a_tu, a_ts, rtol=1e-10)
    np.testing.assert_allclose((a_tu * sd_us) ** 2 + sd_tu**2, sd_ts**2, rtol=1e-9)
    np.testing.assert_allclose(a_ts * path.alpha(s), path.alpha(t), rtol=1e-10)
    np.testing.assert_allclose((a_ts * path.sigma(s)) ** 2 + sd_ts**2, path.sigma(t) ** 2, rtol=1e-9)


@every
def test_marginals_by_monte_carlo(name):
    """Noising at once, and by six one-step kernels, have the closed-form mean and variance."""
    path = case(name)
    x0 = jnp.full((laws.COUNT, 80), 0.7)
    keys = example_keys(jax.random.key(1), laws.COUNT)
    times = [each(t) for t in np.linspace(path.span[0], 0.25 * path.span[0] + 0.75 * path.span[1], 7)]
    once = start_from(path, x0, keys, times[-1])
    walked = start_from(path, x0, keys, times[0])
    for i in range(6):
        mean, std = transition(path, walked, times[i], times[i + 1])
        walked = mean + std * normal_like(advance(keys, i), walked)
    alpha, sigma = float(path.alpha(times[-1])[0]), float(path.sigma(times[-1])[0])
    for x in (np.asarray(once), np.asarray(walked)):
        assert abs(x.mean() - alpha * 0.7) < 5 * sigma / np.sqrt(x.size)
        assert abs(x.var() / sigma**2 - 1) < 5 * np.sqrt(2 / x.size)


@every
def test_posterior_is_bayes(name, x64):
    """q(x_s | x_t, x0) is the normalised product of q(x_s | x0) and q(x_t | x_s)."""
    path = case(name)
    s, _, t = three_times(path)
    x0, eps = jnp.asarray(X0), jnp.asarray(EPS)
    x = add_noise(path, x0, eps, t)
    gain, spread = transition(path, jnp.asarray(ONE), s, t)
    precision = 1 / path.sigma(s) ** 2 + gain**2 / spread**2
    want = (path.alpha(s) * x0 / path.sigma(s) ** 2 + gain * x / spread**2) / precision
    mean, std = posterior(path, Estimate(x0, eps), x, t, s)
    np.testing.assert_allclose(std, 1 / np.sqrt(precision), rtol=1e-9)
    np.testing.assert_allclose(mean, want, rtol=1e-8, atol=1e-9)


@every
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_keeps_the_marginal(name, eta, x64):
    """Over the noise in x_t, x_s keeps mean alpha_s x0 and variance sigma_s^2 (Song et al. 2021a, Lemma 1)."""
    path = case(name)
    s, _, t = three_times(path)
    one, zero = jnp.asarray(ONE), jnp.asarray(ZERO)
    share, std = posterior(path, Estimate(zero, one), add_noise(path, zero, one, t), t, s, eta=eta)
    np.testing.assert_allclose(share**2 + std**2, path.sigma(s) ** 2, rtol=1e-10)
    mean, _ = posterior(path, Estimate(one, zero), add_noise(path, one, zero, t), t, s, eta=eta)
    np.testing.assert_allclose(mean, path.alpha(s), rtol=1e-12)
    np.testing.assert_allclose(std, eta * posterior(path, Estimate(zero, one), zero, t, s)[1], rtol=1e-12)


@every
def test_a_posterior_onto_clean_data_is_the_estimate(name):
    path = case(name)
    x = jnp.asarray(X0, jnp.float32)
    estimate = Estimate(2 * x, 3 * x)
    mean, std = posterior(path, estimate, x, each(path.span[1]), ZERO)
    if name == "geometric":
        assert np.all(std > 0)
    else:
        np.testing.assert_array_equal(std, 0)
        np.testing.assert_allclose(mean, estimate.x0, rtol=1e-6)


@pytest.mark.parametrize("name", laws.ENDS_IN_NOISE)
def test_all_noise_is_fresh_when_coming_from_pure_noise(name):
    path, x, half = case(name), jnp.asarray(X0, jnp.float32), each(0.5)
    np.testing.assert_array_equal(fresh_fraction(path, ONE, half, x), 1)
    mean, std = posterior(path, Estimate(2 * x, x), x, ONE, half)
    np.testing.assert_allclose(mean, path.alpha(half) * 2 * x, rtol=1e-6)
    np.testing.assert_allclose(std, path.sigma(half), rtol=1e-6)


@every
def test_neighbouring_times_in_float32_leave_a_small_real_std(name):
    """The difference of variances would be rounding, or the root of a negative number."""
    path, x = case(name), jnp.asarray(X0, jnp.float32)
    t = np.asarray(three_times(path)[2], np.float32)
    for s in (np.nextafter(t, np.float32(0)), t - np.float32(1e-4)):
        std = np.asarray(posterior(path, Estimate(x, x), x, t, s)[1])
        assert np.all(std >= 0) and np.all(std < 0.5 * path.sigma(t))
        assert np.all(np.isfinite(transition(path, x, s, t)[1]))


def test_posterior_is_that_of_ddpm(x64):
    """The coefficients of Ho et al. 2020, Eq. 7, from the betas of the published world."""
    world = discrete.linear()
    path, index = world.schedule, each(1, 10, 500, 999)
    beta, left, before = world.betas[index], world.alpha_bar[index], world.alpha_bar_from_clean[index]
    x0, eps = jnp.asarray(X0), jnp.asarray(EPS)
    t, s = world.time(index), world.time(index - 1)
    x = add_noise(path, x0, eps, t)
    mean, std = posterior(path, Estimate(x0, eps), x, t, s)
    want = np.sqrt(before) * beta / (1 - left) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - left) * x
    np.testing.assert_allclose(mean, want, rtol=1e-8)
    np.testing.assert_allclose(std**2, (1 - before) / (1 - left) * beta, rtol=1e-8)
    np.testing.assert_allclose(transition(path, x, s, t)[1] ** 2, beta, rtol=1e-8)
    np.testing.assert_allclose(posterior(path, Estimate(x0, eps), x, each(1 / 1000), ZERO)[1], 0)


def test_each_example_has_its_time_and_half_precision_is_widened():
    path = case("rectified")
    x0, eps = jnp.ones((2, 3, 1), jnp.bfloat16), jnp.zeros((2, 3, 1), jnp.bfloat16)
    noisy = add_noise(path, x0.astype(jnp.float32), eps.astype(jnp.float32), jnp.asarray([0.25, 0.5]))
    np.testing.assert_array_equal(noisy, np.asarray([[0.75] * 3, [0.5] * 3])[..., None])
    keys = example_keys(jax.random.key(0), 2)
    assert prior(path, keys, x0).dtype == jnp.float32
    np.testing.assert_array_equal(prior(path, keys, x0, 0.5), 0.5 * normal_like(keys, x0))
    np.testing.assert_array_equal(start_from(path, noisy, keys, 0.5), 0.5 * noisy + 0.5 * normal_like(keys, x0))
