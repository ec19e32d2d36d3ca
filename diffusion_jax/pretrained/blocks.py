"""What the files of diffusers' U-Nets and autoencoders spell alike: residual blocks, and the attention of images."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diffusion_jax.pretrained.rules import CONV, DENSE, Layout, Rule, linear, norm

RESIDUAL = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
DIFFUSERS = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
# As diffusers wrote it before 0.12, and as most published models are.
BEFORE = MappingProxyType({".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."})


def levels(
    count: int, mix: Callable[[str, str], Iterable[Rule]], *, theirs: tuple[str, str], ours: tuple[str, str]
) -> list[Rule]:
    """Give the rules of `count` levels on the way down and up, whose names begin so; `mix` gives those of attention.

    They count the levels of the way up from the coarsest, and resampling with the level that it leaves. We count both
    from the finest, and resampling with the level that it leads to.
    """
    rules = []
    for level in range(count):
        places = f"{theirs[0]}.{level}", f"{theirs[1]}.{count - 1 - level}"
        for there, here in zip(places, ours, strict=True):
            rules += residual(f"{there}.resnets.{{i}}", f"{here}_{level}_block_{{i}}")
            rules += mix(f"{there}.attentions.{{i}}", f"{here}_{level}_mixer_{{i}}")
        rules += linear(f"{places[0]}.downsamplers.0.conv", f"{ours[0]}_{level + 1}_resample", CONV)
        rules += linear(f"{places[1]}.upsamplers.0.conv", f"{ours[1]}_{level - 1}_resample/conv", CONV)
    return rules


def activation_of(config: Mapping[str, Any]) -> str:
    """Return the name that we have for a config's activation."""
    name: str = config["act_fn"]
    return {"swish": "silu"}.get(name, name)


def check_groups(config: Mapping[str, Any], folder: str | Path) -> None:
    """Refuse groups of channels that do not divide them, of which diffusers could not build a network either."""
    groups, widths = config["norm_num_groups"], config["block_out_channels"]
    if not isinstance(groups, int) or groups < 1 or any(width % groups for width in widths):
        raise ValueError(
            f"{folder}: its config.json has norm_num_groups={groups!r}, which must divide each of block_out_channels, "
            f"{list(widths)}."
        )


def residual(theirs: str, ours: str, names: tuple[str, ...] = RESIDUAL) -> list[Rule]:
    """Give the rules of a residual block, which may be told the time; `names` are of its parts, in their order."""
    norm_1, conv_1, tell, norm_2, conv_2, shortcut = (f"{theirs}.{name}" for name in names)
    return [
        *norm(norm_1, f"{ours}/norm_1"),
        *linear(conv_1, f"{ours}/conv_1", CONV),
        *linear(tell, f"{ours}/tell"),
        *norm(norm_2, f"{ours}/norm_2"),
        *linear(conv_2, f"{ours}/conv_2", CONV),
        *linear(shortcut, f"{ours}/shortcut", CONV),
    ]


def attention(theirs: str, ours: str, names: tuple[str, ...] = DIFFUSERS, layout: Layout = DENSE) -> list[Rule]:
    """Give the rules of attention over pixels; `names` are of its norm, its three products, and the last."""
    first, *parts, out = (f"{theirs}.{name}" for name in names)
    return [
        *norm(first, f"{ours}/norm"),
        *linear(tuple(parts), f"{ours}/attention/qkv", layout),
        *linear(out, f"{ours}/attention/out", layout),
    ]
