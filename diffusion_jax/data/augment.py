"""Non-leaking augmentation: images are changed, and the network is told how (Karras et al. 2022, Appendix F.2).

An image is mirrored, scaled, turned, stretched and moved, each with a rate of its own, and nine numbers say by how
much; all are 0 for an image as it is, which is what sampling tells, or leaves out:

    mirrored left to right, upside down;   log2 scale / 0.2;   cos - 1 and sin of the turn;
    log2 stretch / 0.2, as a vector at the angle of the stretched axis;   the move right and down, / (size / 8).     (1)

The four changes of shape are one affine map, applied once: with U the upsampling by 2 through an orthonormal wavelet's
filter, so that U^T U = 1, an image x becomes U^T W U x, W reading between the finer pixels linearly. A map that changes
nothing therefore changes no pixel.
"""

import functools

import numpy as np

from diffusion_jax.data.source import BYTES, Info
from diffusion_jax.data.transform import Transform, check_images, check_rate, on_images

NUMBERS = 9
SCALE, STRETCH, MOVE = 0.2, 0.2, 0.125  # standard deviations: of log2 scale and stretch, of the move by the size

# The low-pass filter of the wavelet sym6 (Daubechies 1992), of unit norm at every even shift.
TAPS = np.array([
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
])  # fmt: skip
CENTRE = float(np.arange(len(TAPS)) @ TAPS / TAPS.sum())  # of the filter, where its pixel lies among the finer ones


def augment(info: Info, *, rate: float = 0.12) -> Transform:
    """Change images at random and say how in the entry `augment` (9,), Eq. (1).

    `rate` is that of each change; left and right are always swapped in half of the images.
    """
    check_rate("augment", rate)
    check_images(info, "augment", 2)
    if info.range == BYTES:
        raise ValueError("augment: images are still in uint8, which cannot hold what lies between; put to_unit before.")
    after = info._replace(shapes={**info.shapes, "augment": (NUMBERS,)})

    def apply(example, draw):
        height, width = example["x"].shape[:2]
        told = _drawn(draw, rate)
        matrix, move = affine(told, height, width)
        still = np.array_equal(matrix, np.eye(2)) and not move.any()

        def change(image):
            image = image[:, ::-1] if told[0] else image
            image = image[::-1] if told[1] else image
            return image if still else warped(image, matrix, move)

        return on_images(example, change) | {"augment": told}

    return Transform("augment", after, apply, random=True)


def affine(told: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix and move of the map from a place (x, y) of the new image to that of the old, in pixels.

    Both places are counted from the middle: old = matrix new + move.
    """
    scale, cosine, sine, *stretch = told[2:7].astype(np.float64)
    turn = np.array([[1 + cosine, -sine], [sine, 1 + cosine]])
    matrix = 2.0 ** (-SCALE * scale) * turn
    size = float(np.hypot(*stretch))
    if size:
        axis = np.array(stretch) / size
        along = np.outer(axis, axis)
        factor = 2.0 ** (STRETCH * size)
        matrix = matrix @ (along / factor + (np.eye(2) - along) * factor)
    return matrix, -matrix @ (MOVE * told[7:] * [width, height])


def warped(image: np.ndarray, matrix: np.ndarray, move: np.ndarray) -> np.ndarray:
    """Return U^T W U of an image (height, width, channels), which goes on as in mirrors beyond its borders."""
    height, width = image.shape[:2]
    new = np.stack(np.meshgrid(_places(width), _places(height)), -1)
    columns, rows = np.moveaxis(new @ matrix.T + move + [(width - 1) / 2, (height - 1) / 2], -1, 0)
    ahead, padding = zip(*(_mirrored(places, n) for places, n in ((rows, height), (columns, width))), strict=True)
    padded = np.pad(image.astype(np.float32), (*padding, (0, 0)), "reflect")
    finer = _along(_upsampling(padded.shape[0]), _upsampling(padded.shape[1]), padded)
    read = _between(finer, 2 * (rows + ahead[0]) + CENTRE, 2 * (columns + ahead[1]) + CENTRE)
    return _along(_upsampling(height).T, _upsampling(width).T, read)


def _drawn(draw, rate):
    """Draw the nine numbers of Eq. (1)."""
    happens = draw.random(5) < rate
    coins = draw.random(2) < 0.5
    scale, stretch, *move = draw.standard_normal(4)
    turn, axis = draw.uniform(-np.pi, np.pi, 2)
    axis *= draw.random() < 0.5  # otherwise along the borders
    flips = [coins[0], coins[1] and happens[0]]
    turned = [np.cos(turn) - 1, np.sin(turn)] if happens[2] else [0, 0]
    stretched = [stretch * np.cos(axis), stretch * np.sin(axis)] if happens[3] else [0, 0]
    told = [*flips, scale * happens[1], *turned, *stretched, *(move if happens[4] else [0, 0])]
    return np.asarray(told, np.float32)


@functools.cache
def _upsampling(length):
    """Return U for a row of pixels: (2 length + 10, length)."""
    matrix = np.zeros((2 * length + len(TAPS) - 2, length), np.float32)
    for place in range(length):
        matrix[2 * place : 2 * place + len(TAPS), place] = TAPS
    return matrix


def _along(vertical, horizontal, image):
    """Apply a matrix to the columns of an image and another to its rows."""
    height, width, channels = image.shape
    tall = (vertical @ image.reshape(height, width * channels)).reshape(-1, width, channels)
    return np.matmul(horizontal, tall)


def _mirrored(places, length):
    """Return how far the places reach before a row of pixels, and how many mirrored ones to add at both ends."""
    room = len(TAPS) // 2
    before, after = (
        int(np.clip(np.ceil(far) + room, 0, length - 1)) for far in (-places.min(), places.max() - length + 1)
    )
    return before, (before, after)


def _places(length):
    """Return where the finer pixels lie, in pixels from the middle."""
    return (np.arange(2 * length + len(TAPS) - 2) - CENTRE) / 2 - (length - 1) / 2


def _between(image, rows, columns):
    """Read an image between its pixels, linearly; beyond the border, what is there."""
    height, width = image.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.minimum(rows.astype(int), height - 2), np.minimum(columns.astype(int), width - 2)
    down, right = (part.astype(np.float32)[..., None] for part in (rows - top, columns - left))
    upper = image[top, left] * (1 - right) + image[top, left + 1] * right
    lower = image[top + 1, left] * (1 - right) + image[top + 1, left + 1] * right
    return upper * (1 - down) + lower * down
