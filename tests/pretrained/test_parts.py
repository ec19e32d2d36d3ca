"""A pipeline is its parts, of which none is read before it is asked for, or kept after."""

import gc
import json
import shutil
import weakref

import jax
import numpy as np
import pytest

from diffusion_jax.pretrained import load, safetensors_file
from diffusion_jax.pretrained.parts import TOKENIZERS
from tests.pretrained.folders import REFERENCE, family, tiny_clip

NETWORKS = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "clip_text_model"}


@pytest.fixture
def folder(tmp_path):
    """Write a pipeline as diffusers does, with a part that is not known and one that is not there."""
    for name, kind in NETWORKS.items():
        shutil.copytree(family(kind, tmp_path), tmp_path / "pipe" / name)
    tiny_clip(tmp_path / "pipe" / "tokenizer")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "pipe" / "tokenizer" / name).unlink()
    for name, config in {"scheduler": "scheduler_config.json", "safety_checker": "config.json"}.items():
        (tmp_path / "pipe" / name).mkdir()
        (tmp_path / "pipe" / name / config).write_text(json.dumps({"_class_name": "Other", "beta_start": 0.00085}))
    index = {name: ["diffusers", kind] for name, kind in NETWORKS.items()} | {
        "_class_name": "StableDiffusionPipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "image_encoder": [None, None],
        "requires_safety_checker": True,
    }
    (tmp_path / "pipe" / "model_index.json").write_text(json.dumps(index))
    return tmp_path / "pipe"


def test_parts_are_networks_tokenizers_and_the_config_of_a_scheduler(folder):
    pipeline = load(folder)
    assert set(pipeline.parts) == {*NETWORKS, "tokenizer"} and len(pipeline.parts) == 4
    assert pipeline.scheduler["beta_start"] == 0.00085
    assert pipeline.config["_class_name"] == "StableDiffusionPipeline"
    assert pipeline.parts["tokenizer"](["a b"]).shape == (1, 77)
    found, alone = pipeline.parts["text_encoder"], load(folder, subfolder="text_encoder")
    jax.tree.map(np.testing.assert_array_equal, found.params, alone.params)
    jax.tree.map(np.testing.assert_array_equal, found.params, load(REFERENCE / "models" / "clip_text").params)


def test_parts_are_read_in_the_dtype_that_was_asked_for(folder):
    found = load(folder, dtype="bfloat16").parts["text_encoder"]
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(found.params)} == {"bfloat16"}


def test_nothing_is_read_before_it_is_asked_for_or_kept(folder, monkeypatch):
    read, true = [], safetensors_file.read
    monkeypatch.setattr(
        safetensors_file, "read", lambda path, entry: read.append(path.parent.name) or true(path, entry)
    )
    pipeline = load(folder)
    assert "unet" in pipeline.parts and not read
    leaf = weakref.ref(jax.tree.leaves(pipeline.parts["text_encoder"].params)[0])
    gc.collect()
    assert set(read) == {"text_encoder"} and leaf() is None


def test_parts_that_are_not_known_are_refused_by_name(folder):
    parts = load(folder).parts
    with pytest.raises(KeyError, match="safety_checker is a StableDiffusionSafetyChecker, which is not known here"):
        parts["safety_checker"]
    with pytest.raises(KeyError, match="no part 'unit'; known are .*unet"):
        parts["unit"]
    assert "safety_checker" not in parts and parts.get("unit") is None


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([["a", "b"]], "names no parts of a pipeline"),
        ({"x": []}, r"has x=\[\]; a part is"),
        ({"../x": ["transformers", "CLIPTokenizer"]}, "has a part '../x'; a part is a folder beside"),
    ],
    ids=str,
)
def test_an_index_that_is_damaged_is_refused(tmp_path, index, words):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"load: .*model_index.json {words}"):
        load(tmp_path)


def test_settings_that_are_lists_are_no_parts(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "P", "sizes": [1, 2], "x": [None, None]}))
    assert len(load(tmp_path).parts) == 0


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_are_known_by_their_classes(kind, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"words": ["transformers", kind]}))
    with pytest.raises(ValueError, match=f"{'t5' if kind.startswith('T5') else 'clip'}_tokenizer: .*words has n"):
        load(tmp_path).parts["words"]
