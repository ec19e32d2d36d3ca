"""The Inception score: how sure a classifier is of each image, and how unsure of all (Salimans et al. 2016).

    IS = exp(mean_x KL(p(y | x) || p(y))),        p(y) = mean_x p(y | x)                                      (1)

It is between 1 and the number of classes. Published figures are the mean and standard deviation over 10 parts of the
samples, which must be in random order: classes in a row would each be a part of their own.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np


class InceptionScore(NamedTuple):
    """The mean over parts and their standard deviation."""

    mean: float
    std: float


def inception_score(logits: Any, *, splits: int = 10, seed: int | None = 2020) -> InceptionScore:
    """Return Eq. (1) of logits (n, classes), shuffled as torch-fidelity does; `seed=None` keeps their order."""
    logits = np.asarray(logits)
    if logits.ndim != 2 or not 1 <= splits <= len(logits):
        raise ValueError(
            f"inception_score: logits are {logits.shape} and splits {splits}; it needs (n, classes) and 1 to n splits."
        )
    if seed is not None:
        logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    ends = [part * len(logits) // splits for part in range(splits + 1)]
    scores = [_score(logits[start:end]) for start, end in pairwise(ends)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits):
    logits = logits.astype(np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    p = np.exp(log_p)
    entropies = (p * log_p).sum(1).mean()
    q = p.mean(0)
    return np.exp(entropies - (q[q > 0] * np.log(q[q > 0])).sum())
