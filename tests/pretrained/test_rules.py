"""Rules move numbers and lose none, and a file that does not fit is refused unread."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diffusion_jax.pretrained.rules import (
    CONV,
    DENSE,
    POINTWISE,
    SAME,
    SINGLE,
    SWAPPED,
    Rule,
    Table,
    convert,
    export,
    flat,
    linear,
    norm,
    plan,
    swapped,
)
from diffusion_jax.pretrained.tensors import Tensors, of_arrays

TABLE = Table(
    (
        *linear("in", "first", CONV),
        *linear("blocks.{i}.heads.{j}.map", "heads", DENSE),
        *linear(("levels.{n}.q", "levels.{n}.k", "levels.{n}.v"), "level_{n}/qkv"),
        Rule("levels.{n}.skip.weight", "level_{n}/skip", POINTWISE),
        *norm("last", "norm"),
        Rule("token", "token", SINGLE),
        Rule("temperature", "temperature"),
    ),
    harmless={"*.steps": "counts"},
    spellings=({}, {"blocks.": "layers.", "token": "cls"}),
)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def theirs():
    """Make the tensors of a network that exercises every kind of rule."""
    found = {"in.weight": normal(4, 3, 2, 2), "in.bias": normal(4), "token": normal(1, 4)}
    found["temperature"] = np.asarray(np.float32(0.3))
    for i in range(2):
        for j in range(3):
            found[f"blocks.{i}.heads.{j}.map.weight"] = normal(5, 4, seed=10 * i + j)
            found[f"blocks.{i}.heads.{j}.map.bias"] = normal(5, seed=10 * i + j)
    for n in range(2):
        for part in "qkv":
            found[f"levels.{n}.{part}.weight"] = normal(6, 4, seed=n + ord(part))
            found[f"levels.{n}.{part}.bias"] = normal(6, seed=n + ord(part))
        found[f"levels.{n}.skip.weight"] = normal(7, 4, 1, 1, seed=n)
    return found | {"last.weight": normal(4, seed=1), "last.bias": normal(4, seed=2)}


SHAPES = {
    "first": {"kernel": (2, 2, 3, 4), "bias": (4,)},
    "heads": {"kernel": (2, 3, 4, 5), "bias": (2, 3, 5)},
    **{f"level_{n}": {"qkv": {"kernel": (4, 18), "bias": (18,)}, "skip": (4, 7)} for n in range(2)},
    "norm": {"scale": (4,), "bias": (4,)},
    "token": (4,),
    "temperature": (),
}
SHAPES = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SHAPES, is_leaf=lambda leaf: isinstance(leaf, tuple)
)


def test_every_number_goes_where_its_rule_says():
    tensors = theirs()
    params = flat(convert(TABLE, of_arrays(tensors, "memory"), SHAPES))
    for i in range(2):
        for j in range(3):
            np.testing.assert_array_equal(params["heads/kernel"][i, j], tensors[f"blocks.{i}.heads.{j}.map.weight"].T)
            np.testing.assert_array_equal(params["heads/bias"][i, j], tensors[f"blocks.{i}.heads.{j}.map.bias"])
    for n in range(2):
        for place, part in enumerate("qkv"):
            columns = slice(6 * place, 6 * (place + 1))
            found = params[f"level_{n}/qkv/kernel"][:, columns], params[f"level_{n}/qkv/bias"][columns]
            np.testing.assert_array_equal(found[0], tensors[f"levels.{n}.{part}.weight"].T)
            np.testing.assert_array_equal(found[1], tensors[f"levels.{n}.{part}.bias"])
    x = normal(2, 2, 3)
    by_torch = np.einsum("ohwk,hwk->o", tensors["in.weight"].transpose(0, 2, 3, 1), x)
    np.testing.assert_allclose(jnp.einsum("hwk,hwko->o", x, params["first/kernel"]), by_torch, rtol=1e-5)
    pixel = normal(4)
    by_torch = tensors["levels.1.skip.weight"][:, :, 0, 0] @ pixel
    np.testing.assert_allclose(pixel @ params["level_1/skip"], by_torch, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_export_import_is_the_same_bits(dtype):
    params = convert(TABLE, of_arrays(theirs(), "memory"), SHAPES, dtype=dtype)
    out = export(TABLE, params)
    again = convert(TABLE, of_arrays(out, "memory"), SHAPES, dtype=dtype)
    for one, two in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        assert one.dtype == two.dtype == dtype
        np.testing.assert_array_equal(one, two)
    assert out.keys() == theirs().keys() == plan(TABLE.rules, SHAPES).keys()
    for name, array in theirs().items():
        assert out[name].flags.c_contiguous and out[name].shape == array.shape
        np.testing.assert_array_equal(out[name], array.astype(out[name].dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_tensors_are_cast_on_the_way(dtype):
    cast = {name: array.astype(dtype) for name, array in theirs().items()}
    params = convert(TABLE, of_arrays(cast, "memory"), SHAPES)
    np.testing.assert_array_equal(params["norm"]["scale"], cast["last.weight"].astype(np.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_every_number_of_half_precision_is_read_as_it_is():
    """Also infinities, what is no number, and numbers below the normal ones."""
    every: Any = np.arange(2**16, dtype=np.uint16).view(np.float16)
    rows, rules = every.reshape(2**8, 2**8), [Rule("a", "a", DENSE), Rule("b", "b")]
    for dtype in ("float32", "bfloat16"):
        for finite in (rows, rows[np.isfinite(rows).all(1)]):
            tensors, shape = {"a": finite, "b": finite[0]}, jax.ShapeDtypeStruct
            shapes = {"a": shape(finite.T.shape, jnp.float32), "b": shape(finite[0].shape, jnp.float32)}
            found = convert(Table(tuple(rules)), of_arrays(tensors, "memory"), shapes, dtype=dtype)
            with np.errstate(invalid="ignore"):
                known: Any = finite.astype(dtype)
            assert found["a"].dtype == dtype
            np.testing.assert_array_equal(found["a"].T.astype(np.float32), known.astype(np.float32))
            np.testing.assert_array_equal(np.signbit(found["a"]).T, np.signbit(finite))
            np.testing.assert_array_equal(found["b"].astype(np.float32), known[0].astype(np.float32))


def test_arrays_are_handed_over_one_at_a_time():
    seen = []
    convert(TABLE, of_arrays(theirs(), "memory"), SHAPES, put=lambda path, array: seen.append(array.shape))
    assert sorted(seen) == sorted(leaf.shape for leaf in jax.tree.leaves(SHAPES))


@pytest.mark.parametrize("layout", [SAME, DENSE, CONV, POINTWISE, SINGLE, SWAPPED])
def test_layouts_are_undone(layout):
    shapes = {CONV: (2, 3, 4, 5), POINTWISE: (2, 3, 1, 1), SINGLE: (1, 3, 2)}
    shape = shapes.get(layout, (2, 3))
    np.testing.assert_array_equal(layout.theirs(layout.ours(normal(*shape))), normal(*shape))


def test_a_stack_may_hold_only_some_of_their_layers():
    table = Table((Rule("layers.{i}", "head"), Rule("layers.{i}", "tail", first=2)))
    tensors = {f"layers.{i}": normal(3, seed=i) for i in range(5)}
    shapes = {"head": np.zeros((2, 3), np.float32), "tail": np.zeros((3, 3), np.float32)}
    params = convert(table, of_arrays(tensors, "memory"), shapes)
    np.testing.assert_array_equal(params["tail"], [tensors[f"layers.{i}"] for i in (2, 3, 4)])
    jax.tree.map(np.testing.assert_array_equal, export(table, params), tensors)


def test_halves_of_a_dense_layer_may_be_in_the_other_order():
    table, x = Table(swapped("scale_and_shift", "modulation")), normal(4)
    weight, bias = normal(6, 4), normal(6)
    tensors = {"scale_and_shift.weight": weight, "scale_and_shift.bias": bias}
    shapes = {"modulation": {"kernel": np.zeros((4, 6), np.float32), "bias": np.zeros(6, np.float32)}}
    params = convert(table, of_arrays(tensors, "memory"), shapes)["modulation"]
    scale, shift = np.split(weight @ x + bias, 2)
    np.testing.assert_allclose(x @ params["kernel"] + params["bias"], [*shift, *scale], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, export(table, {"modulation": params}), tensors)


def test_files_may_spell_names_otherwise_and_hold_what_is_harmless():
    spelled = {name.replace("blocks.", "layers.").replace("token", "cls"): x for name, x in theirs().items()}
    spelled["a.steps"] = normal(3)
    one, two = (convert(TABLE, of_arrays(tensors, "memory"), SHAPES) for tensors in (theirs(), spelled))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def spoiled(change):
    """Return tensors that are changed, and fail when one is read."""
    tensors = theirs()
    change(tensors)

    def unread(name):
        raise AssertionError(f"{name} was read")

    return Tensors({name: array.shape for name, array in tensors.items()}, unread, "a.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("last.bias"), "a.safetensors does not hold the 32 tensors.* lacks last.bias"),
        (lambda tensors: tensors.update(extra=normal(2)), "has unknown extra.*config.json is of another network"),
        (lambda tensors: tensors.update({"last.biases": tensors.pop("last.bias")}), "last.bias and has unknown last.b"),
        (lambda tensors: [tensors.pop(name) for name in list(tensors)], "lacks blocks.0.*, .* and 20 more"),
        (lambda tensors: tensors.update({"in.weight": normal(4, 3, 3, 3)}), r"'in.weight' is \(4, 3, 3, 3\) and not"),
        (lambda tensors: tensors.update({"in.bias": normal(1, 4)}), r"'in.bias' is \(1, 4\) and not \(4,\)"),
    ],
)
def test_what_does_not_fit_is_refused_unread(change, words):
    with pytest.raises(ValueError, match=words):
        convert(TABLE, spoiled(change), SHAPES)


def test_quantised_weights_are_refused():
    tensors = {**theirs(), "in.bias": np.arange(4, dtype=np.int8)}
    with pytest.raises(ValueError, match="'in.bias' is int8, not floating point.*full precision"):
        convert(TABLE, of_arrays(tensors, "a.safetensors"), SHAPES)


def test_each_parameter_has_one_rule():
    for number, rest in ((0, TABLE.rules[1:]), (2, (*TABLE.rules, TABLE.rules[0]))):
        with pytest.raises(ValueError, match=f"{number} rules lead to the parameter first/kernel"):
            plan(rest, SHAPES)


def test_each_of_their_tensors_goes_to_one_place():
    with pytest.raises(ValueError, match="lead from 'b' both to a/x and to a/y"):
        plan([Rule("b", "a/x"), Rule("b", "a/y")], {"a": {"x": np.zeros(3), "y": np.zeros(3)}})


def test_parts_are_equal_shares():
    with pytest.raises(ValueError, match="last axis of a, of 5, is not 2 equal shares"):
        plan([Rule(("b", "c"), "a")], {"a": np.zeros((3, 5))})
