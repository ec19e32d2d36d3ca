"""Every deterministic solver converges to the exact flow with the order that it claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process.oracle import Mixture
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from tests import laws
from tests.solver_cases import ALL_CASES, FINE_CASES, ODE_CASES, as_mixture, first_variants, start, two_dimensional

FIRST, LAST = -1.5, 1.0  # log-SNR where the paths start and end: inside every span
PATHS = ("rectified",)
OTHERS = tuple(sorted(set(laws.SCHEDULE_CASES) - {*PATHS, *laws.TABLES}))  # tables have kinks


@functools.cache
def setting(path, data):
    """The path, its data, the two ends, points at the first and where the flow takes them."""
    schedule, density = laws.SCHEDULE_CASES[path](), two_dimensional()[data]
    ends = tuple(float(schedule.time(jnp.asarray(value))) for value in (FIRST, LAST))
    x = start(schedule, density, ends[0])
    return schedule, as_mixture(density), ends, x, density.flow(schedule, x, *ends)


def grid(kind, schedule, ends, steps):
    """A grid uniform in time, or in log-SNR."""
    if kind == "time":
        return jnp.linspace(ends[0], ends[1], steps + 1)
    times = schedule.time(jnp.linspace(FIRST, LAST, steps + 1))
    return times.at[0].set(ends[0]).at[-1].set(ends[1])


def slopes(case, path):
    """Measure the order on both kinds of data and both grids."""
    schedule = laws.SCHEDULE_CASES[path]()
    solver = case.make(schedule)

    @jax.jit
    def run(density, x, times):
        return sample(Mixture(*density).denoiser(schedule), solver, times, x, jax.random.key(0))[0]

    found = {}
    for data in ("gaussian", "mixture"):
        schedule, density, ends, x, truth = setting(path, data)
        for kind in ("time", "log_snr"):
            errors = [
                float(jnp.sqrt(jnp.mean((run(tuple(density), x, grid(kind, schedule, ends, n)) - truth) ** 2)))
                for n in case.steps
            ]
            found[data, kind] = float(np.log2(errors[0] / errors[1])), errors[1]
    return solver, found


def superconverges(case, data):
    """On a Gaussian, whose flow is sqrt(c + w^2) in some variable w, the midpoint rule's first error term vanishes."""
    return case.name == "midpoint" and data == "gaussian"


def check(case, path):
    solver, found = slopes(case, path)
    assert solver.order == case.order
    for (data, kind), (slope, _) in found.items():
        assert slope > case.order - 0.1, (case.label, path, data, kind, found)
        assert slope < case.order + 0.1 or superconverges(case, data), (case.label, path, data, kind, found)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", first_variants(ODE_CASES), ids=lambda case: case.label)
def test_order_is_the_claim(x64, case, path):
    check(case, path)


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS)
@pytest.mark.parametrize("case", ODE_CASES, ids=lambda case: case.label)
def test_order_is_the_claim_on_every_path(x64, case, path):
    check(case, path)


@pytest.mark.parametrize("case", FINE_CASES, ids=lambda case: case.label)
def test_order_of_the_high_ones(x64, case):
    check(case, "rectified")


def test_every_solver_has_a_case():
    assert {case.name for case in ALL_CASES} == set(SOLVERS)
