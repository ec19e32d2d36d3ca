"""The kernel distance of features: the squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018).

    k(x, y) = (x . y / d + 1)^3                                                                               (1)
    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),       x' other than x and y' other than y         (2)

(2) has no bias for any number of samples, and may be negative. Published figures are the mean and standard deviation of
(2) over random subsets of 1000.
"""

from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.evaluation.moments import ROWS


class Kid(NamedTuple):
    """The mean over subsets and their standard deviation, which is not the mean's error."""

    mean: float
    std: float


def kid(features: Any, reference: Any, *, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Kid:
    """Average Eq. (2) over `subsets` of `size` features, drawn as torch-fidelity does, reference first."""
    features, reference = _alike("kid", features, reference)
    if subsets < 1 or not 2 <= size <= min(len(features), len(reference)):
        raise ValueError(
            f"kid: {subsets} subsets of {size} cannot be drawn from {len(features)} features and {len(reference)} of "
            "the reference; take a size between 2 and the smaller."
        )
    generator = np.random.RandomState(seed)
    found = []
    for _ in range(subsets):
        drawn = (part[generator.choice(len(part), size, replace=False)] for part in (reference, features))
        found.append(unbiased_mmd(*drawn))
    return Kid(float(np.mean(found)), float(np.std(found)))


def unbiased_mmd(features: Any, reference: Any) -> float:
    """Return Eq. (2) of all features, which may differ in number."""
    x, y = _alike("unbiased_mmd", features, reference)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"unbiased_mmd: there are {len(x)} and {len(y)} features; it needs two or more of each.")
    within = sum(_within(part) / (len(part) * (len(part) - 1)) for part in (x, y))
    between = sum(_kernel(rows, columns).sum() for rows in _blocks(x) for columns in _blocks(y))
    return float(within - 2 * between / (len(x) * len(y)))


def _within(x):
    """Sum the kernel over all pairs of two different features."""
    total = 0.0
    for place, rows in enumerate(_blocks(x)):
        own = _kernel(rows, rows)  # a product with itself takes half the time
        total += own.sum() - np.trace(own)
        total += sum(2 * _kernel(rows, columns).sum() for columns in _blocks(x[(place + 1) * ROWS :]))
    return total


def _kernel(rows, columns):
    """Return Eq. (1) for all pairs."""
    k = rows @ columns.T
    k /= rows.shape[1]
    k += 1
    return k * k * k


def _blocks(x):
    """Yield parts of the features in float64."""
    return (x[start : start + ROWS].astype(np.float64) for start in range(0, len(x), ROWS))


def _alike(what, features, reference):
    x, y = np.asarray(features), np.asarray(reference)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"{what}: the features are {x.shape} and {y.shape}; they must be (n, d) and (m, d).")
    return x, y
