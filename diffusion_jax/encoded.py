"""A data set encoded once: an autoencoder costs more than a step of training should pay.

What is written is y = (z - mean) / std of `denoisers.latent`, which is what is diffused, with labels and captions as
they were, and hints, which are images, in uint8. Beside it lies what was measured of it: the mean and the spread of
each channel, which are near 0 and 1 if the autoencoder was made for such images.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from diffusion_jax.codecs import Codec
from diffusion_jax.data import make_evaluation
from diffusion_jax.data.array import note, write_npz, write_records
from diffusion_jax.data.pipeline import Pipeline
from diffusion_jax.data.source import Info, Source
from diffusion_jax.devices import layout
from diffusion_jax.evaluation import moments

ENTRIES = ("label", "caption")


class Encoding(NamedTuple):
    """What is encoded: a source, what makes its images of one size and in [-1, 1], and whether mirror images follow."""

    source: Source
    transforms: Sequence[Any]
    codec: Codec
    batch_size: int = 16
    mirrored: bool = False


def encode(asked: Encoding, out: Path, **about: Any) -> dict[str, Any]:
    """Write the latents of a data set to an .array_record or .npz file; return what is noted there, with `about`."""
    found = None

    def examples():
        nonlocal found
        for batch in batches(asked):
            rows = batch["x"].reshape(-1, batch["x"].shape[-1])
            found = moments.accumulate(moments.empty(rows.shape[-1]) if found is None else found, rows)
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    write = write_npz if out.suffix == ".npz" else write_records
    count = write(out, examples(), classes=asked.source.info.classes)
    assert found is not None
    spread = np.sqrt(np.diag(found.scatter) / found.count)
    noted = about | {"count": count, "mean": found.mean.tolist(), "std": spread.tolist()}
    note(out, **noted)
    return noted


def hinted(name: str, info: Info, unit: Any) -> tuple[Any, ...]:
    """Return the transforms that follow a crop where an image is a hint: its edges if it has none, `unit`, and it."""
    find = ({"name": "edges"},) if name == "edges" and "edges" not in info.shapes else ()
    channels = 1 if find else (info.shapes.get(name) or (0,))[-1]
    return (*find, unit, {"name": "hint", "of": name, "channels": channels})


def images(asked: Encoding) -> Pipeline:
    """Return the batches of images that will be encoded; those that the autoencoder does not take are refused."""
    data = make_evaluation(asked.source, asked.transforms, batch_size=asked.batch_size)
    shape, codec = data.info.shapes["x"], asked.codec
    if len(shape) != 3 or shape[-1] != codec.channels or any((side or 0) % codec.factor for side in shape[:2]):
        raise ValueError(
            f"encode: images are {shape}; the autoencoder takes {codec.channels} channels and sides that are multiples "
            f"of {codec.factor}. Choose another --side."
        )
    if data.info.range != (-1.0, 1.0):
        raise ValueError(f"encode: images are in {data.info.range}; the transform to_unit takes them to [-1, 1].")
    return data


def batches(asked: Encoding) -> Iterator[dict[str, Any]]:
    """Yield a data set in its order, with latents in float32 for images; the mirror images of a batch follow it."""
    data, codec, place = images(asked), asked.codec, layout(asked.batch_size)
    params = jax.device_put(codec.params(), place.whole)
    run = jax.jit(lambda params, x: codec.ways(params).encode(x))
    for batch in tqdm(data, desc="encoded", unit="batch", total=len(data), disable=None):
        for turn in (1, -1)[: 1 + asked.mirrored]:
            encoded = run(params, jax.device_put(batch["x"][:, :, ::turn], place.split))
            found = {"x": np.asarray(encoded, np.float32)} | {name: batch[name] for name in ENTRIES if name in batch}
            if "hint" in batch:
                found["hint"] = np.round(batch["hint"][:, :, ::turn] * 255).astype(np.uint8)
            yield {name: value[batch["valid"]] for name, value in found.items()}
