"""Operations are counted as one would by hand."""

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.training.flops import flops_of

A, B = jnp.ones((8, 16)), jnp.ones((16, 16))
X, K = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))


def conv(x, k, stride=1):
    return jax.lax.conv_general_dilated(x, k, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


CASES = [
    (lambda a, b: a @ b, (A, B), 2 * 8 * 16 * 16),
    (lambda a, b: jax.jit(jnp.matmul)(a, b) + a, (A, B), 2 * 8 * 16 * 16),
    (lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, None, length=5)[0], (A, B), 5 * 2 * 8 * 16 * 16),
    (lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b @ b, lambda: a @ b), (A, B), 2 * 2 * 8 * 16 * 16),
    (lambda a, b: jnp.einsum("nij,njk->nik", a, b), (jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))), 2 * 3 * 4 * 5 * 6),
    (conv, (X, K), 2 * (2 * 8 * 8 * 4) * 27),
    (lambda x, k: conv(x, k, 2), (X, K), 2 * (2 * 4 * 4 * 4) * 27),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_counts(case):
    function, args, count = CASES[case]
    assert flops_of(jax.make_jaxpr(function)(*args)) == count


@pytest.mark.parametrize("case", [0, 2, 5, 6])
def test_a_gradient_costs_twice_as_much_again(case):
    function, args, count = CASES[case]
    slope = jax.grad(lambda *args: jnp.sum(function(*args) ** 2), (0, 1))
    assert flops_of(jax.make_jaxpr(slope)(*args)) == pytest.approx(3 * count)


def test_recomputed_work_counts_again():
    function = lambda a, b: jnp.sum(jax.checkpoint(lambda a: jnp.sin(a @ b) @ b)(a))
    assert flops_of(jax.make_jaxpr(jax.grad(function))(A, B)) == 5 * 2 * 8 * 16 * 16
