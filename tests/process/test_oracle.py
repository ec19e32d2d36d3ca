"""The oracle against quadrature, scipy, automatic differentiation and Bayes' rule."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import multivariate_normal

from diffusion_jax.process import oracle
from diffusion_jax.process.schedules import karras, rectified
from tests.laws import SCHEDULE_CASES

STRAIGHT = rectified()
normal: Any = multivariate_normal


def every_path(times):
    """Return one schedule that has each example on a path of its own: the oracle knows only levels."""
    paths = [make() for make in SCHEDULE_CASES.values()]
    at = [jnp.asarray(times(path)) for path in paths]
    alpha = jax.jit(lambda: jnp.concatenate([path.alpha(t) for path, t in zip(paths, at, strict=True)]))()
    sigma = jax.jit(lambda: jnp.concatenate([path.sigma(t) for path, t in zip(paths, at, strict=True)]))()
    return STRAIGHT._replace(alpha=lambda t: alpha, sigma=lambda t: sigma), alpha[:, None], sigma[:, None]


def correlated():
    """Three components with full covariances, two of them of one class."""
    root = np.random.default_rng(3).normal(size=(3, 2, 2)) * 0.25
    covariances = root @ np.swapaxes(root, 1, 2) + 0.05 * np.eye(2)
    means = [[1.0, -0.5], [-1.2, 0.3], [0.2, 1.4]]
    return oracle.mixture([1.0, 2.0, 3.0], means, covariances=covariances, labels=[0, 1, 1])


flow = jax.jit(oracle.Mixture.flow, static_argnames=("schedule", "steps"))
log_density = jax.jit(oracle.Mixture.log_density, static_argnames="schedule")
draw = jax.jit(oracle.Mixture.draw_labelled, static_argnums=2)


@partial(jax.jit, static_argnames="schedule")
def denoise(data, schedule, x, t):
    return data.denoiser(schedule)(x, t)


def points(n=7, d=2, seed=0, scale=1.5):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale


def density(data, x, alpha=1.0, sigma=0.0):
    """The density of alpha x0 + sigma eps by scipy."""
    covariances = alpha**2 * oracle._covariances(data) + sigma**2 * np.eye(x.shape[-1])
    parts = [normal(alpha * m, c).pdf(x) for m, c in zip(data.means, covariances, strict=True)]
    return np.einsum("k,k...->...", data.weights, np.stack(parts))


@pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("data", [correlated(), oracle.mixture_2d()], ids=["correlated", "round"])
def test_denoiser_is_the_posterior_mean_by_quadrature(x64, data, t):
    side = np.linspace(-8, 8, 401)
    x0 = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    x, alpha, sigma = points(), 1 - t, t
    eps = (x[:, None] - alpha * x0[None]) / sigma
    joint = density(data, x0)[None] * np.exp(-(eps**2).sum(-1) / 2)
    joint /= joint.sum(1, keepdims=True)
    estimate = denoise(data, STRAIGHT, jnp.asarray(x), t)
    np.testing.assert_allclose(estimate.x0, np.einsum("bn,ni->bi", joint, x0), atol=1e-9)
    np.testing.assert_allclose(estimate.eps, np.einsum("bn,bni->bi", joint, eps), atol=1e-8)


def test_score_is_the_gradient_of_the_log_density_on_every_path(x64):
    data = correlated()
    schedule, alpha, sigma = every_path(lambda schedule: np.linspace(schedule.span[0], schedule.span[1], 4))
    x = jnp.asarray(points(len(alpha))) * (1 + sigma)
    gradient = jax.jit(jax.grad(lambda x: data.log_density(x, schedule, 0.0).sum()))(x)
    estimate = denoise(data, schedule, x, 0.0)
    np.testing.assert_allclose(data.score(schedule)(x, 0.0), gradient, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(estimate.eps, -sigma * gradient, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(alpha * estimate.x0 + sigma * estimate.eps, x, rtol=1e-12, atol=1e-12)


def test_log_density_is_that_of_the_noised_mixture(x64):
    data, x = correlated(), points()
    np.testing.assert_allclose(log_density(data, jnp.asarray(x)), np.log(density(data, x)), rtol=1e-10)
    marginal = log_density(data, jnp.asarray(x), STRAIGHT, 0.3)
    np.testing.assert_allclose(marginal, np.log(density(data, x, 0.7, 0.3)), rtol=1e-10)


def test_flow_is_exact_to_twelve_digits(x64):
    data, x = oracle.mixture_2d(), points(6, scale=1.0)

    def velocity(t, flat):
        estimate = denoise(data, STRAIGHT, jnp.asarray(flat.reshape(-1, 2)), t)
        return np.asarray(estimate.eps - estimate.x0).ravel()

    by_scipy = solve_ivp(velocity, (1.0, 0.0), x.ravel(), method="DOP853", rtol=3e-14, atol=1e-15).y[:, -1]
    ours = flow(data, STRAIGHT, jnp.asarray(x), 1.0, 0.0)
    np.testing.assert_allclose(ours.ravel(), by_scipy, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours, flow(data, STRAIGHT, jnp.asarray(x), 1.0, 0.0, steps=8000), rtol=0, atol=1e-12)


def test_flow_does_not_depend_on_the_path_and_inverts(x64):
    data, exploding = oracle.mixture_2d(), karras()
    start, end = exploding.span[1], exploding.span[0]
    x = jnp.asarray(points()) * 80
    carried = flow(data, exploding, x, start, end)
    t, s = (STRAIGHT.time(exploding.log_snr(time)) for time in (start, end))
    same = flow(data, STRAIGHT, x * STRAIGHT.alpha(t), t, s) / STRAIGHT.alpha(s)
    np.testing.assert_allclose(carried, same, atol=1e-11)
    np.testing.assert_allclose(flow(data, exploding, carried, end, start) / 80, x / 80, atol=1e-11)


def test_flow_of_one_gaussian_in_closed_form_equals_the_integral(x64):
    covariance = oracle._covariances(correlated())[0]
    one = oracle.gaussian([0.5, -1.0], covariance=covariance)
    twice = oracle.mixture([0.3, 0.7], [[0.5, -1.0]] * 2, covariances=[covariance] * 2)
    t, s = jnp.linspace(1.0, 0.4, 7), jnp.linspace(0.0, 0.9, 7)
    x = jnp.asarray(points())
    np.testing.assert_allclose(flow(one, STRAIGHT, x, t, s), flow(twice, STRAIGHT, x, t, s), atol=1e-12)


def test_flow_carries_the_density_with_it(x64):
    data, x = correlated(), jnp.asarray(points(4))

    def carry(x):
        return data.flow(STRAIGHT, x[None], 0.9, 0.1, steps=1000)[0]

    carried, jacobian = jax.jit(jax.vmap(lambda x: (carry(x), jax.jacfwd(carry)(x))))(x)
    log_volume = jnp.linalg.slogdet(jacobian)[1]
    there = log_density(data, carried, STRAIGHT, 0.1) + log_volume
    np.testing.assert_allclose(there, log_density(data, x, STRAIGHT, 0.9), atol=1e-9)


def test_flow_brings_noise_to_the_points_of_a_data_set():
    data = oracle.dataset(points(5, 3, seed=1))
    ends = flow(data, STRAIGHT, jnp.asarray(points(8, 3, scale=1.0), jnp.float32), 1.0, 0.0)
    distance = np.abs(np.asarray(ends)[:, None] - data.means[None]).max(-1).min(1)
    assert distance.max() < 1e-3


@pytest.mark.parametrize("noise", [0.3, np.array([0.2, 0.5])], ids=["one", "each"])
def test_measured_is_bayes_rule(x64, noise):
    root = np.random.default_rng(5).normal(size=(2, 3, 3))
    prior = oracle.mixture([0.3, 0.7], points(2, 3), covariances=root @ np.swapaxes(root, 1, 2))
    matrix, value = np.random.default_rng(6).normal(size=(2, 3)), np.array([0.4, -1.0])
    noise_covariance = np.diag(np.broadcast_to(noise, 2) ** 2)
    evidence = sum(
        w * normal(matrix @ m, matrix @ c @ matrix.T + noise_covariance).pdf(value)
        for w, m, c in zip(prior.weights, prior.means, oracle._covariances(prior), strict=True)
    )
    x = points(9, 3)
    likelihood = [normal(matrix @ one, noise_covariance).logpdf(value) for one in x]
    expected = np.log(density(prior, x)) + likelihood - np.log(evidence)
    posterior = prior.measured(matrix, value, noise)
    np.testing.assert_allclose(log_density(posterior, jnp.asarray(x)), expected, atol=1e-9)


def test_measured_without_noise_keeps_the_measurement():
    posterior = correlated().measured([[1.0, -2.0]], [0.3], 0.0)
    drawn = np.asarray(draw(posterior, jax.random.key(0), 50)[0])
    np.testing.assert_allclose(drawn @ [1.0, -2.0], 0.3, atol=1e-5)
    assert drawn.std(0).min() > 0.05


def test_measured_data_set_is_reweighted():
    data = oracle.dataset(points(5, 3))
    posterior = data.measured(np.eye(3), data.means[2] + 0.1, 0.5)
    expected = np.exp(-((data.means - data.means[2] - 0.1) ** 2).sum(1) / 0.5)
    np.testing.assert_allclose(posterior.weights, expected / expected.sum(), rtol=1e-12)
    np.testing.assert_allclose(posterior.means, data.means, atol=1e-12)
    np.testing.assert_allclose(posterior.variances, 0.0, atol=1e-12)


@pytest.mark.parametrize("name", oracle.DENSITIES)
def test_densities_by_name(x64, name):
    data = oracle.DENSITIES[name]()
    assert set(data.labels.tolist()) == set(range(data.labels.max() + 1))
    side = np.linspace(-5, 5, 201)
    x = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    share = density(data, x, 1.0, 0.1) * (side[1] - side[0]) ** 2
    assert share.sum() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(data.mean(), share @ x, atol=1e-6)
    covariance = np.einsum("n,ni,nj->ij", share, x, x) - np.outer(share @ x, share @ x) - 0.01 * np.eye(2)
    np.testing.assert_allclose(data.covariance(), covariance, atol=1e-6)
    np.testing.assert_allclose(data.std() ** 2, np.diag(covariance), atol=1e-6)
    estimate = denoise(data, STRAIGHT, jnp.asarray(x[::999]), 0.4)
    np.testing.assert_allclose(0.6 * estimate.x0 + 0.4 * estimate.eps, x[::999], atol=1e-12)


def test_draws_have_the_right_moments_per_class_and_do_not_depend_on_their_number():
    data = correlated()
    x, labels = draw(data, jax.random.key(2), 20_000)
    for label, share in enumerate((1 / 6, 5 / 6)):
        mine = np.asarray(x)[np.asarray(labels) == label]
        assert len(mine) / len(x) == pytest.approx(share, abs=0.01)
        np.testing.assert_allclose(mine.mean(0), data.conditional(label).mean(), atol=0.05)
        np.testing.assert_allclose(np.cov(mine.T), data.conditional(label).covariance(), atol=0.05)
    np.testing.assert_array_equal(draw(data, jax.random.key(2), 5)[0], x[:5])


def test_a_data_set_denoises_to_its_nearest_point():
    data = oracle.dataset(points(6, 4))
    x = data.means[[4, 1]] + np.float32(1e-4)
    for t in (0.0, 1e-6, 1e-3):
        estimate = denoise(data, STRAIGHT, jnp.asarray(x, jnp.float32), t)
        np.testing.assert_allclose(estimate.x0, data.means[[4, 1]], atol=1e-5)
    middle = oracle.dataset([[-1.0], [1.0]], weights=[1.0, 3.0])
    np.testing.assert_allclose(denoise(middle, STRAIGHT, jnp.zeros((1, 1)), 0.5).x0, [[0.5]], atol=1e-6)


@pytest.mark.parametrize("data", [oracle.dataset(points(6)), correlated()], ids=["points", "correlated"])
def test_everything_is_finite_in_float32_at_both_ends_of_every_path(data):
    schedule, alpha, sigma = every_path(lambda schedule: [0.0, 1.0, *schedule.span])
    x = jnp.asarray(points(len(alpha)), jnp.float32) * (1 + sigma)
    estimate = denoise(data, schedule, x, 0.0)
    assert estimate.x0.dtype == estimate.eps.dtype == jnp.float32
    assert all(np.isfinite(value).all() for value in (*estimate, data.score(schedule)(x, 0.0)))
    assert np.isfinite(log_density(data, x, schedule, 0.0)).all()
    noisy = np.asarray(alpha) == 0
    expected = np.broadcast_to(data.mean(), x.shape)
    np.testing.assert_allclose(np.where(noisy, estimate.x0, expected), expected, atol=1e-6)
    np.testing.assert_array_equal(np.where(sigma == 0, estimate.eps, 0.0), 0.0)


def test_class_log_prob_is_bayes_rule(x64):
    data, x, t = correlated(), jnp.asarray(points()), jnp.linspace(0, 1, 7)
    labels = jnp.asarray([0, 1, 1, 0, 1, 0, 0])
    log_prob = jax.jit(data.class_log_prob(STRAIGHT))
    whole = log_density(data, x, STRAIGHT, t)
    for label, share in enumerate((1 / 6, 5 / 6)):
        expected = log_density(data.conditional(label), x, STRAIGHT, t) + np.log(share) - whole
        np.testing.assert_allclose(log_prob(x, t, label), expected, atol=1e-12)
    each = jnp.where(labels == 0, log_prob(x, t, 0), log_prob(x, t, 1))
    np.testing.assert_array_equal(log_prob(x, t, labels), each)


def test_examples_may_have_any_shape_and_mixtures_may_be_traced():
    images = np.random.default_rng(0).normal(size=(3, 2, 2, 1))
    data, flat = oracle.dataset(images), oracle.dataset(images.reshape(3, 4))
    x = jnp.asarray(images[:2] + 0.5, jnp.float32)

    estimate = denoise(data, STRAIGHT, x, 0.5)
    carried = flow(data, STRAIGHT, x, 0.5, 0.4, steps=10)
    assert estimate.x0.shape == estimate.eps.shape == carried.shape == x.shape
    expected = denoise(flat, STRAIGHT, x.reshape(2, 4), 0.5)
    np.testing.assert_allclose(estimate.x0.reshape(2, 4), expected.x0, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: oracle.mixture([1.0, -1.0], np.zeros((2, 2)), [1.0, 1.0]), "weights"),
        (lambda: oracle.mixture([1.0], np.zeros((2, 2)), [1.0, 1.0]), "one per mean"),
        (lambda: oracle.mixture([1.0, 1.0], np.zeros((2, 2))), "either stds or covariances"),
        (lambda: oracle.mixture([1.0, 1.0], np.zeros((2, 2)), np.ones(3)), "stds are"),
        (lambda: oracle.mixture([1.0, 1.0], np.zeros((2, 2)), np.ones(2), labels=[1]), "one per component"),
        (lambda: oracle.gaussian([0.0, 0.0], covariance=np.ones((3, 3))), "covariances are"),
        (lambda: oracle.gaussian([0.0, 0.0], covariance=np.diag([1.0, -1.0])), "negative eigenvalue"),
        (lambda: oracle.mixture_2d().conditional(9), "label 9"),
        (lambda: oracle.spiral(arms=0), "arms is 0"),
        (lambda: oracle.checkerboard(cells=0), "cells is 0"),
        (lambda: oracle.mixture_2d().measured(np.eye(3), np.zeros(3), 1.0), "matrix is"),
    ],
)
def test_bad_data_is_refused_with_a_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make()
