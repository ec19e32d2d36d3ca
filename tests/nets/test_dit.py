"""Transformers: published sizes, one scan over all blocks, blocks that begin as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import Mesh

from diffusion_jax.devices import AXES
from diffusion_jax.naming import choose
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.attention import grid_waves
from diffusion_jax.nets.condition import Signal
from diffusion_jax.nets.conv import cut
from diffusion_jax.nets.dit import SIZES, Block, BlockShape, joined
from diffusion_jax.nets.network import apply_of, count, initialize
from tests.nets.tiny import KINDS, build, inputs, started, stirred

# Published with the table of positions, which is no parameter: 256 patches of a 32 x 32 latent.
PUBLISHED = {"S": 32_963_360, "B": 130_512_416, "L": 458_102_816, "XL": 675_129_632}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_their_number_of_parameters(size):
    chosen = {"name": "custom", "width": 384, "depth": 12, "heads": 6} if size == "custom" else size
    spec = {"name": "dit", "channels": 4, "out_channels": 8, "size": chosen, "num_classes": 1000}
    example = (jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), {"label": jnp.zeros(1, int)})
    params = jax.eval_shape(choose(NETWORKS, spec, "network").init, jax.random.key(0), *example)["params"]
    width = params["patches"]["bias"].shape[0]
    assert count(params) + 256 * width == PUBLISHED["S" if size == "custom" else size]


def unrolled(block, *, length, **_):
    """Stand in for nn.scan: the blocks one after the other, each with its own parameters."""

    class Unrolled(nn.Module):
        shape: BlockShape

        @nn.compact
        def __call__(self, h, signal, angles, indices):
            for index in range(length):
                h, _ = block(self.shape, name=str(index))(h, signal, angles, indices[index])
            return h, None

    return Unrolled


def test_the_scan_is_its_blocks_one_after_the_other(monkeypatch):
    apply, params = started("dit_text", num_classes=3)
    params, example = stirred(params), inputs("dit_text", num_classes=3)
    scanned = jax.jit(apply)(params, *example)
    monkeypatch.setattr(nn, "scan", unrolled)
    layers = {str(n): jax.tree.map(lambda leaf, n=n: leaf[n], params["blocks"]) for n in range(2)}
    in_turn = jax.jit(apply_of(build("dit_text", num_classes=3)))({**params, "blocks": layers}, *example)
    np.testing.assert_allclose(scanned, in_turn, rtol=1e-4, atol=1e-4)


def test_blocks_of_one_scan_drop_different_entries():
    h, signal = jnp.ones((1, 6, 8)), Signal(None, keys=jax.random.split(jax.random.key(0), 1))
    block = Block(BlockShape(2, 32, "none", 0.5))
    params = stirred(initialize(block, jax.random.key(0), (h, signal, None, 0)))
    answer = jax.jit(lambda index: block.apply({"params": params}, h, signal, None, index)[0])
    assert jnp.abs(answer(0) - answer(1)).max() > 1e-2
    np.testing.assert_array_equal(answer(1), answer(1))


@pytest.mark.parametrize("embedders", ["one", "each"])
def test_the_program_does_not_grow_with_depth(embedders):
    def length(depth):
        module = build("dit", size={**KINDS["dit"]["size"], "depth": depth}, embedders=embedders)
        params = initialize(module, jax.random.key(0), inputs("dit"))
        loss = lambda params: apply_of(module)(params, *inputs("dit")).sum()
        return len(jax.jit(jax.grad(loss)).lower(params).as_text())

    assert length(12) < 1.02 * length(2)


def test_a_block_begins_as_the_identity_with_a_gradient_to_its_gates():
    h, signal = normal(2, 6, 8), Signal(normal(2, 8, seed=1), normal(2, 3, 5, seed=2), jnp.ones((2, 3), bool))
    block = Block(BlockShape(2, 32, "none", 0.0))
    params = initialize(block, jax.random.key(0), (h, signal, None, 0))

    @jax.jit
    def out_and_slope(params):
        out = lambda params: block.apply({"params": params}, h, signal, None, 0)[0]
        return out(params), jax.grad(lambda params: jnp.sum(out(params) * h))(params)

    out, slope = out_and_slope(params)
    np.testing.assert_array_equal(out, h)
    assert jnp.abs(slope["modulation"]["kernel"]).max() > 0 and jnp.abs(slope["to_text"]["out"]["kernel"]).max() > 0


def test_one_embedder_for_each_block_is_one_for_all_if_they_are_alike():
    """And the last layer hears that of the first block."""
    apply, params = started("dit_text", num_classes=3)
    params, (x, t, cond) = stirred(params), inputs("dit_text", num_classes=3)
    each = jax.jit(apply_of(build("dit_text", num_classes=3, embedders="each")))
    alike = {**params, "conditioning": jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params["conditioning"])}
    np.testing.assert_allclose(each(alike, x, t, cond), jax.jit(apply)(params, x, t, cond), rtol=1e-4, atol=1e-4)
    deaf = {"modulation": jax.tree.map(jnp.zeros_like, params["blocks"]["modulation"])}
    label = alike["conditioning"]["label"]
    for block, heard in ((0, True), (1, False)):
        other = {**alike["conditioning"], "label": label.at[block].add(1.0)}
        changed = {**alike, "blocks": {**params["blocks"], **deaf}}
        moved = each({**changed, "conditioning": other}, x, t, cond) - each(changed, x, t, cond)
        assert (np.abs(moved).max() > 1e-3) == heard


def test_embedders_of_each_block_are_gathered_in_training():
    module = build("dit", embedders="each")
    params = initialize(module, jax.random.key(0), inputs("dit"))
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
    with jax.set_mesh(mesh):
        slope = jax.eval_shape(jax.grad(lambda params: apply_of(module)(params, *inputs("dit")).sum()), params)
    assert jax.tree.map(jnp.shape, slope) == jax.tree.map(jnp.shape, params)


def test_learned_positions_are_added_to_the_patches_of_their_grid_alone():
    apply, params = started("dit")
    params, (x, t, cond) = stirred(params), inputs("dit")
    module = build("dit", positions="learned", grid=4)
    table = {**params, "positions": jnp.asarray(grid_waves(4, 4, 8))}
    learned, waves = jax.jit(apply_of(module))(table, x, t, cond), jax.jit(apply)(params, x, t, cond)
    np.testing.assert_allclose(learned, waves, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="x has 4 by 3 patches, but the learned positions are those of 4 by 4"):
        module.init(jax.random.key(0), x[:, :, :6], t, cond)


def test_waves_of_a_grid_span_it_at_any_size():
    np.testing.assert_allclose(
        grid_waves(4, 6, 16, side=4).reshape(4, 6, 16)[:, ::3], grid_waves(4, 2, 16, side=4).reshape(4, 2, 16)
    )
    np.testing.assert_array_equal(grid_waves(4, 4, 16, side=4), grid_waves(4, 4, 16))


def test_patches_begin_as_one_dense_layer():
    module = build("dit", size={**KINDS["dit"]["size"], "width": 64}, patch=4)
    kernel = np.asarray(initialize(module, jax.random.key(0), inputs("dit"))["patches"]["kernel"])
    assert kernel.shape == (4, 4, 2, 64)
    bound = np.sqrt(6 / (4 * 4 * 2 + 64))  # and not 6 / (4 * 4 * (2 + 64)), as of a convolution
    assert 0.99 * bound < np.abs(kernel).max() <= bound


def test_patches_are_cut_and_joined_in_reading_order():
    x = normal(2, 6, 9, 4)
    patches = cut(x, 3)
    np.testing.assert_array_equal(patches[:, 1], x[:, :3, 3:6].reshape(2, -1))
    np.testing.assert_array_equal(joined(patches, 2, 3, 3), x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "M"}, "unknown size 'M'.*Known: B, L, S, XL, custom"),
        ({"size": {"name": "custom", "width": 10, "depth": 2, "heads": 3}}, "heads = 3 does not divide width = 10"),
        ({"size": {"name": "custom", "width": 10, "depth": 2, "heads": 2}}, "four"),
        ({"size": {"name": "custom", "width": 12, "depth": 2, "heads": 2}, "positions": "rotary"}, "width of a head"),
        ({"size": {"name": "custom", "width": 8, "depth": 0, "heads": 2}}, "depth is 0"),
        ({"size": {"name": "S", "width": 8}}, "width"),
        ({"patch": 0}, "patch is 0"),
        ({"positions": "absolute"}, "unknown positions of dit"),
        ({"positions": "learned"}, "grid is 0; it must be a whole number of at least 1"),
        ({"positions": "rotary", "grid": 4}, "rotary positions have no use for"),
        ({"embedders": "both"}, "unknown embedders of dit"),
        ({"normalized": "layer"}, "unknown normalized of dit"),
    ],
)
def test_transformers_that_cannot_be_are_refused_before_they_are_built(change, words):
    with pytest.raises(ValueError, match=words):
        build("dit", **change)
    with pytest.raises(ValueError, match="7 by 8; both must be multiples of 2"):
        build("dit").init(jax.random.key(0), jnp.zeros((1, 7, 8, 2)), jnp.zeros(1), {"label": jnp.zeros(1, int)})
