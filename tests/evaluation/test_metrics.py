"""Every metric through one pass, and what a pass keeps."""

import tracemalloc

import numpy as np
import pytest

from diffusion_jax.evaluation.cmmd import clip_score, cmmd
from diffusion_jax.evaluation.fid import fid
from diffusion_jax.evaluation.kid import kid
from diffusion_jax.evaluation.metrics import METRICS, Need, Tally, enough, measure
from diffusion_jax.evaluation.moments import accumulate, empty
from diffusion_jax.evaluation.precision_recall import density_coverage, precision_recall
from diffusion_jax.naming import choose

KEYWORDS = {"fid_infinity": {"least": 80, "points": 5}, "kid": {"size": 40, "subsets": 4}}
DIMENSIONS = {"pool": 8, "spatial": 6, "logits": 5, "clip": 4, "clip_text": 4, "dino": 7}


def build(name):
    return choose(METRICS, {"name": name, **KEYWORDS.get(name, {})}, "metric")


def features(seed, count=120):
    generator = np.random.default_rng(seed)
    return {kind: generator.normal(size=(count, size)).astype(np.float32) for kind, size in DIMENSIONS.items()}


def tallied(metrics, side, data, batch=33):
    tally = Tally(need for metric in metrics for need in getattr(metric, side))
    count = len(next(iter(data.values())))
    for start in range(0, count, batch):
        tally.add({kind: rows[start : start + batch] for kind, rows in data.items()})
    assert tally.count == count
    return tally.held()


@pytest.mark.parametrize("name", METRICS)
def test_batches_do_not_matter_and_a_metric_says_what_it_gives(name):
    metric = build(name)
    assert metric.name == name and metric.better in ("lower", "higher")
    found = [
        measure([metric], tallied([metric], "samples", features(1), batch), tallied([metric], "reference", features(2)))
        for batch in (33, 120, 1)
    ]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-9)
    assert all(np.isfinite(list(found[0].values())))


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"clip_score", "inception_score"}))
def test_the_reference_itself_is_best(name):
    metric = build(name)
    reference = tallied([metric], "reference", features(2))
    own, other = (measure([metric], tallied([metric], "samples", features(seed)), reference) for seed in (2, 1))
    moved = {kind: rows + 1 for kind, rows in features(1).items()}
    far = measure([metric], tallied([metric], "samples", moved), reference)
    key = next(iter(own))
    best = [own[key], other[key], far[key]]
    assert best == sorted(best, reverse=metric.better == "higher")
    assert best[0] != best[2]


def test_all_metrics_come_of_one_pass():
    metrics = [build(name) for name in METRICS]
    x, y = features(1), features(2)
    found = measure(metrics, tallied(metrics, "samples", x), tallied(metrics, "reference", y))
    a, b = (accumulate(empty(8), rows["pool"]) for rows in (x, y))
    assert found["fid"] == pytest.approx(fid(a, b), rel=1e-9)
    assert found["kid"] == kid(x["pool"], y["pool"], size=40, subsets=4).mean
    assert found["cmmd"] == cmmd(x["clip"], y["clip"])
    assert found["clip_score"] == clip_score(x["clip"], x["clip_text"])
    assert (found["precision"], found["recall"]) == precision_recall(x["pool"], y["pool"])
    assert (found["density"], found["coverage"]) == density_coverage(x["pool"], y["pool"])
    assert {"sfid", "fid_infinity", "inception_score", "kid_std", "inception_score_std"} < set(found)


def test_memory_does_not_grow_with_the_samples_of_fid():
    def peak(count):
        tally = Tally(build("fid").samples)
        batch = np.random.default_rng(0).normal(size=(500, 32)).astype(np.float32)
        tracemalloc.start()
        for _ in range(count // 500):
            tally.add({"pool": batch})
        tally.held()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(50_000) < 1.2 * peak(5_000)


def test_other_features_are_metrics_of_their_own():
    metric = choose(METRICS, {"name": "fid", "kind": "clip"}, "metric")
    held = tallied([metric], "samples", features(1)), tallied([metric], "reference", features(2))
    assert set(measure([metric], *held)) == {"fid_clip"}


def test_what_is_missing_is_said():
    kid_metric, fid_metric = build("kid"), build("fid")
    of_moments = tallied([fid_metric], "reference", features(2))
    rows = tallied([kid_metric], "samples", features(1))
    with pytest.raises(ValueError, match="kid needs the features of every image.*only mean and covariance"):
        measure([kid_metric], rows, of_moments)
    with pytest.raises(ValueError, match=r"fid needs moments of 'pool' from the samples, which has pool \(rows\)"):
        measure([fid_metric], rows, of_moments)
    with pytest.raises(ValueError, match="kind clip, and the extractor gives pool"):
        Tally(build("cmmd").samples).add({"pool": np.ones((2, 2))})
    with pytest.raises(ValueError, match=r"different numbers of samples: \[2, 3\]"):
        Tally(build("clip_score").samples).add({"clip": np.ones((2, 2)), "clip_text": np.ones((3, 2))})
    few = tallied([kid_metric], "samples", features(1, 39))
    with pytest.raises(ValueError, match="kid needs 40 or more of the samples; there are 39"):
        measure([kid_metric], few, rows)
    assert Need("pool", "rows") in few


@pytest.mark.parametrize("name", METRICS)
def test_too_few_samples_are_refused_before_they_are_drawn(name):
    metric = build(name)
    enough([metric], metric.least)
    with pytest.raises(ValueError, match=f"{name} needs {metric.least} samples or more; there are {metric.least - 1}"):
        enough([metric], metric.least - 1)
