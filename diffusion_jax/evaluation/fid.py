"""The Frechet distance of Gaussians, which is FID when they are fitted to features of a network (Heusel et al. 2017).

    f = |m_a - m_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2                                                (1)

With any factors A = F F^T and B = G G^T, the last trace is the sum of the singular values of F^T G. Factors by Cholesky
with pivots are quick, and have as many columns as the covariance has directions, so that sets with fewer samples than
dimensions are exact. Singular values are roots of the eigenvalues of a symmetric product, which is quick too; where
rounding would show under the roots, the small ones are found again in a space without the large ones.

Finite samples add about c / N to f. `fid_infinity` fits that line and returns its end at 1 / N = 0 (Chong & Forsyth
2020).
"""

import logging
from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs

from diffusion_jax.evaluation.moments import Gaussian, Moments, accumulate, covariance, empty

ROUNDING = 1e-9  # what may be lost under the roots, in parts of the distance's traces


def fid(moments: Moments | Gaussian, reference: Moments | Gaussian) -> float:
    """Return Eq. (1) of two sets of features; sFID is the same of spatial features."""
    a, b = _gaussian(moments), _gaussian(reference)
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"fid: the features have {len(a.mean)} dimensions and the reference's {len(b.mean)}; both must come from "
            "the same layer of the same network (pool of Inception has 2048, spatial 2023)."
        )
    for side, name in ((moments, "the samples"), (reference, "the reference")):
        if isinstance(side, Moments) and side.count <= len(side.mean):
            logging.getLogger(__name__).warning(
                "fid: %s number %d in %d dimensions, so their covariance is singular and the distance far too large; "
                "published figures take 50000. kid has no such bias.",
                name,
                side.count,
                len(side.mean),
            )
    return _distance(a, b, _factor(a.covariance, _rank(moments)), _factor(b.covariance, _rank(reference)))


def fid_infinity(
    features: Any, reference: Moments | Gaussian, *, points: int = 15, least: int = 5000, seed: int = 0
) -> float:
    """Extrapolate the distance of features (n, d) to infinitely many, from `points` sizes between `least` and n.

    Each size is a random subset. A bias of the reference stays: it should come from many more samples.
    """
    features = np.asarray(features)
    if points < 2 or not 2 <= least < len(features):
        raise ValueError(
            f"fid_infinity: points is {points}, least {least} and there are {len(features)} features; it needs two or "
            "more points, and 2 <= least < features."
        )
    generator = np.random.default_rng(seed)
    b = _gaussian(reference)
    factor = _factor(b.covariance, _rank(reference))
    sizes = np.unique(np.linspace(least, len(features), points).astype(int))
    found = []
    for size in sizes:
        subset = features[generator.choice(len(features), size, replace=False)]
        moments = accumulate(empty(features.shape[1]), subset)
        a = _gaussian(moments)
        found.append(_distance(a, b, _factor(a.covariance, _rank(moments)), factor))
    return float(np.polyfit(1 / sizes, found, 1)[1])


def _distance(a, b, factor_a, factor_b):
    apart = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(apart @ apart + traces - 2 * _nuclear_norm(factor_a.T @ factor_b, traces))


def _nuclear_norm(product, scale):
    """Return the sum of the singular values, to about ROUNDING of `scale`."""
    if not product.size:
        return 0.0
    if product.shape[0] > product.shape[1]:
        product = product.T
    squares = np.linalg.eigvalsh(product @ product.T)
    roots = np.sqrt(np.maximum(squares, 0))
    # An error e of a square is e / (2 root) of its root, and at most e^(1/2).
    noise = 4 * np.finfo(np.float64).eps * roots[-1] ** 2
    if not noise or np.minimum(noise / np.maximum(2 * roots, noise), noise**0.5).sum() <= ROUNDING * scale:
        return roots.sum()
    squares, vectors = np.linalg.eigh(product @ product.T)
    small = squares < 1e-8 * squares[-1]
    return np.sqrt(squares[~small]).sum() + _nuclear_norm(vectors[:, small].T @ product, scale)


def _factor(matrix, rank):
    """Return F (d, r) with F F^T = `matrix` and r its rank, at most `rank`."""
    (pstrf,) = get_lapack_funcs(("pstrf",), (matrix,))
    lower, pivots, found, status = pstrf(matrix, lower=1)
    if status < 0:
        raise ValueError("fid: the covariance cannot be factored.")
    factor = np.zeros((len(matrix), min(found, rank)))
    factor[pivots - 1] = np.tril(lower)[:, : factor.shape[1]]
    return factor


def _rank(side):
    return min(side.count - 1, len(side.mean)) if isinstance(side, Moments) else len(side.mean)


def _gaussian(side):
    if isinstance(side, Gaussian):
        return Gaussian(np.asarray(side.mean, np.float64), np.asarray(side.covariance, np.float64))
    return Gaussian(side.mean, covariance(side))
