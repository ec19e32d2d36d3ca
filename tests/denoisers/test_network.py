"""A network becomes the denoiser that its output means."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.network import doubled, make_denoiser, on_steps
from diffusion_jax.denoisers.precondition import precondition
from diffusion_jax.process.pace import zero_terminal
from diffusion_jax.process.prediction import PREDICTIONS
from diffusion_jax.process.schedules import cosine, geometric, karras, rectified
from diffusion_jax.types import LearnedEstimate
from tests.exact_network import DATA, NULL, OF_LABEL, PARAMS, SCHEDULE, exact, noisy

TIMES = np.array([0.1, 0.4, 0.7, 0.99])
LABEL = np.array([0, NULL, 1, NULL])


def nothing(params, x, t, cond):
    return jnp.zeros_like(x)


@functools.cache
def truth():
    """Return the exact estimates of noisy() for every label, in float64."""
    return jax.jit(lambda: [data.denoiser(SCHEDULE)(noisy(), TIMES) for data in OF_LABEL])()


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_exact_network_is_the_exact_denoiser_whatever_it_predicts(x64, kind):
    denoise = make_denoiser(exact(kind), PARAMS, SCHEDULE, prediction=kind, cond={"label": LABEL})
    ours = jax.jit(denoise)(noisy(), TIMES)
    assert isinstance(ours, LearnedEstimate) == (kind == "learned_variance")
    for i, label in enumerate(LABEL):
        np.testing.assert_allclose(ours.x0[i], truth()[label].x0[i], atol=1e-9)
        np.testing.assert_allclose(ours.eps[i], truth()[label].eps[i], atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_network_is_told_one_time_per_example_in_float32(dtype):
    told = []

    def apply(params, x, t, cond):
        told.append((x.dtype, t, cond))
        return x

    denoise = make_denoiser(apply, None, SCHEDULE, prediction="v", cond="as it is")
    for t in (0.5, np.float32(0.5), jnp.full(4, 0.5, jnp.float32), jnp.bfloat16(0.5)):
        estimate = denoise(noisy(dtype=dtype), t)
        assert told[-1][0] == dtype and told[-1][2] == "as it is"
        assert told[-1][1].dtype == estimate.x0.dtype == estimate.eps.dtype == jnp.float32
        np.testing.assert_array_equal(told[-1][1], np.full(4, 0.5))


def test_everything_follows_the_dtype_of_x(x64):
    told = []

    def apply(params, x, t, cond):
        told.append(t.dtype)
        return x

    denoise = make_denoiser(apply, None, SCHEDULE, prediction="edm")
    for dtype in (jnp.float32, jnp.float64):
        assert denoise(noisy(dtype=dtype), jnp.float64(0.3)).x0.dtype == told.pop() == dtype


@pytest.mark.parametrize("kind", ["eps", "score", "learned_variance"])
def test_pure_noise_refuses_predictions_that_know_nothing_of_the_data(kind):
    path = zero_terminal(SCHEDULE)
    with pytest.raises(ValueError, match="ends in pure noise"):
        make_denoiser(nothing, None, path, prediction=kind)
    with pytest.raises(ValueError, match="ends in pure noise"):
        doubled(nothing, None, path, prediction=kind, cond={"y": LABEL}, null={"y": LABEL})
    make_denoiser(nothing, None, path, prediction={"name": "learned_variance", "of": "v"})


@pytest.mark.parametrize("kind", ["eps", "score"])
def test_where_they_know_nothing_they_are_asked_at_the_end_of_the_span(kind):
    path, told = cosine(), []

    def apply(params, x, t, cond):
        told.append(t)
        return 0.5 * x

    denoise = make_denoiser(apply, None, path, prediction=kind)
    ends, inside = denoise(noisy(), 1.0), denoise(noisy(), path.span[1])
    np.testing.assert_array_equal(told[0], told[1])
    assert np.isfinite(ends.x0).all()
    jax.tree.map(np.testing.assert_array_equal, ends, inside)


def test_a_denoiser_may_be_made_inside_jit():
    made = jax.jit(
        lambda params, x, t: make_denoiser(exact("eps"), params, SCHEDULE, prediction="eps", cond=COND)(x, t)
    )
    np.testing.assert_allclose(made(PARAMS, noisy(), 0.5).x0, DATA.denoiser(SCHEDULE)(noisy(), 0.5).x0, atol=1e-5)


COND = {"label": np.full(4, NULL)}


def test_steps_of_a_thousand():
    told = on_steps(lambda params, x, t, cond: t, steps=1000)
    steps = np.arange(1000)
    times = jnp.asarray((steps + 1) / 1000, jnp.float32)
    np.testing.assert_array_equal(jax.jit(lambda t: told(None, t, t, None))(times), steps)
    between = told(None, times, jnp.asarray([0.4564, 0.00125], jnp.float32), None)
    np.testing.assert_allclose(between, [455.4, 0.25], atol=1e-3)
    denoise = make_denoiser(on_steps(lambda p, x, t, c: x * t[:, None, None], steps=8), None, SCHEDULE, prediction="x0")
    np.testing.assert_allclose(denoise(noisy(), 0.5).x0, noisy() * 3, rtol=1e-6)


def network(params, x, t, cond):
    return jnp.sin(3 * x + t[:, None, None]) + params


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_preconditioning_is_table_1_of_karras_on_the_exploding_path(x64, sigma_data):
    path, x, params = karras(), 3 * noisy(), 0.2
    denoise = make_denoiser(
        precondition(network, path, sigma_data=sigma_data),
        params,
        path,
        prediction={"name": "edm", "sigma_data": sigma_data},
    )
    sigma = np.array([0.002, 0.3, 2.0, 80.0])
    ours = denoise(x, (sigma / 80) ** (1 / 7))
    s, data = sigma[:, None, None], sigma_data
    c_skip, c_out = data**2 / (s**2 + data**2), s * data / np.sqrt(s**2 + data**2)
    c_in, c_noise = 1 / np.sqrt(s**2 + data**2), np.log(sigma) / 4
    truth = c_skip * np.asarray(x) + c_out * np.asarray(network(params, c_in * x, jnp.asarray(c_noise), None))
    np.testing.assert_allclose(ours.x0, truth, rtol=1e-10, atol=1e-10)


def test_preconditioning_is_the_same_on_every_path(x64):
    """A network trained on one path denoises x on another whose level sigma / alpha is the same."""
    exploding, straight, x = karras(), rectified(), noisy()
    sigma = np.array([0.01, 0.3, 2.0, 40.0])
    at = [path.time(-2 * jnp.log(jnp.asarray(sigma))) for path in (exploding, straight)]
    ours = [
        make_denoiser(precondition(network, path), 0.2, path, prediction="edm")(x * path.alpha(t)[:, None, None], t).x0
        for path, t in zip((exploding, straight), at, strict=True)
    ]
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-9)


def test_a_preconditioned_network_sees_unit_variance_and_a_finite_time():
    told = []

    def apply(params, x, t, cond):
        told.append(t)
        return x

    ends = np.array([0.0, 1.0, 0.5, 0.3], np.float32)
    for path in (karras(), rectified(), geometric(), SCHEDULE):
        data = np.random.default_rng(0).choice([-0.5, 0.5], size=(4, 4000)).astype(np.float32)
        noise = np.random.default_rng(1).normal(size=(4, 4000)).astype(np.float32)
        x = path.alpha(ends)[:, None] * data + path.sigma(ends)[:, None] * noise
        seen = precondition(apply, path)(None, jnp.asarray(x), jnp.asarray(ends), None)
        np.testing.assert_allclose(np.var(seen, axis=1), 1, atol=0.1)
        assert np.isfinite(told[-1]).all() and np.isfinite(seen).all()
        inside = ends[2:]
        np.testing.assert_allclose(told[-1][2:], np.log(path.sigma(inside) / path.alpha(inside)) / 4, rtol=1e-4)


def test_wrong_shapes_are_refused_when_traced():
    def answering(shape):
        return make_denoiser(lambda params, x, t, cond: jnp.zeros(shape), None, SCHEDULE, prediction="eps")

    with pytest.raises(ValueError, match=r"answered x of shape \(4, 2, 3\) with shape \(4, 2, 6\).*'learned_variance'"):
        answering((4, 2, 6))(noisy(), 0.5)
    with pytest.raises(ValueError, match=r"prediction 'eps' it must be \(4, 2, 3\)\."):
        jax.jit(answering((4, 1, 3)))(noisy(), 0.5)
    with pytest.raises(ValueError, match=r"'learned_variance' it must be \(4, 2, 6\)"):
        make_denoiser(nothing, None, SCHEDULE, prediction="learned_variance")(noisy(), 0.5)
    with pytest.raises(ValueError, match=r"times of shape \(3,\) for 4 examples"):
        make_denoiser(nothing, None, SCHEDULE, prediction="eps")(noisy(), np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_denoiser(nothing, None, SCHEDULE, prediction="epsilon"), "Did you mean 'eps'"),
        (lambda: on_steps(nothing, steps=0), "steps is 0"),
        (lambda: precondition(nothing, SCHEDULE, sigma_data=0.0), "sigma_data is 0"),
        (lambda: pair({"y": LABEL}, {"z": LABEL}), "same entries"),
        (lambda: pair({"y": LABEL}, {"y": LABEL[:2]}), "one row per example"),
        (lambda: pair(None, None), "cond is empty"),
    ],
)
def test_bad_networks_are_refused_with_a_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def pair(cond, null):
    return doubled(nothing, None, SCHEDULE, prediction="v", cond=cond, null=null)
