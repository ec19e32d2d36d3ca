"""One door to other people's weights: a folder, a file or a repository becomes networks that are called as theirs are.

What a folder holds its config.json says, by `_class_name` (diffusers) or `model_type` (transformers). A folder of a
pipeline, with model_index.json, and a single file of a whole model become a `Pipeline`, whose parts are read when they
are asked for.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import linen as nn

from diffusion_jax.naming import lookup
from diffusion_jax.pretrained import (
    clip,
    controlnet,
    dinov2,
    dit,
    edm,
    flux,
    hub,
    sd3,
    single_file,
    t5,
    transformer_file,
    unet,
    vae,
    vq,
)
from diffusion_jax.pretrained.parts import INDEX, Pipeline, pipeline_of
from diffusion_jax.pretrained.rules import Put, Table, called
from diffusion_jax.pretrained.tensors import CONFIG, behind, open_file, read_config


class Family(NamedTuple):
    """How networks of a kind are read, (folder, *, dtype, variant, put); their rules, by config; how they are called.

    `file` is the name of their file of weights, without its ending.
    """

    load: Callable[..., Any]
    table_of: Callable[[Mapping[str, Any]], Table]
    call: Callable[[Any], nn.Module]
    file: str = "diffusion_pytorch_model"


def load(
    path: str | Path,
    *,
    dtype: str = "float32",
    variant: str = "",
    subfolder: str = "",
    revision: str = "",
    prediction: str = "",
    tokenizer: str | Path = "",
    put: Put = None,
) -> Any:
    """Return the `Pretrained` of a folder, whose module is called by the names of the original, or a `Pipeline`.

    `path` is a folder of a network or of a pipeline, a single file, or a repository of huggingface.co, there at a
    `revision`. A part of a pipeline is its `subfolder`; a `variant`, such as "fp16", is part of the names of files.
    What a single file of a whole model does not hold is its `tokenizer`, a folder, and its `prediction`, "eps" or "v".
    EDM's files give networks that are called as ours are: see `edm.load_edm`.

    Parameters are kept, and networks compute, in `dtype`, and each goes to `put` when it is whole: see `rules.Put`.
    """
    options = {"dtype": dtype, "variant": variant, "put": put}
    folder = hub.found(path, revision=revision)
    if folder.is_file():
        found = _file(folder, {"prediction": prediction, "tokenizer": tokenizer}, dtype=dtype, put=put)
        if subfolder and not isinstance(found, Pipeline):
            raise ValueError(f"load: {path} is a network alone, and has no part '{subfolder}'.")
        return found.parts[subfolder] if isinstance(found, Pipeline) and subfolder else found
    if prediction or tokenizer:
        raise ValueError(f"load: {path} is a folder, which says itself what is predicted and has its own tokenizer.")
    if not subfolder and (folder / INDEX).is_file():
        return pipeline_of(folder, functools.partial(load, path, revision=revision, **options), FAMILIES)
    family = FAMILIES[_kind(folder / subfolder)]
    folder = with_weights(path, subfolder, variant=variant, revision=revision)
    return called(family.call, family.load(folder / subfolder, **options))


def with_weights(path: str | Path, subfolder: str = "", *, variant: str = "", revision: str = "") -> Path:
    """Return the folder that has the weights of a network, or of a part of a pipeline: of a repository once fetched."""
    folder = hub.found(path, revision=revision)
    if folder != Path(path).expanduser():
        for patterns in hub.weights(subfolder, variant):
            folder = hub.found(path, revision=revision, patterns=(*patterns, *hub.DESCRIPTIONS))
            if any((folder / subfolder).glob("*.safetensors")):
                break
    return folder


def _file(path, said, **options):
    """Read a single file: of some authors a network alone, else a whole model, of which something may be `said`."""
    if path.suffix == ".pkl":
        read = functools.partial(edm.load_edm, path)
    else:
        tensors = open_file(path)
        inner = behind(tensors, single_file.NETWORK)
        if transformer_file.kind_of(tensors):
            read = functools.partial(transformer_file.read_transformer, tensors)
        elif dit.is_file(tensors) and not transformer_file.kind_of(inner):
            read = lambda **options: called(dit.DiTCall, dit.read_dit_file(tensors, **options))  # noqa: E731
        else:
            return single_file.pipeline_of(tensors, **said, **options)
    if any(said.values()):
        raise ValueError(f"load: {path} is a network alone; neither `tokenizer` nor `prediction` is of it.")
    return read(**options)


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json."""
    return lookup(FAMILIES, str(config.get("model_type") or config.get("_class_name")), "family of networks")


def _kind(folder):
    """Return the family's name of a folder, or say what the folder has instead."""
    parts = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    if not (folder / CONFIG).is_file() and parts:
        raise ValueError(f"load: there is no {folder / CONFIG}; {', '.join(parts)} have one: name one as `subfolder`.")
    config = read_config(folder, tuple(FAMILIES), "load")
    return config.get("model_type") or config["_class_name"]


FAMILIES = {
    "UNet2DModel": Family(unet.load_unet, unet.table_of, unet.UNet2DCall),
    "UNet2DConditionModel": Family(unet.load_unet, unet.table_of, unet.UNetCall),
    "AutoencoderKL": Family(vae.load_vae, vae.table_of, vae.VAECall),
    "DiTTransformer2DModel": Family(dit.load_dit, dit.table_of, dit.DiTCall),
    "Transformer2DModel": Family(dit.load_dit, dit.table_of, dit.DiTCall),
    "SD3Transformer2DModel": Family(sd3.load_sd3, sd3.table_of, sd3.SD3Call),
    "FluxTransformer2DModel": Family(flux.load_flux, flux.table_of, flux.FluxCall),
    "ControlNetModel": Family(controlnet.load_controlnet, controlnet.table_of, controlnet.ControlNetCall),
    "VQModel": Family(vq.load_vq, vae.table_of, vq.VQCall),
    "clip": Family(clip.load_clip, clip.table_of, clip.ClipCall, "model"),
    "clip_text_model": Family(clip.load_clip_text, clip.table_of, clip.ClipTextCall, "model"),
    "clip_vision_model": Family(clip.load_clip_vision, clip.table_of, clip.ClipVisionCall, "model"),
    "t5": Family(t5.load_t5, t5.table_of, t5.T5Call, "model"),
    "mt5": Family(t5.load_t5, t5.table_of, t5.T5Call, "model"),
    # Positions are interpolated as transformers does
    "dinov2": Family(
        functools.partial(dinov2.load_dinov2, positions="plain"), dinov2.table_of, dinov2.DinoV2Call, "model"
    ),
    "dinov2_with_registers": Family(dinov2.load_dinov2, dinov2.table_of, dinov2.DinoV2Call, "model"),
}
