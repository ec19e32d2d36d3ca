"""What samples are held against: statistics in a file, other images, another run, or the data of the run itself."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.data import first, make_evaluation, make_source
from diffusion_jax.data.source import BYTES
from diffusion_jax.data.transforms import RESIZING
from diffusion_jax.evaluation.cached import cached, digest
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.images import coloured, fingerprint_of, images_of
from diffusion_jax.evaluation.jackknife import gather, needs_of
from diffusion_jax.evaluation.metrics import MOMENTS, ROWS, Metric, Need, needed
from diffusion_jax.evaluation.references import read_reference
from diffusion_jax.pretrained.fetch import cache_folder
from diffusion_jax.samples import check_sampling, kept, origin
from diffusion_jax.trained import Trained, load
from diffusion_jax.workdir import plain, read_config

MOST = 50_000  # examples of a data set that a reference is made of


class Side(NamedTuple):
    """What samples are held against: its name, hash and number, and what metrics need of it."""

    name: str
    hash: str
    count: int | None
    held: Mapping[Need, Any]


def prepare_side(
    metrics: Sequence[Metric], extractor: Extractor | None, given: str, model: Trained | None, *, samples: int
) -> Callable[[], Side]:
    """Check what `samples` images are held against; return the job that reads it, or makes and keeps it, once."""
    needs = needs_of(metrics, "reference")
    if not needs or extractor is None:
        return lambda: Side("", "", None, {})
    if not given and model is None:
        raise ValueError("evaluate: images need a reference: a file of statistics, or other images.")
    if given and _has_statistics(Path(given).expanduser()):
        found = read_reference(given, kinds=extractor.kinds)
        for metric in metrics:
            for need in metric.reference:
                needed(metric, need, found.held, "reference")
        return lambda: Side(found.name, found.fingerprint, None, found.held)
    name, key, batches = _images_of_side(given, model, samples)
    needs = list(dict.fromkeys([*needs, Need(needs[0].kind, MOMENTS)]))  # moments know their number

    @functools.cache
    def job():
        full = [key() if callable(key) else key, extractor.name, extractor.weights_hash]
        make = lambda: gather(batches(), extractor, needs).held()  # noqa: E731
        held = cached(cache_folder() / "references", full, needs, make)
        # Neighbours are counted among as many real images as there are samples.
        held = {need: value[:samples] if need.form == ROWS else value for need, value in held.items()}
        return Side(name, digest(full[0])[:32], held[Need(needs[0].kind, MOMENTS)].count, held)

    return job


def tfds_of(given: str, *, split: str) -> dict[str, str]:
    """Return the source that `tfds:NAME` or `tfds:NAME:SPLIT` names; `split` is the default."""
    name, _, other = given.removeprefix("tfds:").partition(":")
    return {"name": "tfds", "dataset": name, "split": other or split}


def _images_of_side(given, model, samples) -> tuple[str, Any, Callable[[], Iterable[np.ndarray]]]:
    """Return the name of a reference of images, what fixes it, and its batches."""
    if not given or given.startswith(("tfds:", "data:")):
        config = model.config if model is not None else None
        if given.startswith("data:"):
            config = read_config(Path(given.removeprefix("data:")).expanduser())
        data = tfds_of(given, split="train") if given.startswith("tfds:") else plain(config)["data"]
        resized = [] if config is None else plain(config)["transforms"]
        transforms = [spec for spec in resized if spec["name"] in RESIZING]
        source = make_source(data)
        if source.info.range != BYTES:
            raise ValueError(f"the data '{source.info.name}' are no images in uint8; give a reference of images.")
        count = min(len(source), MOST)
        return data["name"], [data, transforms, count], lambda: _examples(source, transforms, count)
    path = Path(given).expanduser()
    if (path / "config.json").is_file():
        other = load(path)
        check_sampling(other)
        return f"run {path}", [origin(other, path), samples], lambda: map(coloured, kept(other, path, samples))
    images_of(path)  # says its errors
    return path.name, lambda: fingerprint_of(path), lambda: images_of(path)


def _has_statistics(path):
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True  # which is refused in words of its own
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as archive:
            return "mu" in archive.files or "feats" in archive.files
    except (OSError, ValueError, EOFError):
        return True  # whose reader says what is wrong


def _examples(source, transforms, count):
    """Yield the first `count` images of a source, in uint8."""
    for batch in first(make_evaluation(source, transforms, batch_size=min(256, count)), count):
        yield coloured(batch["x"][batch["valid"]])
