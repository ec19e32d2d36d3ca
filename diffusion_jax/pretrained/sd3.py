"""Stable Diffusion 3 and 3.5 from folders of diffusers: SD3Transformer2DModel, which is our `mmdit`.

Their table of positions is a buffer, which training leaves; ours is a parameter.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.nets.mmdit import groups_of, mmdit
from diffusion_jax.pretrained.rules import CONV, SINGLE, Call, Pretrained, Put, Rule, Table, linear, load, swapped
from diffusion_jax.pretrained.tensors import Tensors, of_config, open_tensors, read_config
from diffusion_jax.types import Array

KIND = "SD3Transformer2DModel"


def load_sd3(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read the transformer of SD3 or SD3.5; it computes, and is kept, in `dtype`.

    It is called as `apply(params, x, t, cond)`: x is NHWC, t in [0, 1], and `cond` has `text` (B, L, D) and `pooled`.
    """
    config = _DEFAULTS | read_config(folder, (KIND,), "load_sd3")
    with of_config(folder):
        _check(config, folder)
    return read_sd3(config, open_tensors(folder, variant=variant), dtype, put=put)


def read_sd3(
    config: dict[str, Any], tensors: Tensors, dtype: str, *, table: Table | None = None, put: Put = None
) -> Pretrained:
    """Read the transformer of a whole config; `table` has the rules of files that diffusers did not write."""
    with of_config(tensors.source):
        module = mmdit(**keywords_of(config), dtype=dtype)
        example = example_of(config, config["patch_size"], config["in_channels"])
    params = load(table or table_of(config), tensors, module, example, dtype=dtype, put=put)
    return Pretrained(module, params, config)


class SD3Call(Call):
    """The network called as theirs is; images are NHWC, and a timestep is one of 0 .. 1000."""

    def __call__(
        self, hidden_states: Array, encoder_hidden_states: Array, pooled_projections: Array, timestep: Any
    ) -> Array:
        cond = {"text": encoder_hidden_states, "pooled": pooled_projections}
        return self.network(hidden_states, per_example(timestep, hidden_states) / 1000, cond)


def keywords_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as keywords of `mmdit`."""
    depth = config["num_layers"]
    return {
        "channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "width": width_of(config),
        "depth": depth,
        "heads": config["num_attention_heads"],
        "patch": config["patch_size"],
        "positions": "learned",
        "max_size": config["pos_embed_max_size"],
        "dual": [layer for layer in config["dual_attention_layers"] if layer < depth],
        "normalized": "rms" if config["qk_norm"] else "none",
        "text_width": config["joint_attention_dim"],
        "pooled_width": config["pooled_projection_dim"],
    }


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    rules = [
        *linear("pos_embed.proj", "patches", CONV),
        Rule("pos_embed.pos_embed", "positions", SINGLE),
        *ends(),
    ]
    theirs = "transformer_blocks.{i}"
    for number, group in enumerate(groups_of(config["num_layers"], config["dual_attention_layers"])):
        ours = f"blocks_{number}"
        second = one_stream(f"{theirs}.attn2", f"{ours}/image/self_attention")
        own = [*two_streams(theirs, ours, last=group.last), *second]
        rules += [rule._replace(first=group.first) for rule in own]
    return Table(tuple(rules))


def two_streams(theirs: str, ours: str, *, last: bool = False) -> list[Rule]:
    """Give the rules of blocks of text and image; in the last block text has its scale before its shift."""
    read = swapped if last else linear
    rules = [
        *linear(f"{theirs}.norm1.linear", f"{ours}/image/modulation"),
        *read(f"{theirs}.norm1_context.linear", f"{ours}/text/modulation"),
        *one_stream(f"{theirs}.attn", f"{ours}/image/attention"),
        *linear(tuple(f"{theirs}.attn.add_{part}_proj" for part in "qkv"), f"{ours}/text/attention/qkv"),
        *linear(f"{theirs}.attn.to_add_out", f"{ours}/text/attention/out"),
    ]
    for part in "qk":
        rules.append(Rule(f"{theirs}.attn.norm_added_{part}.weight", f"{ours}/text/attention/norm_{part}/scale"))
    for feed, stream in (("ff", "image"), ("ff_context", "text")):
        rules += linear(f"{theirs}.{feed}.net.0.proj", f"{ours}/{stream}/dense_1")
        rules += linear(f"{theirs}.{feed}.net.2", f"{ours}/{stream}/dense_2")
    return rules


def one_stream(theirs: str, ours: str) -> list[Rule]:
    """Give the rules of attention of one stream, which may lack what follows."""
    return [
        *linear(tuple(f"{theirs}.to_{part}" for part in "qkv"), f"{ours}/qkv"),
        *linear(f"{theirs}.to_out.0", f"{ours}/out"),
        *(Rule(f"{theirs}.norm_{part}.weight", f"{ours}/norm_{part}/scale") for part in "qk"),
    ]


def ends() -> list[Rule]:
    """Give the rules of what comes before and after the blocks."""
    embedders = {"timestep": "time", "text": "pooled", "guidance": "guidance"}
    return [
        *(
            rule
            for theirs, ours in embedders.items()
            for rule in linear(f"time_text_embed.{theirs}_embedder.linear_{{n}}", f"conditioning/{ours}_{{n}}")
        ),
        *linear("context_embedder", "text"),
        *swapped("norm_out.linear", "last_modulation"),
        *linear("proj_out", "last"),
    ]


def width_of(config: Mapping[str, Any]) -> int:
    """Return the width of a transformer, which configs give by its heads."""
    return config["num_attention_heads"] * config["attention_head_dim"]


def example_of(config: Mapping[str, Any], side: int, channels: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return what such a network is called with, by shape, for an image of `side` by `side` pixels."""
    words, pooled = (1, 1, config["joint_attention_dim"]), (1, config["pooled_projection_dim"])
    shapes = (1, side, side, channels), (1,), words, pooled
    x, t, text, pooled = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    return x, t, {"text": text, "pooled": pooled}


def per_example(value: Any, x: Array) -> Array:
    """Return a number, or one for each example, as one for each example of x."""
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape[:1])


def _check(config, folder):
    """Refuse what ours cannot do."""
    for name, known in (("qk_norm", (None, "rms_norm")), ("caption_projection_dim", (width_of(config),))):
        if config[name] not in known:
            raise ValueError(
                f"{folder}: its config.json has {name}={config[name]!r}; known is {' or '.join(map(repr, known))}."
            )
    if not config["pos_embed_max_size"]:
        raise ValueError(f"{folder}: its config.json has no pos_embed_max_size; known are tables of positions only.")


_DEFAULTS: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 96,
    "dual_attention_layers": (),
    "qk_norm": None,
}
