"""CLIP from folders of transformers: CLIPModel, of which one half is read, or a half of its own."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.nets.clip import clip_text, clip_vision
from diffusion_jax.pretrained.rules import CONV, DENSE, Pretrained, Rule, Table, linear, load, norm
from diffusion_jax.pretrained.tensors import open_tensors, read_config


def load_clip_text(folder: str | Path, *, dtype: str = "float32", variant: str = "") -> Pretrained:
    """Read the text half; it computes, and is kept, in `dtype`."""
    config, projection = _half(folder, "text", "load_clip_text")
    end = config["eos_token_id"]
    module = clip_text(
        vocabulary=config["vocab_size"],
        length=config["max_position_embeddings"],
        # Files from before the true number was written there say 2, and mean the greatest number.
        end=None if end == 2 else end,
        projection=projection,
        dtype=dtype,
        **_shape(config),
    )
    example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = load(TEXT, open_tensors(folder, variant=variant), module, (example,), dtype=dtype)
    return Pretrained(module, params, config)


def load_clip_vision(folder: str | Path, *, dtype: str = "float32", variant: str = "") -> Pretrained:
    """Read the half that sees; it computes, and is kept, in `dtype`."""
    config, projection = _half(folder, "vision", "load_clip_vision")
    size = config["image_size"]
    module = clip_vision(size=size, patch=config["patch_size"], projection=projection, dtype=dtype, **_shape(config))
    example = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    params = load(VISION, open_tensors(folder, variant=variant), module, (example,), dtype=dtype)
    return Pretrained(module, params, config)


def _half(folder, half, wanted) -> tuple[dict[str, Any], int]:
    """Return the config of one half, with what transformers takes where it is silent, and the projection's width."""
    config = read_config(folder, (f"clip_{half}_model", "clip"), wanted)
    if config["model_type"] == "clip":
        inner = (config.get(f"{half}_config") or {}) | (config.get(f"{half}_config_dict") or {})
        return _DEFAULTS[half] | inner, config.get("projection_dim", 512)
    full = _DEFAULTS[half] | config
    projects = any("WithProjection" in name for name in config.get("architectures") or ())
    return full, full["projection_dim"] if projects else 0


def _shape(config):
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "feed": config["hidden_act"],
        "epsilon": config["layer_norm_eps"],
    }


_BOTH = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "projection_dim": 512}
_DEFAULTS = {
    "text": _BOTH
    | {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    "vision": _BOTH
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    },
}


def _blocks(half):
    layer = f"{half}.encoder.layers.{{i}}"
    return (
        *norm(f"{layer}.layer_norm1", "blocks/norm_1"),
        *linear(tuple(f"{layer}.self_attn.{part}_proj" for part in "qkv"), "blocks/attention/qkv"),
        *linear(f"{layer}.self_attn.out_proj", "blocks/attention/out"),
        *norm(f"{layer}.layer_norm2", "blocks/norm_2"),
        *linear(f"{layer}.mlp.fc1", "blocks/dense_1"),
        *linear(f"{layer}.mlp.fc2", "blocks/dense_2"),
    )


_POSITIONS = {"*position_ids": "0, 1, 2, ..., which older versions wrote down", "logit_scale": "the loss's own"}

TEXT = Table(
    (
        Rule("text_model.embeddings.token_embedding.weight", "tokens"),
        Rule("text_model.embeddings.position_embedding.weight", "positions"),
        *_blocks("text_model"),
        *norm("text_model.final_layer_norm", "norm"),
        Rule("text_projection.weight", "projection/kernel", DENSE),
    ),
    harmless=_POSITIONS | {"vision_model.*": "the other half", "visual_projection.weight": "the other half"},
    spellings=({}, {"text_model.": ""}),
)

VISION = Table(
    (
        Rule("vision_model.embeddings.class_embedding", "class"),
        Rule("vision_model.embeddings.patch_embedding.weight", "patches/kernel", CONV),
        Rule("vision_model.embeddings.position_embedding.weight", "positions"),
        *norm("vision_model.pre_layrnorm", "norm_before"),  # as they spell it
        *_blocks("vision_model"),
        *norm("vision_model.post_layernorm", "norm"),
        Rule("visual_projection.weight", "projection/kernel", DENSE),
    ),
    harmless=_POSITIONS | {"text_model.*": "the other half", "text_projection.weight": "the other half"},
    spellings=({}, {"vision_model.": ""}),
)
