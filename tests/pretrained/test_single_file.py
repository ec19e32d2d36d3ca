"""Single files of whole models are the networks of their folders."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.nets.clip import clip_text
from diffusion_jax.nets.network import initialize
from diffusion_jax.nets.t5 import t5
from diffusion_jax.nets.unet import unet
from diffusion_jax.nets.vae import vae
from diffusion_jax.pretrained import load, save
from diffusion_jax.pretrained.clip import TEXT, open_table
from diffusion_jax.pretrained.rules import export
from diffusion_jax.pretrained.single_file import VERSIONS, unet_table
from diffusion_jax.pretrained.t5 import GATED
from diffusion_jax.pretrained.unet import complete, keywords_of, table_of
from diffusion_jax.pretrained.vae import ldm_table
from tests import pipelines
from tests.nets.tiny import stirred
from tests.pretrained.test_transformer_file import network as transformer
from tests.pretrained.test_transformer_file import spelled
from tests.pretrained.test_weights import plain, write_zip

SD = {
    "_class_name": "UNet2DConditionModel",
    "block_out_channels": [64, 128],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "transformer_layers_per_block": [1, 1],
    "cross_attention_dim": 24,
}
KINDS: dict[str, dict[str, Any]] = {
    "1": SD | {"attention_head_dim": 8, "use_linear_projection": False, "in_channels": 9},
    "2": SD | {"attention_head_dim": [1, 2], "use_linear_projection": True},
    "XL": SD
    | {
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 12 + 6 * 256,
    },
}
WORDS: dict[str, Any] = {"vocabulary": 30, "length": 7, "width": 64, "heads": 1, "hidden": 80, "end": 29}


@functools.cache
def network(kind):
    """Return the config of a U-Net of a version, and parameters of which none is zero."""
    config = complete(KINDS[kind], "the test")
    shapes = (1, 2, 2, config["in_channels"]), (1,), (1, 1, 24), (1, 12 + 6 * 256)
    x, t, text, pooled = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    cond = {"text": text} | ({"pooled": pooled} if kind == "XL" else {})
    return config, stirred(initialize(unet(**keywords_of(config, "the test")), jax.random.key(0), (x, t, cond)))


@functools.cache
def reader(depth, projection, feed):
    """Return parameters of a text's network."""
    module = clip_text(**WORDS, depth=depth, projection=projection, feed=feed)
    return stirred(initialize(module, jax.random.key(1), (jax.ShapeDtypeStruct((1, 1), jnp.int32),)))


@functools.cache
def long_reader():
    """Return parameters of a T5."""
    module = t5(vocabulary=30, width=12, depth=2, heads=2, head_width=4, hidden=20, buckets=8)
    return stirred(initialize(module, jax.random.key(3), (jax.ShapeDtypeStruct((1, 1), jnp.int32),)))


def openclip(params, *, left=0):
    """Spell a text's network as OpenCLIP does, with blocks that are left out, and what else lies there."""
    depth = params["blocks"]["norm_1"]["scale"].shape[0]
    out = export(open_table({"num_hidden_layers": depth}), params)
    for name in [name for name in out if ".resblocks.0." in name] * left:
        out[name.replace(".0.", f".{depth}.")] = np.ones_like(out[name])
    return out | {"logit_scale": np.float32(2).reshape(()), "text_projection": out.get("text_projection", np.eye(64))}


def behind(prefix, arrays):
    return {prefix + name: np.asarray(array, np.float32) for name, array in arrays.items()}


@functools.cache
def autoencoder():
    """Return parameters of an autoencoder of two levels."""
    module = vae(widths=(32, 64), depth=1)
    return stirred(initialize(module, jax.random.key(2), (jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32),)))


def whole(kind, path):
    """Write a whole model of a version into a file."""
    if kind == "3":
        tensors = behind("model.diffusion_model.", spelled("3.5 medium"))
    else:
        config, params = network(kind)
        tensors = behind("model.diffusion_model.", export(unet_table(config), params))
    tensors |= behind("model_ema.", {"decay": np.zeros(())})
    tensors |= behind("first_stage_model.", export(ldm_table((32, 64)), autoencoder()))
    openai = export(TEXT, reader(2, 0, "quick_gelu"))
    if kind == "1":
        tensors |= behind("cond_stage_model.transformer.", openai)
    if kind == "2":
        tensors |= behind("cond_stage_model.model.", openclip(reader(2, 0, "gelu"), left=1))
    if kind == "XL":
        tensors |= behind("conditioner.embedders.0.transformer.", openai)
        tensors |= behind("conditioner.embedders.1.model.", openclip(reader(3, 12, "gelu")))
    if kind == "3":
        tensors |= behind("text_encoders.clip_l.transformer.", openai)
        tensors |= behind("text_encoders.clip_g.transformer.", export(TEXT, reader(3, 12, "gelu")))
        tensors |= behind("text_encoders.t5xxl.transformer.", export(GATED, long_reader()))
    safetensors.numpy.save_file(tensors, path)
    return path


def fitting(path):
    """Write a whole model of version 1 whose parts fit each other and the tokenizer of tiny pipelines."""
    config = complete(KINDS["1"] | {"in_channels": 4, "cross_attention_dim": 64}, "the test")
    x, t, text = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2, 2, 4), (1,), (1, 1, 64)))
    network = stirred(initialize(unet(**keywords_of(config, "the test")), jax.random.key(0), (x, t, {"text": text})))
    sizes: dict[str, Any] = WORDS | {"vocabulary": 100, "length": 16, "end": 99}
    words = clip_text(**sizes, depth=1, projection=0, feed="quick_gelu")
    heard = stirred(initialize(words, jax.random.key(1), (jax.ShapeDtypeStruct((1, 1), jnp.int32),)))
    tensors = behind("model.diffusion_model.", export(unet_table(config), network))
    tensors |= behind("first_stage_model.", export(ldm_table((32, 64)), autoencoder()))
    tensors |= behind("cond_stage_model.transformer.", export(TEXT, heard))
    if path.suffix == ".ckpt":
        found, storages = plain(tensors)
        write_zip(path, {"state_dict": found, "global_step": 7}, storages)
    else:
        safetensors.numpy.save_file(tensors, path)
    return path


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_the_pipeline_of_its_networks(kind, tmp_path):
    pipeline = load(whole(kind, tmp_path / "a.safetensors"))
    assert set(pipeline.parts) == {"unet", "vae", "text_encoder"} | ({"text_encoder_2"} if kind == "XL" else set())
    config, params = network(kind)
    found = pipeline.parts["unet"]
    same(found.params, params)
    assert {key: found.config[key] for key in KINDS[kind]} == KINDS[kind]
    assert found.module.network.levels == unet(**keywords_of(config, "the test")).levels
    same(pipeline.parts["text_encoder"].params, reader(2, 0, "gelu" if kind == "2" else "quick_gelu"))
    if kind == "XL":
        text = pipeline.parts["text_encoder_2"]
        same(text.params, reader(3, 12, "gelu"))
        assert text.module.network.shape.feed == "gelu" and text.config["num_attention_heads"] == 1


def test_a_file_of_version_3_has_its_transformer_and_three_readers(tmp_path):
    """A projection that is not in the file is the identity."""
    pipeline = load(whole("3", tmp_path / "a.safetensors"))
    assert set(pipeline.parts) == {"transformer", "vae", *(f"text_encoder{end}" for end in ("", "_2", "_3"))}
    same(pipeline.parts["transformer"].params, transformer("3.5 medium")[1])
    assert pipeline.parts["vae"].config["scaling_factor"] == 1.5305
    assert pipeline.parts["vae"].config["shift_factor"] == 0.0609
    first, second, third = (pipeline.parts[f"text_encoder{end}"] for end in ("", "_2", "_3"))
    kernel = first.params.pop("projection")["kernel"]
    np.testing.assert_array_equal(kernel, np.eye(64))
    same(first.params, reader(2, 0, "quick_gelu"))
    same(second.params, reader(3, 12, "gelu"))
    same(third.params, long_reader())
    assert (first.config["hidden_act"], second.config["hidden_act"]) == ("quick_gelu", "gelu")
    assert (third.config["num_heads"], third.config["d_kv"], third.config["d_ff"]) == (2, 4, 20)
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline predicts eps - x0, and not 'v'"):
        load(tmp_path / "a.safetensors", prediction="v")


def test_a_file_of_version_3_may_be_without_its_longest_reader(tmp_path):
    tensors = safetensors.numpy.load_file(whole("3", tmp_path / "a.safetensors"))
    kept = {name: array for name, array in tensors.items() if "t5xxl" not in name}
    safetensors.numpy.save_file(kept, tmp_path / "b.safetensors")
    pipeline = load(tmp_path / "b.safetensors", tokenizer=tokenizers(tmp_path / "words"))
    again = load(save(pipeline, tmp_path / "saved"))
    assert {*again.parts} == {*pipeline.parts} and "text_encoder_3" not in again.parts
    assert pipeline.config["text_encoder_3"] == pipeline.config["tokenizer_3"] == [None, None]


def test_a_part_of_a_file_is_its_subfolder_and_is_saved_as_a_folder(tmp_path):
    path = whole("XL", tmp_path / "a.safetensors")
    for part in ("unet", "text_encoder_2"):
        found = load(path, subfolder=part)
        again = load(save(found, tmp_path / part))
        same(found.params, again.params)
        assert again.config == found.config
    out = safetensors.numpy.load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    same(out, export(table_of(network("XL")[0]), network("XL")[1]))


def test_latents_have_the_scale_of_the_version(tmp_path):
    for kind, scale in {"1": 0.18215, "XL": 0.13025}.items():
        found = load(whole(kind, tmp_path / f"{kind}.safetensors"), subfolder="vae")
        assert found.config["scaling_factor"] == scale
        same(found.params, autoencoder())


def tokenizers(folder, first="<|endoftext|>", second="a"):
    """Write two tokenizers, which fill rows with these."""
    for name, pad in {"tokenizer": first, "tokenizer_2": second}.items():
        pipelines.tokenizer(folder / name)
        path = folder / name / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": pad}))
    return folder


@pytest.mark.parametrize(
    ("begins", "prediction"),
    [
        ("cond_stage_model.transformer.", ""),
        ("cond_stage_model.transformer.", "v"),
        ("cond_stage_model.model.", "eps"),
        ("cond_stage_model.model.", "v"),
        ("conditioner.embedders.0.transformer.", ""),
        ("text_encoders.clip_l.transformer.", ""),
    ],
)
def test_a_file_with_its_tokenizer_is_saved_as_a_pipeline(begins, prediction, tmp_path):
    kind = dict(zip(VERSIONS, (*KINDS, "3"), strict=True))[begins]
    path, folder = whole(kind, tmp_path / "a.safetensors"), tokenizers(tmp_path / "words")
    pipelines.t5_tokenizer(folder / "tokenizer_3")
    tokenizer = folder if kind in ("XL", "3") else folder / ("tokenizer_2" if kind == "2" else "tokenizer")
    one = load(path, tokenizer=tokenizer, prediction=prediction)
    two = load(save(one, tmp_path / "a"))
    assert {*one.parts} == {*two.parts} and one.config == two.config and one.scheduler == two.scheduler
    name = "transformer" if kind == "3" else "unet"
    if kind != "3":
        assert one.scheduler["prediction_type"] == ("v_prediction" if prediction == "v" else "epsilon")
    sides = {"1": 64, "2": 96 if prediction == "v" else 64, "XL": 128, "3": 128}
    assert one.parts[name].config["sample_size"] == sides[kind]
    for part in {*one.parts} - {*one.tokenizers}:
        same(one.parts[part].params, two.parts[part].params)
        assert one.parts[part].config == two.parts[part].config
    for part in one.tokenizers:
        same(*(pipeline.parts[part](["ab c"]) for pipeline in (one, two)))


def test_what_a_file_does_not_say_is_asked_for(tmp_path):
    words = tokenizers(tmp_path / "words")
    xl, two = (whole(kind, tmp_path / f"{kind}.safetensors") for kind in ("XL", "2"))
    cases: list[tuple[tuple[Path, dict[str, Any]], str]] = [
        ((two, {"tokenizer": words / "tokenizer_2"}), "predicts the noise or v is not in its file"),
        ((two, {"prediction": "v"}), "the pipeline has no tokenizer: load it with"),
        ((two, {"tokenizer": words / "tokenizer"}), "fills rows with the token 99, as the first CLIP does; OpenCLIP"),
        ((two, {"tokenizer": tmp_path / "gone"}), "gone, which has no tokenizer"),
        ((xl, {"tokenizer": words / "tokenizer"}), "has no tokenizer and no tokenizer_2; .*XLPipeline is read by"),
        ((xl, {"prediction": "x0"}), "unknown prediction of a single file 'x0'"),
    ]
    for (path, keywords), message in cases:
        with pytest.raises(ValueError, match=message):
            save(load(path, **keywords), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="is a folder, which says itself"):
        load(pipelines.MODELS / "unet_sd15", prediction="eps")


def test_a_network_alone_in_a_file_is_a_network(tmp_path):
    torch_like = {"x_embedder.proj.weight": np.zeros((8, 4, 2, 2), np.float32)}
    safetensors.numpy.save_file(torch_like, tmp_path / "dit.safetensors")
    with pytest.raises(ValueError, match="lacks pos_embed, .*it is no file of DiT's or SiT's"):
        load(tmp_path / "dit.safetensors")
    with pytest.raises(ValueError, match="is a network alone; neither `tokenizer` nor `prediction`"):
        load(tmp_path / "dit.safetensors", prediction="eps")


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": 0}, "no name in it begins with model.diffusion_model.*load_vae_file"),
        ({"model.diffusion_model.out.2.weight": 0}, "has no U-Net that is known"),
        (
            {"cond_stage_model.model.token_embedding.weight": 0},
            "it lacks positional_embedding, transformer.res",
        ),
    ],
)
def test_files_of_nothing_that_is_known_are_refused(tmp_path, tensors, words):
    arrays = {name: np.zeros((2, 2), np.float32) for name in tensors}
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=words):
        for _ in load(tmp_path / "a.safetensors").parts.values():
            pass


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_spellings_are_those_that_diffusers_knows(kind):
    theirs = pytest.importorskip("diffusers.loaders.single_file_utils")
    config, params = network(kind)
    config = {"class_embed_type": None, "addition_embed_type": None} | config
    tensors = behind("model.diffusion_model.", export(unet_table(config), params))
    found = theirs.convert_ldm_unet_checkpoint(dict(tensors), config=config)
    same(dict(found), export(table_of(config), params))


@pytest.mark.slow
@pytest.mark.parametrize("projection", [0, 64])
def test_the_spelling_of_openclip_is_the_one_that_diffusers_knows(projection):
    theirs, torch = pytest.importorskip("diffusers.loaders.single_file_utils"), pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    params, prefix = reader(3, projection, "gelu"), "conditioner.embedders.1.model."
    out = behind(prefix, export(open_table({"num_hidden_layers": 3}), params))
    sizes = {
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 30,
        "projection_dim": 64,
    }
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes))
    found = theirs.convert_open_clip_checkpoint(model, {key: torch.tensor(x) for key, x in out.items()}, prefix=prefix)
    same({name: tensor.numpy() for name, tensor in found.items()}, export(TEXT, params))
