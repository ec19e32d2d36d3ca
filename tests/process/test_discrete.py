"""Worlds of integer steps against their publications and the reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.process import discrete
from diffusion_jax.process.discrete import WORLDS
from tests.laws import COUNT, at

KINDS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squared_cosine": "squaredcos_cap_v2",
    "sigmoid": "sigmoid",
}
CONFIGS = {"ddpm1000": (1000, 1e-4, 0.02), "sd1000": (1000, 0.00085, 0.012), "short50": (50, 1e-4, 0.02)}
SOME = np.linspace(0, 999, COUNT).round().astype(int)  # steps, both ends among them


@functools.cache
def world(kind, config, rescaled=False):
    steps, start, end = CONFIGS[config]
    ends = {} if kind == "squared_cosine" else {"beta_start": start, "beta_end": end}
    made = WORLDS[kind](steps=steps, **ends)
    return discrete.from_betas(discrete.rescale_zero_terminal(made.betas)) if rescaled else made


def test_every_world_has_a_reference():
    assert set(KINDS) == set(WORLDS)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kind", WORLDS)
def test_betas_and_alpha_bar_are_the_reference(reference, kind, config, rescaled):
    made = world(kind, config, rescaled)
    key = f"{config}/{KINDS[kind]}/{'zsnr' if rescaled else 'plain'}"
    values = reference("schedules.npz")
    # The reference rescales in float32, where a beta near the end is one minus a quotient of small numbers.
    np.testing.assert_allclose(made.betas, values[f"betas/{key}"], atol=1e-5 if rescaled else 2e-6)
    np.testing.assert_allclose(made.alpha_bar, values[f"alphas_cumprod/{key}"], atol=2e-6)
    np.testing.assert_allclose(made.alpha_bar, values[f"alphas_cumprod_f64/{key}"], rtol=1e-9)


@pytest.mark.parametrize("rescaled", [False, True])
@pytest.mark.parametrize("kind", WORLDS)
def test_the_path_goes_through_the_reference(reference, kind, rescaled, x64):
    made = world(kind, "sd1000", rescaled)
    key = f"alphas_cumprod_f64/sd1000/{KINDS[kind]}/{'zsnr' if rescaled else 'plain'}"
    left, t = reference("schedules.npz")[key][SOME], made.time(SOME)
    np.testing.assert_allclose(made.schedule.alpha(t) ** 2, left, rtol=1e-9)
    np.testing.assert_allclose(made.schedule.sigma(t) ** 2, 1 - left, rtol=1e-9)


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_the_path_goes_through_the_reference_in_float32(reference, kind):
    made = world(kind, "sd1000")
    left, t = reference("schedules.npz")[f"alphas_cumprod_f64/sd1000/{kind}/plain"][SOME], made.time(SOME)
    np.testing.assert_allclose(np.asarray(made.schedule.alpha(t)) ** 2, left, atol=2e-6)
    # sigma / alpha runs over three decades, so the error that matters is the relative one.
    np.testing.assert_allclose(np.exp(-np.asarray(made.schedule.log_snr(t)) / 2), np.sqrt((1 - left) / left), rtol=4e-6)


def test_published_end_points():
    ratio = lambda made: made.sqrt_one_minus_alpha_bar / made.sqrt_alpha_bar
    assert ratio(WORLDS["linear"]())[-1] == pytest.approx(157.407, abs=5e-4)
    assert WORLDS["linear"]().sqrt_alpha_bar[-1] == pytest.approx(0.0063528, abs=5e-8)
    assert ratio(WORLDS["scaled_linear"]())[[-1, 0]] == pytest.approx([14.6146, 0.02917], abs=5e-5)
    assert WORLDS["scaled_linear"]().sqrt_alpha_bar[-1] == pytest.approx(0.0682649, abs=5e-8)
    assert WORLDS["squared_cosine"]().sqrt_alpha_bar[-1] == pytest.approx(4.93e-5, abs=5e-8)
    assert WORLDS["squared_cosine"]().betas.max() == 0.999


@pytest.mark.parametrize("kind", WORLDS)
def test_alpha_bar_is_counted_from_after_the_first_step(kind):
    made = WORLDS[kind]()
    assert made.steps == len(made.alpha_bar) == 1000
    assert made.alpha_bar[0] == 1 - made.betas[0]
    assert made.alpha_bar_from_clean[0] == 1 and len(made.alpha_bar_from_clean) == 1001
    np.testing.assert_allclose(
        made.alpha_bar_from_clean[1:] / made.alpha_bar_from_clean[:-1], 1 - made.betas, rtol=1e-13
    )
    assert made.time(-1) == 0 and made.time(999) == 1
    assert at(made.schedule.sigma, made.time(-1)) == 0 and at(made.schedule.alpha, made.time(-1)) == 1


@pytest.mark.parametrize("steps", [1, 7, 1000, 4000])
def test_indices_and_times_round_trip_exactly(steps):
    made, whole = discrete.linear(steps=steps), np.arange(steps)
    for times in (made.time(whole), made.time(whole).astype(np.float32)):
        np.testing.assert_array_equal(made.index(times), whole)
    np.testing.assert_array_equal(jax.jit(made.index)(made.time(whole)), whole)
    assert np.all(np.diff(made.time(whole)) > 0)
    assert made.index(made.time(-1)) == -1


def test_fractional_indices_survive():
    made = discrete.linear()
    assert made.index(made.time(749.25)) == pytest.approx(749.25, abs=1e-9)
    assert float(made.index(jnp.float32(made.time(749.25)))) == pytest.approx(749.25, abs=1e-3)


@pytest.mark.parametrize("kind", WORLDS)
def test_rescaling_keeps_the_first_step_and_ends_in_pure_noise(kind):
    made = WORLDS[kind]()
    rescaled = discrete.from_betas(discrete.rescale_zero_terminal(made.betas))
    assert rescaled.alpha_bar[-1] == 0 and rescaled.betas[-1] == 1
    assert rescaled.alpha_bar[0] == pytest.approx(made.alpha_bar[0], rel=1e-12)
    assert rescaled.schedule.span[1] == 1.0
    assert at(rescaled.schedule.alpha, 1.0) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: discrete.linear(steps=0), "linear: steps is 0; it must be a whole number"),
        (lambda: discrete.scaled_linear(beta_start=0.1, beta_end=0.01), "scaled_linear: betas go from 0.1 to 0.01"),
        (lambda: discrete.sigmoid(beta_end=2.0), "sigmoid: betas go from 0.0001 to 2.0"),
        (lambda: discrete.squared_cosine(max_beta=0.0), "squared_cosine: betas go from 0.0"),
        (lambda: discrete.from_betas([0.1, 0.0]), r"from_betas: betas must be one row of numbers in \(0, 1\]"),
        (lambda: discrete.rescale_zero_terminal([0.5]), "there is 1 step"),
    ],
)
def test_bad_arguments_are_refused_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
