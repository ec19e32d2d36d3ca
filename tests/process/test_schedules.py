"""Laws of every path in SCHEDULES, and the published formulas."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import discrete
from diffusion_jax.process.schedule import derivative, rates
from diffusion_jax.process.schedules import SCHEDULES
from tests import laws

NAMES = sorted(laws.SCHEDULE_CASES)


@functools.cache
def case(name):
    return laws.SCHEDULE_CASES[name]()


every = pytest.mark.parametrize("name", NAMES)


def test_every_schedule_has_a_case():
    assert set(laws.SCHEDULE_CASES) == set(SCHEDULES)


@every
def test_times_invert_log_snr(name):
    laws.assert_times_invert(case(name), np.float32)


@every
def test_times_invert_log_snr_in_float64(name, x64):
    laws.assert_times_invert(case(name), np.float64)


@every
def test_coefficients_are_one_path(name, x64):
    laws.assert_consistent(case(name))


@every
def test_finite_falling_and_ending_as_claimed(name):
    laws.assert_falls(case(name), np.float32)
    laws.assert_finite(case(name), np.float32)
    laws.assert_ends(case(name), np.float32)


@every
def test_gradients_backward_are_those_forward(name):
    path, t = case(name), jnp.asarray(laws.inside(case(name), np.float32))
    for form, points in ((path.alpha, t), (path.sigma, t), (path.log_snr, t), (path.time, path.log_snr(t))):
        value, back = jax.vjp(form, points)
        np.testing.assert_allclose(back(jnp.ones_like(value))[0], derivative(form, points)[1], rtol=1e-5)


@every
def test_falling_and_ending_as_claimed_in_float64(name, x64):
    laws.assert_falls(case(name), np.float64)
    laws.assert_ends(case(name), np.float64)


@every
def test_variance_is_preserved_where_claimed(name):
    t = np.linspace(0, 1, laws.COUNT, dtype=np.float32)
    error = np.max(np.abs(np.asarray(case(name).alpha(t)) ** 2 + np.asarray(case(name).sigma(t)) ** 2 - 1))
    assert (error < 5e-7) == (name in laws.VARIANCE_PRESERVING), error


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_of_time_are_exact(name, dtype):
    path, ends = case(name), laws.at_ends(dtype)
    with jax.enable_x64(dtype is np.float64):
        alpha, sigma = np.asarray(path.alpha(ends)), np.asarray(path.sigma(ends))
    assert alpha.dtype == sigma.dtype == dtype
    assert (sigma[0] == 0) == (name != "geometric")
    assert abs(alpha[0] - 1) <= 2 * np.finfo(dtype).eps
    assert (alpha[1] == 0) == (name in laws.ENDS_IN_NOISE)


@every
def test_float32_loses_nothing(name):
    """At one and the same float32 time, the coefficients agree with float64 to a few roundings."""
    path, t = case(name), laws.inside(case(name), np.float32)
    single = [np.asarray(form(t), np.float64) for form in (path.alpha, path.sigma, path.log_snr)]
    with jax.enable_x64(True):
        double = [np.asarray(form(t.astype(np.float64))) for form in (path.alpha, path.sigma, path.log_snr)]
    for i in (0, 1):
        np.testing.assert_allclose(single[i], double[i], rtol=2e-6)
    np.testing.assert_allclose(single[2], double[2], rtol=1e-6, atol=4e-6)


@every
def test_dtype_follows_time(name):
    path = case(name)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
        ones = jnp.ones(laws.COUNT, dtype)
        assert path.alpha(ones).dtype == path.sigma(ones).dtype == path.log_snr(ones).dtype == jnp.float32


@every
def test_rates_are_shaped_against_the_batch_and_follow_it(name):
    x = jnp.ones((laws.COUNT, 2, 1), jnp.bfloat16)
    t = np.resize(np.asarray([0.22, 0.52, 0.72], np.float32), laws.COUNT)  # off the nodes of the tables
    each = rates(case(name), t, x)
    assert all(value.shape == (laws.COUNT, 1, 1) and value.dtype == jnp.float32 for value in each)
    h = np.float32(1e-2)
    slope = (case(name).sigma(t + h) - case(name).sigma(t - h)) / (2 * h)
    np.testing.assert_allclose(each.dsigma.ravel(), slope, rtol=5e-3, atol=1e-3)


def test_one_time_serves_the_whole_batch():
    one = rates(case("rectified"), 0.25, jnp.ones((3, 2)))
    assert [value.shape for value in one] == [()] * 4
    assert [float(value) for value in one] == [0.75, 0.25, -1, 1]


def published(name, t):
    """alpha and sigma as the papers write them, cancellations included."""
    if name in ("linear_beta", "sub_vp"):
        kept = np.exp(-(0.1 * t + (20 - 0.1) * t**2 / 2))
        return np.sqrt(kept), np.sqrt(1 - kept) if name == "linear_beta" else 1 - kept
    if name == "geometric":
        return np.ones_like(t), 0.01 * (50 / 0.01) ** t
    if name == "karras":
        return np.ones_like(t), 80 * t**7
    if name == "rectified":
        return 1 - t, t
    if name == "trigonometric":
        return np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    if name == "cosine":
        left = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    else:
        logistic = lambda z: 1 / (1 + np.exp(-z))
        left = (logistic(3.0) - logistic(6 * t - 3)) / (logistic(3.0) - logistic(-3.0))
    return np.sqrt(left), np.sqrt(1 - left)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in laws.TABLES])
def test_published_formulas(name, x64):
    t = np.linspace(0.01, 0.99, laws.COUNT)
    alpha, sigma = published(name, t)
    np.testing.assert_allclose(case(name).alpha(t), alpha, rtol=1e-11)
    np.testing.assert_allclose(case(name).sigma(t), sigma, rtol=1e-11)


def test_published_end_points(x64):
    assert float(case("linear_beta").alpha(1.0)) == pytest.approx(math.exp(-(0.1 + 20) / 4), rel=1e-14)
    assert float(case("karras").sigma(case("karras").span[0])) == pytest.approx(0.002, rel=1e-13)
    assert float(case("geometric").sigma(0.0)) == pytest.approx(0.01, rel=1e-14)
    assert float(case("geometric").sigma(1.0)) == pytest.approx(50, rel=1e-14)


def test_uniform_times_of_karras_are_the_published_noise_levels(x64):
    path = SCHEDULES["karras"](sigma_min=0.01, sigma_max=10.0, rho=5.0)
    ramp = np.arange(8) / 7
    levels = (10 ** (1 / 5) + ramp * (0.01 ** (1 / 5) - 10 ** (1 / 5))) ** 5
    np.testing.assert_allclose(laws.at(path.sigma, np.linspace(1, path.span[0], 8)), levels, rtol=1e-12)


def test_cosine_without_offset_is_trigonometric():
    t = np.linspace(0, 1, laws.COUNT, dtype=np.float32)
    plain = SCHEDULES["cosine"](offset=0.0)
    np.testing.assert_allclose(plain.alpha(t), case("trigonometric").alpha(t), atol=1e-7)
    np.testing.assert_allclose(plain.sigma(t), case("trigonometric").sigma(t), atol=1e-7)


def test_linear_beta_is_the_limit_of_small_steps(x64):
    """The discrete product tends to the integral as 1 / T."""
    errors = []
    for steps in (1000, 2000, 4000):
        world = discrete.linear(steps=steps, beta_start=0.1 / steps, beta_end=20 / steps)
        errors.append(abs(world.sqrt_alpha_bar[-1] / float(case("linear_beta").alpha(1.0)) - 1))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def test_sigmoid_follows_its_ends_and_temperature(x64):
    t = np.linspace(0.05, 0.95, laws.COUNT)
    logistic = lambda z: 1 / (1 + np.exp(-z))
    for start, end, tau in ((0.0, 3.0, 0.5), (-3.0, 1.0, 1.1)):
        path = SCHEDULES["sigmoid"](start=start, end=end, tau=tau)
        first, last = logistic(start / tau), logistic(end / tau)
        left = (last - logistic((start + t * (end - start)) / tau)) / (last - first)
        np.testing.assert_allclose(path.alpha(t) ** 2, left, rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("linear_beta", {"beta_min": 0.0}, "beta_min is 0.0; it must be greater than 0"),
        ("sub_vp", {"beta_max": -1.0}, "beta_max is -1.0"),
        ("geometric", {"sigma_min": 2.0, "sigma_max": 1.0}, "0 < low < high"),
        ("karras", {"sigma_min": 0.0}, "0 < low < high"),
        ("karras", {"rho": 0.0}, "rho is 0.0"),
        ("cosine", {"offset": 1.0}, r"must be in \[0, 1\)"),
        ("sigmoid", {"start": 3.0, "end": -3.0}, "low < high"),
        ("sigmoid", {"tau": 0.0}, "tau is 0.0"),
    ],
)
def test_bad_arguments_are_refused_at_construction(name, keywords, message):
    with pytest.raises(ValueError, match=f"^{name}: .*{message}"):
        SCHEDULES[name](**keywords)
