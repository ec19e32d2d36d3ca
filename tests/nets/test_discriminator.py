"""The discriminator of patches: what a logit sees, and how its norms treat the batch."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.discriminator import PATCH_NORMS, BatchNorm, discriminator
from diffusion_jax.nets.network import initialize
from tests.nets.tiny import stirred


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def running(depth, norm, size):
    module = discriminator(channels=2, width=4, depth=depth, norm=norm)
    params = stirred(initialize(module, jax.random.key(0), (normal(1, size, size, 2),)))
    return jax.jit(lambda x: module.apply({"params": params}, x))


@pytest.mark.parametrize(("depth", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_judges_a_patch_of_the_published_size(depth, patch):
    size = {1: 32, 2: 64, 3: 96}[depth]
    run = running(depth, "none", size)
    middle = run(normal(1, size, size, 2)).shape[1] // 2
    seen = np.abs(jax.grad(lambda x: run(x)[0, middle, middle, 0])(normal(1, size, size, 2)))[0].max(-1) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == patch


@pytest.mark.parametrize("norm", PATCH_NORMS)
def test_logits_are_as_many_as_patches_and_only_batch_norm_lets_examples_meet(norm):
    run, x = running(1, norm, 16), normal(2, 16, 16, 2)
    out = run(x)
    assert out.shape == (2, 6, 6, 1) and out.dtype == jnp.float32
    alone = np.abs(run(jnp.stack([x[0], -3 * x[1]]))[0] - out[0]).max() < 1e-5
    assert alone == (norm != "batch")


def test_batch_norm_has_the_moments_of_the_batch():
    x = 3 * normal(4, 5, 5, 6) + 7
    out: Any = BatchNorm().apply({"params": {"scale": jnp.ones(6), "bias": jnp.zeros(6)}}, x)
    np.testing.assert_allclose(np.mean(out, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(out, (0, 1, 2)), 1, atol=1e-4)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="unknown norm of discriminator 'bach'. Did you mean 'batch'"):
        discriminator(norm="bach")
    with pytest.raises(ValueError, match="discriminator: depth is 0"):
        discriminator(depth=0)
    with pytest.raises(ValueError, match="a depth of 3 needs 24 by 24. Take a smaller depth"):
        jax.eval_shape(discriminator(channels=1).init, jax.random.key(0), jnp.zeros((1, 32, 16, 1)))
