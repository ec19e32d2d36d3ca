"""The variational bound of Gaussian data, discrete and continuous, against its closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.losses.variational import chain_terms, hybrid_loss
from diffusion_jax.process.forward import add_noise
from diffusion_jax.process.oracle import gaussian
from diffusion_jax.process.prediction import compose
from diffusion_jax.process.schedule import rates
from diffusion_jax.types import Estimate, LearnedEstimate
from tests.laws import SCHEDULE_CASES, quick

BATCH, STEPS, STD, DIMENSIONS = 4096, 4, 0.2, 4
DATA = gaussian(np.zeros(DIMENSIONS), STD)  # within [-1, 1], as the decoder has it
KEY = jax.random.key(7)
PATHS = {name: SCHEDULE_CASES[name]() for name in ("cosine", "karras", "betas")}
PARAMS = {"fraction": jnp.asarray(0.35), "off": jnp.zeros(())}


@pytest.fixture(scope="module")
def batch():
    return {"x": DATA.draw(jax.random.key(5), BATCH).astype(jnp.float32)}


def learned(schedule, kind):
    """The best network for DATA, off by params["off"] in its output, with one fraction of the log-variance."""
    denoise = DATA.denoiser(schedule)

    def apply(params, x, t, cond):
        mean = compose(kind, denoise(x, t), rates(schedule, t, x)) + params["off"]
        return jnp.concatenate([mean, 0 * x + 2 * params["fraction"] - 1], -1)

    return apply


def posterior_variance(snr):
    """Of x0 given x."""
    return STD**2 / (1 + snr * STD**2)


def bound(schedule, fraction):
    """L_1 ... L_T in bits per dimension with the exact posterior mean, by differences of variances in float64."""
    t = jnp.arange(STEPS + 1) / STEPS
    alpha, sigma = (np.asarray(form(t), np.float64) for form in (schedule.alpha, schedule.sigma))
    transition = sigma[1:] ** 2 - (alpha[1:] / alpha[:-1]) ** 2 * sigma[:-1] ** 2
    small = sigma[:-1] ** 2 * transition / sigma[1:] ** 2
    small[0] = small[1]
    factor = alpha[:-1] * transition / sigma[1:] ** 2  # of x0 in the posterior's mean (Ho et al. 2020, Eq. 7)
    model = small ** (1 - fraction) * transition**fraction
    variance = posterior_variance((alpha[1:] / sigma[1:]) ** 2)
    nats = (np.log(model / small) + (small + factor**2 * variance) / model - 1) / 2
    nats[0] = -decoder(np.sqrt(model[0]), np.sqrt(variance[0]))
    return nats / np.log(2)


def decoder(std, away):
    """The expected log-probability of the bin of x0 when the mean is off by a normal error, by quadrature."""
    nodes, weights = special.roots_hermitenorm(60)
    off = np.abs(nodes * away)  # the tail that floating point resolves
    mass = stats.norm.cdf((1 / 255 - off) / std) - stats.norm.cdf((-1 / 255 - off) / std)
    return (weights * np.log(mass)).sum() / weights.sum()


def sampled(schedule, fraction, step, batch, steps=STEPS):
    """The mean of L_i over examples at the given steps."""
    x0, eps = batch["x"], jax.random.normal(KEY, batch["x"].shape)
    t = step.astype(jnp.float32) / steps
    x = add_noise(schedule, x0, eps, t)
    best = DATA.denoiser(schedule)(x, t)
    estimate = LearnedEstimate(best.x0, best.eps, jnp.full_like(x, fraction))
    return float(chain_terms(schedule, estimate, Estimate(x0, eps), x, step, steps=steps).mean())


@pytest.mark.slow
@pytest.mark.parametrize("path", ["karras", "betas"])
def test_every_term_of_gaussian_data(path, batch):
    for fraction in (0.0, 0.6):
        expected = bound(PATHS[path], fraction)
        for i in range(1, STEPS + 1):
            got = sampled(PATHS[path], fraction, jnp.full(BATCH, i), batch)
            np.testing.assert_allclose(got, expected[i - 1], rtol=0.03, atol=1e-5, err_msg=f"L_{i}")


def within_chance(got, steps):
    """Compare with the mean of what the steps contribute, to 5 standard errors of drawing them and 1 percent."""
    assert abs(float(got) - steps.mean()) < 5 * steps.std() / np.sqrt(BATCH) + 0.01 * abs(steps.mean())


@pytest.mark.slow
@pytest.mark.parametrize("prediction", quick(["eps", "v"], "v"))
def test_the_hybrid_loss_is_its_two_parts(prediction, batch):
    """Eq. (1), with L_simple the posterior variance and L_vlb the closed form, its derivative in the fraction too."""
    schedule = PATHS["betas"]
    loss_fn = hybrid_loss(learned(schedule, prediction), schedule, steps=STEPS, prediction=prediction, vlb_weight=0.01)
    (loss, metrics), slope = jax.value_and_grad(loss_fn, has_aux=True)(PARAMS, batch, KEY)
    np.testing.assert_allclose(loss, metrics["mse"] + 0.01 * metrics["vlb"], rtol=1e-6)
    t = jnp.arange(1, STEPS + 1) / STEPS
    snr = np.exp(np.asarray(schedule.log_snr(t), np.float64))
    gain = 1 if prediction == "eps" else (snr + 1) / snr
    within_chance(metrics["mse"], gain * snr * posterior_variance(snr))
    within_chance(metrics["vlb"], STEPS * bound(schedule, 0.35))
    within_chance(slope["fraction"], STEPS * 0.01 * (bound(schedule, 0.36) - bound(schedule, 0.34)) / 0.02)


def test_the_bound_does_not_move_the_mean(batch):
    """Its gradient in the mean is stopped: the network's mean hears L_simple alone."""
    params = {**PARAMS, "off": jnp.asarray(0.3)}
    slopes = [
        jax.grad(
            hybrid_loss(learned(PATHS["betas"], "v"), PATHS["betas"], steps=STEPS, prediction="v", vlb_weight=weight),
            has_aux=True,
        )(params, batch, KEY)[0]
        for weight in (0.0, 10.0)
    ]
    np.testing.assert_array_equal(slopes[0]["off"], slopes[1]["off"])
    assert abs(slopes[0]["off"]) > 0.1
    assert slopes[0]["fraction"] == 0 != slopes[1]["fraction"]


def test_many_steps_make_the_continuous_bound(batch):
    """The chain tends to 1/2 log((1 + std^2 SNR_max) / (1 + std^2 SNR_min)), and so does the vlb weighting."""
    schedule, steps = SCHEDULE_CASES["geometric"](), 2000  # log-SNR falls evenly, by 0.009 a step
    cut = schedule._replace(span=(1 / steps, 1.0))
    high, low = (np.exp(float(schedule.log_snr(end))) for end in cut.span)
    expected = np.log((1 + STD**2 * high) / (1 + STD**2 * low)) / 2
    evenly = jnp.asarray(2 + np.arange(BATCH) * (steps - 1) // BATCH)
    chain = (steps - 1) * sampled(schedule, 0.0, evenly, batch, steps) * np.log(2)
    np.testing.assert_allclose(chain, expected, rtol=0.02)
    apply = learned(cut, "eps")
    loss_fn = denoising_loss(
        lambda params, x, t, cond: apply(PARAMS, x, t, cond)[:, :DIMENSIONS],
        cut,
        prediction="eps",
        weighting="vlb",
        times={"name": "stratified", "of": "uniform_log_snr"},
    )
    np.testing.assert_allclose(loss_fn({}, batch, KEY)[0], expected, rtol=0.02)


@pytest.mark.parametrize("path", quick(["cosine", "trigonometric", "rectified", "karras"], "rectified"))
def test_a_chain_to_pure_noise_stays_finite(path, batch):
    """Where log-SNR at t = 1 is -inf, or nan by rounding, and where the first sigma is 1e-12: 40 examples a step."""
    schedule = SCHEDULE_CASES[path]()
    loss_fn = hybrid_loss(learned(schedule, "v"), schedule, steps=100, prediction="v")
    (loss, _), slope = jax.value_and_grad(loss_fn, has_aux=True)(PARAMS, batch, KEY)
    assert np.isfinite([loss, *jax.tree.leaves(slope)]).all()


def test_a_batch_in_parts_is_the_batch(batch):
    loss_fn = hybrid_loss(learned(PATHS["betas"], "v"), PATHS["betas"], steps=100, prediction="v")
    whole, metrics = loss_fn(PARAMS, batch, KEY)
    order = jnp.arange(BATCH)[::-1]
    turned, same = loss_fn(PARAMS, {"x": batch["x"][order], "index": order}, KEY)
    np.testing.assert_allclose(turned, whole, rtol=1e-5)
    np.testing.assert_allclose(same["vlb"], metrics["vlb"], rtol=1e-5)
    assert loss_fn(PARAMS, batch, jax.random.key(8))[0] != whole


def test_a_half_precision_network_gets_a_float32_loss(batch):
    exact = learned(PATHS["betas"], "v")
    half = lambda *given: exact(*given).astype(jnp.bfloat16)
    one, other = (
        hybrid_loss(f, PATHS["betas"], steps=100, prediction="v")(PARAMS, batch, KEY)[1] for f in (exact, half)
    )
    assert all(value.dtype == jnp.float32 for value in other.values())
    np.testing.assert_allclose(other["mse"], one["mse"], rtol=1e-2)


@pytest.mark.parametrize(
    ("path", "keywords", "message"),
    [
        ("cosine", {"steps": 10}, "prediction 'learned_variance' on schedule 'cosine', which ends in pure noise"),
        ("betas", {"steps": 1}, "at least 2"),
        ("betas", {"steps": 10, "prediction": "esp"}, "Did you mean 'eps'"),
    ],
)
def test_bad_choices_are_refused_at_construction(path, keywords, message):
    with pytest.raises(ValueError, match=message):
        hybrid_loss(learned(PATHS[path], "v"), PATHS[path], **keywords)


def test_a_network_without_a_variance_is_refused(batch):
    with pytest.raises(ValueError, match="'learned_variance' it must be"):
        hybrid_loss(lambda params, x, t, cond: x, PATHS["betas"], steps=10)({}, batch, KEY)
