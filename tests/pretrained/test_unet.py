"""U-Nets from their files, against the numbers of another implementation."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays, open_tensors
from diffusion_jax.pretrained.unet import load_unet, micro, table_of
from tests.pretrained.folders import REFERENCE, write

MODELS = {name: REFERENCE / "models" / name for name in ("unet_sd15", "unet2d_ddpm")}
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}


@functools.cache
def network(name):
    return load_unet(MODELS[name])


def weights_of(folder):
    return safetensors.numpy.load_file(folder / "diffusion_pytorch_model.safetensors")


def called(model, sample, timestep, text=None):
    """Call ours as theirs is called, images in their order of axes."""
    cond = {} if text is None else {"text": text}
    t = np.broadcast_to(np.asarray(timestep, np.float32), len(sample))
    return np.moveaxis(np.asarray(jax.jit(model.apply)(model.params, np.moveaxis(sample, 1, -1), t, cond)), -1, 1)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_what_it_computes_is_what_theirs_does(name):
    io = np.load(MODELS[name] / "io.npz")
    text = io["in/encoder_hidden_states"] if "in/encoder_hidden_states" in io.files else None
    found = called(network(name), io["in/sample"], io["in/timestep"], text)
    np.testing.assert_allclose(found, io["out/sample"], **CLOSE)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_import_export_import_is_the_same_bits(name):
    model, weights = network(name), weights_of(MODELS[name])
    out = export(table_of(model.config), model.params)
    assert out.keys() == weights.keys()
    jax.tree.map(np.testing.assert_array_equal, out, weights)
    again = convert(table_of(model.config), of_arrays(out, "memory"), model.params)
    jax.tree.map(np.testing.assert_array_equal, model.params, again)


def test_the_old_spelling_of_attention_is_read(tmp_path):
    changes = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    old = {}
    for name, array in weights_of(MODELS["unet2d_ddpm"]).items():
        for new, spelled in changes.items():
            name = name.replace(f".{new}", f".{spelled}")
        old[name] = array
    config = json.loads((MODELS["unet2d_ddpm"] / "config.json").read_text())
    model = load_unet(write(tmp_path, config, old, "diffusion_pytorch_model.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, model.params, network("unet2d_ddpm").params)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'; known is None"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"]}, "down_block_types .* not known"),
        ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "and their mirror image"),
        ({"freq_shift": 1}, "flip_sin_to_cos=True with freq_shift=1"),
        ({"block_out_channels": [16, 24]}, "no multiples of the first"),
        ({"layers_per_block": 2}, "lacks down_blocks"),
        ({"cross_attention_dim": 16}, "does not fit its config.json"),
        ({"attention_head_dim": [4, 2]}, None),
        ({"attention_head_dim": [4, 3]}, "heads .* as many or as wide"),
        ({"_class_name": "UNet3DConditionModel"}, "it must be of 'UNet2DModel' or 'UNet2DConditionModel'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, change, words):
    config = json.loads((MODELS["unet_sd15"] / "config.json").read_text()) | change
    folder = write(tmp_path, config, weights_of(MODELS["unet_sd15"]), "diffusion_pytorch_model.safetensors")
    if words is None:
        with pytest.raises(ValueError, match="heads"):
            load_unet(folder)
        return
    with pytest.raises(ValueError, match=words):
        load_unet(folder)


VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"use_linear_projection": True, "attention_head_dim": [2, 4]},  # as Stable Diffusion 2
    "xl": {
        "use_linear_projection": True,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
    },
    "deeper": {"layers_per_block": 2, "block_out_channels": [16, 16, 32], "attention_head_dim": 2}
    | {way + "_block_types": 3 * [f"CrossAttn{way.title()}Block2D"] for way in ("down", "up")},
    "middle": {way + "_block_types": 2 * [f"{way.title()}Block2D"] for way in ("down", "up")},
    "shifted": {"resnet_time_scale_shift": "scale_shift", "norm_eps": 1e-6, "num_class_embeds": 7},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_are_those_of_diffusers(name, tmp_path):
    """Of the networks of Stable Diffusion 2 and XL, small."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = json.loads((MODELS["unet_sd15"] / "config.json").read_text()) | VARIANTS[name]
    torch.manual_seed(0)
    theirs = diffusers.UNet2DConditionModel.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_unet(tmp_path)
    generator = np.random.default_rng(0)
    sample, text = (generator.normal(size=shape).astype(np.float32) for shape in ((2, 4, 8, 8), (2, 5, 24)))
    pooled, numbers = generator.normal(size=(2, 24)).astype(np.float32), np.array([[8, 8, 0, 1, 8, 6]] * 2, np.float32)
    label, more, cond = np.array([1, 6]), {}, {"text": text}
    if name == "xl":
        more = {"added_cond_kwargs": {"text_embeds": torch.tensor(pooled), "time_ids": torch.tensor(numbers)}}
        cond["pooled"] = micro(pooled, numbers, width=8)
    if name == "shifted":
        more, cond = {"class_labels": torch.tensor(label)}, cond | {"label": label}
    with torch.no_grad():
        wanted = theirs(torch.tensor(sample), torch.tensor(7), torch.tensor(text), **more).sample.numpy()
    t = np.full(2, 7, np.float32)
    found = jax.jit(ours.apply)(ours.params, np.moveaxis(sample, 1, -1), t, cond)
    np.testing.assert_allclose(np.moveaxis(np.asarray(found), -1, 1), wanted, **CLOSE)
    assert export(table_of(ours.config), ours.params).keys() == open_tensors(tmp_path).shapes.keys()
