"""The likelihood is the data's, on every path, fixed and adaptive, exact and estimated; bits are counted right."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.process.oracle import gaussian
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.likelihood import DEQUANTIZATIONS, bits_per_dim, dequantize, log_likelihood
from diffusion_jax.solvers.solver import sample
from tests import laws
from tests.solver_cases import two_dimensional

KEY = jax.random.key(5)
PATHS = sorted(set(laws.SCHEDULE_CASES) - set(laws.TABLES))


def evaluate(path, data, x0, exact_prior=True, **options):
    """Return the model's and the data's log-density."""
    schedule = laws.SCHEDULE_CASES[path]()
    prior = (lambda x: data.log_density(x, schedule, schedule.span[1])) if exact_prior else None
    run = jax.jit(lambda x: log_likelihood(data.denoiser(schedule), schedule, x, KEY, prior=prior, **options)[0])
    return np.asarray(run(x0)), np.asarray(data.log_density(x0))


@pytest.mark.parametrize("path", laws.quick(PATHS, "linear_beta", "rectified"))
def test_gaussian_to_1e_4(path):
    """Point by point in float32; right up to the noise variance that is missing where the span begins."""
    data, schedule = gaussian(jnp.array([0.5, -1.0]), jnp.array([0.4, 0.8])), laws.SCHEDULE_CASES[path]()
    x0 = data.draw(KEY, 32)
    options: dict[str, Any]
    for options in ({"probes": None}, {"probes": 1}):  # independent dimensions: one probe is exact too
        found, truth = evaluate(path, data, x0, **options)
        missing = float(schedule.sigma(schedule.span[0]) ** 2)
        np.testing.assert_allclose(found, truth, atol=3e-4 + 20 * missing)
        assert abs(np.mean(found - truth)) < 1e-4 + 3 * missing


@pytest.mark.parametrize("path", laws.quick(["linear_beta", "geometric", "rectified"], "linear_beta"))
@pytest.mark.parametrize("steps", [100, None])
def test_mixture_within_the_promise(path, steps):
    """0.002 nats per dimension with the plain prior of the sampler, fixed and adaptive."""
    data = two_dimensional()["mixture"]
    found, truth = evaluate(path, data, data.draw(KEY, 256), exact_prior=False, steps=steps, probes=None)
    assert abs(np.mean(found - truth)) / 2 < 0.002


@pytest.mark.slow
def test_hutchinson_is_unbiased():
    data = two_dimensional()["mixture"]
    x0 = data.draw(KEY, 8)
    found, _ = evaluate("rectified", data, x0, probes=512, steps=40)
    exact, _ = evaluate("rectified", data, x0, probes=None, steps=40)
    one, _ = evaluate("rectified", data, jnp.repeat(x0, 64, axis=0), probes=1, steps=40)
    spread = one.reshape(8, 64).std(1)
    assert np.all(np.abs(found - exact) < 5 * spread / 512**0.5 + 1e-3)
    assert np.any(spread > 0.01)  # otherwise there was nothing to estimate


@pytest.mark.slow
def test_fourth_order(x64):
    data = two_dimensional()["mixture"]
    x0 = data.draw(KEY, 16)
    truth, _ = evaluate("rectified", data, x0, probes=None, steps=800)
    errors = [np.abs(evaluate("rectified", data, x0, probes=None, steps=n)[0] - truth).mean() for n in (50, 100)]
    assert np.log2(errors[0] / errors[1]) > 3.7


def test_an_example_does_not_depend_on_its_batch():
    data, schedule = two_dimensional()["mixture"], laws.SCHEDULE_CASES["rectified"]()
    x0 = data.draw(KEY, 6)
    run = lambda x, indices: log_likelihood(data.denoiser(schedule), schedule, x, KEY, steps=20, indices=indices)[0]
    np.testing.assert_allclose(run(x0, jnp.arange(6))[4:], run(x0[4:], jnp.arange(4, 6)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_images_are_flattened_rightly(x64):
    data = gaussian(jnp.zeros(12), jnp.full(12, 0.5))
    x0 = data.draw(KEY, 3)
    found, _ = evaluate("linear_beta", data, x0.reshape(3, 2, 2, 3), probes=None, exact_prior=False)
    np.testing.assert_allclose(found, np.asarray(data.log_density(x0)), atol=2e-3)


def test_the_latent_decodes_to_the_data(x64):
    data, schedule = two_dimensional()["mixture"], laws.SCHEDULE_CASES["linear_beta"]()
    x0 = data.draw(KEY, 8)
    _, latent = log_likelihood(data.denoiser(schedule), schedule, x0, KEY, steps=200)
    times = schedule.time(jnp.linspace(schedule.log_snr(1.0), schedule.log_snr(1e-5), 400))
    back, _ = sample(data.denoiser(schedule), SOLVERS["rk4"](schedule, variable="sigma"), times, latent, KEY)
    np.testing.assert_allclose(back, x0, atol=5e-3)


@pytest.mark.parametrize("kind", sorted(DEQUANTIZATIONS))
def test_dequantised_bits_bound_the_entropy(kind):
    """A smooth density of known mass per bin: the bits exceed the entropy by little, and never fall below it."""
    integers = np.clip(np.random.default_rng(0).normal(128, 30, (20_000, 1)).round(), 0, 255).astype(np.uint8)
    density: Any = scipy.stats.norm((128.5 / 128) - 1, 30 / 128)
    edges = np.arange(257) / 128 - 1
    mass = np.diff(density.cdf(edges))
    truth = -np.log2(mass[integers]).mean()
    x, log_q = dequantize(jnp.asarray(integers), KEY, kind=kind)
    assert np.array_equal(np.floor((np.asarray(x) + 1) * 128).astype(int), integers)
    bits = bits_per_dim(jnp.asarray(density.logpdf(np.asarray(x))[:, 0]), (1,), log_q=log_q)
    tight = 0.002 if kind == "uniform" else 0.5
    assert truth - 0.002 < float(bits.mean()) < truth + tight


@pytest.mark.parametrize("kind", sorted(DEQUANTIZATIONS))
def test_dequantisation_density_integrates_to_one(kind):
    x, log_q = dequantize(jnp.full((50_000, 1), 7, jnp.uint8), KEY, kind=kind)
    noise = (np.asarray(x)[:, 0] + 1) * 128 - 7
    counts, edges = np.histogram(noise, bins=20, range=(0, 1), density=True)
    middle = np.digitize(noise, edges[1:-1])
    found = np.array([np.exp(np.asarray(log_q)[middle == b]).mean() for b in range(20)])
    np.testing.assert_allclose(counts, found, rtol=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps is 0"), ({"probes": 1.5}, "probes is 1.5"), ({"tolerance": 0.0}, "greater than 0")],
)
def test_bad_input(options, message):
    data, schedule = two_dimensional()["mixture"], laws.SCHEDULE_CASES["rectified"]()
    with pytest.raises(ValueError, match=message):
        log_likelihood(data.denoiser(schedule), schedule, jnp.zeros((1, 2)), KEY, **options)
    with pytest.raises(ValueError, match="Did you mean 'uniform'"):
        dequantize(jnp.zeros((1, 2), jnp.uint8), KEY, kind="unifrom")
