"""The diffrax adapter: the exact flow to the tolerance, in one interval or many, from end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from tests import laws
from tests.solver_cases import start, two_dimensional

KEY = jax.random.key(0)
DATA = two_dimensional()["mixture"]


@pytest.mark.parametrize("path", laws.quick(["linear_beta", "geometric", "rectified"], "rectified"))
def test_the_error_follows_the_tolerance(x64, path):
    schedule = laws.SCHEDULE_CASES[path]()
    ends = tuple(float(schedule.time(jnp.asarray(value))) for value in (-3.0, 3.0))
    x = start(schedule, DATA, ends[0], 16)
    truth, errors = DATA.flow(schedule, x, *ends), []
    for tolerance in (1e-4, 1e-8):
        solver = SOLVERS["adaptive"](schedule, rtol=tolerance, atol=tolerance)
        got, _ = jax.jit(lambda x, s=solver: sample(DATA.denoiser(schedule), s, jnp.asarray(ends), x, KEY))(x)
        errors.append(np.abs(got - truth).max())
    assert errors[0] < 5e-2
    assert errors[1] < 1e-6 < errors[0]


@pytest.mark.parametrize("path", laws.quick(["cosine", "rectified", "karras"], "rectified"))
def test_from_pure_noise_to_clean_in_one_interval(x64, path):
    schedule = laws.SCHEDULE_CASES[path]()
    x = schedule.sigma(1.0) * jax.random.normal(KEY, (16, 2))
    solver = SOLVERS["adaptive"](schedule, rtol=1e-8, atol=1e-8)
    got, _ = jax.jit(lambda x: sample(DATA.denoiser(schedule), solver, jnp.asarray([1.0, 0.0]), x, KEY))(x)
    assert np.abs(np.asarray(got - DATA.flow(schedule, x, 1.0, 0.0))).max() < 5e-3


def test_a_method_may_be_an_object():
    import diffrax

    schedule = laws.SCHEDULE_CASES["linear_beta"]()
    x = start(schedule, DATA, 0.8, 4)
    runs = [
        sample(
            DATA.denoiser(schedule), SOLVERS["diffrax_step"](schedule, method=method), jnp.linspace(0.8, 0.2, 5), x, KEY
        )
        for method in ("Heun", diffrax.Heun())
    ]
    np.testing.assert_array_equal(runs[0][0], runs[1][0])
    assert SOLVERS["diffrax_step"](schedule, method="Heun").order == 2
