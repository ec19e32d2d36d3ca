"""A trained model read back from its folder, what is drawn from it, and what is known of that at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import plots, workdir
from diffusion_jax.data.attributes import agreement, caption_agreement
from diffusion_jax.data.density import Density
from diffusion_jax.data.pixels import to_uint8
from diffusion_jax.data.shapes import Shapes
from diffusion_jax.data.source import Info
from diffusion_jax.evaluation.distance import sliced_distance
from diffusion_jax.experiment import (
    Model,
    at_least,
    captions_of,
    conditions,
    guided,
    labels_of,
    make_model,
    make_sampler,
)
from diffusion_jax.solvers.likelihood import log_likelihood
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.post_hoc import find_snapshots, synthesize

PROBED = 2000  # fresh points of a density that likelihood and distance are measured on


class Trained(NamedTuple):
    """A model read back from its folder."""

    config: Any
    model: Model
    params: Any
    step: int
    info: Info


def load(folder: Path, *, sampling: Any = None, step: int | None = None) -> Trained:
    """Read a run back: its model with the parameters that `sampling.average` names, of the newest checkpoint."""
    model = blank(folder, sampling=sampling)
    average, width = model.config.sampling.average, post_hoc_width(model.config)
    if width is not None:
        shots = find_snapshots(folder / "profiles")
        return model._replace(params=synthesize(shots, std=width, step=step), step=step or shots[-1].step)
    checkpoints = Checkpoints(folder / "checkpoints")
    names = ("params",) if average == "params" else ("averages", average)
    try:
        found, params = checkpoints.part(*names, step=step)
    finally:
        checkpoints.close()
    return model._replace(params=params, step=found)


def blank(folder: Path, *, sampling: Any = None) -> Trained:
    """Read a run back without its parameters."""
    config: Any = workdir.read_config(folder)
    if sampling is not None:
        config = config.copy_and_resolve_references()
        config.sampling = sampling
    info = read_info(folder)
    return Trained(config, make_model(config, info), None, 0, info)


class Drawn(NamedTuple):
    """Samples, and what each was told: its label or its caption, where the model hears them."""

    samples: np.ndarray
    labels: np.ndarray | None = None
    captions: list[str] | None = None


def draw(config: Any, model: Model, params: Any, info: Info, sampler: Callable | None = None) -> Drawn:
    """Draw `sampling.count` samples; sample i is the same in any batch size."""
    part = config["sampling"]
    total, size = part["count"], min(part["batch_size"], part["count"])
    sampler = sampler or make_sampler(config, model, info)
    samples = []
    for first in range(0, total, size):
        indices = np.minimum(np.arange(first, first + size), total - 1)  # the last batch is filled up
        cond = conditions(config, model, indices)
        drawn = sampler(params, jax.random.key(part["seed"]), jnp.asarray(indices), cond)
        samples.append(np.asarray(drawn)[: total - first])
    return _told(config, model, np.concatenate(samples))


def told_of(model: Trained, samples: np.ndarray) -> Drawn:
    """Say beside the first samples of a model what each was told."""
    return _told(model.config, model.model, samples)


def check_sampling(trained: Trained) -> None:
    """Refuse a way of sampling that does not fit the model."""
    make_sampler(trained.config, trained.model, trained.info)
    for key in ("count", "batch_size"):
        at_least(trained.config.sampling, key, 1, under="sampling.")


def picture(drawn: Drawn, info: Info, *, source: Any = None) -> np.ndarray:
    """Show samples as an image (height, width, 3) in uint8: points, or a grid with a column a class or caption."""
    if drawn.samples.ndim != 4:
        return plots.points(drawn.samples, source.log_density if isinstance(source, Density) else None)
    if drawn.captions is None:
        return plots.image_grid(to_uint8(drawn.samples), drawn.labels, info.classes)
    names = list(dict.fromkeys(drawn.captions))
    return plots.image_grid(to_uint8(drawn.samples), [names.index(caption) for caption in drawn.captions], names)


def _told(config, model, samples):
    places = np.arange(len(samples))
    labels = labels_of(config, model, places) if "label" in model.told else None
    return Drawn(samples, labels, captions_of(config, places) if "text" in model.told else None)


def judge(source: Any, drawn: Drawn) -> dict[str, float]:
    """Measure samples of embedded data by what is known of it; of other data nothing is known here."""
    if isinstance(source, Shapes) and drawn.captions is not None:
        return {"agreement": caption_agreement(_bytes(drawn.samples), drawn.captions, source)}
    if isinstance(source, Shapes) and drawn.labels is not None:
        return {"agreement": agreement(_bytes(drawn.samples), drawn.labels, source)}
    if isinstance(source, Density):
        fresh = [_fresh(source, len(drawn.samples), part) for part in range(2)]
        return {
            "sliced_distance": sliced_distance(drawn.samples, fresh[0]),
            "sliced_distance_of_data": sliced_distance(fresh[1], fresh[0]),
        }
    return {}


def _bytes(images):
    return images if images.dtype == np.uint8 else to_uint8(images)


def surplus(source: Density, model: Model, params: Any, *, steps: int = 100) -> float:
    """Return by how many nats the model's negative log-likelihood of fresh data exceeds the density's entropy."""
    x0 = jnp.asarray(_fresh(source, PROBED, 2))
    denoise = lambda params: guided(None, model, params, {})  # noqa: E731
    nats = jax.jit(
        lambda params, x0: log_likelihood(
            denoise(params), model.schedule, x0, jax.random.key(0), steps=steps, probes=None
        )[0]
    )(params, x0)
    # Against the truth on the same points, so that their chance cancels.
    return float(np.mean(source.log_density(np.asarray(x0))) - np.mean(nats))


def read_info(folder: Path) -> Info:
    """Return what a run noted of its data."""
    noted = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    shapes = {name: tuple(shape) for name, shape in noted["shapes"].items()}
    return Info(noted["name"], shapes, tuple(noted["classes"]), noted["range"] and tuple(noted["range"]))


def post_hoc_width(config: Any) -> float | None:
    """Return the width of the post-hoc average that `sampling.average` asks for, or None if it is a name."""
    average, known = config.sampling.average, ("params", *config.training.averages)
    if average in known:
        return None
    try:
        return float(average)
    except ValueError:
        raise ValueError(
            f"config.sampling.average is '{average}'; it must be one of {', '.join(known)}, or a number: the width of "
            "a post-hoc average."
        ) from None


def _fresh(source, number, part):
    """Return points of the density that no training step meets: those of another seed."""
    other = Density(source.info.name, source.rounds, number, 1_000_003 + part, source.basis)
    return np.stack([other[i]["x"] for i in range(number)])
