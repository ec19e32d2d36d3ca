"""Fidelity and diversity apart: which samples lie among the real ones, and which real ones among the samples.

Around each point a ball reaches to the k-th nearest other point of its own set, B(x). With real x and generated y:

    precision = share of y in some B(x),        recall = share of x in some B(y)                              (1)
    density = mean_y |{x : y in B(x)}| / k,     coverage = share of x with some y in B(x)                     (2)

(1) is Kynkaanniemi et al. 2019, who take k = 3 and equally many of both; (2) is Naeem et al. 2020, who take k = 5. A
point on the edge of a ball is in it, and a point is not its own neighbour, but its copies are.
"""

from typing import Any, NamedTuple

import numpy as np

BLOCK = 2**23  # distances held at once
TIE = 1e-13  # what distances that are equal may differ by, in parts of the squares that they are made of


class PrecisionRecall(NamedTuple):
    """Eq. (1)."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Eq. (2)."""

    density: float
    coverage: float


def precision_recall(features: Any, reference: Any, *, k: int = 3) -> PrecisionRecall:
    """Return Eq. (1) of generated features and real ones."""
    y, x = _prepare("precision_recall", features, reference, k)
    around_x, around_y = _radii(x, k), _radii(y, k)
    inside = np.zeros(len(y), bool)
    found = []
    for start, squares, slack in _distances(x, y):
        rows = slice(start, start + len(squares))
        inside |= (squares <= around_x[rows, None] + slack).any(0)
        found.append((squares <= around_y[None] + slack).any(1))
    return PrecisionRecall(float(inside.mean()), float(np.concatenate(found).mean()))


def density_coverage(features: Any, reference: Any, *, k: int = 5) -> DensityCoverage:
    """Return Eq. (2) of generated features and real ones."""
    y, x = _prepare("density_coverage", features, reference, k)
    radii = _radii(x, k)
    counts = []
    for start, squares, slack in _distances(x, y):
        counts.append((squares <= radii[start : start + len(squares), None] + slack).sum(1))
    members = np.concatenate(counts)
    return DensityCoverage(float(members.sum() / (k * len(y))), float((members > 0).mean()))


def _radii(x, k):
    """Return the squared distance of each point to its k-th nearest other point."""
    radii = []
    for start, squares, _ in _distances(x, x):
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf
        radii.append(np.partition(squares, k - 1, axis=1)[:, k - 1].copy())  # a view would keep the whole block
    return np.concatenate(radii)


def _distances(x, y):
    """Yield blocks of rows of squared distances: (first row, distances, what may be rounding)."""
    norms = (y * y).sum(1)
    rows = max(1, BLOCK // len(y))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        squares = part @ y.T
        squares *= -2
        sums = (part * part).sum(1)[:, None] + norms[None]
        squares += sums
        sums *= TIE
        yield start, np.maximum(squares, 0, out=squares), sums


def _prepare(what, features, reference, k):
    y, x = np.asarray(features), np.asarray(reference)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"{what}: the features are {y.shape} and {x.shape}; they must be (n, d) and (m, d).")
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"{what}: k is {k}, with {len(y)} features and {len(x)} real ones; take 1 <= k < both.")
    centre = x.mean(0, dtype=np.float64)  # distances stay, and keep more of their digits
    return y - centre, x - centre
