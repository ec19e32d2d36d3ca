"""What networks are told: nothing is ignored silently, and dropout belongs to the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.nets.dropout import Dropout
from diffusion_jax.nets.network import initialize
from tests.laws import quick
from tests.nets.tiny import build, inputs, started, stirred


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("ddpm", {"label": np.zeros(2, int)}, "built without it .num_classes=0"),
        ("ddpm", {"augment": np.zeros((2, 3))}, "augment_width=0"),
        ("adm", {"label": None}, "needs 'label'; the null label is 3"),
        ("adm", {"lable": np.zeros(2, int)}, "Did you mean 'label'"),
        ("adm", {"label": np.zeros(2)}, "whole numbers"),
        ("adm", {"label": np.array([0, 4])}, "labels run from 0 to 2, and 3 is the null label"),
        ("adm", {"label": np.array([-1, 0])}, "labels run from 0 to 2"),
        ("adm", {"label": np.zeros(3, int)}, "shape .3,.; it must be .2,."),
        ("adm", {"dropout": np.zeros((2, 2), np.uint32)}, "jax.random.key, not PRNGKey"),
        ("text", {"text": None}, "needs 'text'|no 'text'"),
        ("text", {"text": np.zeros((2, 4, 6))}, "must be .2, 4, 5."),
        ("text", {"text_mask": np.zeros((2, 3), bool)}, "must be .2, 4."),
        ("text", {"pooled": None}, "needs 'pooled'"),
        ("mlp", {"text": np.zeros((2, 4, 5))}, "text_width=0"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_with_a_remedy(kind, change, words):
    x, t, cond = inputs(kind)
    cond = {name: value for name, value in {**cond, **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: build(kind).init(jax.random.key(0), x, t, cond))


def test_the_null_label_is_one_row_more_and_a_row_of_its_own():
    apply, params = started("mlp")
    assert params["conditioning"]["label"].shape[0] == 4
    x, t, _ = inputs("mlp", batch=4)
    answer = jax.jit(lambda x, label: apply(stirred(params), x, t, {"label": label}))
    out = answer(jnp.broadcast_to(x[:1], x.shape), jnp.arange(4))
    assert len(np.unique(np.asarray(out).round(5), axis=0)) == 4
    assert np.isnan(answer(x, jnp.array([0, 1, 2, 4]))[3]).all()  # where it cannot be refused it is seen


def test_labels_that_join_the_waves_are_known_before_time_is_embedded():
    """The null label says nothing but the layer's shift; one that does not exist is seen."""
    apply, params = started("ncsnpp")
    assert params["conditioning"]["label"]["kernel"].shape == (3, 16)
    x, t, _ = inputs("ncsnpp", batch=5)
    params = stirred(params)
    answer = jax.jit(lambda params, label: apply(params, jnp.broadcast_to(x[:1], x.shape), t[:1].repeat(5), label))
    out = np.asarray(answer(params, {"label": jnp.array([0, 1, 2, 3, 4])}))
    assert len(np.unique(out[:4].round(5), axis=0)) == 4
    assert np.isnan(out[4]).all()
    assert np.isnan(np.asarray(answer(params, {"label": jnp.array([0, 1, 2, 3, -1])}))[4]).all()
    params["conditioning"]["label"]["kernel"] *= 0
    alike = np.asarray(answer(params, {"label": jnp.array([0, 1, 2, 3, 3])}))
    np.testing.assert_allclose(alike[:4], out[3:4].repeat(4, 0), rtol=1e-5, atol=1e-5)


def test_without_time_there_are_no_waves_to_join():
    with pytest.raises(ValueError, match="time 'none' has none"):
        started("ncsnpp", time="none")


@pytest.mark.parametrize("kind", ["dit", "ncsnpp"])
def test_without_an_augmentation_it_is_zero(kind):
    can = {"augment_width": 3, "num_classes": 0}
    apply, params = started(kind, **can)
    x, t, cond = inputs(kind, **can)
    answer = jax.jit(apply)
    zero = answer(stirred(params), x, t, {"augment": jnp.zeros((2, 3))})
    np.testing.assert_allclose(answer(stirred(params), x, t, None), zero, rtol=1e-5, atol=1e-6)
    assert np.abs(answer(stirred(params), x, t, cond) - zero).max() > 1e-2
    unheard = initialize(build(kind, **can), jax.random.key(0), (x, t))
    assert jax.tree.structure(unheard) == jax.tree.structure(params)


@pytest.mark.parametrize("kind", quick(["mlp", "2015", "dit", "mmdit", "flux"], "mlp"))
def test_dropout_depends_on_the_examples_own_key_alone(kind):
    apply, params = started(kind, dropout=0.5)
    params, (x, t, cond) = stirred(params), inputs(kind, batch=4)
    keys = jax.random.split(jax.random.key(5), 4)
    answer = jax.jit(apply)
    together = answer(params, x, t, {**cond, "dropout": keys})
    alone = answer(params, x[2:3], t[2:3], {**{k: v[2:3] for k, v in cond.items()}, "dropout": keys[2:3]})
    np.testing.assert_allclose(alone[0], together[2], rtol=2e-4, atol=2e-5)
    other = answer(params, x, t, {**cond, "dropout": keys[::-1]})
    assert np.abs(other - together).max() > 1e-2
    # Without keys it is the very program of a network without dropout
    never = jax.make_jaxpr(started(kind)[0])(params, x, t, cond)
    assert str(jax.make_jaxpr(apply)(params, x, t, cond)) == str(never)


def test_dropout_has_its_rate_keeps_the_mean_and_differs_from_place_to_place():
    keys, x = jax.random.split(jax.random.key(0), 8), np.ones((8, 50, 40), np.float32)
    a = np.asarray(Dropout(0.3).apply({}, x, keys))
    assert abs(np.mean(a == 0) - 0.3) < 5 * np.sqrt(0.3 * 0.7 / x.size)
    np.testing.assert_allclose(a[a != 0], 1 / 0.7, rtol=1e-6)
    assert Dropout(0.3).apply({}, x, None) is x

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x, keys):
            return Dropout(0.5, name="one")(x, keys), Dropout(0.5, name="two")(x, keys)

    first, second = (np.asarray(y) != 0 for y in Both().apply({}, x, keys))
    assert abs((first == second).mean() - 0.5) < 5 * 0.5 / np.sqrt(x.size)
    assert len({mask.tobytes() for mask in first}) == 8
