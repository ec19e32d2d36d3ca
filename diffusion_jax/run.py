"""One run: from a config to a trained model in its folder, and from the folder back to samples."""

import json
from collections.abc import Callable
from functools import partial
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
    Training,
    at_least,
    captions_of,
    conditions,
    guided,
    labels_of,
    make_model,
    make_sampler,
    make_training,
    start,
)
from diffusion_jax.nets.network import count
from diffusion_jax.solvers.likelihood import log_likelihood
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.logbook import Logbook
from diffusion_jax.training.loop import Hook, Plan, train
from diffusion_jax.training.parallel import Parallel, make_mesh, parallelize
from diffusion_jax.training.post_hoc import find_snapshots, save_snapshot, synthesize
from diffusion_jax.training.step import make_train_step

PROBED = 2000  # fresh points of a density that likelihood and distance are measured on


class Run(NamedTuple):
    """A run that is built and not begun."""

    config: Any
    folder: Path
    training: Training
    parallel: Parallel
    sampler: Callable


def prepare(config: Any, folder: Path) -> Run:
    """Build a run; whatever is wrong with it is said here, before anything is compiled or written."""
    part = config.training
    shard = jax.process_index(), jax.process_count()
    training = make_training(config, shard=shard)
    devices = jax.device_count()
    if part.batch_size % (devices * part.parts):
        raise ValueError(
            f"config.training.batch_size is {part.batch_size}; {devices} devices and {part.parts} parts must share it "
            f"evenly, so make it a multiple of {devices * part.parts}."
        )
    sampler = make_sampler(config, training.model, training.batches.info)
    post_hoc_width(config)
    make_step = partial(make_train_step, training.loss_fn, training.optimizer, training.averages, parts=part.parts)
    if part.mapping == "pmap" and config.loss.get("times", {}).get("name") == "loss_adaptive":
        raise ValueError("loss-adaptive times remember the whole batch, which pmap never sees; take mapping=jit.")
    parallel = parallelize(make_step, make_mesh(), mapping=part.mapping)
    workdir.open_workdir(folder, config)
    return Run(config, folder, training, parallel, sampler)


def carry_out(run: Run) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint if there is one; return what the samples were measured at."""
    config, part, training, parallel = run.config, run.config.training, run.training, run.parallel
    checkpoints = Checkpoints(run.folder / "checkpoints", keep_last=part.keep_last, keep_every=part.keep_every or None)
    state = parallel.put_state(start(config, training))
    batches = training.batches.iterate(0)
    alike = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), parallel.get_state(state)
    )
    restored = checkpoints.restore(alike)
    if restored is not None:
        state = parallel.put_state(restored.state)
        batches.set_state(restored.data)
    begun = parallel.get_state(state)
    step = int(begun.step)
    if jax.process_index() == 0:
        workdir.note_start(run.folder, step)
        _describe(run, begun.params)
    logbook = Logbook(run.folder, step=step, tensorboard=part.tensorboard, wandb=part.wandb)
    millions = count(begun.params) / 1e6
    del begun  # under pmap it is a copy
    logbook.say(f"{millions:.2f} million parameters on {jax.device_count()} device(s), from step {step}")
    about = {"config": workdir.plain(config), "versions": workdir.versions()}

    def save(state):
        checkpoints.save(parallel.get_state(state), batches.get_state(), about)

    hooks = [Hook(part.save_every, lambda state, step: save(state))]
    if part.snapshot_every:
        stds = {name: spec["std"] for name, spec in part.averages.items() if spec["name"] == "power"}
        hooks.append(
            Hook(
                part.snapshot_every,
                lambda state, step: save_snapshot(
                    run.folder / "profiles", step, parallel.get_state(state).averages, stds
                ),
            )
        )
    if part.sample_every:
        hooks.append(Hook(part.sample_every, lambda state, step: _show(run, state, step, logbook), last=False))
    plan = Plan(part.steps, part.log_every, part.most_in_a_row, training.rate)
    try:
        state = train(state, parallel, batches, plan, logbook, save=save, hooks=hooks)
        return _show(run, state, part.steps, logbook, thorough=True)
    finally:
        batches.close()
        checkpoints.close()
        logbook.close()


class Trained(NamedTuple):
    """A model read back from its folder."""

    config: Any
    model: Model
    params: Any
    step: int
    info: Info


def load(folder: Path, *, sampling: Any = None, step: int | None = None) -> Trained:
    """Read a run back: its model with the parameters that `sampling.average` names, of the newest checkpoint."""
    config: Any = workdir.read_config(folder)
    if sampling is not None:
        config = config.copy_and_resolve_references()
        config.sampling = sampling
    info = read_info(folder)
    model = make_model(config, info)
    average, width = config.sampling.average, post_hoc_width(config)
    if width is not None:
        shots = find_snapshots(folder / "profiles")
        return Trained(config, model, synthesize(shots, std=width, step=step), step or shots[-1].step, info)
    checkpoints = Checkpoints(folder / "checkpoints")
    names = ("params",) if average == "params" else ("averages", average)
    try:
        found, params = checkpoints.part(*names, step=step)
    finally:
        checkpoints.close()
    return Trained(config, model, params, found, info)


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
    places = np.arange(total)
    labels = labels_of(config, model, places) if "label" in model.told else None
    return Drawn(np.concatenate(samples), labels, captions_of(config, places) if "text" in model.told else None)


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


def judge(source: Any, drawn: Drawn) -> dict[str, float]:
    """Measure samples of embedded data by what is known of it; of other data nothing is known here."""
    if isinstance(source, Shapes) and drawn.captions is not None:
        return {"agreement": caption_agreement(to_uint8(drawn.samples), drawn.captions, source)}
    if isinstance(source, Shapes) and drawn.labels is not None:
        return {"agreement": agreement(to_uint8(drawn.samples), drawn.labels, source)}
    if isinstance(source, Density):
        fresh = [_fresh(source, len(drawn.samples), part) for part in range(2)]
        return {
            "sliced_distance": sliced_distance(drawn.samples, fresh[0]),
            "sliced_distance_of_data": sliced_distance(fresh[1], fresh[0]),
        }
    return {}


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


def _show(run, state, step, logbook, *, thorough=False):
    """Sample, keep the picture, and measure what can be measured."""
    training, part = run.training, run.config.sampling
    state = run.parallel.get_state(state)
    average = "params" if post_hoc_width(run.config) is not None else part.average  # snapshots come first
    params = state.params if average == "params" else state.averages[average]
    params = jax.device_put(params, jax.devices()[0])
    drawn = draw(run.config, training.model, params, training.batches.info, run.sampler)
    logbook.picture(step, "samples", picture(drawn, _named(training), source=training.source))
    found = judge(training.source, drawn)
    if thorough and isinstance(training.source, Density) and not training.model.classes:
        found["surplus_nats"] = surplus(training.source, training.model, params)
    if found:
        logbook.scalars(step, {f"samples/{name}": value for name, value in found.items()})
    return found


def _named(training):
    return training.batches.info._replace(classes=training.source.info.classes)


def _fresh(source, number, part):
    """Return points of the density that no training step meets: those of another seed."""
    other = Density(source.info.name, source.rounds, number, 1_000_003 + part, source.basis)
    return np.stack([other[i]["x"] for i in range(number)])


def _describe(run, params):
    from clu import parameter_overview

    info = _named(run.training)
    noted = {"name": info.name, "shapes": info.shapes, "classes": info.classes, "range": info.range}
    workdir.write_json(run.folder / "data.json", noted)
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    (run.folder / "parameters.txt").write_text(overview + "\n", encoding="utf-8")


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
