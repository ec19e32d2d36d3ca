"""Adapters of low rank: what they add to which kernels, and that nothing else moves."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.nets.conv import plain
from diffusion_jax.nets.lora import Adapter, joined, merged, scaled, split, start, unmerged, with_adapter
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.training.ema import constant
from diffusion_jax.training.state import start_state
from diffusion_jax.training.step import make_train_step
from tests.nets.tiny import inputs, started, stirred

merging = jax.jit(merged)
KERNELS = {"dense": (4, 6), "conv": (3, 3, 4, 5), "blocks/qkv": (2, 4, 6), "blocks/conv": (2, 3, 3, 4, 5)}


def normal(*shape, seed=0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def tree(dtype=np.float32):
    """Make parameters with a kernel of every kind, and things that are none."""
    layers: Any = {"dense": {"kernel": normal(4, 6), "bias": normal(6)}, "conv": {"kernel": normal(3, 3, 4, 5)}}
    layers["blocks"] = {"qkv": {"kernel": normal(2, 4, 6)}, "conv": {"kernel": normal(2, 3, 3, 4, 5)}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), layers | {"tokens": normal(5, 4)})


@functools.cache
def adapter(rank=2, seed=0):
    """Make an adapter of all of them that does something."""
    begun = start(tree(), jax.random.key(seed), targets=("*",), rank=rank, alpha=3.0)
    return begun._replace(factors=stirred(begun.factors, 0.3 + seed))


def change(params, base):
    return {path: leaf["kernel"] - base for path, leaf, base in _pairs(params, base)}


def _pairs(params, base):
    for path in KERNELS:
        ours, theirs = params, base
        for name in path.split("/"):
            ours, theirs = ours[name], theirs[name]
        yield path, ours, theirs["kernel"]


def same(found, wanted, **tolerance):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, **{"rtol": 1e-5, "atol": 1e-6} | tolerance), found, wanted
    )


def test_what_is_added_is_its_formula():
    added, factors = change(merging(tree(), adapter(), 0.5), tree()), adapter().factors
    for path, forms in {
        "dense": "ir,ro->io", "conv": "klir,ro->klio", "blocks/qkv": "dir,dro->dio", "blocks/conv": "dklir,dro->dklio"
    }.items():  # fmt: skip
        a, b = factors[f"{path}/kernel"]["a"], factors[f"{path}/kernel"]["b"]
        np.testing.assert_allclose(added[path], 0.5 * 3 / 2 * np.einsum(forms, a, b), rtol=1e-4, atol=1e-5)


def test_of_a_convolution_it_is_a_convolution_down_and_one_of_a_pixel_up():
    x, factors = normal(1, 5, 5, 4), adapter().factors["conv/kernel"]
    beside = plain(plain(x, factors["a"]), factors["b"][None, None])
    wanted = plain(x, tree()["conv"]["kernel"]) + 3 / 2 * beside
    np.testing.assert_allclose(plain(x, merging(tree(), adapter())["conv"]["kernel"]), wanted, rtol=1e-4, atol=1e-4)


def test_what_is_merged_comes_out_again_and_adds_up():
    base, other = tree(), adapter(3, 1)
    same(unmerged(merging(base, adapter(), 0.7), adapter(), 0.7), base)
    both = merging(base, joined([scaled(adapter(), 0.7), scaled(other, -0.4)]))
    same(both, merged(merging(base, adapter(), 0.7), other, -0.4), atol=1e-5)
    only = joined([adapter(), Adapter({}, {})])
    jax.tree.map(np.testing.assert_array_equal, only, adapter())


def test_merging_is_in_float32_whatever_the_weights_are():
    base = tree(jnp.bfloat16)
    wide = merging(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base), adapter(), 1e-2)
    found = merging(base, adapter(), 1e-2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), found, wide)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.bfloat16)}


def test_the_difference_of_two_trees_is_taken_apart():
    base = tree()
    changed = merging(base, adapter())
    found = split(changed, base, targets=("*",), rank={"*qkv": 2, "*": 9})
    same(merging(base, found), changed, atol=2e-5)
    assert found.factors["blocks/qkv/kernel"]["a"].shape == (2, 4, 2)
    assert found.factors["dense/kernel"]["a"].shape == (4, 4)  # there are no more
    worse = change(merging(base, split(changed, base, targets=("dense",), rank=1)), changed)["dense"]
    values = np.linalg.svd(change(changed, base)["dense"], compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(worse), values[1], rtol=1e-4)  # Eckart & Young


def test_a_rank_reaches_the_shares_that_it_has_gains_for_and_no_others():
    a, b = normal(4, 3), normal(3, 6, seed=1)
    gains: Any = np.array([[1, 0, 0], [0, 0.5, 0.5], [0, 0, 2]], np.float32)
    found = Adapter({"dense/kernel": {"a": a, "b": b}}, {"dense/kernel": gains})
    added = change(merged(tree(), found), tree())["dense"]
    for share in range(3):
        columns = slice(2 * share, 2 * share + 2)
        np.testing.assert_allclose(added[:, columns], a * gains[:, share] @ b[:, columns], rtol=1e-4, atol=1e-5)
    slope: Any = jax.grad(lambda f: (merged(tree(), found._replace(factors=f))["dense"]["kernel"] ** 2).sum())(
        found.factors
    )
    unreached = np.repeat(gains == 0, 2, axis=1)
    np.testing.assert_array_equal(np.asarray(slope["dense/kernel"]["b"] == 0), unreached)


def test_ranks_and_alphas_differ_by_layer():
    found = start(tree(), jax.random.key(0), targets=("blocks/*", "d*"), rank={"*conv": 1, "*": 2}, alpha={"*": 4})
    assert {path: part["b"].shape for path, part in found.factors.items()} == {
        "blocks/conv/kernel": (2, 1, 5), "blocks/qkv/kernel": (2, 2, 6), "dense/kernel": (2, 6)
    }  # fmt: skip
    assert {float(gain.mean()) for gain in found.gains.values()} == {2.0, 4.0}
    bound = np.abs(start(tree(), jax.random.key(0), targets=("conv",), rank=50).factors["conv/kernel"]["a"]).max()
    assert 0.9 / 6 < bound <= 1 / 6  # fan_in is 36


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": ("dense", "attention")}, "no layer fits the target 'attention'. There are blocks/conv"),
        ({"targets": "dense"}, "tuple of patterns"),
        ({"rank": 0}, "rank is 0; it must be a whole number of at least 1"),
        ({"rank": {"conv": 1}}, r"no pattern of rank fits dense; there are conv. Add '\*'"),
    ],
)
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        start(tree(), jax.random.key(0), **{"targets": ("dense",), "rank": 2} | change)


def test_an_adapter_of_another_base_is_refused():
    base = tree()
    with pytest.raises(ValueError, match="conv/kernel, which is no kernel of these"):
        merged({"dense": base["dense"]}, adapter())
    base["dense"]["kernel"] = normal(5, 6)
    with pytest.raises(ValueError, match=r"dense/kernel is \(5, 6\), which a of \(4, 2\)"):
        merging(base, adapter())
    with pytest.raises(ValueError, match="of another shape"):
        split(base, tree(), targets=("dense",), rank=1)


def test_over_devices_it_is_the_same_and_stays_split():
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[:2])
    spread = {
        4: PartitionSpec(None, None, "fsdp"),
        3: PartitionSpec(None, None, "fsdp"),
        2: PartitionSpec(None, "fsdp"),
    }
    place = lambda leaf: NamedSharding(mesh, spread.get(leaf.ndim, PartitionSpec()))
    base = jax.tree.map(lambda leaf: jax.device_put(leaf, place(leaf)), tree())
    found = jax.jit(merged, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, base))(base, adapter(), 0.5)
    same(found, merging(tree(), adapter(), 0.5))


def test_zero_b_is_the_base_exactly_and_learns():
    """Of layers that a scan stacks, too."""
    apply, base = started("dit_text")
    base, (x, t, cond) = stirred(base), inputs("dit_text")
    begun = start(base, jax.random.key(0), targets=("*attention/*", "*to_text/*", "patches"), rank=2)

    @jax.jit
    def both(params, factors):
        loss = lambda f: (apply(merged(params, begun._replace(factors=f)), x, t, cond) ** 2).sum()
        return apply(params, x, t, cond), jax.grad(loss)(factors)

    whole = merging(base, begun)
    jax.tree.map(np.testing.assert_array_equal, whole, base)
    (plainly, slope), (adapted, _) = both(base, begun.factors), both(whole, begun.factors)
    np.testing.assert_array_equal(plainly, adapted)
    assert len(slope) == 6
    for part in slope.values():
        assert np.abs(part["b"]).max() > 0
        np.testing.assert_array_equal(part["a"], 0)


def test_training_moves_the_adapter_alone():
    """As a run does it: the state holds the base too, which has no gradient, and the optimizer holds it still."""
    apply, base = started("mlp")
    begun = start(base, jax.random.key(0), targets=("block_*", "last"), rank=2)
    params = {"network": base, "lora": begun.factors}
    loss = denoising_loss(with_adapter(apply, begun.gains), SCHEDULES["rectified"](), prediction="velocity")
    kinds: Any = {"lora": optax.adam(3e-2), "network": optax.set_to_zero()}
    optimizer = optax.partition(kinds, {name: name for name in kinds})
    averages = {"ema": constant(decay=0.9)}
    state = start_state(params, optimizer, averages, jax.random.key(1))
    step = jax.jit(make_train_step(loss, optimizer, averages))
    x, _, cond = inputs("mlp", batch=64)
    losses = []
    for _ in range(40):
        state, metrics = step(state, {"x": 0.1 * x + 1, "cond": cond})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    jax.tree.map(np.testing.assert_array_equal, state.params["network"], base)
    assert all(np.abs(part["b"]).max() > 0 for part in state.params["lora"].values())
