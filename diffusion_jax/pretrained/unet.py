"""U-Nets from folders of diffusers: UNet2DModel, such as DDPM's, and UNet2DConditionModel, such as Stable Diffusion's.

Both are ours (`nets/unet.py`) by other names. A config that asks for what ours cannot do is refused by the entry that
asks for it. `UNetCall` and `UNet2DCall` are called as theirs are, but for images, which are NHWC.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from diffusion_jax.nets.embed import TIME_EMBEDDINGS, Waves
from diffusion_jax.nets.unet import example_of, unet
from diffusion_jax.pretrained.blocks import BEFORE, activation_of, attention, check_groups, levels, residual
from diffusion_jax.pretrained.rules import (
    CONV,
    DENSE,
    POINTWISE,
    Call,
    Layout,
    Pretrained,
    Put,
    Rule,
    Table,
    linear,
    load,
    norm,
)
from diffusion_jax.pretrained.tensors import Tensors, check_known, of_config, open_tensors, read_config
from diffusion_jax.types import Array

KINDS = ("UNet2DModel", "UNet2DConditionModel")


def load_unet(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read a U-Net; it computes, and is kept, in `dtype`.

    It is called as `apply(params, x, t, cond)`: x is NHWC, t the number of the step it was trained on, and `cond` has
    what the model is told: `text` (B, L, D), `label` (B,), and as `pooled` what `micro` makes of SDXL's.
    """
    return read_unet(read_config(folder, KINDS, "load_unet"), open_tensors(folder, variant=variant), dtype, put=put)


def read_unet(
    config: Mapping[str, Any], tensors: Tensors, dtype: str, *, table: Table | None = None, put: Put = None
) -> Pretrained:
    """Read the U-Net of a config; `table` has the rules of files that diffusers did not write."""
    with of_config(tensors.source):
        config = complete(config, tensors.source)
        module = unet(**keywords_of(config, tensors.source), dtype=dtype)
    example = example_of(module)  # pyright: ignore[reportArgumentType]
    params = load(table or table_of(config), tensors, module, example, dtype=dtype, put=put)
    return Pretrained(module, params, config)


class UNetCall(Call):
    """A UNet2DConditionModel, called by its names."""

    def __call__(
        self,
        sample: Array,
        timestep: Any,
        encoder_hidden_states: Array | None = None,
        class_labels: Array | None = None,
        added_cond_kwargs: Mapping[str, Array] | None = None,
        *,
        encoder_attention_mask: Array | None = None,
        down_block_additional_residuals: Any = None,
        mid_block_additional_residual: Array | None = None,
    ) -> Array:
        added = dict(added_cond_kwargs or {})
        control = (*(down_block_additional_residuals or ()), mid_block_additional_residual)
        cond = {
            "text": encoder_hidden_states,
            "text_mask": encoder_attention_mask,
            "label": class_labels,
            "pooled": self._pooled(**added) if added else None,
            "control": None if control == (None,) else control,
        }
        cond = {name: value for name, value in cond.items() if value is not None}
        return self.network(sample, times_of(timestep, sample), cond)

    def _pooled(self, text_embeds, time_ids):
        width = (self.network.told.pooled_width - text_embeds.shape[-1]) // time_ids.shape[-1]
        return micro(text_embeds, time_ids, width=width, waves=self.network.waves)


class UNet2DCall(Call):
    """A UNet2DModel, called by its names."""

    def __call__(self, sample: Array, timestep: Any, class_labels: Array | None = None) -> Array:
        cond = {} if class_labels is None else {"label": class_labels}
        return self.network(sample, times_of(timestep, sample), cond)


def times_of(timestep: Any, sample: Array) -> Array:
    """Return one time for each example, of one for all or of one for each."""
    return jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), sample.shape[:1])


def micro(text: Any, numbers: Any, *, width: int = 256, waves: Waves | None = None) -> Any:
    """Return SDXL's `pooled`: a pooled text (B, D) beside six numbers (B, 6), the waves of each of `width`.

    The numbers are the original height and width, the top and the left of the crop, and the target height and width.
    """
    found: Any = (waves or TIME_EMBEDDINGS["sinusoidal"](time_scale=1.0))(numbers.reshape(-1), width)
    return jnp.concatenate([text, found.reshape(numbers.shape[0], -1)], -1)


def complete(config: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Return a config with the values that go without saying; refuse one that asks for what ours cannot do."""
    config = _DEFAULTS[config["_class_name"]] | dict(config)
    _check(config, folder)
    return config


def keywords_of(config: Mapping[str, Any], folder: str | Path) -> dict[str, Any]:
    """Return a config as keywords of `unet`."""
    widths, told = config["block_out_channels"], config["_class_name"] == "UNet2DConditionModel"
    first = widths[0]
    if any(width % first for width in widths):
        raise ValueError(
            f"{folder}: block_out_channels {widths} are no multiples of the first, which is all that is known."
        )
    down, up = (config[f"{way}_block_types"] for way in ("down", "up"))
    attends = [name.removesuffix("DownBlock2D") for name in down]
    mirrored = [name.removesuffix("UpBlock2D") for name in reversed(up)]
    word = "CrossAttn" if told else "Attn"
    if attends != mirrored or set(attends) - {"", word}:
        known = f"DownBlock2D and {word}DownBlock2D, and their mirror image"
        raise ValueError(f"{folder}: down_block_types {down} and up_block_types {up} are not known; known are {known}.")
    count = len(widths)
    return {
        "channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "image_size": 2 ** (count - 1),  # in name: the levels are what matters
        "width": first,
        "multipliers": tuple(width // first for width in widths),
        "depth": config["layers_per_block"],
        "attention": tuple(2 ** (count - 1 - level) for level, name in enumerate(attends) if name) or ("middle",),
        "mixer": "transformer" if told else "attention",
        "transformers": _each(config.get("transformer_layers_per_block", 1), count),
        "text_width": config["cross_attention_dim"] if told else 0,
        "pooled_width": config["projection_class_embeddings_input_dim"] or 0 if told else 0,
        "num_classes": max((config["num_class_embeds"] or 0) - 1, 0),  # the last of theirs is our null label
        "tell": {"default": "add", "scale_shift": "scale_shift"}[config["resnet_time_scale_shift"]],
        "resample": {"name": "strided", "padding": (config["downsample_padding"] and 1, 1)},
        "groups": config["norm_num_groups"],
        "group_width": 1,
        "epsilon": config["norm_eps"],
        "activation": activation_of(config),
        "dropout": config["dropout"],
        "time": {"name": "sinusoidal" if config["flip_sin_to_cos"] else "positional", "time_scale": 1.0},
        **_heads(config, widths, folder, told),
    }


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    inner = DENSE if config.get("use_linear_projection") else POINTWISE
    told = config["_class_name"] == "UNet2DConditionModel"
    mix = partial(transformer, inner=inner) if told else attention
    rules = [
        *linear("conv_in", "first", CONV),
        *linear("time_embedding.linear_{i}", "conditioning/time_{i}"),
        *linear("add_embedding.linear_{i}", "conditioning/pooled_{i}"),
        Rule("class_embedding.weight", "conditioning/label"),
        *residual("mid_block.resnets.{i}", "middle_block_{i}"),
        *mix("mid_block.attentions.0", "middle_mixer"),
        *norm("conv_norm_out", "last_norm"),
        *linear("conv_out", "last", CONV),
        *levels(len(config["block_out_channels"]), mix, theirs=("down_blocks", "up_blocks"), ours=("down", "up")),
    ]
    return Table(tuple(rules), spellings=({}, BEFORE))


def transformer(theirs: str, ours: str, inner: Layout) -> tuple[Rule, ...]:
    """Give the rules of attention to a text; `inner` is the layout of its first and last layer."""
    layer, own = f"{theirs}.transformer_blocks.{{k}}", f"{ours}/layer_{{k}}"
    return (
        *norm(f"{theirs}.norm", f"{ours}/norm"),
        *linear(f"{theirs}.proj_in", f"{ours}/in", inner),
        *linear(f"{theirs}.proj_out", f"{ours}/out", inner),
        *norm(f"{layer}.norm{{n}}", f"{own}/norm_{{n}}"),
        *linear(tuple(f"{layer}.attn1.to_{part}" for part in "qkv"), f"{own}/attention/qkv"),
        *linear(f"{layer}.attn1.to_out.0", f"{own}/attention/out"),
        *linear(f"{layer}.attn2.to_q", f"{own}/to_text/q"),
        *linear((f"{layer}.attn2.to_k", f"{layer}.attn2.to_v"), f"{own}/to_text/kv"),
        *linear(f"{layer}.attn2.to_out.0", f"{own}/to_text/out"),
        *linear(f"{layer}.ff.net.0.proj", f"{own}/dense_1"),
        *linear(f"{layer}.ff.net.2", f"{own}/dense_2"),
    )


def _heads(config, widths, folder, told):
    """Say how levels are divided into heads; of text-conditional models `attention_head_dim` is the number of heads."""
    if not told:
        width = config["attention_head_dim"]
        return {"heads": 1, "head_width": width or 0}
    counts = _each(config["num_attention_heads"] or config["attention_head_dim"], len(widths))
    if len(set(counts)) == 1:
        return {"heads": counts[0], "head_width": 0}
    each = {width // count for width, count in zip(widths, counts, strict=True) if not width % count}
    if len(each) != 1 or any(width % count for width, count in zip(widths, counts, strict=True)):
        raise ValueError(f"{folder}: heads {counts} of levels {widths}; known are as many or as wide ones everywhere.")
    return {"heads": 1, "head_width": each.pop()}


def _each(value, levels):
    return tuple([value] * levels if isinstance(value, int) else value)


def _check(config, folder):
    """Refuse what ours cannot do."""
    check_known(config, _KNOWN[config["_class_name"]], folder)
    check_groups(config, folder)
    if (config["flip_sin_to_cos"], config["freq_shift"]) not in ((True, 0), (False, 1)):
        raise ValueError(
            f"{folder}: its config.json has flip_sin_to_cos={config['flip_sin_to_cos']} with "
            f"freq_shift={config['freq_shift']}; known are True with 0 and False with 1."
        )


_BOTH = {
    "in_channels": 4,
    "out_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "attention_head_dim": 8,
    "num_class_embeds": None,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {
        **_BOTH,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
        "block_out_channels": [224, 448, 672, 896],
    },
    "UNet2DConditionModel": {
        **_BOTH,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 1,
        "num_attention_heads": None,
        "use_linear_projection": False,
        "projection_class_embeddings_input_dim": None,
    },
}

_NONE, _NO = (None,), (None, False)
_KNOWN: dict[str, dict[str, tuple]] = {
    "UNet2DModel": {
        "center_input_sample": _NO,
        "time_embedding_type": ("positional",),
        "time_embedding_dim": _NONE,
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "attn_norm_num_groups": _NONE,
        "add_attention": (True,),
        "class_embed_type": _NONE,
        "downsample_padding": (0, 1),
    },
    "UNet2DConditionModel": {
        "center_input_sample": _NO,
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "mid_block_scale_factor": (1,),
        "only_cross_attention": _NO,
        "mid_block_only_cross_attention": _NO,
        "dual_cross_attention": _NO,
        "encoder_hid_dim": _NONE,
        "encoder_hid_dim_type": _NONE,
        "class_embed_type": _NONE,
        "addition_embed_type": (None, "text_time"),
        "resnet_time_scale_shift": ("default", "scale_shift"),
        "resnet_skip_time_act": _NO,
        "resnet_out_scale_factor": (1,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": _NONE,
        "time_embedding_act_fn": _NONE,
        "timestep_post_act": _NONE,
        "time_cond_proj_dim": _NONE,
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "attention_type": ("default",),
        "class_embeddings_concat": _NO,
        "cross_attention_norm": _NONE,
        "reverse_transformer_layers_per_block": _NONE,
        "downsample_padding": (0, 1),
    },
}
