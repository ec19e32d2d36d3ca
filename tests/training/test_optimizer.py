"""Learning rates have the published courses, and weight decay reaches the parameters it is meant for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.naming import choose
from diffusion_jax.training.optimizer import MASKS, RATES, make_optimizer

COURSES = {
    "constant": ({"peak": 0.1, "warmup": 10}, {0: 0, 5: 0.05, 10: 0.1, 1000: 0.1}),
    "cosine": ({"peak": 0.1, "warmup": 10, "steps": 110, "end": 0.02}, {0: 0, 10: 0.1, 60: 0.06, 110: 0.02, 200: 0.02}),
    "linear": ({"peak": 0.1, "warmup": 10, "steps": 110}, {0: 0, 10: 0.1, 60: 0.05, 110: 0, 200: 0}),
    "inverse_sqrt": ({"peak": 0.1, "reference": 100, "warmup": 10}, {0: 0, 5: 0.05, 100: 0.1, 400: 0.05}),
}


@pytest.mark.parametrize("name", sorted(RATES))
def test_every_rate_takes_its_course(name):
    keywords, course = COURSES[name]
    rate = choose(RATES, {"name": name, **keywords}, "rate")
    for step, value in course.items():
        assert float(rate(jnp.asarray(step))) == pytest.approx(value, abs=1e-7)
    without = choose(RATES, {"name": name, **keywords, "warmup": 0}, "rate")
    assert float(without(0)) == pytest.approx(0.1)


@pytest.mark.parametrize("decayed", sorted(MASKS))
def test_weight_decay_reaches_what_it_is_meant_for(decayed):
    """With a gradient of zero only the decay moves anything."""
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    spec = {"name": "adamw", "weight_decay": 0.5, "decayed": decayed}
    optimizer, _ = make_optimizer(spec, {"name": "constant", "peak": 0.1})
    updates: Any = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)[0]
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.05 if decayed == "all" else 0, rtol=1e-6)


def test_what_is_held_stays_and_costs_no_moments():
    params = {"network": {"kernel": jnp.ones((2, 3))}, "control": {"kernel": jnp.ones((3, 4))}}
    spec = {"name": "adamw", "weight_decay": 0.5}
    optimizer, _ = make_optimizer(spec, {"name": "constant", "peak": 0.1}, clip=1.0, held=("network",))
    state = optimizer.init(params)
    updates: Any = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)[0]
    np.testing.assert_array_equal(updates["network"]["kernel"], 0)
    assert (updates["control"]["kernel"] < -0.1).all()
    assert {leaf.shape for leaf in jax.tree.leaves(state)} == {(), (3, 4)}
    with pytest.raises(ValueError, match="held names 'netwrok', but the parameters have network, control alone"):
        make_optimizer(spec, {"name": "constant", "peak": 0.1}, held=("netwrok",))[0].init(params)


def test_clipping_bounds_the_norm_of_all_and_keeps_the_direction():
    gradient = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(3, -4.0)}
    norm = (4 * 9 + 3 * 16) ** 0.5
    for clip, length in ((0.5, 0.5), (1000.0, norm)):
        spec = {"name": "sgd", "momentum": 0.0}
        optimizer, _ = make_optimizer(spec, {"name": "constant", "peak": 1.0}, clip=clip)
        updates: Any = optimizer.update(gradient, optimizer.init(gradient), gradient)[0]
        np.testing.assert_allclose(updates["kernel"], -3 * length / norm, rtol=1e-6)
        np.testing.assert_allclose(updates["bias"], 4 * length / norm, rtol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm'. Did you mean 'adam'"),
        ({"optimizer": {"name": "adam", "beta1": 0.9}}, "'adam' does not take 'beta1'"),
        ({"optimizer": {"name": "adamw", "decayed": "most"}}, "unknown decayed 'most'"),
        ({"rate": {"name": "constant"}}, "rate 'constant' needs 'peak'"),
        ({"rate": {"name": "cosine", "peak": 0.1, "steps": 5, "warmup": 9}}, "warmup must end before steps"),
        ({"rate": {"name": "constant", "peak": 0.0}}, "peak is 0.0"),
        ({"clip": 0.0}, "clip is 0.0; it must be greater than 0"),
    ],
)
def test_mistakes_are_explained(keywords, message):
    given = {"optimizer": "adam", "rate": {"name": "constant", "peak": 0.1}, **keywords}
    with pytest.raises(ValueError, match=message):
        make_optimizer(given.pop("optimizer"), given.pop("rate"), **given)
