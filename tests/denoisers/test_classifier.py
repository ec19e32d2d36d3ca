"""Classifier guidance against Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.denoisers.classifier import classifier_guidance
from diffusion_jax.denoisers.guidance import classifier_free
from diffusion_jax.process.schedules import karras, rectified
from diffusion_jax.types import LearnedEstimate
from tests.exact_network import DATA, OF_LABEL, SCHEDULE, noisy

PATHS = {"linear_beta": SCHEDULE, "karras": karras(), "rectified": rectified()}
TIMES = np.array([0.0, 0.3, 0.6, 0.95])


def classifier(path, label):
    log_prob = DATA.class_log_prob(path)
    return lambda x, t: log_prob(x, t, label)


@pytest.mark.parametrize("name", PATHS)
def test_the_exact_classifier_turns_all_data_into_the_class(x64, name):
    path, label = PATHS[name], np.array([0, 1, 1, 0])
    x = noisy() * (1 + path.sigma(TIMES))[:, None, None]
    guided = classifier_guidance(DATA.denoiser(path), classifier(path, label), path, 1.0)
    ours, first, second = jax.jit(
        lambda: [of(x, TIMES) for of in (guided, *(o.denoiser(path) for o in OF_LABEL[:2]))]
    )()
    which = label[:, None, None] == 0
    for part in ("x0", "eps"):
        truth = np.where(which, getattr(first, part), getattr(second, part))
        np.testing.assert_allclose(getattr(ours, part), truth, atol=1e-9)


def test_at_pure_noise_the_guided_data_is_the_mean_of_the_class(x64):
    path, x = rectified(), noisy()
    guided = classifier_guidance(DATA.denoiser(path), classifier(path, 1), path, 1.0)
    estimate = jax.jit(guided)(x, 1.0)
    np.testing.assert_allclose(estimate.x0.reshape(4, 6), np.tile(OF_LABEL[1].mean(), (4, 1)), atol=5e-3)
    assert np.abs(DATA.mean() - OF_LABEL[1].mean()).max() > 0.1
    np.testing.assert_allclose(estimate.eps, x, atol=1e-12)


def test_it_is_classifier_free_guidance_from_the_unconditional_model(x64):
    x, all_data = noisy(), DATA.denoiser(SCHEDULE)
    scale = jnp.asarray([0.0, 1.0, 3.0, 7.5])
    guided = classifier_guidance(all_data, classifier(SCHEDULE, 1), SCHEDULE, scale)
    free = classifier_free(OF_LABEL[1].denoiser(SCHEDULE), all_data, scale)
    for t in (0.5, TIMES[1:].mean() * np.ones(4)):
        ours, truth = jax.jit(lambda t: (guided(x, t), free(x, t)))(t)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), ours, truth)


def test_guidance_raises_the_probability_of_the_class(x64):
    x, log_prob = noisy(), classifier(SCHEDULE, 0)

    @jax.jit
    def share(scale):
        guided = classifier_guidance(DATA.denoiser(SCHEDULE), log_prob, SCHEDULE, scale)(x, 0.7)
        return log_prob(guided.x0, 0.1)

    shares = [share(scale) for scale in (-1.0, 0.0, 1.0, 4.0)]
    assert (np.diff(shares, axis=0) > 0).all()


def test_scale_zero_changes_nothing_and_a_learned_variance_is_left_alone():
    x, fraction = noisy(), jnp.full((4, 2, 3), 0.3)

    def learned(x, t):
        e = DATA.denoiser(SCHEDULE)(x, t)
        return LearnedEstimate(e.x0, e.eps, fraction)

    log_prob = classifier(SCHEDULE, 0)
    run = jax.jit(lambda scale: (classifier_guidance(learned, log_prob, SCHEDULE, scale)(x, TIMES), learned(x, TIMES)))
    ours, truth = run(0.0)
    jax.tree.map(np.testing.assert_array_equal, ours, truth)
    ours, truth = run(2.0)
    np.testing.assert_array_equal(ours.fraction, fraction)
    assert np.isfinite(ours.x0).all() and np.abs(ours.eps - truth.eps).max((0, 1)).min() > 1e-2


def test_a_classifier_that_answers_in_another_shape_is_refused():
    guided = classifier_guidance(DATA.denoiser(SCHEDULE), lambda x, t: jnp.zeros((4, 10)), SCHEDULE, 1.0)
    with pytest.raises(ValueError, match=r"log_prob answered 4 examples with shape \(4, 10\)"):
        guided(noisy(), 0.5)
