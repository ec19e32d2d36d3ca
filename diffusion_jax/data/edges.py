"""The edges of an image (Canny 1986), where its colours change most: what steers a network by outlines.

Sobel's slopes (dx, dy) of each colour; of each pixel those of the colour with the largest |dx| + |dy|, its strength.
A ridge is a pixel stronger than its two neighbours across the edge, in the nearest of four directions. Edges are the
ridges of strength above `high`, and those above `low` that touch an edge, with a side or a corner.
"""

import numpy as np

_FLAT, _STEEP = np.tan(np.pi / 8), np.tan(3 * np.pi / 8)  # between the four directions


def edges_of(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the edges (H, W) of an image (H, W, C) in 0 .. 255, as bools."""
    dx, dy = slopes(image)
    strength = np.abs(dx) + np.abs(dy)
    ridges = ridges_of(dx, dy, strength)
    weak, edges = ridges & (strength > low), ridges & (strength > high)
    while True:
        grown = weak & _touched(edges)
        if (grown == edges).all():
            return edges
        edges = grown


def slopes(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Sobel's slopes along rows and down columns, of the colour that changes most; borders go on as they are."""
    wide = np.pad(image.astype(np.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    across = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    down = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    dx, dy = across[:, 2:] - across[:, :-2], down[2:] - down[:-2]
    most = np.argmax(np.abs(dx) + np.abs(dy), -1)[..., None]
    return np.take_along_axis(dx, most, -1)[..., 0], np.take_along_axis(dy, most, -1)[..., 0]


def ridges_of(dx: np.ndarray, dy: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return which pixels are stronger than the one before them across the edge, and no weaker than the one behind."""
    wide = np.pad(strength, 1)
    near = lambda row, column: wide[1 + row :, 1 + column :][: strength.shape[0], : strength.shape[1]]  # noqa: E731
    flat, steep = np.abs(dy) <= _FLAT * np.abs(dx), np.abs(dy) >= _STEEP * np.abs(dx)
    along = np.where(dx * dy > 0, 1, -1)
    falling, rising = (near(-1, -1), near(1, 1)), (near(-1, 1), near(1, -1))
    pairs = [np.where(along > 0, one, other) for one, other in zip(falling, rising, strict=True)]
    before = np.select([flat, steep], [near(0, -1), near(-1, 0)], pairs[0])
    behind = np.select([flat, steep], [near(0, 1), near(1, 0)], pairs[1])
    return (strength > before) & (strength >= behind)


def _touched(edges):
    """Return the pixels of edges and all about them."""
    wide = np.pad(edges, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]
