"""How far two sets of points are from each other, without features."""

from typing import Any

import numpy as np


def sliced_distance(a: Any, b: Any, *, directions: int = 64) -> float:
    """Return the root mean square of the 2-Wasserstein distances along random lines; `a` and `b` are equally many."""
    a, b = (np.asarray(points, np.float64).reshape(len(points), -1) for points in (a, b))
    if a.shape != b.shape:
        raise ValueError(f"sliced_distance: the sets are {a.shape} and {b.shape}; they must be alike.")
    lines = np.random.default_rng(0).normal(size=(a.shape[1], directions))
    lines /= np.linalg.norm(lines, axis=0)
    along_a, along_b = (np.sort(points @ lines, axis=0) for points in (a, b))
    return float(np.sqrt(np.mean((along_a - along_b) ** 2)))
