"""The laws that every network obeys."""

import functools

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.naming import choose
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.network import apply_of, count, initialize, shapes_of
from diffusion_jax.nets.remat import REMATS
from diffusion_jax.training.flops import flops_of
from tests.laws import quick
from tests.nets.tiny import IDLE, KINDS, build, inputs, kinds, started, stirred


@pytest.mark.parametrize("kind", kinds())
def test_begins_as_zero_hears_everything_and_keeps_examples_apart(kind):
    """Output exactly 0 with a gradient at first; away from there each parameter counts, and no example sees another."""
    apply, params = started(kind)
    x, t, cond = inputs(kind)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape[1:]), jnp.float32)

    @jax.jit
    def first_example(params):
        def value(params, x):
            out = apply(params, x, t, cond)
            return jnp.sum(out[0, ..., :2] * weights), out

        (_, out), slopes = jax.value_and_grad(value, (0, 1), has_aux=True)(params, x)
        return out, *slopes

    out, slope, _ = first_example(params)
    assert out.shape == (*x.shape[:-1], KINDS[kind].get("out_channels", 2)) and out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0)
    assert jnp.abs(slope["last"]["kernel"]).max() > 0
    _, slope, of_x = first_example(stirred(params))
    for path, leaf in jax.tree.leaves_with_path(slope):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 0) != (name in IDLE), f"{name} plays no part"
    assert np.abs(of_x[0]).max() > 0
    np.testing.assert_array_equal(of_x[1], 0)


@pytest.mark.parametrize("name", ["mlp", "unet", "dit", "mmdit", "flux"])
def test_every_network_is_built_by_name(name):
    assert set(NETWORKS) == {"mlp", "unet", "dit", "mmdit", "flux"}
    for wrong in ({}, {"channels": 3, "widht": 4}, {"channels": 0}):
        with pytest.raises(ValueError, match="channels|widht"):
            choose(NETWORKS, {"name": name, **wrong}, "network")
    with pytest.raises(ValueError, match="unknown dtype of .* 'float61'. Did you mean"):
        choose(NETWORKS, {"name": name, "channels": 3, "dtype": "float61"}, "network")
    for wrong, words in (({"dropout": 1.0}, "in \\[0, 1\\)"), ({"remat": "all"}, "remat"), ({"time": "sin"}, "time")):
        with pytest.raises(ValueError, match=words):
            choose(NETWORKS, {"name": name, "channels": 3, **wrong}, "network")


def operands(jaxpr, names):
    """List the dtypes that some primitives work on, wherever they are."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in names:
            yield equation.primitive.name, equation.invars[0].aval.dtype
        for inner in jex.core.jaxprs_in_params(equation.params):
            yield from operands(inner, names)


@pytest.mark.parametrize("kind", quick(["mlp", "adm", "text", "dit_text", "mmdit", "flux"], "mlp", "dit_text"))
def test_in_bfloat16_parameters_statistics_softmax_and_output_stay_float32(kind):
    apply, params = started(kind, dtype="bfloat16")
    x, t, cond = inputs(kind)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(apply)(params, x, t, cond)
    assert jaxpr.out_avals[0].dtype == jnp.float32
    found = dict.fromkeys(operands(jaxpr.jaxpr, ("rsqrt", "exp", "cos", "sin", "reduce_sum")))
    assert {dtype for _, dtype in found} == {jnp.dtype("float32")}
    assert {name for name, _ in found} >= {"rsqrt", "cos"}
    wide = {dtype for _, dtype in operands(jaxpr.jaxpr, ("dot_general", "conv_general_dilated"))}
    assert jnp.dtype("bfloat16") in wide


@functools.cache
def slopes(kind, remat):
    """Return the gradient of a loss, and how many numbers are kept for it."""
    apply, params = started(kind, remat=remat)
    x, t, cond = inputs(kind)
    loss = lambda params: jnp.mean((apply(params, x, t, cond) - x) ** 2)
    kept = jax.eval_shape(lambda params: jax.tree.leaves(jax.vjp(loss, params)[1]), params)
    return jax.jit(jax.grad(loss))(stirred(params, 0.1)), sum(leaf.size for leaf in kept)


@pytest.mark.parametrize("kind", quick(["2015", "mlp", "dit", "mmdit", "flux"], "dit"))
@pytest.mark.parametrize("remat", REMATS)
def test_computing_again_keeps_less_and_changes_nothing(kind, remat):
    (plain, most), (again, kept) = slopes(kind, "none"), slopes(kind, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), plain, again)
    assert kept < most or remat == "none"
    assert kept >= slopes(kind, "blocks")[1]


@pytest.mark.parametrize("kind", quick(["2015", "adm", "dit"], "2015"))
def test_products_with_kernels_are_not_computed_again(kind):
    """Convolutions neither; what is computed again are the products of attention, of which these networks have few."""

    def work(remat):
        apply, params = started(kind, remat=remat)
        x, t, cond = inputs(kind)
        return flops_of(jax.make_jaxpr(jax.grad(lambda params: jnp.mean(apply(params, x, t, cond) ** 2)))(params))

    assert work("none") <= work("dots") < 1.1 * work("none") < work("blocks")


@pytest.mark.slow
def test_parameters_have_the_law_and_the_places_of_ordinary_initialisation():
    module = build("dit", size={"name": "custom", "width": 32, "depth": 2, "heads": 2})
    ours = initialize(module, jax.random.key(3), inputs("dit"))
    theirs = jax.jit(module.init)(jax.random.key(3, impl="rbg"), *inputs("dit"))["params"]
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        spread = float(jnp.sqrt(jnp.mean(b**2)))
        if not spread or a.size == 1 or (b == b.ravel()[0]).all():
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:  # five standard deviations of the estimate, which is within 1 / sqrt(2 n) for normals
            assert abs(float(jnp.sqrt(jnp.mean(a**2))) / spread - 1) < 5 / np.sqrt(a.size), name
            assert not np.array_equal(a, b)


def test_parameters_depend_on_the_seed_and_their_own_path_only():
    cases = ((0, 2), (0, 5), (1, 2))
    first, again, other = (initialize(build("dit"), jax.random.key(s), inputs("dit", batch=n)) for s, n in cases)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first["patches"]["kernel"], other["patches"]["kernel"])
    raw = initialize(build("dit"), jax.random.PRNGKey(0), inputs("dit"))
    jax.tree.map(np.testing.assert_array_equal, first, raw)
    told = initialize(build("dit", pooled_width=3), jax.random.key(0), inputs("dit", pooled_width=3))
    np.testing.assert_array_equal(told["patches"]["kernel"], first["patches"]["kernel"])
    layers = first["blocks"]["dense_1"]["kernel"]
    assert not np.array_equal(layers[0], layers[1])


def test_shapes_are_those_that_ordinary_initialisation_has_whichever_was_traced_first():
    module = build("dit")
    plain = lambda: jax.eval_shape(module.init, jax.random.key(0), *inputs("dit"))["params"]
    assert shapes_of(module, inputs("dit")) == plain() == shapes_of(module, inputs("dit"))


def test_shapes_are_enough_to_begin_and_other_peoples_layers_may_take_part():
    x, t, cond = inputs("dit")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (x, t, cond))
    params = initialize(build("dit"), jax.random.key(0), shapes)
    assert count(params) == count(started("dit")[1])

    class Foreign(nn.Module):
        @nn.compact
        def __call__(self, x, t, cond=None):
            return nn.Dense(2)(x)

    params = initialize(Foreign(), jax.random.key(0), (x, t))
    assert apply_of(Foreign())(params, x, t, None).shape == x.shape
