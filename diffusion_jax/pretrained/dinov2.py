"""DINOv2 from folders of transformers, with registers or without."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.nets.dinov2 import dinov2
from diffusion_jax.pretrained.rules import CONV, SINGLE, Call, Layout, Pretrained, Put, Rule, Table, linear, load, norm
from diffusion_jax.pretrained.tensors import of_config, open_tensors, read_config
from diffusion_jax.types import Array


class Features(NamedTuple):
    """All tokens after the last norm, and of them the class token."""

    last_hidden_state: Array
    pooler_output: Array


def load_dinov2(
    folder: str | Path, *, positions: str = "", dtype: str = "float32", variant: str = "", put: Put = None
) -> Pretrained:
    """Read a network; it computes, and is kept, in `dtype`.

    Where images are not of the size it was trained for, `positions` are interpolated as in its authors' code unless
    another rule of `nets.dinov2.POSITIONS` is named; transformers has "plain" for networks without registers.
    """
    config = _DEFAULTS | read_config(folder, ("dinov2", "dinov2_with_registers"), "load_dinov2")
    registered = config["model_type"] == "dinov2_with_registers"
    with of_config(folder):
        hidden = int(config["hidden_size"] * config["mlp_ratio"])
        gated = config["use_swiglu_ffn"]
        module = dinov2(
            grid=config["image_size"] // config["patch_size"],
            patch=config["patch_size"],
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            hidden=(int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden,  # a gate adds a third of the weights
            feed="swiglu" if gated else config["hidden_act"],
            registers=config["num_register_tokens"] if registered else 0,
            positions=positions or ("antialiased" if registered else "original"),
            epsilon=config["layer_norm_eps"],
            dtype=dtype,
        )
    side = config["image_size"]
    example = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    params = load(table_of(config), open_tensors(folder, variant=variant), module, (example,), dtype=dtype, put=put)
    return Pretrained(module, params, config)


class DinoV2Call(Call):
    """A Dinov2Model, with registers or without, called by its names."""

    def __call__(self, pixel_values: Array) -> Features:
        tokens = self.network.tokens(pixel_values)
        return Features(tokens, tokens[:, 0])


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    return GATED if config["use_swiglu_ffn"] else DINOV2


_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
    "use_swiglu_ffn": False,
    "num_register_tokens": 4,
}

_TOKEN = Layout(lambda x: x[0, 0], lambda x: x[None, None])
_LAYER = "encoder.layer.{i}"


def _table(first, second):
    """Give the rules of a network whose blocks call their dense layers `first` and `second`."""
    qkv = tuple(f"{_LAYER}.attention.attention.{part}" for part in ("query", "key", "value"))
    rules = (
        Rule("embeddings.cls_token", "class", _TOKEN),
        Rule("embeddings.register_tokens", "registers", SINGLE),
        Rule("embeddings.position_embeddings", "positions", SINGLE),
        *linear("embeddings.patch_embeddings.projection", "patches", CONV),
        *norm(f"{_LAYER}.norm1", "blocks/norm_1"),
        *linear(qkv, "blocks/attention/qkv"),
        *linear(f"{_LAYER}.attention.output.dense", "blocks/attention/out"),
        Rule(f"{_LAYER}.layer_scale1.lambda1", "blocks/scale_1"),
        *norm(f"{_LAYER}.norm2", "blocks/norm_2"),
        *linear(f"{_LAYER}.mlp.{first}", "blocks/dense_1"),
        *linear(f"{_LAYER}.mlp.{second}", "blocks/dense_2"),
        Rule(f"{_LAYER}.layer_scale2.lambda1", "blocks/scale_2"),
        *norm("layernorm", "norm"),
    )
    return Table(rules, harmless={"embeddings.mask_token": "for training only"})


DINOV2, GATED = _table("fc1", "fc2"), _table("weights_in", "weights_out")
