"""Flux from folders of diffusers: FluxTransformer2DModel, dev with its guidance and schnell without, is our `flux`.

Theirs works on patches that a pipeline has cut, of 2 by 2 pixels; ours cuts them itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.nets.flux import flux
from diffusion_jax.pretrained.rules import Call, Pretrained, Put, Table, linear, load
from diffusion_jax.pretrained.sd3 import ends, example_of, one_stream, per_example, two_streams, width_of
from diffusion_jax.pretrained.tensors import Tensors, of_config, open_tensors, read_config
from diffusion_jax.types import Array

KIND = "FluxTransformer2DModel"


def load_flux(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read Flux; it computes, and is kept, in `dtype`.

    It is called as `apply(params, x, t, cond)`: x is NHWC, t in [0, 1], and `cond` has `text` (B, L, D), `pooled` and,
    for dev, `guidance` (B,).
    """
    config = _DEFAULTS | read_config(folder, (KIND,), "load_flux")
    with of_config(folder):
        _check(config, folder)
    return read_flux(config, open_tensors(folder, variant=variant), dtype, put=put)


def read_flux(
    config: dict[str, Any], tensors: Tensors, dtype: str, *, table: Table | None = None, put: Put = None
) -> Pretrained:
    """Read the Flux of a whole config; `table` has the rules of files that diffusers did not write."""
    with of_config(tensors.source):
        module = flux(**keywords_of(config), dtype=dtype)
        x, t, cond = example_of(config, 2, config["in_channels"] // 4)
    if config["guidance_embeds"]:
        cond["guidance"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    params = load(table or table_of(config), tensors, module, (x, t, cond), dtype=dtype, put=put)
    return Pretrained(module, params, config)


class FluxCall(Call):
    """The network called as theirs is: on patches (B, T, 4 C) with their places, and with a timestep in [0, 1]."""

    def __call__(
        self,
        hidden_states: Array,
        encoder_hidden_states: Array,
        pooled_projections: Array,
        timestep: Any,
        *,
        img_ids: Array,
        txt_ids: Array,
        guidance: Any = None,
    ) -> Array:
        cond = {"text": encoder_hidden_states, "pooled": pooled_projections}
        if guidance is not None:
            cond["guidance"] = per_example(guidance, hidden_states)
        # Older callers give the same places for each example.
        image, text = (ids[0] if ids.ndim == 3 else ids for ids in (img_ids, txt_ids))
        return self.network.patches(hidden_states, per_example(timestep, hidden_states), cond, image, text)


def keywords_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as keywords of `flux`."""
    return {
        "channels": config["in_channels"] // 4,
        "out_channels": (config["out_channels"] or config["in_channels"]) // 4,
        "width": width_of(config),
        "depth": config["num_layers"],
        "single_depth": config["num_single_layers"],
        "heads": config["num_attention_heads"],
        "axes": config["axes_dims_rope"],
        "text_width": config["joint_attention_dim"],
        "pooled_width": config["pooled_projection_dim"],
        "guidance_width": 256 if config["guidance_embeds"] else 0,
    }


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules, which all configs share."""
    single = "single_transformer_blocks.{i}"
    rules = (
        *linear("x_embedder", "patches"),
        *ends(),
        *two_streams("transformer_blocks.{i}", "blocks"),
        *linear(f"{single}.norm.linear", "single_blocks/modulation"),
        *one_stream(f"{single}.attn", "single_blocks/attention"),
        *linear(f"{single}.proj_mlp", "single_blocks/dense_1"),
        *linear(f"{single}.proj_out", "single_blocks/dense_2"),
    )
    return Table(rules)


def _check(config, folder):
    """Refuse what ours cannot do."""
    if config["patch_size"] != 1:
        raise ValueError(f"{folder}: its config.json has patch_size={config['patch_size']!r}; known is 1.")
    for name in ("in_channels", "out_channels"):
        if (config[name] or 0) % 4:
            raise ValueError(
                f"{folder}: its config.json has {name}={config[name]}; known are patches of 2 by 2 pixels, so "
                "multiples of 4."
            )


_DEFAULTS: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
