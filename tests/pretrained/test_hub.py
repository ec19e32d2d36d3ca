"""Repositories are fetched by their library, found in its cache without it, and else it is said what to do."""

import shutil
import sys
import types
from fnmatch import fnmatch

import jax
import numpy as np
import pytest

from diffusion_jax import trained
from diffusion_jax.cli.main import run
from diffusion_jax.pretrained import hub, load
from tests import pipelines
from tests.pretrained.folders import CLIP_TEXT, family, stored, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def library(tmp_path, monkeypatch):
    """Stand in for huggingface_hub: a folder is the server, and what was fetched is recorded."""
    server, got = tmp_path / "server", tmp_path / "got"
    fetched = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        if not (server / repo_id).is_dir():
            raise OSError(f"404 {repo_id}\nand more")
        for path in (server / repo_id).rglob("*"):
            name = str(path.relative_to(server / repo_id))
            if path.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (got / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, got / name)
                fetched.append((name, revision))
        return str(got)

    stand_in = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stand_in)
    return server, fetched


def names(fetched):
    return {name for name, _ in fetched}


def test_what_is_needed_is_fetched_and_no_more(library):
    server, fetched = library
    shutil.copytree(CLIP_TEXT, server / "some" / "clip")
    for name in ("model.fp16.safetensors", "pytorch_model.bin", "tf_model.h5"):
        (server / "some" / "clip" / name).touch()
    found = load("some/clip", revision="v1")
    jax.tree.map(np.testing.assert_array_equal, found.params, load(CLIP_TEXT).params)
    assert names(fetched) == {"config.json", "model.safetensors"} | {
        path.name for path in CLIP_TEXT.glob("*.json") if path.is_file()
    }
    assert {revision for _, revision in fetched} == {"v1"}


def test_a_repository_becomes_a_run_of_what_it_needs(library, tmp_path, capsys):
    server, fetched = library
    pipelines.stable_diffusion(server / "some" / "pipe")
    family("clip_vision_model", server / "some" / "pipe" / "safety_checker")
    assert run(["import_weights", "--from", "some/pipe", "--to", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    found = trained.load(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, found.params, load("some/pipe", subfolder="unet").params)
    assert found.config.latent.folder == str(tmp_path / "got" / "vae")
    weights = {name for name in names(fetched) if name.endswith(".safetensors")}
    assert {name.split("/")[0] for name in weights} == {"unet", "vae", "text_encoder"}


def test_variants_subfolders_and_old_files_are_fetched(library, monkeypatch):
    server, fetched = library
    config, weights = stored("clip_tiny.npz")
    write(server / "some" / "pipe" / "text", config, weights, "model.fp16.safetensors")
    write(server / "some" / "pipe" / "unet", config, weights)
    load("some/pipe", subfolder="text", variant="fp16")
    assert "text/model.fp16.safetensors" in names(fetched) and "unet/model.safetensors" not in names(fetched)
    write(server / "some" / "old", config, weights)
    (server / "some" / "old" / "model.safetensors").rename(server / "some" / "old" / "pytorch_model.bin")
    monkeypatch.setattr("diffusion_jax.pretrained.tensors.read_weights", lambda path: weights)
    load("some/old")
    assert "pytorch_model.bin" in names(fetched)


def test_the_parts_of_a_pipeline_are_fetched_when_they_are_asked_for(library):
    server, fetched = library
    config, weights = stored("clip_tiny.npz")
    for part in ("one", "two"):
        write(server / "some" / "pipe" / part, config, weights)
    (server / "some" / "pipe" / "model_index.json").write_text('{"one": ["a", "CLIPModel"], "two": ["a", "CLIPModel"]}')
    pipeline = load("some/pipe", revision="main")
    assert not [name for name in names(fetched) if name.endswith(".safetensors")]
    _ = pipeline.parts["two"]
    assert [name for name in names(fetched) if name.endswith(".safetensors")] == ["two/model.safetensors"]


@pytest.mark.parametrize("present", [True, False])
def test_what_was_fetched_once_is_found_without_a_network(library, monkeypatch, cache, present):
    if not present:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    place = cache / "models--some--clip"
    shutil.copytree(CLIP_TEXT, place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    for revision in ("", "main", "abc"):
        assert load("some/clip", revision=revision).config["model_type"] == "clip_text_model"


@pytest.mark.parametrize(
    ("path", "present", "words"),
    [
        ("some/clip", False, r"there is no .*/some/clip, and nothing of .*huggingface_hub is not here\. pip install"),
        (
            "some/clip",
            True,
            r"fetching it failed \(OSError: 404 some/clip\)\. Download https://huggingface.co/some",
        ),
        ("a/b/c", True, "there is no .*/a/b/c, and 'a/b/c' is no name of a repository"),
        ("./some/clip", True, "is no name of a repository"),
        ("/some/clip", True, "there is no /some/clip"),
        ("../clip", True, "is no name of a repository"),
    ],
)
def test_what_is_nowhere_is_said(library, monkeypatch, path, present, words):
    if not present:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=words):
        load(path)


@pytest.mark.parametrize("message", ["", " ", "\n\n"])
def test_errors_that_say_nothing_are_named(library, monkeypatch, message):
    def fails(*_, **__):
        raise OSError(message)

    monkeypatch.setattr(sys.modules["huggingface_hub"], "snapshot_download", fails)
    with pytest.raises(ValueError, match=r"fetching it failed \(OSError: \)"):
        load("some/clip")


def test_a_folder_has_no_revisions():
    with pytest.raises(ValueError, match="has no revision 'v1'"):
        load(CLIP_TEXT, revision="v1")


def test_shards_have_the_names_of_either_peer():
    fits = ("model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors")
    patterns, _ = hub.weights("", "fp16")
    assert all(any(fnmatch(name, pattern) for pattern in patterns) for name in fits)
    assert not any(fnmatch("model-00001-of-00002.safetensors", pattern) for pattern in patterns)
    assert not any(fnmatch("model.fp16.safetensors", pattern) for pattern in hub.weights()[0])
