"""The variational bounds bound, and are what Gaussian data make of them in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process.oracle import gaussian
from diffusion_jax.solvers.bound import DECODERS, continuous_bound, discrete_bound
from diffusion_jax.types import LearnedEstimate
from tests import laws
from tests.solver_cases import two_dimensional

KEY = jax.random.key(2)
STD = 0.5
DATA = gaussian(jnp.zeros(1), jnp.array([STD]))
PATHS = ("linear_beta", "geometric", "rectified")


def closed_form(schedule, times):
    """E of the middle term for N(0, STD^2): half the fall of SNR times the posterior variance, level by level."""
    snr = np.exp(np.asarray(schedule.log_snr(times), np.float64))
    variance = STD**2 / (1 + STD**2 * snr)
    return 0.5 * np.sum((snr[1:] - snr[:-1]) * variance[:-1])


@pytest.mark.parametrize("path", laws.quick(PATHS, "rectified"))
def test_discrete_bound_in_closed_form(x64, path):
    schedule = laws.SCHEDULE_CASES[path]()
    x0 = DATA.draw(KEY, 4000)
    times = schedule.time(jnp.linspace(-5, 5, 33))
    bound = jax.jit(lambda x: discrete_bound(DATA.denoiser(schedule), schedule, x, KEY, times=times))(x0)
    truth = closed_form(schedule, times)
    assert float(bound.diffusion.mean()) == pytest.approx(truth, abs=5 * float(bound.diffusion.std()) / 4000**0.5)
    assert float(bound.diffusion.std()) / 4000**0.5 < 0.05 * truth
    alpha, sigma = schedule.alpha(times[0]), schedule.sigma(times[0])
    np.testing.assert_allclose(bound.prior, (alpha * x0[:, 0] / sigma) ** 2 / 2, rtol=1e-9)
    assert float(bound.total.mean()) > -float(DATA.log_density(x0).mean())


@pytest.mark.parametrize("path", laws.quick(PATHS, "rectified"))
def test_continuous_bound_in_closed_form(x64, path):
    """Its middle term is the discrete one's limit, log(1 + S SNR)/2 between the ends."""
    schedule = laws.SCHEDULE_CASES[path]()
    x0, span = DATA.draw(KEY, 4000), (float(schedule.time(jnp.asarray(5.0))), float(schedule.time(jnp.asarray(-5.0))))
    bound = jax.jit(lambda x: continuous_bound(DATA.denoiser(schedule), schedule, x, KEY, samples=64, span=span))(x0)
    truth = 0.5 * np.log((1 + STD**2 * np.exp(5)) / (1 + STD**2 * np.exp(-5)))
    error = float(bound.diffusion.std()) / 4000**0.5
    assert float(bound.diffusion.mean()) == pytest.approx(truth, abs=5 * error)
    assert error < 0.03 * truth


@pytest.mark.slow
def test_finer_grids_tighten_the_bound(x64):
    schedule = laws.SCHEDULE_CASES["rectified"]()
    values = [closed_form(schedule, schedule.time(jnp.linspace(-5, 5, n + 1))) for n in (8, 32, 128)]
    assert values[0] > values[1] > values[2]
    x0, found = DATA.draw(KEY, 2000), []
    for steps in (8, 128):
        times = schedule.time(jnp.linspace(-5, 5, steps + 1))
        found.append(float(discrete_bound(DATA.denoiser(schedule), schedule, x0, KEY, times=times).total.mean()))
    assert found[0] > found[1]


@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_the_bound_holds_whatever_the_decoder(x64, decoder):
    """Against the data's own log-probability: a density, or the mass of each of 256 bins."""
    schedule = laws.SCHEDULE_CASES["linear_beta"]()
    data = gaussian(jnp.zeros(1), jnp.array([0.3]))
    x0 = jnp.clip(data.draw(KEY, 4000), -0.99, 0.99)
    x0 = jnp.round((x0 + 1) * 127.5) / 127.5 - 1
    times = schedule.time(jnp.linspace(-8, 10, 200))
    bound = jax.jit(lambda x: discrete_bound(data.denoiser(schedule), schedule, x, KEY, times=times, decoder=decoder))(
        x0
    )
    truth = -data.log_density(x0).mean() - (np.log(1 / 127.5) if decoder == "discretised" else 0)
    slack = 5 * float(bound.total.std()) / 4000**0.5
    assert truth - slack < float(bound.total.mean()) < truth + 0.1 + slack


@pytest.mark.slow
def test_a_learned_variance_enters_the_bound(x64):
    """The small variance is optimal between two points of known data, so asking for more costs nats."""
    schedule, data = laws.SCHEDULE_CASES["linear_beta"](), two_dimensional()["mixture"]
    exact, x0 = data.denoiser(schedule), data.draw(KEY, 200)
    times = jnp.linspace(0.9, 0.2, 8)

    def bound(fraction):
        denoise = lambda x, t: LearnedEstimate(exact(x, t).x0, exact(x, t).eps, jnp.full_like(x, fraction))
        return float(discrete_bound(denoise, schedule, x0, KEY, times=times).diffusion.mean())

    plain = float(discrete_bound(exact, schedule, x0, KEY, times=times).diffusion.mean())
    assert bound(0.0) == pytest.approx(plain, rel=1e-9)
    assert bound(0.3) != pytest.approx(plain, rel=1e-3)


def test_bad_input():
    schedule = laws.SCHEDULE_CASES["rectified"]()
    with pytest.raises(ValueError, match="end it at schedule.span"):
        discrete_bound(DATA.denoiser(schedule), schedule, jnp.zeros((1, 1)), KEY, times=np.linspace(0.9, 0, 4))
    with pytest.raises(ValueError, match="samples is 0"):
        continuous_bound(DATA.denoiser(schedule), schedule, jnp.zeros((1, 1)), KEY, samples=0)
    with pytest.raises(ValueError, match="Did you mean 'discretised'"):
        discrete_bound(
            DATA.denoiser(schedule),
            schedule,
            jnp.zeros((1, 1)),
            KEY,
            times=np.linspace(0.9, 0.1, 4),
            decoder="discretized",
        )
