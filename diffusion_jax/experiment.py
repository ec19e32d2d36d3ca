"""From a config to the parts it names. This file alone knows every room."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.data import make_pipeline, make_source
from diffusion_jax.denoisers.guidance import GUIDANCE, within
from diffusion_jax.denoisers.network import doubled, make_denoiser
from diffusion_jax.denoisers.precondition import INPUTS
from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.losses.history import start_history
from diffusion_jax.losses.times import TIMES
from diffusion_jax.losses.uncertainty import start_uncertainty
from diffusion_jax.losses.variational import hybrid_loss
from diffusion_jax.losses.weighting import WEIGHTINGS
from diffusion_jax.naming import KeywordError, choose, lookup
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.network import apply_of, initialize
from diffusion_jax.process.forward import prior
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.noise import example_keys
from diffusion_jax.process.oracle import DENSITIES, Mixture
from diffusion_jax.process.pace import PACES
from diffusion_jax.process.prediction import PREDICTIONS
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from diffusion_jax.training.ema import AVERAGES, Average
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import TrainState, start_state
from diffusion_jax.types import Apply, Array, Batch, Denoiser, Key, LossFn, Params, Schedule, Solver


class Sampling(NamedTuple):
    """A solver with its path and its grid."""

    schedule: Schedule
    times: Array
    solver: Solver


class Exact(NamedTuple):
    """Data known in closed form, and how to sample it."""

    data: Mixture
    schedule: Schedule
    times: Array
    solver: Solver


class Model(NamedTuple):
    """A network on a path: `apply` is fed as its `input` says, and its output is of kind `prediction`."""

    schedule: Schedule
    module: Any
    apply: Apply
    prediction: Any
    classes: int


class Training(NamedTuple):
    """All that the training of a model needs."""

    model: Model
    source: Any
    batches: Any
    loss_fn: LossFn
    optimizer: Any
    rate: Callable[[Any], Any]
    averages: dict[str, Average]


def make_exact(config: Any) -> Exact:
    """Build data known in closed form, which `data` names, and how to sample it."""
    return Exact(_entry(config, "data", DENSITIES), *make_sampling(config, make_schedule(config)))


def make_schedule(config: Any) -> Schedule:
    """Build the path that `schedule` names, at the pace that `pace` names."""
    return _entry(config, "pace", PACES, _entry(config, "schedule", SCHEDULES))


def make_sampling(config: Any, schedule: Schedule) -> Sampling:
    """Build what `sampling` names: a grid of `steps` steps, and a solver."""
    part = config["sampling"]
    times = _entry(part, "grid", GRIDS, schedule, at_least(part, "steps", 1, under="sampling."), under="sampling.")
    return Sampling(schedule, times, _entry(part, "solver", SOLVERS, schedule, under="sampling."))


def make_model(config: Any, info: Any) -> Model:
    """Build the network, for data such as `info` describes, and what feeds it."""
    schedule, loss = make_schedule(config), config["loss"]
    channels, classes = info.shapes["x"][-1], info.num_classes if "label" in config["cond"] else 0
    prediction = choose(PREDICTIONS, loss["prediction"], "prediction")
    out_channels = 2 * channels if loss["name"] == "hybrid" or prediction.name == "learned_variance" else channels
    spec = {**config["network"], "channels": channels, "out_channels": out_channels}
    if classes:
        spec["num_classes"] = classes
    if "image_size" in inspect.signature(lookup(NETWORKS, spec["name"], "network")).parameters:
        spec["image_size"] = info.shapes["x"][0]
    module = _entry({"network": spec}, "network", NETWORKS)
    apply = _entry(config, "input", INPUTS, apply_of(module), schedule)
    return Model(schedule, module, apply, loss["prediction"], classes)


def make_training(config: Any, *, shard: tuple[int, int] = (0, 1)) -> Training:
    """Build everything that training takes; whatever is wrong with the config is said here."""
    part = config["training"]
    source = make_source(config["data"])
    batches = make_pipeline(
        source,
        (*config["transforms"], *([{"name": "condition", "entries": config["cond"]}] if config["cond"] else ())),
        batch_size=at_least(part, "batch_size", 1, under="training."),
        seed=config["seed"],
        shard=shard,
        workers=part["workers"],
    )
    model = make_model(config, batches.info._replace(classes=source.info.classes))
    loss = dict(config["loss"])
    if loss["name"] == "denoising":
        loss["global_batch"] = part["batch_size"]
    optimizer, rate = make_optimizer(part["optimizer"], part["rate"], clip=part["clip"] or None)
    for key in ("steps", "parts", "log_every", "save_every"):
        at_least(part, key, 1, under="training.")
    averages = {name: choose(AVERAGES, spec, f"average '{name}'") for name, spec in part["averages"].items()}
    loss_fn = _entry({"loss": loss}, "loss", LOSSES, model.apply, model.schedule)
    return Training(model, source, batches, loss_fn, optimizer, rate, averages)


def start(config: Any, training: Training) -> TrainState:
    """Return the state before the first step."""
    key, loss = jax.random.key(config["seed"]), config["loss"]
    x = jax.ShapeDtypeStruct((1, *training.batches.info.shapes["x"]), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = {"label": jax.ShapeDtypeStruct((1,), jnp.int32)} if training.model.classes else {}
    params = dict(initialize(training.model.module, jax.random.fold_in(key, 0), (x, t, cond)))
    history = None
    if loss["name"] == "denoising":
        if choose(WEIGHTINGS, loss["weighting"], "weighting").uncertainty is not None:
            params["uncertainty"] = start_uncertainty()
        if choose(TIMES, loss["times"], "times").given is not None:
            history = start_history(training.model.schedule)
    return start_state(params, training.optimizer, training.averages, jax.random.fold_in(key, 1), history=history)


def make_sampler(config: Any, model: Model, info: Any) -> Callable[[Params, Key, Array, Batch], Array]:
    """Return draw(params, key, indices, cond), jitted: samples whose noise belongs to their global index alone."""
    part, sampling = config["sampling"], make_sampling(config, model.schedule)

    @jax.jit
    def draw(params, key, indices, cond):
        start_key, solver_key = jax.random.split(key)
        zeros = jnp.zeros((indices.shape[0], *info.shapes["x"]))
        x = prior(model.schedule, example_keys(start_key, indices), zeros, sampling.times[0])
        denoise = guided(part["guidance"], model, params, cond)
        return sample(denoise, sampling.solver, sampling.times, x, solver_key, indices=indices)[0]

    if part["label"] != -1 and not 0 <= part["label"] < model.classes:
        raise ValueError(
            f"config.sampling.label is {part['label']}; classes are 0 to {model.classes - 1}, and -1 takes all in turn."
        )
    guided(part["guidance"], model, {}, {"label": jnp.zeros(1, jnp.int32)} if model.classes else {})  # says its errors
    return draw


def guided(spec: Any, model: Model, params: Params, cond: Any) -> Denoiser:
    """Return the denoiser of a model under `cond`, guided as `spec` says; None is without guidance."""
    build = {"prediction": model.prediction}
    if spec is None or spec["name"] == "none":
        return make_denoiser(model.apply, params, model.schedule, **build, cond=cond)
    if not model.classes:
        raise ValueError(
            "config.sampling.guidance guides a model that has no conditions; set it to none, or train with "
            "config.cond=('label',)."
        )
    keywords = {word: value for word, value in spec.items() if word not in ("scale", "interval", "name")}
    guide = lookup(GUIDANCE, spec["name"], "guidance")
    if "schedule" in inspect.signature(guide).parameters:
        keywords["schedule"] = model.schedule
    null = {**cond, "label": jnp.full_like(cond["label"], model.classes)}
    conditional, unconditional = doubled(model.apply, params, model.schedule, **build, cond=cond, null=null)
    denoise = choose(
        {spec["name"]: guide}, {"name": spec["name"], **keywords}, "guidance", conditional, unconditional, spec["scale"]
    )
    return within(denoise, conditional, spec["interval"]) if spec.get("interval") else denoise


def at_least(config: Any, key: str, least: int, *, under: str = "") -> int:
    """Return a number of the config, or refuse it; `under` says where in the whole config this part of it lies."""
    if config[key] < least:
        raise ValueError(f"config.{under}{key} is {config[key]}; it must be at least {least}.")
    return config[key]


def _entry(config, key, table, *args, under=""):
    """Build one entry of the config; errors say where it is and how to set it right from the command line."""
    spec = config[key]
    try:
        return choose(table, spec, key, *args)
    except KeywordError as error:
        name, entry = (spec if isinstance(spec, str) else spec["name"]), f"--config.{under}{key}"
        raise ValueError(
            f"{error} On the command line, {entry}={name} replaces the whole entry, and "
            f"{entry}=\"{{'name': '{name}', ...}}\" gives it keywords; {entry}.name={name} keeps the old ones."
        ) from None
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"config.{under}{key} is {' '.join(str(spec).split())}: {error}.") from None


LOSSES = {"denoising": denoising_loss, "hybrid": hybrid_loss}
