"""From a model to its samples, as one program: what they are told, how they are guided, and what they become."""

import functools
import inspect
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data import make_source
from diffusion_jax.data.pipeline import examples
from diffusion_jax.data.transforms import RESIZING
from diffusion_jax.denoisers.guidance import GUIDANCE, within
from diffusion_jax.denoisers.network import doubled, make_denoiser
from diffusion_jax.denoisers.precondition import INPUTS
from diffusion_jax.denoisers.threshold import THRESHOLDS
from diffusion_jax.experiment import Model, called_with, entry, make_sampling, make_schedule
from diffusion_jax.naming import choose, lookup
from diffusion_jax.nets.network import shapes_of
from diffusion_jax.process.forward import prior
from diffusion_jax.process.noise import example_keys
from diffusion_jax.prompts import told_for
from diffusion_jax.solvers.solver import sample
from diffusion_jax.types import Array, Batch, Denoiser, Key, Params

DISTILLED = "distilled"  # guidance whose scale a network is told, for one evaluation and not two


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
        denoise = entry(part, "threshold", THRESHOLDS, denoise, model.schedule, under="sampling.")
        x = sample(denoise, sampling.solver, times, x, solver_key, indices=indices)[0]
        x = returned(denoise, x, times[-1])
        return x if codec is None else codec.ways(decoder).decode(x)

    fixed = [part["solver"], {**part["guidance"], "scale": None}, part["threshold"], part["returned"], shape]
    jitted = ({} if compiled is None else compiled).setdefault(str(fixed), jax.jit(run))

    def draw(params, key, indices, cond):
        null = unconditional(config, model, cond)
        decoder = None if codec is None else codec.params()
        return jitted(params, key, indices, cond, (sampling.times, jnp.asarray(scale, jnp.float32), null, decoder))

    _check_scale(part["guidance"])
    if part["guidance"]["name"] == DISTILLED and "guidance" not in model.told:
        raise ValueError("config.sampling.guidance is distilled, of which this network was not told in training.")
    if part["label"] != -1 and not model.classes:
        raise ValueError(f"config.sampling.label is {part['label']}; this network was told no classes: leave it at -1.")
    if part["label"] != -1 and not 0 <= part["label"] < model.classes:
        raise ValueError(
            f"config.sampling.label is {part['label']}; classes are 0 to {model.classes - 1}, and -1 takes all in turn."
        )
    if "text" in model.told:
        model.prompts.tokens([*_captions(part), part["negative"]])  # says its errors, as do the next two
    cond = {name: np.zeros((1, *one.shape), one.dtype) for name, one in model.told.items()}
    denoise = guided(part["guidance"], model, {}, cond, cond)
    entry(part, "threshold", THRESHOLDS, denoise, model.schedule, under="sampling.")
    return draw


def check_beside(model: Model) -> None:
    """Refuse what decodes or reads captions if its weights cannot be read, or are not those that they were."""
    if model.codec is not None:
        model.codec.check()
    if "text" in model.told:
        model.prompts.check()


def diffused_shape(config: Any, model: Model, info: Any) -> tuple[int, ...]:
    """Return the shape of what is diffused into a sample: that of the data, unless `sampling.size` says another."""
    shape, size, factor = info.shapes["x"], tuple(config["sampling"]["size"]), model.codec.factor if model.codec else 1
    if not size:
        return shape
    if "hint" in model.told:
        raise ValueError(f"config.sampling.size is {size}, but hints are of the data's size; leave it out.")
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
        shapes_of(model.module, called_with(model.told, shape))
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
    return model._replace(schedule=schedule, apply=entry(config, "input", INPUTS, model.bare, schedule))


def drawn_shape(config: Any, model: Model, info: Any) -> tuple[int, ...]:
    """Return the shape of a sample."""
    shape, codec = diffused_shape(config, model, info), model.codec
    return shape if codec is None else (*(side * codec.factor for side in shape[:2]), codec.channels)


def conditions(config: Any, model: Model, indices: Any, *, hints: Any = None) -> dict[str, Any]:
    """Return what the samples of these global indices are told: their label, their caption's text, their hint.

    `hints` stand for those that are read, where the data are not at hand; label and caption must then be given.
    """
    told = {}
    if "label" in model.told:
        told["label"] = jnp.asarray(labels_of(config, model, indices), jnp.int32)
    if "hint" in model.told:
        told["hint"] = jnp.asarray(_steering(config, indices)["hint"] if hints is None else hints)
    told |= _texts(model, captions_of(config, model, indices))
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
    """Return the labels of samples by global index: `sampling.label`, those of their hints, or all classes in turn."""
    label = config["sampling"]["label"]
    if label == -1 and "hint" in model.told and "label" in (shown := _steering(config, indices)):
        return shown["label"]
    return indices % model.classes if label == -1 else np.full(len(indices), label)


def captions_of(config: Any, model: Model, indices: Any) -> list[str]:
    """Return the captions of samples by global index: `sampling.captions` in turn, or those of their hints."""
    if not config["sampling"]["captions"] and "hint" in model.told:
        shown = _steering(config, indices)
        if "caption" in shown:
            return list(map(str, shown["caption"]))
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


def _texts(model, captions):
    """Return what the network is told for captions."""
    if "text" not in model.told:
        return {}
    return {name: value for name, value in told_for(model.prompts, captions).items() if name in model.told}


def check_hints(config: Any, model: Model) -> None:
    """Refuse hints that cannot be read, or that are of another shape than those of training."""
    if "hint" not in model.told:
        return
    found, wanted = _steering(config, np.zeros(1, int))["hint"].shape[1:], model.told["hint"].shape
    if found != wanted:
        raise ValueError(f"config.sampling.hints gives hints of shape {found}; those of training are {wanted}.")


def _steering(config, indices):
    """Return what steers the samples of these global indices: the examples of those numbers, as they are."""
    specs = [{"name": one} if isinstance(one, str) else dict(one) for one in config["transforms"]]
    kept = [_CENTRED.get(one["name"], lambda **same: same)(**one) for one in specs]
    kept = [one for one in kept if one["name"] in (*RESIZING, "to_unit", "edges", "hint")]
    source = config["sampling"]["hints"] or config["data"]
    source = source.to_dict() if hasattr(source, "to_dict") else source
    return _examples(json.dumps(source), json.dumps(kept), tuple(map(int, indices)))


@functools.lru_cache(maxsize=2)
def _examples(source, transforms, indices):
    """Return examples, which are asked for their hints, their labels and their captions."""
    return examples(_source(source), json.loads(transforms), np.asarray(indices))


@functools.lru_cache(maxsize=2)
def _source(spec):
    """Open a source, once for all batches."""
    return make_source(json.loads(spec))


def _check_scale(spec):
    """Refuse guidance without a scale, and keywords of guidance that a network does by itself."""
    if spec["name"] != "none" and "scale" not in spec:
        raise ValueError(
            f"config.sampling.guidance {spec['name']} needs a scale, of which 1 is the conditional model: "
            f"--config.sampling.guidance=\"{{'name': '{spec['name']}', 'scale': 3.0}}\"."
        )
    if spec["name"] == DISTILLED and set(spec) != {"name", "scale"}:
        raise ValueError(f"config.sampling.guidance distilled takes a scale alone; it has {', '.join(sorted(spec))}.")


def _captions(part):
    captions = part["captions"] or ("",)
    captions = (captions,) if isinstance(captions, str) else tuple(captions)
    other = [caption for caption in (*captions, part["negative"]) if not isinstance(caption, str)]
    if other:
        raise ValueError(f"config.sampling.captions and negative are texts; {other[0]!r} is none.")
    return captions


# What a crop at random is where nothing shall be left to chance.
_CENTRED = {
    "random_crop": lambda name, side, **_: {"name": "center_crop", "side": side},
    "adm_random_crop": lambda name, side, **_: {"name": "adm_crop", "side": side},
}

RETURNED = {"x": lambda denoise, x, t: x, "x0": lambda denoise, x, t: denoise(x, t).x0}
