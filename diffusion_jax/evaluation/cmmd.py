"""CMMD: the discrepancy of normalised CLIP embeddings under a Gaussian kernel (Jayasumana et al. 2024).

    k(x, y) = exp(-|x - y|^2 / (2 s^2)),        s = 10                                                        (1)
    CMMD = 1000 (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),        all pairs, x' = x too                (2)

As published, the pairs of an example with itself are counted, so (2) is never negative and 0 for equal sets, and is too
large by about 1000 (1 - k) / n. Embeddings of other networks than the paper's (CLIP ViT-L/14 at 336 pixels) give other
numbers.
"""

from typing import Any

import numpy as np

SIGMA, SCALE = 10.0, 1000.0
ROWS = 2048  # of each side whose pairs are held at once


def cmmd(embeddings: Any, reference: Any) -> float:
    """Return Eq. (2) of embeddings (n, d) and (m, d), scaled to length 1 here."""
    x, y = _unit(embeddings), _unit(reference)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"cmmd: embeddings have {x.shape[1]} dimensions and the reference's {y.shape[1]}.")
    return SCALE * gaussian_mmd(x, y)


def gaussian_mmd(x: np.ndarray, y: np.ndarray, *, sigma: float = SIGMA) -> float:
    """Return the squared discrepancy over all pairs, Eq. (2) without the factor, of points as they are.

    It sums k - 1, so that the small difference of means near 1 keeps its digits.
    """
    return float(_mean(x, x, sigma) + _mean(y, y, sigma) - 2 * _mean(x, y, sigma))


def clip_score(images: Any, texts: Any) -> float:
    """Return 100 mean max(cos, 0) of the embeddings of images and of their own texts (Hessel et al. 2021).

    Hessel's CLIP-S has the factor 2.5 in place of 100.
    """
    x, y = _unit(images), _unit(texts)
    if x.shape != y.shape:
        raise ValueError(f"clip_score: embeddings are {x.shape} and {y.shape}; there must be one text for each image.")
    return float(100 * np.maximum((x * y).sum(1), 0).mean())


def _mean(x, y, sigma):
    total = 0.0
    for rows in range(0, len(x), ROWS):
        a = np.asarray(x[rows : rows + ROWS], np.float64)
        for columns in range(0, len(y), ROWS):
            b = np.asarray(y[columns : columns + ROWS], np.float64)
            squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
            total += np.expm1(-np.maximum(squares, 0) / (2 * sigma**2)).sum()
    return total / (len(x) * len(y))


def _unit(embeddings):
    x = np.asarray(embeddings, np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"clip embeddings are {x.shape}; they must be (n, d).")
    length = np.linalg.norm(x, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise ValueError("clip embeddings: one is zero or not finite, and has no direction.")
    return x / length
