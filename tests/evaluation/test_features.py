"""Extractors against other implementations, and where weights are looked for."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from diffusion_jax.evaluation import features as module
from diffusion_jax.evaluation import views
from diffusion_jax.evaluation.features import FEATURES, text_embedder
from diffusion_jax.evaluation.fid import fid
from diffusion_jax.evaluation.moments import accumulate, empty
from diffusion_jax.naming import choose
from diffusion_jax.nets.inception import random_weights, widths
from diffusion_jax.pretrained.clip import load_clip_vision
from diffusion_jax.pretrained.dinov2 import load_dinov2
from tests.pretrained.folders import stored, tiny_clip, write

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 16, 24, 3), np.uint8)


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path):
    """Keep this machine's weights and network out of the tests."""
    monkeypatch.setenv("DIFFUSION_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("INCEPTION", "CLIP", "DINOV2"):
        monkeypatch.delenv(f"DIFFUSION_JAX_{name}", raising=False)
    monkeypatch.setattr(module, "URL", (tmp_path / "server" / "weights-12345678.pth").as_uri())


def build(name, weights=None, **keywords) -> Any:
    more = {"weights": str(weights)} if weights else {}
    return choose(FEATURES, {"name": name, **keywords, **more}, "features")


@pytest.fixture(scope="module")
def extractor():
    return build("inception_random", batch=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Write the folders of a tiny CLIP, with a tokenizer, and of a tiny DINOv2."""
    path = tmp_path_factory.mktemp("weights")
    tiny_clip(path / "clip")
    write(path / "dinov2", *stored("dinov2_tiny.npz", "plain/"))
    return path


@pytest.fixture(scope="module")
def vision(folders):
    """Return CLIP's embeddings of what it sees, as a function."""
    network = load_clip_vision(folders / "clip")
    run = jax.jit(lambda seen: network.apply(network.params, seen).projected)
    return lambda seen: np.asarray(run(seen))


@pytest.fixture
def unread(monkeypatch):
    """Note the files of weights that would be read, in place of reading them."""
    names = []
    monkeypatch.setattr(module, "read_weights", lambda path: names.append(Path(path).name) or {})
    monkeypatch.setattr(module.network, "fold", lambda weights, dtype: {})
    return names


def test_the_random_inception_is_that_of_other_implementations(reference, extractor):
    known = reference("inception_random.npz")
    found = extractor.extract(known["32x32/images"])  # three images in batches of two
    for kind, name in (("pool", "2048"), ("logits", "logits_unbiased")):
        expected = known[f"32x32/torch_fidelity/{name}"]
        np.testing.assert_allclose(found[kind], expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())
    alone = extractor.extract(known["32x32/images"][2:])
    for kind in found:
        np.testing.assert_array_equal(alone[kind][0], found[kind][2])


@pytest.mark.slow
@pytest.mark.parametrize("size", ["32x32", "299x299"])
def test_the_rule_of_pytorch_fid_gives_its_features(reference, size):
    known = reference("inception_random.npz")
    found = build("inception_random", resize="half_pixel_bilinear", batch=1).extract(known[f"{size}/images"])
    for kind, name in (("pool", "2048"), ("pool_768", "768"), ("pool_192", "192"), ("pool_64", "64")):
        expected = known[f"{size}/pytorch_fid/{name}"]
        np.testing.assert_allclose(found[kind], expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


def test_an_extractor_says_what_it_is(tmp_path, monkeypatch, extractor):
    monkeypatch.setattr(module.network, "fold", lambda weights, dtype: {})
    weights: Any = random_weights()
    np.savez(tmp_path / "weights.npz", **weights)
    file = build("inception", weights=tmp_path / "weights.npz", resize="clean")
    assert file.name == "inception/clean" and extractor.name == "inception_random/tf1_bilinear"
    assert dict(file.kinds) == widths()
    assert file.weights_hash == extractor.weights_hash != build("inception_random", seed=1).weights_hash


@pytest.mark.parametrize("name", FEATURES)
def test_only_bytes_are_images(unread, extractor, folders, name):
    weights = {"inception": __file__, "clip": folders / "clip", "dinov2": folders / "dinov2"}.get(name)
    one = extractor if name == "inception_random" else build(name, weights=weights)
    for wrong in (IMAGES / 255, IMAGES[0], IMAGES[..., :1], IMAGES[:0], [1]):
        with pytest.raises(ValueError, match=f"{name}: images are .* must be uint8"):
            one.extract(wrong)


def test_pixels_are_averages():
    small = build("pixels", side=8)
    found = small.extract(IMAGES)["pool"]
    blocks = IMAGES.reshape(6, 8, 2, 8, 3, 3).mean((2, 4)) / 127.5 - 1
    np.testing.assert_allclose(found, blocks.reshape(6, -1), atol=1e-6)
    assert small.kinds == {"pool": found.shape[1]}
    odd = build("pixels", side=5).extract(IMAGES)["pool"].reshape(6, 5, 5, 3)
    np.testing.assert_allclose(odd.mean((1, 2)), (IMAGES / 127.5 - 1).mean((1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match="side of 16 or less"):
        build("pixels", side=17).extract(IMAGES)
    own = accumulate(empty(27), build("pixels", side=3).extract(IMAGES)["pool"])
    assert fid(own, own) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("rounding", views.ROUNDINGS)
def test_clip_gives_directions_in_its_space(folders, vision, rounding):
    images = np.random.default_rng(1).integers(0, 256, (3, 30, 40, 3), np.uint8)
    one = build("clip", weights=folders / "clip", batch=2, rounding=rounding)
    found = one.extract(images)
    expected = vision(views.middle(images, 21, views.ROUNDINGS[rounding]()))
    length = np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(found["clip"], expected / length, rtol=1e-4, atol=1e-5)
    assert one.name == f"clip/21/{rounding}" and dict(one.kinds) == {"clip": 12}
    np.testing.assert_array_equal(one.extract(images[2:])["clip"][0], found["clip"][2])


def test_dinov2_gives_class_tokens_of_squares(folders, monkeypatch):
    monkeypatch.setattr(module, "DINO_SIZE", 35)
    images = np.random.default_rng(1).integers(0, 256, (3, 30, 40, 3), np.uint8)
    one = build("dinov2", weights=folders / "dinov2", batch=2)
    network = load_dinov2(folders / "dinov2", positions="original")
    expected = jax.jit(network.apply)(network.params, views.whole(images, 35, views.ROUNDINGS["bytes"]()))
    np.testing.assert_allclose(one.extract(images)["dino"], expected, rtol=1e-4, atol=1e-4)
    assert dict(one.kinds) == {"dino": 16}


def test_weights_are_known_by_their_hash_whatever_their_file(folders, tmp_path):
    config, weights = stored("clip_tiny.npz")
    half: Any = {name: np.asarray(array, np.float16) for name, array in weights.items()}
    whole: Any = {name: np.asarray(array, np.float32) for name, array in half.items()}
    more = {name: array for name, array in whole.items() if not name.startswith("text_model")}
    alike = [write(tmp_path / str(place), config, arrays) for place, arrays in enumerate((half, whole, more))]
    hashes = [build("clip", weights=folder).weights_hash for folder in (folders / "clip", *alike)]
    assert hashes[1] == hashes[2] == hashes[3] != hashes[0]


def test_texts_and_images_point_in_one_space(folders, monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setenv("DIFFUSION_JAX_CLIP", str(folders / "clip"))
    embed = text_embedder(batch=2)
    found = embed(["a b", "A  B", "b a b"])
    assert found.shape == (3, build("clip").kinds["clip"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-2
    for wrong in ("a b", []):
        with pytest.raises(ValueError, match="a list of one text or more"):
            embed(wrong)


@pytest.mark.parametrize(
    ("name", "variable", "published"),
    [
        ("clip", "DIFFUSION_JAX_CLIP", "openai/clip-vit-large-patch14-336"),
        ("dinov2", "DIFFUSION_JAX_DINOV2", "facebook/dinov2-large"),
    ],
)
def test_folders_are_named_by_keyword_or_variable(folders, monkeypatch, name, variable, published):
    with pytest.raises(
        ValueError, match=f"{name}: no weights.*config.json.*model.safetensors.*{published}.*{variable}"
    ):
        build(name)
    monkeypatch.setenv(variable, "/nowhere")
    with pytest.raises(ValueError, match=f"{variable} names /nowhere; it must be a folder.*{published}"):
        build(name)
    with pytest.raises(ValueError, match="weights names /elsewhere"):
        build(name, weights="/elsewhere")
    assert (
        build(name, weights=folders / name).kinds
        == {
            "clip": {"clip": 12},
            "dinov2": {"dino": 16},
        }[name]
    )


def test_networks_without_the_common_space_are_refused(tmp_path):
    config, weights = stored("clip_tiny.npz")
    for half, make in (("vision", lambda folder: build("clip", weights=folder)), ("text", text_embedder)):
        own = {name: array for name, array in weights.items() if name.startswith(f"{half}_model.")}
        folder = write(tmp_path / half, config[f"{half}_config"], own)
        with pytest.raises(ValueError, match="no projection to the space.*take a whole CLIP"):
            make(folder)


def serve(tmp_path, content) -> Path:
    """Put a file where the extractor would download it, and its hash in the name's place."""
    file = tmp_path / "server" / "weights-12345678.pth"
    file.parent.mkdir()
    file.write_bytes(content)
    return file


def test_weights_are_looked_for_by_keyword_then_variable_then_download(tmp_path, monkeypatch, unread):
    file = serve(tmp_path, b"weights")
    monkeypatch.setattr(module, "SHA256", hashlib.sha256(b"weights").hexdigest()[:8])
    for name in ("keyword.npz", "variable.npz"):
        (tmp_path / name).touch()
    build("inception")
    file.unlink()
    build("inception")  # from the cache
    monkeypatch.setenv("DIFFUSION_JAX_INCEPTION", str(tmp_path / "variable.npz"))
    build("inception")
    build("inception", weights=tmp_path / "keyword.npz")
    assert unread == ["weights-12345678.pth", "weights-12345678.pth", "variable.npz", "keyword.npz"]


def test_what_cannot_be_downloaded_is_told_where_to_be_put(tmp_path):
    with pytest.raises(ValueError, match=r"put it at .*cache.weights-12345678.pth.*DIFFUSION_JAX_INCEPTION"):
        build("inception")
    serve(tmp_path, b"a page of a proxy")
    with pytest.raises(ValueError, match=r"not 6726825d; nothing was kept"):
        build("inception")
    assert not list((tmp_path / "cache").iterdir())
    (tmp_path / "cache" / "weights-12345678.pth").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="should begin with 6726825d.*Remove it"):
        build("inception")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "inception", "weights": "/nowhere.pth"}, "weights names /nowhere.pth"),
        ({"name": "inception_random", "resize": "clear"}, "Did you mean 'clean'"),
        ({"name": "inception_random", "dtype": "float23"}, "Did you mean 'float32'"),
        ({"name": "inception_random", "batch": 0}, "batch is 0"),
        ({"name": "pixels", "side": 0}, "side is 0"),
        ({"name": "clip", "rounding": "byte"}, "Did you mean 'bytes'"),
        ({"name": "clip", "batch": 0}, "clip: batch is 0"),
        ({"name": "dinov2", "batch": 0}, "dinov2: batch is 0"),
        ("incepton", "Did you mean 'inception'"),
    ],
)
def test_bad_extractors_are_refused_with_a_reason(spec, words):
    with pytest.raises(ValueError, match=words):
        choose(FEATURES, spec, "features")
