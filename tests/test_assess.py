"""A run evaluated: the same samples and cards by every way of asking, and mistakes said before work is done."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import samples, trained, truth
from diffusion_jax.cli.main import run as command
from diffusion_jax.data import make_source
from diffusion_jax.evaluation import evaluate
from diffusion_jax.evaluation.card import read_cards
from diffusion_jax.evaluation.cmmd import clip_score
from diffusion_jax.evaluation.features import FEATURES
from diffusion_jax.evaluation.generate import stored
from diffusion_jax.naming import choose
from diffusion_jax.training.logbook import read
from tests.pretrained.folders import tiny_clip
from tests.runs import IMAGES, POINTS, train

SHAPES = {"name": "shapes", "side": 16, "examples": 300}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """References are kept in a folder of this module's own."""
    before = os.environ.get("DIFFUSION_JAX_CACHE")
    os.environ["DIFFUSION_JAX_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["DIFFUSION_JAX_CACHE"]
    if before is not None:
        os.environ["DIFFUSION_JAX_CACHE"] = before


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """A run of images, evaluated once while it was trained."""
    workdir = tmp_path_factory.mktemp("shapes")
    evaluation = ("every=2", "samples=40", "features=pixels", "metrics=('fid','agreement')")
    more = [f"--config.evaluation.{one}" for one in evaluation]
    assert train(workdir, *IMAGES, f"--config.data={SHAPES}", *more) == 0
    return workdir


@pytest.fixture(scope="module")
def points(tmp_path_factory) -> Path:
    """A run of points in the plane."""
    workdir = tmp_path_factory.mktemp("points")
    assert train(workdir, *POINTS) == 0
    return workdir


def test_the_command_the_call_and_the_hook_give_the_same_card(shapes, tmp_path, capsys):
    by_hook = {line["evaluation/fid"] for line in read(shapes) if "evaluation/fid" in line}
    told = ["--metrics", "fid,agreement", "--samples", "40", "--features", "pixels"]
    assert command(["evaluate", "--workdir", str(shapes), *told, "--out", str(tmp_path / "cards.json")]) == 0
    assert "fid" in capsys.readouterr().out
    by_command = read_cards(tmp_path / "cards.json")
    by_call = evaluate(shapes, metrics=("fid", "agreement"), samples=40, features="pixels")
    assert by_hook == {by_call["fid"].value}
    for one, other in zip(by_command, by_call, strict=True):
        assert one.protocol == json.loads(json.dumps(other.protocol)) and one.value == other.value
    low, high = by_call["fid"].interval
    assert low < by_call["fid"].value < high
    assert by_call["fid"].protocol["reference_n"] == 300 and by_call["fid"].samples["evaluations"] == 1
    assert "<table>" in by_call._repr_html_()


def test_every_value_is_a_row_of_the_runs_table(shapes):
    before = len((shapes / "evaluations.jsonl").read_text().splitlines())
    cards = evaluate(shapes, metrics="fid,agreement", samples=20, features="pixels")
    rows = [json.loads(line) for line in (shapes / "evaluations.jsonl").read_text().splitlines()[before:]]
    assert {row["metric"]: row["value"] for row in rows} == cards.values
    assert all(row["n"] == 20 and row["step"] == 2 and row["low"] <= row["value"] <= row["high"] for row in rows)


def test_samples_are_kept_and_more_are_added_to_them(shapes):
    evaluate(shapes, metrics="fid", samples=40, features="pixels")
    (folder,) = (shapes / "generated").iterdir()
    before = {path: path.stat().st_mtime_ns for path in stored(folder).values()}
    evaluate(shapes, metrics="fid", samples=50, features="pixels")
    after = stored(folder)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert sorted(after)[0][0] == 0 and sorted(after)[-1][1] == 50
    edges = [edge for span in sorted(after) for edge in span]
    assert edges[1:-1:2] == edges[2::2]


def test_samples_do_not_depend_on_how_they_are_batched(shapes, tmp_path):
    model: Any = trained.load(shapes)
    whole = np.concatenate(list(samples.kept(model, tmp_path / "whole", 30)))
    config = model.config.copy_and_resolve_references()
    config.sampling.batch_size = 8
    parts = np.concatenate(list(samples.kept(model._replace(config=config), tmp_path / "parts", 30)))
    assert np.abs(whole.astype(int) - parts).max() <= 1 and (whole != parts).mean() < 1e-3


def test_other_sampling_goes_to_another_folder(shapes):
    model: Any = trained.load(shapes)
    config = model.config.copy_and_resolve_references()
    config.sampling.seed = 5
    folders = len(list((shapes / "generated").iterdir()))
    evaluate(shapes, metrics="fid", samples=20, features="pixels", sampling=config.sampling)
    assert len(list((shapes / "generated").iterdir())) == folders + 1


def test_several_seeds_are_as_many_sets_of_samples(shapes):
    asked: dict[str, Any] = {"metrics": "fid,agreement", "samples": 20, "features": "pixels"}
    together = evaluate(shapes, seeds=(1, 2, 5), **asked)
    model: Any = trained.load(shapes)
    alone = []
    for seed in (1, 2, 5):
        config = model.config.copy_and_resolve_references()
        config.sampling.seed = seed
        alone.append(evaluate(shapes, sampling=config.sampling, **asked))
    for metric in ("fid", "agreement"):
        values = [cards[metric].value for cards in alone]
        low, high = together[metric].interval
        np.testing.assert_allclose(together[metric].value, np.mean(values), rtol=1e-12)
        np.testing.assert_allclose((high - low) / 2, 4.302653 * np.std(values, ddof=1) / 3**0.5, rtol=1e-5)
        assert "3 seeds" in together[metric].protocol["interval"]
    assert together["fid"].samples["seed"] == [1, 2, 5] and len({cards["fid"].value for cards in alone}) == 3


@pytest.mark.slow
def test_images_are_asked_how_well_they_fit_their_captions(shapes, tmp_path):
    workdir, letters = tmp_path / "captions", ("a b", "b", "a a")
    assert train(workdir, "captions.py:smoke", *IMAGES[1:], f"--config.sampling.captions={letters}") == 0
    features = {"name": "clip", "weights": str(tiny_clip(tmp_path / "clip")), "batch": 8}
    cards = evaluate(workdir, metrics="clip_score", samples=10, features=features)
    model: Any = trained.load(workdir)
    extractor: Any = choose(FEATURES, features, "features")
    images = np.concatenate(list(samples.kept(model, workdir, 10)))
    texts = extractor.texts["clip_text"]()([letters[place % 3] for place in range(10)])
    expected = clip_score(extractor.extract(images)["clip"], texts)
    np.testing.assert_allclose(cards["clip_score"].value, expected, rtol=1e-6)
    assert cards["clip_score"].samples["captions"] == list(letters)
    with pytest.raises(ValueError, match="this run is told none"):
        evaluate(shapes, metrics="clip_score", samples=10, features=features)
    with pytest.raises(ValueError, match="images alone"):
        evaluate(images=tmp_path, metrics="clip_score", samples=10, features=features)


def test_images_of_a_folder_against_themselves_are_at_no_distance(tmp_path):
    source = make_source(SHAPES)
    for index in range(30):
        Image.fromarray(source[index]["x"]).save(tmp_path / f"{index:03d}.png")
    cards = evaluate(images=tmp_path, reference=tmp_path, metrics="fid,precision_recall", features="pixels", samples=30)
    assert abs(cards["fid"].value) < 1e-6 and cards["precision"].value == cards["recall"].value == 1
    assert cards["fid"].samples["images"] == str(tmp_path)


def test_images_against_the_data_of_a_run(shapes, tmp_path):
    source = make_source(SHAPES)
    np.savez(tmp_path / "all.npz", arr_0=np.stack([source[index]["x"] for index in range(300)]))
    cards = evaluate(images=tmp_path / "all.npz", reference=f"data:{shapes}", metrics="fid", features="pixels")
    assert abs(cards["fid"].value) < 1e-6
    with pytest.raises(ValueError, match="is no run's folder"):
        evaluate(images=tmp_path / "all.npz", reference=f"data:{tmp_path}", features="pixels")


def test_another_run_may_be_the_reference(shapes):
    cards = evaluate(shapes, metrics="fid", samples=40, features="pixels", reference=shapes)
    assert abs(cards["fid"].value) < 1e-6


@pytest.mark.parametrize("metric", sorted(truth.EXACT))
def test_what_is_known_exactly_of_embedded_data(shapes, points, metric):
    folder, other = (shapes, points) if metric == "agreement" else (points, shapes)
    cards = evaluate(folder, metrics=metric, samples=40)
    assert np.isfinite(cards[metric].value)
    with pytest.raises(ValueError, match=f"{metric} is known for models of"):
        evaluate(other, metrics=metric, samples=40)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--metrics", "fdi"], "unknown metric 'fdi'. Did you mean 'fid'"),
        (["--features", "inception_rndom"], "Did you mean 'inception_random'"),
        (["--metrics", "kid", "--features", "pixels", "--samples", "10"], "kid needs 1000 samples"),
        (["--metrics", "sfid", "--features", "pixels"], "features of the kind 'spatial'"),
        (["--reference", "nowhere.npz", "--features", "pixels"], "nowhere.npz is not there"),
        (["--config.lable=3", "--features", "pixels"], "Did you mean 'label'"),
        (["--samples", "many"], "many"),
        (["--seeds", "1,x"], "1,x are no whole numbers"),
        (["--seeds", "1,1", "--features", "pixels"], "seeds are (1, 1); they must differ"),
    ],
)
def test_mistakes_are_said_before_anything_is_drawn(shapes, capsys, more, message):
    before = sorted(shapes.rglob("*"))
    assert command(["evaluate", "--workdir", str(shapes), *more]) == 2
    assert message in capsys.readouterr().err
    assert sorted(shapes.rglob("*")) == before


def test_what_cannot_be_asked(shapes, points, tmp_path, capsys):
    assert command(["evaluate", "--metrics", "fid"]) == 2
    assert "give a run's folder, or images" in capsys.readouterr().err
    assert command(["evaluate", "--workdir", str(points), "--features", "pixels"]) == 2
    assert "features are of images" in capsys.readouterr().err
    assert command(["evaluate", "--workdir", str(tmp_path)]) == 2
    assert "is no run's folder" in capsys.readouterr().err
    assert command(["evaluate", "--images", str(tmp_path), "--features", "pixels"]) == 2
    assert "images need a reference" in capsys.readouterr().err
    with pytest.raises(ValueError, match="agreement of images alone"):
        evaluate(images=tmp_path, metrics="agreement")
