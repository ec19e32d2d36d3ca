"""Matrices that resize an axis by a cubic filter (Keys 1981), and the two conventions that are in use.

    k(x) = (a + 2) |x|^3 - (a + 3) |x|^2 + 1                  for |x| < 1                                       (1)
    k(x) = a |x|^3 - 5 a |x|^2 + 8 a |x| - 4 a                for 1 <= |x| < 2, and 0 beyond

Output pixel i looks at the place c = (i + 1/2) step - 1/2, where a step is the size over the target. PyTorch weighs the
four pixels around c with a = -3/4, taking the last one again beyond the edge; its shrinking aliases. Pillow, PyTorch's
antialias and `jax.image.resize` have a = -1/2, widen (1) by the step where that is above 1, and divide the weights of
the pixels that exist by their sum.
"""

import numpy as np


def four(size: int, target: int, *, step: float | None = None) -> np.ndarray:
    """Return the matrix (target, size) of PyTorch's "bicubic"; a `step` need not fit the sizes exactly."""
    step = size / target if step is None else step
    centre = (np.arange(target) + 0.5) * step - 0.5
    left = np.floor(centre).astype(int)
    matrix = np.zeros((target, size))
    for offset in range(-1, 3):
        weight = cubic(centre - (left + offset), -0.75)
        np.add.at(matrix, (np.arange(target), np.clip(left + offset, 0, size - 1)), weight)
    return matrix


def covered(size: int, target: int, *, step: float | None = None) -> np.ndarray:
    """Return the matrix (target, size) of Pillow's BICUBIC: all pixels that one of the target covers."""
    step = size / target if step is None else step
    reach = max(step, 1.0)
    centre = ((np.arange(target) + 0.5) * step)[:, None]
    # Pillow takes the pixels whose middle is within two (widened) pixels, rounded to whole ones.
    first = np.maximum(np.floor(centre - 2 * reach + 0.5), 0)
    last = np.minimum(np.floor(centre + 2 * reach + 0.5), size)
    pixel = np.arange(size)[None]
    weight = cubic((pixel - centre + 0.5) / reach, -0.5)
    weight = np.where((pixel >= first) & (pixel < last), weight, 0.0)
    return weight / weight.sum(1, keepdims=True)


def cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Eq. (1)."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
