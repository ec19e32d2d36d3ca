"""CLIP from folders of transformers: CLIPModel, whole or one half of it, or a half of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.nets.clip import Clip, ClipText, ClipVision, clip_text, clip_vision
from diffusion_jax.pretrained.rules import CONV, DENSE, Call, Pretrained, Put, Rule, Table, linear, load, norm
from diffusion_jax.pretrained.tensors import Tensors, of_config, open_tensors, read_config
from diffusion_jax.types import Array


def load_clip_text(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read the text half; it computes, and is kept, in `dtype`."""
    config = read_config(folder, ("clip_text_model", "clip"), "load_clip_text")
    return read_clip_text(config, open_tensors(folder, variant=variant), dtype, put=put)


def read_clip_text(
    config: dict[str, Any], tensors: Tensors, dtype: str, *, table: Table | None = None, put: Put = None
) -> Pretrained:
    """Read the text half of a config; `table` has the rules of files that transformers did not write."""
    with of_config(tensors.source):
        config = _half(config, "text")
        module = _text(config, dtype)
    return Pretrained(module, load(table or TEXT, tensors, module, _example(module), dtype=dtype, put=put), config)


def load_clip_vision(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read the half that sees; it computes, and is kept, in `dtype`."""
    config = read_config(folder, ("clip_vision_model", "clip"), "load_clip_vision")
    tensors = open_tensors(folder, variant=variant)
    with of_config(folder):
        config = _half(config, "vision")
        module = _vision(config, dtype)
    return Pretrained(module, load(VISION, tensors, module, _example(module), dtype=dtype, put=put), config)


def load_clip(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read both halves; they compute, and are kept, in `dtype`."""
    config = read_config(folder, ("clip",), "load_clip")
    with of_config(folder):
        module = Clip(_text(_half(config, "text"), dtype), _vision(_half(config, "vision"), dtype))
    example = (*_example(module.text), *_example(module.vision))
    params = load(BOTH, open_tensors(folder, variant=variant), module, example, dtype=dtype, put=put)
    return Pretrained(module, params, config)


class Text(NamedTuple):
    """What a text's half returns; `hidden_states` are before the first block and after each, none of them normed."""

    last_hidden_state: Array
    pooler_output: Array
    text_embeds: Array | None
    hidden_states: tuple[Array, ...]


class Image(NamedTuple):
    """What the half that sees returns; `hidden_states` are before the first block and after each."""

    last_hidden_state: Array
    pooler_output: Array
    image_embeds: Array | None
    hidden_states: tuple[Array, ...]


class Both(NamedTuple):
    """What a whole CLIP returns: how well images and texts fit, embeddings of length 1, and what its halves return."""

    logits_per_image: Array
    logits_per_text: Array
    text_embeds: Array
    image_embeds: Array
    text_model_output: Text
    vision_model_output: Image


class ClipTextCall(Call):
    """A CLIPTextModel or a CLIPTextModelWithProjection, called by its names."""

    def __call__(self, input_ids: Array, attention_mask: Array | None = None) -> Text:
        return _as_text(self.network(input_ids, attention_mask))


class ClipVisionCall(Call):
    """A CLIPVisionModel or a CLIPVisionModelWithProjection, called by its names."""

    def __call__(self, pixel_values: Array) -> Image:
        return _as_image(self.network(pixel_values))


class ClipCall(Call):
    """A CLIPModel, called by its names."""

    def __call__(self, input_ids: Array, pixel_values: Array, attention_mask: Array | None = None) -> Both:
        text, image, scale = self.network(input_ids, pixel_values, attention_mask)
        texts, images = (
            one.projected / jnp.linalg.norm(one.projected, axis=-1, keepdims=True) for one in (text, image)
        )
        logits = jnp.matmul(texts, images.T, precision="highest") * jnp.exp(scale.astype(jnp.float32))
        return Both(logits.T, logits, texts, images, _as_text(text), _as_image(image))


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config; version 5 of transformers no longer begins a text half's names with its name."""
    table = {"clip": BOTH, "clip_text_model": TEXT, "clip_vision_model": VISION}[config["model_type"]]
    bare = str(config.get("transformers_version", "")).startswith("5.") and not _projects(config)
    return table._replace(spellings=table.spellings[::-1]) if bare and table is not BOTH else table


def open_table(config: Mapping[str, Any]) -> Table:
    """Return the rules of a text's network in the spelling of OpenCLIP."""
    layer, left = "transformer.resblocks.{i}", f"transformer.resblocks.{config['num_hidden_layers']}.*"
    rules = (
        Rule("token_embedding.weight", "tokens"),
        Rule("positional_embedding", "positions"),
        *norm(f"{layer}.ln_1", "blocks/norm_1"),
        Rule(f"{layer}.attn.in_proj_weight", "blocks/attention/qkv/kernel", DENSE),
        Rule(f"{layer}.attn.in_proj_bias", "blocks/attention/qkv/bias"),
        *linear(f"{layer}.attn.out_proj", "blocks/attention/out"),
        *norm(f"{layer}.ln_2", "blocks/norm_2"),
        *linear(f"{layer}.mlp.c_fc", "blocks/dense_1"),
        *linear(f"{layer}.mlp.c_proj", "blocks/dense_2"),
        *norm("ln_final", "norm"),
        Rule("text_projection", "projection/kernel"),
    )
    harmless = {left: "the last block, without which version 2 does", "logit_scale": "the loss's own"}
    return Table(rules, harmless=harmless | {"text_projection": "where nothing is projected", "attn_mask": "causal"})


def _half(config, half) -> dict[str, Any]:
    """Return the config of one half as if it were alone, with what transformers takes where it is silent."""
    if config["model_type"] != "clip":
        return _DEFAULTS[half] | config
    inner = (config.get(f"{half}_config") or {}) | (config.get(f"{half}_config_dict") or {})
    return (
        _DEFAULTS[half]
        | inner
        | {
            "model_type": f"clip_{half}_model",
            "architectures": [f"CLIP{half.title()}ModelWithProjection"],
            "projection_dim": config.get("projection_dim", 512),
        }
    )


def _projects(config):
    return any("WithProjection" in name for name in config.get("architectures") or ())


def _text(config, dtype) -> ClipText:
    end = config["eos_token_id"]
    return clip_text(
        vocabulary=config["vocab_size"],
        length=config["max_position_embeddings"],
        # Files from before the true number was written there say 2, and mean the greatest number.
        end=None if end == 2 else end,
        **_shape(config),
        dtype=dtype,
    )


def _vision(config, dtype) -> ClipVision:
    return clip_vision(size=config["image_size"], patch=config["patch_size"], **_shape(config), dtype=dtype)


def _example(module: ClipText | ClipVision) -> tuple[Any]:
    """Return what a half is called with, by shape and dtype."""
    if isinstance(module, ClipText):
        return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)
    return (jax.ShapeDtypeStruct((1, module.size, module.size, 3), jnp.float32),)


def _as_text(found):
    return Text(found.tokens, found.pooled, found.projected, (found.embedded, *found.layers))


def _as_image(found):
    return Image(found.tokens, found.pooled, found.projected, (found.embedded, *found.layers))


def _shape(config):
    return {
        "width": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "feed": config["hidden_act"],
        "epsilon": config["layer_norm_eps"],
        "projection": config["projection_dim"] if _projects(config) else 0,
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

BOTH = Table(
    (
        *(rule._replace(ours=f"text/{rule.ours}") for rule in TEXT.rules),
        *(rule._replace(ours=f"vision/{rule.ours}") for rule in VISION.rules),
        Rule("logit_scale", "logit_scale"),
    ),
    harmless={"*position_ids": _POSITIONS["*position_ids"]},
)
