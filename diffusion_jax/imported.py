"""Other people's models as runs of ours: what `pretrained.load` reads becomes the folder of a run at step 0.

    model_index.json             a pipeline: its parts lie in folders beside it
    config.json                  a network alone, on the path of DDPM
    a single file                a whole model, which is first written as a pipeline, or a network alone: DiT's on the
                                 path of DDPM, EDM's on its own

The network's parameters become a checkpoint and everything else entries of the config. An autoencoder and what reads
prompts are not trained, so they stay where they are: the config has their folder and a hash of their files.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax import workdir as folders
from diffusion_jax.codecs import make_codec
from diffusion_jax.config import made_by
from diffusion_jax.data.source import Info
from diffusion_jax.experiment import called_with, make_model
from diffusion_jax.naming import lookup
from diffusion_jax.nets.checks import dtype_of
from diffusion_jax.nets.condition import Told
from diffusion_jax.nets.network import shapes_of
from diffusion_jax.pretrained import dit, edm, hub, load, save, sd3, unet
from diffusion_jax.pretrained import flux as pretrained_flux
from diffusion_jax.pretrained.families import with_weights
from diffusion_jax.pretrained.parts import INDEX, SCHEDULER, Pipeline, read_index
from diffusion_jax.pretrained.rules import Pretrained, unread
from diffusion_jax.pretrained.schedulers import Recipe, plain_recipe, read_scheduler
from diffusion_jax.pretrained.tensors import CONFIG, identity, read_config
from diffusion_jax.pretrained.tokenizer import words_of
from diffusion_jax.sampler import DISTILLED, check_beside, make_sampler
from diffusion_jax.training.checkpoint import Checkpoints
from diffusion_jax.training.optimizer import make_optimizer
from diffusion_jax.training.state import start_state
from diffusion_jax.types import Params

BASE = Path(__file__).parent.parent / "configs" / "base.py"
NETWORK = ("unet", "transformer")  # what a pipeline calls its network
AUTOENCODER = ("vae", "vqvae")


class Parts(NamedTuple):
    """What lies in a folder: the kind of pipeline, "" for a network alone, and the folders of its parts."""

    kind: str
    folders: Mapping[str, Path]
    index: Mapping[str, Any]  # all that model_index.json says
    home: Path


class Kind(NamedTuple):
    """How a network of other people's is one of ours: its name, its keywords by config and source, its images' side."""

    name: str
    keywords: Callable[[Any, str], dict[str, Any]]
    side: Callable[[Any], Any]


class Network(NamedTuple):
    """A network that was read, as data: an entry of the config, and what its inputs are like."""

    spec: dict[str, Any]
    params: Params
    told: Told
    side: int
    channels: int
    learned_variance: bool


class Beside(NamedTuple):
    """How what is beside a network is read: which files, what it computes in, and whether it stays on the host."""

    variant: str = ""
    text_dtype: str = "float32"
    latent_dtype: str = "float32"
    offload: bool = False


class Imported(NamedTuple):
    """A run that is read and not written: its config, what its data are like, and its parameters."""

    config: Any
    info: Info
    params: Params


def read_imported(
    source: str | Path,
    *,
    dtype: str = "float32",
    variant: str = "",
    text_dtype: str = "float32",
    latent_dtype: str = "float32",
    offload: bool = False,
    parts: str | Path = "",
    tokenizer: str | Path = "",
    prediction: str = "",
) -> Imported:
    """Read a folder of diffusers, a repository or a file; the network computes, and is kept, in `dtype`.

    What reads prompts and what decodes have dtypes of their own, and with `offload` are on devices only while they are
    used.
    A single file of a whole model is first written as a pipeline to the folder `parts`, where what reads prompts and
    what decodes stay; `tokenizer` and `prediction` are what it does not hold: see `pretrained.load`.
    """
    for name, value in {"dtype": dtype, "text_dtype": text_dtype, "latent_dtype": latent_dtype}.items():
        dtype_of(f"import_weights, --{name}", value)
    said = {"tokenizer": tokenizer, "prediction": prediction}
    found, folder = None, hub.found(source)
    if folder.is_file():
        if variant:
            raise ValueError(f"import_weights: --variant is of files in folders, and {source} is a file; leave it out.")
        found = load(folder, **said)
        if isinstance(found, Pipeline):
            if not found.config:
                raise ValueError(
                    f"import_weights: of a pipeline, {source} holds {', '.join(found.parts)} alone; it takes a "
                    "network, an autoencoder and all that reads prompts. Put them together as a folder of diffusers: "
                    "`pretrained.save` writes each part."
                )
            if not parts:
                raise ValueError(f"import_weights: {source} is of a whole model: say where its `parts` are to lie.")
            found, folder = None, save(found, parts)
        elif dtype != "float32":
            found = load(folder, dtype=dtype)
    elif any(said.values()):
        raise ValueError(f"import_weights: --tokenizer and --prediction are of single files, and {source} is none.")
    elif folder != Path(source).expanduser():
        folder = _fetched(source, folder, variant)
    how = Beside(variant, text_dtype, latent_dtype, offload)
    return _imported(parts_of(folder.resolve()), Path(source).name, found, dtype, how)


def _fetched(source, folder, variant):
    """Return the folder of a repository when it has the weights of all parts that are needed."""
    held = read_index(folder, "import_weights")[1] if (folder / INDEX).is_file() else {"": ""}
    for part in held:
        if not part or part.startswith((*NETWORK, *AUTOENCODER, "text_encoder")):
            folder = with_weights(source, part, variant=variant)
    return folder


def _imported(parts, name, found, dtype, how) -> Imported:
    config: Any = made_by(str(BASE), "get_training", "config", BASE.parent)
    config.update(lookup(PIPELINES, parts.kind, f"pipeline of {parts.home}")(parts, how))
    folder, scheduled = None, read_scheduler(part_of(parts, "scheduler")) if parts.kind else None
    if found is None:
        folder = part_of(parts, *NETWORK)
        read_config(folder, tuple(NETWORKS), "import_weights")
        found = load(folder, dtype=dtype, variant=how.variant, put=unread)
    network, recipe = network_of(found, str(parts.home), dtype)
    recipe = scheduled or recipe
    if "tokens" in recipe.pace:
        recipe.pace["tokens"] = (network.side // network.spec.get("patch", 2)) ** 2
    names = parts.index.get("id2label") or {}
    classes = tuple(names.get(str(label), str(label)) for label in range(network.told.num_classes))
    config.cond = (*config.cond, *(("label",) if classes else ()))
    config.network = network.spec
    config.data = {"name": "array", "path": ""}  # where training data would be
    config.training.optimizer = {"name": "sgd", "momentum": None}  # which keeps nothing beside the parameters
    config.training.averages = {}
    config.transforms = ()
    _follow(config, recipe, network, parts)
    pixels = config.latent.name == "none"
    shapes: dict[str, Any] = {"x": (network.side, network.side, network.channels), **({"label": ()} if classes else {})}
    info = Info(name, shapes, classes, (-1.0, 1.0) if pixels else None)
    _check(config.lock(), info, network, parts.home)
    if folder is not None:  # the weights, now that all else is known to be right
        return Imported(config, info, load(folder, dtype=dtype, variant=how.variant).params)
    return Imported(config, info, network.params)


def _follow(config, recipe, network, parts):
    """Set what follows from the scheduler, and how the pipeline guides."""
    for entry in ("schedule", "pace", "input"):
        config[entry] = getattr(recipe, entry)
    config.loss.prediction, config.loss.times = recipe.prediction, recipe.times
    config.loss.weighting = recipe.weighting
    if network.learned_variance:
        config.loss = {"name": "hybrid", "steps": recipe.steps, "prediction": recipe.prediction, "vlb_weight": 1e-3}
    sampling = config.sampling
    sampling.update(average="params", steps=30, count=4, batch_size=4)
    sampling.grid, sampling.solver = recipe.grid, recipe.solver
    if config.latent.name == "none":  # it is of pixels, which latents are not
        sampling.threshold = recipe.threshold
    if "guidance" in config.cond:
        sampling.guidance = {"name": DISTILLED, "scale": 3.5}
    elif config.cond and parts.kind != "FluxPipeline":  # which needs neither a scale nor a second evaluation
        sampling.guidance = {"name": "classifier_free", "scale": 4.0 if "label" in config.cond else 7.5}


def write_imported(imported: Imported, workdir: Path) -> None:
    """Write the folder of a run at step 0, whose one checkpoint has the parameters; it is whole or no run."""
    partial = workdir.with_name(f".{workdir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(imported, partial)
        workdir.mkdir(parents=True, exist_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, workdir / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(imported, folder):
    held = folders.open_workdir(folder, imported.config)
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        folders.write_info(folder, imported.info)
        folders.note_start(folder, 0)
        optimizer, _ = make_optimizer(imported.config.training.optimizer, imported.config.training.rate)
        key = jax.random.fold_in(jax.random.key(imported.config.seed), 1)
        state = start_state(imported.params, optimizer, {}, key)
        about = {"config": folders.plain(imported.config), "versions": folders.versions()}
        checkpoints.save(state, {"step": 0}, about)
    finally:
        checkpoints.close()
        held.close()


def parts_of(folder: Path) -> Parts:
    """Say what lies in a folder of diffusers, or that a file is a network alone."""
    if folder.is_file():
        return Parts("", {}, {}, folder)
    if not (folder / INDEX).is_file():
        if not (folder / CONFIG).is_file():
            raise ValueError(
                f"{folder} has neither model_index.json nor config.json: it is no folder that diffusers writes. Of a "
                "pipeline, give the folder that holds `unet` or `transformer`."
            )
        return Parts("", {NETWORK[0]: folder}, {}, folder)
    found, kinds = read_index(folder, "import_weights")
    kind, names = found.get("_class_name"), found.get("id2label") or {}
    if not isinstance(kind, str) or not isinstance(names, dict):
        lacks = "_class_name, the pipeline's kind" if isinstance(names, dict) else "names by number in id2label"
        raise ValueError(f"import_weights: {folder / INDEX} has no {lacks}; it is damaged: download it again.")
    return Parts(kind, {name: folder / name for name in kinds}, found, folder)


def part_of(parts: Parts, *names: str) -> Path:
    """Return the folder of a part, whichever of these names it has, or say that the pipeline is without it."""
    name = next((name for name in names if name in parts.folders), None)
    if name is None:
        raise ValueError(
            f"import_weights: {parts.home / INDEX} names no {' or '.join(names)}, or says that it is null, and "
            f"{parts.kind} needs it: save or download the pipeline with all of its parts."
        )
    file = parts.folders[name] / (SCHEDULER if name == "scheduler" else CONFIG)
    if not file.is_file():
        raise ValueError(f"import_weights: {parts.home / INDEX} names {name}, and there is no {file}; download it.")
    return parts.folders[name]


def alone(parts: Parts, how: Beside) -> dict[str, Any]:
    """Return the entries of a network of images, or of whatever, without anything beside it."""
    return {"latent": {"name": "none"}}


def of_latents(parts: Parts, how: Beside) -> dict[str, Any]:
    """Return the entries of a network of latents."""
    folder = part_of(parts, *AUTOENCODER)
    kind = read_config(folder, ("AutoencoderKL", "VQModel"), "latent")["_class_name"]
    place = {"folder": str(folder), "hash": identity(folder, variant=how.variant), "variant": how.variant}
    place |= {"dtype": how.latent_dtype, "offload": how.offload}
    return {"latent": {"name": {"AutoencoderKL": "vae", "VQModel": "vq"}[kind], **place}}


def stable_diffusion(parts: Parts, how: Beside) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by CLIP."""
    return of_latents(parts, how) | _reading("clip", ("text",), parts, how, 1)


def stable_diffusion_xl(parts: Parts, how: Beside) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by two CLIPs, and sizes."""
    config = read_config(part_of(parts, *NETWORK), ("UNet2DConditionModel",), "import_weights")
    beside, read = of_latents(parts, how), _reading("clip_pair", ("text", "pooled"), parts, how, 2)
    codec = make_codec(beside["latent"])
    size = (config.get("sample_size") or 128) * (codec.factor if codec else 1)
    read["text"] |= {"size": (size, size), "waves": config.get("addition_time_embed_dim") or 256}
    read["text"]["empty"] = "zeros" if parts.index.get("force_zeros_for_empty_prompt", True) else "read"
    return beside | read


def stable_diffusion_3(parts: Parts, how: Beside) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by two CLIPs and T5, which may be left out."""
    there = "text_encoder_3" in parts.folders
    read = _reading("clip_t5", ("text", "pooled"), parts, how, 3 if there else 2)
    if not there:
        config = read_config(part_of(parts, *NETWORK), ("SD3Transformer2DModel",), "import_weights")
        read["text"]["zeros"] = config.get("joint_attention_dim", 4096)
    return of_latents(parts, how) | read


def flux(parts: Parts, how: Beside) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by T5 and CLIP, and perhaps how to be guided."""
    config = read_config(part_of(parts, *NETWORK), ("FluxTransformer2DModel",), "import_weights")
    guided = config.get("guidance_embeds", False)
    told = ("text", "pooled", *(("guidance",) if guided else ()))
    read = _reading("t5_clip", told, parts, how, 2)
    read["text"] |= {"guidance": 3.5 if guided else 0.0, "length": 512 if guided else 256}
    return of_latents(parts, how) | read


def _reading(name, told, parts, how, count):
    """Return the entries of what reads prompts, which is `count` networks."""
    encoders = [part_of(parts, f"text_encoder{end}") for end in ("", "_2", "_3")[:count]]
    hashes = tuple(identity(encoder, variant=how.variant) for encoder in encoders)
    words = tuple(words_of(parts.home / f"tokenizer{end}") for end in ("", "_2", "_3")[:count])
    text = {"name": name, "folder": str(parts.home), "hashes": hashes, "words": words, "variant": how.variant}
    text |= {"dtype": how.text_dtype, "offload": how.offload}
    return {"cond": told, "text": text}


def network_of(found: Pretrained, source: str, dtype: str) -> tuple[Network, Recipe]:
    """Return a network as the config knows it, and its path where nothing beside it says another.

    What follows from the data and from what is told is left out.
    """
    kind = NETWORKS[found.config.get("_class_name") or found.config["model_type"]]
    side = kind.side(found.config)
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise ValueError(f"{source}: sample_size is {side}; it must be a number of pixels. `sample` takes any size.")
    spec = {"name": kind.name, **kind.keywords(found.config, source), "dtype": dtype}
    channels, out = spec.pop("channels"), spec.pop("out_channels")
    for known in ("text_width", "pooled_width", "num_classes"):
        spec.pop(known, None)
    module: Any = getattr(found.module, "network", found.module)
    network = Network(spec, found.params, module.told, side, channels, _learned(source, channels, out))
    return network, edm.recipe_of(found.config, source) if "precond" in found.config else plain_recipe()


def _learned(folder, channels, out):
    """Say whether a network puts out a variance beside its prediction, and refuse any other excess."""
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"{folder}: the network makes {out} channels of {channels}; known are as many, or twice as many, where the "
            "second half is a variance. Networks that are shown more than x, as for inpainting, are not known here."
        )
    return out == 2 * channels


def _check(config, info, network, folder):
    """Build what sampling would, and hold what its network is told against that which was read."""
    model = make_model(config, info)
    make_sampler(config, model, info)
    check_beside(model)
    try:
        shapes_of(model.module, called_with(model.told, info.shapes["x"]))
    except ValueError as error:
        raise ValueError(f"{folder}: its network does not take images of its own sample_size: {error}") from None
    if model.module.told != network.told:
        raise ValueError(
            f"{folder}: its network is told {network.told}, and what is beside it tells {model.module.told}: the parts "
            "are not of one pipeline."
        )


def _sample_size(usual):
    return lambda config: config.get("sample_size") or usual


def _by_config(keywords):
    return lambda config, source: keywords(config)


NETWORKS = {
    "UNet2DModel": Kind("unet", unet.keywords_of, _sample_size(64)),
    "UNet2DConditionModel": Kind("unet", unet.keywords_of, _sample_size(64)),
    "DiTTransformer2DModel": Kind("dit", _by_config(dit.keywords_of), _sample_size(32)),
    "Transformer2DModel": Kind("dit", _by_config(dit.keywords_of), _sample_size(32)),
    "SD3Transformer2DModel": Kind("mmdit", _by_config(sd3.keywords_of), _sample_size(128)),
    "FluxTransformer2DModel": Kind("flux", _by_config(pretrained_flux.keywords_of), _sample_size(128)),
    "DiT": Kind("dit", _by_config(dit.keywords_of_file), lambda config: config["input_size"]),
    "SongUNet": Kind("unet", _by_config(edm.keywords_of), lambda config: config["img_resolution"]),
    "DhariwalUNet": Kind("unet", _by_config(edm.keywords_of), lambda config: config["img_resolution"]),
}

PIPELINES: dict[str, Callable[[Parts, Beside], dict[str, Any]]] = {
    "": alone,
    "DDPMPipeline": alone,
    "DDIMPipeline": alone,
    "LDMPipeline": of_latents,
    "DiTPipeline": of_latents,
    "StableDiffusionPipeline": stable_diffusion,
    "StableDiffusionXLPipeline": stable_diffusion_xl,
    "StableDiffusion3Pipeline": stable_diffusion_3,
    "FluxPipeline": flux,
}
