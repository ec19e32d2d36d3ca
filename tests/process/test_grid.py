"""Grids fall strictly from noise to data, at the published places."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.naming import choose
from diffusion_jax.process import discrete, grid, pace
from diffusion_jax.process.grid import GRIDS, checked
from diffusion_jax.process.schedule import reaches_clean
from diffusion_jax.process.schedules import SCHEDULES
from tests import laws
from tests.laws import at

OF_LEVELS = ("karras", "uniform_log_snr", "exponential", "beta")
OF_STEPS = ("leading", "trailing", "linspace")
WORLD = discrete.scaled_linear()
every_schedule = pytest.mark.parametrize("name", sorted(laws.SCHEDULE_CASES))
every_grid = pytest.mark.parametrize("kind", GRIDS)


@functools.cache
def case(name):
    return laws.SCHEDULE_CASES[name]()


@functools.cache
def world():
    return WORLD.schedule


def level(path, times):
    """Return sigma / alpha."""
    return np.exp(-at(path.log_snr, times) / 2)


def assert_levels(got, want):
    """Equal to float32, and to the error of the reference, which subtracts alpha-bar from 1 in float32."""
    removed = want**2 / (1 + want**2)
    own = np.divide(np.finfo(np.float32).eps / 2, removed, out=np.zeros_like(want), where=removed > 0)
    assert np.all(np.abs(got - want) <= want * (4e-6 + own)), np.max(np.abs(got - want))


def assert_good(path, times, steps):
    assert times.shape == (steps + 1,) and times.dtype == jnp.float32
    assert np.all(np.diff(np.asarray(times, np.float32)) < 0)
    assert times[-1] >= 0 and times[0] <= 1


@every_grid
@every_schedule
def test_every_grid_falls_strictly_on_every_path(name, kind):
    times = GRIDS[kind](case(name), 7)
    assert_good(case(name), times, 7)
    if kind in OF_LEVELS:
        assert times[0] == np.float32(case(name).span[1])
        nearest = times[-2] if reaches_clean(case(name)) else times[-1]
        assert nearest == np.float32(case(name).span[0])
    if kind in ("uniform", "quadratic"):
        assert times[0] == 1
    assert (times[-1] == 0) == (reaches_clean(case(name)) or case(name).span[0] == 0)


@pytest.mark.parametrize("steps", [1, 2, 101, 1000])
@every_grid
@pytest.mark.parametrize("name", ["karras", "geometric"])
def test_one_step_two_a_prime_and_a_thousand_are_legal(name, kind, steps):
    assert_good(case(name), GRIDS[kind](case(name), steps), steps)


@pytest.mark.parametrize("steps", [1, 2, 101, 1000])
@pytest.mark.parametrize("kind", ["uniform", "quadratic", "karras", "uniform_log_snr", "trailing"])
def test_paths_with_infinite_ends_take_any_number_of_steps(kind, steps):
    assert_good(case("rectified"), GRIDS[kind](case("rectified"), steps), steps)


def test_times_that_float32_cannot_tell_apart_are_refused():
    with pytest.raises(ValueError, match="occurs twice in float32. Take fewer steps"):
        grid.beta(case("rectified"), 1000)


@pytest.mark.parametrize("kind", OF_LEVELS)
@pytest.mark.parametrize("name", ["linear_beta", "geometric", "karras", "cosine", "rectified"])
def test_levels_are_where_the_formula_says(name, kind, x64):
    path, steps = case(name), 7
    levels = level(path, GRIDS[kind](path, steps)[: steps + (not reaches_clean(path))])
    ramp = np.linspace(0, 1, len(levels))
    if kind == "karras":
        place = (levels ** (1 / 7) - levels[0] ** (1 / 7)) / (levels[-1] ** (1 / 7) - levels[0] ** (1 / 7))
    elif kind == "beta":
        place = 1 - stats.beta(0.6, 0.6).cdf(np.clip((levels - levels[-1]) / (levels[0] - levels[-1]), 0, 1))
    else:
        place = np.log(levels / levels[0]) / np.log(levels[-1] / levels[0])
    np.testing.assert_allclose(place, ramp, atol=1e-7)


def test_exponential_is_uniform_log_snr():
    for path in (case("karras"), case("geometric")):
        np.testing.assert_array_equal(grid.exponential(path, 7), grid.uniform_log_snr(path, 7))


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 2.0), (1.0, 1.0), (3.0, 0.7)])
def test_beta_quantiles_are_those_of_scipy(a, b, x64):
    """On a path whose time is its noise level."""
    path = SCHEDULES["karras"](sigma_min=1e-9, sigma_max=1.0, rho=1.0)
    got = np.asarray(grid.beta(path, 20, alpha=a, beta=b))[:20]
    np.testing.assert_allclose(got, 1e-9 + (1 - 1e-9) * stats.beta.ppf(np.linspace(1, 0, 20), a, b), rtol=1e-9)


def test_uniform_and_quadratic_times():
    np.testing.assert_allclose(grid.uniform(case("rectified"), 4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(grid.uniform(case("rectified"), 2, start=0.9, end=0.1), [0.9, 0.5, 0.1], rtol=1e-6)
    np.testing.assert_allclose(grid.quadratic(case("rectified"), 4), np.asarray([16, 9, 4, 1, 0]) / 16)
    np.testing.assert_allclose(
        grid.quadratic(case("rectified"), 2, start=0.81, end=0.01), [0.81, 0.25, 0.01], rtol=1e-6
    )


@pytest.mark.parametrize("kind", ["karras", "exponential"])
@pytest.mark.parametrize("steps", [5, 18])
def test_edm_levels_are_the_reference(reference, kind, steps):
    want = reference("schedules.npz")[f"edm/{kind}/n{steps}"]
    got = at(case("karras").sigma, GRIDS[kind](case("karras"), steps))
    # The levels run over four decades, so the error is relative; float32 times are amplified by sigma' t / sigma = 7.
    np.testing.assert_allclose(got, want, rtol=4e-6)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize(
    ("kind", "key"), [("karras", "karras_sigmas"), ("exponential", "exponential_sigmas"), ("beta", "beta_sigmas")]
)
def test_spaced_levels_of_a_discrete_world_are_the_reference(reference, kind, key, steps):
    values = reference("schedules.npz")
    want = values[f"spaced_sigmas/EulerDiscreteScheduler/use_{key}/n{steps}"]
    times = GRIDS[kind](world(), steps, sigma_min=float(want[-2]))
    assert_levels(level(world(), times), want)
    # Their time is found by interpolation in float32, which 0.03 steps away from the ends is the best it does.
    index = values[f"spaced_sigmas/EulerDiscreteScheduler/use_{key}/n{steps}/t"]
    np.testing.assert_allclose(WORLD.index(np.asarray(times))[:-1], index, atol=3e-2)
    for other in ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        np.testing.assert_array_equal(values[f"spaced_sigmas/{other}/use_{key}/n{steps}"], want)


@pytest.mark.parametrize("steps", [10, 20])
def test_uniform_log_snr_is_the_reference_with_lu_lambdas(reference, steps):
    want = reference("schedules.npz")[f"spaced_sigmas/DPMSolverMultistepScheduler/use_lu_lambdas/n{steps}"]
    times = grid.uniform_log_snr(world(), steps, sigma_min=float(want[-2]))
    assert_levels(level(world(), times), want)


@pytest.mark.parametrize("kind", ["karras", "exponential", "beta"])
def test_spaced_levels_of_the_straight_path_are_the_reference(reference, kind):
    """The reference spaces sigma = t there: sigma / alpha of a path whose time is its noise level."""
    want = reference("schedules.npz")[f"flow/use_{kind}_sigmas/shift3/n10"]
    path = SCHEDULES["karras"](sigma_min=1e-3, sigma_max=1.0, rho=1.0)
    np.testing.assert_allclose(GRIDS[kind](path, 10, sigma_min=float(want[-2])), want, rtol=4e-6)


REFERENCE_STEPS = {
    # the reference's scheduler: our keywords for its `leading` and `linspace`
    "DDIMScheduler": ({}, {}),
    "EulerDiscreteScheduler": ({}, {"whole": False}),
    "LMSDiscreteScheduler": ({}, {"whole": False}),
    "HeunDiscreteScheduler": ({}, {"whole": False}),
    "DPMSolverMultistepScheduler": ({"include_zero": False}, {"include_zero": False}),
    "UniPCMultistepScheduler": ({"include_zero": False}, {"include_zero": False}),
}


def keywords_of(scheduler, kind, offset):
    leading, linspace = REFERENCE_STEPS[scheduler]
    return {"leading": {**leading, "offset": offset}, "trailing": {}, "linspace": linspace}[kind]


@pytest.mark.parametrize("kind", OF_STEPS)
@pytest.mark.parametrize("scheduler", REFERENCE_STEPS)
def test_discrete_spacings_are_the_reference(reference, scheduler, kind):
    values = reference("schedules.npz")
    for offset in (0, 1):
        for steps in (1, 5, 30, 50):
            want = values[f"timesteps/{scheduler}/{kind}/off{offset}/n{steps}"]
            if kind == "linspace" and steps == 1:
                # A single step of theirs starts from the clean end, unless step 0 is left out; ours from the noise.
                want = np.asarray([999])
            if scheduler == "HeunDiscreteScheduler":
                want = np.append(want[:1], want[1::2])  # they list the second stages too
            times = GRIDS[kind](case("rectified"), steps, **keywords_of(scheduler, kind, offset))
            assert times[-1] == 0
            np.testing.assert_allclose(WORLD.index(np.asarray(times))[:-1], want, atol=1e-4)


@pytest.mark.parametrize("kind", OF_STEPS)
@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_levels_at_discrete_spacings_are_the_reference(reference, scheduler, kind):
    for offset in (0, 1):
        want = reference("schedules.npz")[f"sigmas/{scheduler}/{kind}/off{offset}/n10"]
        times = GRIDS[kind](world(), 10, **keywords_of(scheduler, kind, offset))
        assert_levels(level(world(), times), want)


@pytest.mark.parametrize("steps", [4, 10, 28])
def test_default_times_of_the_straight_path_are_the_reference(reference, steps):
    want = reference("schedules.npz")[f"flow/default/shift1.0/n{steps}"]
    np.testing.assert_allclose(grid.linspace(case("rectified"), steps, whole=False), want, atol=2e-6)


@pytest.mark.parametrize("kind", OF_STEPS)
def test_discrete_spacings_of_all_steps_visit_every_step(kind):
    times = GRIDS[kind](case("rectified"), 50, train_steps=50)
    np.testing.assert_array_equal(discrete.linear(steps=50).index(np.asarray(times)), np.arange(49, -2, -1))


def test_grids_follow_float64_and_may_be_made_while_tracing(x64):
    assert grid.karras(case("karras"), 3).dtype == jnp.float64
    traced = jax.jit(lambda x: x * grid.karras(case("karras"), 3))(1.0)
    np.testing.assert_array_equal(traced, grid.karras(case("karras"), 3))


def test_a_checked_grid_comes_back_as_it_was():
    for times in ([1.0, 0.5, 0.0], [0.0, 0.5, 1.0], np.asarray([0.9, 0.1]), jnp.asarray([1.0, 0.25, 0.0])):
        got = checked(case("rectified"), times)
        assert isinstance(got, jax.Array) and got.dtype == jnp.float32
        np.testing.assert_array_equal(got, np.asarray(times, np.float32))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.5], "one row of at least 2; got shape"),
        ([[1.0, 0.0]], r"one row of at least 2; got shape \(1, 2\)"),
        ([1.5, 0.0], r"must lie in \[0, 1\]"),
        ([np.nan, 0.0], r"must lie in \[0, 1\]"),
        ([1.0, 0.5, 0.5, 0.0], "the time 0.5 occurs twice in float32"),
        ([1.0, 0.2, 0.7], "must fall strictly, or rise strictly to encode"),
    ],
)
def test_bad_grids_say_what_is_wrong(times, message):
    with pytest.raises(ValueError, match=message):
        checked(case("rectified"), times)


def test_inner_times_need_a_finite_log_snr():
    broken = case("rectified")._replace(log_snr=lambda t: jnp.where(t < 0.3, jnp.inf, -t), name="broken")
    checked(broken, [1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"schedule 'broken' is not finite at \[0.25\]; only the first and the last"):
        checked(broken, [1.0, 0.25, 0.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: grid.uniform(s, 0), "uniform: steps is 0; it must be a whole number, 1 or more"),
        (lambda s: choose(GRIDS, "karras", "grid", s, 2.5), "karras: steps is 2.5"),
        (lambda s: grid.karras(s, 3, rho=0.0), "karras: rho is 0.0"),
        (lambda s: grid.beta(s, 3, alpha=0.0), "beta: alpha is 0.0"),
        (lambda s: grid.karras(s, 3, sigma_max=-1.0), "karras: sigma_max is -1; it must be positive and finite"),
        (lambda s: grid.karras(s, 3, sigma_min=5.0, sigma_max=5.0), "sigma_min is 5 and sigma_max 5"),
        (lambda s: grid.uniform_log_snr(s, 3, sigma_max=90.0), "sigma_max is 90, a noise level that schedule 'karras'"),
        (lambda s: grid.trailing(s, 11, train_steps=10), "trailing: steps is 11; a world of 10 steps"),
        (
            lambda s: grid.leading(s, 10, train_steps=10, offset=1),
            "leading: the grid goes from step 10 .*Lower `offset`",
        ),
        (lambda s: grid.linspace(s, 10, train_steps=10, include_zero=False), "occurs twice"),
        (lambda s: grid.uniform(s, 2, start=1.5), r"must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(case("karras"))


def test_pure_noise_has_no_noise_level():
    path = pace.zero_terminal(case("linear_beta"))
    with pytest.raises(ValueError, match="sigma_max is inf; .*ends in pure noise, give sigma_max"):
        grid.karras(path, 7)
    assert_good(path, grid.karras(path, 7, sigma_max=150.0), 7)
    assert_good(path, grid.uniform(path, 7), 7)


def test_grids_are_chosen_by_name():
    spec = {"name": "karras", "rho": 5.0}
    np.testing.assert_array_equal(
        choose(GRIDS, spec, "grid", case("karras"), 7), grid.karras(case("karras"), 7, rho=5.0)
    )
    with pytest.raises(ValueError, match="grid 'trailing' does not take 'offset'. It belongs to leading"):
        choose(GRIDS, {"name": "trailing", "offset": 1}, "grid", case("karras"), 7)
