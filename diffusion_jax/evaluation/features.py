"""From images to the features that metrics compare: one pass of one network serves all of them.

The numbers of a paper come from the weights of 2015 and a resizing, both of which an extractor's name and hash record.
"""

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.evaluation.resize import RESIZES
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import inception as network
from diffusion_jax.pretrained.fetch import fetch
from diffusion_jax.pretrained.weights import fingerprint, read_weights

# The weights of the graph `inception-2015-12-05`, ported to PyTorch; the name ends in the beginning of their sha256.
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"
VARIABLE = "DIFFUSION_JAX_INCEPTION"


class Extractor(NamedTuple):
    """Features of images: `extract` takes uint8 (N, H, W, 3) and returns float32 (N, dimension) for each kind."""

    name: str
    kinds: Mapping[str, int]
    weights_hash: str
    extract: Callable[[np.ndarray], dict[str, np.ndarray]]


def inception(*, weights: str = "", resize: str = "tf1_bilinear", batch: int = 32, dtype: str = "float32") -> Extractor:
    """Extract features with the FID Inception network.

    Its weights are the file `weights`; or that which the environment variable DIFFUSION_JAX_INCEPTION names; or
    pytorch-fid's release, from the cache or else downloaded.
    """
    return _of_network("inception", lambda: read_weights(_found(weights)), resize, batch, dtype)


def inception_random(
    *, seed: int = 0, resize: str = "tf1_bilinear", batch: int = 32, dtype: str = "float32"
) -> Extractor:
    """Extract features with random weights, which need no file; only to be compared with themselves."""
    return _of_network("inception_random", lambda: network.random_weights(seed), resize, batch, dtype)


def pixels(*, side: int = 8) -> Extractor:
    """Take the pixels of images averaged down to `side` x `side`, in [-1, 1]: no network, for small experiments."""
    if side < 1:
        raise ValueError(f"pixels: side is {side}; it must be 1 or more.")

    def extract(images):
        _check("pixels", images)
        rows, columns = (_averaging(size, side) for size in images.shape[1:3])
        small = np.einsum("ih,nhwc,jw->nijc", rows, images / 127.5 - 1, columns, optimize=True)
        return {"pool": small.reshape(len(images), -1).astype(np.float32)}

    return Extractor(f"pixels/{side}", {"pool": side * side * 3}, "", extract)


def _of_network(name, load, resize, batch, dtype):
    rule = choose(RESIZES, resize, "resize")
    compute = lookup(_DTYPES, dtype, "dtype")
    if batch < 1:
        raise ValueError(f"{name}: batch is {batch}; it must be 1 or more.")
    weights = load()
    params = network.fold(weights, compute)
    run = jax.jit(lambda params, images: network.inception(params, rule(images)))

    def extract(images):
        _check(name, images)
        found = []
        for start in range(0, len(images), batch):
            part = images[start : start + batch]
            # The last batch is filled up, so that it is not compiled anew.
            full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), 0)])
            found.append({kind: np.asarray(rows)[: len(part)] for kind, rows in run(params, full).items()})
        return {kind: np.concatenate([rows[kind] for rows in found]) for kind in network.widths()}

    described = f"{name}/{resize}" + ("" if dtype == "float32" else f"/{dtype}")
    return Extractor(described, network.widths(), fingerprint(weights), extract)


_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _found(weights) -> Path:
    """Return the file of weights, from the first place that names one."""
    named = weights or os.environ.get(VARIABLE, "")
    if not named:
        try:
            return fetch(URL, SHA256)
        except ValueError as error:
            raise ValueError(
                f"inception: {error} Or name a file with `weights` or the environment variable {VARIABLE}. "
                "`inception_random` needs no file, and its numbers mean little."
            ) from None
    path = Path(named).expanduser()
    if not path.is_file():
        raise ValueError(f"inception: {'weights' if weights else VARIABLE} names {path}, where there is no file.")
    return path


def _check(name, images):
    if getattr(images, "dtype", None) != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
        raise ValueError(
            f"{name}: images are {getattr(images, 'dtype', type(images))} of shape {np.shape(images)}; they must be "
            "uint8 (N, height, width, 3) with N of 1 or more."
        )


@functools.cache
def _averaging(size, side):
    """Return the matrix (side, size) that averages over equal shares of an axis, parts of pixels too."""
    if size < side:
        raise ValueError(f"pixels: an axis has {size} pixels and side is {side}; take a side of {size} or less.")
    edges = np.linspace(0, size, side + 1)
    overlap = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    return np.maximum(overlap, 0) * side / size


FEATURES = {
    "inception": inception,
    "inception_random": inception_random,
    "pixels": pixels,
}
