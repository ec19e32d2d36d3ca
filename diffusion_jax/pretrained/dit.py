"""DiT (Peebles & Xie 2023) and SiT (Ma et al. 2024): single files of their authors, and folders of diffusers.

The two forms of DiT are trained alike and compute other numbers: diffusers' blocks embed time and label by layers of
their own, by waves that end elsewhere (`embed`, a shift of 1), and are normalised by another epsilon before their dense
layers. Both are called with the number of a step and a label, of which the one after the last is the null label:

    make_denoiser(on_steps(model.apply), model.params, world.schedule, prediction="learned_variance", ...)     (1)

SiT's files spell what DiT's do. Its time runs from noise at 0 to data at 1, so on the rectified path

    velocity(x, t) = -SiT(x, 1 - t),                                                                          (2)

of which half of the channels was never trained.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.nets.dit import SIZES, dit
from diffusion_jax.pretrained.rules import CONV, SINGLE, Call, Pretrained, Put, Rule, Table, linear, load
from diffusion_jax.pretrained.tensors import (
    Tensors,
    behind,
    check_known,
    of_config,
    open_file,
    open_tensors,
    read_config,
)
from diffusion_jax.types import Apply, Array

KINDS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second in files of before it had its own class


def load_dit(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read a folder of diffusers; the network computes, and is kept, in `dtype`."""
    found = read_config(folder, KINDS, "load_dit")
    config = _DEFAULTS[found["_class_name"]] | found
    check_known(config, _KNOWN, folder)
    with of_config(folder):
        module = dit(**keywords_of(config), dtype=dtype)
    return _loaded(module, open_tensors(folder, variant=variant), config, dtype, put)


def keywords_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config of diffusers as keywords of `dit`."""
    heads = config["num_attention_heads"]
    return {
        "channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "size": {
            "name": "custom",
            "width": heads * config["attention_head_dim"],
            "depth": config["num_layers"],
            "heads": heads,
        },
        "patch": config["patch_size"],
        "grid": config["sample_size"] // config["patch_size"],
        "mlp_epsilon": config["norm_eps"],
        "embedders": "each",
        "time": {"name": "sinusoidal", "time_scale": 1.0, "shift": 1.0},
        "num_classes": config["num_embeds_ada_norm"],
        "dropout": config["dropout"],
    }


def load_dit_file(path: str | Path, *, heads: int = 0, dtype: str = "float32") -> Pretrained:
    """Read a file of DiT's or SiT's authors, or a checkpoint of their training, of which the average is taken.

    `heads` are those of the published network of the same width and depth unless they are given: the file does not say.
    Positions, which the authors did not train, are a parameter of ours.
    """
    return read_dit_file(open_file(path), heads=heads, dtype=dtype)


def read_dit_file(tensors: Tensors, *, heads: int = 0, dtype: str = "float32", put: Put = None) -> Pretrained:
    """Read what `load_dit_file` reads, of tensors."""
    tensors = _own(tensors)
    with of_config(tensors.source):
        config = _config_of(tensors, heads)
        module = dit(**keywords_of_file(config), dtype=dtype)
    return _loaded(module, tensors, config, dtype, put)


def is_file(tensors: Tensors) -> bool:
    """Say whether tensors are those of a file of DiT's or SiT's authors."""
    return any(f".{name}".endswith(f".{_FIRST}") for name in tensors.shapes)


def keywords_of_file(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was read from a file's shapes as keywords of `dit`."""
    return {
        "channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "size": {
            "name": "custom",
            "width": config["hidden_size"],
            "depth": config["depth"],
            "heads": config["num_heads"],
        },
        "patch": config["patch_size"],
        "positions": "learned",
        "grid": config["input_size"] // config["patch_size"],
        "mlp_ratio": config["mlp_ratio"],
        "time": {"name": "sinusoidal", "time_scale": 1.0},
        "num_classes": config["num_classes"],
    }


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    return AUTHORS if config["_class_name"] == "DiT" else DIFFUSERS


def velocity_of_sit(apply: Apply) -> Apply:
    """Return SiT's network as one that predicts our velocity on the rectified path, Eq. (2)."""

    def velocity(params, x, t, cond):
        return -apply(params, x, 1 - t, cond)[..., : x.shape[-1]]

    return velocity


class DiTCall(Call):
    """The network by the names of diffusers; images are NHWC."""

    def __call__(self, hidden_states: Array, timestep: Any, class_labels: Array) -> Array:
        t = jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), hidden_states.shape[:1])
        return self.network(hidden_states, t, {"label": class_labels})


def _loaded(module, tensors, config, dtype, put=None) -> Pretrained:
    """Read the parameters that a config's rules name."""
    side = module.patch * max(module.grid, 1)
    x, t = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, side, side, module.channels), (1,)))
    example = (x, t, {"label": jax.ShapeDtypeStruct((1,), jnp.int32)})
    return Pretrained(module, load(table_of(config), tensors, module, example, dtype=dtype, put=put), config)


def _own(tensors: Tensors) -> Tensors:
    """Return the network's tensors, of the average if a checkpoint has several networks."""
    found = [name.removesuffix(_FIRST) for name in tensors.shapes if f".{name}".endswith(f".{_FIRST}")]
    if not found:
        raise ValueError(
            f"load_dit_file: {tensors.source} has no {_FIRST}, also not behind a prefix. A folder of diffusers is read "
            "by load_dit."
        )
    found = [prefix for prefix in found if prefix.startswith("ema.")] or found
    if len(found) > 1:
        raise ValueError(f"{tensors.source} holds several networks, behind {', '.join(map(repr, sorted(found)))}.")
    return behind(tensors, found[0])


def _config_of(tensors, heads):
    """Read from shapes, by the names of the authors' keywords, how a network was built."""
    wanted = (_FIRST, "pos_embed", "y_embedder.embedding_table.weight", "final_layer.linear.weight")
    mlp = "blocks.0.mlp.fc1.weight"
    missing = [name for name in (*wanted, mlp) if name not in tensors.shapes]
    if missing:
        raise ValueError(
            f"load_dit_file: {tensors.source} lacks {', '.join(missing)}; it is no file of DiT's or SiT's."
        )
    (width, channels, patch, _), (_, places, _), (rows, _), (numbers, _) = (tensors.shapes[name] for name in wanted)
    depth = 1 + max(int(found[1]) for name in tensors.shapes if (found := re.match(r"blocks\.(\d+)\.", name)))
    if math.isqrt(places) ** 2 != places:
        raise ValueError(f"load_dit_file: {tensors.source} has pos_embed of {places} patches, which are no square.")
    published = {size[:2]: size.heads for name, make in SIZES.items() if name != "custom" for size in [make()]}
    if not (heads or (width, depth) in published):
        known = ", ".join(f"{name} {make()[:2]}" for name, make in SIZES.items() if name != "custom")
        raise ValueError(
            f"load_dit_file: {tensors.source} is {width} wide and {depth} deep, which no published network is "
            f"({known}), and shapes do not tell into how many heads attention is divided: give `heads`."
        )
    return {
        "_class_name": "DiT",
        "input_size": patch * math.isqrt(places),
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": numbers // patch**2,
        "hidden_size": width,
        "depth": depth,
        "num_heads": heads or published[width, depth],
        "mlp_ratio": tensors.shapes[mlp][0] // width,
        "num_classes": rows - 1,
    }


_FIRST = "x_embedder.proj.weight"

AUTHORS = Table(
    (
        *linear("x_embedder.proj", "patches", CONV),
        Rule("pos_embed", "positions", SINGLE),
        *linear("t_embedder.mlp.0", "conditioning/time_1"),
        *linear("t_embedder.mlp.2", "conditioning/time_2"),
        Rule("y_embedder.embedding_table.weight", "conditioning/label"),
        *linear("blocks.{i}.adaLN_modulation.1", "blocks/modulation"),
        *linear("blocks.{i}.attn.qkv", "blocks/attention/qkv"),
        *linear("blocks.{i}.attn.proj", "blocks/attention/out"),
        *linear("blocks.{i}.mlp.fc{n}", "blocks/dense_{n}"),
        *linear("final_layer.adaLN_modulation.1", "last_modulation"),
        *linear("final_layer.linear", "last"),
    )
)

_BLOCK = "transformer_blocks.{i}"
DIFFUSERS = Table(
    (
        *linear("pos_embed.proj", "patches", CONV),
        *linear(f"{_BLOCK}.norm1.emb.timestep_embedder.linear_{{n}}", "conditioning/time_{n}"),
        Rule(f"{_BLOCK}.norm1.emb.class_embedder.embedding_table.weight", "conditioning/label"),
        *linear(f"{_BLOCK}.norm1.linear", "blocks/modulation"),
        *linear(tuple(f"{_BLOCK}.attn1.to_{part}" for part in "qkv"), "blocks/attention/qkv"),
        *linear(f"{_BLOCK}.attn1.to_out.0", "blocks/attention/out"),
        *linear(f"{_BLOCK}.ff.net.0.proj", "blocks/dense_1"),
        *linear(f"{_BLOCK}.ff.net.2", "blocks/dense_2"),
        *linear("proj_out_1", "last_modulation"),
        *linear("proj_out_2", "last"),
    )
)

_BOTH = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "sample_size": 32,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
    "norm_eps": 1e-5,
}
_DEFAULTS = {
    "DiTTransformer2DModel": {**_BOTH, "norm_type": "ada_norm_zero"},
    "Transformer2DModel": {**_BOTH, "norm_type": "layer_norm"},
}
_KNOWN: dict[str, tuple] = {
    "norm_type": ("ada_norm_zero",),
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
}
