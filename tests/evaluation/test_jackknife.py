"""Intervals: as wide as chance, whatever the batches, and none where they cannot be had."""

from typing import Any

import numpy as np
import pytest

from diffusion_jax.evaluation.features import pixels
from diffusion_jax.evaluation.jackknife import Groups, Value, evaluate_features, gather, needs_of, over_seeds
from diffusion_jax.evaluation.metrics import METRICS, MOMENTS, Need
from diffusion_jax.evaluation.moments import Gaussian

NEED = Need("pool", MOMENTS)
TRUTH = {NEED: Gaussian(np.zeros(3), np.eye(3))}


def drawn(seed, count=400, shift=1.0):
    return np.random.default_rng(seed).normal(size=(count, 3)) + shift


def tally(rows, *, batch=64, groups=10):
    found = Groups([NEED], groups)
    for start in range(0, len(rows), batch):
        found.add({"pool": rows[start : start + batch]})
    return found


def test_batches_change_neither_the_value_nor_the_interval():
    values: Any = [
        evaluate_features(tally(drawn(0), batch=batch), TRUTH, [METRICS["fid"]()])["fid"] for batch in (1, 37, 400)
    ]
    for value in values[1:]:
        np.testing.assert_allclose(value.value, values[0].value, rtol=1e-10)
        np.testing.assert_allclose(value.interval, values[0].interval, rtol=1e-8)


def test_the_interval_is_as_wide_as_values_of_other_samples_are_spread():
    """Over many sets of samples the mean width of the interval is that of the values' own 95 %."""
    found = [evaluate_features(tally(drawn(seed)), TRUTH, [METRICS["fid"]()])["fid"] for seed in range(60)]
    half = np.mean([(value.interval[1] - value.interval[0]) / 2 for value in found if value.interval])
    assert 0.7 < half / (1.96 * np.std([value.value for value in found])) < 1.4


def test_the_mean_has_its_textbook_error():
    """Of a mean the jackknife over groups is the standard error that statistics books give."""
    rows = drawn(1, count=1000)
    groups = tally(rows)
    means = [groups.held(without=place)[NEED].mean[0] for place in groups.filled]
    error = (len(means) - 1) ** 0.5 * np.std(means)
    assert 0.5 < error / (rows[:, 0].std() / 1000**0.5) < 1.6


def test_the_interval_over_seeds_holds_the_mean_as_often_as_it_says():
    rows = np.random.default_rng(3).normal(2.0, 0.5, (2000, 3))
    found = [over_seeds([{"fid": Value(one, (0.0, 9.0), "lower")} for one in row])["fid"] for row in rows]
    np.testing.assert_allclose([value.value for value in found], rows.mean(1), rtol=1e-12)
    held = np.mean([value.interval[0] < 2 < value.interval[1] for value in found if value.interval])
    assert abs(held - 0.95) < 3 * (0.95 * 0.05 / 2000) ** 0.5
    assert "3 seeds" in found[0].method
    alone = Value(1.0, (0.5, 1.5), "lower")
    assert over_seeds([{"fid": alone}]) == {"fid": alone}


def test_too_few_groups_or_samples_have_no_interval():
    for groups, count in ((1, 100), (10, 2)):
        value = evaluate_features(tally(drawn(2, count), groups=groups), TRUTH, [METRICS["fid"]()])["fid"]
        assert value.interval is None


def test_too_few_samples_are_warned_of_once(caplog):
    rows = np.random.default_rng(0).normal(size=(20, 30))
    side = {NEED: Gaussian(np.zeros(30), np.eye(30))}
    with caplog.at_level("WARNING"):
        evaluate_features(tally(rows), side, [METRICS["fid"]()])
    assert len(caplog.records) == 1 and "kid has no such bias" in caplog.text


def test_one_pass_serves_several_metrics():
    metrics = [METRICS["fid"](), METRICS["precision_recall"]()]
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3)).astype(np.uint8)
    side = gather([images], pixels(side=2), needs_of(metrics, "reference")).held()
    passes = []

    def batches():
        passes.append(1)
        yield from np.split(images, 4)

    found = evaluate_features(gather(batches(), pixels(side=2), needs_of(metrics, "samples"), groups=5), side, metrics)
    assert len(passes) == 1 and set(found) == {"fid", "precision", "recall"}
    assert abs(found["fid"].value) < 1e-6


def test_no_groups_are_refused():
    with pytest.raises(ValueError, match="groups is 0"):
        Groups([NEED], 0)
