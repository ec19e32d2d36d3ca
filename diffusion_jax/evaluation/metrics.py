"""Metrics by name, and what each needs, so that one pass over the samples serves all of them.

A metric needs features of some kind, from the samples and perhaps from a reference, in one of two forms: their moments,
whose size does not grow with the number of samples, or the rows themselves. A `Tally` keeps what its metrics need.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.evaluation import cmmd as clip
from diffusion_jax.evaluation import fid as frechet
from diffusion_jax.evaluation import inception_score as score
from diffusion_jax.evaluation import kid as kernel
from diffusion_jax.evaluation import precision_recall as neighbours
from diffusion_jax.evaluation.moments import Moments, accumulate, empty

MOMENTS, ROWS = "moments", "rows"
TOGETHER = 1024  # rows that become moments at once: a small batch costs as much as a large one


class Need(NamedTuple):
    """Features of a kind, as an extractor names it, in the form "moments" or "rows"."""

    kind: str
    form: str


class Metric(NamedTuple):
    """A measure of samples.

    `compute` takes what `samples` and then `reference` name, in their order, and returns numbers by name; `better` is
    "lower" or "higher"; `least` is the number of samples, and of rows of the reference, below which there is none.
    """

    name: str
    samples: tuple[Need, ...]
    reference: tuple[Need, ...]
    compute: Callable[..., dict[str, float]]
    better: str
    least: int


class Tally:
    """What some metrics need of a set of samples, gathered in one pass."""

    def __init__(self, needs: Iterable[Need]) -> None:
        self._rows: dict[Need, list[np.ndarray]] = {need: [] for need in needs}
        self._moments: dict[Need, Moments] = {}
        self.count = 0

    def add(self, features: Mapping[str, Any]) -> None:
        """Take a batch of features by kind; kinds that no metric needs are left."""
        kinds = {need.kind for need in self._rows}
        missing = sorted(kinds - set(features))
        if missing:
            raise ValueError(
                f"metrics need features of the kind {', '.join(missing)}, and the extractor gives "
                f"{', '.join(sorted(features))}. Choose another extractor, or leave the metric out."
            )
        counts = {len(features[kind]) for kind in kinds or features}
        if len(counts) > 1:
            raise ValueError(f"a batch has features of different numbers of samples: {sorted(counts)}.")
        for need, rows in self._rows.items():
            rows.append(np.array(features[need.kind], np.float32 if need.form == ROWS else None))
            if need.form == MOMENTS and sum(map(len, rows)) >= TOGETHER:
                self._gather(need)
        self.count += counts.pop()

    def held(self) -> dict[Need, Any]:
        """Return what was gathered: `Moments`, or rows (n, d) in float32."""
        for need in self._rows:
            if need.form == MOMENTS:
                self._gather(need)
        rows = {need: np.concatenate(rows) for need, rows in self._rows.items() if need.form == ROWS and rows}
        return self._moments | rows

    def _gather(self, need):
        """Turn the rows that wait into moments."""
        if self._rows[need]:
            rows = np.concatenate(self._rows[need])
            self._moments[need] = accumulate(self._moments.get(need) or empty(rows.shape[1]), rows)
            self._rows[need] = []


def measure(metrics: Iterable[Metric], samples: Mapping[Need, Any], reference: Mapping[Need, Any]) -> dict[str, float]:
    """Compute metrics from what a tally of the samples and one of the reference, or a file of it, hold."""
    found: dict[str, float] = {}
    for metric in metrics:
        values = [needed(metric, need, samples, "samples") for need in metric.samples]
        values += [needed(metric, need, reference, "reference") for need in metric.reference]
        found |= metric.compute(*values)
    return found


def needed(metric: Metric, need: Need, held: Mapping[Need, Any], side: str) -> Any:
    """Return what a metric needs of the "samples" or the "reference", or say what is missing."""
    if need in held:
        return _enough_rows(metric, need, held[need], side)
    if need.form == ROWS and Need(need.kind, MOMENTS) in held:
        raise ValueError(
            f"{metric.name} needs the features of every image, and of the {side} there are only mean and covariance "
            f"of '{need.kind}'. Give the {side} as images, or leave the metric out."
        )
    known = ", ".join(sorted({f"{other.kind} ({other.form})" for other in held})) or "nothing"
    raise ValueError(f"{metric.name} needs {need.form} of '{need.kind}' from the {side}, which has {known}.")


def enough(metrics: Iterable[Metric], count: int) -> None:
    """Raise an error if `count` samples are too few for one of the metrics."""
    for metric in metrics:
        if count < metric.least:
            raise ValueError(f"{metric.name} needs {metric.least} samples or more; there are {count}.")


def fid(*, kind: str = "pool") -> Metric:
    """Compare means and covariances: the Frechet distance, which is FID on the Inception's pool."""
    need = (Need(kind, MOMENTS),)
    name = _named("fid", kind)
    return Metric(name, need, need, lambda a, b: {name: frechet.fid(a, b)}, "lower", 2)


def sfid() -> Metric:
    """Compare spatial features: FID that sees where things are (Nash et al. 2021)."""
    return fid(kind="spatial")._replace(name="sfid", compute=lambda a, b: {"sfid": frechet.fid(a, b)})


def fd_dinov2() -> Metric:
    """Compare what DINOv2 sees, which agrees with people better than Inception's features do (Stein et al. 2023)."""
    return fid(kind="dino")._replace(name="fd_dinov2", compute=lambda a, b: {"fd_dinov2": frechet.fid(a, b)})


def fid_infinity(*, kind: str = "pool", points: int = 15, least: int = 5000, seed: int = 0) -> Metric:
    """Extrapolate FID to infinitely many samples (Chong & Forsyth 2020)."""
    name = _named("fid_infinity", kind)

    def compute(rows, reference):
        return {name: frechet.fid_infinity(rows, reference, points=points, least=least, seed=seed)}

    return Metric(name, (Need(kind, ROWS),), (Need(kind, MOMENTS),), compute, "lower", least + 1)


def kid(*, kind: str = "pool", subsets: int = 100, size: int = 1000, seed: int = 2020) -> Metric:
    """Compare all moments up to the third, without bias, over subsets (Binkowski et al. 2018)."""
    name, need = _named("kid", kind), (Need(kind, ROWS),)

    def compute(rows, reference):
        mean, std = kernel.kid(rows, reference, subsets=subsets, size=size, seed=seed)
        return {name: mean, f"{name}_std": std}

    return Metric(name, need, need, compute, "lower", size)


def cmmd(*, kind: str = "clip") -> Metric:
    """Compare CLIP embeddings under a Gaussian kernel (Jayasumana et al. 2024)."""
    need = (Need(kind, ROWS),)
    return Metric("cmmd", need, need, lambda a, b: {"cmmd": clip.cmmd(a, b)}, "lower", 2)


def clip_score(*, images: str = "clip", texts: str = "clip_text") -> Metric:
    """Ask how well images fit their texts (Hessel et al. 2021)."""
    needs = (Need(images, ROWS), Need(texts, ROWS))
    return Metric("clip_score", needs, (), lambda a, b: {"clip_score": clip.clip_score(a, b)}, "higher", 1)


def inception_score(*, kind: str = "logits", splits: int = 10, seed: int | None = 2020) -> Metric:
    """Ask whether images are of something, and together of everything (Salimans et al. 2016)."""

    def compute(logits):
        mean, std = score.inception_score(logits, splits=splits, seed=seed)
        return {"inception_score": mean, "inception_score_std": std}

    return Metric("inception_score", (Need(kind, ROWS),), (), compute, "higher", splits)


def precision_recall(*, kind: str = "pool", k: int = 3) -> Metric:
    """Tell quality from variety (Kynkaanniemi et al. 2019)."""
    need = (Need(kind, ROWS),)
    return Metric(
        "precision_recall", need, need, lambda a, b: neighbours.precision_recall(a, b, k=k)._asdict(), "higher", k + 1
    )


def density_coverage(*, kind: str = "pool", k: int = 5) -> Metric:
    """Tell quality from variety, whatever a few outliers do (Naeem et al. 2020)."""
    need = (Need(kind, ROWS),)
    return Metric(
        "density_coverage", need, need, lambda a, b: neighbours.density_coverage(a, b, k=k)._asdict(), "higher", k + 1
    )


def _named(name, kind):
    return name if kind == "pool" else f"{name}_{kind}"


def _enough_rows(metric, need, value, side):
    count = value.count if isinstance(value, Moments) else len(value) if need.form == ROWS else metric.least
    if count < (metric.least if side == "samples" or need.form == ROWS else 2):
        raise ValueError(f"{metric.name} needs {metric.least} or more of the {side}; there are {count}.")
    return value


METRICS = {
    "fid": fid,
    "sfid": sfid,
    "fd_dinov2": fd_dinov2,
    "fid_infinity": fid_infinity,
    "kid": kid,
    "cmmd": cmmd,
    "clip_score": clip_score,
    "inception_score": inception_score,
    "precision_recall": precision_recall,
    "density_coverage": density_coverage,
}
