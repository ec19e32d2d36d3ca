"""Solvers that are the same step in other words give the same numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.network import make_denoiser
from diffusion_jax.process.prediction import PREDICTIONS, compose
from diffusion_jax.process.schedule import rates
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.ode import VARIABLES
from diffusion_jax.solvers.solver import sample
from tests import laws
from tests.solver_cases import ODE_CASES, SDE_CASES, first_variants, start, two_dimensional

PATHS = ("linear_beta", "geometric", "rectified")
KEY = jax.random.key(3)


def run(path, name, *, steps=6, times=None, **keywords):
    """Sample the mixture with the exact denoiser from the noise end to the clean one."""
    schedule, data = laws.SCHEDULE_CASES[path](), two_dimensional()["mixture"]
    times = jnp.linspace(schedule.span[1], 0, steps + 1) if times is None else times
    solver = SOLVERS[name](schedule, **keywords)
    x = start(schedule, data, schedule.span[1], 8)
    return np.asarray(jax.jit(lambda x: sample(data.denoiser(schedule), solver, times, x, KEY)[0])(x))


SAME = [
    ("ddpm's posterior is DDIM's family at eta = 1", ("ddpm", {}), ("ancestral", {})),
    ("and DDIM at eta = 0", ("ancestral", {"eta": 0.0}), ("ddim", {})),
    ("Euler in sigma is DDIM", ("euler", {"variable": "sigma"}), ("ddim", {})),
    ("first-order UniPC is DDIM", ("unipc", {"order": 1}), ("ddim", {})),
    ("first-order DEIS is DDIM", ("deis", {"order": 1}), ("ddim", {})),
    ("first-order LMS is DDIM", ("lms", {"order": 1}), ("ddim", {})),
    ("first-order PNDM is DDIM", ("ipndm", {"order": 1}), ("ddim", {})),
    ("LMS is DEIS in sigma", ("lms", {"order": 3}), ("deis", {"order": 3, "variable": "sigma"})),
    ("without churn EDM is Heun in sigma", ("edm", {}), ("heun", {"variable": "sigma"})),
    ("without noise 2M SDE is 2M", ("dpmpp_2m_sde", {"eta": 0.0}), ("dpmpp_2m", {})),
    ("without noise SDE is 2S", ("dpmpp_sde", {"eta": 0.0}), ("dpmpp_2s", {})),
    ("without a rate Euler-Maruyama is Euler", ("euler_maruyama", {"scale": 0.0}), ("euler", {})),
    ("Euler ancestral is the ancestral step", ("euler_ancestral", {"eta": 0.7}), ("ancestral", {"eta": 0.7})),
]


@pytest.mark.parametrize("path", laws.quick(PATHS, PATHS[0]))
@pytest.mark.parametrize(("why", "one", "other"), SAME, ids=[why for why, *_ in SAME])
def test_same_step(x64, path, why, one, other):
    a, b = (run(path, name, **keywords) for name, keywords in (one, other))
    assert np.all(np.isfinite(a))
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc", "deis", "lms", "ipndm"])
@pytest.mark.parametrize("end", [0.0, 0.4])
def test_one_step_of_a_multistep_solver_is_ddim(x64, name, end):
    times = jnp.asarray([0.9, end])
    one, ddim = run("linear_beta", name, times=times), run("linear_beta", "ddim", times=times)
    np.testing.assert_allclose(one, ddim, rtol=1e-12, atol=1e-13)


# Churn noises x first, so it lands on the estimate of another point.
LANDING = [case for case in ODE_CASES + SDE_CASES if not case.keywords.get("churn")]


@pytest.mark.parametrize("case", first_variants(LANDING), ids=lambda case: case.label)
def test_a_step_onto_sigma_zero_is_the_denoised_estimate(x64, case):
    schedule, data = laws.SCHEDULE_CASES["cosine"](), two_dimensional()["mixture"]
    denoise, x = data.denoiser(schedule), start(schedule, data, 0.3, 8)
    got, _ = sample(denoise, case.make(schedule), jnp.asarray([0.3, 0.0]), x, KEY)
    np.testing.assert_allclose(got, denoise(x, 0.3).x0, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", first_variants(ODE_CASES + SDE_CASES), ids=lambda case: case.label)
@pytest.mark.parametrize("path", laws.quick(["rectified", "sigmoid"], "sigmoid"))
def test_samples_are_finite_from_pure_noise_to_clean(case, path):
    """From alpha = 0 to sigma = 0 in float32, with everything infinite in between that can be."""
    schedule, data = laws.SCHEDULE_CASES[path](), two_dimensional()["mixture"]
    x = jax.random.normal(KEY, (8, 2))
    got = jax.jit(lambda x: sample(data.denoiser(schedule), case.make(schedule), jnp.linspace(1, 0, 8), x, KEY)[0])(x)
    assert np.all(np.isfinite(got))


NODES_ONLY = [
    case
    for case in ODE_CASES
    if case.keywords.get("variable") == "sigma"
    or not {case.name, case.keywords.get("start")} & {"euler", "heun", "midpoint", "rk4"}
]


@pytest.mark.parametrize("case", first_variants(NODES_ONLY), ids=lambda case: case.label)
def test_only_the_levels_matter(x64, case):
    """The same log-SNR levels on another path give the same sample, but for its scale."""
    log_snr = jnp.linspace(-4, 4, 9)
    results = []
    for path in ("linear_beta", "geometric"):
        schedule, data = laws.SCHEDULE_CASES[path](), two_dimensional()["mixture"]
        times = schedule.time(log_snr)
        size = [jnp.hypot(schedule.alpha(t), schedule.sigma(t)) for t in (times[0], times[-1])]
        x = jax.random.normal(KEY, (8, 2)) * size[0]
        solver = case.make(schedule)
        results.append(
            jax.jit(lambda x, d=data, s=schedule, so=solver, t=times: sample(d.denoiser(s), so, t, x, KEY)[0])(x)
            / size[1]
        )
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", [kind for kind in PREDICTIONS if kind != "learned_variance"])
@pytest.mark.parametrize("path", laws.quick(PATHS, PATHS[0]))
def test_samples_do_not_depend_on_the_parameterisation(x64, kind, path):
    """One function, expressed as a network that predicts this or that."""
    schedule, data = laws.SCHEDULE_CASES[path](), two_dimensional()["mixture"]
    exact = data.denoiser(schedule)

    def network(params, x, t, cond):
        return compose(kind, exact(x, t), rates(schedule, t, x))

    x, times = start(schedule, data, 0.9, 8), jnp.linspace(0.9, 0.1, 9)
    denoise = make_denoiser(network, {}, schedule, prediction=kind)
    for name in ("dpmpp_2m", "heun"):
        solver = SOLVERS[name](schedule)
        got, truth = (sample(d, solver, times, x, KEY)[0] for d in (denoise, exact))
        np.testing.assert_allclose(got, truth, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("variable", sorted(VARIABLES))
def test_the_ode_is_the_same_in_every_variable(x64, variable):
    """Fine Runge-Kutta in any variable of integration finds the exact flow."""
    schedule, data = laws.SCHEDULE_CASES["linear_beta"](), two_dimensional()["mixture"]
    x, solver = start(schedule, data, 0.8, 8), SOLVERS["rk4"](schedule, variable=variable)
    times = jnp.linspace(0.8, 0.2, 161)
    got = jax.jit(lambda x: sample(data.denoiser(schedule), solver, times, x, KEY)[0])(x)
    np.testing.assert_allclose(got, data.flow(schedule, x, 0.8, 0.2), atol=1e-7)
