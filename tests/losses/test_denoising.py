"""The denoising loss of Gaussian data against its closed form, and what it promises about batches and dtypes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses.denoising import bin_edges, denoising_loss
from diffusion_jax.losses.history import start_history
from diffusion_jax.losses.times import TIMES, settle
from diffusion_jax.losses.uncertainty import start_uncertainty
from diffusion_jax.losses.weighting import WEIGHTINGS
from diffusion_jax.naming import choose
from diffusion_jax.process.pace import zero_terminal
from diffusion_jax.process.prediction import PREDICTIONS
from tests.laws import SCHEDULE_CASES, quick
from tests.losses.gaussian_data import DATA, DIMENSIONS, GAINS, PUBLISHED, best_loss, network

BATCH = 4096
KEY = jax.random.key(11)
COSINE, KARRAS = SCHEDULE_CASES["cosine"](), SCHEDULE_CASES["karras"]()
U = (np.arange(BATCH) + 0.5) / BATCH
ROWS = list({row[0]: row for row in PUBLISHED if row[1] != {"value": 3.0}}.values())  # one of each name


@pytest.fixture(scope="module")
def batch():
    return {"x": DATA.draw(jax.random.key(5), BATCH).astype(jnp.float32)}


def parameters(channels=0):
    return {"bias": jnp.zeros(DIMENSIONS), "uncertainty": start_uncertainty(channels=channels)}


def check(schedule, prediction, row, times, batch):
    """Five standard errors of the loss and of its gradient in a bias of the output, both known in closed form."""
    spec = {"name": row[0], **row[1]}
    loss_fn = denoising_loss(
        network(schedule, prediction), schedule, prediction=prediction, weighting=spec, times=times
    )
    (loss, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(parameters(), batch, KEY)
    times = settle(times, batch.get("history"))
    value, weight = best_loss(schedule, prediction, row, times, U)
    error = value / weight  # the expected squared error of the output
    spread = value**2 * 2 / DIMENSIONS
    if not times.name.startswith("stratified"):
        spread = spread + (value - value.mean()) ** 2
    assert abs(float(loss) - value.mean()) < 5 * np.sqrt(spread.mean() / BATCH)
    bound = 5 * np.sqrt((4 * weight**2 * error / DIMENSIONS**2).mean() / BATCH)
    assert np.abs(np.asarray(gradient["bias"])).max() < bound
    return metrics


def test_every_prediction_and_weighting_has_a_closed_form():
    assert set(GAINS) == set(PREDICTIONS)
    assert {row[0] for row in ROWS} == set(WEIGHTINGS)


@pytest.mark.parametrize("prediction", quick(PREDICTIONS, "velocity"))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_posterior_mean_is_the_minimum_and_its_loss_the_posterior_variance(row, prediction, batch):
    check(COSINE, prediction, row, TIMES["stratified"](), batch)


@pytest.mark.parametrize("path", SCHEDULE_CASES)
def test_so_it_is_on_every_path(path, batch):
    rows = {row[0]: row for row in ROWS}
    schedule = SCHEDULE_CASES[path]()
    check(schedule, "velocity", rows["edm"], TIMES["stratified"](), batch)
    check(schedule, "edm", rows["sigmoid"], TIMES["stratified"](), batch)


@pytest.mark.parametrize("name", TIMES)
def test_so_it_is_for_all_times(name, batch):
    times = choose(TIMES, {"name": name, "of": "mode"} if name in ("importance", "stratified") else name, "times")
    history = start_history(COSINE, bins=8, keep=1)
    history = history._replace(losses=1 + jnp.arange(8.0).reshape(8, 1), seen=history.seen + 1)
    for row in ROWS:
        if row[0] in ("min_snr", "sigmoid"):
            metrics = check(COSINE, "v", row, times, {**batch, "history": history})
            assert metrics["history"].seen.sum() == BATCH + 8


def simple(params, x, t, cond):
    """A network like no posterior mean."""
    return params["bias"][None] + jnp.tanh(x) * t[:, None] + cond.get("shift", 0)


@pytest.mark.parametrize("times", ["uniform", {"name": "stratified", "of": {"name": "importance", "of": "mode"}}])
def test_a_batch_in_parts_is_the_batch(times, batch):
    """Times, noise and so the loss and its gradient depend on the index alone, not on the batch around it."""
    loss_fn = denoising_loss(simple, COSINE, prediction="v", weighting="min_snr", times=times, global_batch=BATCH)
    graded = jax.value_and_grad(loss_fn, has_aux=True)
    (whole, metrics), slope = graded(parameters(), batch, KEY)
    # Each of 8 parts is repeated to the size of the whole, which its means do not notice.
    indices = jnp.arange(BATCH).reshape(8, -1, 1).repeat(8, 2).reshape(8, BATCH)
    parts = [graded(parameters(), {"x": batch["x"][index], "index": index}, KEY) for index in indices]
    np.testing.assert_allclose(np.mean([loss for (loss, _), _ in parts]), whole, rtol=1e-5)
    np.testing.assert_allclose(np.mean([grad["bias"] for _, grad in parts], 0), slope["bias"], rtol=1e-4, atol=1e-6)
    for name in ("bin_loss", "bin_share"):
        np.testing.assert_allclose(np.mean([m[name] for (_, m), _ in parts], 0), metrics[name], rtol=1e-4)


def test_compiled_it_is_the_same(batch):
    loss_fn = denoising_loss(simple, COSINE, prediction="v", weighting="vlb", times="log_normal_sigma")
    np.testing.assert_allclose(
        jax.jit(loss_fn)(parameters(), batch, KEY)[0], loss_fn(parameters(), batch, KEY)[0], rtol=1e-5
    )


def test_sums_and_counts_by_bin_of_log_snr(batch):
    loss, metrics = denoising_loss(simple, KARRAS, prediction="eps", weighting="snr", bins=6)(parameters(), batch, KEY)
    assert metrics["loss"] == loss
    assert np.isclose(metrics["bin_share"].sum(), 1)
    np.testing.assert_allclose(metrics["bin_loss"].sum(), loss, rtol=1e-5)
    edges = bin_edges(KARRAS, 6)
    np.testing.assert_allclose(edges[[0, -1]], [-2 * np.log(80), -2 * np.log(0.002)], rtol=1e-5)
    # Uniform times meet log-SNR as the inverse function says.
    share = np.diff(np.asarray(KARRAS.time(jnp.asarray(edges[::-1], jnp.float32)))) / np.ptp(KARRAS.span)
    np.testing.assert_allclose(metrics["bin_share"], share[::-1], atol=5 / np.sqrt(BATCH))
    one_bin = denoising_loss(simple, KARRAS, prediction="eps", bins=1)(parameters(), batch, KEY)[1]
    assert one_bin["bin_share"].tolist() == [1]
    far = bin_edges(zero_terminal(COSINE), 4)
    assert np.isfinite(far).all()


def test_mse_is_in_the_outputs_space_and_the_loss_in_the_weightings(batch):
    """Without a weighting the two agree; another space changes the loss and not the mse."""
    run = lambda **kw: denoising_loss(simple, COSINE, prediction="v", **kw)(parameters(), batch, KEY)[1]
    plain, moved = run(), run(space="eps")
    assert plain["loss"] == plain["mse"] == moved["mse"]
    assert moved["loss"] < moved["mse"]
    np.testing.assert_allclose(run(weighting="snr")["loss"], moved["loss"], rtol=1e-5)


def test_a_half_precision_network_gets_a_float32_loss(batch):
    def half(params, x, t, cond):
        return simple(params, x, t, cond).astype(jnp.bfloat16)

    for inputs in (batch["x"], batch["x"].astype(jnp.bfloat16)):
        losses = [
            denoising_loss(apply, COSINE, prediction="v", weighting="sigmoid")(parameters(), {"x": inputs}, KEY)
            for apply in (half, simple)
        ]
        assert losses[0][0].dtype == jnp.float32
        assert all(value.dtype == jnp.float32 for value in losses[0][1].values())
        np.testing.assert_allclose(losses[0][0], losses[1][0], rtol=5e-3)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_has_the_dtype_of_the_examples(x64, times, dtype):
    times = choose(TIMES, {"name": times, "of": "mode"} if times == "importance" else times, "times")
    loss_fn = denoising_loss(simple, COSINE, prediction="velocity", weighting="vlb", times=times)
    batch = {"x": np.zeros((8, DIMENSIONS), dtype), "history": start_history(COSINE)}
    params = {"bias": np.zeros(DIMENSIONS, dtype)}
    loss, metrics = jax.eval_shape(loss_fn, params, batch, KEY)
    assert loss.dtype == metrics["bin_loss"].dtype == metrics["bin_share"].dtype == dtype
    assert metrics["history"].losses.dtype == np.float64  # the state keeps its own


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_zero_terminal_snr_is_trained_at_its_very_end(row, batch):
    schedule = zero_terminal(SCHEDULE_CASES["linear_beta"]())
    end = TIMES["uniform"]()._replace(numbers=lambda key, index, total, dtype: (index % 2).astype(dtype))
    weighting = {"name": row[0], **row[1]}
    for prediction in ("v", "x0"):
        loss_fn = denoising_loss(simple, schedule, prediction=prediction, weighting=weighting, times=end)
        (loss, _), slope = jax.value_and_grad(loss_fn, has_aux=True)(parameters(), batch, KEY)
        assert np.isfinite(float(loss))
        assert np.isfinite(np.asarray(slope["bias"])).all()


def test_dropout_keys_belong_to_the_examples(batch):
    seen = {}

    def network(params, x, t, cond):
        for row, key in zip(np.asarray(x[:, 0]), np.asarray(jax.random.key_data(cond["dropout"])), strict=True):
            seen.setdefault(float(row), []).append(tuple(key.tolist()))
        return x

    loss_fn = denoising_loss(network, COSINE, prediction="v", global_batch=8)
    for rows in ([0, 1, 2, 3, 4, 5, 6, 7], [3, 5]):
        loss_fn({}, {"x": batch["x"][jnp.asarray(rows)], "index": jnp.asarray(rows)}, KEY)
    assert len({keys[0] for keys in seen.values()}) == 8
    assert sum(len(keys) == 2 and keys[0] == keys[1] for keys in seen.values()) == 2


def test_cond_reaches_the_network(batch):
    loss_fn = denoising_loss(simple, COSINE, prediction="v")
    shifted = {**batch, "cond": {"shift": jnp.asarray(0.7)}}
    moved = {**parameters(), "bias": jnp.full(DIMENSIONS, 0.7)}
    np.testing.assert_allclose(loss_fn(parameters(), shifted, KEY)[0], loss_fn(moved, batch, KEY)[0], rtol=1e-5)


def test_learned_uncertainty_settles_at_the_log_of_the_loss(batch):
    """Where exp(u) is the expected loss, Eq. (1): the gradient in u vanishes and the loss is 1 + log E[loss]."""
    plain, _ = denoising_loss(simple, COSINE, prediction="v", weighting="min_snr")(parameters(), batch, KEY)
    loss_fn = denoising_loss(simple, COSINE, prediction="v", weighting={"name": "learned", "of": "min_snr"})
    params = parameters()
    params["uncertainty"]["bias"] = jnp.log(plain)
    (loss, _), slope = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, KEY)
    np.testing.assert_allclose(loss, 1 + np.log(plain), rtol=1e-5)
    assert abs(float(slope["uncertainty"]["bias"])) < 1e-5
    # And for the network it is the plain loss divided by its size.
    direct = jax.grad(denoising_loss(simple, COSINE, prediction="v", weighting="min_snr"), has_aux=True)
    np.testing.assert_allclose(slope["bias"] * plain, direct(params, batch, KEY)[0]["bias"], rtol=1e-4)


def test_a_given_uncertainty_overrules(batch):
    level = lambda params, log_snr: 0 * log_snr + params["level"]
    loss_fn = denoising_loss(simple, COSINE, prediction="v", weighting="learned", uncertainty=level)
    plain, _ = denoising_loss(simple, COSINE, prediction="v")(parameters(), batch, KEY)
    loss, _ = loss_fn({"level": jnp.asarray(2.0), **parameters()}, batch, KEY)
    np.testing.assert_allclose(loss, plain * np.exp(-2) + 2, rtol=1e-5)


def test_loss_adaptive_times_learn_where_the_loss_is():
    """The state goes round through the metrics, and draws move to the bins with the largest losses."""
    loss_fn = denoising_loss(lambda p, x, t, c: 0 * x + 3 * t[:, None], COSINE, prediction="x0", times="loss_adaptive")
    batch = {"x": jnp.zeros((BATCH, DIMENSIONS)), "history": start_history(COSINE, bins=8)}
    losses = []
    for step in range(3):
        loss, metrics = loss_fn({}, batch, jax.random.key(step))
        losses.append(float(loss))
        batch["history"] = metrics["history"]
    seen = np.asarray(batch["history"].seen) / (3 * BATCH)
    middle = (np.arange(8) + 0.5) / 8
    np.testing.assert_allclose(seen, (1 / 8 + 2 * middle**2 / (middle**2).sum()) / 3, atol=0.02)
    np.testing.assert_allclose(losses, 3.0, rtol=0.05)  # the integral of 9 t^2: importance weights keep it


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"prediction": "velocty"}, "Did you mean 'velocity'"),
        ({"weighting": "minsnr"}, "Did you mean 'min_snr'"),
        ({"times": "stratifed"}, "Did you mean 'stratified'"),
        ({"times": 3}, "must be a name, a mapping or a Times"),
        ({"space": "noise"}, "unknown space 'noise'"),
        ({"bins": 0}, "bins is 0"),
        ({"bins": 2.5}, "bins is 2.5; it must be a whole number"),
        ({"global_batch": -4}, "global_batch is -4"),
        ({"prediction": None}, "prediction is None; name one of edm, eps"),
        ({"schedule": zero_terminal(COSINE), "prediction": "eps"}, "ends in pure noise"),
        ({"schedule": zero_terminal(COSINE), "times": "uniform_log_snr"}, "no median.*truncate"),
    ],
)
def test_bad_choices_are_refused_at_construction(keywords, message):
    given = {"prediction": "v", "schedule": COSINE, **keywords}
    with pytest.raises(ValueError, match=message):
        denoising_loss(simple, given.pop("schedule"), **given)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": np.zeros((2, 4))}, "has no 'x', only image"),
        ({"x": np.zeros((2, 4), np.uint8)}, r"is uint8; scale the images to floats in \[-1, 1\]"),
        ({"x": np.zeros((2, 4), np.float32), "index": np.arange(3)}, "one per example"),
        ({"x": np.zeros((2, 3), np.float32)}, "answered with shape"),
    ],
)
def test_bad_batches_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        denoising_loss(lambda p, x, t, c: jnp.zeros((2, 4)), COSINE, prediction="v")({}, batch, KEY)
