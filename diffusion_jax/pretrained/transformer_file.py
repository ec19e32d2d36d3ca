"""Transformers in the files of their authors: of Stable Diffusion 3 and 3.5, and of Flux.

    joint_blocks.N.x_block, .context_block          is SD3Transformer2DModel
    double_blocks.N, single_blocks.N                is FluxTransformer2DModel

Queries, keys and values are one matrix, in Flux's single blocks one with the first layer beside them, and shift comes
before scale everywhere: both are as in ours. There is no config. Shapes give all sizes, written down as configs of
diffusers; what they do not give is known: where heads are not normed they are 64 wide, and of a head's numbers an
eighth turns with the first axis of a place, and a half of the rest with each of the others.
"""

import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.pretrained.flux import KIND as FLUX
from diffusion_jax.pretrained.flux import FluxCall, read_flux
from diffusion_jax.pretrained.rules import CONV, SINGLE, Pretrained, Put, Rule, Table, called, linear
from diffusion_jax.pretrained.sd3 import KIND as SD3
from diffusion_jax.pretrained.sd3 import SD3Call, groups_of, read_sd3
from diffusion_jax.pretrained.tensors import Tensors, count, of_config

_FIRST = {"joint_blocks.0.x_block.attn.qkv.weight": SD3, "double_blocks.0.img_attn.qkv.weight": FLUX}
_HEAD = 64


def kind_of(tensors: Tensors) -> str:
    """Return the class of diffusers that a file's transformer is, or "" where it has none that is known here."""
    return next((kind for name, kind in _FIRST.items() if name in tensors.shapes), "")


def read_transformer(tensors: Tensors, dtype: str = "float32", put: Put = None) -> Pretrained:
    """Read a transformer, to be called as diffusers' is."""
    with of_config(tensors.source):
        config = (sd3_config if kind_of(tensors) == SD3 else flux_config)(tensors)
    if kind_of(tensors) == SD3:
        return called(SD3Call, read_sd3(config, tensors, dtype, table=sd3_table(config), put=put))
    return called(FluxCall, read_flux(config, divided(tensors), dtype, table=FLUX_TABLE, put=put))


def sd3_config(tensors: Tensors) -> dict[str, Any]:
    """Return the config that diffusers would have of the shapes of a Stable Diffusion 3."""
    shapes, block = tensors.shapes, "joint_blocks.{}.x_block.{}"
    first, last, table = "x_embedder.proj.weight", "final_layer.linear.weight", "pos_embed"
    told = ("context_embedder.weight", "y_embedder.mlp.0.weight")
    _check_there(tensors, (first, last, table, *told))
    width, channels, patch, _ = shapes[first]
    depth = count(shapes, block.format("{}", "attn.qkv.weight"))
    (head,) = shapes.get(block.format(0, "attn.ln_q.weight"), (_HEAD,))
    return {
        "_class_name": SD3,
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes[last][0] // patch**2,
        "num_layers": depth,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shapes[told[0]][1],
        "caption_projection_dim": shapes[told[0]][0],
        "pooled_projection_dim": shapes[told[1]][1],
        "pos_embed_max_size": math.isqrt(shapes[table][1]),
        "dual_attention_layers": [n for n in range(depth) if block.format(n, "attn2.qkv.weight") in shapes],
        "qk_norm": "rms_norm" if block.format(0, "attn.ln_q.weight") in shapes else None,
    }


def sd3_table(config: Mapping[str, Any]) -> Table:
    """Return the rules of a Stable Diffusion 3."""
    rules = [
        *linear("x_embedder.proj", "patches", CONV),
        Rule("pos_embed", "positions", SINGLE),
        *_embedders({"t_embedder.mlp": "time", "y_embedder.mlp": "pooled"}, ("0", "2")),
        *linear("context_embedder", "text"),
        *_FINAL,
    ]
    for number, group in enumerate(groups_of(config["num_layers"], config["dual_attention_layers"])):
        for theirs, ours in {"x_block": "image", "context_block": "text"}.items():
            theirs, ours = f"joint_blocks.{{i}}.{theirs}", f"blocks_{number}/{ours}"
            own = [
                *linear(f"{theirs}.adaLN_modulation.1", f"{ours}/modulation"),
                *_attention(f"{theirs}.attn", f"{ours}/attention", _SD3_NORMS),
                *_attention(f"{theirs}.attn2", f"{ours}/self_attention", _SD3_NORMS),
                *linear(f"{theirs}.mlp.fc1", f"{ours}/dense_1"),
                *linear(f"{theirs}.mlp.fc2", f"{ours}/dense_2"),
            ]
            rules += [rule._replace(first=group.first) for rule in own]
    return Table(tuple(rules))


def flux_config(tensors: Tensors) -> dict[str, Any]:
    """Return the config that diffusers would have of the shapes of a Flux."""
    shapes = tensors.shapes
    first, last, head = "img_in.weight", "final_layer.linear.weight", "double_blocks.0.img_attn.norm.query_norm.scale"
    told = ("txt_in.weight", "vector_in.in_layer.weight")
    _check_there(tensors, (first, last, head, *told))
    (width, channels), (head_width,) = shapes[first], shapes[head]
    axis = head_width // 8
    return {
        "_class_name": FLUX,
        "patch_size": 1,
        "in_channels": channels,
        "out_channels": None if shapes[last][0] == channels else shapes[last][0],
        "num_layers": count(shapes, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": count(shapes, "single_blocks.{}.linear1.weight"),
        "attention_head_dim": head_width,
        "num_attention_heads": width // head_width,
        "joint_attention_dim": shapes[told[0]][1],
        "pooled_projection_dim": shapes[told[1]][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
        "axes_dims_rope": [axis, *[(head_width - axis) // 2] * 2],
    }


def divided(tensors: Tensors) -> Tensors:
    """Return the tensors of a Flux with the two layers that are one in its single blocks under two names."""
    cuts, shapes = {}, dict(tensors.shapes)
    for name in [name for name in shapes if ".linear1." in name]:
        (rows, *rest), (before, after) = shapes.pop(name), name.split("linear1.")
        width = 3 * tensors.shapes.get(f"{before}linear2.weight", (rows // 3,))[0]
        for part, place in {"qkv": slice(0, width), "dense": slice(width, rows)}.items():
            shapes[f"{before}{part}.{after}"] = (max(0, place.stop - place.start), *rest)
            cuts[f"{before}{part}.{after}"] = (name, place)

    def read(name):
        whole, place = cuts.get(name, (name, slice(None)))
        return tensors.read(whole)[place]

    dtypes = {name: tensors.dtypes[cuts.get(name, (name,))[0]] for name in shapes}
    return Tensors(shapes, read, tensors.source, dtypes)


def _embedders(names, layers):
    """Give the rules of embedders of two layers."""
    return [
        rule
        for theirs, ours in names.items()
        for place, layer in enumerate(layers, 1)
        for rule in linear(f"{theirs}.{layer}", f"conditioning/{ours}_{place}")
    ]


def _attention(theirs, ours, norms):
    """Give the rules of attention, which may lack what follows, and its `norms`, of queries and of keys."""
    return [
        *linear(f"{theirs}.qkv", f"{ours}/qkv"),
        *linear(f"{theirs}.proj", f"{ours}/out"),
        *(Rule(f"{theirs}.{name}", f"{ours}/norm_{part}/scale") for name, part in zip(norms, "qk", strict=True)),
    ]


def _check_there(tensors, names):
    missing = [name for name in names if name not in tensors.shapes]
    if missing:
        raise ValueError(f"load: {tensors.source} has no transformer that is known: it lacks {', '.join(missing)}.")


_SD3_NORMS = ("ln_q.weight", "ln_k.weight")
_FLUX_NORMS = ("norm.query_norm.scale", "norm.key_norm.scale")
_FINAL = (*linear("final_layer.adaLN_modulation.1", "last_modulation"), *linear("final_layer.linear", "last"))
_SINGLE = "single_blocks.{i}"
FLUX_TABLE = Table((
    *linear("img_in", "patches"),
    *linear("txt_in", "text"),
    *_embedders({"time_in": "time", "vector_in": "pooled", "guidance_in": "guidance"}, ("in_layer", "out_layer")),
    *(
        rule
        for theirs, ours in {"img": "image", "txt": "text"}.items()
        for rule in (
            *linear(f"double_blocks.{{i}}.{theirs}_mod.lin", f"blocks/{ours}/modulation"),
            *_attention(f"double_blocks.{{i}}.{theirs}_attn", f"blocks/{ours}/attention", _FLUX_NORMS),
            *linear(f"double_blocks.{{i}}.{theirs}_mlp.0", f"blocks/{ours}/dense_1"),
            *linear(f"double_blocks.{{i}}.{theirs}_mlp.2", f"blocks/{ours}/dense_2"),
        )
    ),
    *linear(f"{_SINGLE}.modulation.lin", "single_blocks/modulation"),
    *_attention(_SINGLE, "single_blocks/attention", _FLUX_NORMS),
    *linear(f"{_SINGLE}.dense", "single_blocks/dense_1"),
    *linear(f"{_SINGLE}.linear2", "single_blocks/dense_2"),
    *_FINAL,
))  # fmt: skip
