"""What is written is whole, in files of a size, and as the peers write it."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.pretrained import load, safetensors_file, save
from tests.pretrained.folders import CLIP_TEXT


def test_files_have_a_size_and_an_index(tmp_path):
    model = load(CLIP_TEXT)
    folder = save(model, tmp_path / "a", most=10_000)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 3
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    for name in files:
        held = safetensors_file.entries(folder / name)
        assert held.keys() == {key for key, file in index["weight_map"].items() if file == name}
        size = sum(entry.dtype.itemsize * int(np.prod(entry.shape)) for entry in held.values())
        assert size <= 10_000 or len(held) == 1
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    jax.tree.map(np.testing.assert_array_equal, load(folder).params, model.params)


def test_a_folder_is_there_when_it_is_whole(tmp_path, monkeypatch):
    model = load(CLIP_TEXT)
    with monkeypatch.context() as broken:
        broken.setattr(safetensors_file, "write", lambda *_: (_ for _ in ()).throw(OSError("no space")))
        with pytest.raises(OSError, match="no space"):
            save(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    save(model, tmp_path / "a")
    with pytest.raises(ValueError, match="there is something at .*a; name a new folder"):
        save(model, tmp_path / "a")
    with pytest.raises(ValueError, match="a file has 1 byte or more"):
        save(model, tmp_path / "b", most=0)


def test_the_header_says_whose_it_is(tmp_path):
    """Transformers reads no file without it."""
    path = save(load(CLIP_TEXT), tmp_path / "a") / "model.safetensors"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        assert json.loads(file.read(length))["__metadata__"] == {"format": "pt"} and length % 8 == 0
