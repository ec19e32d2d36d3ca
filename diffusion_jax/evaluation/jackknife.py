"""Several metrics of one set of images from one pass over it, with how far chance may have moved each.

The samples are dealt into G groups as they come. With v the value over all of them and v_g that without group g, the
jackknife's standard error (Efron & Stein 1981) is

    s^2 = (G - 1) / G  sum_g (v_g - mean v)^2,        interval = v +- 1.96 s.                                 (1)

It needs no more memory than G groups' moments, however many samples there are. Metrics that need the features of every
sample cost G times as much, and are left without an interval where there are many.

Several sets of samples, each of its own seed, say more. With s the standard deviation of their K values,

    interval = mean +- t_{0.975, K - 1} s / sqrt(K).                                                          (2)
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.metrics import MOMENTS, ROWS, Metric, Need, Tally, enough, measure
from diffusion_jax.evaluation.moments import merge

GROUPS = 10
MOST_ROWS = 5000  # samples up to which metrics of all rows are measured G times more


class Value(NamedTuple):
    """A number, its interval of 95 % or None, whether "lower" or "higher" is better, and its metric of features.

    `method` says how the interval was found.
    """

    value: float
    interval: tuple[float, float] | None
    better: str
    metric: Metric | None = None
    method: str = "none"


class Groups:
    """A tally in groups, dealt by the place of a sample in the whole set."""

    def __init__(self, needs: Iterable[Need], groups: int = GROUPS):
        if groups < 1:
            raise ValueError(f"groups is {groups}; it must be 1 or more.")
        needs = list(dict.fromkeys(needs))
        self._tallies = [Tally(needs) for _ in range(groups)]
        self.count = 0

    def add(self, features: Mapping[str, Any]) -> None:
        """Take a batch of features by kind."""
        size = len(next(iter(features.values())))
        for place, tally in enumerate(self._tallies):
            first = (place - self.count) % len(self._tallies)
            if first < size:
                tally.add({kind: rows[first :: len(self._tallies)] for kind, rows in features.items()})
        self.count += size

    def held(self, *, without: int | None = None) -> dict[Need, Any]:
        """Return what the groups hold together, or all but one of them."""
        parts = [tally.held() for place, tally in enumerate(self._tallies) if place != without and tally.count]
        return {need: _together(need, [part[need] for part in parts]) for need in parts[0]} if parts else {}

    @property
    def filled(self) -> list[int]:
        """Return the places of the groups that have samples."""
        return [place for place, tally in enumerate(self._tallies) if tally.count]


def needs_of(metrics: Iterable[Metric], side: str) -> list[Need]:
    """Return what metrics need of the "samples" or the "reference"."""
    return list(dict.fromkeys(need for metric in metrics for need in getattr(metric, side)))


def gather(
    batches: Iterable[np.ndarray],
    extractor: Extractor,
    needs: Sequence[Need],
    *,
    groups: int = 1,
    told: Callable[[range], Mapping[str, Any]] | None = None,
) -> Groups:
    """Go once through batches of uint8 images and keep what is needed of their features.

    `told` gives features of other things about the images at some places of the row, such as their texts.
    """
    tally = Groups(needs, groups)
    kinds = {need.kind for need in needs}
    for images in batches:
        features = dict(extractor.extract(images))
        if told is not None:
            features |= told(range(tally.count, tally.count + len(images)))
        tally.add({kind: rows for kind, rows in features.items() if kind in kinds})
    return tally


def evaluate_features(samples: Groups, reference: Mapping[Need, Any], metrics: Sequence[Metric]) -> dict[str, Value]:
    """Measure a set of samples against a reference, each value with its interval, Eq. (1)."""
    enough(metrics, samples.count)
    whole = samples.held()
    found = {}
    for metric in metrics:
        values = measure([metric], whole, reference)
        errors = _errors(samples, reference, metric)
        for name, value in values.items():
            error = errors.get(name)
            interval = None if error is None else (value - 1.96 * error, value + 1.96 * error)
            method = "none" if interval is None else f"95 %, jackknife of {len(samples.filled)} groups"
            found[name] = Value(value, interval, metric.better, metric, method)
    return found


def over_seeds(sets: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """Return the values of one set, or the means of several with Student's interval of a mean, Eq. (2)."""
    if len(sets) == 1:
        return dict(sets[0])
    found = {}
    for name, one in sets[0].items():
        values = np.array([values[name].value for values in sets])
        mean, away = float(values.mean()), student(values)
        found[name] = one._replace(
            value=mean, interval=(mean - away, mean + away), method=f"95 %, Student's t over {len(sets)} seeds"
        )
    return found


def student(values: np.ndarray) -> float:
    """Return half the width of the interval of Eq. (2), which holds the mean with a probability of 95 %."""
    n = len(values)
    return float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / n**0.5)


def _errors(samples, reference, metric):
    """Return the jackknife's standard errors by name, where they can be afforded."""
    places = samples.filled
    costly = any(need.form == ROWS for need in metric.samples) and samples.count > MOST_ROWS
    share = samples.count - -(-samples.count // max(len(places), 1))
    if len(places) < 2 or costly or share < metric.least:
        return {}
    warned = logging.getLogger("diffusion_jax.evaluation.fid")
    before, warned.disabled = warned.disabled, True  # of the whole set it has warned already
    try:
        values = [measure([metric], samples.held(without=place), reference) for place in places]
    finally:
        warned.disabled = before
    scale = (len(places) - 1) ** 0.5  # times the standard deviation, of n and not n - 1
    return {name: scale * float(np.std([value[name] for value in values])) for name in values[0]}


def _together(need, parts):
    if need.form == MOMENTS:
        total = parts[0]
        for part in parts[1:]:
            total = merge(total, part)
        return total
    return np.concatenate(parts)
