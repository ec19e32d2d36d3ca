"""Solvers with fresh noise keep the marginals: exactly propagated moments, and draws.

With Gaussian data the exact denoiser is affine, so a sampler is an affine map of its start and its noise. Its mean and
covariance are carried through every step by the step's own Jacobian: no Monte Carlo error, no restated formula.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import diffusion_jax.solvers.corrector
import diffusion_jax.solvers.stochastic
from diffusion_jax.process.oracle import gaussian
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.corrector import PREDICTORS
from diffusion_jax.solvers.solver import sample
from diffusion_jax.solvers.stochastic import DDPM_VARIANCES, DIFFUSIONS
from diffusion_jax.types import Interval, LearnedEstimate
from tests import laws
from tests.solver_cases import SDE_CASES, two_dimensional

MEAN, STD = 0.7, 0.5
DRAWS = 67  # more than the draws of any one step; a key is a number that picks one
PATHS = ("linear_beta", "geometric", "rectified")


@pytest.fixture
def tape(monkeypatch):
    """Replace the noise by entries of a tape, so that a step can be differentiated by its noise."""
    tape = [jnp.zeros((DRAWS, 1, 1))]
    for room in (diffusion_jax.solvers.stochastic, diffusion_jax.solvers.corrector):
        monkeypatch.setattr(room, "advance", lambda keys, step: keys * 11 + jnp.asarray(step).astype(keys.dtype) + 1)
        monkeypatch.setattr(room, "normal_like", lambda keys, x: tape[0][keys[0] % DRAWS])
    return tape


def moments(solver, denoise, times, std, tape):
    """Propagate mean and standard deviation from N(0, std^2) through every step."""
    count = len(times) - 1
    leaves, tree = jax.tree.flatten((jnp.zeros((1, 1)), solver.init(jnp.zeros((1, 1)))))
    real = [index for index, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    state, unravel = ravel_pytree([leaves[index] for index in real])
    rest = [leaf for index, leaf in enumerate(leaves) if index not in real]

    def step(state, rest, noise, element):
        tape[0] = noise
        t, s, index = element
        floats, others = iter(unravel(state)), iter(rest)
        whole = [next(floats) if slot in real else next(others) for slot in range(len(leaves))]
        x, memory = jax.tree.unflatten(tree, whole)
        interval = Interval(t, s, jnp.zeros(1, jnp.int32), index, count)
        after = jax.tree.leaves(solver.step(denoise, x, interval, memory))
        new = ravel_pytree([after[index] for index in real])[0]
        return new, [leaf for index, leaf in enumerate(after) if index not in real]

    def body(carry, element):
        state, rest, covariance = carry
        noise = jnp.zeros((DRAWS, 1, 1))
        (by_state, by_noise), _ = jax.jacfwd(step, (0, 2), has_aux=True)(state, rest, noise, element)
        by_noise = by_noise.reshape(state.size, -1)
        state, rest = step(state, rest, noise, element)
        return (state, rest, by_state @ covariance @ by_state.T + by_noise @ by_noise.T), None

    covariance = jnp.zeros((state.size, state.size)).at[0, 0].set(std**2)
    elements = (times[:-1], times[1:], jnp.arange(count))
    (state, _, covariance), _ = jax.jit(lambda c: jax.lax.scan(body, c, elements))((state, rest, covariance))
    return float(state[0]), float(jnp.sqrt(covariance[0, 0]))


def run(path, solver, steps, tape, start=1.0):
    schedule, data = laws.SCHEDULE_CASES[path](), gaussian(jnp.array([MEAN]), jnp.array([STD]))
    return moments(
        solver(schedule), data.denoiser(schedule), jnp.linspace(start, 0, steps + 1), schedule.sigma(start), tape
    )


@pytest.mark.parametrize("path", laws.quick(PATHS, "rectified"))
@pytest.mark.parametrize("case", SDE_CASES, ids=lambda case: case.label)
def test_moments_at_1000_steps(x64, case, path, tape):
    mean, std = run(path, case.make, 1000, tape)
    assert abs(mean - MEAN) < 0.004
    assert abs(std / STD - 1) < 0.01


@pytest.mark.parametrize("diffusion", sorted(DIFFUSIONS))
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_any_diffusion_keeps_the_marginals_as_steps_grow(x64, diffusion, scale, tape):
    make = functools.partial(SOLVERS["euler_maruyama"], diffusion=diffusion, scale=scale)
    off = [abs(run("linear_beta", make, steps, tape)[1] / STD - 1) for steps in (500, 2000)]
    assert off[1] < 0.01
    assert off[1] < 0.6 * off[0] + 1e-4


def test_a_diffusion_may_be_any_function(x64, tape):
    make = functools.partial(SOLVERS["euler_maruyama"], diffusion=lambda t: 3 * t * (1 - t))
    mean, std = run("rectified", make, 1000, tape)
    assert abs(mean - MEAN) < 0.004
    assert abs(std / STD - 1) < 0.01


@pytest.mark.parametrize("predictor", sorted(PREDICTORS))
def test_any_predictor_can_be_corrected(x64, predictor, tape):
    make = functools.partial(SOLVERS["predictor_corrector"], predictor=predictor)
    mean, std = run("rectified", make, 400, tape)
    assert abs(mean - MEAN) < 0.004
    assert abs(std / STD - 1) < 0.01


@pytest.mark.parametrize("variance", sorted(set(DDPM_VARIANCES) - {"learned"}))
def test_the_variances_of_ddpm_bracket_the_truth(x64, variance, tape):
    """The small one is too small and the large one too large, and both are right in the limit."""
    make = functools.partial(SOLVERS["ddpm"], variance=variance)
    off = [run("linear_beta", make, steps, tape)[1] / STD - 1 for steps in (100, 1000)]
    assert (off[0] < 0) == (variance == "fixed_small")
    assert abs(off[1]) < abs(off[0]) / 4


@pytest.mark.parametrize("variance", sorted(DDPM_VARIANCES))
def test_every_variance_of_ddpm_lies_between_the_small_and_the_large(x64, variance):
    """Whatever the network asks for, from the one at fraction 0 to the other at 1."""
    small, large = jnp.asarray(0.2), jnp.asarray(0.5)
    fraction = jnp.linspace(0, 1, 5)
    estimate = LearnedEstimate(fraction, fraction, fraction)
    spread = np.broadcast_to(DDPM_VARIANCES[variance](estimate, small, large), fraction.shape)
    assert np.all(np.diff(spread) >= 0)
    np.testing.assert_allclose(spread[0], large if variance == "fixed_large" else small)
    np.testing.assert_allclose(spread[-1], small if variance == "fixed_small" else large)


def test_a_brownian_path_is_shared_by_both_halves(x64, tape):
    """In the two-stage SDE solver the interval's noise contains its first half's as a Brownian path does."""
    schedule = laws.SCHEDULE_CASES["geometric"]()
    share = diffusion_jax.solvers.stochastic._brownian_share
    middle = schedule.time((schedule.log_snr(0.6) + schedule.log_snr(0.4)) / 2)
    part = share(schedule, Interval(jnp.asarray(0.6), jnp.asarray(0.4), jax.random.key(0)), middle, jnp.zeros((1, 1)))
    levels = [float(schedule.sigma(t)) for t in (0.6, middle, 0.4)]
    assert float(part) == pytest.approx((levels[0] - levels[1]) / (levels[0] - levels[2]))


# Langevin steps alone do not carry weight from mode to mode, as its docstring says.
CARRIERS = [case for case in SDE_CASES if case.name != "annealed_langevin"]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CARRIERS, ids=lambda case: case.label)
def test_draws_of_a_mixture(case, path):
    """In float32, as users run it: 2,000 draws have the mixture's moments within four standard errors and the bias."""
    schedule, data = laws.SCHEDULE_CASES[path](), two_dimensional()["mixture"]
    count = 2_000
    x = schedule.sigma(1.0) * jax.random.normal(jax.random.key(0), (count, 2))
    times = jnp.linspace(1, 0, 501)
    solver = case.make(schedule)
    x0 = jax.jit(lambda x: sample(data.denoiser(schedule), solver, times, x, jax.random.key(1))[0])(x)
    error = np.asarray(data.std()) / count**0.5
    assert np.all(np.abs(np.asarray(x0.mean(0) - data.mean())) < 4 * error + 0.008)
    assert np.all(np.abs(np.asarray(x0.std(0)) / np.asarray(data.std()) - 1) < 4 / count**0.5 + 0.02)
