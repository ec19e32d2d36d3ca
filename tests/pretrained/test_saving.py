"""What is written is whole, in files of a size, and as the peers write it."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax.pretrained import load, safetensors_file, save
from tests import pipelines
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


MAKERS = ("stable_diffusion", "stable_diffusion_xl", "stable_diffusion_3", "flux", "dit", "ddpm")


@pytest.mark.parametrize("name", MAKERS)
def test_a_pipeline_that_is_read_and_written_and_read_is_the_same_bits(name, tmp_path):
    theirs = getattr(pipelines, name)(tmp_path / "theirs")
    ours = save(load(theirs), tmp_path / "ours")
    one, two = load(theirs), load(ours)
    assert (one.scheduler, one.config, list(one.parts)) == (two.scheduler, two.config, list(two.parts))
    for part in {*one.parts} - {*one.tokenizers}:
        jax.tree.map(np.testing.assert_array_equal, one.parts[part].params, two.parts[part].params)
        assert one.parts[part].config == two.parts[part].config
    for part, folder in one.tokenizers.items():
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert files == {path.name: path.read_bytes() for path in (ours / part).iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_a_part_that_is_not_known_is_said_to_be_left_out(tmp_path):
    theirs = pipelines.stable_diffusion(tmp_path / "theirs")
    (theirs / "safety_checker").mkdir()
    (theirs / "safety_checker" / "config.json").write_text('{"model_type": "clip_checker"}')
    index = json.loads((theirs / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (theirs / "model_index.json").write_text(json.dumps(index))
    ours = save(load(theirs), tmp_path / "ours")
    assert json.loads((ours / "model_index.json").read_text()) == index | {"safety_checker": [None, None]}
    assert not (ours / "safety_checker").exists()


def test_a_pipeline_that_lacks_what_its_index_names_is_refused(tmp_path):
    pipeline = load(pipelines.stable_diffusion(tmp_path / "theirs"))
    for lacking, words in (
        (pipeline._replace(tokenizers={}), "the pipeline has no tokenizer: load it with `tokenizer`"),
        (pipeline._replace(scheduler={}), "predicts the noise or v is not in its file: load it with `prediction`"),
        (pipeline._replace(config={}), "of what kind this pipeline is, is not known: save its parts"),
    ):
        with pytest.raises(ValueError, match=words):
            save(lacking, tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.slow
def test_diffusers_opens_a_pipeline_that_was_written(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = pipelines.stable_diffusion(tmp_path / "theirs")
    ours = save(load(theirs), tmp_path / "ours")
    one, two = (diffusers.StableDiffusionPipeline.from_pretrained(folder) for folder in (theirs, ours))
    assert dict(one.scheduler.config) == dict(two.scheduler.config)
    for part in ("unet", "vae", "text_encoder"):
        old, new = (getattr(pipe, part).state_dict() for pipe in (one, two))
        assert old.keys() == new.keys() and all((old[name] == new[name]).all() for name in old)
    assert one.tokenizer("ab cd").input_ids == two.tokenizer("ab cd").input_ids
