"""From a config to the parts it names. This file alone knows every room."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.adapters import Adapted, make_adapter
from diffusion_jax.codecs import Codec, make_codec
from diffusion_jax.data import make_pipeline, make_source
from diffusion_jax.data.blank import check_expected
from diffusion_jax.denoisers.guidance import GUIDANCE, within
from diffusion_jax.denoisers.network import doubled, make_denoiser
from diffusion_jax.denoisers.precondition import INPUTS
from diffusion_jax.denoisers.threshold import THRESHOLDS
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
from diffusion_jax.process.forward import prior
from diffusion_jax.process.grid import GRIDS
from diffusion_jax.process.noise import example_keys
from diffusion_jax.process.oracle import DENSITIES, Mixture
from diffusion_jax.process.pace import PACES
from diffusion_jax.process.prediction import PREDICTIONS
from diffusion_jax.process.schedules import SCHEDULES
from diffusion_jax.prompts import Prompts, make_prompts, spoken, told_for
from diffusion_jax.solvers import SOLVERS
from diffusion_jax.solvers.solver import sample
from diffusion_jax.starts import Start, make_start
from diffusion_jax.training.ema import AVERAGES, Average
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import TrainState, start_state
from diffusion_jax.types import Apply, Array, Batch, Denoiser, Key, LossFn, Params, Schedule, Solver

DISTILLED = "distilled"  # guidance whose scale a network is told, for one evaluation and not two


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
        if keyword and name != "guidance":  # which the network knows itself
            spec[keyword] = what.shape[-1] if what.shape else classes
    if "image_size" in inspect.signature(lookup(NETWORKS, spec["name"], "network")).parameters:
        spec.setdefault("image_size", info.shapes["x"][0])
    module = _entry({"network": spec}, "network", NETWORKS)
    adapted = make_adapter(config["adapter"], module, _called_with(told, info.shapes["x"]))
    bare = adapted.apply(apply_of(module))
    apply = _entry(config, "input", INPUTS, bare, schedule)
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
    loss_fn = _entry({"loss": loss}, "loss", LOSSES, model.apply, model.schedule)
    return Training(model, source, batches, loss_fn, optimizer, rate, averages, make_start(config["start"]))


def start(config: Any, training: Training) -> TrainState:
    """Return the state before the first step."""
    module, example = training.model.module, _example(training)
    key = jax.random.fold_in(jax.random.key(config["seed"]), 0)
    if training.begin is not None:
        return _started(config, training, training.begin(shapes_of(module, example)))
    return _started(config, training, initialize(module, key, example))


def state_shapes(config: Any, training: Training) -> TrainState:
    """Return the shapes of the state, without drawing it."""
    shapes = shapes_of(training.model.module, _example(training))
    return jax.eval_shape(lambda params: _started(config, training, params), shapes)


def make_sampler(
    config: Any, model: Model, info: Any, *, compiled: dict[str, Any] | None = None
) -> Callable[[Params, Key, Array, Batch], Array]:
    """Return draw(params, key, indices, cond): samples whose noise belongs to their global index alone.

    From what the network is told to the samples, decoded where they are latents, it is one program. Samplers of one
    model that are given the same dict `compiled` share their programs: other prompts, another grid of as many steps or
    another scale of guidance are not compiled anew.
    """
    shape = diffused_shape(config, model, info)
    model = sized(config, model, info)
    part, sampling, codec = config["sampling"], make_sampling(config, model.schedule), model.codec
    returned, scale = lookup(RETURNED, part["returned"], "returned"), part["guidance"].get("scale", 1.0)

    def run(params, key, indices, cond, values):
        times, scale, null, decoder = values
        start_key, solver_key = jax.random.split(key)
        zeros = jnp.zeros((indices.shape[0], *shape))
        x = prior(model.schedule, example_keys(start_key, indices), zeros, times[0])
        spec = dict(part["guidance"]) | ({"scale": scale} if "scale" in part["guidance"] else {})
        denoise = guided(spec, model, params, cond, null)
        denoise = _entry(part, "threshold", THRESHOLDS, denoise, model.schedule, under="sampling.")
        x = sample(denoise, sampling.solver, times, x, solver_key, indices=indices)[0]
        x = returned(denoise, x, times[-1])
        return x if codec is None else codec.ways(decoder).decode(x)

    fixed = [part["solver"], {**part["guidance"], "scale": None}, part["threshold"], part["returned"], shape]
    jitted = ({} if compiled is None else compiled).setdefault(str(fixed), jax.jit(run))

    def draw(params, key, indices, cond):
        null = unconditional(config, model, cond)
        decoder = None if codec is None else codec.params()
        return jitted(params, key, indices, cond, (sampling.times, jnp.asarray(scale, jnp.float32), null, decoder))

    if part["guidance"]["name"] == DISTILLED and "guidance" not in model.told:
        raise ValueError("config.sampling.guidance is distilled, of which this network was not told in training.")
    if part["label"] != -1 and not 0 <= part["label"] < model.classes:
        raise ValueError(
            f"config.sampling.label is {part['label']}; classes are 0 to {model.classes - 1}, and -1 takes all in turn."
        )
    if "text" in model.told:
        model.prompts.tokens([*_captions(part), part["negative"]])  # says its errors, as do the next two
    cond = {name: np.zeros((1, *one.shape), one.dtype) for name, one in model.told.items()}
    denoise = guided(part["guidance"], model, {}, cond, cond)
    _entry(part, "threshold", THRESHOLDS, denoise, model.schedule, under="sampling.")
    return draw


def diffused_shape(config: Any, model: Model, info: Any) -> tuple[int, ...]:
    """Return the shape of what is diffused into a sample: that of the data, unless `sampling.size` says another."""
    shape, size, factor = info.shapes["x"], tuple(config["sampling"]["size"]), model.codec.factor if model.codec else 1
    if not size:
        return shape
    if (
        len(shape) != 3
        or len(size) != 2
        or any(not isinstance(side, int) or side < 1 or side % factor for side in size)
    ):
        raise ValueError(
            f"config.sampling.size is {size}; it must be a height and a width in pixels"
            + (f", both multiples of {factor}, which is a pixel of the latents." if factor > 1 else ", of images.")
        )
    shape = (*(side // factor for side in size), shape[-1])
    try:
        shapes_of(model.module, _called_with(model.told, shape))
    except ValueError as error:
        raise ValueError(f"config.sampling.size is {size}, which the network does not take: {error}") from None
    return shape


def sized(config: Any, model: Model, info: Any) -> Model:
    """Return a model for samples of `sampling.size`: where its pace depends on the tokens of an image, at another."""
    pace, before = config["pace"], info.shapes["x"]
    if pace["name"] != "sequence_shift" or not config["sampling"]["size"]:
        return model
    shape = diffused_shape(config, model, info)
    tokens = round(pace["tokens"] * shape[0] * shape[1] / (before[0] * before[1]))
    schedule = make_schedule({"schedule": config["schedule"], "pace": {**pace, "tokens": tokens}})
    return model._replace(schedule=schedule, apply=_entry(config, "input", INPUTS, model.bare, schedule))


def drawn_shape(config: Any, model: Model, info: Any) -> tuple[int, ...]:
    """Return the shape of a sample."""
    shape, codec = diffused_shape(config, model, info), model.codec
    return shape if codec is None else (*(side * codec.factor for side in shape[:2]), codec.channels)


def conditions(config: Any, model: Model, indices: Any) -> dict[str, Any]:
    """Return what the samples of these global indices are told: their label, and their caption's text."""
    told = {}
    if "label" in model.told:
        told["label"] = jnp.asarray(labels_of(config, model, indices), jnp.int32)
    told |= _texts(model, captions_of(config, indices))
    guidance = config["sampling"]["guidance"]
    if "guidance" in told and guidance["name"] == DISTILLED:
        told["guidance"] = jnp.full(len(indices), guidance["scale"], jnp.float32)
    return told


def unconditional(config: Any, model: Model, cond: Any) -> dict[str, Any]:
    """Return what guidance tells instead of `cond`: the null label, and for captions `sampling.negative`."""
    null = _texts(model, [config["sampling"]["negative"]])
    null = {name: jnp.broadcast_to(value, cond[name].shape) for name, value in null.items()}
    return {**cond, **null} | ({"label": jnp.full_like(cond["label"], model.classes)} if "label" in cond else {})


def labels_of(config: Any, model: Model, indices: Any) -> Any:
    """Return the labels of the samples of these global indices: `sampling.label`, or all classes in turn."""
    label = config["sampling"]["label"]
    return indices % model.classes if label == -1 else np.full(len(indices), label)


def captions_of(config: Any, indices: Any) -> list[str]:
    """Return the captions of the samples of these global indices: those of `sampling.captions` in turn."""
    captions = _captions(config["sampling"])
    return [captions[index % len(captions)] for index in indices]


def guided(spec: Any, model: Model, params: Params, cond: Any, null: Any = None) -> Denoiser:
    """Return the denoiser of a model under `cond`, guided away from `null` as `spec` says; None is without guidance."""
    build = {"prediction": model.prediction}
    if spec is None or spec["name"] in ("none", DISTILLED):
        return make_denoiser(model.apply, params, model.schedule, **build, cond=cond)
    if not cond:
        raise ValueError(
            "config.sampling.guidance guides a model that has no conditions; set it to none, or train with "
            "config.cond=('label',)."
        )
    keywords = {word: value for word, value in spec.items() if word not in ("scale", "interval", "name")}
    guide = lookup(GUIDANCE, spec["name"], "guidance")
    if "schedule" in inspect.signature(guide).parameters:
        keywords["schedule"] = model.schedule
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


def _called_with(told, shape):
    """Return what the network is called with for an x of this shape, by shape and dtype."""
    cond = {name: jax.ShapeDtypeStruct((1, *one.shape), one.dtype) for name, one in told.items()}
    return jax.ShapeDtypeStruct((1, *shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32), cond


def _example(training):
    return _called_with(training.model.told, training.batches.info.shapes["x"])


def _started(config, training, params):
    """Return the state that starts at these parameters, with those that the loss adds."""
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


def _texts(model, captions):
    """Return what the network is told for captions."""
    if "text" not in model.told:
        return {}
    return {name: value for name, value in told_for(model.prompts, captions).items() if name in model.told}


def _captions(part):
    captions = part["captions"] or ("",)
    return (captions,) if isinstance(captions, str) else captions


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


RETURNED = {"x": lambda denoise, x, t: x, "x0": lambda denoise, x, t: denoise(x, t).x0}

LOSSES = {"denoising": denoising_loss, "hybrid": hybrid_loss}
