"""Single files of whole models, as the authors of Stable Diffusion 1, 2, XL and 3 wrote them.

                    begins with                                                     is
    U-Net           model.diffusion_model.                                          unet
    autoencoder     first_stage_model.                                              vae
    text, 1         cond_stage_model.transformer.        CLIP                       text_encoder
    text, 2         cond_stage_model.model.              OpenCLIP                   text_encoder
    text, XL        conditioner.embedders.0.transformer. CLIP                       text_encoder
                    conditioner.embedders.1.model.       OpenCLIP                   text_encoder_2
    transformer     model.diffusion_model.               see `transformer_file.py`  transformer
    text, 3         text_encoders.clip_l.transformer.    CLIP                       text_encoder
                    text_encoders.clip_g.transformer.    OpenCLIP, as transformers  text_encoder_2
                    text_encoders.t5xxl.transformer.     T5                         text_encoder_3

There is no config. Shapes give all sizes, written down as configs of diffusers and transformers, by which a network is
built and can be saved; what they do not give is known: heads are 64 wide, but in the U-Net of version 1, which has 8 at
every level. What reads the text of version 2 is OpenCLIP without its last block.

Nor is there a tokenizer, or a word of the path: versions 1 and XL predict the noise unless it is said that they do not;
of version 2 there are both, and 3 predicts eps - x0. Images are 64 pixels of latents high, 96 in version 2 that
predicts v, 128 in XL and 3.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.naming import lookup
from diffusion_jax.pretrained.blocks import residual
from diffusion_jax.pretrained.clip import ClipTextCall, open_table, read_clip_text
from diffusion_jax.pretrained.parts import TOKENIZERS, Parts, Pipeline
from diffusion_jax.pretrained.rules import CONV, DENSE, POINTWISE, Pretrained, Put, Table, called, linear, norm
from diffusion_jax.pretrained.t5 import T5Call, config_of, read_t5
from diffusion_jax.pretrained.tensors import Tensors, behind, count, of_config
from diffusion_jax.pretrained.transformer_file import kind_of, read_transformer
from diffusion_jax.pretrained.unet import UNetCall, read_unet, transformer
from diffusion_jax.pretrained.vae import VAECall, read_vae_file

_HEAD = 64
NETWORK, _VAE = "model.diffusion_model.", "first_stage_model."
_TRAINED = "state_dict."  # before all names, where the file is a checkpoint of training
FLOW = "flow"  # what is predicted, and cannot be said to be otherwise


class Reader(NamedTuple):
    """What reads texts, its tokenizer, whether that fills rows with the token 0, and whether all can be left out."""

    kind: str
    tokenizer: str = "CLIPTokenizer"
    zeros: bool = False
    needed: bool = True


class Version(NamedTuple):
    """What a file does not say: of what kind the pipeline is, its path, what is predicted, and the sides of latents.

    Readers of texts are named by their ends.
    """

    kind: str
    texts: Mapping[str, Reader]
    scheduler: Mapping[str, Any]
    sides: Mapping[str, int] = {}
    predicts: str = ""
    network: tuple[str, str] = ("unet", "UNet2DConditionModel")
    settings: Mapping[str, Any] = {}


def pipeline_of(
    tensors: Tensors, *, dtype: str = "float32", put: Put = None, prediction: str = "", tokenizer: str | Path = ""
) -> Pipeline:
    """Return the networks of a file as parts, which are read when they are asked for.

    `prediction` is "eps" or "v", and "" what is usual of the version; `tokenizer` is the folder of one, or where the
    version has several, a folder that holds `tokenizer`, `tokenizer_2` and for version 3 `tokenizer_3`.
    """
    if _present(tensors, [_TRAINED]):
        tensors = behind(tensors, _TRAINED)
    version = next((VERSIONS[prefix] for prefix in _present(tensors, VERSIONS)), None)
    predicts = prediction or (version.predicts if version else "")
    if version and version.predicts == FLOW != predicts:
        raise ValueError(f"load: a {version.kind} predicts eps - x0, and not {predicts!r}: leave `prediction` out.")
    flows = {FLOW: ""} if version and version.predicts == FLOW else {}
    kind = lookup(_PREDICTIONS | flows, predicts, "prediction of a single file") if predicts else ""
    side = version.sides.get(predicts, 64) if version else 64
    openers: dict[str, Callable[[], Any]] = {}
    for prefix in _present(tensors, (NETWORK, _VAE, *_TEXTS)):
        name, read = _reader(prefix, tensors, side)
        openers[name] = partial(read, behind(tensors, prefix), dtype, put)
    if not openers:
        raise ValueError(
            f"load: {tensors.source} is of no whole model: no name in it begins with "
            f"{', '.join((NETWORK, _VAE, *_TEXTS))}. An autoencoder alone is read by "
            "pretrained.vae.load_vae_file, which is told its scale, and anything else from a folder with a config.json."
        )
    version = version and _without(version, openers)
    if (
        not version
        or not {version.network[0], "vae", *(f"text_encoder{end}" for end in version.texts)} <= openers.keys()
    ):
        return Pipeline(Parts(openers), {}, {})
    folders = _tokenizers(Path(tokenizer).expanduser(), version) if tokenizer else {}
    openers |= {name: partial(TOKENIZERS[_tokenizer(version, name)], folder) for name, folder in folders.items()}
    scheduler = {**version.scheduler, **({"prediction_type": kind} if kind else {})} if predicts else {}
    return Pipeline(Parts(openers), scheduler, _index(version), folders)


def _reader(prefix, tensors, side):
    """Return the name of the part behind a prefix, and what reads it, (tensors, dtype, put)."""
    if prefix in _TEXTS:
        return _TEXTS[prefix]
    kind = kind_of(behind(tensors, NETWORK))
    if prefix == _VAE:
        xl = not kind and _present(tensors, ["conditioner."])
        return "vae", partial(read_ldm_vae, **_LATENTS["XL" if xl else kind])
    return ("transformer", read_transformer) if kind else ("unet", partial(read_ldm_unet, side=side))


def _without(version, openers):
    """Return a version without the readers that can be left out and are not there, which its index says."""
    there = {end: one for end, one in version.texts.items() if one.needed or f"text_encoder{end}" in openers}
    left = {f"{part}{end}" for end in version.texts.keys() - there for part in ("text_encoder", "tokenizer")}
    return version._replace(texts=there, settings={**version.settings, **{key: [None, None] for key in sorted(left)}})


def _index(version) -> dict[str, Any]:
    """Return the model_index.json of a version."""
    parts = dict([version.network, ("vae", "AutoencoderKL"), ("scheduler", version.scheduler["_class_name"])])
    index = {name: ["diffusers", kind] for name, kind in parts.items()}
    for end, reader in version.texts.items():
        index[f"text_encoder{end}"] = ["transformers", reader.kind]
        index[f"tokenizer{end}"] = ["transformers", reader.tokenizer]
    return {"_class_name": version.kind, **index, **version.settings}


def _tokenizers(folder, version) -> dict[str, Path]:
    """Return the folder of each tokenizer, of which those of OpenCLIP fill rows with the token 0."""
    names = {f"tokenizer{end}": reader.zeros for end, reader in version.texts.items()}
    found = {name: folder / name for name in names}
    if len(names) == 1 and not found["tokenizer"].is_dir():
        found = {"tokenizer": folder}
    missing = [name for name, place in found.items() if not place.is_dir()]
    if missing:
        raise ValueError(
            f"load: tokenizer is {folder}, which has no {' and no '.join(missing)}; a {version.kind} is read by "
            f"{' and '.join(names)}: give a folder that holds them."
        )
    for name, zeros in names.items():
        words = TOKENIZERS[_tokenizer(version, name)](found[name])([""])
        if zeros and words[0, -1] != 0:
            raise ValueError(
                f"load: {found[name]} fills rows with the token {words[0, -1]}, as the first CLIP does; OpenCLIP, "
                f"which reads the prompts of this file, fills them with 0: give the tokenizer of a {version.kind} "
                "like it."
            )
    return found


def _tokenizer(version, name):
    """Return the class of a tokenizer."""
    return version.texts[name.removeprefix("tokenizer")].tokenizer


def read_ldm_unet(tensors: Tensors, dtype: str, put: Put = None, *, side: int = 64) -> Pretrained:
    """Read a U-Net, which was trained on latents of this side."""
    with of_config(tensors.source):
        config = unet_config(tensors) | {"sample_size": side}
    return called(UNetCall, read_unet(config, tensors, dtype, table=unet_table(config), put=put))


def read_ldm_vae(tensors: Tensors, dtype: str, put: Put = None, *, scale: float, shift: float = 0.0) -> Pretrained:
    """Read an autoencoder."""
    return called(VAECall, read_vae_file(tensors, scale=scale, shift=shift, dtype=dtype, put=put))


def read_openai_text(
    tensors: Tensors, dtype: str, put: Put = None, *, feed: str = "quick_gelu", projects: bool = False
) -> Pretrained:
    """Read a text's network in the spelling of transformers; a projection that is not there is the identity."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors.shapes) else ""
    config = _text_config(
        tensors,
        tokens=f"{prefix}embeddings.token_embedding.weight",
        positions=f"{prefix}embeddings.position_embedding.weight",
        block=f"{prefix}encoder.layers.{{}}.mlp.fc1.weight",
    )
    if projects:
        config |= {"architectures": ["CLIPTextModelWithProjection"]}
        tensors = _projecting(tensors, config["hidden_size"])
        config |= {"projection_dim": tensors.shapes[_PROJECTION][0]}
    return called(ClipTextCall, read_clip_text(config | {"hidden_act": feed}, tensors, dtype, put=put))


def _projecting(tensors, width):
    """Return tensors with a projection."""
    if _PROJECTION in tensors.shapes:
        return tensors
    one = np.eye(width, dtype=np.float32)
    shapes, dtypes = (
        {**found, _PROJECTION: new} for found, new in ((tensors.shapes, one.shape), (tensors.dtypes, one.dtype))
    )
    return Tensors(shapes, lambda name: one if name == _PROJECTION else tensors.read(name), tensors.source, dtypes)


def read_open_text(tensors: Tensors, dtype: str, put: Put = None, *, whole: bool) -> Pretrained:
    """Read a text's network in the spelling of OpenCLIP: `whole` with its projection, else without its last block."""
    block = "transformer.resblocks.{}.mlp.c_fc.weight"
    config = _text_config(tensors, tokens="token_embedding.weight", positions="positional_embedding", block=block)
    config |= {"hidden_act": "gelu"}
    if whole:
        config |= {"architectures": ["CLIPTextModelWithProjection"]}
        config |= {"projection_dim": tensors.shapes.get("text_projection", (0, 0))[1]}
    else:
        config["num_hidden_layers"] -= 1
    return called(ClipTextCall, read_clip_text(config, tensors, dtype, table=open_table(config), put=put))


def read_t5_text(tensors: Tensors, dtype: str, put: Put = None) -> Pretrained:
    """Read a T5."""
    return called(T5Call, read_t5(config_of(tensors), tensors, dtype, put=put))


def unet_config(tensors: Tensors) -> dict[str, Any]:
    """Return the config that diffusers would have of a U-Net's shapes."""
    shapes, levels = tensors.shapes, [[]]
    for number in itertools.count(1):
        if f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append([])
        elif f"input_blocks.{number}.0.in_layers.0.weight" in shapes:
            levels[-1].append(number)
        else:
            break
    first, last = "input_blocks.0.0.weight", "out.2.weight"
    told = "middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    if not all(levels) or any(name not in shapes for name in (first, last, told)):
        raise ValueError(
            f"load: {tensors.source} has no U-Net that is known: one of {', '.join((first, last, told))} and "
            f"input_blocks.1.0.in_layers.0.weight is not behind '{NETWORK}'."
        )
    layers = [count(shapes, f"input_blocks.{level[0]}.1.transformer_blocks.{{}}.norm1.weight") for level in levels]
    widths = [shapes[f"input_blocks.{level[0]}.0.out_layers.3.weight"][0] for level in levels]
    plain = len(shapes["middle_block.1.proj_in.weight"]) == 4
    pooled = shapes.get("label_emb.0.0.weight", (0, None))[1]
    kinds = ["CrossAttn" * bool(count) for count in layers]
    middle = count(shapes, "middle_block.1.transformer_blocks.{}.norm1.weight")
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes[first][1],
        "out_channels": shapes[last][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "transformer_layers_per_block": [*(count or 1 for count in layers[:-1]), middle],
        "cross_attention_dim": shapes[told][1],
        "use_linear_projection": not plain,
        "attention_head_dim": 8 if plain else [max(width // _HEAD, 1) for width in widths],
    } | ({} if pooled is None else _POOLED | {"projection_class_embeddings_input_dim": pooled})


def unet_table(config: Mapping[str, Any]) -> Table:
    """Return the rules of a U-Net, whose blocks are numbered through, resampling among them."""
    depth, attends = config["layers_per_block"], [name.startswith("C") for name in config["down_block_types"]]
    mix = partial(transformer, inner=DENSE if config["use_linear_projection"] else POINTWISE)
    rules = [
        *linear("time_embed.0", "conditioning/time_1"),
        *linear("time_embed.2", "conditioning/time_2"),
        *linear("label_emb.0.0", "conditioning/pooled_1"),
        *linear("label_emb.0.2", "conditioning/pooled_2"),
        *linear("input_blocks.0.0", "first", CONV),
        *residual("middle_block.0", "middle_block_0", _RESIDUAL),
        *mix("middle_block.1", "middle_mixer"),
        *residual("middle_block.2", "middle_block_1", _RESIDUAL),
        *norm("out.0", "last_norm"),
        *linear("out.2", "last", CONV),
    ]
    for level, attended in enumerate(attends):
        down = [f"input_blocks.{1 + level * (depth + 1) + place}" for place in range(depth)]
        up = [f"output_blocks.{(len(attends) - 1 - level) * (depth + 1) + place}" for place in range(depth + 1)]
        for way, blocks in (("down", down), ("up", up)):
            for place, block in enumerate(blocks):
                rules += residual(f"{block}.0", f"{way}_{level}_block_{place}", _RESIDUAL)
                rules += mix(f"{block}.1", f"{way}_{level}_mixer_{place}")
        rules += linear(f"input_blocks.{(level + 1) * (depth + 1)}.0.op", f"down_{level + 1}_resample", CONV)
        rules += linear(f"{up[-1]}.{1 + attended}.conv", f"up_{level - 1}_resample/conv", CONV)
    return Table(tuple(rules))


def _text_config(tensors, *, tokens, positions, block) -> dict[str, Any]:
    """Return the config that transformers would have of the shapes of these names."""
    shapes = tensors.shapes
    missing = [name for name in (tokens, positions, block.format(0)) if name not in shapes]
    if missing:
        raise ValueError(
            f"load: {tensors.source} has no network of texts that is known: it lacks {', '.join(missing)}."
        )
    with of_config(tensors.source):
        (vocabulary, width), hidden, length = shapes[tokens], shapes[block.format(0)][0], shapes[positions][0]
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": count(shapes, block),
        "num_attention_heads": max(width // _HEAD, 1),
        "max_position_embeddings": length,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
        "projection_dim": width,
    }


def _present(tensors, prefixes):
    return [prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors.shapes)]


_RESIDUAL = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
_POOLED = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}

_PROJECTION = "text_projection.weight"
_LATENTS = {  # "" and "XL" of U-Nets, and by the kind of a transformer
    "": {"scale": 0.18215},
    "XL": {"scale": 0.13025},
    "SD3Transformer2DModel": {"scale": 1.5305, "shift": 0.0609},
    "FluxTransformer2DModel": {"scale": 0.3611, "shift": 0.1159},
}
_PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}
_PATH = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
_DDIM = {"_class_name": "DDIMScheduler", **_PATH, "clip_sample": False, "set_alpha_to_one": False}
_EULER = {"_class_name": "EulerDiscreteScheduler", **_PATH, "timestep_spacing": "leading"}
_UNCHECKED = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
_ONE, _TWO = Reader("CLIPTextModel"), Reader("CLIPTextModel", zeros=True)
_PAIR = {end: Reader("CLIPTextModelWithProjection", zeros=bool(end)) for end in ("", "_2")}
_THREE = "text_encoders.clip_{}.transformer."
_TEXTS: Mapping[str, tuple[str, Callable[..., Any]]] = {  # what reads texts, and how it is read
    "cond_stage_model.transformer.": ("text_encoder", read_openai_text),
    "cond_stage_model.model.": ("text_encoder", partial(read_open_text, whole=False)),
    "conditioner.embedders.0.transformer.": ("text_encoder", read_openai_text),
    "conditioner.embedders.1.model.": ("text_encoder_2", partial(read_open_text, whole=True)),
    _THREE.format("l"): ("text_encoder", partial(read_openai_text, projects=True)),
    _THREE.format("g"): ("text_encoder_2", partial(read_openai_text, feed="gelu", projects=True)),
    "text_encoders.t5xxl.transformer.": ("text_encoder_3", read_t5_text),
}
VERSIONS = {  # by what the names of a file that reads texts begin with
    "cond_stage_model.transformer.": Version(
        "StableDiffusionPipeline", {"": _ONE}, _DDIM, predicts="eps", settings=_UNCHECKED
    ),
    "cond_stage_model.model.": Version("StableDiffusionPipeline", {"": _TWO}, _DDIM, {"v": 96}, settings=_UNCHECKED),
    "conditioner.embedders.0.transformer.": Version(
        "StableDiffusionXLPipeline",
        {"": _ONE, "_2": _PAIR["_2"]},
        _EULER,
        {"eps": 128, "v": 128},
        predicts="eps",
        settings={"force_zeros_for_empty_prompt": True},
    ),
    _THREE.format("l"): Version(
        "StableDiffusion3Pipeline",
        {**_PAIR, "_3": Reader("T5EncoderModel", "T5TokenizerFast", needed=False)},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        predicts=FLOW,
        network=("transformer", "SD3Transformer2DModel"),
    ),
}
