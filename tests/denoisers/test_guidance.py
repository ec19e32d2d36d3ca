"""Guidance against closed forms, and the laws every entry of GUIDANCE obeys."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.guidance import (
    GUIDANCE,
    autoguidance,
    classifier_free,
    projected,
    rescaled,
    within,
    zero_star,
)
from diffusion_jax.denoisers.network import make_denoiser
from diffusion_jax.naming import choose
from diffusion_jax.process import oracle
from diffusion_jax.process.schedule import rates
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from diffusion_jax.types import Estimate
from tests.exact_network import DATA, NULL, OF_LABEL, PARAMS, SCHEDULE, exact, noisy

KEYWORDS = {
    "classifier_free": {},
    "rescaled": {"schedule": SCHEDULE},
    "projected": {"schedule": SCHEDULE, "limit": 1.5},
    "zero_star": {"schedule": SCHEDULE},
    "autoguidance": {},
}
TIMES = np.array([0.05, 0.3, 0.6, 0.95])
LABEL = np.array([0, 1, 1, 0])


def guide(name, conditional, unconditional, scale):
    return choose(GUIDANCE, {"name": name, **KEYWORDS[name]}, "guidance", conditional, unconditional, scale)


def inner(a, b):
    return np.einsum("bij,bij->b", a, b)[:, None, None]


def given(**parts):
    """Return a denoiser that answers the same whatever it is asked."""
    return lambda x, t: Estimate(**{name: jnp.asarray(value, x.dtype) for name, value in parts.items()})


def known(seed) -> Any:
    """Return x and an estimate (x0, eps) of it at TIMES on the path."""
    alpha, sigma = (np.asarray(form(TIMES))[:, None, None] for form in (SCHEDULE.alpha, SCHEDULE.sigma))
    x, x0 = np.asarray(noisy()), np.asarray(noisy(seed=seed))
    return x, x0, (x - alpha * x0) / sigma


def fixed(estimate):
    """Return a denoiser that always answers `estimate`."""
    return lambda x, t: estimate


@functools.cache
def answers(kind, precise):
    """Return what an exact network says of noisy() with and without its label, in float64 if `precise`."""
    conds = {"label": LABEL}, {"label": np.full(4, NULL)}
    pair = [make_denoiser(exact(kind), PARAMS, SCHEDULE, prediction=kind, cond=cond) for cond in conds]
    return jax.jit(lambda x, t: [denoise(x, t) for denoise in pair])(noisy(), TIMES)


@pytest.mark.parametrize("name", GUIDANCE)
def test_scale_one_is_the_conditional_model_exactly(name):
    c, u = answers("learned_variance", False)

    @jax.jit
    def every(one):
        ways = [guide(name, fixed(c), fixed(u), scale) for scale in (1, 1.0, one, jnp.full(4, one))]
        return [way(noisy(), jnp.asarray(TIMES, jnp.float32)) for way in ways]

    for estimate in every(jnp.float32(1)):
        jax.tree.map(np.testing.assert_array_equal, estimate, c)


@pytest.mark.parametrize("name", ["classifier_free", "autoguidance", "rescaled"])
def test_scale_zero_is_the_unconditional_model_exactly(name):
    c, u = answers("v", False)
    keywords = {"rescaled": {"schedule": SCHEDULE, "mix": 0.0}}.get(name, {})
    guided = GUIDANCE[name](fixed(c), fixed(u), 0.0, **keywords)
    jax.tree.map(np.testing.assert_array_equal, guided(noisy(), jnp.asarray(TIMES, jnp.float32)), u)


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_is_the_same_in_every_prediction_and_explains_x(x64, name):
    kinds = ("eps", "x0", "v", "velocity", "score", "edm", "learned_variance")
    each = {kind: answers(kind, True) for kind in kinds}
    guided = jax.jit(lambda c, u: guide(name, fixed(c), fixed(u), 3.0)(noisy(), TIMES))
    first, *others = (guided(Estimate(*c[:2]), Estimate(*u[:2])) for c, u in each.values())
    assert np.abs(first.x0 - each["eps"][0].x0).max((0, 1)).min() > 1e-2
    for other in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9), first, other)
    alpha, sigma = (form(TIMES)[:, None, None] for form in (SCHEDULE.alpha, SCHEDULE.sigma))
    np.testing.assert_allclose(alpha * first.x0 + sigma * first.eps, noisy(), atol=1e-9)


def test_gaussians_of_one_covariance_are_guided_to_another_such_gaussian(x64):
    root = np.random.default_rng(1).normal(size=(2, 2))
    covariance, scale = root @ root.T, 3.5
    mean_c, mean_u = np.array([1.0, -0.5]), np.array([-0.3, 0.2])
    c, u, expected = (
        oracle.gaussian(mean, covariance=covariance) for mean in (mean_c, mean_u, mean_u + scale * (mean_c - mean_u))
    )
    guided = classifier_free(c.denoiser(SCHEDULE), u.denoiser(SCHEDULE), scale)
    x, t = noisy()[..., 0], jnp.linspace(0.0, 1.0, 4)
    ours, truth = jax.jit(lambda: (guided(x, t), expected.denoiser(SCHEDULE)(x, t)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), ours, truth)
    times = np.linspace(1.0, 1e-3, 81)
    carried, _ = jax.jit(lambda: sample(guided, SOLVERS["rk4"](SCHEDULE), times, x, jax.random.key(0)))()
    np.testing.assert_allclose(carried, expected.flow(SCHEDULE, x, 1.0, 1e-3), atol=2e-4)


def test_gaussians_of_different_variance_are_guided_by_their_precisions(x64):
    scale, t = 2.5, 0.3
    c, u = oracle.gaussian([1.0, 0.0], 0.4), oracle.gaussian([-1.0, 0.5], [1.0, 1.5])
    alpha, sigma = float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))
    weights = [scale / (alpha**2 * c.variances + sigma**2), (1 - scale) / (alpha**2 * u.variances + sigma**2)]
    mean = alpha * (weights[0] * c.means + weights[1] * u.means) / sum(weights)
    x = noisy()[..., 0]
    guided = classifier_free(c.denoiser(SCHEDULE), u.denoiser(SCHEDULE), scale)(x, t)
    np.testing.assert_allclose(guided.eps, sigma * sum(weights) * (np.asarray(x) - mean), atol=1e-12)


@pytest.mark.parametrize("name", GUIDANCE)
def test_all_channels_are_guided_and_the_learned_variance_is_the_conditional_ones(name):
    c, u = answers("learned_variance", False)
    guided = jax.jit(guide(name, fixed(c), fixed(u), 4.0))(noisy(), jnp.asarray(TIMES, jnp.float32))
    assert np.abs(c.fraction - u.fraction).min() > 1e-3
    np.testing.assert_array_equal(guided.fraction, c.fraction)
    assert np.abs(guided.x0 - c.x0).max((0, 1)).min() > 1e-2
    assert np.abs(guided.eps - c.eps).max((0, 1)).min() > 1e-2


@pytest.mark.parametrize("name", GUIDANCE)
def test_scales_may_differ_between_examples(x64, name):
    scales = jnp.asarray([1.0, 2.0, 0.0, 5.0])
    c, u = answers("v", True)
    run = jax.jit(lambda scale: guide(name, fixed(c), fixed(u), scale)(noisy(), TIMES))
    together = run(scales)
    for i, scale in enumerate(scales):
        np.testing.assert_allclose(together.x0[i], run(scale).x0[i], atol=1e-12)


def test_rescaled_has_the_spread_of_the_conditional(x64):
    x, c0, ceps = known(1)
    _, u0, ueps = known(2)
    c, u = given(x0=c0, eps=ceps), given(x0=u0, eps=ueps)
    plain = u0 + 4 * (c0 - u0)
    ratio = c0.reshape(4, -1).std(1) / plain.reshape(4, -1).std(1)
    for mix in (1.0, 0.7):
        expected = mix * ratio[:, None, None] * plain + (1 - mix) * plain
        guided = rescaled(c, u, 4.0, schedule=SCHEDULE, mix=mix)(x, TIMES)
        np.testing.assert_allclose(guided.x0, expected, rtol=1e-12)
    flat = rescaled(given(x0=c0, eps=ceps), given(x0=c0 * 0, eps=ueps), 0.0, schedule=SCHEDULE)(x, TIMES)
    assert np.isfinite(flat.x0).all()


def test_projected_moves_across_the_conditional_and_not_far(x64):
    x, c0, ceps = known(1)
    _, u0, ueps = known(2)
    c, u = given(x0=c0, eps=ceps), given(x0=u0, eps=ueps)
    moved = projected(c, u, 4.0, schedule=SCHEDULE)(x, TIMES).x0 - c0
    np.testing.assert_allclose(inner(moved, c0), 0.0, atol=1e-12)
    rest = 3 * (c0 - u0) - moved  # what was left out lies along c
    np.testing.assert_allclose(inner(rest, c0) ** 2, inner(rest, rest) * inner(c0, c0), rtol=1e-10)
    whole = projected(c, u, 4.0, schedule=SCHEDULE, parallel=1.0)(x, TIMES)
    expected = classifier_free(c, u, 4.0)(x, TIMES)
    np.testing.assert_allclose(whole.x0, expected.x0, atol=1e-12)
    np.testing.assert_allclose(whole.eps, expected.eps, atol=1e-10)
    near = projected(c, u, 4.0, schedule=SCHEDULE, parallel=1.0, limit=0.5)(x, TIMES).x0 - c0
    np.testing.assert_allclose(np.sqrt(inner(near, near)), 3 * 0.5, rtol=1e-12)
    np.testing.assert_allclose(near * np.sqrt(inner(c0 - u0, c0 - u0)), 1.5 * (c0 - u0), rtol=1e-10)
    loose = projected(c, u, 4.0, schedule=SCHEDULE, parallel=1.0, limit=1e3)(x, TIMES).x0
    np.testing.assert_allclose(loose, expected.x0, atol=1e-12)


def velocity(estimate, x):
    r = rates(SCHEDULE, TIMES, x)
    return np.asarray(r.dalpha * estimate.x0 + r.dsigma * estimate.eps)


def test_zero_star_starts_from_the_best_multiple_of_the_unconditional_velocity(x64):
    x, c0, ceps = known(1)
    _, u0, ueps = known(2)
    c, u = given(x0=c0, eps=ceps), given(x0=u0, eps=ueps)
    of_c, of_u = velocity(Estimate(c0, ceps), x), velocity(Estimate(u0, ueps), x)
    best = inner(of_c, of_u) / inner(of_u, of_u)
    guided = zero_star(c, u, 3.0, schedule=SCHEDULE)(x, TIMES)
    np.testing.assert_allclose(velocity(guided, x), best * of_u + 3 * (of_c - best * of_u), atol=1e-9)
    # The size of the unconditional velocity does not matter, only its direction.
    bigger = zero_star(c, given(x0=2.5 * u0, eps=2.5 * ueps), 3.0, schedule=SCHEDULE)(x, TIMES)
    np.testing.assert_allclose(bigger.x0, guided.x0, atol=1e-9)
    early = zero_star(c, u, 3.0, schedule=SCHEDULE, zero_above=0.6)(x, TIMES)
    np.testing.assert_allclose(velocity(early, x)[3], 0.0, atol=1e-9)
    np.testing.assert_array_equal(early.x0[:3], guided.x0[:3])
    still = zero_star(c, given(x0=0 * u0, eps=0 * ueps), 3.0, schedule=SCHEDULE)(x, TIMES)
    np.testing.assert_allclose(velocity(still, x), 3 * of_c, atol=1e-9)


def test_autoguidance_goes_away_from_the_weaker_model(x64):
    strong, weak = DATA.denoiser(SCHEDULE), oracle.gaussian(DATA.mean(), DATA.std()).denoiser(SCHEDULE)
    x = noisy()
    ways = (autoguidance(strong, weak, 2.0), strong, weak)
    guided, good, bad = jax.jit(lambda: [way(x, 0.5) for way in ways])()
    np.testing.assert_allclose(guided.eps, 2 * good.eps - bad.eps, atol=1e-12)


def test_guidance_within_an_interval():
    guided, plain = given(x0=np.ones((4, 1)), eps=np.ones((4, 1))), given(x0=np.zeros((4, 1)), eps=np.zeros((4, 1)))
    denoise = jax.jit(within(guided, plain, (0.3, 0.6)))
    x = jnp.ones((4, 1))
    for t, inside in zip(TIMES, (0, 1, 1, 0), strict=True):
        np.testing.assert_array_equal(denoise(x, jnp.float32(t)).x0, inside)
    each = denoise(x, jnp.asarray(TIMES, jnp.float32))
    np.testing.assert_array_equal(each.x0[:, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(each.eps[:, 0], [0, 1, 1, 0])


def test_only_one_of_the_two_is_evaluated_at_one_time():
    seen = []

    def noting(name):
        def denoise(x, t):
            jax.debug.callback(lambda: seen.append(name))
            return Estimate(x, x)

        return denoise

    denoise = jax.jit(within(noting("guided"), noting("plain"), (0.3, 0.6)))
    for t in (0.1, 0.5, 0.9):
        jax.block_until_ready(denoise(jnp.ones((2, 1)), t))
        jax.effects_barrier()
    assert seen == ["plain", "guided", "plain"]


def test_the_interval_is_held_against_each_evaluations_time_inside_a_step(x64):
    c, u = (data.denoiser(SCHEDULE) for data in (OF_LABEL[0], DATA))
    guided, x, t, s = classifier_free(c, u, 5.0), noisy(), 0.7, 0.5
    split = within(guided, c, (0.6, 1.0))
    stepped = jax.jit(lambda: sample(split, SOLVERS["heun"](SCHEDULE), [t, s], x, jax.random.key(0))[0])()

    def slope(denoise, x, t):
        e, r = denoise(x, t), rates(SCHEDULE, t, x)
        return r.dalpha * e.x0 + r.dsigma * e.eps

    @jax.jit
    def by_hand():
        first = slope(guided, x, t)
        return x + (s - t) * (first + slope(c, x + (s - t) * first, s)) / 2

    np.testing.assert_allclose(stepped, by_hand(), atol=1e-12)


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_of_nothing_is_refused(name):
    c = DATA.denoiser(SCHEDULE)
    with pytest.raises(ValueError, match=f"{name}: a guidance scale without a second model: unconditional"):
        guide(name, c, None, 2.0)
    with pytest.raises(ValueError, match=f"{name}: .*conditional is None"):
        guide(name, None, c, 2.0)
    for scale in (None, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name}: scale is"):
            guide(name, c, c, scale)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c: rescaled(c, c, 2.0, schedule=SCHEDULE, mix=1.5), "mix is 1.5"),
        (lambda c: projected(c, c, 2.0, schedule=SCHEDULE, limit=0.0), "limit is 0"),
        (lambda c: zero_star(c, c, 2.0, schedule=SCHEDULE, zero_above=0.0), "zero_above is 0"),
        (lambda c: within(c, c, (0.6, 0.3)), "low < high"),
        (lambda c: within(c, c, (-0.1, 0.3)), "low < high"),
        (lambda c: within(c, c, (0.1, 1.3)), "low < high"),
        (lambda c: within(c, c, [0.5]), "two times"),
        (lambda c: within(c, c, (0.1, 0.2, 0.3)), "two times"),
        (lambda c: choose(GUIDANCE, "classifier_fre", "guidance", c, c, 1.0), "Did you mean 'classifier_free'"),
        (lambda c: choose(GUIDANCE, "rescaled", "guidance", c, c, 1.0), "needs 'schedule'"),
    ],
)
def test_bad_guidance_is_refused_with_a_reason(make, words):
    with pytest.raises(ValueError, match=words):
        make(DATA.denoiser(SCHEDULE))
