"""Transformers in their authors' files are those of folders of diffusers."""

import functools
import inspect
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.nets.flux import flux
from diffusion_jax.nets.mmdit import mmdit
from diffusion_jax.nets.network import initialize
from diffusion_jax.pretrained import flux as flux_folder
from diffusion_jax.pretrained import load, save
from diffusion_jax.pretrained import sd3 as sd3_folder
from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays
from diffusion_jax.pretrained.transformer_file import FLUX_TABLE, divided, flux_config, sd3_config, sd3_table
from tests.nets.tiny import stirred

HEADS = {"attention_head_dim": 16, "num_attention_heads": 2}
SD3 = sd3_folder._DEFAULTS | HEADS | {
    "_class_name": "SD3Transformer2DModel",
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "joint_attention_dim": 12,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 10,
    "pos_embed_max_size": 6,
    "dual_attention_layers": [],
}  # fmt: skip
FLUX = flux_folder._DEFAULTS | HEADS | {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 10,
    "axes_dims_rope": [4, 14, 14],
    "attention_head_dim": 32,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "3": SD3 | {"attention_head_dim": 64, "num_attention_heads": 1, "caption_projection_dim": 64},
    "3.5 large": SD3 | {"qk_norm": "rms_norm"},
    "3.5 medium": SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1]},
    "schnell": FLUX,
    "dev": FLUX | {"guidance_embeds": True},
}


@functools.cache
def network(kind):
    """Return a config, and parameters of which none is zero."""
    config = KINDS[kind]
    if "axes_dims_rope" in config:
        module = flux(**flux_folder.keywords_of(config))
        x, t, cond = sd3_folder.example_of(config, 2, 4)
        if config["guidance_embeds"]:
            cond["guidance"] = jax.ShapeDtypeStruct((1,), np.float32)
    else:
        module = mmdit(**sd3_folder.keywords_of(config))
        x, t, cond = sd3_folder.example_of(config, 2, 4)
    return config, stirred(initialize(module, jax.random.key(0), (x, t, cond)))


def spelled(kind):
    """Return the tensors of a file: what is two in ours side by side is one matrix in Flux's."""
    config, params = network(kind)
    if "axes_dims_rope" not in config:
        return export(sd3_table(config), params)
    out = export(FLUX_TABLE, params)
    for end in ("weight", "bias"):
        for name in [name for name in out if name.endswith(f".qkv.{end}") and name.startswith("single_blocks")]:
            start = name.removesuffix(f"qkv.{end}")
            parts = [out.pop(f"{start}{part}.{end}") for part in ("qkv", "dense")]
            out[f"{start}linear1.{end}"] = np.concatenate(parts)
    return out


def folder_table(config):
    return (flux_folder if "axes_dims_rope" in config else sd3_folder).table_of(config)


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_network_of_its_folder(kind, tmp_path):
    config, params = network(kind)
    safetensors.numpy.save_file(spelled(kind), tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    same(found.params, params)
    assert found.config == config
    again = load(save(found, tmp_path / "folder"))
    same(again.params, params)
    assert again.config == config


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back_is_the_same_bits(kind):
    config, params = network(kind)
    tensors = of_arrays(spelled(kind), "memory")
    if "axes_dims_rope" in config:
        assert flux_config(tensors) == config
        same(convert(FLUX_TABLE, divided(tensors), params), params)
    else:
        assert sd3_config(tensors) == config
        same(convert(sd3_table(config), tensors, params), params)


@pytest.mark.parametrize("kind", ["3.5 medium", "dev"])
def test_behind_the_prefix_of_a_whole_model_it_is_a_part(kind, tmp_path):
    prefix = "model.diffusion_model."
    safetensors.numpy.save_file({prefix + name: x for name, x in spelled(kind).items()}, tmp_path / "a.safetensors")
    pipeline = load(tmp_path / "a.safetensors")
    assert set(pipeline.parts) == {"transformer"}
    same(pipeline.parts["transformer"].params, network(kind)[1])
    same(load(tmp_path / "a.safetensors", subfolder="transformer").params, network(kind)[1])


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("3", {"y_embedder.mlp.0.weight": None}, "has no transformer that is known: it lacks y_embedder.mlp.0.weight"),
        ("3", {"context_embedder.bias": None}, "lacks context_embedder.bias"),
        ("3", {"extra": np.zeros(1)}, "has unknown extra"),
        ("dev", {"single_blocks.1.linear1.bias": None}, "lacks single_blocks.1.dense.bias, single_blocks.1.qkv.bias"),
        ("dev", {"single_blocks.1.linear1.bias": np.zeros(5)}, "'single_blocks.1..*.bias' is .* and not"),
        ("dev", {"double_blocks.0.img_attn.norm.query_norm.scale": None}, "it lacks double_blocks.0.img_attn.norm"),
        ("dev", {"img_in.bias": np.zeros(64, np.int8)}, "'img_in.bias' is int8, not floating point"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind, change, words, tmp_path):
    tensors = {name: array for name, array in {**spelled(kind), **change}.items() if array is not None}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "a.safetensors")


def test_nothing_else_is_said_of_a_network_alone(tmp_path):
    safetensors.numpy.save_file(spelled("3"), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="is a network alone; neither `tokenizer` nor `prediction`"):
        load(tmp_path / "a.safetensors", prediction="eps")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_spellings_are_those_that_diffusers_knows(kind):
    theirs, torch = pytest.importorskip("diffusers.loaders.single_file_utils"), pytest.importorskip("torch")
    config, params = network(kind)
    name = "flux" if "axes_dims_rope" in config else "sd3"
    file = {name: torch.tensor(x) for name, x in spelled(kind).items()}
    convert = getattr(theirs, f"convert_{name}_transformer_checkpoint_to_diffusers")
    if name == "flux":  # theirs knows one width
        known: dict[str, Any] = {}
        exec(inspect.getsource(convert).replace("inner_dim = 3072", "inner_dim = 64"), vars(theirs), known)
        convert = known[convert.__name__]
    found = convert(file)
    wanted = export(folder_table(config), params)
    assert found.keys() == wanted.keys()
    same({name: tensor.numpy() for name, tensor in found.items()}, wanted)
