"""The densities of times: drawn as they say, spread over the global batch, and weighted back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.losses.history import bin_of, probabilities, start_history, update_history
from diffusion_jax.losses.times import TIMES, draw_times, importance_weight, settle, target_density
from diffusion_jax.naming import choose
from tests.laws import SCHEDULE_CASES

PATHS = {name: SCHEDULE_CASES[name]() for name in ("cosine", "karras", "betas")}
KEY = jax.random.key(3)
COUNT = 4096  # one shape throughout: eager operations compile once for each

SPECS = [
    {"name": "uniform"},
    {"name": "steps"},
    {"name": "stratified", "of": "cosmap"},
    {"name": "logit_normal"},
    {"name": "logit_normal", "mean": -0.8, "std": 1.6},
    {"name": "log_normal_sigma"},
    {"name": "log_normal_sigma", "mean": 0.5, "std": 2.5},
    {"name": "mode"},
    {"name": "mode", "scale": -0.7},
    {"name": "cosmap"},
    {"name": "uniform_log_snr"},
    {"name": "importance", "of": "mode", "target": "logit_normal"},
    {"name": "loss_adaptive"},
]


def uneven(schedule, bins=7):
    """A full history whose losses differ widely between bins."""
    history = start_history(schedule, bins=bins, keep=3)
    losses = 0.1 + 9 * np.arange(3.0 * bins).reshape(bins, 3) % 11
    return history._replace(losses=jnp.asarray(losses), seen=jnp.full(bins, 3))


def built(spec, schedule):
    return settle(choose(TIMES, spec, "times"), uneven(schedule))


def draw(times, schedule, index=None):
    index = jnp.arange(COUNT) if index is None else index
    return draw_times(times, schedule, KEY, index, total=COUNT, dtype=jnp.float32)


def name_of(spec):
    return "-".join(str(value) for value in spec.values())


def test_every_density_is_tested():
    assert {spec["name"] for spec in SPECS} == set(TIMES)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_draws_follow_the_density(spec, path):
    """Kolmogorov and Smirnov's test in float32 against the integral of the density, which knows no quantiles."""
    schedule = PATHS[path]
    times = built(spec, schedule)
    # Fine at both ends, where densities may be steep.
    grid = np.asarray(jnp.clip(schedule.span[0] + _fine() * np.ptp(schedule.span), *schedule.span), np.float64)
    density = np.asarray(times.density(schedule, jnp.asarray(grid, jnp.float32)), np.float64)
    mass = np.append(0, np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(grid)))
    assert abs(mass[-1] - 1) < 5e-3
    t = np.asarray(draw(times, schedule))
    assert t.dtype == np.float32
    assert np.float32(schedule.span[0]) <= t.min()
    assert t.max() <= np.float32(schedule.span[1])
    if spec["name"] != "stratified":  # whose draws are more even than chance: they have their own test
        assert stats.kstest(t, lambda v: np.interp(v, grid, mass / mass[-1])).pvalue > 1e-3


def _fine():
    u = np.linspace(0, 1, COUNT)
    return u**3 * (10 - 15 * u + 6 * u**2)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec["name"] != "steps"], ids=name_of)
def test_quantile_and_density_are_inverse_derivatives(x64, spec, path):
    """d quantile / du = 1 / density at the quantile, and the ends of the span are met."""
    schedule = PATHS[path]
    times = built(spec, schedule)
    u = jnp.linspace(0.013, 0.987, 1001)
    h = 1e-7
    slope = (times.quantile(schedule, u + h) - times.quantile(schedule, u - h)) / (2 * h)
    np.testing.assert_allclose(slope * times.density(schedule, times.quantile(schedule, u)), 1, rtol=1e-5)
    ends = times.quantile(schedule, jnp.linspace(0, 1, 1001))
    np.testing.assert_allclose(ends[jnp.asarray([0, -1])], schedule.span, atol=1e-12)


@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("path", PATHS)
def test_steps_within_the_span_are_drawn_alike(x64, path, count):
    schedule = PATHS[path]._replace(span=(0.0, 1.0)) if count == 1 else PATHS[path]
    u = jnp.linspace(0, 1, 3001)[:-1] + 1 / 6000
    found, often = np.unique(TIMES["steps"](count=count).quantile(schedule, u), return_counts=True)
    low, high = schedule.span
    whole = np.arange(1, count + 1) / count
    np.testing.assert_allclose(found, whole[(whole >= low - 1e-6) & (whole <= high + 1e-6)], rtol=1e-6)
    assert np.ptp(often) <= 1


def test_published_forms(x64):
    """The distributions in the words of the papers, by scipy and by formulas with no truncation in them."""
    u, whole = jnp.linspace(0.05, 0.95, 1001), PATHS["cosine"]._replace(span=(0.0, 1.0))
    logit = TIMES["logit_normal"](mean=0.3, std=0.9).quantile(whole, u)
    np.testing.assert_allclose(np.log(logit / (1 - logit)), stats.norm(0.3, 0.9).ppf(u), rtol=1e-6, atol=1e-7)
    s = 1.29
    published = 1 - (1 - u) - s * (np.cos(np.pi / 2 * (1 - u)) ** 2 - 1 + (1 - u))
    np.testing.assert_allclose(TIMES["mode"](scale=s).quantile(whole, u), published, rtol=1e-9)
    np.testing.assert_allclose(
        TIMES["cosmap"]().quantile(whole, u), 1 - 1 / (np.tan(np.pi / 2 * u) + 1), rtol=1e-12, atol=0
    )
    karras = PATHS["karras"]
    sigma = np.asarray(karras.sigma(TIMES["log_normal_sigma"]().quantile(karras, u)))
    low, high = (np.log(np.asarray([0.002, 80.0])) + 1.2) / 1.2
    np.testing.assert_allclose(np.log(sigma), stats.truncnorm(low, high, -1.2, 1.2).ppf(u), rtol=1e-6)
    log_snr = karras.log_snr(TIMES["uniform_log_snr"]().quantile(karras, u))
    np.testing.assert_allclose(np.diff(log_snr, 2), 0, atol=1e-9)


def test_cosmap_gives_the_straight_path_the_log_snr_of_the_quarter_circle(x64):
    rectified, circle = SCHEDULE_CASES["rectified"](), SCHEDULE_CASES["trigonometric"]()
    u = jnp.linspace(0.05, 0.95, 1001)
    t = TIMES["cosmap"]().quantile(rectified._replace(span=(0.0, 1.0)), u)
    np.testing.assert_allclose(rectified.log_snr(t), circle.log_snr(u), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("of", ["uniform", "logit_normal", "mode", "loss_adaptive"])
def test_stratified_times_cover_the_global_batch_once(of):
    """One time in each of B equal shares of the probability, counted by the distribution function."""
    schedule = PATHS["cosine"]
    times = built({"name": "stratified", "of": of}, schedule)
    t = np.sort(np.asarray(draw(times, schedule), np.float64))
    u = np.linspace(0, 1, COUNT)
    share = np.interp(t, np.asarray(times.quantile(schedule, jnp.asarray(u, jnp.float32)), np.float64), u)
    np.testing.assert_allclose(np.diff(share[50:-50]) * COUNT, 1, atol=0.5)
    assert np.abs(share - (np.arange(COUNT) + 0.5) / COUNT).max() < 1 / COUNT
    plain = np.sort(np.asarray(draw(built(of, schedule), schedule), np.float64))
    assert np.abs(plain - t).max() > 3e-3  # chance alone is not so even


def test_stratified_times_are_shared_out_by_index():
    """The global batch in 8 parts has the times of the whole; another key has others."""
    schedule, times = PATHS["cosine"], TIMES["stratified"]()
    t = draw(times, schedule)
    parts = [draw(times, schedule, part) for part in jnp.arange(COUNT).reshape(8, -1)]
    np.testing.assert_array_equal(jnp.concatenate(parts), t)
    other = draw_times(times, schedule, jax.random.key(4), jnp.arange(COUNT), total=COUNT, dtype=jnp.float32)
    assert np.abs(np.sort(other) - np.sort(t)).max() > 1e-6


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_one_time_per_example_keyed_by_its_index(spec):
    schedule = PATHS["cosine"]
    times = built(spec, schedule)
    t = np.asarray(draw(times, schedule))
    assert t.shape == (COUNT,)
    assert len(np.unique(t)) > (0.9 * 1000 if spec["name"] == "steps" else 0.99 * COUNT)
    order = np.random.default_rng(0).permutation(COUNT)
    np.testing.assert_array_equal(draw(times, schedule, jnp.asarray(order)), t[order])


@pytest.mark.parametrize("spec", SPECS, ids=name_of)
def test_importance_weights_leave_expectations_unchanged(spec):
    """With t stratified, mean(weight f(t)) is the integral of the target density times f."""
    schedule = PATHS["cosine"]
    times = built({"name": "stratified", "of": built(spec, schedule)}, schedule)
    t = draw(times, schedule)
    weight = np.asarray(importance_weight(times, schedule, t), np.float64)
    grid = np.linspace(*schedule.span, COUNT)
    target = target_density(times, schedule, jnp.asarray(grid, jnp.float32))
    for power in range(4):
        expected = np.trapezoid(np.asarray(target, np.float64) * grid**power, grid)
        assert abs((weight * np.asarray(t, np.float64) ** power).mean() - expected) < 2e-3
    weighted = spec["name"] in ("importance", "loss_adaptive")
    assert (np.ptp(weight) > 0.1) == weighted
    assert weighted or (weight == 1).all()


def test_extreme_numbers_have_finite_times_and_densities():
    """u is kept off 0 and 1, so that no draw in float32 meets a density of 0 or infinity."""
    for path in (PATHS["karras"], SCHEDULE_CASES["geometric"]()):  # geometric's times go down to 0
        for spec in SPECS:
            ends = jnp.asarray(np.arange(COUNT) % 2, jnp.float32)
            times = built(spec, path)._replace(numbers=lambda key, index, total, dtype, u=ends: u)
            t = draw(times, path)
            density = np.asarray(times.density(path, t))
            assert np.float32(path.span[0]) <= t.min() < t.max() <= np.float32(path.span[1])
            assert ((density > 0) & (density < np.inf)).all()


def test_history_keeps_the_last_losses_as_a_queue_would():
    schedule = PATHS["cosine"]
    history, bins, keep = start_history(schedule, bins=4, keep=3), 4, 3
    queues = [[] for _ in range(bins)]
    rng = np.random.default_rng(0)
    update, share = jax.jit(update_history), jax.jit(lambda history: probabilities(history, floor=0.1))
    for _ in range(4):
        t, loss = rng.uniform(*schedule.span, 17), rng.uniform(0.1, 5, 17)
        loss[4] = np.nan
        history = update(history, jnp.asarray(t, jnp.float32), jnp.asarray(loss, jnp.float32))
        for one, value in zip(t, loss, strict=True):
            if np.isfinite(value):
                place = int((one - schedule.span[0]) / np.ptp(schedule.span) * bins)
                queues[place] = [*queues[place], value][-keep:]
        for b in range(bins):
            kept = sorted(np.asarray(history.losses[b])[: int(min(history.seen[b], keep))])
            np.testing.assert_allclose(kept, sorted(queues[b]), rtol=1e-6)
        ready = all(len(queue) == keep for queue in queues)
        size_of = np.asarray([np.sqrt(np.mean(np.square(queue))) if ready else 1 for queue in queues])
        expected = 0.9 * size_of / size_of.sum() + 0.1 / bins if ready else np.full(bins, 1 / bins)
        np.testing.assert_allclose(share(history), expected, rtol=1e-5)
    assert ready
    np.testing.assert_array_equal(bin_of(history, history.edges[:-1] + 1e-3), np.arange(bins))


def test_an_empty_or_silent_history_is_uniform():
    history = start_history(PATHS["cosine"], bins=5, keep=1)
    silent = history._replace(seen=history.seen + 1)
    share = jax.jit(lambda history: probabilities(history, floor=0.01))
    for state in (history, silent):
        np.testing.assert_allclose(share(state), 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lognormal", "Did you mean 'log_normal_sigma'|Did you mean 'logit_normal'"),
        ({"name": "mode", "std": 1.0}, "does not take 'std'"),
        ({"name": "mode", "scale": 2.0}, r"must be in \[-1, 1.7519\]"),
        ({"name": "logit_normal", "std": 0.0}, "must be greater than 0"),
        ({"name": "loss_adaptive", "floor": 0.0}, "no time is lost"),
        ({"name": "importance"}, "needs 'of'"),
        ({"name": "importance", "of": "uniform", "target": "loss_adaptive"}, "depends on past losses"),
    ],
)
def test_bad_times_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        choose(TIMES, spec, "times")


def test_adaptive_times_say_that_they_need_a_history():
    adaptive = TIMES["loss_adaptive"]()
    with pytest.raises(ValueError, match="start_history"):
        settle(adaptive, None)
    with pytest.raises(ValueError, match="settle"):
        adaptive.density(PATHS["cosine"], jnp.asarray([0.5]))
    with pytest.raises(ValueError, match="at least 1"):
        start_history(PATHS["cosine"], bins=0)
