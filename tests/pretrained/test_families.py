"""One door: every family is read, called by the names of the original, written, and read again."""

import functools
import json
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from diffusion_jax.devices import AXES
from diffusion_jax.pretrained import FAMILIES, load, save
from diffusion_jax.pretrained.families import family_of
from diffusion_jax.pretrained.rules import flat
from diffusion_jax.pretrained.tensors import open_tensors
from tests.pretrained.folders import REFERENCE, family, stored, write

CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}
MODELS = REFERENCE / "models"


@functools.cache
def opened(name):
    return load(MODELS / name)


def nhwc(array):
    return np.moveaxis(np.asarray(array), 1, -1)


def same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.parametrize("name", FAMILIES)
def test_import_export_import_is_the_same_bits_and_names(name, tmp_path):
    folder = family(name, tmp_path / "theirs")
    one = load(folder)
    out = save(one, tmp_path / "ours")
    theirs, ours = open_tensors(folder), open_tensors(out)
    assert theirs.shapes == ours.shapes and theirs.dtypes == ours.dtypes
    for tensor in theirs.shapes:
        np.testing.assert_array_equal(theirs.read(tensor), ours.read(tensor))
    two = load(out)
    same(one.params, two.params)
    assert one.config == two.config
    written, known = (json.loads((place / "config.json").read_text()) for place in (out, folder))
    assert {key: written.get(key) for key in known} == known
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["unet_sd15", pytest.param("unet2d_ddpm", marks=pytest.mark.slow)])
def test_u_nets_are_called_by_the_names_of_diffusers(name):
    io, model = np.load(MODELS / name / "io.npz"), opened(name)
    inputs = {key.removeprefix("in/"): io[key] for key in io.files if key.startswith("in/")}
    inputs["sample"] = nhwc(inputs["sample"])
    found = model(**inputs)
    np.testing.assert_allclose(found, nhwc(io["out/sample"]), **CLOSE)
    same(jax.jit(model.apply)(model.params, *inputs.values()), found)


@pytest.mark.slow
def test_what_a_control_network_returns_goes_into_a_u_net_by_its_name():
    io = np.load(MODELS / "controlnet" / "io.npz")
    inputs = {key.removeprefix("in/"): io[key] for key in io.files if key.startswith("in/")}
    for name in ("sample", "controlnet_cond"):
        inputs[name] = nhwc(inputs[name])
    down, middle = opened("controlnet")(**inputs)
    told = [inputs[name] for name in ("sample", "timestep", "encoder_hidden_states")]
    found = opened("unet_sd15")(*told, down_block_additional_residuals=down, mid_block_additional_residual=middle)
    known = np.load(MODELS / "controlnet" / "unet_sd15_with_control.npz")["out"]
    np.testing.assert_allclose(found, nhwc(known), **CLOSE)


@pytest.mark.slow
def test_a_step_may_be_one_number():
    model = opened("unet2d_ddpm")
    x = np.ones((2, 16, 16, 3), np.float32)
    same(model(x, np.full(2, 7)), model(x, np.int32(7)))


def test_autoencoders_are_called_by_the_names_of_diffusers():
    io, model = np.load(MODELS / "vae_sd" / "io.npz"), opened("vae_sd")
    found = model(x=nhwc(io["in/image"]), method="encode")
    np.testing.assert_allclose(found.mean, nhwc(io["out/mean"]), **CLOSE)
    np.testing.assert_allclose(found.log_variance, nhwc(io["out/logvar"]), **CLOSE)
    np.testing.assert_allclose(model(z=nhwc(io["in/latent"]), method="decode"), nhwc(io["out/decoded"]), **CLOSE)


def test_readers_of_texts_are_called_by_the_names_of_transformers():
    io = np.load(MODELS / "clip_text" / "io.npz")
    found = opened("clip_text")(input_ids=io["in/input_ids"])
    np.testing.assert_allclose(found.last_hidden_state, io["out/last_hidden_state"], **CLOSE)
    np.testing.assert_allclose(found.hidden_states[-2], io["out/penultimate"], **CLOSE)
    np.testing.assert_allclose(found.pooler_output, io["out/pooler_output"], **CLOSE)
    assert len(found.hidden_states) == 4 and found.text_embeds is None
    io = np.load(MODELS / "t5_encoder" / "io.npz")
    found = opened("t5_encoder")(input_ids=io["in/input_ids"], attention_mask=io["in/attention_mask"])
    np.testing.assert_allclose(found, io["out/last_hidden_state"], **CLOSE)


def test_a_whole_clip_is_called_by_the_names_of_transformers(tmp_path):
    io = np.load(REFERENCE / "clip_tiny.npz")
    model = load(family("clip", tmp_path))
    ids, images = io["in/ids"], io["in/images"]
    found = model(input_ids=ids, pixel_values=images, attention_mask=np.ones_like(ids))
    np.testing.assert_allclose(found.text_model_output.text_embeds, io["out/text_projected"], **CLOSE)
    np.testing.assert_allclose(found.vision_model_output.image_embeds, io["out/image_projected"], **CLOSE)
    np.testing.assert_allclose(np.linalg.norm(found.image_embeds, axis=-1), 1, rtol=1e-5)
    cosines = np.asarray(found.text_embeds) @ np.asarray(found.image_embeds).T
    np.testing.assert_allclose(found.logits_per_text, np.exp(model.params["logit_scale"]) * cosines, rtol=1e-4)


def test_parameters_go_where_they_are_put(tmp_path):
    device, seen = jax.devices()[0], {}
    sharding = SingleDeviceSharding(device)
    assert {leaf.sharding for leaf in jax.tree.leaves(load(MODELS / "clip_text", put=sharding).params)} == {sharding}
    mesh = Mesh(np.array([device]).reshape(1, 1, 1), AXES)
    for leaf in jax.tree.leaves(load(MODELS / "clip_text", put=mesh).params):
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec()), leaf.ndim)
    load(MODELS / "clip_text", put=lambda path, array: seen.setdefault(path, array.shape))
    assert seen == {path: leaf.shape for path, leaf in flat(opened("clip_text").params).items()}


def test_half_precision_and_variants_are_cast_on_the_way(tmp_path):
    config, weights = stored("clip_tiny.npz")
    folder = write(tmp_path, config, weights)
    half: Any = {name: array.astype(np.float16) for name, array in weights.items()}
    write(tmp_path, config, half, "model.fp16.safetensors")
    one, two, three = load(folder), load(folder, variant="fp16"), load(folder, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves((one.params, two.params))} == {"float32"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(three.params)} == {"bfloat16"}
    same(jax.tree.map(lambda leaf: np.asarray(leaf).astype(np.float16), one.params), two.params)
    save(three, tmp_path / "brain")
    assert {str(dtype) for dtype in open_tensors(tmp_path / "brain").dtypes.values()} == {"bfloat16"}
    same(load(tmp_path / "brain", dtype="bfloat16").params, three.params)


CONFIG, WEIGHTS = stored("clip_tiny.npz")


def changed(**tensors):
    return {name: array for name, array in {**WEIGHTS, **tensors}.items() if array is not None}


@pytest.mark.parametrize(
    ("config", "weights", "words"),
    [
        ({"model_type": "llama"}, WEIGHTS, "is of a 'llama'; it must be of 'UNet2DModel' or .*'dinov2'"),
        (CONFIG | {"quantization_config": {"load_in_4bit": True}}, WEIGHTS, "quantised; take those of full precision"),
        (CONFIG, changed(logit_scale=None), "lacks logit_scale"),
        (CONFIG, changed(more=np.zeros(2, np.float32)), "has unknown more"),
        (CONFIG, changed(logit_scale=np.zeros(2, np.float32)), r"'logit_scale' is \(2,\) and not \(\)"),
        (CONFIG, changed(logit_scale=np.zeros((), np.int8)), "'logit_scale' is int8, not floating point.*quantised"),
        (CONFIG, changed(**{"a.absmax": np.zeros(2, np.uint8)}), "'a.absmax' is uint8, not floating point.*quantised"),
    ],
)
def test_what_does_not_fit_is_refused_unread(tmp_path, monkeypatch, config, weights, words):
    folder = write(tmp_path, config, weights)
    monkeypatch.setattr("diffusion_jax.pretrained.safetensors_file.read", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(ValueError, match=words):
        load(folder)


def test_families_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match="unknown family of networks 'UNet2DMode'. Did you mean 'UNet2DModel'"):
        family_of({"_class_name": "UNet2DMode"})
    with pytest.raises(ValueError, match="unknown family of networks 'None'"):
        family_of({})


def test_a_folder_that_is_none_is_refused_by_what_it_has(tmp_path):
    family("clip", tmp_path / "text")
    with pytest.raises(ValueError, match="there is no .*config.json; text have one: name one as `subfolder`"):
        load(tmp_path)
    assert load(tmp_path, subfolder="text").config["model_type"] == "clip"
    (tmp_path / "text" / "config.json").unlink()
    with pytest.raises(ValueError, match="load: there is no .*text/config.json. The folder must be one that"):
        load(tmp_path / "text")
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="model.pkl is no pickle, or damaged"):
        load(tmp_path / "model.pkl")
