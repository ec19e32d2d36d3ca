"""Other people's models as runs of ours: a folder that diffusers wrote becomes the folder of a run at step 0.

    model_index.json             a pipeline: its parts lie in folders beside it
    config.json                  a network alone, on the path of DDPM

The network's parameters become a checkpoint and everything else entries of the config. An autoencoder and what reads
prompts are not trained, so they stay where they are: the config has their folder and a hash of their files.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from diffusion_jax import workdir as folders
from diffusion_jax.codecs import make_codec
from diffusion_jax.config import made_by
from diffusion_jax.data.source import Info
from diffusion_jax.experiment import make_model
from diffusion_jax.naming import lookup
from diffusion_jax.nets.condition import Told
from diffusion_jax.pretrained import dit, sd3, unet
from diffusion_jax.pretrained import flux as pretrained_flux
from diffusion_jax.pretrained.parts import INDEX, SCHEDULER, read_index
from diffusion_jax.pretrained.schedulers import plain_recipe, read_scheduler
from diffusion_jax.pretrained.tensors import CONFIG, identity, read_config
from diffusion_jax.sampler import DISTILLED, make_sampler
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


class Network(NamedTuple):
    """A network that was read, as data: an entry of the config, and what its inputs are like."""

    spec: dict[str, Any]
    params: Params
    told: Told
    side: int
    channels: int
    learned_variance: bool


class Imported(NamedTuple):
    """A run that is read and not written: its config, what its data are like, and its parameters."""

    config: Any
    info: Info
    params: Params


def read_imported(folder: str | Path, *, dtype: str = "float32", variant: str = "") -> Imported:
    """Read a folder of diffusers; the network computes, and is kept, in `dtype`."""
    parts = parts_of(Path(folder).expanduser().resolve())
    config: Any = made_by(str(BASE), "get_training", "config", BASE.parent)
    config.update(lookup(PIPELINES, parts.kind, f"pipeline of {folder}")(parts, variant))
    recipe = read_scheduler(part_of(parts, "scheduler")) if parts.kind else plain_recipe()
    network = _network(parts, dtype, variant)
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
    info = Info(Path(folder).name, shapes, classes, (-1.0, 1.0) if pixels else None)
    _check(config.lock(), info, network, folder)
    return Imported(config, info, network.params)


def _follow(config, recipe, network, parts):
    """Set what follows from the scheduler, and how the pipeline guides."""
    for entry in ("schedule", "pace", "input"):
        config[entry] = getattr(recipe, entry)
    config.loss.prediction, config.loss.times = recipe.prediction, recipe.times
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
    """Write the folder of a run at step 0, whose one checkpoint has the parameters."""
    held = folders.open_workdir(workdir, imported.config)
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        folders.write_info(workdir, imported.info)
        folders.note_start(workdir, 0)
        optimizer, _ = make_optimizer(imported.config.training.optimizer, imported.config.training.rate)
        key = jax.random.fold_in(jax.random.key(imported.config.seed), 1)
        state = start_state(imported.params, optimizer, {}, key)
        about = {"config": folders.plain(imported.config), "versions": folders.versions()}
        checkpoints.save(state, {"step": 0}, about)
    finally:
        checkpoints.close()
        held.close()


def parts_of(folder: Path) -> Parts:
    """Say what lies in a folder of diffusers."""
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


def alone(parts: Parts, variant: str) -> dict[str, Any]:
    """Return the entries of a network of images, or of whatever, without anything beside it."""
    return {"latent": {"name": "none"}}


def of_latents(parts: Parts, variant: str) -> dict[str, Any]:
    """Return the entries of a network of latents."""
    folder = part_of(parts, *AUTOENCODER)
    kind = read_config(folder, ("AutoencoderKL", "VQModel"), "latent")["_class_name"]
    place = {"folder": str(folder), "hash": identity(folder, variant=variant), "variant": variant}
    return {"latent": {"name": {"AutoencoderKL": "vae", "VQModel": "vq"}[kind], **place}}


def stable_diffusion(parts: Parts, variant: str) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by CLIP."""
    return of_latents(parts, variant) | _reading("clip", ("text",), parts, variant, 1)


def stable_diffusion_xl(parts: Parts, variant: str) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by two CLIPs, and sizes."""
    config = read_config(part_of(parts, *NETWORK), ("UNet2DConditionModel",), "import_weights")
    beside, read = of_latents(parts, variant), _reading("clip_pair", ("text", "pooled"), parts, variant, 2)
    codec = make_codec(beside["latent"])
    size = (config.get("sample_size") or 128) * (codec.factor if codec else 1)
    read["text"] |= {"size": (size, size), "waves": config.get("addition_time_embed_dim") or 256}
    read["text"]["empty"] = "zeros" if parts.index.get("force_zeros_for_empty_prompt", True) else "read"
    return beside | read


def stable_diffusion_3(parts: Parts, variant: str) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by two CLIPs and T5."""
    return of_latents(parts, variant) | _reading("clip_t5", ("text", "pooled"), parts, variant, 3)


def flux(parts: Parts, variant: str) -> dict[str, Any]:
    """Return the entries of a network of latents that is told prompts by T5 and CLIP, and perhaps how to be guided."""
    config = read_config(part_of(parts, *NETWORK), ("FluxTransformer2DModel",), "import_weights")
    guided = config.get("guidance_embeds", False)
    told = ("text", "pooled", *(("guidance",) if guided else ()))
    read = _reading("t5_clip", told, parts, variant, 2)
    read["text"] |= {"guidance": 3.5 if guided else 0.0, "length": 512 if guided else 256}
    return of_latents(parts, variant) | read


def _reading(name, told, parts, variant, count):
    """Return the entries of what reads prompts, which is `count` networks."""
    encoders = [part_of(parts, f"text_encoder{end}") for end in ("", "_2", "_3")[:count]]
    hashes = tuple(identity(encoder, variant=variant) for encoder in encoders)
    text = {"name": name, "folder": str(parts.home), "hashes": hashes, "variant": variant}
    return {"cond": told, "text": text}


def _network(parts, dtype, variant) -> Network:
    folder = part_of(parts, *NETWORK)
    kind = read_config(folder, tuple(NETWORKS), "import_weights")["_class_name"]
    return NETWORKS[kind](folder, dtype, variant)


def _unet(folder, dtype, variant) -> Network:
    read = unet.load_unet(folder, dtype=dtype, variant=variant)
    keywords = unet.keywords_of(read.config, folder) | {"dtype": dtype}
    return _described("unet", read, keywords, read.config.get("sample_size") or 64, folder)


def _dit(folder, dtype, variant) -> Network:
    read = dit.load_dit(folder, dtype=dtype, variant=variant)
    keywords = dit.keywords_of(read.config) | {"dtype": dtype}
    return _described("dit", read, keywords, read.config.get("sample_size") or 32, folder)


def _sd3(folder, dtype, variant) -> Network:
    read = sd3.load_sd3(folder, dtype=dtype, variant=variant)
    keywords = sd3.keywords_of(read.config) | {"dtype": dtype}
    return _described("mmdit", read, keywords, read.config.get("sample_size") or 128, folder)


def _flux(folder, dtype, variant) -> Network:
    read = pretrained_flux.load_flux(folder, dtype=dtype, variant=variant)
    keywords = pretrained_flux.keywords_of(read.config) | {"dtype": dtype}
    return _described("flux", read, keywords, read.config.get("sample_size") or 128, folder)


def _described(name, read, keywords, side, folder) -> Network:
    """Return a network as the config knows it: what follows from the data and from what is told is left out."""
    if not isinstance(side, int):
        raise ValueError(f"{folder}: sample_size is {side}; it must be one number. `sample` takes any size.")
    spec = {"name": name, **keywords}
    channels, out = spec.pop("channels"), spec.pop("out_channels")
    for known in ("text_width", "pooled_width", "num_classes"):
        spec.pop(known, None)
    return Network(spec, read.params, read.module.told, side, channels, _learned(folder, channels, out))


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
    if model.module.told != network.told:
        raise ValueError(
            f"{folder}: its network is told {network.told}, and what is beside it tells {model.module.told}: the parts "
            "are not of one pipeline."
        )


NETWORKS: dict[str, Callable[[Path, str, str], Network]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet,
    "DiTTransformer2DModel": _dit,
    "Transformer2DModel": _dit,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}

PIPELINES: dict[str, Callable[[Parts, str], dict[str, Any]]] = {
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
