"""Samples of a trained model, and what each was told.

Sample i depends on the seed and on i alone. Those that metrics need are kept in the run's folder, and not drawn twice.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax import plots
from diffusion_jax.data.density import Density
from diffusion_jax.data.pixels import to_uint8
from diffusion_jax.data.source import Info
from diffusion_jax.devices import layout
from diffusion_jax.evaluation.cached import digest
from diffusion_jax.evaluation.generate import fill, generate
from diffusion_jax.experiment import at_least, make_sampling
from diffusion_jax.pretrained.rules import flat
from diffusion_jax.pretrained.weights import fingerprint
from diffusion_jax.sampler import captions_of, check_beside, check_hints, conditions, labels_of, make_sampler
from diffusion_jax.solvers.solver import evaluations
from diffusion_jax.trained import Trained
from diffusion_jax.workdir import plain


class Drawn(NamedTuple):
    """Samples, and what each was told: its label or its caption, where the model hears them."""

    samples: np.ndarray
    labels: np.ndarray | None = None
    captions: list[str] | None = None


def draw(model: Trained, *, count: int | None = None, compiled: dict[str, Any] | None = None) -> Drawn:
    """Draw `count` samples, by default `sampling.count`; sample i is the same in any batch size.

    Hosts that train as one draw batches in turns, and each returns all. `compiled` is that of `make_sampler`.
    """
    part = model.config["sampling"]
    total = part["count"] if count is None else count
    size = min(part["batch_size"], total)
    sampler = make_sampler(model.config, model.model, model.info, compiled=compiled)
    host, hosts = jax.process_index(), jax.process_count()
    batches = []
    for round_ in range(0, total, hosts * size):
        first = round_ + host * size
        indices = np.minimum(np.arange(first, first + size), total - 1)  # what is too much is left out
        cond = conditions(model.config, model.model, indices)
        drawn = sampler(model.params, jax.random.key(part["seed"]), jnp.asarray(indices), cond)
        batches.append(np.asarray(drawn))
    if hosts > 1:  # (hosts, rounds, batch, ...), of which rounds come first
        batches = multihost_utils.process_allgather(np.stack(batches)).swapaxes(0, 1).reshape(-1, *batches[0].shape)
    return told_of(model, np.concatenate(batches)[:total])


def kept(model: Trained, folder: Path, count: int, *, compiled: dict[str, Any] | None = None) -> Iterator[np.ndarray]:
    """Yield the first `count` images of a model in uint8, of which those that the folder has are not drawn again.

    Hosts that train as one share the drawing, and each yields all.
    """
    config = model.config
    part = plain(config.sampling)
    del part["count"], part["batch_size"]
    key = digest([part, model.step, fingerprint(flat(jax.tree.map(np.asarray, model.params)))])
    sampler = make_sampler(config, model.model, model.info, compiled=compiled)
    chance = jax.random.key(config.sampling.seed)
    where = layout(config.sampling.batch_size)
    params = jax.device_put(model.params, where.whole)

    def draw(indices):
        cond = conditions(config, model.model, indices)
        return to_uint8(sampler(params, chance, *jax.device_put((indices, cond), where.split)))

    folder, batch = folder / "generated" / key[:16], config.sampling.batch_size
    if jax.process_count() > 1:
        fill(draw, count, folder, batch=batch, share=(jax.process_index(), jax.process_count()))
        multihost_utils.sync_global_devices(str(folder))
    return generate(draw, count, folder, batch=batch, progress=jax.process_index() == 0)


def told_of(model: Trained, samples: np.ndarray) -> Drawn:
    """Say beside the first samples of a model what each was told."""
    places, told = np.arange(len(samples)), model.model.told
    labels = labels_of(model.config, model.model, places) if "label" in told else None
    return Drawn(samples, labels, captions_of(model.config, model.model, places) if "text" in told else None)


def check_sampling(trained: Trained) -> None:
    """Refuse a way of sampling that does not fit the model."""
    make_sampler(trained.config, trained.model, trained.info)
    check_hints(trained.config, trained.model)
    check_beside(trained.model)
    seed = trained.config.sampling.seed
    if not 0 <= seed < 2**63:
        raise ValueError(f"config.sampling.seed is {seed}; it must be from 0 to 2^63 - 1.")
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


def origin(model: Trained, folder: Path, *, drawn: bool = True) -> dict[str, Any]:
    """Say which model it is and, if samples are `drawn` from it, how."""
    part = plain(model.config.sampling)
    which = {
        "run": str(folder),
        "config": digest(plain(model.config))[:16],
        "step": model.step,
        "average": part["average"],
        "precision": model.config.network.get("dtype", "float32"),
    }
    if not drawn:
        return which
    sampling = make_sampling(model.config, model.model.schedule)
    return which | {
        "solver": part["solver"],
        "grid": part["grid"],
        "evaluations": evaluations(sampling.solver, sampling.times, model.model.schedule),
        "guidance": part["guidance"],
        "threshold": part["threshold"],
        "returned": part["returned"],
        "label": part["label"],
        "captions": part["captions"],
        "negative": part["negative"],
        "size": part["size"],
        "hints": part["hints"],
        "seed": part["seed"],
    }
