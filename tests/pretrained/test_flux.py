"""Flux from its files, against the numbers of another implementation."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.nets.flux import flux, grid_places, packed, unpacked
from diffusion_jax.pretrained.flux import FluxCall, keywords_of, load_flux, table_of
from diffusion_jax.pretrained.sd3 import example_of
from tests.pretrained.folders import CLOSE, REFERENCE, answer, check_published, check_round, theirs, write

FOLDER, FILE = REFERENCE / "models" / "flux_schnell", "diffusion_pytorch_model.safetensors"
CONFIG = json.loads((FOLDER / "config.json").read_text())


@functools.cache
def network():
    return load_flux(FOLDER)


@functools.cache
def weights():
    return safetensors.numpy.load_file(FOLDER / FILE)


@functools.cache
def reference():
    io = np.load(FOLDER / "io.npz")
    return {name.removeprefix("in/"): io[name] for name in io.files if name.startswith("in/")}, io["out/sample"]


def called(model, inputs):
    """Call ours as theirs is called."""
    call = jax.jit(lambda params, inputs: FluxCall(model.module).apply({"params": params}, **inputs))
    return np.asarray(call(model.params, inputs))


def test_what_it_computes_is_what_theirs_does():
    inputs, wanted = reference()
    np.testing.assert_allclose(called(network(), inputs), wanted, **CLOSE)


def test_images_are_cut_as_the_pipeline_of_theirs_does():
    inputs, wanted = reference()
    rows, columns = (int(inputs["img_ids"][:, axis].max()) + 1 for axis in (1, 2))
    np.testing.assert_array_equal(grid_places(rows, columns), inputs["img_ids"])
    image = unpacked(inputs["hidden_states"], rows, columns, 2)
    assert image.shape == (1, 2 * rows, 2 * columns, 4)
    np.testing.assert_array_equal(image[0, 0, 1, :], inputs["hidden_states"][0, 0, 1::4])  # channels first in a patch
    np.testing.assert_array_equal(packed(image, 2), inputs["hidden_states"])
    cond = {"text": inputs["encoder_hidden_states"], "pooled": inputs["pooled_projections"]}
    found = jax.jit(network().apply)(network().params, image, inputs["timestep"], cond)
    np.testing.assert_allclose(packed(found, 2), wanted, **CLOSE)


def test_import_export_import_is_the_same_bits():
    check_round(table_of(network().config), network(), weights())


def test_guidance_is_refused_by_what_was_not_distilled():
    with pytest.raises(ValueError, match="cond has 'guidance', but the network was built without it"):
        called(network(), reference()[0] | {"guidance": np.ones(1, np.float32)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"guidance_embeds": True}, "lacks time_text_embed.guidance_embedder.linear_1.bias"),
        ({"patch_size": 2}, "patch_size=2; known is 1"),
        ({"in_channels": 18}, "in_channels=18; known are patches of 2 by 2 pixels"),
        ({"out_channels": 32}, r"proj_out.bias' is \(16,\) and not \(32,\)"),
        ({"axes_dims_rope": [4, 6, 8]}, r"axes are \(4, 6, 8\); they must be three even numbers"),
        ({"num_single_layers": 2}, "lacks single_transformer_blocks.1.attn.norm_k.weight"),
        ({"num_layers": 0}, "has unknown transformer_blocks.0.attn.add_k_proj.bias"),
        ({"_class_name": "SD3Transformer2DModel"}, "it must be of 'FluxTransformer2DModel'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, words):
    with pytest.raises(ValueError, match=words):
        load_flux(write(tmp_path, CONFIG | change, weights(), FILE))


VARIANTS: dict[str, dict[str, Any]] = {
    "dev": {"guidance_embeds": True, "num_layers": 3, "num_single_layers": 4},
    "other axes": {"attention_head_dim": 24, "axes_dims_rope": [8, 4, 12], "num_attention_heads": 3},
    "fill": {"guidance_embeds": True, "in_channels": 96, "out_channels": 16},
    "no single ones": {"num_layers": 2, "num_single_layers": 0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_those_of_diffusers(name, tmp_path):
    config = CONFIG | VARIANTS[name]
    other, ours = theirs("FluxTransformer2DModel", config, tmp_path), load_flux(tmp_path)
    generator = np.random.default_rng(0)
    normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
    for rows, columns in ((3, 5), (4, 1)):
        inputs = {
            "hidden_states": normal(2, rows * columns, config["in_channels"]),
            "encoder_hidden_states": normal(2, 7, 20),
            "pooled_projections": normal(2, 24),
            "timestep": np.array([0.0371, 1.0], np.float32),
            "img_ids": grid_places(rows, columns) + np.array([2, 0, 0], np.float32),
            "txt_ids": np.arange(21, dtype=np.float32).reshape(7, 3),
        }
        if config["guidance_embeds"]:
            inputs["guidance"] = np.array([3.5, 1.0], np.float32)
        found, wanted = called(ours, inputs), answer(other, inputs)
        print(f"{name} {rows}x{columns}: {np.abs(found - wanted).max():.1e} of {np.abs(wanted).max():.1f}")
        np.testing.assert_allclose(found, wanted, **CLOSE)
    check_round(table_of(ours.config), ours, safetensors.numpy.load_file(tmp_path / FILE))


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [True, False])
def test_published_sizes_have_the_tensors_of_diffusers(guidance):
    def example(config):
        x, t, cond = example_of(config, 2, 16)
        return x, t, cond | ({"guidance": jax.ShapeDtypeStruct((1,), np.float32)} if guidance else {})

    build = lambda config: flux(**keywords_of(config))
    check_published("FluxTransformer2DModel", {"guidance_embeds": guidance}, build, example, table_of)
