"""CLIP from its files, against the numbers of another implementation."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.pretrained.clip import TEXT, VISION, load_clip_text, load_clip_vision
from diffusion_jax.pretrained.rules import convert, export
from diffusion_jax.pretrained.tensors import of_arrays
from tests.pretrained.folders import CLIP_TEXT, REFERENCE, stored, write

CONFIG, WEIGHTS = stored("clip_tiny.npz")
KNOWN = np.load(REFERENCE / "clip_tiny.npz")
CLOSE: Any = {"atol": 2e-5, "rtol": 1e-4}


@functools.cache
def folder() -> Path:
    return write(Path(tempfile.mkdtemp()), CONFIG, WEIGHTS)


@functools.cache
def halves(dtype="float32"):
    """Return both halves, and what they make of the reference's inputs."""
    text, vision = load_clip_text(folder(), dtype=dtype), load_clip_vision(folder(), dtype=dtype)
    found = jax.jit(text.apply)(text.params, KNOWN["in/ids"]), jax.jit(vision.apply)(vision.params, KNOWN["in/images"])
    return text, vision, *found


def test_texts_are_those_of_a_stable_diffusion():
    """Its end of text is the first of its number, its activation is the quick one, and it has no projection."""
    io = np.load(CLIP_TEXT / "io.npz")
    network = load_clip_text(CLIP_TEXT)
    found = jax.jit(network.apply)(network.params, io["in/input_ids"])
    np.testing.assert_allclose(found.tokens, io["out/last_hidden_state"], **CLOSE)
    np.testing.assert_allclose(found.layers[-2], io["out/penultimate"], **CLOSE)
    np.testing.assert_allclose(found.pooled, io["out/pooler_output"], **CLOSE)
    assert found.projected is None and network.config["model_type"] == "clip_text_model"


def test_texts_are_those_of_a_whole_clip():
    _, _, found, _ = halves()
    np.testing.assert_allclose(found.tokens, KNOWN["out/text_tokens"], **CLOSE)
    np.testing.assert_allclose(found.layers[0], KNOWN["out/text_layer"], **CLOSE)
    np.testing.assert_allclose(found.pooled, KNOWN["out/text_pooled"], **CLOSE)
    np.testing.assert_allclose(found.projected, KNOWN["out/text_projected"], **CLOSE)


def test_images_are_those_of_a_whole_clip():
    _, _, _, found = halves()
    np.testing.assert_allclose(found.tokens, KNOWN["out/image_tokens"], **CLOSE)
    np.testing.assert_allclose(found.pooled, KNOWN["out/image_pooled"], **CLOSE)
    np.testing.assert_allclose(found.projected, KNOWN["out/image_projected"], **CLOSE)


@pytest.mark.slow
def test_half_precision_is_near():
    *_, texts, images = halves("bfloat16")
    for found, name in ((texts.projected, "out/text_projected"), (images.projected, "out/image_projected")):
        assert found.dtype == jnp.float32
        assert np.abs(found - KNOWN[name]).max() < 0.05 * np.abs(KNOWN[name]).max()


@pytest.mark.parametrize(("table", "place", "own"), [(TEXT, 0, "text_"), (VISION, 1, "vis")])
def test_import_export_import_is_the_same_bits(table, place, own):
    network = halves()[place]
    out = export(table, network.params)
    assert out.keys() == {name for name in WEIGHTS if name.startswith(own)}
    for name, array in out.items():
        np.testing.assert_array_equal(array, WEIGHTS[name])
    again = convert(table, of_arrays(out, "memory"), network.params)
    jax.tree.map(np.testing.assert_array_equal, network.params, again)


@pytest.mark.parametrize("half", ["text", "vision"])
def test_a_half_alone_is_that_half_of_the_whole(tmp_path, half):
    """With its projection and without, and under names with their prefix or without, as newer versions write."""
    load, place = {"text": (load_clip_text, 0), "vision": (load_clip_vision, 1)}[half]
    projection = {"text": "text_projection.weight", "vision": "visual_projection.weight"}[half]
    whole = halves()[place]
    prefix, kind = f"{half}_model.", f"CLIP{half.title()}Model"
    own = {name: array for name, array in WEIGHTS.items() if name.startswith(prefix)}
    config = CONFIG[f"{half}_config"] | {"projection_dim": 12}
    projects = {**config, "architectures": [f"{kind}WithProjection"]}
    one = load(write(tmp_path / "one", projects, own | {projection: WEIGHTS[projection]}))
    jax.tree.map(np.testing.assert_array_equal, one.params, whole.params)
    rest = {name: leaf for name, leaf in whole.params.items() if name != "projection"}
    bare = {name.removeprefix(prefix): array for name, array in own.items()}
    bare |= {"embeddings.position_ids": np.arange(12)[None]}
    for name, tensors in (("two", own), ("three", bare)):
        alone = load(write(tmp_path / name, {**config, "architectures": [kind]}, tensors))
        assert alone.module.projection == 0
        jax.tree.map(np.testing.assert_array_equal, alone.params, rest)


@pytest.mark.parametrize(
    ("load", "config", "words"),
    [
        (load_clip_text, CONFIG["vision_config"], "load_clip_text: .* is of a 'clip_vision_model'; .* or 'clip'"),
        (load_clip_vision, CONFIG["text_config"], "load_clip_vision: .* is of a 'clip_text_model'"),
        (
            load_clip_text,
            {**CONFIG, "text_config": {**CONFIG["text_config"], "hidden_size": 24}},
            r"is \(16,\) and not \(24,\).* and 31 more",
        ),
        (
            load_clip_text,
            {**CONFIG, "text_config": {**CONFIG["text_config"], "num_hidden_layers": 3}},
            "lacks text_model.encoder.layers.2.layer_norm1.bias",
        ),
        (
            load_clip_vision,
            {**CONFIG, "vision_config": {**CONFIG["vision_config"], "hidden_act": "gelu_new"}},
            "unknown feed of clip_vision 'gelu_new'",
        ),
        (load_clip_vision, {**CONFIG, "projection_dim": 13}, r"'visual_projection.weight' is \(12, 16\) and not"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, load, config, words):
    write(tmp_path / "a", config, WEIGHTS)
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "a")


@pytest.mark.parametrize(("load", "count"), [(load_clip_text, 12 * 16 + 5), (load_clip_vision, 12 * 16 + 8)])
def test_what_a_config_leaves_out_is_as_in_transformers(tmp_path, load, count):
    """Every network has twelve blocks unless its config says otherwise."""
    config = {"model_type": "clip", "text_config": {}, "vision_config_dict": {"patch_size": 16}}
    write(tmp_path, config, {"logit_scale": WEIGHTS["logit_scale"]})
    with pytest.raises(ValueError, match=f"does not hold the {count} tensors"):
        load(tmp_path)


@pytest.mark.slow
def test_a_whole_clip_of_transformers_is_read(tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    both = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 3}
    text = {**both, "vocab_size": 40, "max_position_embeddings": 9, "eos_token_id": 39, "hidden_act": "gelu"}
    vision = {**both, "image_size": 24, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    ids = np.array([[37, 1, 2, 39, 39], [37, 3, 39, 38, 39]], np.int32)
    images = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    with torch.no_grad():
        known = model(torch.tensor(ids).long(), torch.tensor(images).permute(0, 3, 1, 2))
    for load, inputs, expected in (
        (load_clip_text, ids, known.text_embeds),
        (load_clip_vision, images, known.image_embeds),
    ):
        network = load(tmp_path)
        found = jax.jit(network.apply)(network.params, inputs).projected
        found = found / jnp.linalg.norm(found, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected.numpy(), **CLOSE)
