"""Other people's models that come alone or in one file, as runs."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from diffusion_jax import nets, pretrained
from diffusion_jax.cli.main import run
from diffusion_jax.config import changed
from diffusion_jax.denoisers.network import make_denoiser
from diffusion_jax.denoisers.precondition import precondition
from diffusion_jax.imported import NETWORKS, network_of, read_imported
from diffusion_jax.pretrained import dit
from diffusion_jax.pretrained.tensors import open_tensors
from diffusion_jax.process.schedules import karras
from diffusion_jax.sampler import conditions, make_sampler
from diffusion_jax.trained import load
from tests import pipelines
from tests.pretrained.folders import family
from tests.pretrained.test_dit import spelled
from tests.pretrained.test_edm import KEYWORDS, answered, pickled
from tests.pretrained.test_single_file import fitting
from tests.pretrained.test_snapshot import written
from tests.pretrained.test_weights import plain, write_zip


def network_alone(kind, tmp_path, monkeypatch):
    """Read a network of a kind from the folder or the file that it comes in."""
    if kind == "DiT":
        safetensors.numpy.save_file(spelled(), tmp_path / "dit.safetensors")
        monkeypatch.setitem(dit.SIZES, "tiny", lambda: dit.SIZES["custom"](width=32, depth=2, heads=2))
        return pretrained.load(tmp_path / "dit.safetensors")
    for keywords in KEYWORDS.values():
        if keywords["model_type"] == kind:
            (name,) = (name for name, value in KEYWORDS.items() if value is keywords)
            return pretrained.load(written(tmp_path, pickled(keywords, answered(name)[0].weights)))
    return pretrained.load(family(kind, tmp_path))


@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_the_entry_of_a_network_builds_the_network_that_was_read(kind, tmp_path, monkeypatch):
    found = network_alone(kind, tmp_path, monkeypatch)
    network, _ = network_of(found, kind, "float32")
    whole = NETWORKS[kind].keywords(found.config, kind)
    left = {name: whole[name] for name in whole.keys() - network.spec.keys()}
    assert left.keys() <= {"channels", "out_channels", "num_classes", "text_width", "pooled_width"}
    name, rest = network.spec["name"], {key: value for key, value in network.spec.items() if key != "name"}
    modules = nets.NETWORKS[name](**rest, **left), getattr(found.module, "network", found.module)
    made, read = (re.sub(" at 0x[0-9a-f]+", "", repr(module)) for module in modules)
    assert made == read
    assert network.channels * (1 + network.learned_variance) == whole["out_channels"]


@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_single_file_is_the_run_of_its_folder(ending, tmp_path, capsys):
    file, words = fitting(tmp_path / f"sd.{ending}"), tmp_path / "words"
    pipelines.tokenizer(words)
    pretrained.save(pretrained.load(file, tokenizer=words), tmp_path / "folder")
    asked = {"file": ["--from", str(file), "--tokenizer", str(words)], "whole": ["--from", str(tmp_path / "folder")]}
    drawn = []
    for name, options in asked.items():
        assert run(["import_weights", *options, "--to", str(tmp_path / name)]) == 0, capsys.readouterr().err
        model = load(tmp_path / name)
        model.config.sampling = changed(model.config.sampling, {"captions": ("ab",), "steps": 2, "size": (16, 16)})
        draw = make_sampler(model.config, model.model, model.info)
        told = conditions(model.config, model.model, np.arange(1))
        drawn.append((model.params, draw(model.params, jax.random.key(0), jnp.arange(1), told)))
    jax.tree.map(np.testing.assert_array_equal, *drawn)
    assert drawn[0][1].shape == (1, 16, 16, 3) and np.ptp(drawn[0][1]) > 0.01
    assert sorted(path.name for path in (tmp_path / "file" / "parts").iterdir()) == [
        "model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["song", "ncsnpp"])
def test_a_file_of_edm_is_a_run_on_its_own_path(kind, tmp_path, capsys):
    file = written(tmp_path, pickled(KEYWORDS[kind], answered(kind)[0].weights))
    assert run(["import_weights", "--from", str(file), "--to", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    model, read = load(tmp_path / "run"), pretrained.load(file)
    schedule = karras()
    cond = {"label": jnp.array([3, 5])} if kind == "ncsnpp" else {}
    of = {"prediction": "edm", "cond": cond}
    wanted = make_denoiser(precondition(read.apply, schedule), read.params, schedule, **of)
    of = {"prediction": model.model.prediction, "cond": cond}
    found = make_denoiser(model.model.apply, model.params, model.model.schedule, **of)
    x, t = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32), schedule.time(jnp.zeros(2))
    np.testing.assert_allclose(jax.jit(found)(x, t).x0, jax.jit(wanted)(x, t).x0, atol=1e-5)
    assert model.config.sampling.solver.name == "edm" and model.info.shapes["x"] == (8, 8, 3)
    assert len(model.info.classes) == (5 if cond else 0)
    other = written(tmp_path, pickled(KEYWORDS[kind], answered(kind)[0].weights, precond="VPPrecond"))
    assert run(["import_weights", "--from", str(other), "--to", str(tmp_path / "other")]) == 2
    assert "precond='VPPrecond'; known is 'EDMPrecond'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_file_of_dits_authors_is_a_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(dit.SIZES, "tiny", lambda: dit.SIZES["custom"](width=32, depth=2, heads=2))
    found, storages = plain(spelled())
    write_zip(tmp_path / "dit.pt", found, storages)
    assert run(["import_weights", "--from", str(tmp_path / "dit.pt"), "--to", str(tmp_path / "run")]) == 0
    model = load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, model.params, pretrained.load(tmp_path / "dit.pt").params)
    assert model.config.loss.name == "hybrid" and model.model.told["label"].shape == ()
    assert capsys.readouterr().out.startswith("wrote a run of")


def test_what_a_network_is_kept_in_is_of_it_alone(tmp_path):
    """The parts of a single file stay as exact as they came."""
    file, words = fitting(tmp_path / "sd.safetensors"), tmp_path / "words"
    pipelines.tokenizer(words)
    imported = read_imported(file, parts=tmp_path / "parts", tokenizer=words, dtype="bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(imported.params)} == {"bfloat16"}
    for part in ("vae", "text_encoder", "unet"):
        assert {str(dtype) for dtype in open_tensors(tmp_path / "parts" / part).dtypes.values()} == {"float32"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "the pipeline has no tokenizer"),
        (("--tokenizer", "gone"), "gone, which has no tokenizer"),
        (("--tokenizer", "words", "--prediction", "x0"), "unknown prediction of a single file 'x0'"),
        (("--tokenizer", "words", "--variant", "fp16"), "--variant is of files in folders, and sd.safetensors is"),
        (("--tokenizer", "many"), "tokenizer has 101 tokens, and what reads them knows 100"),
    ],
)
def test_a_file_that_cannot_become_a_run_leaves_nothing(given, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fitting(tmp_path / "sd.safetensors")
    for name in ("words", "many"):
        pipelines.tokenizer(tmp_path / name)
    vocabulary = json.loads((tmp_path / "many" / "vocab.json").read_text())
    (tmp_path / "many" / "vocab.json").write_text(json.dumps(vocabulary | {"more</w>": 100}))
    assert run(["import_weights", "--from", "sd.safetensors", "--to", "run", *given]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "sd.safetensors", "words"]


def test_a_file_of_a_part_of_a_pipeline_is_refused_by_what_it_holds(tmp_path, capsys):
    tensors = safetensors.numpy.load_file(fitting(tmp_path / "sd.safetensors"))
    kept = {name: array for name, array in tensors.items() if not name.startswith("first_stage_model.")}
    safetensors.numpy.save_file(kept, tmp_path / "part.safetensors")
    assert run(["import_weights", "--from", str(tmp_path / "part.safetensors"), "--to", str(tmp_path / "run")]) == 2
    assert "part.safetensors holds unet, text_encoder alone; it takes" in capsys.readouterr().err


def test_where_parts_would_lie_is_left(tmp_path, capsys):
    (tmp_path / "run" / "parts").mkdir(parents=True)
    assert run(["import_weights", "--from", str(tmp_path), "--to", str(tmp_path / "run")]) == 2
    assert "is not empty; give another --to" in capsys.readouterr().err and (tmp_path / "run" / "parts").is_dir()
