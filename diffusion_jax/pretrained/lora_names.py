"""What files call adapters: which network, which of its layers, and which of a layer's tensors a name speaks of.

    unet.mid_block.attentions.0.proj_in.lora_A.weight             peft; also lora_A.default.weight
    unet.mid_block.attentions.0.proj_in.lora.down.weight          diffusers; its texts have lora_linear_layer.down
    mid_block. ... .attn1.processor.to_q_lora.down.weight         diffusers, when attention had processors
    lora_unet_mid_block_attentions_0_proj_in.lora_down.weight     kohya: dots become underscores, alpha is a tensor
    lora_unet_middle_block_1_proj_in.lora_down.weight             kohya, where the U-Net is spelled as its authors did

So a layer is found by its name in the family's rules, with its dots or with underscores in their place.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from diffusion_jax.pretrained.rules import Slot, Table, plan, spell
from diffusion_jax.types import Params

PARTS: Mapping[str, tuple[str, ...]] = {
    "denoiser": ("unet.", "transformer.", "diffusion_model.", "lora_unet_", "lora_transformer_"),
    "text_encoder": ("text_encoder.", "lora_te_", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_"),
}
_BARE = "base_model.model."  # peft's own, of whatever network

_ROLES = {
    "down": r"\.(?:lora_A(?:\.\w+)?|lora\.down|lora_down|lora_linear_layer\.down)\.weight",
    "up": r"\.(?:lora_B(?:\.\w+)?|lora\.up|lora_up|lora_linear_layer\.up)\.weight",
    "alpha": r"\.alpha",
}
_BEFORE = re.compile(r"(?:\.processor)?\.to_(q|k|v|out)_lora\.(down|up)\.weight$")


class Named(NamedTuple):
    """What a name speaks of: the part of a pipeline, or "" for the only one; the layer; down, up or alpha, or ""."""

    part: str
    layer: str
    role: str


def read_name(name: str) -> Named:
    """Take a tensor's name apart."""
    part, prefix = next(
        ((part, prefix) for part, prefixes in PARTS.items() for prefix in prefixes if name.startswith(prefix)), ("", "")
    )
    rest = name.removeprefix(prefix) if part else name.removeprefix(_BARE)
    if before := _BEFORE.search(rest):
        return Named(part, f"{rest[: before.start()]}.to_{before[1]}", before[2])
    for role, ending in _ROLES.items():
        if found := re.search(f"{ending}$", rest):
            return Named(part, rest[: found.start()], role)
    return Named(part, rest, "")


def layers_of(table: Table, shapes: Params) -> dict[str, Slot]:
    """Return where the kernels of a network go, by the names of their layers in the table's first spelling."""
    slots = plan(table.rules, shapes).items()
    kernels = {name: slot for name, slot in slots if f"/{slot.path}".endswith("/kernel") and name.endswith(".weight")}
    return {spell(name, table.spellings[0]).removesuffix(".weight"): slot for name, slot in kernels.items()}


def spellings_of(table: Table, layers: Iterable[str]) -> dict[str, str]:
    """Map every way to spell a layer to the layer; two that are spelled alike are left out, so neither is found."""
    layers, found, twice = tuple(layers), {}, set()
    authors = _of_authors(layers)
    for layer in layers:
        ways = {spell(f"{layer}.weight", spelling).removesuffix(".weight") for spelling in table.spellings}
        ways |= {layer, authors.get(layer, layer)}
        ways |= {re.sub(r"\.(?:to_out\.0|out_proj)$", ".to_out", way) for way in ways}
        ways |= {re.sub(r"\.([qkv])_proj$", r".to_\1", way) for way in ways}
        for way in ways | {way.replace(".", "_") for way in ways}:
            if found.setdefault(way, layer) != layer:
                twice.add(way)
    return {way: layer for way, layer in found.items() if way not in twice}


def _of_authors(layers):
    """Map the layers of a U-Net of diffusers to what the authors of Stable Diffusion called them.

    They count the blocks of a whole way, down or up, and number what a block is made of: residual, attention and, going
    up, resampling, which is a block of its own going down.
    """
    depth = sum(1 for layer in layers if re.fullmatch(r"down_blocks\.0\.resnets\.\d+\.conv1", layer))
    attends = {found[1] for layer in layers if (found := re.match(r"up_blocks\.(\d+)\.attentions\.", layer))}
    names = dict(_ENDS)
    for layer in layers:
        if not (found := _INNER.fullmatch(layer)):
            continue
        way, level, kind, place, rest = found.groups()
        rest = _RESIDUAL.get(rest, rest) if kind == "resnets" else rest
        if way == "mid":
            block = f"middle_block.{2 * int(place) if kind == 'resnets' else 1}"
        elif kind == "downsamplers":
            block, rest = f"input_blocks.{(int(level) + 1) * (depth + 1)}.0", "op"
        elif kind == "upsamplers":
            block = f"output_blocks.{int(level) * (depth + 1) + depth}.{2 if level in attends else 1}"
        else:
            number = int(level) * (depth + 1) + int(place) + (way == "down")
            block = f"{'input' if way == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}"
        names[layer] = f"{block}.{rest}"
    return names if depth else {}


_INNER = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_RESIDUAL = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
