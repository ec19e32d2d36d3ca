"""Two denoisers in one call of twice the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.guidance import GUIDANCE, classifier_free, within
from diffusion_jax.denoisers.network import Half, doubled, make_denoiser
from diffusion_jax.denoisers.threshold import dynamic_threshold, static_threshold
from diffusion_jax.naming import choose
from diffusion_jax.process.schedules import cosine
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from tests.exact_network import noisy

SCHEDULE = cosine()
TIMES = np.array([0.05, 0.3, 0.6, 0.95])
COND = {"text": {"tokens": np.array([[0.3], [1.0], [-1.0], [2.0]])}, "label": np.array([0, 1, 1, 0])}
NULL = {"text": {"tokens": np.zeros((4, 1))}, "label": np.full(4, 2)}
PARAMS = {"gain": np.float32(1.0)}


def network(calls):
    """Return an apply that uses all it is told, and notes its batch sizes."""

    def apply(params, x, t, cond):
        calls.append(x.shape[0])
        tokens, label = (jnp.asarray(value, x.dtype) for value in (cond["text"]["tokens"], cond["label"]))
        told = jnp.asarray(params["gain"], x.dtype) * (t + label)[:, None] + tokens
        return jnp.sin(x * (1 + label[:, None, None]) + told[..., None])

    return apply


def guide(name, conditional, unconditional, scale):
    keywords = {} if name in ("classifier_free", "autoguidance") else {"schedule": SCHEDULE}
    return choose(GUIDANCE, {"name": name, **keywords}, "guidance", conditional, unconditional, scale)


def pair(calls, params=PARAMS):
    apply = network(calls)
    return [make_denoiser(apply, params, SCHEDULE, prediction="v", cond=cond) for cond in (COND, NULL)]


def two(calls, params=PARAMS):
    return doubled(network(calls), params, SCHEDULE, prediction="v", cond=COND, null=NULL)


@pytest.mark.parametrize("name", GUIDANCE)
def test_a_doubled_batch_gives_the_same_in_one_call(x64, name):
    calls, x = [], noisy()

    @jax.jit
    def every(t):
        shared, apart = two(calls), pair(calls)
        return [guide(name, c, u, 3.0)(x, t) for c, u in (shared, apart)]

    shared, apart = every(0.4 if name == "rescaled" else TIMES)
    assert calls == [8, 4, 4]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), shared, apart)


def test_halves_alone_swapped_and_of_different_pairs(x64):
    calls, x = [], noisy()
    conditional, unconditional = two(calls)
    assert isinstance(conditional, Half)
    c, u = pair([])
    other = two(calls)[1]

    @jax.jit
    def every():
        ours = [half(x, 0.5) for half in (conditional, unconditional)]
        ours += [
            classifier_free(*halves, 3.0)(x, 0.5) for halves in ((unconditional, conditional), (conditional, other))
        ]
        truth = [c(x, 0.5), u(x, 0.5), classifier_free(u, c, 3.0)(x, 0.5), classifier_free(c, u, 3.0)(x, 0.5)]
        return ours, truth

    ours, truth = every()
    assert calls == [4, 4, 8, 4, 4]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, truth)


@pytest.mark.parametrize("name", GUIDANCE)
def test_new_values_do_not_compile_again(name):
    calls = []

    @jax.jit
    def run(params, scale, t, x):
        return guide(name, *two(calls, params), scale)(x, t)

    first = run(PARAMS, 2.0, 0.5, noisy())
    for params, scale, t in ((PARAMS, 3.0, 0.5), ({"gain": np.float32(0.9)}, 2.0, 0.5), (PARAMS, 2.0, 0.8)):
        assert np.abs(run(params, scale, t, noisy()).x0 - first.x0).max() > 1e-4
    assert calls == [8]


def test_halves_within_an_interval_cost_one_call_of_either_size(x64):
    calls, x = [], noisy()
    conditional, unconditional = two(calls)
    denoise = jax.jit(within(classifier_free(conditional, unconditional, 3.0), conditional, (0.0, 0.5)))
    inside, outside = denoise(x, 0.4), denoise(x, 0.6)
    assert sorted(calls) == [4, 8]
    c, u = pair([])
    np.testing.assert_allclose(inside.x0, classifier_free(c, u, 3.0)(x, 0.4).x0, atol=1e-12)
    np.testing.assert_allclose(outside.x0, c(x, 0.6).x0, atol=1e-12)


@pytest.mark.parametrize("name", GUIDANCE)
def test_guided_thresholded_samples_stay_in_range(name):
    x, threshold = noisy(), dynamic_threshold if name == "rescaled" else static_threshold

    @jax.jit
    def run():
        halves = two([])
        guided = within(guide(name, *halves, 6.0), halves[0], (0.1, 0.9))
        denoise = threshold(guided, SCHEDULE, limit=0.8)
        return sample(denoise, SOLVERS["ddim"](SCHEDULE), np.linspace(1, 0, 5), x, jax.random.key(0))[0]

    assert np.abs(run()).max() <= 0.8 + 1e-6
