"""From images to the features that metrics compare: one pass of one network serves all of them.

The numbers of a paper come of certain weights and a certain resizing, which an extractor's name and hash record: FID of
the Inception of 2015, CMMD and CLIP score of a CLIP, FD-DINOv2 of DINOv2.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.devices import layout
from diffusion_jax.evaluation import views
from diffusion_jax.evaluation.resize import RESIZES
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets import inception as network
from diffusion_jax.pretrained.clip import load_clip_text, load_clip_vision
from diffusion_jax.pretrained.dinov2 import load_dinov2
from diffusion_jax.pretrained.fetch import fetch
from diffusion_jax.pretrained.rules import flat
from diffusion_jax.pretrained.tokenizer import clip_tokenizer
from diffusion_jax.pretrained.weights import fingerprint, read_weights

# The weights of the graph `inception-2015-12-05`, ported to PyTorch; the name ends in the beginning of their sha256.
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d"
VARIABLE = "DIFFUSION_JAX_INCEPTION"

# Where folders of weights are looked for, and which ones published numbers come of.
CLIP = ("DIFFUSION_JAX_CLIP", "huggingface.co/openai/clip-vit-large-patch14-336 (that of CMMD)")
DINOV2 = ("DIFFUSION_JAX_DINOV2", "huggingface.co/facebook/dinov2-large (that of FD-DINOv2)")


class Extractor(NamedTuple):
    """Features of images: `extract` takes uint8 (N, H, W, 3) and returns float32 (N, dimension) for each kind.

    `texts` loads, for each kind, what embeds texts in the same space: a function from texts to float32 (N, dimension).
    """

    name: str
    kinds: Mapping[str, int]
    weights_hash: str
    extract: Callable[[np.ndarray], dict[str, np.ndarray]]
    texts: Mapping[str, Callable[[], Callable[[Sequence[str]], np.ndarray]]] = {}


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


def clip(*, weights: str = "", rounding: str = "bytes", batch: int = 32, dtype: str = "float32") -> Extractor:
    """Embed images with CLIP, in its common space and of length 1: kind "clip", and texts, "clip_text".

    Its weights are the folder `weights`, or that which the environment variable DIFFUSION_JAX_CLIP names. Images are
    prepared as for CLIP, with `rounding` "bytes" in their resizing; or "none", as in CMMD's original code.
    """
    resize = choose(views.ROUNDINGS, rounding, "rounding")
    _check_batch("clip", batch)
    folder = _folder("clip", weights, *CLIP)
    network = load_clip_vision(folder, dtype=dtype)
    _check_projection("clip", network)
    size = network.module.size

    def embed(params, images):
        return {"clip": _unit(network.apply(params, views.middle(images, size, resize)).projected)}

    kinds = {"clip": network.module.projection}
    found = _of_pretrained(f"clip/{size}/{rounding}{_suffix(dtype)}", network.params, embed, kinds, batch)
    return found._replace(texts={"clip_text": lambda: text_embedder(folder, batch=batch, dtype=dtype)})


def dinov2(*, weights: str = "", batch: int = 32, dtype: str = "float32") -> Extractor:
    """Describe images by DINOv2's class token, as FD-DINOv2 does (Stein et al. 2023): kind "dino".

    Its weights are the folder `weights`, or that which the environment variable DIFFUSION_JAX_DINOV2 names. Images are
    resized to 224 by 224 pixels, and positions interpolated as in DINOv2's own code.
    """
    resize = views.ROUNDINGS["bytes"]()
    _check_batch("dinov2", batch)
    network = load_dinov2(_folder("dinov2", weights, *DINOV2), dtype=dtype)

    def embed(params, images):
        return {"dino": network.apply(params, views.whole(images, DINO_SIZE, resize))}

    kinds = {"dino": network.module.shape.width}
    return _of_pretrained(f"dinov2/{DINO_SIZE}{_suffix(dtype)}", network.params, embed, kinds, batch)


def text_embedder(
    weights: str | Path = "", *, batch: int = 32, dtype: str = "float32"
) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a function from texts to CLIP's embeddings (N, dimension) of them, of length 1: kind "clip_text".

    Its weights are the folder `weights`, or that which the environment variable DIFFUSION_JAX_CLIP names; it must be
    the one that embeds the images.
    """
    folder = _folder("text_embedder", weights, *CLIP)
    _check_batch("text_embedder", batch)
    network = load_clip_text(folder, dtype=dtype)
    _check_projection("text_embedder", network)
    tokens = clip_tokenizer(folder, length=network.module.length)

    def embed(params, ids):
        return {"clip_text": _unit(network.apply(params, ids).projected)}

    run = _in_batches(_precise(embed), network.params, batch)

    def embeddings(texts):
        if isinstance(texts, str) or not len(texts):
            raise ValueError("text_embedder: it takes a list of one text or more.")
        different = list(dict.fromkeys(texts))
        rows = run(tokens(different))["clip_text"]
        return rows[[different.index(text) for text in texts]]

    return embeddings


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
    _check_batch(name, batch)
    weights = load()
    run = _in_batches(
        lambda params, images: network.inception(params, rule(images)), network.fold(weights, compute), batch
    )

    def extract(images):
        _check(name, images)
        return run(images)

    return Extractor(f"{name}/{resize}{_suffix(dtype)}", network.widths(), fingerprint(weights), extract)


def _of_pretrained(described, params, embed, kinds, batch):
    run = _in_batches(_precise(embed), params, batch)

    def extract(images):
        _check(described.split("/")[0], images)
        return run(images)

    return Extractor(described, kinds, fingerprint(flat(jax.tree.map(np.asarray, params))), extract)


def _in_batches(run, params, batch):
    """Compile `run` for one size of batch, which this process's devices share; the last is filled up."""
    compiled, where = jax.jit(run), layout(batch)
    params = jax.device_put(params, where.whole)

    def every(inputs):
        parts = []
        for start in range(0, len(inputs), batch):
            part = inputs[start : start + batch]
            full = np.concatenate([part, np.repeat(part[-1:], batch - len(part), 0)])
            found = compiled(params, jax.device_put(full, where.split))
            parts.append({kind: np.asarray(rows)[: len(part)] for kind, rows in found.items()})
        return {kind: np.concatenate([rows[kind] for rows in parts]) for kind in parts[0]}

    return every


def _precise(run):
    """Multiply float32 as float32, which accelerators would round to fewer digits."""

    def precise(params, inputs):
        with jax.default_matmul_precision("highest"):
            return run(params, inputs)

    return precise


def _unit(embeddings):
    return embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)


def _suffix(dtype):
    return "" if dtype == "float32" else f"/{dtype}"


DINO_SIZE = 224
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


def _folder(name, weights, variable, published) -> Path:
    """Return the folder of weights, from the first place that names one."""
    named = weights or os.environ.get(variable, "")
    layout = f"a folder with config.json and model.safetensors (or pytorch_model.bin), as {published} is published"
    if not named:
        raise ValueError(f"{name}: no weights. Name {layout}, with `weights` or the environment variable {variable}.")
    path = Path(named).expanduser()
    if not path.is_dir():
        raise ValueError(f"{name}: {'weights' if weights else variable} names {path}; it must be {layout}.")
    return path


def _check_projection(name, network):
    if not network.module.projection:
        raise ValueError(
            f"{name}: these weights have no projection to the space that texts and images share; take a whole CLIP, "
            "or a ...ModelWithProjection."
        )


def _check_batch(name, batch):
    if batch < 1:
        raise ValueError(f"{name}: batch is {batch}; it must be 1 or more.")


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
    "clip": clip,
    "dinov2": dinov2,
    "pixels": pixels,
}
