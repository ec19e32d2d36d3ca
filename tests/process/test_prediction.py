"""Every prediction fixes the same pair (x0, eps), as well as its conditioning allows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import discrete, pace
from diffusion_jax.process.prediction import PREDICTIONS, check_prediction, compose, decompose, learned_variance
from diffusion_jax.process.schedule import rates
from diffusion_jax.types import Estimate, LearnedEstimate
from tests import laws

every = pytest.mark.parametrize("name", sorted(laws.SCHEDULE_CASES))
PAIRS = [(a, b) for a in PREDICTIONS for b in PREDICTIONS]
CHANNELS = 4


@functools.cache
def case(name):
    return laws.SCHEDULE_CASES[name]()


def truth(dtype):
    """The same data and noise for each of a batch of laws.COUNT times."""
    x0 = jnp.asarray(np.tile([0.7, -1.0, 0.1, 0.5], (laws.COUNT, 1)), dtype)
    eps = jnp.asarray(np.tile([-0.4, 1.5, 0.8, -2.0], (laws.COUNT, 1)), dtype)
    return Estimate(x0, eps)


def output_of(kind, estimate, r):
    """What a network that predicts `kind` would have said."""
    output = compose(kind, estimate, r)
    return jnp.concatenate([output, jnp.full_like(output, 0.5)], -1) if kind == "learned_variance" else output


def bounds(estimate, x, r, eps):
    """How far rounding of x, x0 and eps can move the pair along alpha dx0 = -sigma deps."""
    x0, noise, x = (np.abs(np.asarray(value, np.float64)) for value in (estimate.x0, estimate.eps, x))
    alpha, sigma = np.asarray(r.alpha, np.float64), np.asarray(r.sigma, np.float64)
    size = x + alpha * x0 + sigma * noise
    return 32 * eps * (1 + x0 + size / alpha), 32 * eps * (1 + noise + size / sigma)


def assert_pairs_agree(schedule, dtype):
    """Decompose in a, compose in b, decompose in b: the estimate comes back, over the whole span and both its ends."""
    wide = np.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
    t = laws.inside(schedule, wide.type)
    # A network in half precision says rounded outputs of a rounded x: exactly these must survive.
    believed = truth(wide)
    r = rates(schedule, t, believed.x0)
    x = (r.alpha * believed.x0 + r.sigma * believed.eps).astype(dtype)
    eps = float(np.finfo(wide).eps)
    for a, b in PAIRS:
        said = output_of(a, believed, r).astype(dtype)
        first = decompose(a, said, x, r)
        again = decompose(b, output_of(b, first, r), x.astype(wide), r)
        assert first.x0.dtype == first.eps.dtype == wide
        for mine, other, bound in zip(first[:2], again[:2], bounds(first, x, r, eps), strict=True):
            error = np.abs(np.asarray(mine, np.float64) - np.asarray(other, np.float64))
            assert np.all(error <= bound), (schedule.name, a, b, float(np.max(error / bound)))
        if dtype == wide:
            for mine, true, bound in zip(first[:2], believed, bounds(believed, x, r, eps), strict=True):
                assert np.all(np.abs(np.asarray(mine - true)) <= bound), (schedule.name, a)


@every
def test_round_trips_in_float32(name):
    assert_pairs_agree(case(name), jnp.float32)


@pytest.mark.parametrize("name", ["linear_beta", "karras", "cosine", "rectified"])
def test_round_trips_in_bfloat16(name):
    assert_pairs_agree(case(name), jnp.bfloat16)


@pytest.mark.parametrize("name", ["linear_beta", "karras", "rectified", "alpha_bar"])
def test_round_trips_in_float64(name, x64):
    assert_pairs_agree(case(name), jnp.float64)


def definition(kind, e, r):
    """The outputs as the papers define them."""
    size = np.sqrt(r.sigma**2 + (0.5 * r.alpha) ** 2)
    x = r.alpha * e.x0 + r.sigma * e.eps
    c_skip, c_out = 0.25 * r.alpha / size**2, 0.5 * r.sigma / size
    return {
        "eps": e.eps,
        "x0": e.x0,
        "v": r.alpha * e.eps - r.sigma * e.x0,
        "score": -e.eps / r.sigma,
        "velocity": r.dalpha * e.x0 + r.dsigma * e.eps,
        "flow": e.eps - e.x0,
        "edm": (e.x0 - c_skip * x) / c_out,
        "learned_variance": e.eps,
    }[kind]


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", ["linear_beta", "karras", "sub_vp", "rectified"])
def test_outputs_are_those_of_the_papers(name, kind, x64):
    e = truth(jnp.float64)
    r = rates(case(name), laws.inside(case(name)), e.x0)
    np.testing.assert_allclose(compose(kind, e, r), definition(kind, e, r), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", PREDICTIONS)
@every
def test_gain_is_the_change_of_output_with_eps(name, kind, x64):
    e = truth(jnp.float64)
    r = rates(case(name), laws.inside(case(name)), e.x0)
    x = r.alpha * e.x0 + r.sigma * e.eps
    along = lambda eps: compose(kind, Estimate((x - r.sigma * eps) / r.alpha, eps), r)
    slope = jax.jvp(along, (e.eps,), (jnp.ones_like(e.eps),))[1]
    gain = PREDICTIONS[kind]().gain(r)
    np.testing.assert_allclose(np.broadcast_to(gain, slope.shape), np.abs(slope), rtol=1e-9)


@pytest.mark.parametrize("name", laws.VARIANCE_PRESERVING)
def test_edm_is_minus_v_for_unit_data_on_variance_preserving_paths(name, x64):
    e = truth(jnp.float64)
    r = rates(case(name), laws.inside(case(name)), e.x0)
    edm = {"name": "edm", "sigma_data": 1.0}
    np.testing.assert_allclose(compose(edm, e, r), -compose("v", e, r), rtol=1e-9, atol=1e-11)


def test_velocity_is_noise_minus_data_on_the_straight_path():
    e = truth(jnp.float32)
    r = rates(case("rectified"), np.linspace(0, 1, laws.COUNT, dtype=np.float32), e.x0)
    np.testing.assert_array_equal(compose("velocity", e, r), e.eps - e.x0)


@pytest.mark.parametrize("kind", [kind for kind, make in PREDICTIONS.items() if make().knows_data])
@pytest.mark.parametrize("name", ["cosine", "rectified", "trigonometric", "zero_terminal"])
def test_data_are_known_in_pure_noise(name, kind):
    """Where alpha is exactly 0, these predictions still hold x0, and eps is x."""
    path = pace.zero_terminal(case("linear_beta")) if name == "zero_terminal" else case(name)
    e = truth(jnp.float32)
    r = rates(path, np.ones(laws.COUNT, np.float32), e.x0)
    x = r.sigma * e.eps
    assert np.all(r.alpha == 0)
    again = decompose(kind, output_of(kind, e, r), x, r)
    np.testing.assert_allclose(again.x0, e.x0, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(again.eps, e.eps, rtol=2e-6)


@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "score"])
def test_noise_free_x_is_the_data(kind):
    e = truth(jnp.float32)
    r = rates(case("rectified"), np.zeros(laws.COUNT, np.float32), e.x0)
    finite = jax.tree.map(jnp.zeros_like, e) if kind == "score" else e  # the score of clean data is infinite
    output = jnp.zeros_like(e.x0) if kind == "score" else compose(kind, finite, r)
    np.testing.assert_allclose(decompose(kind, output, e.x0, r).x0, e.x0, rtol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind, make in PREDICTIONS.items() if not make().knows_data])
def test_pure_noise_refuses_predictions_that_know_nothing_of_the_data(kind):
    rescaled = discrete.from_betas(discrete.rescale_zero_terminal(discrete.scaled_linear(steps=20).betas))
    for path in (pace.zero_terminal(case("linear_beta")), rescaled.schedule):
        with pytest.raises(ValueError, match="ends in pure noise .*Predict v, x0, velocity or edm"):
            check_prediction(PREDICTIONS[kind](), path)
        check_prediction(PREDICTIONS["v"](), path)
        check_prediction(learned_variance(of="v"), path)


@every
def test_ordinary_schedules_take_every_prediction(name):
    for make in PREDICTIONS.values():
        check_prediction(make(), case(name))


def test_learned_variance_splits_the_channels():
    e = truth(jnp.float32)
    r = rates(case("linear_beta"), laws.inside(case("linear_beta"), np.float32), e.x0)
    x = r.alpha * e.x0 + r.sigma * e.eps
    spread = jnp.tile(jnp.asarray([-1.0, 0.0, 1.0, 0.5]), (laws.COUNT, 1))
    for of in ("eps", {"name": "edm", "sigma_data": 1.0}, PREDICTIONS["v"]()):
        kind = {"name": "learned_variance", "of": of}
        got = decompose(kind, jnp.concatenate([compose(of, e, r), spread], -1), x, r)
        plain = decompose(of, compose(of, e, r), x, r)
        assert isinstance(got, LearnedEstimate)
        np.testing.assert_array_equal(got.x0, plain.x0)
        np.testing.assert_array_equal(got.fraction, np.tile([0, 0.5, 1, 0.75], (laws.COUNT, 1)))
        np.testing.assert_array_equal(compose(kind, e, r), compose(of, e, r))
    with pytest.raises(ValueError, match="gave 4 channels for an x of 4; it must give 8"):
        decompose("learned_variance", e.eps, x, r)


def test_bad_predictions_are_refused():
    with pytest.raises(ValueError, match=r"edm: sigma_data is 0\.0"):
        PREDICTIONS["edm"](sigma_data=0.0)
    with pytest.raises(ValueError, match="unknown prediction 'epsilon'. Did you mean 'eps'"):
        decompose("epsilon", jnp.zeros(1), jnp.zeros(1), rates(case("rectified"), 0.5, jnp.zeros(1)))
