"""A step is the same on one device and on eight, in one part and in several; and a bad one changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training.optimizer import OPTIMIZERS
from diffusion_jax.training.parallel import MAPPINGS, make_mesh, parallelize
from diffusion_jax.training.state import start_state
from diffusion_jax.training.step import make_train_step
from tests.laws import quick
from tests.training import small


def assert_close(a, b, rtol=2e-5, atol=2e-6):
    for one, other in zip(small.host(a), small.host(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("mapping", sorted(MAPPINGS))
@pytest.mark.parametrize("devices", quick([2, 8], 8))
def test_many_devices_give_the_parameters_of_one(mapping, devices):
    """Parameters, averages and moments, not losses: those agree even when gradients are N times too large."""
    assert_close(small.run(mapping=mapping, devices=devices), small.run())


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_trains_and_is_the_same_on_two_devices(optimizer):
    one, two = small.run(optimizer=optimizer), small.run(optimizer=optimizer, devices=2)
    assert_close(one, two, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one.params, small.params())
    assert all(0 < away < 1 for away in jax.tree.leaves(moved))


@pytest.mark.parametrize(("parts", "devices"), [(2, 1), (8, 1), (2, 4)])
def test_a_batch_in_parts_is_the_batch(parts, devices):
    assert_close(small.run(parts=parts, devices=devices), small.run())


@pytest.mark.parametrize("spoilt", ["x", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(spoilt):
    """Also where the loss is finite and only its gradient is not."""

    def loss(params, batch, key):
        value = jnp.mean((batch["x"] - params["w"][None]) ** 2)
        bent = jnp.sqrt(jnp.abs(params["w"] * batch["zero"]).sum())  # 0, with an infinite slope
        return value + bent, {"loss": value}

    optimizer = optax.adam(0.1)
    step = jax.jit(make_train_step(loss, optimizer, small.AVERAGE))
    good = {"x": jnp.full((4, 2), 2.0), "zero": jnp.ones(2)}
    bad = {"x": good["x"] * jnp.nan, "zero": jnp.ones(2)} if spoilt == "x" else {"x": good["x"], "zero": jnp.zeros(2)}
    state = start_state({"w": jnp.full(2, 0.5)}, optimizer, small.AVERAGE, jax.random.key(0))
    first, _ = step(state, good)
    after, metrics = step(first, bad)
    assert (int(after.step), int(after.skipped), int(after.in_a_row)) == (2, 1, 1)
    for one, other in zip(small.host(first)[1:-2], small.host(after)[1:-2], strict=True):
        np.testing.assert_array_equal(one, other)
    assert int(metrics["skipped"]) == 1
    again, _ = step(after, bad)
    assert (int(again.skipped), int(again.in_a_row)) == (2, 2)
    recovered, _ = step(again, good)
    assert (int(recovered.skipped), int(recovered.in_a_row)) == (2, 0)
    assert float(jnp.abs(recovered.params["w"] - after.params["w"]).max()) > 0


def test_the_loss_keeps_its_memory_between_steps_and_parts():
    """What the loss calls history is handed on, through the parts of a batch too."""

    def loss(params, batch, key):
        value = jnp.mean((batch["x"] - params["w"][None]) ** 2)
        return value, {"loss": value, "history": batch["history"] + batch["x"].shape[0]}

    optimizer = optax.sgd(0.1)
    for parts in (1, 2):
        step = make_train_step(loss, optimizer, {}, parts=parts)
        state = start_state({"w": jnp.zeros(2)}, optimizer, {}, jax.random.key(0), history=jnp.zeros(()))
        for _ in range(3):
            state, metrics = step(state, {"x": jnp.ones((4, 2))})
        assert float(state.history) == 12
        assert "history" not in metrics


def test_steps_draw_different_noise():
    seen = []

    def loss(params, batch, key):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return jnp.sum(params["w"]), {"loss": jnp.sum(params["w"])}

    state = start_state({"w": jnp.zeros(2)}, optax.sgd(0.1), {}, jax.random.key(0))
    step = make_train_step(loss, optax.sgd(0.1), {})
    for _ in range(3):
        state, _ = step(state, {"x": jnp.ones((2, 2))})
    jax.effects_barrier()
    assert len(set(seen)) == 3


def test_mistakes_are_explained():
    make = functools.partial(make_train_step, small.loss(), optax.sgd(0.1), {})
    with pytest.raises(ValueError, match="parts is 0"):
        make(parts=0)
    with pytest.raises(ValueError, match="unknown mapping 'pmpa'. Did you mean 'pmap'"):
        parallelize(make, make_mesh(), mapping="pmpa")
    state = start_state(small.params(), optax.sgd(0.1), {}, jax.random.key(0))
    with pytest.raises(ValueError, match="a batch of 16 cannot be met in 3 equal parts"):
        make(parts=3)(state, small.batch(0))
    with pytest.raises(ValueError, match="a batch of 15 cannot be shared by 8 devices"):
        parallelize(make, make_mesh(), mapping="pmap").put_batch(small.batch(0, 15))
