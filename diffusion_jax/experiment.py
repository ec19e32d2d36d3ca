"""From a config to the parts it names. This file alone knows every room."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.adapters import Adapted, make_adapter
from diffusion_jax.codecs import Codec, make_codec
from diffusion_jax.data import make_pipeline, make_source
from diffusion_jax.data.blank import check_expected
from diffusion_jax.denoisers.precondition import INPUTS
from diffusion_jax.losses.denoising import denoising_loss
from diffusion_jax.losses.history import start_history
from diffusion_jax.losses.times import TIMES
from diffusion_jax.losses.uncertainty import start_uncertainty
from diffusion_jax.losses.variational import hybrid_loss
from diffusion_jax.losses.weighting import WEIGHTINGS
from diffusion_jax.naming import KeywordError, choose, lookup, suggestion
from diffusion_jax.nets import NETWORKS
from diffusion_jax.nets.condition import ENTRIES, keyword_of
from diffusion_jax.nets.network import apply_of, initialize, shapes_of
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.oracle import DENSITIES, Mixture
from diffusion_jax.process.pace import PACES
from diffusion_jax.process.prediction import PREDICTIONS
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.prompts import Prompts, make_prompts, spoken
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.starts import Start, make_start
from diffusion_jax.training.ema import AVERAGES, Average
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import TrainState, start_state
from diffusion_jax.types import Apply, Array, LossFn, Schedule, Solver


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
    """A network on a path: `apply` is fed as its `input` says, and its output is of kind `prediction`.

    `told` is what an example's `cond` holds, by shape and dtype, `prompts` what makes captions into it, and `codec`
    what makes samples into images where they are latents.
    """

    schedule: Schedule
    module: Any
    apply: Apply
    prediction: Any
    classes: int
    told: dict[str, jax.ShapeDtypeStruct]
    prompts: Prompts
    codec: Codec | None
    bare: Apply  # without its input
    adapted: Adapted


class Training(NamedTuple):
    """All that the training of a model needs."""

    model: Model
    source: Any
    batches: Any
    loss_fn: LossFn
    optimizer: Any
    rate: Callable[[Any], Any]
    averages: dict[str, Average]
    begin: Start | None  # where its parameters are not drawn at random


def make_exact(config: Any) -> Exact:
    """Build data known in closed form, which `data` names, and how to sample it."""
    return Exact(entry(config, "data", DENSITIES), *make_sampling(config, make_schedule(config)))


def make_schedule(config: Any) -> Schedule:
    """Build the path that `schedule` names, at the pace that `pace` names."""
    return entry(config, "pace", PACES, entry(config, "schedule", SCHEDULES))


def make_sampling(config: Any, schedule: Schedule) -> Sampling:
    """Build what `sampling` names: a grid of `steps` steps, and a solver."""
    part = config["sampling"]
    times = entry(part, "grid", GRIDS, schedule, at_least(part, "steps", 1, under="sampling."), under="sampling.")
    return Sampling(schedule, times, entry(part, "solver", SOLVERS, schedule, under="sampling."))


def make_model(config: Any, info: Any) -> Model:
    """Build the network, for data such as `info` describes, and what feeds it."""
    schedule, loss = make_schedule(config), config["loss"]
    codec, prompts = make_codec(config["latent"]), make_prompts(config["text"], info)
    told = _told(config["cond"], {**info.shapes, **prompts.shapes})
    channels, classes = info.shapes["x"][-1], info.num_classes if "label" in told else 0
    prediction, learned = loss["prediction"], "learned_variance"
    if loss["name"] == "hybrid" and choose(PREDICTIONS, prediction, "prediction").name != learned:
        prediction = {"name": learned, "of": prediction}
    out_channels = 2 * channels if choose(PREDICTIONS, prediction, "prediction").name == learned else channels
    spec = {**config["network"], "channels": channels, "out_channels": out_channels}
    for name, what in told.items():
        keyword = keyword_of(name)
        if keyword and name not in ("guidance", "hint"):  # which the network knows itself, and which the adapter hears
            spec[keyword] = what.shape[-1] if what.shape else classes
    if "image_size" in inspect.signature(lookup(NETWORKS, spec["name"], "network")).parameters:
        spec.setdefault("image_size", info.shapes["x"][0])
    module = entry({"network": spec}, "network", NETWORKS)
    hint = told.get("hint")
    hint = hint and jax.ShapeDtypeStruct((1, *hint.shape), hint.dtype)
    adapted = make_adapter(config["adapter"], module, called_with(told, info.shapes["x"]), hint)
    bare = adapted.apply(apply_of(module))
    apply = entry(config, "input", INPUTS, bare, schedule)
    return Model(schedule, module, apply, prediction, classes, told, prompts, codec, bare, adapted)


def make_training(config: Any, *, shard: tuple[int, int] = (0, 1), source: Any = None) -> Training:
    """Build everything that training takes; whatever is wrong with the config is said here.

    `source` stands for the config's own data.
    """
    part = config["training"]
    _check_heard(config["cond"])
    if source is None:
        source = make_source(config["data"])
        check_expected(source, config["expects"])
    speaking, cond = spoken(make_prompts(config["text"], source.info), config["cond"])
    batches = make_pipeline(
        source,
        (*config["transforms"], *speaking, *([{"name": "condition", "entries": cond}] if cond else ())),
        batch_size=at_least(part, "batch_size", 1, under="training."),
        seed=config["seed"],
        shard=shard,
        workers=part["workers"],
    )
    model = make_model(config, batches.info._replace(classes=source.info.classes))
    loss = dict(config["loss"])
    if loss["name"] == "denoising":
        loss["global_batch"] = part["batch_size"]
    optimizer, rate = make_optimizer(
        part["optimizer"], part["rate"], clip=part["clip"] or None, held=model.adapted.held
    )
    for key in ("steps", "parts", "log_every", "save_every"):
        at_least(part, key, 1, under="training.")
    averages = {name: choose(AVERAGES, spec, f"average '{name}'") for name, spec in part["averages"].items()}
    loss_fn = entry({"loss": loss}, "loss", LOSSES, model.apply, model.schedule)
    return Training(model, source, batches, loss_fn, optimizer, rate, averages, make_start(config["start"]))


def start(config: Any, training: Training) -> TrainState:
    """Return the state before the first step."""
    module, example = training.model.module, _example(training)
    key = jax.random.fold_in(jax.random.key(config["seed"]), 0)
    if training.begin is not None:
        return _started(config, training, training.begin.read(shapes_of(module, example)))
    return _started(config, training, initialize(module, key, example))


def check_start(training: Training) -> None:
    """Refuse a run to begin with whose network is another."""
    if training.begin is not None:
        training.begin.check(shapes_of(training.model.module, _example(training)))


def state_shapes(config: Any, training: Training) -> TrainState:
    """Return the shapes of the state, without drawing it."""
    shapes = shapes_of(training.model.module, _example(training))
    return jax.eval_shape(lambda params: _started(config, training, params), shapes)


def at_least(config: Any, key: str, least: int, *, under: str = "") -> int:
    """Return a number of the config, or refuse it; `under` says where in the whole config this part of it lies."""
    if config[key] < least:
        raise ValueError(f"config.{under}{key} is {config[key]}; it must be at least {least}.")
    return config[key]


def entry(config, key, table, *args, under=""):
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


def called_with(told, shape):
    """Return what the network is called with for an x of this shape, by shape and dtype."""
    cond = {name: jax.ShapeDtypeStruct((1, *one.shape), one.dtype) for name, one in told.items() if name != "hint"}
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32), cond


def _example(training):
    return called_with(training.model.told, training.batches.info.shapes["x"])


def _started(config, training, params):
    """Return the state that starts at these parameters, with those that the loss adds."""
    with jax.ensure_compile_time_eval():
        key = jax.random.fold_in(jax.random.key(config["seed"]), 2)
    params, history, loss = dict(training.model.adapted.begin(params, key)), None, config["loss"]
    if loss["name"] == "denoising":
        if choose(WEIGHTINGS, loss["weighting"], "weighting").uncertainty is not None:
            params["uncertainty"] = start_uncertainty()
        if choose(TIMES, loss["times"], "times").given is not None:
            history = start_history(training.model.schedule)
    key = jax.random.fold_in(jax.random.key(config["seed"]), 1)
    return start_state(params, training.optimizer, training.averages, key, history=history)


def _told(entries, shapes):
    """Return what `cond` holds for an example, by shape and dtype."""
    kinds = {"label": jnp.int32, "text_mask": jnp.bool_}
    return {name: jax.ShapeDtypeStruct(shapes[name], kinds.get(name, jnp.float32)) for name in entries}


def _check_heard(entries):
    """Refuse to tell what no network hears."""
    for name in entries:
        if name not in ENTRIES or name in ("dropout", "control"):
            words = " Add the transform 'words' and say ('text', 'text_mask')." if name == "caption" else ""
            words = " Add the transform 'hint' of it and say 'hint'." if name in ("edges", "mask") else words
            raise ValueError(f"config.cond has '{name}', which no network hears.{words}{suggestion(name, ENTRIES)}")


LOSSES = {"denoising": denoising_loss, "hybrid": hybrid_loss}
