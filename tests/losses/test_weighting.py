"""The published weightings against their published formulas, in every space and on every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses.objective import Objective, exchange, multiplier, resolve
from diffusion_jax.losses.times import TIMES
from diffusion_jax.losses.uncertainty import learned_uncertainty, start_uncertainty
from diffusion_jax.losses.weighting import WEIGHTINGS, Published, choose_weighting
from diffusion_jax.process.pace import shift, zero_terminal
from diffusion_jax.process.prediction import PREDICTIONS
from diffusion_jax.process.schedule import rates
from tests.laws import SCHEDULE_CASES, VARIANCE_PRESERVING
from tests.losses.gaussian_data import PUBLISHED

PATHS = {name: make() for name, make in SCHEDULE_CASES.items()} | {"shifted": shift(SCHEDULE_CASES["cosine"](), 3.0)}


def inside(schedule, count=1001):
    return jnp.linspace(schedule.span[0], schedule.span[1], count + 2)[1:-1]


def built(name, prediction, weighting, **more):
    return resolve(Objective(PATHS[name], prediction, weighting, **more))


def test_every_weighting_is_in_the_table_of_formulas():
    assert {row[0] for row in PUBLISHED} == set(WEIGHTINGS)


@pytest.mark.parametrize(("name", "keywords", "formula", "space", "measure"), PUBLISHED)
def test_formula(x64, name, keywords, formula, space, measure):
    log_snr = np.linspace(-12, 12, 1001)
    weighting = WEIGHTINGS[name](**keywords)
    np.testing.assert_allclose(weighting(jnp.asarray(log_snr)), formula(np.exp(log_snr)), rtol=1e-12)
    assert (weighting.space, weighting.measure) == (space, measure)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_finite_and_not_negative_at_any_snr_in_float32(name):
    log_snr = jnp.asarray([-jnp.inf, -1e4, -87.0, -20.0, 0.0, 20.0, 87.0, 1e4, jnp.inf])
    weight = np.asarray(WEIGHTINGS[name]()(log_snr))
    assert weight.dtype == np.float32
    assert np.isfinite(weight).all()
    assert (weight >= 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_one_objective_in_three_spaces(x64, path):
    """eps-MSE is SNR times x0-MSE, and on a path of size one SNR / (SNR + 1) times v-MSE."""
    schedule = PATHS[path]
    t = inside(schedule)
    snr = jnp.exp(schedule.log_snr(t))
    size = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    for prediction in ("eps", "x0", "v"):
        plain = multiplier(built(path, prediction, "constant", space="eps"), t)
        np.testing.assert_allclose(multiplier(built(path, prediction, "snr"), t), plain, rtol=1e-9)
        expected = {"eps": jnp.ones_like(t), "x0": snr, "v": snr / (snr + 1) / size}[prediction]
        np.testing.assert_allclose(plain, expected, rtol=1e-9)


@pytest.mark.parametrize("path", [*VARIANCE_PRESERVING, "shifted"])
def test_min_snr_as_the_paper_writes_it_for_each_prediction(x64, path):
    t = inside(PATHS[path])
    snr = np.exp(np.asarray(PATHS[path].log_snr(t)))
    for prediction, divisor in (("x0", 1), ("eps", snr), ("v", snr + 1)):
        got = multiplier(built(path, prediction, "min_snr"), t)
        np.testing.assert_allclose(got, np.minimum(snr, 5) / divisor, rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_edm_weighting_is_one_on_edms_own_output(x64, path):
    weighting, prediction = {"name": "edm", "sigma_data": 0.3}, {"name": "edm", "sigma_data": 0.3}
    np.testing.assert_allclose(multiplier(built(path, prediction, weighting), inside(PATHS[path])), 1, rtol=1e-9)
    other = multiplier(built(path, "edm", weighting), inside(PATHS[path]))
    assert np.ptp(np.asarray(other)) > 0.1


def test_sigmoid_reads_in_x0_as_the_paper_says(x64):
    t = inside(PATHS["cosine"])
    log_snr = PATHS["cosine"].log_snr(t)
    ratio = multiplier(built("cosine", "x0", "sigmoid"), t) / multiplier(built("cosine", "eps", "vlb"), t)
    np.testing.assert_allclose(ratio, 2 * np.exp(-1) * jax.nn.sigmoid(log_snr + 1), rtol=1e-9)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("times", ["uniform", "logit_normal", "log_normal_sigma"])
def test_a_weight_over_log_snr_divides_out_the_density_of_times(x64, path, times):
    """Eq. (2): w |d log_snr / dt| / p, the derivative being taken by differences."""
    schedule, t, h = PATHS[path], inside(PATHS[path]) + 0.00123, 1e-6
    slope = (schedule.log_snr(t - h) - schedule.log_snr(t + h)) / (2 * h)
    density = TIMES[times]().density(schedule, t)
    np.testing.assert_allclose(multiplier(built(path, "eps", "vlb", times=times), t), slope / density / 2, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_errors_exchange_as_the_gains_say(x64, path):
    r = rates(PATHS[path], inside(PATHS[path]), inside(PATHS[path]))
    kinds = [make() for make in PREDICTIONS.values()]
    for one in kinds:
        for other in kinds:
            expected = (one.gain(r) / other.gain(r)) ** 2
            np.testing.assert_allclose(exchange(one, other, r), expected, rtol=1e-9)


@pytest.mark.parametrize("name", WEIGHTINGS)
@pytest.mark.parametrize("prediction", ["v", "x0", "velocity", "edm"])
def test_finite_at_zero_terminal_snr(name, prediction):
    schedule = zero_terminal(PATHS["linear_beta"])
    t = jnp.minimum(0.5 + jnp.arange(4096.0) / 8190, 1)
    factor = np.asarray(multiplier(Objective(schedule, prediction, name), t))
    assert t[-1] == 1
    assert np.isfinite(factor).all()
    assert name != "min_snr" or prediction != "v" or factor[-1] == 0


def test_a_plain_function_weighs_the_networks_own_error():
    t = inside(PATHS["cosine"])
    for prediction in ("eps", "v", "velocity"):
        got = multiplier(built("cosine", prediction, lambda log_snr: log_snr**2), t)
        np.testing.assert_allclose(got, PATHS["cosine"].log_snr(t) ** 2, rtol=1e-6)


def test_learned_uncertainty_starts_at_zero_and_tells_levels_apart():
    log_snr = jnp.linspace(-10, 10, 7)
    params = {"uncertainty": start_uncertainty(channels=16)}
    value, slope = jax.jit(
        lambda p: (
            learned_uncertainty({"uncertainty": p}, log_snr),
            jax.jacobian(lambda q: learned_uncertainty({"uncertainty": q}, log_snr))(p),
        )
    )(params["uncertainty"])
    assert (value == 0).all()
    np.testing.assert_allclose(slope["bias"], 1)
    # 16 waves can tell 7 levels apart: their values there are linearly independent.
    assert np.linalg.matrix_rank(np.asarray(slope["weights"]), tol=1e-3) == 7
    shared = {"uncertainty": {"bias": jnp.asarray(0.7), "weights": start_uncertainty(channels=0)["weights"]}}
    np.testing.assert_allclose(learned_uncertainty(shared, log_snr), 0.7, rtol=1e-6)
    with pytest.raises(ValueError, match="start_uncertainty"):
        learned_uncertainty({"params": {}}, log_snr)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("min_nsr", "Did you mean 'min_snr'"),
        ({"name": "min_snr", "bias": 1.0}, "does not take 'bias'.*belongs to sigmoid"),
        ({"name": "min_snr", "gamma": 0.0}, "gamma is 0.0; it must be greater than 0"),
        ({"name": "p2", "gamma": -1.0}, "must not be negative"),
        ({"name": "learned", "of": "vbl"}, "Did you mean 'vlb'"),
        (3.0, "must be a name, a mapping or a function"),
        (Published("mine", "x0", jnp.exp, "t"), "measure is 't'; it must be time or log_snr"),
    ],
)
def test_bad_weightings_are_refused_by_name(spec, message):
    with pytest.raises(ValueError, match=message):
        choose_weighting(spec)
