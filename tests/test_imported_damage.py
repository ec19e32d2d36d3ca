"""Other people's folders that are damaged, changed later or written over: one line, and nothing is left or lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax.cli.main import run
from diffusion_jax.imported import read_imported
from diffusion_jax.trained import load
from diffusion_jax.training.checkpoint import Checkpoints
from tests import pipelines

VAE, TEXT, WORDS = "vae/config.json", "text_encoder/config.json", "tokenizer"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("pipeline") / "sd")


def edited(file, **values):
    """Change entries of a file of JSON."""

    def change(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def written(file, text):
    return lambda folder: (folder / file).write_text(text)


def weights(part, change):
    """Change the tensors of a part."""

    def rewrite(folder):
        (path,) = (folder / part).glob("*.safetensors")
        safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)

    return rewrite


def cut(part):
    def shorten(folder):
        (path,) = (folder / part).glob("*.safetensors")
        path.write_bytes(path.read_bytes()[:-100])

    return shorten


def without_first(tensors):
    return dict(list(tensors.items())[1:])


def quantised(tensors):
    return {name: array.astype(np.int8) for name, array in tensors.items()}


def swapped(folder):
    path = folder / WORDS / "vocab.json"
    words = json.loads(path.read_text())
    words["a"], words["b"] = words["b"], words["a"]
    path.write_text(json.dumps(words))


def importing(source: Path, to: Path, capsys: Any) -> tuple[int, str]:
    """Import by the command; return its exit code and what it said, which is one line where it is an error."""
    code = run(["import_weights", "--from", str(source), "--to", str(to)])
    said = capsys.readouterr().err
    assert code == 0 or len(said.splitlines()) == 1
    return code, said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut("vae"), "is not a whole safetensors file"),
        (cut("text_encoder"), "is not a whole safetensors file"),
        (weights("vae", without_first), "does not hold the .* tensors of this network"),
        (weights("text_encoder", without_first), "does not hold the .* tensors of this network"),
        (weights("text_encoder", quantised), "is int8, .* not floating point"),
        (edited(VAE, latent_channels=3), "does not fit its config.json"),
        (edited(VAE, scaling_factor=0), "are no statistics of 4 channels"),
        (edited(VAE, scaling_factor="a"), "cannot be built|could not convert"),
        (edited(VAE, block_out_channels=[]), "block_out_channels|cannot be built"),
        (edited(VAE, block_out_channels=None), "cannot be built .TypeError"),
        (edited(VAE, act_fn=7), "cannot be built|unknown"),
        (edited(TEXT, hidden_act="foo"), "unknown .*'foo'"),
        (edited(TEXT, vocab_size=None), "cannot be built|vocab_size|vocabulary"),
        (edited(TEXT, num_hidden_layers=7), "lacks"),
        (edited(TEXT, max_position_embeddings=77), "does not fit its config.json"),
        (edited(TEXT, max_position_embeddings="x"), "max_position_embeddings='x'; it must be a number of tokens"),
        (edited(TEXT, max_position_embeddings=0), "max_position_embeddings=0; it must be a number of tokens"),
        (edited(TEXT, eos_token_id=50), "ends texts with the token 99, and what reads them looks for 50"),
        (edited("unet/config.json", norm_num_groups=5), r"norm_num_groups=5, which must divide each of .*\["),
        (edited("unet/config.json", block_out_channels=None), "cannot be built .TypeError"),
        (edited("unet/config.json", dropout=[1]), "cannot be built|dropout"),
        (edited("unet/config.json", sample_size=-8), "sample_size is -8; it must be a number of pixels"),
        (edited("unet/config.json", sample_size=True), "sample_size is True; it must be a number of pixels"),
        (edited("unet/config.json", sample_size=7), "does not take images of its own sample_size: .* 7 by 7"),
        (written(f"{WORDS}/vocab.json", "{"), "the tokenizer in .*tokenizer cannot be read"),
        (written(f"{WORDS}/merges.txt", "#version: 0.2\na b c\n"), "the tokenizer in .*tokenizer cannot be read"),
        (written(f"{WORDS}/tokenizer_config.json", "{"), "tokenizer_config.json is not JSON"),
        (written(f"{WORDS}/tokenizer_config.json", '{"pad_token": 5}'), "the tokenizer in .*tokenizer cannot be read"),
        (written("model_index.json", "[" * 100_000), "model_index.json is not JSON"),
        (written("scheduler/scheduler_config.json", '{"_class_name": "Mine"}'), "unknown scheduler"),
    ],
)  # fmt: skip
def test_a_damaged_part_is_refused_before_anything_is_written(source, change, words, tmp_path, capsys):
    folder = tmp_path / "sd"
    shutil.copytree(source, folder)
    change(folder)
    code, said = importing(folder, tmp_path / "run", capsys)
    assert code == 2
    with pytest.raises(ValueError, match=words):
        raise ValueError(said)
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


@pytest.mark.parametrize(
    "text", ['{"weight_map": {"a": 1}}', "null", '{"weight_map": {}}', '{"weight_map": 3}', "\xff"]
)
def test_an_index_of_nothing_is_refused(source, text, tmp_path, capsys):
    folder = tmp_path / "sd"
    shutil.copytree(source, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(text, encoding="latin-1")
    code, said = importing(folder, tmp_path / "run", capsys)
    assert code == 2 and "is not an index of weights" in said


def test_a_folder_that_is_not_empty_is_left_as_it_is(source, tmp_path, capsys):
    to = tmp_path / "mine"
    to.mkdir()
    (to / "data.json").write_text("precious")
    code, said = importing(source, to, capsys)
    assert code == 2 and "is not empty; give another --to" in said
    assert [path.read_text() for path in to.iterdir()] == ["precious"]
    assert "is a file; give another folder" in importing(source, to / "data.json" / "run", capsys)[1]
    assert importing(source, tmp_path / "run", capsys)[0] == 0
    (tmp_path / "run" / "config.json").unlink()  # its checkpoint stays, and would be taken for the new one's
    assert importing(source, tmp_path / "run", capsys)[0] == 2


def test_a_write_that_fails_leaves_nothing_in_the_way(source, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Checkpoints, "save", full)
        with pytest.raises(OSError, match="No space"):
            run(["import_weights", "--from", str(source), "--to", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())
    assert importing(source, tmp_path / "run", capsys)[0] == 0
    assert load(tmp_path / "run").step == 0


@pytest.mark.parametrize(
    "change",
    [swapped, weights("vae", lambda found: {k: 2 * x for k, x in found.items()}), edited(TEXT, note="other")],
    ids=["tokenizer", "autoencoder", "text encoder"],
)
def test_what_changed_beside_a_run_is_seen_before_anything_is_drawn(source, change, tmp_path, capsys, request):
    folder, to = tmp_path / "sd", tmp_path / "run"
    shutil.copytree(source, folder)
    assert importing(folder, to, capsys)[0] == 0
    change(folder)
    assert run(["sample", "--workdir", str(to), "--config.steps=2", "--config.count=1"]) == 2
    said = capsys.readouterr().err
    assert "holds other files than when this run was made" in said and len(said.splitlines()) == 1
    if "autoencoder" in request.node.name:
        asked = ["--workdir", str(to), "--side", "8", "--out", str(tmp_path / "x.npz")]
        assert run(["encode", *asked, "--data", "{'name': 'shapes'}"]) == 2
        assert "holds other files than when this run was made" in capsys.readouterr().err
    assert not (to / "samples").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "there/x"], "--out is there/x, but .*there is a file; give another folder"),
        (["--config.captions=(1, 2)"], "captions and negative are texts; 1 is none"),
        (["--config.seed=99999999999999999999"], "seed is 99999999999999999999; it must be from 0"),
        (["--config.label=5"], "label is 5; this network was told no classes: leave it at -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_is(source, options, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    assert importing(source, tmp_path / "run", capsys)[0] == 0
    assert run(["sample", "--workdir", "run", "--config.steps=2", "--config.count=1", *options]) == 2
    with pytest.raises(ValueError, match=words):
        raise ValueError(capsys.readouterr().err)


def test_no_number_of_the_network_is_read_where_something_beside_it_is_wrong(source, tmp_path, monkeypatch):
    """The largest file is the last to be read."""
    folder = tmp_path / "sd"
    shutil.copytree(source, folder)
    edited(TEXT, num_hidden_layers=7)(folder)
    read = []
    monkeypatch.setattr("diffusion_jax.pretrained.safetensors_file.read", lambda *place: read.append(place))
    with pytest.raises(ValueError, match="lacks"):
        read_imported(folder)
    assert not read
