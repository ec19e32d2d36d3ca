"""Pixels: the one rule between bytes and numbers in [-1, 1], and resizing by a named filter.

    u = b / 127.5 - 1,        b = floor(127.5 (u + 1) + 1/2), cut to 0 .. 255                                 (1)

Each byte stands for the middle of its bin, and halves are rounded up. Bytes there and back are the same bytes.
"""

from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.naming import lookup


def to_unit(images: Any) -> np.ndarray:
    """Turn uint8 into float32 in [-1, 1], Eq. (1)."""
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise ValueError(f"to_unit: images are {images.dtype}; they must be uint8.")
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(images: Any) -> np.ndarray:
    """Turn numbers in [-1, 1] into uint8, Eq. (1); what lies outside is cut, what is not finite refused."""
    images = np.asarray(images, np.float32)
    if not np.isfinite(images).all():
        raise ValueError(f"to_uint8: {(~np.isfinite(images)).sum()} of {images.size} values are not finite.")
    return np.clip(np.floor((images + 1) * np.float32(127.5) + np.float32(0.5)), 0, 255).astype(np.uint8)


def resized(image: np.ndarray, size: tuple[int, int], filter: str = "bicubic") -> np.ndarray:
    """Resize (H, W, C) to `size` (height, width); smaller images are averaged over what a pixel covers.

    uint8 stays uint8, by Pillow's arithmetic in 8 bits, as published preprocessing does; other dtypes are resized in
    float32, where nothing is rounded and a filter with negative lobes may overshoot.
    """
    resample = lookup(FILTERS, filter, "filter")()
    if image.shape[:2] == tuple(size):
        return image
    exact = image if image.dtype == np.uint8 else image.astype(np.float32)
    height, width = size
    channels = [Image.fromarray(np.ascontiguousarray(exact[..., c])) for c in range(image.shape[-1])]
    return np.stack([np.asarray(one.resize((width, height), resample)) for one in channels], -1)


FILTERS = {
    "box": lambda: Image.Resampling.BOX,
    "bilinear": lambda: Image.Resampling.BILINEAR,
    "bicubic": lambda: Image.Resampling.BICUBIC,
    "lanczos": lambda: Image.Resampling.LANCZOS,
}
