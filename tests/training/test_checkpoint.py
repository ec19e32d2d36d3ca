"""A run that is killed and goes on ends bit for bit where the uninterrupted one ends; damage is noticed."""

import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training.checkpoint import Checkpoints, fingerprint
from tests.training import small


def shapes(state, sharding=None):
    """What a checkpoint is to be read as."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or leaf.sharding), state
    )


def save(folder, *states, **keywords):
    """Write checkpoints and close the folder, as a process that ends."""
    checkpoints = Checkpoints(folder, **keywords)
    for state in states:
        checkpoints.save(state, {"step": int(state.step)}, {"config": {"a": 1}})
    checkpoints.close()


def files(folder, step):
    """The files of a checkpoint's arrays, the largest last."""
    found = [path for path in (folder / str(step) / "state" / "d").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_size)


def test_resuming_is_exact(tmp_path):
    """Parameters, averages, moments, key and counters after 2 + 3 steps are those after 5, bit for bit."""
    whole = small.run(steps=5)
    save(tmp_path, half := small.run(steps=2))
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(shapes(half))
    assert restored is not None and restored.data == {"step": 2} and restored.about["config"] == {"a": 1}
    again = small.run(steps=3, state=restored.state)
    for one, other in zip(small.host(whole), small.host(again), strict=True):
        np.testing.assert_array_equal(one, other)
    checkpoints.close()


@pytest.mark.parametrize("mapping", ["jit", "pmap"])
def test_a_run_goes_on_on_another_number_of_devices(tmp_path, mapping):
    whole = small.run(steps=4)
    save(tmp_path, eight := small.run(steps=2, devices=8, mapping=mapping))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    checkpoints = Checkpoints(tmp_path)
    restored = checkpoints.restore(shapes(eight, one))
    assert restored is not None
    again = small.run(steps=2, state=restored.state)
    for a, b in zip(small.host(whole), small.host(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    checkpoints.close()


def test_a_new_run_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.restore(shapes(small.run(steps=1))) is None
    checkpoints.close()


def test_the_last_stay_and_every_nth(tmp_path):
    state = small.run(steps=1)
    save(tmp_path, *(state._replace(step=jnp.asarray(n)) for n in range(1, 8)), keep_last=2, keep_every=3)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3, 6, 7]
    checkpoints.close()


@pytest.mark.parametrize("damage", ["a bit", "cut short", "gone"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(tmp_path, damage):
    state = small.run(steps=1)
    save(tmp_path, *(state._replace(step=jnp.asarray(n)) for n in (1, 2)))
    largest = files(tmp_path, 2)[-1]
    if damage == "a bit":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 4
        largest.write_bytes(content)
    elif damage == "cut short":
        os.truncate(largest, largest.stat().st_size // 2)
    else:
        largest.unlink()
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match="THE CHECKPOINT OF STEP 2 IS DAMAGED"):
        restored = checkpoints.restore(shapes(state))
    assert restored is not None and int(restored.state.step) == 1
    assert (tmp_path / "2.damaged").is_dir()
    # Its step can be written anew.
    checkpoints.save(state._replace(step=jnp.asarray(2)), {"step": 2}, {})
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_a_run_with_nothing_but_damage_stops(tmp_path):
    state = small.run(steps=1)
    save(tmp_path, state)
    files(tmp_path, 1)[-1].unlink()
    checkpoints = Checkpoints(tmp_path)
    with warnings.catch_warnings(), pytest.raises(RuntimeError, match=r"can be read \(1.damaged\)"):
        warnings.simplefilter("ignore")
        checkpoints.restore(shapes(state))
    checkpoints.close()


def test_one_part_can_be_read_alone(tmp_path):
    state = small.run(steps=2)
    save(tmp_path, state)
    checkpoints = Checkpoints(tmp_path)
    step, average = checkpoints.part("averages", "slow")
    assert step == 2
    for name, leaf in state.averages["slow"].items():
        np.testing.assert_array_equal(average[name], leaf)
    np.testing.assert_array_equal(checkpoints.part("params", step=2)[1]["bias"], state.params["bias"])
    with pytest.raises(ValueError, match="no 'fast'; there are profile, slow"):
        checkpoints.part("averages", "fast")
    with pytest.raises(ValueError, match="no 'weights'; there are averages"):
        checkpoints.part("weights")
    with pytest.raises(ValueError, match="no checkpoint of step 7"):
        checkpoints.part("params", step=7)
    checkpoints.close()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_, jnp.uint8])
def test_any_changed_bit_changes_the_fingerprint(dtype):
    leaf = jnp.arange(12).reshape(3, 4).astype(dtype)
    before = fingerprint({"a": leaf, "key": jax.random.key(0)})
    content = bytearray(np.asarray(leaf).tobytes())
    content[5] ^= 1
    other = np.frombuffer(bytes(content), np.asarray(leaf).dtype).reshape(3, 4)
    after = fingerprint({"a": jnp.asarray(other), "key": jax.random.key(0)})
    assert before["['key']"] == after["['key']"] and before["['a']"] != after["['a']"]


def test_bad_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        Checkpoints(tmp_path, keep_last=0)


def test_the_state_of_another_network_is_refused_and_not_taken_for_damage(tmp_path):
    save(tmp_path, state := small.run(steps=1))
    checkpoints, wider = Checkpoints(tmp_path), shapes(state)
    first = next(iter(jax.tree.leaves(wider.params)))
    other = jax.tree.map(
        lambda leaf: leaf if leaf is not first else jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), wider
    )
    with pytest.raises(ValueError, match=r"another network: params/.* here"):
        checkpoints.restore(other)
    checkpoints.close()
    assert not list(tmp_path.glob("*.damaged"))
