"""Folders of weights are the same network however their tensors lie in files."""

import json
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.pretrained import tensors as module
from diffusion_jax.pretrained.clip import load_clip_text, load_clip_vision
from diffusion_jax.pretrained.tensors import open_tensors, read_config
from tests.pretrained.folders import stored, write

CONFIG, WEIGHTS = stored("clip_tiny.npz")
HALF: Any = {name: np.asarray(array, np.float16) for name, array in WEIGHTS.items()}


def shards(folder, *, ending="safetensors", keep=True):
    """Write the weights into two files and an index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    names = {key: f"model-0000{1 + place % 2}-of-00002.{ending}" for place, key in enumerate(sorted(WEIGHTS))}
    for file in sorted(set(names.values()))[: 2 if keep else 1]:
        safetensors.numpy.save_file({key: WEIGHTS[key] for key in names if names[key] == file}, folder / file)
    (folder / f"model.{ending}.index.json").write_text(json.dumps({"weight_map": names}))
    return folder


def test_shards_and_variants_are_the_same_network(tmp_path):
    one = load_clip_text(write(tmp_path / "one", CONFIG, WEIGHTS)).params
    two = load_clip_text(shards(tmp_path / "two")).params
    jax.tree.map(np.testing.assert_array_equal, one, two)
    folder = write(tmp_path / "half", CONFIG, HALF, "model.fp16.safetensors")
    write(folder, CONFIG, {name: np.asarray(2 * array) for name, array in WEIGHTS.items()})
    half = load_clip_text(folder, variant="fp16").params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(np.float16), b), one, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {np.dtype(np.float32)}


def test_a_file_of_torch_is_read_where_there_are_no_safetensors(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", CONFIG, WEIGHTS)
    one = load_clip_vision(folder).params
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").touch()
    old = {"vision_model.embeddings.position_ids": np.arange(10)[None]}  # as older versions wrote
    monkeypatch.setattr(module, "read_weights", lambda path: WEIGHTS | old if path.suffix == ".bin" else {})
    jax.tree.map(np.testing.assert_array_equal, one, load_clip_vision(folder).params)


def test_tensors_are_read_one_at_a_time(tmp_path):
    found = open_tensors(shards(tmp_path / "two"))
    assert found.shapes == {name: array.shape for name, array in WEIGHTS.items()}
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found.read(name), array)


def test_bfloat16_is_read(tmp_path):
    brain: Any = {"a": np.array([1.5, -3.0], ml_dtypes.bfloat16)}
    found = open_tensors(write(tmp_path, {}, brain)).read("a")
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found.astype(np.float32), [1.5, -3.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder.mkdir(), "has no model.safetensors; of weights it has none"),
        (
            lambda folder: write(folder, CONFIG, WEIGHTS, "model.fp16.safetensors"),
            "it has model.fp16.safetensors.*is the variant 'fp16'",
        ),
        (lambda folder: shards(folder, keep=False), "names model-00002-of-00002.safetensors, where there is no file"),
        (
            lambda folder: (shards(folder) / "model.safetensors.index.json").write_text("[]"),
            "not an index of weights",
        ),
        (
            lambda folder: (shards(folder) / "model.safetensors.index.json").write_text(
                json.dumps({"weight_map": {"a": "../a.safetensors"}})
            ),
            "names ../a.safetensors, where there is no file",
        ),
        (
            lambda folder: (write(folder, CONFIG, WEIGHTS) / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
            "not a whole safetensors file.*Download it again",
        ),
    ],
)
def test_what_is_not_there_is_said(tmp_path, make, words):
    make(tmp_path / "a")
    with pytest.raises(ValueError, match=words):
        open_tensors(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "wanted: there is no .*config.json.*transformers or diffusers writes"),
        ("{", "is not JSON"),
        ("[]", "is of a None; it must be of 'clip' or 'dinov2'"),
        ('{"model_type": "t5"}', "is of a 't5'"),
        ('{"_class_name": "AutoencoderKL"}', "is of a 'AutoencoderKL'"),
    ],
)
def test_configs_that_are_not_the_right_ones_are_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_config(tmp_path, ("clip", "dinov2"), "wanted")
