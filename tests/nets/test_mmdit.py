"""Transformers of two streams: who sees whom, where positions lie, how blocks are grouped, and how they begin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.devices import split_by_tensor
from diffusion_jax.nets.attention import axis_angles, grid_angles, grid_waves, rotate, rotate_neighbours
from diffusion_jax.nets.condition import Signal
from diffusion_jax.nets.dit import BlockShape
from diffusion_jax.nets.flux import SingleBlock, grid_places, packed, unpacked
from diffusion_jax.nets.mmdit import Block, Group, Sentence, groups_of, middle, stack
from diffusion_jax.nets.network import apply_of, initialize, shapes_of
from diffusion_jax.nets.remat import none
from tests.nets.tiny import build, inputs, started, stirred

SHAPE, NOWHERE = BlockShape(2, 32, "rms", 0.0), Sentence(None, None)
STREAMS = [pytest.param(Block(SHAPE, dual, last), id=f"{dual}-{last}") for dual, last in ((False, False), (True, True))]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_layers_that_are_equal_and_in_a_row_are_one_group():
    assert groups_of(24, range(13)) == (
        Group(0, 13, True, False),
        Group(13, 10, False, False),
        Group(23, 1, False, True),
    )
    assert groups_of(1) == (Group(0, 1, False, True),)
    assert groups_of(2, (0, 1)) == (Group(0, 1, True, False), Group(1, 1, True, True))
    for depth in range(1, 6):
        for dual in ((), (0,), (1, 3), (0, 2, 4)):
            groups = groups_of(depth, dual)
            found = [(group.first + n, group.dual) for group in groups for n in range(group.count)]
            assert found == [(layer, layer in dual) for layer in range(depth)]
            assert [group.last for group in groups] == [False] * (len(groups) - 1) + [True]


@pytest.mark.parametrize("block", [*STREAMS, pytest.param(SingleBlock(SHAPE), id="single")])
def test_a_block_begins_as_the_identity_with_a_gradient_to_its_gates(block):
    streams = normal(2, 5, 8) if isinstance(block, SingleBlock) else (normal(2, 3, 8), normal(2, 6, 8, seed=2))
    rest = Signal(normal(2, 8, seed=1)), NOWHERE, 0
    params = initialize(block, jax.random.key(0), (streams, *rest))

    @jax.jit
    def out_and_slope(params):
        out = lambda params: block.apply({"params": params}, streams, *rest)[0]
        value = lambda params: jax.tree.reduce(jnp.add, jax.tree.map(lambda a, b: jnp.sum(a * b), out(params), streams))
        return out(params), jax.grad(value)(params)

    out, slope = out_and_slope(params)
    jax.tree.map(np.testing.assert_array_equal, out, streams)
    kernel = (slope if isinstance(block, SingleBlock) else slope["image"])["modulation"]["kernel"]
    gates = [2] if isinstance(block, SingleBlock) else [2, 5, 8] if block.dual else [2, 5]
    seen = jnp.abs(kernel).reshape(8, -1, 8).max((0, 2)) > 0
    assert [int(n) for n in np.flatnonzero(seen)] == gates


@pytest.mark.parametrize("block", STREAMS)
def test_text_and_image_hear_each_other_and_in_the_last_block_only_the_image_listens(block):
    text, h, rest = normal(1, 3, 8), normal(1, 6, 8, seed=2), (Signal(None), NOWHERE, 0)
    params = stirred(initialize(block, jax.random.key(0), ((text, h), *rest)))
    sums = lambda streams: jax.tree.map(jnp.sum, block.apply({"params": params}, streams, *rest)[0])
    (text_by_text, text_by_image), (image_by_text, image_by_image) = jax.jit(jax.jacobian(sums))((text, h))
    for slope in (image_by_text, image_by_image):
        assert (jnp.abs(slope).max(-1) > 0).all()
    if block.last:
        np.testing.assert_array_equal(text_by_text, 1)
    assert (jnp.abs(text_by_image).max() > 0) == (not block.last)


@pytest.mark.slow
def test_words_that_the_mask_takes_away_are_not_heard():
    apply, params = started("mmdit")
    params, (x, t, cond) = stirred(params), inputs("mmdit")
    apply = jax.jit(apply)
    other = np.where(cond["text_mask"][..., None], cond["text"], 7).astype(np.float32)
    assert not np.array_equal(other, cond["text"])
    found = apply(params, x, t, cond)
    np.testing.assert_array_equal(found, apply(params, x, t, {**cond, "text": other}))
    shown = apply(params, x, t, {**cond, "text": other, "text_mask": np.ones_like(cond["text_mask"])})
    assert np.abs(found - shown).max() > 1e-3


def test_positions_are_the_middle_of_a_table():
    table = np.arange(25).reshape(5, 5)
    np.testing.assert_array_equal(table[middle(5, 2, 2)], table[1:3, 1:3])
    np.testing.assert_array_equal(table[middle(5, 4, 3)], table[:4, 1:4])
    np.testing.assert_array_equal(table[middle(5, 5, 5)], table)
    whole = grid_waves(5, 5, 8).reshape(5, 5, 8)
    np.testing.assert_array_equal(grid_waves(4, 2, 8, first=(1, 3)).reshape(4, 2, 8), whole[1:, 3:])
    with pytest.raises(ValueError, match="x has 6 by 4 patches, and the table of positions ends at 5 by 5"):
        jax.eval_shape(build("mmdit").init, jax.random.key(0), np.zeros((2, 12, 8, 2)), *inputs("mmdit")[1:])


def test_neighbours_turn_as_halves_do_in_another_order():
    q, k, angles = normal(1, 6, 2, 8), normal(1, 6, 2, 8, seed=1), jnp.asarray(grid_angles(2, 3, 8))
    order = np.arange(8).reshape(2, 4).T.ravel()
    products = lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)
    mixed = products(*(rotate_neighbours(x[..., order], angles) for x in (q, k)))
    np.testing.assert_allclose(mixed, products(rotate(q, angles), rotate(k, angles)), rtol=1e-5, atol=1e-5)


def test_each_axis_turns_its_share_of_a_head():
    angles = np.asarray(axis_angles(jnp.asarray([[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]), (2, 4, 6)))
    assert angles.shape == (3, 6)
    np.testing.assert_allclose(angles[0], [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(angles[1], [0, 2, 2e-2, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(angles[2], [0, 0, 0, 3, 3 * 10 ** (-4 / 3), 3 * 10 ** (-8 / 3)], rtol=1e-6)


def test_patches_keep_their_channels_together_and_are_joined_again():
    x = normal(2, 6, 4, 3)
    h = packed(x, 2)
    np.testing.assert_array_equal(unpacked(h, 3, 2, 2), x)
    np.testing.assert_array_equal(h[:, 1], x[:, :2, 2:].transpose(0, 3, 1, 2).reshape(2, -1))
    beside = packed(jnp.concatenate([x, 2 * x], -1), 2)
    np.testing.assert_array_equal(beside, jnp.concatenate([h, 2 * h], -1))
    np.testing.assert_array_equal(grid_places(3, 2)[3], [0, 1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "short", "long"), [("mmdit", 4, 9), ("flux", 2, 9)])
def test_the_program_does_not_grow_with_depth(kind, short, long):
    def length(depth):
        module = build(kind, depth=depth, **({"single_depth": depth} if kind == "flux" else {}))
        params = shapes_of(module, inputs(kind))
        loss = lambda params: apply_of(module)(params, *inputs(kind)).sum()
        return len(jax.jit(jax.grad(loss)).lower(params).as_text())

    assert length(long) < 1.02 * length(short)


@pytest.mark.slow
def test_a_stack_is_its_blocks_one_after_the_other():
    streams, rest = (normal(2, 3, 8), normal(2, 6, 8, seed=2)), (Signal(normal(2, 8, seed=1)), NOWHERE)
    scanned = stack(none, Block, 2)(SHAPE)
    params = stirred(initialize(scanned, jax.random.key(0), (streams, *rest, jnp.arange(2))))
    found, _ = jax.jit(scanned.apply)({"params": params}, streams, *rest, jnp.arange(2))
    one = jax.jit(Block(SHAPE).apply)
    for layer in range(2):
        streams, _ = one({"params": jax.tree.map(lambda leaf, n=layer: leaf[n], params)}, streams, *rest, layer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, streams)


@pytest.mark.parametrize("kind", ["mmdit", "flux"])
def test_kernels_are_split_over_tensor_in_every_block(kind):
    shapes = shapes_of(build(kind), inputs(kind))
    for path, leaf in jax.tree.leaves_with_path(shapes):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        inner = "blocks" in name and name.endswith("kernel") and "modulation" not in name
        assert ("tensor" in split_by_tensor(name, leaf.shape, 2)) == inner, name


def test_blocks_of_one_stack_drop_different_entries():
    keys = jax.random.split(jax.random.key(0), 1)
    block, h = SingleBlock(SHAPE._replace(dropout=0.5)), jnp.ones((1, 6, 8))
    params = stirred(initialize(block, jax.random.key(0), (h, Signal(None), NOWHERE, 0)))
    answer = jax.jit(lambda n: block.apply({"params": params}, h, Signal(None, keys=keys), NOWHERE, n)[0])
    assert jnp.abs(answer(0) - answer(1)).max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("mmdit", {"heads": 3}, "heads = 3 does not divide width = 8"),
        ("mmdit", {"width": 6}, "four entries"),
        ("mmdit", {"depth": 0, "dual": ()}, "depth is 0"),
        ("mmdit", {"dual": (0, 2)}, "dual has layer 2; the layers are 0 to 1"),
        ("mmdit", {"dual": (0.5,)}, "a layer of dual is 0.5"),
        ("mmdit", {"positions": "rotary"}, "unknown positions of mmdit"),
        ("mmdit", {"normalized": "layer"}, "unknown normalized of mmdit"),
        ("mmdit", {"max_size": 0}, "max_size is 0"),
        ("mmdit", {"text_width": 0}, "half of this network is for text.*take dit"),
        ("flux", {"text_width": 0}, "flux: text_width is 0"),
        ("flux", {"axes": (4, 4)}, "three even numbers from 2, whose sum is the width of a head, 8"),
        ("flux", {"axes": (2, 3, 3)}, "three even numbers"),
        ("flux", {"single_depth": -1}, "single_depth is -1"),
        ("flux", {"guidance_width": 2.5}, "guidance_width is 2.5"),
        ("flux", {"guidance_width": 5}, "pairs of waves = 2 does not divide guidance_width = 5"),
    ],
)
def test_transformers_that_cannot_be_are_refused_before_they_are_built(kind, change, words):
    with pytest.raises(ValueError, match=words):
        build(kind, **change)


def test_guidance_must_be_told_to_whom_it_was_distilled_into():
    x, t, cond = inputs("flux")
    init = lambda module, cond: jax.eval_shape(module.init, jax.random.key(0), x, t, cond)
    init(build("flux"), cond)
    with pytest.raises(ValueError, match="guidance_width=4, so cond needs 'guidance'"):
        init(build("flux"), {name: value for name, value in cond.items() if name != "guidance"})
    with pytest.raises(ValueError, match=r"built without it \(guidance_width=0\)"):
        init(build("flux", guidance_width=0), cond)
    with pytest.raises(ValueError, match=r"cond\['guidance'\] has shape \(2, 1\); it must be \(2,\)"):
        init(build("flux"), {**cond, "guidance": cond["guidance"][:, None]})
