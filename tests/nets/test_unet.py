"""The family of U-Nets: published sizes, and that its options mean what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.naming import choose
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.blocks import BLOCKS, MIXERS, TELLS
from diffusion_jax.nets.network import apply_of, count, initialize
from tests.nets.tiny import KINDS, SMALL, build, inputs, started, stirred

DDPM = {"name": "unet", "channels": 3, "time": "positional"}
SONG = {
    **DDPM,
    "multipliers": (2, 2, 2),
    "depth": 4,
    "resample": "fir",
    "skip_scale": 0.5**0.5,
    "shortcut": "projected",
    "decoder_attention": "last",
}
ADM = {
    "name": "unet",
    "channels": 3,
    "out_channels": 6,
    "image_size": 64,
    "width": 192,
    "multipliers": (1, 2, 3, 4),
    "depth": 3,
    "attention": (32, 16, 8),
    "head_width": 64,
    "tell": "scale_shift",
    "resample": "average",
    "num_classes": 1000,
}
LATENT = {
    "name": "unet",
    "channels": 4,
    "image_size": 64,
    "width": 320,
    "multipliers": (1, 2, 4, 4),
    "attention": (64, 32, 16),
    "heads": 8,
    "mixer": "transformer",
    "text_width": 768,
}
LATENT_XL = {
    **LATENT,
    "image_size": 128,
    "multipliers": (1, 2, 4),
    "attention": (64, 32),
    "head_width": 64,
    "text_width": 2048,
    "pooled_width": 2816,
    "transformers": (0, 2, 10),
}
YEAR_2015 = {
    "name": "unet",
    "channels": 1,
    "out_channels": 2,
    "image_size": 512,
    "width": 64,
    "multipliers": (1, 2, 4, 8, 16),
    "depth": 1,
    "block": "plain",
    "resample": "pool",
    "skips": "level",
    "attention": (),
    "norm": "none",
    "activation": "relu",
    "time": "none",
}


def parameters(spec):
    """Count a network's parameters without making any."""
    size = spec.get("image_size", 32)
    x, t = jax.ShapeDtypeStruct((1, size, size, spec["channels"]), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = {}
    if "num_classes" in spec:
        cond["label"] = jax.ShapeDtypeStruct((1,), jnp.int32)
    if "text_width" in spec:
        cond["text"] = jax.ShapeDtypeStruct((1, 77, spec["text_width"]), jnp.float32)
    if "pooled_width" in spec:
        cond["pooled"] = jax.ShapeDtypeStruct((1, spec["pooled_width"]), jnp.float32)
    module = choose(NETWORKS, spec, "network")
    return count(jax.eval_shape(module.init, jax.random.key(0), x, t, cond)["params"])


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        pytest.param(YEAR_2015, 31_030_658, id="2015"),
        pytest.param(DDPM, 35_746_307, id="ddpm"),
        pytest.param(SONG, 55_732_739, id="ddpmpp"),  # EDM's 55,733,891 less its map of 9 augmentations to 128 numbers
        pytest.param(ADM, 295_904_454 + 768, id="adm"),  # and the null label
        pytest.param(LATENT, 859_520_964, id="latent", marks=pytest.mark.slow),
        pytest.param(LATENT_XL, 2_567_463_684, id="latent-xl", marks=pytest.mark.slow),
    ],
)
def test_published_networks_have_their_number_of_parameters(spec, published):
    assert parameters(spec) == published


@pytest.mark.parametrize("part", [*BLOCKS, *MIXERS, *TELLS])
def test_every_part_is_in_a_network_under_the_laws_of_all(part):
    spoken = [{"block": "residual", "mixer": "attention", "tell": "add", **spec}.values() for spec in KINDS.values()]
    assert any(part in [value for value in values if isinstance(value, str)] for values in spoken)


@pytest.mark.parametrize("kind", ["ddpm", "ncsnpp"])
def test_other_sizes_of_image_are_welcome(kind):
    apply, params = started(kind)
    _, t, cond = inputs(kind)
    assert jax.eval_shape(apply, params, jnp.zeros((2, 12, 16, 2)), t, cond).shape == (2, 12, 16, 2)
    with pytest.raises(ValueError, match="9 by 8; both must be multiples of 2"):
        apply(params, jnp.zeros((2, 9, 8, 2)), t, cond)
    with pytest.raises(ValueError, match="must be .batch, height, width, 2."):
        apply(params, jnp.zeros((2, 8, 8, 3)), t, cond)


def test_without_attention_a_network_commutes_with_translations_by_whole_cells():
    """Away from the border, shifting the image by two pixels shifts the answer of a network with one halving."""
    changes = {"attention": (), "norm": "none", "image_size": 96, "resample": "fir"}
    module = build("ddpm", **changes)
    x, t = np.random.default_rng(0).normal(size=(1, 96, 96, 2)).astype(np.float32), np.full(1, 0.3, np.float32)
    params = stirred(initialize(module, jax.random.key(0), (x, t)), 0.05)
    answer = jax.jit(lambda x: apply_of(module)(params, x, jnp.asarray(t), None))
    out, moved = answer(x), answer(np.roll(x, (2, -2), (1, 2)))
    away = np.s_[:, 44:52, 44:52]  # the border is not felt here
    np.testing.assert_allclose(np.roll(out, (2, -2), (1, 2))[away], moved[away], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 9}, "image_size is 9.*multiple of 2"),
        ({"attention": (16,)}, "attention at size 16, but the levels of a 8 image are"),
        ({"heads": 3, "attention": (4,)}, "heads = 3 does not divide the width of a level = 16. Near it, 1, 2"),
        ({"head_width": 5, "attention": (4,)}, "head_width = 5 does not divide"),
        ({"transformers": (1, 2, 3)}, "one for each of 2 levels"),
        ({"text_width": 5, "attention": (4,)}, "only mixer 'transformer'"),
        ({"image_skip": "residual"}, "needs resampling without parameters"),
        ({"block": "residul"}, "Did you mean 'residual'"),
        ({"tell": "shift"}, "unknown tell"),
        ({"skips": "all"}, "unknown skips of unet"),
        ({"decoder_attention": "first"}, "unknown decoder_attention"),
        ({"shortcut": "none"}, "unknown shortcut"),
        ({"multipliers": ()}, "multipliers"),
        ({"width": 0}, "width is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"multipliers": (1, 0)}, "multipliers.1. is 0"),
        ({"image_skip": "sum"}, "unknown image_skip"),
        ({"depth": 1.5}, "depth is 1.5"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"resample": "nearest"}, "unknown resample"),
    ],
)
def test_networks_that_cannot_be_are_refused_before_they_are_built(change, words):
    with pytest.raises(ValueError, match=words):
        choose(NETWORKS, {**SMALL, "attention": (), **change}, "network")
