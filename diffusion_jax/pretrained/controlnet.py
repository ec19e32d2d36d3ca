"""Control networks from folders of diffusers: ControlNetModel, of Stable Diffusion 1, 2 and XL.

Its config is that of the way down of a U-Net, and its tensors are named as the U-Net's are, so both are read by
`pretrained/unet.py`; here is what a control network has besides. A network that reads hints with blue first is ours
with the channels of its first kernel turned, so that all hints are RGB. Hints are in [0, 1].
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from diffusion_jax.nets.controlnet import Control, ControlNet, controlnet, example, falling, scaled
from diffusion_jax.nets.unet import unet
from diffusion_jax.pretrained.rules import CONV, Call, Layout, Pretrained, Put, Table, linear, load
from diffusion_jax.pretrained.tensors import of_config, open_tensors, read_config
from diffusion_jax.pretrained.unet import complete, keywords_of, micro
from diffusion_jax.pretrained.unet import table_of as unet_table
from diffusion_jax.types import Array

KINDS = ("ControlNetModel",)
BLUE_FIRST = Layout(lambda x: CONV.ours(x)[:, :, ::-1], lambda x: CONV.theirs(x[:, :, ::-1]))


def load_controlnet(folder: str | Path, *, dtype: str = "float32", variant: str = "", put: Put = None) -> Pretrained:
    """Read a control network; it computes, and is kept, in `dtype`.

    It is called as `apply(params, x, t, cond, scale)`: as its U-Net is, with the entry `hint` in `cond`, and answers
    with the entry `control` of the U-Net's.
    """
    config = _DEFAULTS | read_config(folder, KINDS, "load_controlnet")
    with of_config(folder):
        module = module_of(config, folder, dtype=dtype)
        table = table_of(config)
    params = load(table, open_tensors(folder, variant=variant), module, example(module), dtype=dtype, put=put)
    return Pretrained(module, params, config)


def module_of(config: Mapping[str, Any], folder: str | Path, *, dtype: str = "float32") -> ControlNet:
    """Build the network of a config, all of whose entries are there."""
    for name, known in _KNOWN.items():
        if config[name] not in known:
            raise ValueError(f"{folder}: its config.json has {name}={config[name]!r}; known are {known}.")
    keywords = keywords_of(complete(_of_unet(config), folder), folder)
    return controlnet(
        unet(**keywords, dtype=dtype),  # pyright: ignore[reportArgumentType]
        hint_channels=config["conditioning_channels"],
        hint_widths=tuple(config["conditioning_embedding_out_channels"]),
        middle_blocks=_MIDDLES[config["mid_block_type"]],
        pool="mean" if config["global_pool_conditions"] else "none",
    )


def table_of(config: Mapping[str, Any]) -> Table:
    """Return the rules of a config."""
    first = BLUE_FIRST if config.get("controlnet_conditioning_channel_order") == "bgr" else CONV
    rules = [
        *linear("controlnet_cond_embedding.conv_in", "hint/first", first),
        *linear("controlnet_cond_embedding.blocks.{i}", "hint/layer_{i}", CONV),
        *linear("controlnet_cond_embedding.conv_out", "hint/last", CONV),
        *linear("controlnet_down_blocks.{i}", "zero_{i}", CONV),
        *linear("controlnet_mid_block", "zero_middle", CONV),
    ]
    return Table((*unet_table(complete(_of_unet(config), "table_of")).rules, *rules))


class ControlNetCall(Call):
    """A control network by diffusers' names; images are NHWC."""

    def __call__(
        self,
        sample: Array,
        timestep: Any,
        encoder_hidden_states: Array,
        controlnet_cond: Array,
        conditioning_scale: Any = 1.0,
        *,
        class_labels: Array | None = None,
        added_cond_kwargs: Mapping[str, Array] | None = None,
        guess_mode: bool = False,
    ) -> tuple[Control, Array]:
        """Return what is added to the U-Net's skips, and what to its middle."""
        network, t = self.network, jnp.broadcast_to(jnp.asarray(timestep, jnp.float32), sample.shape[:1])
        cond: dict[str, Any] = {"hint": controlnet_cond, "text": encoder_hidden_states, "label": class_labels}
        if added_cond_kwargs:
            pooled, numbers = added_cond_kwargs["text_embeds"], added_cond_kwargs["time_ids"]
            width = (network.told.pooled_width - pooled.shape[-1]) // numbers.shape[-1]
            cond["pooled"] = micro(pooled, numbers, width=width)
        cond = {name: value for name, value in cond.items() if value is not None}
        control = network(sample, t, cond, conditioning_scale)
        if guess_mode and network.pool == "none":
            control = scaled(control, falling(len(control)))
        return control[:-1], control[-1]


def _of_unet(config):
    """Return the config of a U-Net that a control network could be cloned from."""
    up = [name.replace("Down", "Up") for name in reversed(config["down_block_types"])]
    told = {"_class_name": "UNet2DConditionModel", "mid_block_type": "UNetMidBlock2DCrossAttn", "up_block_types": up}
    return {**config, **told}


_MIDDLES = {"UNetMidBlock2DCrossAttn": 2, "UNetMidBlock2D": 1}
_KNOWN = {"mid_block_type": tuple(_MIDDLES), "controlnet_conditioning_channel_order": ("rgb", "bgr")}
_DEFAULTS: dict[str, Any] = {
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
