"""T5's encoder from folders of transformers: an encoder alone, or a whole T5, of which the decoder is left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.nets.t5 import t5
from diffusion_jax.pretrained.rules import DENSE, Call, Pretrained, Put, Rule, Table, load
from diffusion_jax.pretrained.tensors import Tensors, of_config, open_tensors, read_config
from diffusion_jax.types import Array


def load_t5(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read T5 1.0, 1.1, FLAN or mT5; it computes, and is kept, in `dtype`."""
    config = read_config(folder, tuple(_DEFAULTS), "load_t5")
    return read_t5(config, open_tensors(folder, variant=variant), dtype, put=put)


def read_t5(config: dict[str, Any], tensors: Tensors, dtype: str, *, put: Put = None) -> Pretrained:
    """Read the encoder of a config."""
    with of_config(tensors.source):
        config = _DEFAULTS[config["model_type"]] | config
        feed, activation = _feed(config["feed_forward_proj"], tensors.source)
        module = t5(
            vocabulary=config["vocab_size"],
            width=config["d_model"],
            depth=config["num_layers"],
            heads=config["num_heads"],
            head_width=config["d_kv"],
            hidden=config["d_ff"],
            activation=activation,
            feed=feed,
            buckets=config["relative_attention_num_buckets"],
            reach=config["relative_attention_max_distance"],
            epsilon=config["layer_norm_epsilon"],
            dtype=dtype,
        )
    _check_tied(tensors)
    example = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = load(table_of(config), tensors, module, (example,), dtype=dtype, put=put)
    kept = {"architectures": [{"t5": "T5EncoderModel", "mt5": "MT5EncoderModel"}[config["model_type"]]]}
    return Pretrained(module, params, config | kept)


class T5Call(Call):
    """A T5EncoderModel, called by its names."""

    def __call__(self, input_ids: Array, attention_mask: Array | None = None) -> Array:
        return self.network(input_ids, attention_mask)


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    return GATED if _feed(config["feed_forward_proj"], "the config")[0] == "gated" else PLAIN


def config_of(tensors: Tensors) -> dict[str, Any]:
    """Return the config that transformers would have of the shapes of an encoder with gated layers, as of T5 1.1."""
    shapes, first = tensors.shapes, "encoder.block.0.layer"
    places, heads, dense = (
        f"{first}.0.SelfAttention.relative_attention_bias.weight",
        f"{first}.0.SelfAttention.q.weight",
        f"{first}.1.DenseReluDense.wi_0.weight",
    )
    missing = [name for name in (_SHARED, places, heads, dense) if name not in shapes]
    if missing:
        raise ValueError(f"load: {tensors.source} has no T5 that is known: it lacks {', '.join(missing)}.")
    depth = sum(name.endswith("SelfAttention.q.weight") for name in shapes)
    return {
        "model_type": "t5",
        "vocab_size": shapes[_SHARED][0],
        "d_model": shapes[_SHARED][1],
        "d_kv": shapes[heads][0] // shapes[places][1],
        "d_ff": shapes[dense][0],
        "num_layers": depth,
        "num_heads": shapes[places][1],
        "relative_attention_num_buckets": shapes[places][0],
        "feed_forward_proj": "gated-gelu",
    }


def _feed(name: str, folder) -> tuple[str, str]:
    """Return the form of the dense layers and their activation, in our words."""
    kind, _, activation = name.rpartition("-")
    if kind not in ("", "gated"):
        raise ValueError(f"load_t5: {folder} has feed_forward_proj '{name}'; it must be like 'relu' or 'gated-gelu'.")
    # "gated-gelu" has always meant the approximation by tanh; transformers keeps it so for the sake of old configs.
    words = {"gelu_new": "gelu_tanh"} | ({"gelu": "gelu_tanh"} if kind else {})
    return "gated" if kind else "plain", words.get(activation, activation)


def _check_tied(tensors: Tensors) -> None:
    """Refuse a file whose encoder has tokens other than those shared, which would be left."""
    if not {_SHARED, _OWN} <= tensors.shapes.keys():
        return
    if not np.array_equal(tensors.read(_SHARED), tensors.read(_OWN)):
        raise ValueError(f"{tensors.source}: {_OWN} and {_SHARED} differ; remove that which the encoder does not read.")


_SHARED, _OWN = "shared.weight", "encoder.embed_tokens.weight"
_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "t5": _T5,
    "mt5": _T5
    | {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"},
}


def _table(first):
    """Give the rules of a network whose first dense layer has these names."""
    attention, dense = "encoder.block.{i}.layer.0", "encoder.block.{i}.layer.1"
    rules = (
        Rule(_SHARED, "tokens"),
        Rule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "places"),
        Rule(f"{attention}.layer_norm.weight", "blocks/norm_1/scale"),
        Rule(tuple(f"{attention}.SelfAttention.{part}.weight" for part in "qkv"), "blocks/attention/qkv/kernel", DENSE),
        Rule(f"{attention}.SelfAttention.o.weight", "blocks/attention/out/kernel", DENSE),
        Rule(f"{dense}.layer_norm.weight", "blocks/norm_2/scale"),
        Rule(tuple(f"{dense}.DenseReluDense.{part}.weight" for part in first), "blocks/dense_1/kernel", DENSE),
        Rule(f"{dense}.DenseReluDense.wo.weight", "blocks/dense_2/kernel", DENSE),
        Rule("encoder.final_layer_norm.weight", "norm/scale"),
    )
    harmless = {
        "decoder.*": "the other half",
        "lm_head.weight": "the other half's",
        _SHARED: "the same as the encoder's own",
        _OWN: "the same as those shared",
    }
    return Table(rules, harmless=harmless, spellings=({}, {_SHARED: _OWN}))


PLAIN, GATED = _table(("wi",)), _table(("wi_0", "wi_1"))
