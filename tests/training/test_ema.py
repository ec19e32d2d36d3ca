"""Averages are the weighted means they say they are, and any length can be made afterwards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.ema import AVERAGES, gamma_of, update
from diffusion_jax.training.post_hoc import Snapshot, find_snapshots, mixture, save_snapshot, synthesize

CASES = {
    "constant": {"decay": 0.9},
    "warmup": {"decay": 0.95},
    "half_life": {"images": 500, "batch_size": 10, "ramp_up": 0.1},
    "power": {"std": 0.1},
}
STEPS = 400


def follow(average, values, start=0.0):
    """Average a row of numbers as training would its parameters."""

    def body(kept, element):
        t, value = element
        kept = update(average, {"w": kept}, {"w": value}, t)["w"]
        return kept, kept

    return jax.lax.scan(body, jnp.float32(start), (jnp.arange(1, len(values) + 1), jnp.asarray(values)))[1]


def weights(average, steps=STEPS):
    """The weight of every step in the average, the start's first: the answer to unit impulses."""
    decay = np.asarray(jax.vmap(average.decay)(jnp.arange(1, steps + 1, dtype=jnp.float32)), np.float64)
    left = np.append(np.cumprod(decay[::-1])[::-1], 1.0)
    return np.append(left[0], (1 - decay) * left[1:])


@pytest.mark.parametrize("name", sorted(AVERAGES))
def test_every_average_is_a_weighted_mean(name):
    """Its weights are not negative and sum to 1, so constant parameters stay, and it lies between the extremes."""
    average = AVERAGES[name](**CASES[name])
    share = weights(average)
    assert (share >= 0).all() and share.sum() == pytest.approx(1, abs=1e-6)
    values = np.random.default_rng(0).normal(size=STEPS).astype(np.float32)
    followed = np.asarray(follow(average, values, start=3.0))
    assert followed[-1] == pytest.approx(share @ np.append(3.0, values), abs=1e-5)
    np.testing.assert_allclose(follow(average, np.full(STEPS, 2.0, np.float32), start=2.0), 2.0, rtol=1e-6)


def test_published_rules():
    plain = AVERAGES["constant"](decay=0.5)
    assert float(follow(plain, np.asarray([1, 1], np.float32))[-1]) == 0.75
    newest = AVERAGES["constant"](decay=0)
    np.testing.assert_array_equal(follow(newest, np.asarray([5, 7], np.float32)), [5, 7])
    warm = AVERAGES["warmup"](decay=0.99)
    np.testing.assert_allclose([float(warm.decay(jnp.float32(t))) for t in (1, 10, 10**6)], [2 / 11, 11 / 20, 0.99])
    half = weights(AVERAGES["half_life"](images=50, batch_size=1, ramp_up=None))
    assert half[-1] / half[-51] == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_power_profile_has_its_shape_and_width(std):
    """Its weights are s^gamma and its standard deviation is `std` of the training; it forgets where it started."""
    gamma = gamma_of(std)
    assert np.sqrt(gamma + 1) / ((gamma + 2) * np.sqrt(gamma + 3)) == pytest.approx(std, rel=1e-9)
    share = weights(AVERAGES["power"](std=std), 4000)
    assert share[0] == 0
    s = np.arange(4001) / 4000
    mean = share @ s
    assert np.sqrt(share @ (s - mean) ** 2) == pytest.approx(std, rel=0.01)
    np.testing.assert_allclose(share[2001] / share[1001], 2**gamma, rtol=0.02)


def test_it_moves_in_float32_whatever_the_parameters_are():
    """In bfloat16 an average with decay 0.999 would never leave its start."""
    average = AVERAGES["constant"](decay=0.999)
    kept = {"w": jnp.zeros((), jnp.float32)}
    kept = update(average, kept, {"w": jnp.ones((), jnp.bfloat16)}, jnp.asarray(1))
    assert kept["w"].dtype == jnp.float32
    assert float(kept["w"]) == pytest.approx(1e-3, rel=1e-4)
    late = AVERAGES["power"](std=0.05).decay(jnp.float32(2e8))  # 1 - 1/t is 1 in float32 here
    assert 0 < 1 - float(late) < 1e-5 or float(late) == 1.0


@pytest.mark.parametrize("wanted", [0.05, 0.08, 0.15, 0.2])
def test_post_hoc_averages_are_those_tracked_directly(wanted):
    values = np.cumsum(np.random.default_rng(1).normal(size=2048)).astype(np.float32) / 20
    tracked = {std: np.asarray(follow(AVERAGES["power"](std=std), values)) for std in (0.05, 0.1)}
    shots = [
        Snapshot(step, std, lambda std=std, step=step: {"w": tracked[std][step - 1]})
        for step in range(128, 2049, 128)
        for std in tracked
    ]
    made = synthesize(shots, std=wanted)["w"]
    truth = float(np.asarray(follow(AVERAGES["power"](std=wanted), values))[-1])
    spread = values.std()
    assert abs(made - truth) < (0.01 if wanted <= 0.15 else 0.03) * spread
    earlier = synthesize(shots, std=wanted, step=1024)["w"]
    assert abs(earlier - np.asarray(follow(AVERAGES["power"](std=wanted), values))[1023]) < 0.05 * spread


def test_a_snapshot_itself_comes_back_exactly():
    shots = [Snapshot(step, std, dict) for step in (100, 200, 300) for std in (0.05, 0.1)]
    share = mixture(shots, std=0.1, step=300)
    np.testing.assert_allclose(share, [0, 0, 0, 0, 0, 1], atol=1e-6)


def test_snapshots_are_found_again(tmp_path):
    params = {"dense": {"kernel": jnp.arange(6.0).reshape(2, 3)}}
    for step in (5, 10):
        kernel = params["dense"]["kernel"] * step
        for _ in range(2):  # the second is left alone
            save_snapshot(tmp_path, step, {"a": params, "b": {"dense": {"kernel": kernel}}}, {"b": 0.05})
    shots = find_snapshots(tmp_path)
    assert [(shot.step, shot.std) for shot in shots] == [(5, 0.05), (10, 0.05)]
    np.testing.assert_array_equal(shots[1].load()["dense"]["kernel"], params["dense"]["kernel"] * 10)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("constant", {"decay": 1.0}, "decay is 1.0; it must be at least 0 and less than 1"),
        ("power", {"std": 0.5}, "std is 0.5; it must lie between 0 and 0.2887"),
        ("warmup", {"numerator": 5, "denominator": 1}, "numerator is 5"),
        ("half_life", {"images": 0, "batch_size": 1}, "must be positive"),
    ],
)
def test_bad_averages_are_refused(name, keywords, message):
    with pytest.raises(ValueError, match=message):
        AVERAGES[name](**keywords)


def test_nothing_to_average_is_explained():
    with pytest.raises(ValueError, match="no snapshots"):
        synthesize([], std=0.1)
    with pytest.raises(ValueError, match="the first snapshot is of step 5; none is of step 4"):
        synthesize([Snapshot(5, 0.05, dict)], std=0.1, step=4)
