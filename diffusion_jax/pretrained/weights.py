"""Files of weights, whatever their format: arrays by name."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from diffusion_jax.files import read_npz, trusted
from diffusion_jax.naming import lookup
from diffusion_jax.pretrained.torch_file import read_torch


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read a file of weights by its ending; see READERS."""
    path = trusted(path, "weights")
    return lookup(READERS, path.suffix.lower(), "format of weights")(path)


def fingerprint(arrays: Mapping[str, Any]) -> str:
    """Return the sha256 of arrays and their names, which is the same in every format."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.name} {np.shape(arrays[name])};".encode())
        total.update(array.view(np.uint8).data if array.ndim else array.tobytes())
    return total.hexdigest()


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read a safetensors file."""
    try:
        return dict(safetensors.numpy.load_file(path))
    except safetensors.SafetensorError as error:
        raise ValueError(f"weights: {path} is not a whole safetensors file: {error}. Download it again.") from None


READERS = {
    ".safetensors": read_safetensors,
    ".npz": partial(read_npz, subject="weights"),
    ".pth": read_torch,
    ".pt": read_torch,
    ".ckpt": read_torch,
    ".bin": read_torch,
}
