"""What a loss really weighs: the effective weight against the loss itself, and which training arms are one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.losses.objective import Objective, effective_weight, same_objective
from diffusion_jax.process.pace import shift, zero_terminal
from tests.laws import SCHEDULE_CASES
from tests.losses.gaussian_data import DATA, DIMENSIONS, network

COUNT = 4096
COSINE, RECTIFIED, CIRCLE, KARRAS = (SCHEDULE_CASES[n]() for n in ("cosine", "rectified", "trigonometric", "karras"))
TABLE = SCHEDULE_CASES["betas"]()


def over(schedule, low, high):
    """The part of a path with log-SNR between two values."""
    return schedule._replace(span=tuple(float(schedule.time(float(end))) for end in (high, low)))


def snr_over_one_more(log_snr):
    return jax.nn.sigmoid(log_snr)


def min_snr_for_v(log_snr):
    return jnp.minimum(jnp.exp(log_snr), 5.0) / (jnp.exp(log_snr) + 1)


def bell(log_snr):
    """EDM's normal density of log(sigma / alpha), as a weight over log-SNR."""
    return jnp.exp(-((-log_snr / 2 + 1.2) ** 2) / (2 * 1.2**2))


def straight_logit_normal(log_snr):
    """W of the velocity loss of SD3: t = sigmoid(-log_snr / 2), the normal density of logit t, and gain 1 / (1 - t)."""
    return jnp.exp(-((log_snr / 2) ** 2) / 2) / jax.nn.sigmoid(log_snr / 2) ** 2


def stratified(of):
    return {"name": "stratified", "of": of}


@pytest.mark.parametrize(
    "objective",
    [
        Objective(COSINE, "eps", "constant", stratified("uniform")),
        Objective(COSINE, "v", "min_snr", stratified("uniform_log_snr")),
        Objective(COSINE, "x0", "sigmoid", stratified("cosmap")),
        Objective(RECTIFIED, "velocity", "constant", stratified("logit_normal")),
        Objective(RECTIFIED, "eps", "p2", stratified({"name": "importance", "of": "mode"})),
        Objective(KARRAS, "edm", "edm", stratified("log_normal_sigma")),
        Objective(KARRAS, "v", "vlb", stratified("log_normal_sigma")),
        Objective(TABLE, "x0", "truncated_snr", stratified("uniform"), "v"),
    ],
    ids=lambda objective: f"{objective.schedule.name}-{objective.prediction}-{objective.weighting}",
)
def test_effective_weight_is_what_an_error_in_eps_costs(objective):
    """A network off by b(log_snr) in eps costs the integral of W b^2 more than the best one: measured on the loss."""

    def off(log_snr):
        return 300 * jnp.exp(-((log_snr + 0.5) ** 2) / 4)

    batch = {"x": DATA.draw(jax.random.key(1), COUNT).astype(jnp.float32)}
    losses = []
    for error in (off, lambda log_snr: 0 * log_snr):
        apply = network(objective.schedule, objective.prediction, error)
        choices = objective._asdict()
        loss_fn = denoising_loss(apply, choices.pop("schedule"), **choices)
        losses.append(float(loss_fn({"bias": jnp.zeros(DIMENSIONS)}, batch, jax.random.key(2))[0]))
    grid = np.linspace(-9, 9, COUNT)
    weight = np.asarray(effective_weight(objective, jnp.asarray(grid, jnp.float32)), np.float64)
    expected = np.trapezoid(weight * np.asarray(off(grid)) ** 2, grid)
    np.testing.assert_allclose(losses[0] - losses[1], expected, rtol=4e-3)


def test_effective_weight_in_closed_form(x64):
    log_snr = jnp.linspace(-6, 6, 1001)
    W = lambda *choices: effective_weight(Objective(*choices), log_snr)
    for times in ("uniform", "cosmap", "log_normal_sigma"):
        np.testing.assert_allclose(W(COSINE, "v", "vlb", times), 0.5, rtol=1e-12)
    # Uniform times on the straight path: p |dt / d log_snr| = t (1 - t) / 2, and the velocity's gain is 1 / (1 - t).
    t = np.asarray(RECTIFIED.time(log_snr))
    density = 1 / np.ptp(RECTIFIED.span)
    np.testing.assert_allclose(W(RECTIFIED, "eps"), density * t * (1 - t) / 2, rtol=1e-9)
    np.testing.assert_allclose(W(RECTIFIED, "velocity"), density * t / (1 - t) / 2, rtol=1e-9)
    np.testing.assert_allclose(W(RECTIFIED, "x0"), density * t**3 / (1 - t) / 2, rtol=1e-9)


def test_effective_weight_is_zero_where_nothing_is_drawn():
    log_snr = np.linspace(-30, 30, COUNT).reshape(2, -1)
    weight = np.asarray(effective_weight(Objective(COSINE, "v", "min_snr"), jnp.asarray(log_snr, jnp.float32)))
    high, low = (float(COSINE.log_snr(end)) for end in COSINE.span)
    np.testing.assert_array_equal(weight > 0, (log_snr > low) & (log_snr < high))


SAME = {
    "min_snr for eps and, as the paper writes it, for v": (
        Objective(COSINE, "eps", "min_snr"),
        Objective(COSINE, "v", min_snr_for_v),
        1,
    ),
    "eps-MSE and SNR x0-MSE": (Objective(TABLE, "eps"), Objective(TABLE, "x0", "snr"), 1),
    "eps-MSE and SNR / (SNR + 1) v-MSE": (Objective(COSINE, "eps"), Objective(COSINE, "v", snr_over_one_more), 1),
    "EDM's weighting of x0 and the plain loss of its F": (
        Objective(KARRAS, "x0", "edm", "log_normal_sigma"),
        Objective(KARRAS, "edm", "constant", "log_normal_sigma"),
        1,
    ),
    "times moved into the weight": (
        Objective(KARRAS, "eps", bell, "uniform_log_snr"),
        Objective(KARRAS, "eps", "constant", "log_normal_sigma"),
        None,
    ),
    "SD3 and eps with its counterpart on another path": (
        Objective(over(RECTIFIED, -8, 8), "velocity", "constant", "logit_normal"),
        Objective(over(CIRCLE, -8, 8), "eps", straight_logit_normal, "uniform_log_snr"),
        None,
    ),
    "an integral over log-SNR for any times": (
        Objective(COSINE, "v", "sigmoid", "cosmap"),
        Objective(COSINE, "eps", "sigmoid", {"name": "mode", "scale": 0.5}),
        1,
    ),
    "and on any path": (
        Objective(over(KARRAS, -8, 8), "edm", "vlb", "log_normal_sigma"),
        Objective(over(CIRCLE, -8, 8), "v", "vlb"),
        1,
    ),
    "cosmap on the straight path and uniform times on the quarter circle": (
        Objective(over(RECTIFIED, -8, 8), "eps", "min_snr", "cosmap"),
        Objective(over(CIRCLE, -8, 8), "v", "min_snr"),
        1,
    ),
    "a factor": (Objective(COSINE, "v", {"name": "constant", "value": 3.0}), Objective(COSINE, "v"), 3),
    "the space named or left to the weighting": (
        Objective(COSINE, "v", "p2"),
        Objective(COSINE, "x0", {"name": "p2"}, "uniform", "eps"),
        1,
    ),
    "stratified draws": (Objective(COSINE, "v"), Objective(COSINE, "v", "constant", "stratified"), 1),
    "draws weighted back": (
        Objective(COSINE, "v", "min_snr", {"name": "importance", "of": "mode"}),
        Objective(COSINE, "v", "min_snr", "loss_adaptive"),
        1,
    ),
    "zero terminal SNR": (
        Objective(zero_terminal(TABLE), "v", "min_snr"),
        Objective(zero_terminal(TABLE), "x0", "min_snr", "stratified"),
        1,
    ),
    "equal weights under learned uncertainties": (
        Objective(COSINE, "eps", "learned"),
        Objective(COSINE, "x0", {"name": "learned", "of": "snr"}),
        1.0,
    ),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_objective(case):
    a, b, constant = SAME[case]
    verdict = same_objective(a, b)
    assert verdict, verdict.reason
    assert verdict.deviation < 1e-7
    assert verdict.reason.startswith("The same objective")
    if constant is not None:
        np.testing.assert_allclose(verdict.constant, constant, rtol=1e-3)  # the spans of two paths agree to rounding
    turned = same_objective(b, a)
    np.testing.assert_allclose(turned.constant * verdict.constant, 1, rtol=1e-9)


DIFFERENT = {
    "another gamma": (Objective(COSINE, "v", "min_snr"), Objective(COSINE, "v", {"name": "min_snr", "gamma": 5.01})),
    "a rounded corner": (Objective(COSINE, "v", "min_snr"), Objective(COSINE, "v", "soft_min_snr")),
    "min_snr / (SNR + 1) on eps": (Objective(COSINE, "eps", "min_snr"), Objective(COSINE, "eps", min_snr_for_v)),
    "no weight in two spaces": (Objective(COSINE, "eps"), Objective(COSINE, "v")),
    "snr and its truncation": (Objective(COSINE, "x0", "snr"), Objective(COSINE, "x0", "truncated_snr")),
    "another sigma_data": (
        Objective(KARRAS, "edm", "edm"),
        Objective(KARRAS, "edm", {"name": "edm", "sigma_data": 0.51}),
    ),
    "EDM's weighting on F": (Objective(KARRAS, "edm", "edm"), Objective(KARRAS, "edm", "edm", "uniform", "edm")),
    "another mean of times": (
        Objective(RECTIFIED, "velocity", "constant", "logit_normal"),
        Objective(RECTIFIED, "velocity", "constant", {"name": "logit_normal", "mean": 0.01}),
    ),
    "a shifted pace": (
        Objective(COSINE, "v", "min_snr"),
        Objective(over(shift(COSINE, 1.1), -12.9, 10), "v", "min_snr"),
    ),
    "one level a percent more": (
        Objective(COSINE, "eps"),
        Objective(COSINE, "eps", lambda log_snr: 1 + 0.01 * jnp.exp(-(log_snr**2))),
    ),
    "a bound without its half at one end": (
        Objective(COSINE, "eps", "vlb"),
        Objective(COSINE, "eps", {"name": "sigmoid", "bias": 15.0}),
    ),
    "one learned uncertainty": (Objective(COSINE, "v"), Objective(COSINE, "v", "learned")),
    "weights that only an uncertainty resolved by level would divide out": (
        Objective(COSINE, "v", "learned", "logit_normal"),
        Objective(COSINE, "eps", {"name": "learned", "of": "p2"}, "logit_normal"),
    ),
    "learned uncertainties at other times": (
        Objective(COSINE, "v", "learned"),
        Objective(COSINE, "v", "learned", "logit_normal"),
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_near_misses_are_not(case):
    verdict = same_objective(*DIFFERENT[case])
    assert not verdict, verdict.reason
    assert verdict.deviation > 1e-4
    assert verdict.reason.startswith("Not the same objective")


def test_the_reason_says_what_differs_and_what_does_not():
    other_path = same_objective(*SAME["and on any path"][:2])
    assert "path (karras, trigonometric), which only rescales the input of the network (Kingma & Gao 2023)" in (
        other_path.reason
    )
    assert "prediction (edm, v), which only changes what the network outputs" in other_path.reason
    assert "over log-SNR -8.00 to 8.00, W of the first is 1 times W of the second" in other_path.reason
    calmer = same_objective(*SAME["stratified draws"][:2])
    assert "times (uniform, stratified(uniform)), which only changes how noisy the loss is" in calmer.reason
    assert "bear the same names" in same_objective(Objective(COSINE, "v"), Objective(COSINE, "v")).reason
    near = same_objective(*DIFFERENT["another gamma"])
    assert "weighting (min_snr(gamma=5), min_snr(gamma=5.01))" in near.reason
    bump = same_objective(*DIFFERENT["one level a percent more"])
    np.testing.assert_allclose(bump.deviation, 0.01 / 1.01, rtol=0.1)
    assert "at log-SNR 0.0" in bump.reason or "at log-SNR -0.0" in bump.reason
    assert "first divides" not in same_objective(*DIFFERENT["one learned uncertainty"]).reason
    assert "a single number would not" in same_objective(*DIFFERENT["learned uncertainties at other times"]).reason


def test_different_supports_are_told_apart_from_different_weights():
    whole, part = Objective(COSINE, "v", "sigmoid"), Objective(over(COSINE, -6, 6), "v", "sigmoid")
    verdict = same_objective(whole, part)
    assert not verdict
    assert verdict.deviation < 1e-9
    assert "It is the same where both train" in verdict.reason
    assert "the second on -6.00 to 6.00" in verdict.reason
    both = same_objective(whole, part._replace(weighting="vlb"))
    assert not both
    assert "and the weights on the error in eps differ" in both.reason
    apart = same_objective(Objective(over(COSINE, 2, 6), "v"), Objective(over(COSINE, -6, -2), "v"))
    assert not apart
    assert "the first trains on log-SNR 2.00 to 6.00" in apart.reason


def test_impossible_arms_are_refused():
    with pytest.raises(ValueError, match="ends in pure noise"):
        same_objective(Objective(COSINE, "v"), Objective(zero_terminal(COSINE), "eps"))
    with pytest.raises(ValueError, match="Did you mean 'min_snr'"):
        same_objective(Objective(COSINE, "v", "min-snr"), Objective(COSINE, "v"))
