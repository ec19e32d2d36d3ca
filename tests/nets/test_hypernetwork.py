"""Hypernetworks: nothing at first, their formula later, and nothing where they have no part."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.nets.attention import Attention
from diffusion_jax.nets.hypernetwork import BENDS, hypernetwork, with_hypernetwork
from diffusion_jax.nets.network import initialize
from tests.nets.tiny import inputs, started, stirred


def normal(*shape, seed=0) -> Any:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def begun(**keywords):
    module = hypernetwork(**keywords)
    return module, initialize(module, jax.random.key(0), (normal(1, 1, keywords["widths"][0]),))


def test_at_first_it_is_the_base_and_learns():
    """Of what is attended to within the image, 8 wide, and of the text, 5 wide; through layers that are scanned."""
    apply, base = started("dit_text")
    base, (x, t, cond) = stirred(base), inputs("dit_text")
    module, params = begun(widths=(5, 8), activation="silu")
    changed = with_hypernetwork(apply, module)

    @jax.jit
    def both(params, base):
        loss = lambda own: (changed({"network": base, "hypernetwork": own}, x, t, cond) ** 2).sum()
        return changed({"network": base, "hypernetwork": params}, x, t, cond), jax.grad(loss)(params)

    y, slope = both(params, base)
    np.testing.assert_allclose(y, jax.jit(apply)(base, x, t, cond), rtol=1e-5, atol=1e-6)  # as the compiler fuses it
    assert slope.keys() == {"keys_5", "keys_8", "values_5", "values_8"}
    for layers in slope.values():
        assert np.abs(layers["dense_1"]["kernel"]).max() > 0
        np.testing.assert_array_equal(layers["dense_0"]["kernel"], 0)


@pytest.mark.parametrize("widths", [(8,), (6,)])
def test_keys_and_values_are_made_of_what_it_gives(widths):
    """Attention within, and to something 6 wide, is that of layers whose inputs were changed before."""
    layer, x = Attention(heads=2), normal(1, 3, 8)
    context = normal(1, 5, 6) if widths == (6,) else None
    base = stirred(initialize(layer, jax.random.key(0), (x, context)))
    module, params = begun(widths=widths, structure=(1, 1.5, 1), norm=True, activation="relu")
    params = stirred(params)
    apply: Any = lambda params, x, t, cond: layer.apply({"params": params}, x, cond["text"])
    told = with_hypernetwork(apply, module, scale=0.5)
    found = told({"network": base, "hypernetwork": params}, x, x, {"text": context})

    seen = x if context is None else context
    bound = module.bind({"params": params})
    for_keys, for_values = (seen + 0.5 * (part - seen) for part in bound(seen))
    made = [base[name] for name in (("qkv",) if context is None else ("q", "kv"))]
    kernels = [kernel for one in made for kernel in np.split(one["kernel"], one["kernel"].shape[1] // 8, 1)]
    biases = np.split(np.concatenate([one["bias"] for one in made]), 3)
    parts = [
        c @ kernel + bias[None, None]
        for c, kernel, bias in zip((x, for_keys, for_values), kernels, biases, strict=True)
    ]
    q, k, v = (part.reshape(1, -1, 2, 4) for part in parts)
    weights = jax.nn.softmax(jnp.einsum("bthd,blhd->bhtl", q, k) / 2)
    wanted = jnp.einsum("bhtl,blhd->bthd", weights, v).reshape(1, 3, 8) @ base["out"]["kernel"]
    wanted = wanted + base["out"]["bias"][None, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", sorted(BENDS))
def test_it_is_its_layers(activation):
    module, params = begun(widths=(4,), activation=activation, bent_end=True)
    params, x, bend = stirred(params), normal(1, 2, 4), BENDS[activation]
    found: Any = module.apply({"params": params}, x, scale=2.0)
    for half, got in zip(("keys_4", "values_4"), found, strict=True):
        h = x
        for name in ("dense_0", "dense_1"):
            h = bend(h @ params[half][name]["kernel"] + params[half][name]["bias"][None, None])
        np.testing.assert_allclose(got, x + 2 * h, rtol=1e-4, atol=1e-5)


def test_dropout_belongs_to_the_example_and_needs_keys():
    module, params = begun(widths=(4,), structure=(1, 8, 1), dropout=0.5)
    params, x, keys = stirred(params), normal(3, 2, 4), jax.random.split(jax.random.key(0), 3)
    plain, dropped = (module.apply({"params": params}, x, dropout=some)[0] for some in (None, keys))
    alone = module.apply({"params": params}, x[1:2], dropout=keys[1:2])[0]
    assert np.abs(plain - dropped).max() > 0.1
    np.testing.assert_allclose(dropped[1:2], alone, rtol=1e-4, atol=1e-6)


def test_contexts_of_other_widths_are_left():
    module, params = begun(widths=(4,))
    x = normal(1, 2, 5)
    for part in module.apply({"params": params}, x):
        np.testing.assert_array_equal(part, x)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": ()}, "there must be some, each once"),
        ({"widths": (4, 4)}, "there must be some, each once"),
        ({"widths": (4.0,)}, "widths.0. is 4.0; it must be a whole number"),
        ({"structure": (1, 2)}, r"structure is \(1, 2\); it must go from 1 to 1"),
        ({"activation": "rleu"}, "unknown activation of hypernetwork 'rleu'. Did you mean 'relu'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_what_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        hypernetwork(**change)
