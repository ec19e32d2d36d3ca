"""Mean and covariance of features, gathered batch by batch in float64.

Two sets with means m_a, m_b and scatters S = sum (x - m)(x - m)^T are together (Chan, Golub & LeVeque 1983)

    m = m_a + (n_b / n) d,        S = S_a + S_b + (n_a n_b / n) d d^T,        d = m_b - m_a                   (1)

so no large number is subtracted from another however far the features are from zero, and the order and the size of
batches do not matter.
"""

from typing import Any, NamedTuple

import numpy as np

ROWS = 4096  # of features held in float64 at once


class Moments(NamedTuple):
    """The count, mean (d,) and scatter (d, d) of a set of features."""

    count: int
    mean: np.ndarray
    scatter: np.ndarray


class Gaussian(NamedTuple):
    """A mean (d,) and covariance (d, d) whose number of samples is not known, as reference files have them."""

    mean: np.ndarray
    covariance: np.ndarray


def empty(dimension: int) -> Moments:
    """Return the moments of no features."""
    return Moments(0, np.zeros(dimension), np.zeros((dimension, dimension)))


def accumulate(moments: Moments, features: Any) -> Moments:
    """Add features (n, d) to the moments."""
    features = np.asarray(features)
    if features.ndim != 2 or features.shape[1] != len(moments.mean):
        raise ValueError(f"moments: features are {features.shape}; they must be (n, {len(moments.mean)}).")
    for start in range(0, len(features), ROWS):
        part = features[start : start + ROWS].astype(np.float64)
        if not np.isfinite(part).all():
            raise ValueError(f"moments: {(~np.isfinite(part)).sum()} of {part.size} features are not finite.")
        mean = part.mean(0)
        part -= mean
        moments = merge(moments, Moments(len(part), mean, part.T @ part))
    return moments


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two sets together, Eq. (1)."""
    count = a.count + b.count
    if not a.count or not b.count:
        return a if a.count else b
    apart = b.mean - a.mean
    scatter = np.multiply.outer(apart, apart * (a.count * b.count / count))
    scatter += a.scatter
    scatter += b.scatter
    return Moments(count, a.mean + apart * (b.count / count), scatter)


def covariance(moments: Moments) -> np.ndarray:
    """Return the unbiased covariance, S / (n - 1)."""
    if moments.count < 2:
        raise ValueError(f"covariance: there are {moments.count} features; a covariance needs two or more.")
    return moments.scatter / (moments.count - 1)
